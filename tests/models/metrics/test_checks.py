"""What the scores refuse, by the name of the field."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from dubito_models import metrics
from dubito_models.errors import InvalidArgument
from oracles.cases import classified

P = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]
Y = [0, 1, 0]
BINNED = (
    metrics.expected_calibration_error,
    metrics.adaptive_expected_calibration_error,
    metrics.unweighted_calibration_error,
    metrics.classwise_expected_calibration_error,
    metrics.maximum_calibration_error,
    metrics.root_mean_squared_calibration_error,
    metrics.debiased_calibration_error,
    metrics.reliability_bins,
    metrics.brier_decomposition,
)
CLASSIFICATION = (
    metrics.accuracy,
    metrics.negative_log_likelihood,
    metrics.brier_score,
    metrics.classification_scores,
    metrics.smooth_calibration_error,
    *BINNED,
)
NO_CLASSIFICATION = [
    ("probabilities", np.empty((0, 3)), np.empty(0, int)),
    ("probabilities", [0.4, 0.6], [0, 1]),
    ("probabilities", [[1.0], [1.0]], [0, 0]),
    ("probabilities", [[0.5, math.nan]], [0]),
    ("probabilities", [[0.5, math.inf]], [0]),
    ("probabilities", [[1.2, -0.2]], [0]),
    ("probabilities", [[0.5, 0.4]], [0]),
    ("probabilities", [[0.5, 0.5], [0.5]], [0, 1]),
    ("probabilities", "certainly", [0]),
    ("labels", [[0.5, 0.5]], [0, 1]),
    ("labels", [[0.5, 0.5]], [[0]]),
    ("labels", [[0.5, 0.5]], [0.0]),
    ("labels", [[0.5, 0.5]], [True]),
    ("labels", [[0.5, 0.5]], [2]),
    ("labels", [[0.5, 0.5]], [-1]),
]


@pytest.mark.parametrize("score", CLASSIFICATION)
@pytest.mark.parametrize(("field", "p", "y"), NO_CLASSIFICATION)
def test_what_is_no_classification_is_refused(
    score: Callable[[ArrayLike, ArrayLike], object], field: str, p: ArrayLike, y: ArrayLike
) -> None:
    """No rows, wrong shapes, non-probabilities and labels that are no class are refused by name, in one line."""
    with pytest.raises(InvalidArgument) as caught:
        score(p, y)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("score", BINNED)
@pytest.mark.parametrize("bins", [0, -1, 1.5])
def test_no_bins_are_refused(score: Callable[..., object], bins: float) -> None:
    """A number of bins below 1, or that is none, is refused."""
    with pytest.raises(InvalidArgument, match=r"^bins: "):
        score(P, Y, bins=bins)


@pytest.mark.parametrize("score", [score for score in CLASSIFICATION if score not in (*BINNED[-2:], CLASSIFICATION[3])])
def test_float32_is_scored_in_float64(score: Callable[[ArrayLike, ArrayLike], float]) -> None:
    """Probabilities of single precision, whose sums are off by rounding, are accepted and scored in double."""
    case = classified(2, 300, 5, 1.0, 1.0)
    single = score(case.probabilities.astype(np.float32), case.labels.astype(np.int32))
    assert single == pytest.approx(score(case.probabilities, case.labels), abs=1e-6)


@pytest.mark.parametrize("score", CLASSIFICATION)
def test_lists_are_accepted(score: Callable[[ArrayLike, ArrayLike], object]) -> None:
    """Nested lists are as good as arrays."""
    assert repr(score(P, Y)) == repr(score(np.array(P), np.array(Y)))


NO_REGRESSION: list[tuple[str, Callable[[], Any]]] = [
    ("predictions", lambda: metrics.root_mean_squared_error([], [])),
    ("predictions", lambda: metrics.root_mean_squared_error([1.0], [[1.0]])),
    ("predictions", lambda: metrics.root_mean_squared_error([math.nan], [1.0])),
    ("targets", lambda: metrics.root_mean_squared_error([1.0], [math.inf])),
    ("predictions", lambda: metrics.root_mean_squared_error(1.0, 1.0)),
    ("predictions", lambda: metrics.mean_absolute_error([], [])),
    ("predictions", lambda: metrics.mean_absolute_error([[[1.0]]], [[[1.0]]])),
    ("mean", lambda: metrics.gaussian_negative_log_likelihood([1.0, 2.0], [1.0], [1.0])),
    ("variance", lambda: metrics.gaussian_negative_log_likelihood([1.0], [1.0, 1.0], [1.0])),
    ("variance", lambda: metrics.gaussian_negative_log_likelihood([1.0], [0.0], [1.0])),
    ("variance", lambda: metrics.gaussian_negative_log_likelihood([1.0], [-1.0], [1.0])),
    ("variance", lambda: metrics.gaussian_crps([1.0], [-1.0], [1.0])),
    ("mean", lambda: metrics.gaussian_crps([], [], [])),
    ("means, variances", lambda: metrics.mixture_negative_log_likelihood([[0.0]], [[1.0], [1.0]], [0.0])),
    ("means, variances", lambda: metrics.mixture_negative_log_likelihood([[0.0, 1.0]], [[1.0, 1.0]], [0.0])),
    ("means, variances", lambda: metrics.mixture_crps([[0.0, 1.0]], [[1.0, 1.0]], [0.0])),
    ("variances", lambda: metrics.mixture_negative_log_likelihood([[0.0]], [[0.0]], [0.0])),
    ("variances", lambda: metrics.mixture_crps([[0.0]], [[-1.0]], [0.0])),
    ("means", lambda: metrics.mixture_negative_log_likelihood([[math.nan]], [[1.0]], [0.0])),
    ("samples", lambda: metrics.ensemble_crps([[0.0]], [0.0, 1.0])),
    ("samples", lambda: metrics.ensemble_crps(0.0, 0.0)),
    ("samples", lambda: metrics.ensemble_crps([[0.0]], [0.0], fair=True)),
    ("samples", lambda: metrics.ensemble_crps(np.empty((0, 1)), [0.0])),
    ("intervals", lambda: metrics.interval_coverage([[0.0, 1.0]], [0.0, 1.0])),
    ("intervals", lambda: metrics.interval_coverage([[1.0, 0.0]], [0.0])),
    ("targets", lambda: metrics.interval_coverage([[0.0, 1.0]], [math.nan])),
    ("intervals", lambda: metrics.interval_score([[1.0, 0.0]], [0.0], 0.9)),
    ("level", lambda: metrics.interval_score([[0.0, 1.0]], [0.0], 1.0)),
    ("level", lambda: metrics.interval_score([[0.0, 1.0]], [0.0], math.nan)),
    ("level", lambda: metrics.reliability_bins(P, Y, level=0.0)),
    ("pit", lambda: metrics.interval_miscalibration_area([])),
    ("pit", lambda: metrics.interval_miscalibration_area([0.5, 1.5])),
    ("pit", lambda: metrics.interval_miscalibration_area([-0.1])),
    ("variance", lambda: metrics.sharpness([])),
    ("variance", lambda: metrics.sharpness([-1.0])),
]
NO_SELECTION: list[tuple[str, Callable[[], Any]]] = [
    ("losses", lambda: metrics.risk_coverage_curve([], [])),
    ("losses", lambda: metrics.area_under_risk_coverage_curve([math.inf], [0.0])),
    ("losses", lambda: metrics.area_under_risk_coverage_curve([[1.0]], [[0.0]])),
    ("uncertainty", lambda: metrics.excess_area_under_risk_coverage_curve([1.0], [0.0, 1.0])),
    ("uncertainty", lambda: metrics.area_under_generalized_risk_coverage_curve([1.0], [math.nan])),
    ("scores_in", lambda: metrics.area_under_roc([], [1.0])),
    ("scores_out", lambda: metrics.area_under_roc([1.0], [])),
    ("scores_in", lambda: metrics.false_positive_rate_at([math.nan], [1.0])),
    ("true_positive_rate", lambda: metrics.false_positive_rate_at([0.0], [1.0], 0.0)),
    ("true_positive_rate", lambda: metrics.false_positive_rate_at([0.0], [1.0], 1.1)),
    ("rows", lambda: metrics.bootstrap_interval(lambda index: 0.0, 0)),
    ("resamples", lambda: metrics.bootstrap_interval(lambda index: 0.0, 1, resamples=0)),
    ("level", lambda: metrics.bootstrap_interval(lambda index: 0.0, 1, level=1.0)),
    ("score", lambda: metrics.bootstrap_interval(lambda index: math.nan, 1)),
    ("score", lambda: metrics.paired_difference(lambda index: math.inf, lambda index: math.inf, 1)),
]


@pytest.mark.parametrize(("field", "score"), [*NO_REGRESSION, *NO_SELECTION])
def test_what_cannot_be_scored_is_refused(field: str, score: Callable[[], object]) -> None:
    """No rows, shapes that do not fit, numbers that are not finite or out of range: refused by the field's name."""
    with pytest.raises(InvalidArgument) as caught:
        score()
    assert caught.value.field == field
    assert "\n" not in str(caught.value)
