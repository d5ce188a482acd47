"""Patience: for how long a call waits for its client to send or to read."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

_LOOKS = 4  # for each time that a client has: one timer for all calls costs a call nothing


class Patience:
    """What one call waits for; `lost` says that its client kept it waiting for too long.

    What the client waits for is never held against it: a stream with a request that was not answered yet is not idle.
    """

    __slots__ = ("_finished", "_owed", "_sending", "_waiting", "_watchdog", "lost", "task")

    def __init__(self, watchdog: Watchdog, task: asyncio.Task[object]) -> None:
        self._watchdog, self.task = watchdog, task
        self._waiting: float | None = watchdog.clock()  # since when, for the client's next message
        self._sending: float | None = None  # since when, for the client to read
        self._owed = 0
        self._finished = False
        self.lost = False

    def received(self) -> None:
        """Take note of a message, to which a reply is owed now."""
        self._owed += 1
        self._waiting = None

    def finished(self) -> None:
        """Take note that the client sends no more."""
        self._finished = True
        self._waiting = None

    def sending(self) -> None:
        """Take note that a reply is on its way out."""
        self._sending = self._watchdog.clock()

    def sent(self) -> None:
        """Take note that it is out."""
        self._sending = None
        self._owed = max(0, self._owed - 1)
        if not (self._owed or self._finished):
            self._waiting = self._watchdog.clock()

    def since(self) -> float:
        """Return since when the client has kept the call waiting; infinity: it does not."""
        return min((moment for moment in (self._waiting, self._sending) if moment is not None), default=math.inf)

    def stop(self) -> None:
        """Wait no longer for anything."""
        self._watchdog.forget(self)


class Watchdog:
    """Cancels the tasks of calls whose clients keep them waiting for `seconds`, or up to a quarter more."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self.seconds, self.clock = seconds, clock
        self._watched: set[Patience] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, task: asyncio.Task[object]) -> Patience:
        """Begin to watch a call that waits for its first message."""
        patience = Patience(self, task)
        self._watched.add(patience)
        if self._timer is None and self.seconds < math.inf:
            self._timer = asyncio.get_running_loop().call_later(self.seconds / _LOOKS, self._look)
        return patience

    def forget(self, patience: Patience) -> None:
        """Watch a call no longer."""
        self._watched.discard(patience)

    def _look(self) -> None:
        now = self.clock()
        for patience in tuple(self._watched):
            if now - patience.since() >= self.seconds:
                patience.lost = True
                self.forget(patience)
                patience.task.cancel()
        self._timer = None
        if self._watched:
            self._timer = asyncio.get_running_loop().call_later(self.seconds / _LOOKS, self._look)
