"""Scores of probabilities, against values worked out by hand and loops that follow the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dubito_models.metrics import (
    accuracy,
    brier_decomposition,
    brier_score,
    classification_scores,
    negative_log_likelihood,
)
from oracles.cases import classified

P = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]
Y = [0, 1, 0]


def test_classification_by_hand() -> None:
    """Three rows of three classes give the scores that pencil and paper give."""
    scores = classification_scores(P, Y)
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.negative_log_likelihood == pytest.approx(-(math.log(0.7) + math.log(0.8) + math.log(0.3)) / 3)
    # .09 + .04 + .01; .01 + .04 + .01; .49 + .09 + .16
    assert scores.brier_score == pytest.approx((0.14 + 0.06 + 0.74) / 3)
    # Three bins of one row each: |1 - .7|, |1 - .8|, |0 - .4|
    assert scores.expected_calibration_error == pytest.approx((0.3 + 0.2 + 0.4) / 3)


def test_certainty_is_scored_exactly() -> None:
    """Probabilities of exactly 1 and 0 score 0 where right, and NLL infinite and Brier 2 where wrong."""
    right = classification_scores([[1.0, 0.0], [0.0, 1.0]], [0, 1])
    assert (right.accuracy, right.negative_log_likelihood) == (1, 0)
    assert math.copysign(1, right.negative_log_likelihood) == 1
    assert (right.brier_score, right.expected_calibration_error) == (0, 0)
    wrong = classification_scores([[1.0, 0.0], [0.0, 1.0]], [1, 0])
    assert (wrong.accuracy, wrong.negative_log_likelihood) == (0, math.inf)
    assert (wrong.brier_score, wrong.expected_calibration_error) == (2, 1)


def test_an_impossible_class_costs_nothing_unless_it_comes() -> None:
    """A probability of 0 adds nothing to the NLL of rows with another label, and one impossible label makes it all."""
    p = [[1.0, 0.0], [0.5, 0.5]]
    assert negative_log_likelihood(p, [0, 1]) == pytest.approx(math.log(2) / 2)
    assert negative_log_likelihood(p, [1, 1]) == math.inf


def test_one_row_and_ties() -> None:
    """One row is enough, and of equally probable classes the lowest is the prediction."""
    assert accuracy([[0.5, 0.5]], [0]) == 1
    assert accuracy([[0.5, 0.5]], [1]) == 0


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_scores_by_loops(classes: int) -> None:
    """Accuracy, NLL and Brier score are those of loops over rows and classes that follow the definitions."""
    case = classified(classes, 200, classes, 1.5, 0.7)
    right, surprise, squares = 0, 0.0, 0.0
    for p, y in zip(case.probabilities.tolist(), case.labels.tolist(), strict=True):
        right += p.index(max(p)) == y
        surprise -= math.log(p[y])
        squares += sum((p[k] - (k == y)) ** 2 for k in range(classes))
    assert accuracy(case.probabilities, case.labels) == right / 200
    assert negative_log_likelihood(case.probabilities, case.labels) == pytest.approx(surprise / 200, rel=1e-12)
    assert brier_score(case.probabilities, case.labels) == pytest.approx(squares / 200, rel=1e-12)


# --- The Brier score's parts ---


def binned(value: float, bins: int) -> int:
    """Return the bin (l, u] of a value, by comparing it with every edge."""
    return next(b for b in range(bins) if value <= (b + 1) / bins or b == bins - 1)


def parts_by_a_loop(p: NDArray[np.float64], y: NDArray[np.int64], bins: int) -> list[float]:
    """Return the five parts, bin by bin with sample moments, class by class."""
    parts = [0.0] * 5
    for k in range(p.shape[1]):
        forecasts, outcomes = p[:, k], (y == k).astype(float)
        rate = float(outcomes.mean())
        parts[2] += rate * (1 - rate)
        where = np.array([binned(value, bins) for value in forecasts])
        for b in sorted(set(where.tolist())):
            f, o = forecasts[where == b], outcomes[where == b]
            weight = len(f) / len(y)
            parts[0] += weight * (f.mean() - o.mean()) ** 2
            parts[1] += weight * (o.mean() - rate) ** 2
            parts[3] += weight * np.var(f)
            parts[4] += 2 * weight * np.mean((f - f.mean()) * (o - o.mean()))
    return parts


@pytest.mark.parametrize("bins", [1, 4, 15])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_parts_are_those_of_a_loop_over_bins(bins: int, classes: int) -> None:
    """Reliability, resolution, uncertainty and what is within bins are what the definitions give bin by bin."""
    case = classified(11, 90, classes, 1.5, 0.8)
    found = brier_decomposition(case.probabilities, case.labels, bins)
    expected = parts_by_a_loop(case.probabilities, case.labels, bins)
    given_back = [
        found.reliability,
        found.resolution,
        found.uncertainty,
        found.within_bin_variance,
        found.within_bin_covariance,
    ]
    assert given_back == pytest.approx(expected, abs=1e-13)


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 60),
    classes=st.integers(2, 6),
    bins=st.integers(1, 40),
    scale=st.sampled_from([0.0, 0.5, 3.0, 50.0]),
)
def test_the_parts_add_up_to_the_brier_score(seed: int, rows: int, classes: int, bins: int, scale: float) -> None:
    """With the parts within bins the decomposition closes, whatever the forecasts, constant and saturated ones too."""
    case = classified(seed, rows, classes, scale, 1.0)
    found = brier_decomposition(case.probabilities, case.labels, bins)
    assert found.score == pytest.approx(brier_score(case.probabilities, case.labels), abs=1e-13)
    assert min(found.reliability, found.resolution, found.uncertainty, found.within_bin_variance) >= 0


def test_forecasts_of_few_values_have_nothing_within_bins() -> None:
    """Where a bin holds one value, Murphy's three parts are enough: two rows of .8 with one hit, two of .2 with one."""
    found = brier_decomposition([[0.8, 0.2], [0.8, 0.2], [0.2, 0.8], [0.2, 0.8]], [0, 1, 1, 1], bins=10)
    # Each class: forecasts .8, .8, .2, .2 for outcomes 1, 0, 0, 0, and the mirror image.
    assert found.reliability == pytest.approx(2 * (0.5 * 0.3**2 + 0.5 * 0.2**2))
    assert found.resolution == pytest.approx(2 * (0.5 * 0.25**2 + 0.5 * 0.25**2))
    assert found.uncertainty == pytest.approx(2 * 0.25 * 0.75)
    assert found.within_bin_variance == pytest.approx(0, abs=1e-15)
    assert found.within_bin_covariance == pytest.approx(0, abs=1e-15)


def test_constant_forecasts_resolve_nothing() -> None:
    """Forecasts that are the same for every row have no resolution; if they are the rates, the score is uncertainty."""
    found = brier_decomposition([[0.75, 0.25]] * 4, [0, 0, 0, 1])
    assert (found.reliability, found.resolution) == (0, 0)
    assert found.score == found.uncertainty == pytest.approx(2 * 0.25 * 0.75)


def test_one_row_has_no_uncertainty() -> None:
    """Of one row all is reliability: (.7 - 1)^2 + (.3 - 0)^2."""
    found = brier_decomposition([[0.7, 0.3]], [0])
    assert (found.uncertainty, found.resolution) == (0, 0)
    assert found.reliability == pytest.approx(0.18)
