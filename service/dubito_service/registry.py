"""The registry: which versions of which models are served, and why others are not."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from dubito_models.engine import PASS_BYTES
from dubito_models.errors import DubitoError
from dubito_models.package import ModelVersion, Repository
from dubito_service.errors import NotServed

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """One version in the repository: loaded, or failed with a reason."""

    model: str
    version: int
    loaded: ModelVersion | None
    reason: str = ""


class Registry:
    """The versions by model and number."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries: dict[str, dict[int, Entry]] = {}
        self._refused: set[str] = set()
        for entry in sorted(entries, key=lambda entry: (entry.model, entry.version)):
            self._entries.setdefault(entry.model, {})[entry.version] = entry

    def entries(self) -> tuple[Entry, ...]:
        """Return every version, by model and number."""
        return tuple(entry for versions in self._entries.values() for entry in versions.values())

    def refresh_calibrations(self) -> None:
        """Take up calibrations that were switched on disk; where one cannot be read, the old one stays."""
        for entry in self.entries():
            if entry.loaded is None:
                continue
            label = f"model={entry.model} version={entry.version}"
            try:
                if entry.loaded.refresh_calibration():
                    now = entry.loaded.calibration
                    log.info("calibration switched %s calibration=%s", label, "none" if now is None else now.id)
                self._refused.discard(label)
            except DubitoError as error:
                if label not in self._refused:  # said once, not every second
                    log.warning("calibration refused %s reason=%s", label, error)
                self._refused.add(label)

    def entry(self, model: str, version: int | None) -> Entry:
        """Return one version, loaded or failed; the newest loaded one for None. `NotServed` where there is none."""
        if model not in self._entries:
            raise NotServed("model", repr(model), ", ".join(self._entries) or "none: the repository is empty")
        versions = self._entries[model]
        loaded = [number for number, entry in versions.items() if entry.loaded is not None]
        wanted = version if version is not None else max(loaded or versions)
        if wanted not in versions:
            raise NotServed("version", wanted, _numbers(loaded))
        return versions[wanted]

    def find(self, model: str, version: int | None) -> ModelVersion:
        """Return one loaded version, the newest for None; `NotServed` where there is none."""
        entry = self.entry(model, version)
        if entry.loaded is None:
            others = [number for number, other in self._entries[model].items() if other.loaded is not None]
            given = f"{entry.version} of {model}, which failed to load ({entry.reason})"
            raise NotServed("version", given, _numbers(others))
        return entry.loaded


def _numbers(versions: Iterable[int]) -> str:
    return ", ".join(str(number) for number in versions) or "none: no version of this model is ready"


def load_registry(repository: Repository, newest: int, pass_bytes: int = PASS_BYTES, device: str = "cpu") -> Registry:
    """Load the newest versions of each model, and time their passes, of which no value takes more than `pass_bytes`.

    One that fails is kept with its reason, and the next older one tried.
    """
    entries = []
    for model, numbers in repository.scan().items():
        ready = 0
        for number in reversed(numbers):
            if ready == newest:
                break
            entry = _load(repository, model, number, pass_bytes, device)
            entries.append(entry)
            ready += entry.loaded is not None
    return Registry(entries)


def _load(repository: Repository, model: str, version: int, pass_bytes: int, device: str) -> Entry:
    try:
        loaded = repository.load(model, version, pass_bytes=pass_bytes, device=device)
        timings = loaded.tune()
    except DubitoError as error:
        log.warning("version failed model=%s version=%d reason=%s", model, version, str(error))
        return Entry(model, version, None, str(error))
    except Exception as error:  # whatever lies on the disk, the other versions are served
        log.exception("version failed model=%s version=%d", model, version)
        return Entry(model, version, None, f"it cannot be loaded ({type(error).__name__})")
    passes = " ".join(f"{timing.rows}x{timing.chosen}" for timing in timings)  # rows x draws
    log.info("version ready model=%s version=%d passes=%s", model, version, passes or "as usual")
    return Entry(model, version, loaded)
