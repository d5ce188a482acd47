"""Gathering: whether a step waits for callers that are likely to come back, as measurement says.

Callers that ask again as soon as they are answered fall into cohorts: while one is drawn for, the others come back, and
each pass holds a few of them. A short wait before a step joins them, where a full pass costs less than several that are
not: passes of a small network may be so short that hardly anybody comes back meanwhile. Elsewhere waiting costs. So the
worker tries: some steps with a wait, long or short, and some without, and keeps what answers clearly more requests in a
second, until it tries again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SHARES = (0.0, 0.5, 3.0)  # of the last step's seconds that a wait may take
_TRIAL_STEPS = 32
_TURNS = 2  # that each share has
_TRIALS = _TURNS * len(SHARES)
_KEPT = 60  # trials that what was found best is kept for
_GAIN = 1.05  # by which a longer wait has to answer more


@dataclass(slots=True)
class Gathering:
    """What one worker has learned; `most`: seconds that a step may wait, 0 for never. One thread uses it."""

    most: float
    share: float = 0.0  # of SHARES: the one in use
    _began: float | None = None  # the trial, as the next three
    _steps: int = 0
    _answered: int = 0
    _trial: int = 0
    _rates: dict[float, list[float]] = field(default_factory=dict)

    def seconds(self, last_step: float) -> float:
        """Return how long the next step may wait."""
        return min(self.most, self.share * last_step)

    def note(self, now: float, answered: int) -> None:
        """Count a step that has answered so many requests."""
        if not self.most:
            return
        if self._began is None:
            self._began = now
            return
        self._steps += 1
        self._answered += answered
        if self._steps == _TRIAL_STEPS and now > self._began:
            self._rates.setdefault(self.share, []).append(self._answered / (now - self._began))
        if self._steps >= _TRIAL_STEPS:
            self._go_on(now)

    def _go_on(self, now: float) -> None:
        """Begin another trial, or keep what was found best."""
        self._trial += 1
        self._began, self._steps, self._answered = now, 0, 0
        if self._trial < _TRIALS:
            self.share = SHARES[self._trial % len(SHARES)]
        elif self._trial == _TRIALS:
            self.share = choose(self._rates)
        elif self._trial == _TRIALS + _KEPT:
            self._trial, self.share, self._rates = 0, SHARES[0], {}


def choose(rates: dict[float, list[float]]) -> float:
    """Return the shortest wait that no longer one beats clearly, by the lowest rate of each: no lucky trial decides."""
    best, most = SHARES[0], min(rates.get(SHARES[0], [0.0]))
    for share in SHARES[1:]:
        rate = min(rates.get(share, [0.0]))
        if rate > _GAIN * most:
            best, most = share, rate
    return best
