"""Curves, clouds and counts of answers to rows whose truth is known: what charts are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dubito_models.answering import PROMISED, STANDARD, Answers, Array, ClassAnswers, TargetAnswers
from dubito_models.metrics import ReliabilityBins, reliability_bins, risk_coverage_curve

LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 20))  # nominal coverages that are looked at
BINS = 15
PIT_BINS = 10
POINTS = 2000  # of a scatter, at most
CURVE = 200  # points of a curve, at most


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of points by name: the share of rows kept and their risk, or nominal and observed coverage."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SetCoverage:
    """Conformal sets or intervals: the share of truths that they hold, and their mean size or width.

    `size` is None where an interval is infinite, as too few calibration rows make it.
    """

    level: float
    covered: float
    size: float | None


@dataclass(frozen=True, slots=True)
class Scatter:
    """Aleatoric and epistemic uncertainty row by row; `off`: 1 for a wrong class, or the absolute error."""

    aleatoric: tuple[float, ...]
    epistemic: tuple[float, ...]
    off: tuple[float, ...]


def reliability_of(answers: Mapping[str, Answers], targets: NDArray[Any]) -> dict[str, ReliabilityBins]:
    """Return the bins of a reliability diagram by path; none for a regression."""
    return {
        path: reliability_bins(some.probabilities, targets, bins=BINS, level=0.95)
        for path, some in answers.items()
        if isinstance(some, ClassAnswers)
    }


def select_surest(answers: Mapping[str, Answers], targets: NDArray[Any]) -> tuple[Curve, ...]:
    """Return risk against the share of rows kept: the error rate, or the mean squared error."""
    curves = []
    for path in (STANDARD, list(answers)[-1]):
        losses = losses_of(answers[path], targets)
        risks: list[Array] = []
        for name, doubt in _orders(answers[path]):
            found = risk_coverage_curve(losses, doubt)
            if any(np.array_equal(found.risk, risk) for risk in risks):
                continue  # the same order by another name
            risks.append(found.risk)
            kept = np.unique(np.linspace(0, len(losses) - 1, CURVE).round().astype(int))
            points = found.coverage[kept], found.risk[kept]
            curves.append(Curve(f"{path}: {name}", *(tuple(values.tolist()) for values in points)))
    return tuple(curves)


def _orders(answers: Answers) -> list[tuple[str, Array]]:
    """Return by what rows can be ordered, from sure to doubtful."""
    if isinstance(answers, ClassAnswers):
        entropy = [("predictive entropy", answers.predictive_entropy)] if answers.epistemic is not None else []
        orders = [("max. probability", 1.0 - answers.probabilities.max(-1)), *entropy]
    else:
        orders = [] if answers.total_variance is None else [("total deviation", answers.doubt)]
    name = "mutual information" if isinstance(answers, ClassAnswers) else "epistemic deviation"
    orders += [] if answers.epistemic is None else [(name, answers.epistemic)]
    return [(name, doubt) for name, doubt in orders if np.ptp(doubt) > 0]


def losses_of(answers: Answers, targets: NDArray[Any]) -> Array:
    """Return 1 for a wrong class and 0 for a right one, or the squared error, mean over targets, (N,)."""
    if isinstance(answers, ClassAnswers):
        wrong: Array = (answers.probabilities.argmax(-1) != targets).astype(np.float64)
        return wrong
    squared: Array = ((answers.mean - targets) ** 2).mean(-1)
    return squared


def _can_cover(answers: Answers) -> bool:
    return isinstance(answers, ClassAnswers) or answers.pit is not None


def coverage_of(answers: Mapping[str, Answers], targets: NDArray[Any]) -> tuple[Curve, ...]:
    """Return observed coverage at nominal levels: of central intervals, or of sets of the most probable classes."""
    return tuple(_cover(path, some, targets) for path, some in answers.items() if _can_cover(some))


def _cover(path: str, answers: Answers, targets: NDArray[Any]) -> Curve:
    levels = np.array(LEVELS)
    if isinstance(answers, ClassAnswers):
        observed = cumulative_coverage(answers.probabilities, targets, levels)
    else:
        assert answers.pit is not None
        observed = (np.abs(2 * answers.pit.ravel() - 1) <= levels[:, None]).mean(-1)
    return Curve(path, LEVELS, tuple(observed.tolist()))


def cumulative_coverage(probabilities: Array, labels: NDArray[np.int64], levels: Array) -> Array:
    """Return how often sets of the most probable classes hold the label, at levels (L,), from (N, K) and (N,).

    A set takes classes in order until it has the level, and the last one with just the chance that the level needs, so
    that coverage is nominal where probabilities are calibrated; that chance is averaged over, not drawn (the
    non-randomised form of Czado et al. 2009). Of equal probabilities the lowest class comes first.
    """
    order = np.argsort(-probabilities, axis=-1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, -1)
    place = (order == labels[:, None]).argmax(-1)[:, None]
    own = np.take_along_axis(ranked, place, -1)  # (N, 1)
    before = np.take_along_axis(np.cumsum(ranked, -1), place, -1) - own
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(own > 0, (levels - before) / own, levels > before)
    observed: Array = np.clip(share, 0.0, 1.0).mean(0)
    return observed


def set_coverage_of(answers: Answers, targets: NDArray[Any]) -> SetCoverage | None:
    """Return what prediction sets or intervals hold, where the calibration gives any."""
    if answers.promised is None:
        return None
    if isinstance(answers, ClassAnswers):
        held = answers.promised[np.arange(len(targets)), targets]
        return SetCoverage(PROMISED, float(held.mean()), float(answers.promised.sum(-1).mean()))
    low, high = answers.promised[..., 0], answers.promised[..., 1]
    width = float((high - low).mean())
    held = (low <= targets) & (targets <= high)
    return SetCoverage(PROMISED, float(held.mean()), width if np.isfinite(width) else None)


def count_pit(answers: Mapping[str, Answers]) -> dict[str, tuple[int, ...]]:
    """Return by path how many numbers lie in each tenth of their distribution function; none for a classification."""
    return {
        path: tuple(np.histogram(some.pit, bins=PIT_BINS, range=(0, 1))[0].tolist())
        for path, some in answers.items()
        if isinstance(some, TargetAnswers) and some.pit is not None
    }


def scatter_of(answers: Answers, targets: NDArray[Any]) -> Scatter | None:
    """Return both kinds of uncertainty, of evenly spaced rows; None where a path knows only one."""
    if isinstance(answers, ClassAnswers):
        aleatoric, off = answers.expected_entropy, losses_of(answers, targets)
    else:
        variance = answers.aleatoric_variance
        aleatoric = None if variance is None else np.sqrt(variance.mean(-1))
        off = np.abs(answers.mean - targets).mean(-1)
    epistemic = answers.epistemic
    if aleatoric is None or epistemic is None:
        return None
    some = np.unique(np.linspace(0, len(off) - 1, POINTS).round().astype(int))
    return Scatter(*(tuple(values[some].tolist()) for values in (aleatoric, epistemic, off)))
