"""The metrics, against values worked out by hand and against scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from sklearn.metrics import root_mean_squared_error as sklearn_rmse

from dubito_models.errors import InvalidArgument
from dubito_models.metrics import (
    accuracy,
    brier_score,
    classification_scores,
    expected_calibration_error,
    gaussian_negative_log_likelihood,
    interval_coverage,
    interval_width,
    mixture_negative_log_likelihood,
    negative_log_likelihood,
    root_mean_squared_error,
)

CLASSIFICATION = (accuracy, negative_log_likelihood, brier_score, expected_calibration_error)
P = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]]
Y = [0, 1, 0]


def drawn(rows: int, classes: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    return random.dirichlet(np.full(classes, 0.5), rows), random.integers(classes, size=rows)


# --- Classification ---


def test_classification_by_hand() -> None:
    """Three rows of three classes give the scores that pencil and paper give."""
    scores = classification_scores(P, Y)
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.negative_log_likelihood == pytest.approx(-(math.log(0.7) + math.log(0.8) + math.log(0.3)) / 3)
    # .09 + .04 + .01; .01 + .04 + .01; .49 + .09 + .16
    assert scores.brier_score == pytest.approx((0.14 + 0.06 + 0.74) / 3)
    # Three bins of one row each: |1 - .7|, |1 - .8|, |0 - .4|
    assert scores.expected_calibration_error == pytest.approx((0.3 + 0.2 + 0.4) / 3)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_scikit_learn_agrees(classes: int) -> None:
    """Accuracy, NLL and Brier score are scikit-learn's, for two classes and for many."""
    p, y = drawn(500, classes, seed=classes)
    names = list(range(classes))
    assert accuracy(p, y) == pytest.approx(accuracy_score(y, p.argmax(1)))
    assert negative_log_likelihood(p, y) == pytest.approx(log_loss(y, p, labels=names), rel=1e-9)
    assert brier_score(p, y) == pytest.approx(brier_score_loss(y, p, labels=names, scale_by_half=False))


def test_certainty_is_scored_exactly() -> None:
    """Probabilities of exactly 1 and 0 score 0 where right, and NLL infinite and Brier 2 where wrong."""
    right = classification_scores([[1.0, 0.0], [0.0, 1.0]], [0, 1])
    assert (right.accuracy, right.negative_log_likelihood) == (1, 0)
    assert math.copysign(1, right.negative_log_likelihood) == 1
    assert (right.brier_score, right.expected_calibration_error) == (0, 0)
    wrong = classification_scores([[1.0, 0.0], [0.0, 1.0]], [1, 0])
    assert (wrong.accuracy, wrong.negative_log_likelihood) == (0, math.inf)
    assert (wrong.brier_score, wrong.expected_calibration_error) == (2, 1)


def test_one_row_and_ties() -> None:
    """One row is enough, and of equally probable classes the lowest is the prediction."""
    assert accuracy([[0.5, 0.5]], [0]) == 1
    assert accuracy([[0.5, 0.5]], [1]) == 0


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


def test_the_highest_confidence_falls_into_the_last_bin() -> None:
    """Confidence 1, and what rounding makes of it, belongs to the last bin."""
    p = np.array([[1.0, 0.0], [1.0 + 1e-7, 0.0], [0.95, 0.05]])
    assert expected_calibration_error(p, [0, 0, 1]) == pytest.approx(abs(2 - 2.95) / 3, abs=1e-6)


def test_calibration_error_by_a_loop() -> None:
    """The vectorised error is that of a loop over bins that follows the definition word for word."""
    p, y = drawn(400, 4, seed=0)
    confidence, correct = p.max(1), p.argmax(1) == y
    expected = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(p, y) == pytest.approx(expected)


@pytest.mark.parametrize("metric", CLASSIFICATION)
def test_float32_is_scored_in_float64(metric: Callable[[ArrayLike, ArrayLike], float]) -> None:
    """Probabilities of single precision, whose sums are off by rounding, are accepted and scored in double."""
    p, y = drawn(300, 5, seed=2)
    assert metric(p.astype(np.float32), y.astype(np.int32)) == pytest.approx(metric(p, y), abs=1e-6)


@pytest.mark.parametrize("metric", CLASSIFICATION)
@pytest.mark.parametrize(
    ("field", "p", "y"),
    [
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
    ],
)
def test_what_is_no_classification_is_refused(
    metric: Callable[[ArrayLike, ArrayLike], float], field: str, p: ArrayLike, y: ArrayLike
) -> None:
    """No rows, wrong shapes, non-probabilities and labels that are no class are refused by name, in one line."""
    with pytest.raises(InvalidArgument) as caught:
        metric(p, y)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_no_bins_are_refused() -> None:
    """A number of bins below 1 is refused."""
    with pytest.raises(InvalidArgument, match="bins"):
        expected_calibration_error(P, Y, bins=0)


# --- Regression ---


def test_regression_by_hand() -> None:
    """Errors 3 and 4 have the root mean square sqrt(12.5); a standard normal at 0 costs log sqrt(2 pi)."""
    assert root_mean_squared_error([3.0, 0.0], [0.0, 4.0]) == pytest.approx(math.sqrt(12.5))
    assert gaussian_negative_log_likelihood([0.0], [1.0], [0.0]) == pytest.approx(0.5 * math.log(2 * math.pi))
    expected = 0.5 * (math.log(2 * math.pi * 4) + 9 / 4)
    assert gaussian_negative_log_likelihood([1.0], [4.0], [4.0]) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(50,), (50, 3)])
def test_regression_oracles_agree(shape: tuple[int, ...]) -> None:
    """RMSE is scikit-learn's over all numbers, the Gaussian NLL is scipy's, for one target and for several."""
    random = np.random.default_rng(0)
    mean, y, variance = random.normal(size=shape), random.normal(size=shape), random.gamma(2, size=shape)
    assert root_mean_squared_error(mean, y) == pytest.approx(sklearn_rmse(y.ravel(), mean.ravel()))
    expected = -stats.norm.logpdf(y, mean, np.sqrt(variance)).mean()
    assert gaussian_negative_log_likelihood(mean, variance, y) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("field", "score"),
    [
        ("predictions", lambda: root_mean_squared_error([], [])),
        ("predictions", lambda: root_mean_squared_error([1.0], [[1.0]])),
        ("predictions", lambda: root_mean_squared_error([math.nan], [1.0])),
        ("targets", lambda: root_mean_squared_error([1.0], [math.inf])),
        ("predictions", lambda: root_mean_squared_error(1.0, 1.0)),
        ("mean", lambda: gaussian_negative_log_likelihood([1.0, 2.0], [1.0], [1.0])),
        ("variance", lambda: gaussian_negative_log_likelihood([1.0], [1.0, 1.0], [1.0])),
        ("variance", lambda: gaussian_negative_log_likelihood([1.0], [0.0], [1.0])),
        ("variance", lambda: gaussian_negative_log_likelihood([1.0], [-1.0], [1.0])),
    ],
)
def test_what_is_no_regression_is_refused(field: str, score: Callable[[], float]) -> None:
    """No rows, shapes that do not fit, numbers that are not finite and variances of 0 are refused by name."""
    with pytest.raises(InvalidArgument) as caught:
        score()
    assert caught.value.field == field


@pytest.mark.parametrize("shape", [(7,), (7, 3)])
def test_the_mixture_likelihood_is_that_of_scipys_densities(shape: tuple[int, ...]) -> None:
    """The density of equally likely Gaussians is the mean of their densities; one draw is the Gaussian itself."""
    random = np.random.default_rng(1)
    means, variances = random.normal(size=(5, *shape)), random.uniform(0.1, 2, (5, *shape))
    targets = random.normal(size=shape)
    density = stats.norm.pdf(targets, means, np.sqrt(variances)).mean(0)
    found = mixture_negative_log_likelihood(means, variances, targets)
    assert found == pytest.approx(-np.log(density).mean(), rel=1e-12)
    alone = mixture_negative_log_likelihood(means[:1], variances[:1], targets)
    assert alone == pytest.approx(gaussian_negative_log_likelihood(means[0], variances[0], targets), rel=1e-12)


def test_a_target_that_no_draw_expects_has_a_finite_likelihood() -> None:
    """Densities that underflow are summed as logarithms: 50 deviations away the loss is 50^2 / 2 and a constant."""
    far = mixture_negative_log_likelihood([[0.0], [0.0]], [[1.0], [1.0]], [50.0])
    assert far == pytest.approx(1250 + math.log(2 * math.pi) / 2)


def test_intervals_by_hand() -> None:
    """Bounds belong to their intervals."""
    intervals = [[0.0, 1.0], [2.0, 4.0], [5.0, 5.0], [0.0, 1.0]]
    assert interval_coverage(intervals, [1.0, 4.5, 5.0, -0.1]) == 0.5
    assert interval_width(intervals) == 1.0


@pytest.mark.parametrize(
    ("field", "score"),
    [
        ("means, variances", lambda: mixture_negative_log_likelihood([[0.0]], [[1.0], [1.0]], [0.0])),
        ("means, variances", lambda: mixture_negative_log_likelihood([[0.0, 1.0]], [[1.0, 1.0]], [0.0])),
        ("variances", lambda: mixture_negative_log_likelihood([[0.0]], [[0.0]], [0.0])),
        ("means", lambda: mixture_negative_log_likelihood([[math.nan]], [[1.0]], [0.0])),
        ("intervals", lambda: interval_coverage([[0.0, 1.0]], [0.0, 1.0])),
        ("intervals", lambda: interval_coverage([[1.0, 0.0]], [0.0])),
        ("targets", lambda: interval_coverage([[0.0, 1.0]], [math.nan])),
    ],
)
def test_what_is_no_mixture_and_no_interval_is_refused(field: str, score: Callable[[], float]) -> None:
    """Shapes that do not fit, variances of 0, bounds the wrong way round: refused by the field's name."""
    with pytest.raises(InvalidArgument, match=f"^{field}: "):
        score()
