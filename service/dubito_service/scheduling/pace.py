"""The pace: how fast work has been done lately, to say how long more of it will take, and how wrong that was."""

from __future__ import annotations

import math
from dataclasses import dataclass

_DECAY = 0.8  # of what earlier steps say of the speed
_FORGETTING = 1.02  # by which the fastest rate is taken to have slowed, a pass
_MEMORY = 0.97  # of what earlier work says: some thirty steps count
_FULL = 0.5  # of a full pass: one of this size or more tells what many of them take


@dataclass(slots=True)
class Pace:
    """Decayed sums over passes or steps; work in any unit. One thread notes, others may read."""

    seconds: float = 0.0
    work: float = 0.0
    last: float = 0.0  # seconds of the last one
    fastest: float = 0.0  # seconds per unit at the fastest, lately, of passes about as large as the largest
    largest: float = 0.0  # work of a pass

    def note(self, seconds: float, work: float) -> None:
        """Add a pass or step."""
        self.seconds = _DECAY * self.seconds + seconds
        self.work = _DECAY * self.work + work
        self.last = seconds
        rate = seconds / work
        if work >= _FULL * self.largest:  # small ones are slower by what every pass costs
            self.fastest = min(rate, self.fastest * _FORGETTING) if self.largest else rate
        self.fastest = min(self.fastest, rate)
        self.largest = max(self.largest, work)

    @property
    def seconds_per_unit(self) -> float | None:
        """Seconds per unit of work; None before the first pass."""
        return self.seconds / self.work if self.work else None

    def at_least(self, work: float, full: float) -> float:
        """Return a bound from below on the seconds that so much work takes, in passes of at most `full`.

        Larger passes cost less a unit. So as long as none has been seen that is about full, nothing is said of more
        work than the largest one had.
        """
        return self.fastest * (work if self.largest >= _FULL * full else min(work, self.largest))


@dataclass(slots=True)
class Slowness:
    """By how much work has taken longer, lately, than a bound from below had it: decayed sums of both."""

    took: float = 0.0  # seconds
    bound: float = 0.0

    def note(self, took: float, bound: float) -> None:
        """Add work that was done; that for which there was no bound tells nothing."""
        if bound > 0.0:
            self.took = _MEMORY * self.took + took
            self.bound = _MEMORY * self.bound + bound

    @property
    def factor(self) -> float:
        """What a bound is to be multiplied by for an estimate; at least 1."""
        return max(1.0, self.took / self.bound) if self.bound else 1.0


@dataclass(slots=True)
class Fading:
    """A sum of which the terms are forgotten in time. One thread adds, others may read."""

    memory: float  # seconds in which a term falls to a third
    _sum: float = 0.0
    _noted: float = 0.0

    def at(self, now: float) -> float:
        """Return what is left of it."""
        return self._sum * math.exp((self._noted - now) / self.memory)

    def add(self, term: float, now: float) -> None:
        """Add a term."""
        self._sum, self._noted = self.at(now) + term, now


class Caution:
    """By how much an estimate of waits is to be raised, so that few of those let in are not answered in time.

    Each one that was not raises it, above what it was when that one was let in: many who were let in together teach no
    more than one of them. Each one that was lowers it by much less, so that it stays where a share of `target` is
    missed: adaptive conformal inference, on a log scale (Gibbs & Candes 2021, equation 2). And it is forgotten in
    time, as whom it has refused teaches it nothing.
    """

    def __init__(self, target: float = 0.02, gain: float = 0.2, memory: float = 8.0) -> None:
        self.target, self.gain = target, gain
        self._level = Fading(memory)

    def note(self, missed: bool, level: float, now: float) -> None:
        """Add a request that was let in at a level, and whether its deadline was missed."""
        before = self.level(now)
        after = max(before, level + self.gain * (1 - self.target)) if missed else before - self.gain * self.target
        self._level.add(max(0.0, after) - before, now)

    def level(self, now: float) -> float:
        """Return the log of what an estimate is to be multiplied by; at least 0."""
        return self._level.at(now)


class Demand:
    """How many seconds of work a second brings, lately, by rank: lower ranks go first.

    `window`: seconds that count, `kept`: share of the time that ranks that go first leave to others that starve.
    """

    def __init__(self, window: float = 1.0, kept: float = 0.25) -> None:
        self._window, self._kept = window, kept
        self._brought: dict[int, Fading] = {}

    def note(self, rank: int, seconds: float, now: float) -> None:
        """Add work that was let in."""
        self._brought.setdefault(rank, Fading(self._window)).add(seconds, now)

    def share(self, rank: int, now: float, factor: float = 1.0) -> float:
        """Return which share of the time is left to a rank by the others, which go on coming."""
        before = sum(brought.at(now) for each, brought in self._brought.items() if each < rank)
        after = sum(brought.at(now) for each, brought in self._brought.items() if each > rank)
        scale = factor / self._window
        return max(self._kept, 1.0 - scale * before - min(self._kept, scale * after))
