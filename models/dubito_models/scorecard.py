"""Scores of the paths of a version with their uncertainty, and how paths differ on the same rows.

Intervals are percentile bootstrap intervals over rows. Where consecutive rows share targets, blocks of so many rows are
drawn instead, since such rows are no independent evidence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dubito_models.answering import LEVELS, Answers, Array, ClassAnswers, TargetAnswers, row_by_row
from dubito_models.metrics import (
    Interval,
    accuracy,
    adaptive_expected_calibration_error,
    area_under_risk_coverage_curve,
    bootstrap_interval,
    brier_score,
    classwise_expected_calibration_error,
    expected_calibration_error,
    interval_coverage,
    interval_miscalibration_area,
    interval_score,
    interval_width,
    mean_absolute_error,
    negative_log_likelihood,
    paired_difference,
    root_mean_squared_error,
    sharpness,
    smooth_calibration_error,
)

ROUNDING = 1e-6  # of a score, up to which paths do not differ: what float32 leaves
JUDGED_LEVEL = 0.9  # of the interval whose width and score are told

Rows = NDArray[np.int64]
Score = Callable[[Rows], float]


@dataclass(frozen=True, slots=True)
class Measure:
    """A score by its name; `best`: 0 where lower is better, 1 where higher is, a coverage to be met, None: neither.

    `thrift`: such a part of the resamples does, as one takes long.
    """

    key: str
    label: str
    best: float | None = 0.0
    thrift: int = 1


@dataclass(frozen=True, slots=True)
class Difference:
    """How far `first` is above `second` by a measure, on the same rows."""

    measure: str
    first: str
    second: str
    interval: Interval

    @property
    def decided(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval.low > 0 or self.interval.high < 0


@dataclass(frozen=True, slots=True)
class Scorecard:
    """Scores by measure and path, None where a path does not know its noise; and all differences between paths."""

    measures: tuple[Measure, ...]
    scores: Mapping[str, Mapping[str, Interval | None]]
    differences: tuple[Difference, ...]
    level: float
    resamples: int

    def difference(self, measure: str, first: str, second: str) -> Difference | None:
        """Return the difference of two paths, where both have the measure."""
        for each in self.differences:
            if (each.measure, each.first, each.second) == (measure, first, second):
                return each
        return None


CLASS_MEASURES = (
    Measure("accuracy", "accuracy", 1.0),
    Measure("nll", "NLL"),
    Measure("brier", "Brier score"),
    Measure("ece", "ECE, 15 bins"),
    Measure("adaptive_ece", "adaptive ECE"),
    Measure("classwise_ece", "classwise ECE"),
    Measure("smooth_ece", "smooth ECE", thrift=5),
    Measure("aurc", "AURC"),
)
TARGET_MEASURES = (
    Measure("rmse", "RMSE"),
    Measure("mae", "MAE"),
    Measure("nll", "NLL"),
    Measure("crps", "CRPS"),
    *(Measure(f"coverage_{level:.0%}".rstrip("%"), f"{level:.0%} interval covers", level) for level in LEVELS),
    Measure("width", f"{JUDGED_LEVEL:.0%} interval's width", None),
    Measure("interval_score", f"{JUDGED_LEVEL:.0%} interval score"),
    Measure("miscalibration_area", "miscalibration area"),
    Measure("sharpness", "sharpness", None),
)


def figure(value: float, sign: str = "") -> str:
    """Return a number as tables have it: four digits after the point where it is small, four in all where not."""
    size = abs(value)
    if size < 10:
        return format(value, f"{sign}.4f")
    return format(value, f"{sign}#.4g").removesuffix(".") if size < 10_000 else format(value, f"{sign}.4g")


def tell(measure: Measure, value: float, *, difference: bool = False) -> str:
    """Return a score as tables have it, or a difference with its sign; coverage in per cent or percentage points."""
    if measure.best in (None, 0.0, 1.0):
        return figure(value, "+" if difference else "")
    return f"{100 * value:+.1f} pp" if difference else f"{value:.1%}"


def improves(measure: Measure, difference: Difference) -> bool | None:
    """Tell whether the first path of a difference is the better one; None where that is open, or a matter of taste."""
    if not difference.decided or measure.best not in (0.0, 1.0):
        return None
    return (difference.interval.value > 0) == (measure.best == 1.0)


def measures_of(answers: Mapping[str, Answers]) -> tuple[Measure, ...]:
    """Return the measures that suit the paths' task."""
    first = next(iter(answers.values()))
    return CLASS_MEASURES if isinstance(first, ClassAnswers) else TARGET_MEASURES


def score_rows(
    answers: Mapping[str, Answers],
    targets: NDArray[Any],
    *,
    overlap: int = 1,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> Scorecard:
    """Score the paths' answers to rows whose targets are known, (N,) classes or (N, K) numbers.

    `advance` is told of every score that is done, 1 at a time: `len(measures_of(answers)) * len(answers)` in all.
    """
    blocks = -(-len(targets) // overlap)
    scores: dict[str, dict[str, Interval | None]] = {}
    found: dict[str, dict[str, Score]] = {
        path: {key: _remembered(_by_blocks(score, len(targets), overlap)) for key, score in _scores(some, targets)}
        for path, some in answers.items()
    }
    differences = []
    for measure in measures_of(answers):
        drawn = max(1, resamples // measure.thrift)
        interval = partial(bootstrap_interval, level=level, resamples=drawn, seed=seed)
        compare = partial(paired_difference, level=level, resamples=drawn, seed=seed)
        known = {path: own[measure.key] for path, own in found.items() if measure.key in own}
        row: dict[str, Interval | None] = dict.fromkeys(answers)
        for path in answers:
            if path in known:
                row[path] = interval(known[path], blocks)
            if advance is not None:
                advance(1)
        scores[measure.key] = row
        finite = [path for path, score in known.items() if np.isfinite(score(np.arange(blocks)))]
        for second, first in combinations(finite, 2):
            apart = compare(known[first], known[second], blocks)
            size = abs(known[first](np.arange(blocks)))
            differences.append(Difference(measure.key, first, second, _beyond_rounding(apart, size)))
    return Scorecard(measures_of(answers), scores, tuple(differences), level, resamples)


def _beyond_rounding(found: Interval, size: float) -> Interval:
    """Return a difference, 0 where it is no more than rounding of scores of that size."""
    if max(abs(found.low), abs(found.high)) <= ROUNDING * size:
        return Interval(0.0, 0.0, 0.0)
    return Interval(found.value, found.low, found.high)


def _scores(answers: Answers, targets: NDArray[Any]) -> Iterator[tuple[str, Score]]:
    if isinstance(answers, ClassAnswers):
        yield from _class_scores(answers, targets)
    else:
        yield from _target_scores(answers, targets)


def _class_scores(answers: ClassAnswers, labels: NDArray[np.int64]) -> Iterator[tuple[str, Score]]:
    p, doubt = answers.probabilities, answers.doubt
    right = row_by_row(lambda i: accuracy(p[i], labels[i]), len(p))
    yield "accuracy", partial(_mean, right)
    yield "nll", partial(_mean, row_by_row(lambda i: negative_log_likelihood(p[i], labels[i]), len(p)))
    yield "brier", partial(_mean, row_by_row(lambda i: brier_score(p[i], labels[i]), len(p)))
    yield "ece", lambda rows: expected_calibration_error(p[rows], labels[rows])
    yield "adaptive_ece", lambda rows: adaptive_expected_calibration_error(p[rows], labels[rows])
    yield "classwise_ece", lambda rows: classwise_expected_calibration_error(p[rows], labels[rows])
    yield "smooth_ece", lambda rows: smooth_calibration_error(p[rows], labels[rows])
    yield "aurc", lambda rows: area_under_risk_coverage_curve(1.0 - right[rows], doubt[rows])


def _target_scores(answers: TargetAnswers, targets: Array) -> Iterator[tuple[str, Score]]:
    mean, rows = answers.mean, len(answers.mean)
    squared = row_by_row(lambda i: root_mean_squared_error(mean[i], targets[i]) ** 2, rows)
    yield "rmse", lambda some: float(np.sqrt(squared[some].mean()))
    yield "mae", partial(_mean, row_by_row(lambda i: mean_absolute_error(mean[i], targets[i]), rows))
    if answers.negative_log_likelihood is not None:
        yield "nll", partial(_mean, answers.negative_log_likelihood)
    if answers.crps is not None:
        yield "crps", partial(_mean, answers.crps)
    if answers.intervals is not None:
        for level, measure in zip(LEVELS, (each for each in TARGET_MEASURES if "covers" in each.label), strict=True):
            bounds = _interval(answers.intervals, level)
            yield measure.key, partial(_mean, _covered(bounds, targets))
        judged = _interval(answers.intervals, JUDGED_LEVEL)
        yield "width", partial(_mean, row_by_row(lambda i: interval_width(judged[i]), rows))
        yield (
            "interval_score",
            partial(_mean, row_by_row(lambda i: interval_score(judged[i], targets[i], JUDGED_LEVEL), rows)),
        )
    if answers.pit is not None:
        pit = answers.pit
        yield "miscalibration_area", lambda some: interval_miscalibration_area(pit[some])
    if answers.total_variance is not None:
        variance = answers.total_variance
        yield "sharpness", lambda some: sharpness(variance[some])


def _interval(intervals: Array, level: float) -> Array:
    return intervals[..., LEVELS.index(level)]


def _covered(bounds: Array, targets: Array) -> Array:
    return row_by_row(lambda i: interval_coverage(bounds[i], targets[i]), len(targets))


def _mean(values: Array, rows: Rows) -> float:
    return float(values[rows].mean())


def _by_blocks(score: Score, rows: int, overlap: int) -> Score:
    """Return a score of blocks of `overlap` consecutive rows; the last may be shorter."""
    if overlap == 1:
        return score

    def scored(blocks: Rows) -> float:
        chosen = (blocks[:, None] * overlap + np.arange(overlap)).ravel()
        return score(chosen[chosen < rows])

    return scored


def _remembered(score: Score) -> Score:
    """Return the same score, which is not worked out again for rows that it has seen: differences ask for the same."""
    seen: dict[bytes, float] = {}

    def scored(rows: Rows) -> float:
        key = hashlib.blake2b(rows.tobytes(), digest_size=16).digest()
        if key not in seen:
            seen[key] = score(rows)
        return seen[key]

    return scored
