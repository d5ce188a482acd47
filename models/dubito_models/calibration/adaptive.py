"""Adaptive conformal inference (Gibbs & Candes 2021): coverage that is kept in the long run, whatever the data do.

The miscoverage that is asked of conformal prediction moves with every label that comes back: up by step * target where
the label was covered, down by step * (1 - target) where it was not. So that this cannot run away, a miscoverage of 0 or
less is answered by every class or the whole line, which never errs, and one of 1 or more by nothing, which always does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from dubito_models.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class AdaptiveState:
    """The miscoverage to ask for next, and what came of those asked for before.

    `level` is the paper's alpha_t, `target` its alpha, `step` its gamma, in labels: about 1 / step of them are what it
    remembers. A step of 0 is plain conformal prediction.
    """

    level: float
    target: float
    step: float
    count: int = 0  # of labels
    errors: int = 0  # labels that were not covered

    def __post_init__(self) -> None:
        if not math.isfinite(self.level):
            raise InvalidArgument("level", self.level, "a finite number")
        if not 0.0 < self.target < 1.0:
            raise InvalidArgument("target", self.target, "a miscoverage between 0 and 1, both excluded")
        if not (math.isfinite(self.step) and self.step >= 0.0):
            raise InvalidArgument("step", self.step, "a finite number, at least 0")
        if not 0 <= self.errors <= self.count:
            raise InvalidArgument("errors", self.errors, f"from 0 to the count of labels, {self.count}")

    @classmethod
    def start(cls, target: float, step: float) -> AdaptiveState:
        """Start at the miscoverage that is wanted."""
        return cls(level=target, target=target, step=step)

    def after(self, error: bool) -> AdaptiveState:
        """Return the state after one label: `error` where what was answered for it did not hold it.

        Labels may come late and in any order, each once: the state depends on how many were errors, not on which.
        """
        return self.after_many(1, int(error))

    def after_many(self, labels: int, errors: int) -> AdaptiveState:
        """Return the state after so many labels, so many of which were errors."""
        return replace(
            self,
            level=self.level + self.step * (labels * self.target - errors),
            count=self.count + labels,
            errors=self.errors + errors,
        )

    @property
    def coverage_to_ask(self) -> float:
        """The coverage to ask of conformal prediction, from 0 to 1; at the ends see `covers_all`, `covers_none`."""
        return min(1.0, max(0.0, 1.0 - self.level))

    @property
    def covers_all(self) -> bool:
        """Whether the answer is every class, or the whole line: the coverage to ask is 1."""
        return self.coverage_to_ask >= 1.0

    @property
    def covers_none(self) -> bool:
        """Whether the answer is the empty set, which counts as an error: the coverage to ask is 0."""
        return self.coverage_to_ask <= 0.0

    @property
    def mean_error(self) -> float:
        """The share of labels that were not covered; NaN before the first."""
        return self.errors / self.count if self.count else math.nan


def error_bound(first_level: float, step: float, count: int, outstanding: int = 0) -> float:
    """Return how far the mean error of `count` labels may be from its target, for any sequence of labels at all.

    (max(a, 1 - a) + step) / (step count), a being the first level (Gibbs & Candes 2021, proposition 4.1). With up to
    `outstanding` answers whose labels are still to come when one is given, these may each move the level once more
    beyond 0 or 1: step (1 + outstanding) instead of step. Infinite for a step or a count of 0.
    """
    if step < 0.0 or count < 0 or outstanding < 0:
        raise InvalidArgument("step, count, outstanding", (step, count, outstanding), "numbers of at least 0")
    if not 0.0 <= first_level <= 1.0:
        raise InvalidArgument("first_level", first_level, "between 0 and 1")
    if step == 0.0 or count == 0:
        return math.inf
    return (max(first_level, 1.0 - first_level) + step * (1 + outstanding)) / (step * count)
