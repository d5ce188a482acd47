"""Loading: one version is read, audited and warmed up, in one place; and its memory given back in the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from dubito_models.errors import DubitoError, RepositoryUnavailable
from dubito_models.memory import give_back
from dubito_models.package import ModelVersion
from dubito_models.repository import Repository, Survey
from dubito_service.errors import LoadFailed

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loader:
    """Loads versions of a repository onto a device; all of it takes its time, so it is for threads."""

    repository: Repository
    pass_bytes: int | None = None  # of the largest value of a pass; None: by the device
    device: str = "cpu"

    def survey(self) -> Survey:
        """Look what is in the repository; raises `RepositoryUnavailable`."""
        return self.repository.survey()

    def load(self, model: str, version: int) -> ModelVersion:
        """Load one version and time its passes; raises `LoadFailed` or `RepositoryUnavailable`, and nothing else."""
        try:
            loaded = self.repository.load(model, version, pass_bytes=self.pass_bytes, device=self.device)
            timings = loaded.tune()
        except RepositoryUnavailable:
            raise
        except DubitoError as error:
            raise LoadFailed(model, version, str(error)) from None
        except Exception as error:  # whatever lies on the disk, the other versions are served
            log.exception("version failed model=%s version=%d", model, version)
            raise LoadFailed(model, version, f"it cannot be loaded ({type(error).__name__})") from None
        passes = " ".join(f"{timing.rows}x{timing.chosen}" for timing in timings)  # rows x draws
        log.info("version ready model=%s version=%d passes=%s", model, version, passes or "as usual")
        return loaded

    def refresh(self, loaded: ModelVersion, *, fetch: bool) -> bool:
        """Take up the calibration that is in use now; `fetch`: get it from the repository. Tells whether it is another.

        A version whose files are gone keeps the one it has.
        """
        if fetch:
            self.repository.fetch_calibrations(loaded)
        return loaded.folder.is_dir() and loaded.refresh_calibration()


def released(version: ModelVersion) -> asyncio.Event:
    """Return an event that is set, on this event loop, when nobody holds a version any more."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(event.set)

    weakref.finalize(version, tell).atexit = False
    return event


async def collect(events: Sequence[asyncio.Event]) -> None:
    """Wait until versions are released, and give their memory back."""
    for event in events:
        await event.wait()
    await asyncio.to_thread(give_back)
