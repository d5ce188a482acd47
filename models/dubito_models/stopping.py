"""When draws are enough, row by row: pure functions of what the draws say so far.

A rule looks after 1, 2, 3, 4, 6, 8, 12, 16, ... groups of draws. What it looks at is a mean over draws, of values whose
scatter says how far the mean may still move: a draw's prediction; for the entropy of the mean prediction p, the cross
entropy of p and the draw's; for mutual information, the draw's divergence from p (their first-order influence). Those
of the latter two are skewed, a few draws say too little of their scatter: they are first looked at after 4 groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from dubito_models.errors import InvalidArgument
from dubito_models.heads import Task
from dubito_models.predictive import (
    ENOUGH_GROUPS,
    Array,
    Moments,
    StopReason,
    balanced_error,
    classify,
    spread,
    to_numpy,
)


class StoppingRule(StrEnum):
    """Decides when draws are enough."""

    NONE = "none"
    TOLERANCE = "tolerance"
    DECISION = "decision"
    THRESHOLD = "threshold"


class Quantity(StrEnum):
    """What TOLERANCE and THRESHOLD look at."""

    MEAN = "mean"
    PREDICTIVE_ENTROPY = "predictive_entropy"
    MUTUAL_INFORMATION = "mutual_information"


@dataclass(frozen=True, slots=True)
class ErrorRatios:
    """What a version's balanced design gains: true standard errors over those of the formula for independent draws."""

    mean: float
    predictive_entropy: float
    mutual_information: float

    def of(self, quantity: Quantity) -> float:
        """Return the ratio for a quantity."""
        ratio: float = getattr(self, quantity.value)
        return ratio


@dataclass(frozen=True, slots=True)
class Stopping:
    """A rule for each row.

    TOLERANCE: until the Monte Carlo standard error of `quantity` is at most `target` (of a mean: of each class, each
    regression target). DECISION: until the first class is settled against the runner-up. THRESHOLD: until `quantity` is
    settled above or below `target` (of a mean: the first class's probability; a regression's prediction). The latter
    two err, over all their looks, with probability at most 1 - `level`, to the accuracy of Student's t.
    """

    rule: StoppingRule = StoppingRule.NONE
    quantity: Quantity = Quantity.MEAN
    target: float | None = None
    level: float = 0.95

    def __post_init__(self) -> None:
        wants_target = self.rule in (StoppingRule.TOLERANCE, StoppingRule.THRESHOLD)
        if wants_target and self.target is None:
            accepted = "a standard error > 0" if self.rule is StoppingRule.TOLERANCE else "a bound"
            raise InvalidArgument("stopping.target", "nothing", f"{accepted}, for rule {self.rule}")
        if self.target is not None:
            if not wants_target:
                raise InvalidArgument("stopping.target", self.target, f"none, for rule {self.rule}")
            lowest = -math.inf if self.rule is StoppingRule.THRESHOLD and self.quantity is Quantity.MEAN else 0.0
            if not (math.isfinite(self.target) and self.target > lowest):
                accepted = "a finite number" + (" > 0" if lowest == 0.0 else "")
                raise InvalidArgument("stopping.target", self.target, accepted)
        if not 0.0 < self.level < 1.0:
            raise InvalidArgument("stopping.level", self.level, "between 0 and 1, both excluded")

    def check(self, task: Task) -> None:
        """Raise `InvalidArgument` where the rule makes no sense for such a network."""
        if task is Task.REGRESSION and self.rule is StoppingRule.DECISION:
            raise InvalidArgument("stopping.rule", self.rule, "tolerance or threshold, for a regression")
        if task is Task.REGRESSION and self.quantity is not Quantity.MEAN:
            raise InvalidArgument("stopping.quantity", self.quantity, "mean, for a regression")

    @property
    def least_groups(self) -> int:
        """After how many groups the rule looks first."""
        skewed = self.rule is not StoppingRule.DECISION and self.quantity is not Quantity.MEAN
        return ENOUGH_GROUPS if skewed else 1

    @property
    def reason(self) -> StopReason:
        """What ended the draws of a row that the rule settled."""
        return StopReason(self.rule.value)


ALL_DRAWS = Stopping()


def next_look(groups: int) -> int:
    """Return the first look after so many groups: 1, 2, 3, 4, 6, 8, 12, 16, ..."""
    if groups < 1:
        return 1
    power = 1 << (groups.bit_length() - 1)
    between = power + power // 2
    return between if groups < between else 2 * power


def count_looks(groups: int) -> int:
    """Return how many looks there are up to and with so many groups."""
    return groups.bit_length() + (groups // 3).bit_length()


def settled(
    stopping: Stopping, moments: Moments, look: int, balanced: bool, ratios: ErrorRatios | None = None
) -> NDArray[np.bool_]:
    """Return for each row (B,) whether its draws, which `moments` keeps, are enough at this look, from 1.

    So are those of a row whose mean is not finite, for no further draw changes that.
    """
    assert moments.draws is not None
    draws = to_numpy(moments.draws)  # (S, B, K)
    if len(draws) < 2:
        return np.zeros(draws.shape[1], dtype=np.bool_)
    with np.errstate(over="ignore", invalid="ignore"):
        lost: NDArray[np.bool_] = ~np.isfinite(draws.mean(0)).all(-1)
        return lost | _enough(stopping, draws, moments, look, balanced, ratios)


def _enough(
    stopping: Stopping, draws: Array, moments: Moments, look: int, balanced: bool, ratios: ErrorRatios | None
) -> NDArray[np.bool_]:
    if stopping.rule is StoppingRule.TOLERANCE:
        assert stopping.target is not None
        ratio = None if ratios is None else ratios.of(stopping.quantity)
        error = standard_error(influence(stopping.quantity, moments), moments.count, balanced, ratio)
        worst = error.reshape(draws.shape[1], -1).max(1)
        enough: NDArray[np.bool_] = np.round(worst / stopping.target, 6) <= 1.0
        return enough
    alpha = (1.0 - stopping.level) / (look * (look + 1))  # sums to 1 - level over all looks
    if stopping.rule is StoppingRule.DECISION:
        first, second = _leaders(draws)
        return _differs_from_zero(first - second, None, moments.count, balanced, alpha)
    assert stopping.target is not None
    return _is_off(stopping.quantity, stopping.target, draws, moments, balanced, alpha)


def standard_error(values: Array, counts: Sequence[int], balanced: bool, ratio: float | None = None) -> Array:
    """Return the standard error of the mean of values (S, ...), which come in groups of `counts`."""
    groups, draws = len(counts), len(values)
    if not balanced or groups < 2:
        independent: Array = values.std(0, ddof=1) / math.sqrt(draws)
        return balanced_error(independent, None, groups, ratio) if balanced else independent
    between = _group_means(values, counts).var(0, ddof=1) / groups
    unbiased = values.var(0) + between  # as `spread` has it
    return balanced_error(np.sqrt(unbiased / draws), np.sqrt(between), groups, ratio)


def measure_error_ratios(moments: Moments, task: Task) -> ErrorRatios:
    """Return the ratios of balanced draws in many groups of equal size, pooled over rows and outputs."""
    counts = moments.count

    def ratio(values: Array) -> float:
        between = _group_means(values, counts).var(0, ddof=1)
        variance = values.var(0) + between / len(counts)  # of a draw, unbiased
        independent = variance.sum() / counts[0]
        return 1.0 if independent == 0.0 else min(1.0, math.sqrt(between.sum() / independent))

    if task is Task.REGRESSION:
        return ErrorRatios(ratio(to_numpy(moments.draws)), 1.0, 1.0)
    return ErrorRatios(*(ratio(influence(quantity, moments)) for quantity in Quantity))


def _group_means(values: Array, counts: Sequence[int]) -> Array:
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums: Array = np.add.reduceat(values, starts, axis=0)
    return sums / np.asarray(counts, dtype=np.float64).reshape(-1, *(1,) * (values.ndim - 1))


def influence(quantity: Quantity, moments: Moments, middle: Array | None = None) -> Array:
    """Return values (S, B, ...) whose scatter is that of the quantity's estimate, to first order.

    Around the draws' own mean, or `middle` (B, K).
    """
    draws = to_numpy(moments.draws)
    if quantity is Quantity.MEAN:
        return draws
    mean = draws.mean(0) if middle is None else middle
    crossed: Array = -special.xlogy(draws, np.where(mean > 0.0, mean, 1.0)).sum(-1)
    return crossed if quantity is Quantity.PREDICTIVE_ENTROPY else crossed - to_numpy(moments.entropies)


def _leaders(draws: Array) -> tuple[Array, Array]:
    """Return each draw's probabilities (S, B) of the two classes that lead on average."""
    order = np.argsort(-draws.mean(0), axis=-1, kind="stable")[None]
    first, second = (np.take_along_axis(draws, order[..., place : place + 1], -1)[..., 0] for place in (0, 1))
    return first, second


def _is_off(
    quantity: Quantity, target: float, draws: Array, moments: Moments, balanced: bool, alpha: float
) -> NDArray[np.bool_]:
    if quantity is Quantity.MEAN:
        values = draws if moments.expected_entropy is None else _leaders(draws)[0][..., None]
        off = [_differs_from_zero(values[..., k] - target, None, moments.count, balanced, alpha)
               for k in range(values.shape[-1])]  # fmt: skip
        every: NDArray[np.bool_] = np.stack(off).min(0)
        return every
    answer = classify(moments, spread(moments, balanced))
    found = answer.predictive_entropy if quantity is Quantity.PREDICTIVE_ENTROPY else answer.mutual_information
    assert found is not None
    return _differs_from_zero(influence(quantity, moments), found - target, moments.count, balanced, alpha)


def _differs_from_zero(
    values: Array, estimate: Array | None, counts: Sequence[int], balanced: bool, alpha: float
) -> NDArray[np.bool_]:
    """Test each row's estimate (by default the mean of values (S, B)) against 0 by Student's t, two-sided.

    By the formula for independent draws; where a balanced design has made enough groups also between groups, each at
    half the error. Statistics are rounded, so that where a row stops does not hang on the last bits.
    """
    distance = np.abs(values.mean(0) if estimate is None else estimate)
    tests = [(values.std(0, ddof=1) / math.sqrt(len(values)), len(values) - 1)]
    if balanced and len(counts) >= ENOUGH_GROUPS:
        tests.append((standard_error(values, counts, balanced), len(counts) - 1))
    found = np.zeros(distance.shape, dtype=np.bool_)
    for error, freedom in tests:
        critical = stats.t.ppf(1.0 - alpha / (2 * len(tests)), freedom)
        with np.errstate(divide="ignore", invalid="ignore"):
            found |= np.round(distance / (critical * error), 6) > 1.0
    return found
