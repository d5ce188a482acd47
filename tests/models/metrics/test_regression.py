"""Scores of numbers, distributions and intervals, against values by hand, double sums and numeric integration."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate, stats

from dubito_models.metrics import (
    ensemble_crps,
    gaussian_crps,
    gaussian_negative_log_likelihood,
    interval_coverage,
    interval_miscalibration_area,
    interval_score,
    interval_width,
    mean_absolute_error,
    mixture_crps,
    mixture_negative_log_likelihood,
    root_mean_squared_error,
    sharpness,
)
from dubito_models.mixtures import mixture_cdf
from oracles.cases import drawn

Array = NDArray[np.float64]


# --- Of numbers ---


def test_regression_by_hand() -> None:
    """Errors 3 and 4 have the root mean square sqrt(12.5); a standard normal at 0 costs log sqrt(2 pi)."""
    assert root_mean_squared_error([3.0, 0.0], [0.0, 4.0]) == pytest.approx(math.sqrt(12.5))
    assert mean_absolute_error([3.0, 0.0], [0.0, 4.0]) == 3.5
    assert gaussian_negative_log_likelihood([0.0], [1.0], [0.0]) == pytest.approx(0.5 * math.log(2 * math.pi))
    expected = 0.5 * (math.log(2 * math.pi * 4) + 9 / 4)
    assert gaussian_negative_log_likelihood([1.0], [4.0], [4.0]) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(50,), (50, 3)])
def test_scores_by_loops(shape: tuple[int, ...]) -> None:
    """RMSE and MAE are means over all numbers, the Gaussian NLL is scipy's, for one target and for several."""
    random = np.random.default_rng(0)
    mean, y, variance = random.normal(size=shape), random.normal(size=shape), random.gamma(2, size=shape)
    off = [a - b for a, b in zip(mean.ravel().tolist(), y.ravel().tolist(), strict=True)]
    assert root_mean_squared_error(mean, y) == pytest.approx(math.sqrt(sum(e**2 for e in off) / len(off)))
    assert mean_absolute_error(mean, y) == pytest.approx(sum(abs(e) for e in off) / len(off))
    expected = -stats.norm.logpdf(y, mean, np.sqrt(variance)).mean()
    assert gaussian_negative_log_likelihood(mean, variance, y) == pytest.approx(expected)


# --- Of distributions ---


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


def crps_by_quadrature(means: Array, variances: Array, target: float) -> float:
    """Integrate (F(x) - [x >= target])^2 for one mixture (S,)."""
    deviations = np.sqrt(variances)

    def below(x: float) -> float:
        return float(stats.norm.cdf(x, means, deviations).mean() ** 2)

    def above(x: float) -> float:
        return float(stats.norm.sf(x, means, deviations).mean() ** 2)

    low, high = min(target, (means - 12 * deviations).min()), max(target, (means + 12 * deviations).max())
    left = integrate.quad(below, low, target, points=_inside(means, low, target), epsabs=1e-12, limit=500)[0]
    return left + integrate.quad(above, target, high, points=_inside(means, target, high), epsabs=1e-12, limit=500)[0]


def _inside(means: Array, low: float, high: float) -> list[float] | None:
    return [m for m in means.tolist() if low < m < high] or None


@pytest.mark.parametrize("draws", [1, 2, 9])
def test_the_mixture_crps_is_the_integral(draws: int) -> None:
    """The closed form is the integral of the squared distance of distribution functions."""
    case = drawn(40 + draws, draws, 12)
    expected = [
        crps_by_quadrature(case.means[:, n], case.variances[:, n], float(case.targets[n]))
        for n in range(len(case.targets))
    ]
    found = mixture_crps(case.means, case.variances, case.targets)
    assert found == pytest.approx(float(np.mean(expected)), rel=1e-9)
    if draws == 1:
        assert gaussian_crps(case.means[0], case.variances[0], case.targets) == pytest.approx(found, rel=1e-13)


def test_the_gaussian_crps_by_hand() -> None:
    """A standard normal at its mean scores (sqrt 2 - 1) / sqrt pi, and scales with its deviation."""
    expected = (math.sqrt(2) - 1) / math.sqrt(math.pi)
    assert gaussian_crps([0.0], [1.0], [0.0]) == pytest.approx(expected, rel=1e-14)
    assert gaussian_crps([[5.0]], [[9.0]], [[5.0]]) == pytest.approx(3 * expected, rel=1e-14)


@pytest.mark.parametrize("count", [1, 2, 7, 50])
@pytest.mark.parametrize("shape", [(6,), (6, 2)])
def test_the_ensemble_crps_is_the_double_sum(count: int, shape: tuple[int, ...]) -> None:
    """Sorted samples give what all pairs of samples give, with equal samples too, and `fair` divides by S (S - 1)."""
    random = np.random.default_rng(count)
    x, y = np.round(random.normal(size=(count, *shape)), 1), np.round(random.normal(size=shape), 1)
    near, pairs = np.abs(x - y).mean(0), np.abs(x[:, None] - x[None]).sum((0, 1))
    assert ensemble_crps(x, y) == pytest.approx((near - pairs / (2 * count**2)).mean(), rel=1e-12)
    if count > 1:
        fair = (near - pairs / (2 * count * (count - 1))).mean()
        assert ensemble_crps(x, y, fair=True) == pytest.approx(fair, rel=1e-12)


def test_the_ensemble_crps_is_the_integral_of_steps() -> None:
    """Samples 0 and 1 at target 3: (1/2)^2 over (0, 1) and 1 over (1, 3)."""
    assert ensemble_crps([[0.0], [1.0]], [3.0]) == pytest.approx(0.25 + 2)


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_mixtures_without_noise_are_ensembles(offset: float) -> None:
    """With variances of 0 the mixture's score is that of the draws alone, of one draw the absolute error."""
    case = drawn(45, 6, 20)
    means, targets = case.means + offset, case.targets + offset
    found = mixture_crps(means, np.zeros_like(means), targets)
    assert found == pytest.approx(ensemble_crps(means, targets), rel=1e-12 if offset == 0 else 1e-6)
    alone = gaussian_crps(means[0], np.zeros(20), targets)
    assert alone == pytest.approx(mean_absolute_error(means[0], targets), rel=1e-12)
    assert ensemble_crps(means[:1], targets) == pytest.approx(alone, rel=1e-12)


def test_a_draw_without_noise_that_hits_scores_zero() -> None:
    """Where mean and target are equal and the variance is 0, the score is 0 and not a number."""
    assert gaussian_crps([2.0], [0.0], [2.0]) == 0
    assert mixture_crps([[2.0], [2.0]], [[0.0], [0.0]], [2.0]) == 0


def test_the_fair_crps_does_not_depend_on_the_number_of_samples() -> None:
    """Over 4000 ensembles of a standard normal it averages the normal's own score, for 2 and 10 samples.

    Within four standard errors: false-alarm rate 6e-5 each, fixed seed. Unfair, 2 samples score far higher.
    """
    random = np.random.default_rng(6)
    y = random.normal(size=4000)
    own = gaussian_crps(np.zeros(4000), np.ones(4000), y)
    for count in (2, 10):
        x = random.normal(size=(count, 4000))
        each = np.array([ensemble_crps(x[:, [n]], y[[n]], fair=True) for n in range(4000)])
        error = np.std(each - np.array([gaussian_crps([0.0], [1.0], y[[n]]) for n in range(4000)])) / math.sqrt(4000)
        assert abs(each.mean() - own) < 4 * error
    assert ensemble_crps(random.normal(size=(2, 4000)), y) > own + 0.2


def test_the_mixture_crps_needs_little_memory() -> None:
    """300 draws of 500 rows hold no array of all pairs (360 MB): a few megabytes beside the input."""
    random = np.random.default_rng(7)
    means, variances = random.normal(size=(300, 500)), random.gamma(2, size=(300, 500))
    targets = random.normal(size=500)
    tracemalloc.start()
    mixture_crps(means, variances, targets)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), draws=st.integers(1, 8), scale=st.floats(1e-3, 1e3), shift=st.floats(-1e3, 1e3))
def test_the_crps_moves_with_its_unit(seed: int, draws: int, scale: float, shift: float) -> None:
    """Shifts of everything change nothing, and a change of unit multiplies the score."""
    case = drawn(seed, draws, 5)
    moved = scale * case.means + shift, scale**2 * case.variances, scale * case.targets + shift
    own = mixture_crps(case.means, case.variances, case.targets)
    assert mixture_crps(*moved) == pytest.approx(scale * own, rel=1e-6)
    assert own > 0


# --- Of intervals ---


def test_intervals_by_hand() -> None:
    """Bounds belong to their intervals; a miss costs 2 / (1 - level) for each unit of distance."""
    intervals = [[0.0, 1.0], [2.0, 4.0], [5.0, 5.0], [0.0, 1.0]]
    targets = [1.0, 4.5, 5.0, -0.1]
    assert interval_coverage(intervals, targets) == 0.5
    assert interval_width(intervals) == 1.0
    assert interval_score(intervals, targets, 0.9) == pytest.approx(1.0 + 20 * (0.5 + 0.1) / 4)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_the_interval_score_is_that_of_two_quantiles(level: float) -> None:
    """It is the sum of both bounds' pinball losses, times 2 / (1 - level); (N, K) are so many targets."""
    case = drawn(46, 3, 30)
    tail = (1 - level) / 2
    low, high = case.intervals.T
    pinball = [
        np.where(case.targets >= bound, at, at - 1) * (case.targets - bound)
        for at, bound in ((tail, low), (1 - tail, high))
    ]
    expected = float((2 / (1 - level) * (pinball[0] + pinball[1])).mean())
    assert interval_score(case.intervals, case.targets, level) == pytest.approx(expected)
    several = interval_score(case.intervals.reshape(10, 3, 2), case.targets.reshape(10, 3), level)
    assert several == pytest.approx(expected)


def test_the_central_interval_scores_best() -> None:
    """For normal targets the quantiles score better than intervals that are wider, narrower or moved."""
    y = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    half = float(stats.norm.ppf(0.95))

    def score(low: float, high: float) -> float:
        return interval_score(np.tile([low, high], (len(y), 1)), y, 0.9)

    best = score(-half, half)
    assert best < min(score(-half - 0.1, half + 0.1), score(0.1 - half, half - 0.1), score(0.1 - half, half + 0.1))


def area_by_polygons(pit: Array) -> float:
    """Sum |observed - nominal| over each of 99 strips by integration on a fine grid, straight lines between levels."""
    levels = np.linspace(0, 1, 100)
    gap = np.array([(pit <= p).mean() for p in levels]) - levels
    fine = np.linspace(0, 1, 99 * 2000 + 1)
    return float(np.trapezoid(np.abs(np.interp(fine, levels, gap)), fine))


@pytest.mark.parametrize("seed", range(4))
def test_the_miscalibration_area_is_the_area(seed: int) -> None:
    """It is the area between the two curves by numeric integration, with crossings and without."""
    random = np.random.default_rng(seed)
    pit = random.beta(*random.uniform(0.4, 2.5, 2), size=(20, 2))
    assert interval_miscalibration_area(pit) == pytest.approx(area_by_polygons(pit.ravel()), abs=1e-6)


def test_crossing_curves_are_not_netted() -> None:
    """Too few targets below half the quantiles and too many below the others: both areas count.

    With one target at 1/2 the observed curve jumps from 0 to 1, in the strip that the nominal one crosses.
    """
    strip = 1 / 99
    # On either side of the middle strip a triangle from 0 to 49/99; within it lines from -49/99 to +49/99.
    expected = (49 * strip) ** 2 + strip * 49 * strip / 2
    assert interval_miscalibration_area([0.5]) == pytest.approx(expected)


def test_the_miscalibration_area_has_its_bounds() -> None:
    """Evenly spread PIT values have nearly none; all at 1 the worst, 1/2 but for the last strip; all at 0 1/2."""
    assert interval_miscalibration_area((np.arange(990) + 0.5) / 990) < 1e-2
    assert interval_miscalibration_area([0.0] * 5) == pytest.approx(0.5)
    assert interval_miscalibration_area([1.0] * 5) == pytest.approx(0.5, abs=1 / 99)


def test_quantile_proportions_tell_bias_from_width() -> None:
    """Targets that all lie above their median are a bias: central intervals would not show it."""
    z = np.abs(stats.norm.ppf((np.arange(1000) + 0.5) / 1000))
    pit = mixture_cdf(np.zeros((1, 1000)), np.ones((1, 1000)), z)
    assert interval_miscalibration_area(pit) == pytest.approx(0.25, abs=0.01)


def test_sharpness_by_hand() -> None:
    """The root of the mean variance, not the mean deviation; 0 where nothing is doubted."""
    assert sharpness([1.0, 9.0]) == pytest.approx(math.sqrt(5))
    assert sharpness([[0.0]]) == 0
