"""The watch over a repository: it is looked at again and again, whatever comes of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from dubito_models.errors import DubitoError
from dubito_service.versions.registry import Registry

log = logging.getLogger(__name__)


async def watch(registry: Registry, repository_seconds: float, calibration_seconds: float) -> None:
    """Let a registry look at its repository, and at calibrations, every so many seconds, for ever; 0: never."""
    async with asyncio.TaskGroup() as group:  # apart, as a look that loads a version takes its time
        if repository_seconds:
            group.create_task(_repeat("repository", registry.look, repository_seconds))
        if calibration_seconds:
            group.create_task(_repeat("calibrations", registry.refresh_calibrations, calibration_seconds))


async def _repeat(what: str, look: Callable[[], Awaitable[None]], seconds: float) -> None:
    said = ""
    while True:
        await asyncio.sleep(seconds)
        try:
            await look()
            said = ""
        except Exception as error:  # whatever lies on the disk, it looks again
            why = str(error) if isinstance(error, DubitoError) else repr(error)
            if why != said:  # said once, not every second
                log.warning("%s not looked at reason=%s", what, why)
            said = why
