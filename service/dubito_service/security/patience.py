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

    __slots__ = ("_finished", "_message_seconds", "_owed", "_sending", "_waiting", "_watchdog", "lost", "task")

    def __init__(self, watchdog: Watchdog, task: asyncio.Task[object], message_seconds: float) -> None:
        self._watchdog, self.task, self._message_seconds = watchdog, task, message_seconds
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

    def until(self) -> float:
        """Return until when the client may keep the call waiting; infinity: it does not."""
        message = math.inf if self._waiting is None else self._waiting + self._message_seconds
        return message if self._sending is None else min(message, self._sending + self._watchdog.seconds)

    def stop(self) -> None:
        """Wait no longer for anything."""
        self._watchdog.forget(self)


class Watchdog:
    """Cancels the tasks of calls whose clients keep them waiting for `seconds`, or up to a quarter more.

    `message_seconds`, where those are fewer: for the message of a call that has but one, so that nobody holds the room
    that half of it takes for long; the next one of a stream may be long in coming.
    """

    def __init__(self, seconds: float, clock: Callable[[], float], message_seconds: float = math.inf) -> None:
        self.seconds, self.clock = seconds, clock
        self._message_seconds = min(seconds, message_seconds)
        self._watched: set[Patience] = set()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, task: asyncio.Task[object], *, stream: bool) -> Patience:
        """Begin to watch a call that waits for its first message; `stream`: others may follow."""
        patience = Patience(self, task, self.seconds if stream else self._message_seconds)
        self._watched.add(patience)
        if self._timer is None:
            self._look_later()
        return patience

    def forget(self, patience: Patience) -> None:
        """Watch a call no longer."""
        self._watched.discard(patience)

    def _look_later(self) -> None:
        if self._message_seconds < math.inf:
            self._timer = asyncio.get_running_loop().call_later(self._message_seconds / _LOOKS, self._look)

    def _look(self) -> None:
        now = self.clock()
        for patience in tuple(self._watched):
            if now >= patience.until():
                patience.lost = True
                self.forget(patience)
                patience.task.cancel()
        self._timer = None
        if self._watched:
            self._look_later()
