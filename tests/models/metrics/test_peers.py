"""Every score equals what other libraries say of the same inputs (tests/oracles)."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dubito_models import metrics
from dubito_models.mixtures import highest_density_interval, mixture_cdf
from oracles.cases import CLASSIFIED, DOUBTED, DRAWN, Doubted, Drawn

PEERS: dict[str, dict[str, dict[str, float]]] = json.loads(
    (Path(__file__).parents[2] / "oracles" / "scores.json").read_text(encoding="utf-8")
)
CASES = {**CLASSIFIED, **DRAWN, **DOUBTED}
# Single precision: torch's default, in which two of the libraries end. relplot: its grid, and its mesh.
SINGLE = {"torchmetrics", "torch-uncertainty"}
LOOSE = {"relplot": 1e-5}


def classified(name: str) -> Callable[..., float]:
    return lambda case: getattr(metrics, name)(case.probabilities, case.labels)


def brier(parts: Callable[[metrics.BrierDecomposition], float]) -> Callable[..., float]:
    return lambda case: parts(metrics.brier_decomposition(case.probabilities, case.labels, bins=10))


def gaussian(score: Callable[..., float]) -> Callable[[Drawn], float]:
    return lambda case: score(case.mean, case.variance, case.targets)


def mixed(score: Callable[..., float]) -> Callable[[Drawn], float]:
    return lambda case: score(case.means, case.variances, case.targets)


def shortest(case: Drawn) -> float:
    return metrics.interval_width(highest_density_interval(case.means, None, 0.9))


def miscalibration(case: Drawn) -> float:
    return metrics.interval_miscalibration_area(mixture_cdf(case.mean[None], case.variance[None], case.targets))


def by_trapezoids(case: Doubted, *, generalized: bool) -> float:
    """From the first of N coverages on, stretched to the length 1."""
    curve = metrics.risk_coverage_curve(case.losses, case.uncertainty)
    heights = curve.risk * curve.coverage if generalized else curve.risk
    return float((heights[1:] + heights[:-1]).mean() / 2)


def doubted(score: Callable[..., float]) -> Callable[[Doubted], float]:
    return lambda case: score(case.losses, case.uncertainty)


def detected(score: Callable[..., float]) -> Callable[[Doubted], float]:
    return lambda case: score(case.inside, case.outside)


OURS: dict[str, Callable[..., float]] = {
    **{
        name: classified(name)
        for name in (
            "accuracy",
            "negative_log_likelihood",
            "brier_score",
            "expected_calibration_error",
            "adaptive_expected_calibration_error",
            "unweighted_calibration_error",
            "classwise_expected_calibration_error",
            "maximum_calibration_error",
            "root_mean_squared_calibration_error",
            "debiased_calibration_error",
            "smooth_calibration_error",
        )
    },
    "brier_reliability_and_variance": brier(lambda parts: parts.reliability + parts.within_bin_variance),
    "brier_resolution": brier(lambda parts: parts.resolution),
    "brier_uncertainty": brier(lambda parts: parts.uncertainty),
    "root_mean_squared_error": lambda case: metrics.root_mean_squared_error(case.mean, case.targets),
    "mean_absolute_error": lambda case: metrics.mean_absolute_error(case.mean, case.targets),
    "gaussian_negative_log_likelihood": gaussian(metrics.gaussian_negative_log_likelihood),
    "gaussian_crps": gaussian(metrics.gaussian_crps),
    "mixture_negative_log_likelihood": mixed(metrics.mixture_negative_log_likelihood),
    "mixture_crps": mixed(metrics.mixture_crps),
    "mixture_cdf": mixed(lambda *case: float(mixture_cdf(*case).mean())),
    "ensemble_crps": lambda case: metrics.ensemble_crps(case.means, case.targets),
    "fair_ensemble_crps": lambda case: metrics.ensemble_crps(case.means, case.targets, fair=True),
    "interval_score": lambda case: metrics.interval_score(case.intervals, case.targets, 0.9),
    "interval_miscalibration_area": miscalibration,
    "sharpness": lambda case: metrics.sharpness(case.variance),
    "highest_density_interval": shortest,
    "area_under_risk_coverage_curve": doubted(metrics.area_under_risk_coverage_curve),
    "trapezoidal_area_under_risk_coverage_curve": partial(by_trapezoids, generalized=False),
    "area_under_generalized_risk_coverage_curve": doubted(metrics.area_under_generalized_risk_coverage_curve),
    "trapezoidal_area_under_generalized_risk_coverage_curve": partial(by_trapezoids, generalized=True),
    "area_under_roc": detected(metrics.area_under_roc),
    "false_positive_rate_at": detected(metrics.false_positive_rate_at),
}
FIGURES = [
    (score, case, peer, figure)
    for score, cases in PEERS.items()
    for case, peers in cases.items()
    for peer, figure in peers.items()
]


def test_every_score_is_asked_of_a_peer() -> None:
    """The file of figures and the table of scores hold the same names."""
    assert set(PEERS) == set(OURS)


@pytest.mark.parametrize(("score", "case", "peer", "figure"), FIGURES)
def test_a_peer_agrees(score: str, case: str, peer: str, figure: float) -> None:
    """A score is the peer's, to nine digits, or to what the peer's own precision leaves."""
    tolerance = LOOSE.get(peer, 1e-6 if peer in SINGLE else 1e-9)
    assert OURS[score](CASES[case]) == pytest.approx(figure, rel=tolerance, abs=1e-12)


def test_cases_are_not_degenerate() -> None:
    """The inputs reach what the scores are about: errors and right answers, equal scores, targets out of intervals."""
    for case in CLASSIFIED.values():
        assert 0 < metrics.accuracy(case.probabilities, case.labels) < 1
    for case in DRAWN.values():
        assert 0 < metrics.interval_coverage(case.intervals, case.targets) < 1
    for case in DOUBTED.values():
        assert 0 < case.losses.mean() < 1
        assert len(np.intersect1d(case.inside, case.outside)) > 0
