"""Fixtures of the service's tests: a running device worker and an engine that can be watched and broken."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from dubito_models.package import ModelVersion
from dubito_service.scheduling.worker import DeviceWorker

from .hooked import Hooked, limits


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(packed: Callable[[str], ModelVersion]) -> Hooked:
    return Hooked(packed("mlp").engine)


@pytest.fixture
async def worker(clock: Clock) -> AsyncIterator[DeviceWorker]:
    device = DeviceWorker(limits(), clock)
    device.start()
    yield device
    device.close()
    assert device.join(30)
