"""Calibration errors, against values by hand, loops that follow the definitions, and numeric integration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, optimize, stats

from dubito_models.metrics import (
    adaptive_expected_calibration_error,
    classwise_expected_calibration_error,
    debiased_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_bins,
    root_mean_squared_calibration_error,
    smooth_calibration_error,
    unweighted_calibration_error,
)
from dubito_models.metrics.calibration_error import NARROWEST, equal_width_bins
from oracles.cases import classified

Array = NDArray[np.float64]
TOP_LABEL = (
    expected_calibration_error,
    adaptive_expected_calibration_error,
    unweighted_calibration_error,
    maximum_calibration_error,
    root_mean_squared_calibration_error,
    smooth_calibration_error,
)


def top(p: Array, y: NDArray[np.int64]) -> tuple[Array, Array]:
    return p.max(axis=1), (p.argmax(axis=1) == y).astype(float)


def by_width(confidence: Array, correct: Array, bins: int = 15) -> Iterator[tuple[float, float, int]]:
    """Yield accuracy, confidence and count of the bins (l, u] that are not empty, 0 being in the first."""
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if b == 0:
            inside |= confidence == 0
        if inside.any():
            yield correct[inside].mean(), confidence[inside].mean(), int(inside.sum())


def by_mass(confidence: Array, correct: Array, bins: int = 15) -> Iterator[tuple[float, float, int]]:
    """Yield accuracy, confidence and count of nearly equal parts of the rows in order of confidence."""
    rows = sorted(range(len(confidence)), key=lambda row: confidence[row])
    for part in np.array_split(np.array(rows), bins):
        if len(part):
            yield correct[part].mean(), confidence[part].mean(), len(part)


# --- Bins ---


def test_an_edge_belongs_to_the_bin_below() -> None:
    """Bins are (l, u]: confidence 3/5 of five bins falls into (2/5, 3/5], a hair more into the next."""
    p = [[0.6, 0.4], [0.6 + 1e-12, 0.4 - 1e-12]]
    # In bins of their own the rows' gaps |1 - .6| and |0 - .6| cannot cancel.
    assert expected_calibration_error(p, [0, 1], bins=5) == pytest.approx(0.5)
    # In one bin they do in part: |1/2 - .6|.
    assert expected_calibration_error([p[0], p[0]], [0, 1], bins=5) == pytest.approx(0.1)


@pytest.mark.parametrize("bins", [1, 2, 3, 7, 10, 15, 100])
def test_every_edge_is_exact(bins: int) -> None:
    """At each edge b / bins that a confidence can reach, the row shares a bin with what lies just below, not above."""
    for edge in range(1, bins):
        c = edge / bins
        if c <= 0.5:
            continue
        below, above = c - 1e-9, c + 1e-9
        together = expected_calibration_error([[c, 1 - c], [below, 1 - below]], [0, 1], bins=bins)
        apart = expected_calibration_error([[c, 1 - c], [above, 1 - above]], [0, 1], bins=bins)
        assert together == pytest.approx(abs(0.5 - c), abs=1e-8)
        assert apart == pytest.approx(0.5, abs=1e-8)


def test_zero_belongs_to_the_first_bin_and_one_to_the_last() -> None:
    """The values that no bin (l, u] would hold, or that rounding lifts above 1, fall into the bin next to them."""
    assert equal_width_bins(np.array([0.0, 1e-300, 1.0, 1.0 + 1e-7]), 15).tolist() == [0, 0, 14, 14]
    # Class 1 has the probability 0 twice: once rightly, once not.
    error = classwise_expected_calibration_error([[1.0, 0.0], [1.0, 0.0]], [0, 1])
    assert error == pytest.approx(0.5)


def test_the_highest_confidence_falls_into_the_last_bin() -> None:
    """Confidence 1, and what rounding makes of it, belongs to the last bin."""
    p = np.array([[1.0, 0.0], [1.0 + 1e-7, 0.0], [0.95, 0.05]])
    assert expected_calibration_error(p, [0, 0, 1]) == pytest.approx(abs(2 - 2.95) / 3, abs=1e-6)


# --- Binned errors ---


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("bins", [1, 7, 15])
def test_errors_by_loops(classes: int, bins: int) -> None:
    """Each error is that of a loop over bins that follows its definition word for word."""
    case = classified(21, 130, classes, 1.5, 0.6)
    p, y = case.probabilities, case.labels
    wide, even = list(by_width(*top(p, y), bins)), list(by_mass(*top(p, y), bins))
    gaps = [abs(a - c) for a, c, _ in wide]
    expected = {
        expected_calibration_error: sum(n * abs(a - c) for a, c, n in wide) / 130,
        adaptive_expected_calibration_error: sum(n * abs(a - c) for a, c, n in even) / 130,
        unweighted_calibration_error: sum(gaps) / len(gaps),
        maximum_calibration_error: max(gaps),
        root_mean_squared_calibration_error: math.sqrt(sum(n * (a - c) ** 2 for a, c, n in wide) / 130),
        classwise_expected_calibration_error: sum(
            sum(n * abs(a - c) for a, c, n in by_width(p[:, k], (y == k).astype(float), bins)) / 130
            for k in range(classes)
        )
        / classes,
        debiased_calibration_error: math.sqrt(
            max(sum(n * ((a - c) ** 2 - a * (1 - a) / (n - 1)) for a, c, n in even) / 130, 0)
        ),
    }
    for score, value in expected.items():
        assert score(p, y, bins=bins) == pytest.approx(value, rel=1e-12, abs=1e-15)


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 80), bins=st.integers(1, 30))
def test_errors_keep_their_order(seed: int, rows: int, bins: int) -> None:
    """In the same bins mean <= root mean square <= maximum <= 1, and the debiased error is at most the plain l2."""
    case = classified(seed, rows, 3, 1.5, 0.6)
    p, y = case.probabilities, case.labels
    mean, square = expected_calibration_error(p, y, bins=bins), root_mean_squared_calibration_error(p, y, bins=bins)
    assert mean <= square + 1e-12
    assert square <= maximum_calibration_error(p, y, bins=bins) + 1e-12 <= 1 + 2e-12
    plain = math.sqrt(sum(n * (a - c) ** 2 for a, c, n in by_mass(*top(p, y), bins)) / rows)
    assert debiased_calibration_error(p, y, bins=bins) <= plain + 1e-12


def test_two_classes_have_one_classwise_error() -> None:
    """Where no confidence lies on an edge, the second of two classes errs as the first does, in mirrored bins."""
    case = classified(22, 100, 2, 1.0, 0.5)
    first = sum(n * abs(a - c) for a, c, n in by_width(case.probabilities[:, 0], (case.labels == 0).astype(float)))
    assert classwise_expected_calibration_error(case.probabilities, case.labels) == pytest.approx(first / 100)


@pytest.mark.parametrize("score", TOP_LABEL)
def test_certainty_is_calibrated_or_not(score: Callable[[ArrayLike, ArrayLike], float]) -> None:
    """Full confidence errs by 0 where every row is right, by 1 where none is, by 1/2 where half are."""
    certain = [[1.0, 0.0]] * 4
    assert score(certain, [0] * 4) == 0
    assert score(certain, [1] * 4) == pytest.approx(1)
    assert score(certain, [0, 1, 0, 1]) == pytest.approx(0.5)


@pytest.mark.parametrize("score", TOP_LABEL)
@pytest.mark.parametrize("label", [0, 1])
def test_one_row_errs_by_its_distance(score: Callable[[ArrayLike, ArrayLike], float], label: int) -> None:
    """Of one row every error is |correct - confidence|."""
    assert score([[0.7, 0.3]], [label]) == pytest.approx(0.3 if label == 0 else 0.7)


def test_more_bins_than_rows_leave_bins_empty() -> None:
    """Equal mass with one row to a bin, and empty bins: each row stands for itself."""
    p, y = [[0.9, 0.1], [0.6, 0.4]], [0, 1]
    assert adaptive_expected_calibration_error(p, y, bins=15) == pytest.approx((0.1 + 0.6) / 2)
    assert unweighted_calibration_error(p, y, bins=1000) == pytest.approx((0.1 + 0.6) / 2)
    assert debiased_calibration_error(p, y, bins=15) == 0  # a row alone cannot tell chance from error


def test_equal_confidences_stay_in_order() -> None:
    """Rows of equal confidence are split in the order given: right ones first, then wrong ones, in two bins."""
    p = [[0.75, 0.25]] * 100
    assert adaptive_expected_calibration_error(p, [0] * 50 + [1] * 50, bins=2) == pytest.approx(0.5)
    assert adaptive_expected_calibration_error(p, [0, 1] * 50, bins=2) == pytest.approx(0.25)
    random = np.random.default_rng(25)
    confidence, y = random.choice([0.6, 0.75, 0.9], size=300), random.integers(2, size=300)
    mixed = np.stack([confidence, 1 - confidence], axis=1)
    expected = sum(n * abs(a - c) for a, c, n in by_mass(*top(mixed, y), 15)) / 300
    assert adaptive_expected_calibration_error(mixed, y) == pytest.approx(expected, rel=1e-12)


def test_a_constant_forecast_errs_by_its_distance_from_the_rate() -> None:
    """All confidences .75 with 3 of 4 right is calibrated, with 1 of 4 right off by .5: by every binned error."""
    p = [[0.75, 0.25]] * 4
    for score in (expected_calibration_error, unweighted_calibration_error, maximum_calibration_error):
        assert score(p, [0, 0, 0, 1]) == 0
        assert score(p, [1, 1, 1, 0]) == pytest.approx(0.5)


def test_the_debiased_square_is_right_on_the_average() -> None:
    """The plain l2 error of calibrated rows is above 0; the debiased square is 0 within four standard errors.

    2000 data sets; false-alarm rate 6e-5, fixed seed. One confidence, so that one bin holds all rows.
    """
    random = np.random.default_rng(5)
    rows, sets, confidence = 20, 2000, 0.7
    right = random.binomial(rows, confidence, size=sets)
    squares = []
    for hits in np.unique(right):
        y = np.repeat([0, 1], [hits, rows - hits])
        gap = (hits / rows - confidence) ** 2 - hits / rows * (1 - hits / rows) / (rows - 1)
        squares.extend([gap] * int((right == hits).sum()))
        found = debiased_calibration_error([[confidence, 1 - confidence]] * rows, y, bins=1)
        assert found == pytest.approx(math.sqrt(max(gap, 0)), abs=1e-8)
    assert abs(np.mean(squares)) < 4 * np.std(squares) / math.sqrt(sets)


# --- Reliability diagrams ---


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_reliability_bins_by_a_loop(level: float) -> None:
    """Bins hold what a loop finds in them, and their intervals are scipy's Wilson intervals."""
    case = classified(23, 150, 3, 1.5, 0.8)
    found = reliability_bins(case.probabilities, case.labels, bins=12, level=level)
    expected = list(by_width(*top(case.probabilities, case.labels), 12))
    assert found.accuracy.tolist() == pytest.approx([a for a, _, _ in expected])
    assert found.confidence.tolist() == pytest.approx([c for _, c, _ in expected])
    assert found.count.tolist() == [n for _, _, n in expected]
    for accuracy, count, low, high in zip(
        found.accuracy, found.count, found.accuracy_low, found.accuracy_high, strict=True
    ):
        wilson = stats.binomtest(round(accuracy * count), int(count)).proportion_ci(level, method="wilson")
        assert (low, high) == pytest.approx((wilson.low, wilson.high), abs=1e-12)


def test_reliability_bins_are_those_that_hold_rows() -> None:
    """Edges belong to the bins told, every row is in one, and the expected calibration error follows from them."""
    case = classified(24, 90, 4, 2.0, 0.8)
    found = reliability_bins(case.probabilities, case.labels)
    assert (found.lower_edge < found.confidence).all()
    assert (found.confidence <= found.upper_edge).all()
    assert found.count.sum() == 90
    error = (found.count * np.abs(found.accuracy - found.confidence)).sum() / 90
    assert expected_calibration_error(case.probabilities, case.labels) == pytest.approx(error)


def test_a_bin_that_is_always_right_has_no_upper_doubt() -> None:
    """Wilson's interval ends at 1 exactly where all rows of a bin are right, and begins at 0 where none is."""
    right, wrong = reliability_bins([[0.9, 0.1]] * 3, [0] * 3), reliability_bins([[0.9, 0.1]] * 3, [1] * 3)
    assert right.accuracy_high.tolist() == [1.0]
    assert 0 < right.accuracy_low[0] < 1
    assert wrong.accuracy_low.tolist() == [0.0]
    assert 0 < wrong.accuracy_high[0] < 1


# --- The smooth error ---


def smoothed_by_quadrature(confidence: Array, correct: Array, sigma: float) -> float:
    """Integrate |r| between its zeros, with the kernel as a sum over reflections."""

    def r(t: float) -> float:
        images = [2 * turn + sign * confidence for turn in range(-4, 5) for sign in (1, -1)]
        return float(np.mean((correct - confidence) * sum(stats.norm.pdf(t, image, sigma) for image in images)))

    grid = np.linspace(0, 1, 1001)
    heights = [r(t) for t in grid]
    zeros = [
        optimize.brentq(r, grid[i], grid[i + 1], xtol=1e-15) for i in range(1000) if heights[i] * heights[i + 1] < 0
    ]
    ends = [0.0, *zeros, 1.0]
    pieces = [integrate.quad(r, a, b, epsabs=1e-12, limit=300)[0] for a, b in pairwise(ends)]
    return float(np.abs(pieces).sum())


@pytest.mark.parametrize(("seed", "scale", "sharpness"), [(31, 1.5, 0.9), (32, 0.5, 3.0), (33, 5.0, 0.5)])
def test_the_smooth_error_is_its_own_bandwidth(seed: int, scale: float, sharpness: float) -> None:
    """The reflected Gaussian whose deviation is the error gives the error, by numeric integration."""
    case = classified(seed, 40, 3, scale, sharpness)
    error = smooth_calibration_error(case.probabilities, case.labels)
    assert error > 0.02
    by_hand = smoothed_by_quadrature(*top(case.probabilities, case.labels), error)
    assert by_hand == pytest.approx(error, rel=1e-7)


def test_residuals_of_one_sign_sum_up() -> None:
    """Where every row is right the smooth error is the mean doubt, whatever the kernel."""
    p = np.array([[0.6, 0.4], [0.75, 0.25], [0.999, 0.001]])
    assert smooth_calibration_error(p, [0, 0, 0]) == pytest.approx((0.4 + 0.25 + 0.001) / 3, rel=1e-9)


def test_smooth_errors_below_the_narrowest_kernel_are_told() -> None:
    """Errors far below the narrowest kernel are found with that kernel: here all residuals have one sign."""
    doubt = 1e-9
    assert smooth_calibration_error([[1 - doubt, doubt]] * 3, [0, 0, 0]) == pytest.approx(doubt)
    assert doubt < NARROWEST


def test_neighbouring_residuals_cancel() -> None:
    """Residuals that lie close together count by their sum: three of four right at .7, whichever a hair below it."""
    p = [[0.7 - 1e-9, 0.3 + 1e-9]] * 2 + [[0.7, 0.3]] * 2
    smooth = smooth_calibration_error(p, [0, 1, 0, 0])
    assert smooth == pytest.approx(abs(3 - 4 * 0.7) / 4, rel=1e-6)


@settings(max_examples=50)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 60),
    classes=st.integers(2, 4),
    scale=st.sampled_from([0.0, 1.0, 6.0, 100.0]),
)
def test_the_smooth_error_lies_between_bias_and_absolute_residuals(
    seed: int, rows: int, classes: int, scale: float
) -> None:
    """|mean residual| <= smECE <= mean |residual|: smoothing keeps sums and cannot add."""
    case = classified(seed, rows, classes, scale, 0.7)
    confidence, correct = top(case.probabilities, case.labels)
    error = smooth_calibration_error(case.probabilities, case.labels)
    assert abs((correct - confidence).mean()) - 1e-9 <= error <= np.abs(correct - confidence).mean() + 1e-9


def test_the_smooth_error_does_not_jump() -> None:
    """A thousandth of a per cent more confidence moves it by no more than that; a binned error jumps at an edge."""
    shift = 1e-5
    p, y = np.array([[0.6, 0.4]] * 4 + [[0.6 + shift / 2, 0.4 - shift / 2]] * 4), [0, 1, 1, 1, 0, 0, 0, 0]
    moved = p + shift * np.array([1, -1])
    assert abs(smooth_calibration_error(moved, y) - smooth_calibration_error(p, y)) <= 2 * shift
    apart = expected_calibration_error(p, y, bins=5)
    assert abs(expected_calibration_error(moved, y, bins=5) - apart) > 0.1


def test_calibrated_rows_have_a_small_smooth_error() -> None:
    """Labels drawn from the probabilities themselves: below .02 for 10 000 rows; fixed seed."""
    case = classified(34, 10_000, 10, 1.5, 1.0)
    assert smooth_calibration_error(case.probabilities, case.labels) < 0.02
