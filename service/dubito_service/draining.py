"""The drain: whether the server takes nothing more, and who waits for a message that it would not take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from dubito_service.errors import Draining

T = TypeVar("T")


class Drain:
    """Refuses messages from when it begins, also those that calls wait for by then; belongs to one event loop."""

    def __init__(self) -> None:
        self.begun = False
        self._waiting: set[asyncio.Task[object]] = set()

    def begin(self) -> None:
        """Take nothing more from now on."""
        if not self.begun:
            self.begun = True
            for task in self._waiting:
                task.cancel()

    def check(self) -> None:
        """Raise `Draining` where it has begun."""
        if self.begun:
            raise Draining("the server is stopping; ask another one, or again later")

    async def receive(self, read: Callable[[], Awaitable[T]]) -> T:
        """Read a message; raises `Draining` where the drain has begun, or begins before it is there."""
        self.check()
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            return await read()
        except asyncio.CancelledError:
            if self.begun and not task.uncancel():  # it was not the caller that left
                self.check()
            raise
        finally:
            self._waiting.discard(task)
