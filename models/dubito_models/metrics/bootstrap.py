"""Bootstrap intervals of any score, by drawing rows again (Efron 1979).

Rows must be independent of each other: where they come in clusters, give clusters as rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dubito_models.arrays import Array, share
from dubito_models.errors import InvalidArgument
from dubito_models.metrics.checks import counted

Score = Callable[[NDArray[np.int64]], float]  # of the rows with these indices, which may repeat


@dataclass(frozen=True, slots=True)
class Interval:
    """A score of all rows, and an interval for it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedDifference(Interval):
    """How much higher a first score is than a second."""

    share_not_higher: float  # of the resamples: where first <= second


def bootstrap_interval(
    score: Score, rows: int, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Return the score of rows 0 to `rows` - 1, and the percentile interval over `resamples` draws with replacement.

    The bounds are scores that were seen, the percentiles rounded outwards, so that infinite ones do no harm.
    """
    values = np.array([_number(score(index)) for index in _indices(rows, resamples, seed)])
    return _interval(_number(score(np.arange(rows))), values, level)


def paired_difference(
    first: Score, second: Score, rows: int, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> PairedDifference:
    """Return first - second of all rows and its percentile interval, both scores of the same resampled rows.

    `share_not_higher` is small where the first score is higher whatever rows are drawn: a one-sided bootstrap p-value.
    """

    def difference(index: NDArray[np.int64]) -> float:
        return _number(_number(first(index)) - _number(second(index)))

    values = np.array([difference(index) for index in _indices(rows, resamples, seed)])
    interval = _interval(difference(np.arange(rows)), values, level)
    not_higher = float((values <= 0).mean())
    return PairedDifference(interval.value, interval.low, interval.high, share_not_higher=not_higher)


def _indices(rows: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    counted("rows", rows)
    random = np.random.default_rng(seed)
    for _ in range(counted("resamples", resamples)):
        yield random.integers(rows, size=rows)


def _number(score: float) -> float:
    if math.isnan(score):
        raise InvalidArgument("score", "NaN", "a number for every draw of rows")
    return float(score)


def _interval(value: float, values: Array, level: float) -> Interval:
    tail = (1 - share("level", level)) / 2
    ordered = np.sort(values)
    outside = int(tail * (len(ordered) - 1))
    return Interval(value, low=float(ordered[outside]), high=float(ordered[-1 - outside]))
