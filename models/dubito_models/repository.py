"""The repository: a folder of `<model>/<version>/`, here or wherever fsspec reaches.

A folder of this machine is read in place. Any other is mirrored into a cache (`mirror`), version by version as they
are asked for, and read there.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from platformdirs import user_cache_path

from dubito_models.errors import InvalidArgument, RepositoryUnavailable, UnknownModel
from dubito_models.manifest import NAME
from dubito_models.mirror import Mirror, redact
from dubito_models.package import MANIFEST, PROGRAM, STANDARD, ModelVersion, load_version

_FILES = (MANIFEST, PROGRAM, STANDARD)
_NUMBER = re.compile(r"[1-9]\d{0,17}")


@dataclass(frozen=True, slots=True)
class Found:
    """What lies under a version's number; the marks tell whether it is still the same."""

    committed: bool  # it was written to its end
    files: str
    calibrations: str  # "" where they are read in place, each time


Survey = Mapping[str, Mapping[int, Found]]  # by model and version number, both ascending


class Repository:
    """A folder of `<model>/<version>/`, or the URL of one."""

    def __init__(self, url: str | Path, cache: Path | None = None) -> None:
        """Open it. `cache`: the folder for copies of remote versions; None for the user's own on this platform.

        Raises `InvalidArgument` where it is no folder, or fsspec has no way to it.
        """
        self.url = redact(str(url))
        self._mirror: Mirror | None = None
        if isinstance(url, str) and ("://" in url or "::" in url):
            system, root = _open(url, self.url)
            if not isinstance(system, LocalFileSystem):
                name = hashlib.sha256(url.encode()).hexdigest()[:16]
                self.path = (cache or user_cache_path("dubito") / "repositories") / name
                self._mirror = Mirror(system, root, self.path)
                return
            url = root
        self.path = Path(url)
        if not self.path.is_dir():
            raise InvalidArgument("repository", self.url, "an existing folder, or the URL of one")
        if _is_within(self.path):
            raise InvalidArgument("repository", f"{self.url}, which is a single model", "a folder of MODEL/VERSION/")

    def survey(self) -> Survey:
        """Look which versions there are, those not written to their end too; `RepositoryUnavailable` where it fails."""
        if self._mirror is None:
            return _survey_folder(self.path)
        files: dict[str, dict[int, dict[str, str]]] = {}
        for path, mark in self._mirror.marks().items():
            model, number, name = (*path.split("/", 2), "", "")[:3]
            if name and NAME.fullmatch(model) and _NUMBER.fullmatch(number):
                files.setdefault(model, {}).setdefault(int(number), {})[name] = mark
        return {
            model: {number: _found(files[model][number]) for number in sorted(files[model])} for model in sorted(files)
        }

    def scan(self) -> dict[str, list[int]]:
        """Return the version numbers of each model, ascending; versions not written to their end are listed too."""
        return {model: list(versions) for model, versions in self.survey().items()}

    def load(
        self, model: str, version: int | None = None, *, pass_bytes: int | None = None, device: str = "cpu"
    ) -> ModelVersion:
        """Load one version, or the newest; `UnknownModel`, `RepositoryUnavailable` or what `load_version` raises."""
        numbers = self.scan().get(model, [])
        if not numbers or (version is not None and version not in numbers):
            wanted = model if version is None else f"{model} version {version}"
            raise UnknownModel(f"no {wanted} in {self.url}")
        number = version or numbers[-1]
        if self._mirror is None:
            return load_version(self.path / model / str(number), pass_bytes=pass_bytes, device=device)
        loaded = load_version(self._mirror.fetch(model, number), pass_bytes=pass_bytes, device=device)
        self._mirror.forget_others(loaded.folder)
        return loaded

    def fetch_calibrations(self, version: ModelVersion) -> None:
        """Bring the cached copy of a version's calibrations up to date; nothing where the repository is read in place.

        What was calibrated in the copy itself and not written to the repository is given up.
        """
        if self._mirror is not None and version.folder.is_dir():
            self._mirror.fetch_calibrations(version.name, version.version, version.folder)


def _open(url: str, shown: str) -> tuple[AbstractFileSystem, str]:
    try:
        return url_to_fs(url)  # type: ignore[no-any-return]
    except ImportError as error:
        raise InvalidArgument("repository", shown, f"a URL whose fsspec plug-in is installed ({error})") from None
    except Exception as error:  # plug-ins raise kinds of their own, for credentials for example
        raise InvalidArgument("repository", shown, f"a folder, or a URL that fsspec opens ({error})") from None


def _is_within(folder: Path) -> bool:
    """Tell whether a folder is that of a model or of a version, in which nobody would find a model."""
    try:
        versions = [path for path in folder.iterdir() if _NUMBER.fullmatch(path.name)]
        return any((path / MANIFEST).is_file() for path in (folder, *versions))
    except OSError:
        return False  # whoever reads it is told


def _survey_folder(folder: Path) -> Survey:
    """Survey in place; any failure means that nothing is known: half a list would look like versions that vanished."""
    try:
        models = sorted(entry.name for entry in os.scandir(folder) if NAME.fullmatch(entry.name) and entry.is_dir())
        survey: dict[str, dict[int, Found]] = {}
        for model in models:
            numbers = sorted(int(path.name) for path in (folder / model).iterdir() if _NUMBER.fullmatch(path.name))
            if numbers:
                survey[model] = {number: _survey_version(folder / model / str(number)) for number in numbers}
    except OSError as error:
        raise RepositoryUnavailable(f"the repository {folder} cannot be read ({error.strerror})") from None
    return survey


def _survey_version(folder: Path) -> Found:
    marks = {}
    for name in _FILES:
        try:
            state = (folder / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        marks[name] = f"{state.st_ino} {state.st_size} {state.st_mtime_ns}"
    return _found(marks)


def _found(marks: Mapping[str, str]) -> Found:
    files = {name: marks[name] for name in _FILES if name in marks}
    others = {name: mark for name, mark in marks.items() if name.startswith("calibrations/")}
    return Found(MANIFEST in files, _fold(files), _fold(others) if others else "")


def _fold(marks: Mapping[str, str]) -> str:
    return hashlib.sha256(repr(sorted(marks.items())).encode()).hexdigest()[:16]
