"""Concurrency: how many calls are under way, and whether one more may be."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from dubito_service.errors import TooManyCalls

_COME_BACK_SECONDS = 0.1  # most calls are short: places come free all the time


@dataclass(frozen=True, slots=True)
class CallLimits:
    """The most calls under way at once, and how long a client may keep one waiting; by default without end."""

    calls: float = math.inf
    caller_calls: float = math.inf  # of one caller
    idle_seconds: float = math.inf
    message_seconds: float = math.inf  # for the message of a call that has but one

    @property
    def by_caller(self) -> bool:
        """Whether it matters who calls."""
        return self.caller_calls < self.calls


class Concurrency:
    """Counts calls, by caller and together."""

    def __init__(self, limits: CallLimits) -> None:
        self._limits = limits
        self._of: Counter[str] = Counter()
        self.calls = 0

    def enter(self, caller: str) -> None:
        """Count a call; raises `TooManyCalls`."""
        limits = self._limits
        if self.calls >= limits.calls:
            raise TooManyCalls(f"{self.calls} of {limits.calls:g} are under way", _COME_BACK_SECONDS)
        if self._of[caller] >= limits.caller_calls:
            given = f"{self._of[caller]} of {limits.caller_calls:g} by this caller ({caller}) are under way"
            raise TooManyCalls(given, _COME_BACK_SECONDS)
        self.calls += 1
        self._of[caller] += 1

    def leave(self, caller: str) -> None:
        """Take a call out of the count."""
        self.calls -= 1
        self._of[caller] -= 1
        if not self._of[caller]:
            del self._of[caller]  # callers come and go
