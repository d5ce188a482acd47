"""Mixtures of draws, against scipy's Gaussians and a search over lower tails."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from dubito_models.errors import InvalidArgument
from dubito_models.metrics import mixture_negative_log_likelihood
from dubito_models.mixtures import _rising_root, highest_density_interval, mixture_cdf, mixture_log_density
from dubito_models.predictive import mixture_quantiles
from oracles.cases import drawn

Array = NDArray[np.float64]


# --- Distribution function and density ---


@pytest.mark.parametrize("shape", [(), (5,), (5, 2), (2, 3, 2)])
def test_mixtures_are_means_of_scipys_gaussians(shape: tuple[int, ...]) -> None:
    """Distribution function and density are the means of the draws', for targets of any shape."""
    random = np.random.default_rng(0)
    means, variances = random.normal(size=(7, *shape)), random.gamma(2, size=(7, *shape))
    y = random.normal(size=shape)
    cdf, density = mixture_cdf(means, variances, y), mixture_log_density(means, variances, y)
    assert cdf.shape == density.shape == shape
    np.testing.assert_allclose(cdf, stats.norm.cdf(y, means, np.sqrt(variances)).mean(0), rtol=1e-13)
    expected = np.log(stats.norm.pdf(y, means, np.sqrt(variances)).mean(0))
    np.testing.assert_allclose(density, expected, rtol=1e-12, atol=1e-14)


def test_the_distribution_function_undoes_the_quantiles() -> None:
    """At the quantile of a level it is that level."""
    case = drawn(70, 9, 20)
    levels = [0.01, 0.3, 0.5, 0.95]
    quantiles = mixture_quantiles(case.means, case.variances, levels)
    for at, level in enumerate(levels):
        np.testing.assert_allclose(mixture_cdf(case.means, case.variances, quantiles[..., at]), level, atol=1e-10)


def test_the_negative_log_likelihood_is_the_mean_log_density() -> None:
    """The score of the draws' mixture and its density are the same formula."""
    case = drawn(71, 4, 10)
    density = mixture_log_density(case.means, case.variances, case.targets)
    assert mixture_negative_log_likelihood(case.means, case.variances, case.targets) == pytest.approx(-density.mean())


def test_far_targets_have_finite_log_densities() -> None:
    """50 deviations off, where the density underflows, its logarithm is - 50^2 / 2 and a constant."""
    found = mixture_log_density([[0.0], [0.0]], [[1.0], [1.0]], [50.0])
    assert found[0] == pytest.approx(-1250 - math.log(2 * math.pi) / 2)


def test_draws_alone_have_a_middle_distribution_function() -> None:
    """Without variances draws below count 1 and draws at the target 1/2; variances of 0 say the same."""
    means, y = np.array([[1.0], [2.0], [2.0], [5.0]]), np.array([2.0])
    assert mixture_cdf(means, None, y).tolist() == [0.5]
    assert mixture_cdf(means, np.zeros((4, 1)), y).tolist() == [0.5]
    assert [float(mixture_cdf(means[:, 0], None, at)) for at in (0.0, 1.0, 3.0, 9.0)] == [0, 0.125, 0.75, 1]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(-1, 5))
def test_the_middle_distribution_function_counts(draws: list[int], target: int) -> None:
    """It is the share of draws below and half the share at the target, by counting."""
    expected = sum((x < target) + 0.5 * (x == target) for x in draws) / len(draws)
    assert float(mixture_cdf(draws, None, target)) == pytest.approx(expected)


def test_a_target_among_its_own_draws_has_an_even_pit() -> None:
    """Averaged over the draws as targets, the PIT is exactly 1/2, with ties too."""
    draws = np.array([0.0, 1.0, 1.0, 3.0, 4.0, 4.0, 4.0])
    assert np.mean([mixture_cdf(draws, None, x) for x in draws]) == pytest.approx(0.5)


# --- Shortest intervals ---


def held(means: Array, variances: Array, bounds: Array) -> Array:
    low, high = (mixture_cdf(means, variances, bounds[..., end]) for end in (0, 1))
    return high - low


def shortest_by_search(means: Array, variances: Array, level: float, steps: int = 2000) -> Array:
    """Return the least widths (...,) over a grid of lower tails."""
    tails = np.linspace(0, 1 - level, steps + 2)[1:-1]
    found = np.moveaxis(mixture_quantiles(means, variances, [*tails, *(tails + level)]), -1, 0)
    bounds = np.stack([found[:steps], found[steps:]], axis=-1)
    masses = np.stack([held(means, variances, pair) for pair in bounds])
    # A quantile that was not found is no oracle: of intervals that hold less, none counts.
    widths: Array = np.where(masses >= level - 1e-9, bounds[..., 1] - bounds[..., 0], np.inf).min(axis=0)
    return widths


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.99])
def test_the_interval_is_the_shortest_of_all_lower_tails(level: float) -> None:
    """It holds its level, and no interval from a grid of 2000 lower tails is shorter."""
    case = drawn(72, 7, 30)
    found = highest_density_interval(case.means, case.variances, level)
    assert found.shape == (30, 2)
    np.testing.assert_allclose(held(case.means, case.variances, found), level, atol=2e-10)
    searched = shortest_by_search(case.means, case.variances, level)
    width = found[:, 1] - found[:, 0]
    assert (width <= searched * (1 + 1e-9)).all()
    assert (width >= searched * (1 - 1e-3)).all()


def test_bounds_have_equal_densities() -> None:
    """Where it could be moved without a loss of mass it would not become shorter."""
    case = drawn(73, 10, 40)
    found = highest_density_interval(case.means, case.variances, 0.9)
    low, high = (mixture_log_density(case.means, case.variances, found[:, end]) for end in (0, 1))
    np.testing.assert_allclose(low, high, atol=1e-6)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_a_gaussian_has_its_central_interval(level: float) -> None:
    """One draw, or several that agree, are symmetric: the shortest interval is the central one."""
    half = 2 * stats.norm.ppf((1 + level) / 2)
    for draws in (1, 5):
        found = highest_density_interval(np.full((draws, 1), 3.0), np.full((draws, 1), 4.0), level)
        np.testing.assert_allclose(found, [[3 - half, 3 + half]], atol=1e-7)


def test_a_skew_mixture_leans_to_its_mode() -> None:
    """A broad and a narrow Gaussian: both bounds lie towards the narrow one, and the width is below the central's."""
    means, variances = np.array([0.0, 3.0]), np.array([0.25, 9.0])
    low, high = highest_density_interval(means, variances, 0.8)
    central = mixture_quantiles(means, variances, [0.1, 0.9])
    assert low < central[0]
    assert high < central[1]
    assert high - low < 0.97 * (central[1] - central[0])


def test_the_higher_of_two_modes_is_taken() -> None:
    """Three draws of five at 10 and a level that they hold alone: the interval is about them, not across."""
    means, variances = np.array([0.0, 0.1, 10.0, 10.1, 10.2]), np.full(5, 0.01)
    low, high = highest_density_interval(means, variances, 0.55)
    assert 9 < low < 10.1 < high < 11
    assert held(means, variances, np.array([low, high])) == pytest.approx(0.55, abs=1e-9)


def test_draws_far_apart_are_taken_whole() -> None:
    """Where the level is a whole number of draws without overlap, these are taken and the gaps to the next are not."""
    means, variances = np.array([0.0, 1.0, 2.0, 50.0]), np.full(4, 1e-6)
    low, high = highest_density_interval(means, variances, 0.75)
    assert -0.01 < low < 0
    assert 2 < high < 2.01


@pytest.mark.parametrize("seed", [158, 227, 592, 754, 960, 2103])
def test_the_deepest_of_several_wells_is_found(seed: int) -> None:
    """Few narrow draws of which half are to be held: the interval is no wider than the closest half.

    Each half that lies by itself is a local optimum, in a well narrower than a search over lower tails
    sees. At 6.4 deviations 8e-11 of a draw is left.
    """
    random = np.random.default_rng(seed)
    draws = random.integers(2, 8)
    means, variances = 3 * random.normal(size=draws), random.gamma(1, size=(draws, 1))[:, 0] * 0.1 + 1e-3
    reach = 6.4 * np.sqrt(variances)
    halves = [list(half) for half in itertools.combinations(range(draws), draws // 2)]
    pairs = [np.array([(means - reach)[half].min(), (means + reach)[half].max()]) for half in halves]
    holding = [high - low for low, high in pairs if held(means, variances, np.array([low, high])) >= 0.5 - 1e-10]
    low, high = highest_density_interval(means, variances, 0.5)
    assert high - low <= min(holding)


def test_newtons_circles_are_left() -> None:
    """The signed root, whose Newton steps lead from x to -x and back, has its zero found all the same."""

    def signed_root(x: Array, left: NDArray[np.int64]) -> tuple[Array, Array]:
        size = np.sqrt(np.abs(x - 0.3))
        with np.errstate(divide="ignore"):
            return np.sign(x - 0.3) * size, 0.5 / size

    found = _rising_root(signed_root, np.array([1.0, -0.5]), np.full(2, -9.0), np.full(2, 8.0), np.full(2, 1e-12))
    np.testing.assert_allclose(found, 0.3, atol=1e-11)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    draws=st.integers(1, 30),
    spread=st.sampled_from([0.0, 0.3, 3.0]),
    level=st.sampled_from([0.5, 0.8, 0.95]),
)
def test_any_mixture_has_a_shortest_interval(seed: int, draws: int, spread: float, level: float) -> None:
    """However draws scatter, the interval holds its level and no searched one is shorter by a thousandth."""
    random = np.random.default_rng(seed)
    means, variances = spread * random.normal(size=(draws, 2)), random.gamma(1, size=(draws, 2)) + 1e-3
    found = highest_density_interval(means, variances, level)
    np.testing.assert_allclose(held(means, variances, found), level, atol=2e-10)
    searched = shortest_by_search(means, variances, level, steps=400)
    assert (found[:, 1] - found[:, 0] <= searched * 1.001).all()


def test_the_interval_moves_with_its_unit() -> None:
    """A shift moves the bounds, another unit scales them, and a row alone is a row among others."""
    case = drawn(74, 6, 12)
    found = highest_density_interval(case.means, case.variances, 0.9)
    moved = highest_density_interval(100 * case.means + 7, 1e4 * case.variances, 0.9)
    np.testing.assert_allclose(moved, 100 * found + 7, atol=1e-5)
    alone = highest_density_interval(case.means[:, 3], case.variances[:, 3], 0.9)
    np.testing.assert_allclose(alone, found[3], atol=1e-9)
    shaped = highest_density_interval(case.means.reshape(6, 4, 3), case.variances.reshape(6, 4, 3), 0.9)
    np.testing.assert_allclose(shaped.reshape(12, 2), found, atol=1e-9)


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=25),
    st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.999]),
)
def test_draws_alone_are_held_by_the_shortest_window(draws: list[int], level: float) -> None:
    """Without variances: of all pairs of draws that hold ceil(level S) of them, the closest, of equals the lowest."""
    needed = math.ceil(level * len(draws) - 1e-9)
    fitting = [
        (high - low, low, high)
        for low in draws
        for high in draws
        if low <= high and sum(low <= x <= high for x in draws) >= needed
    ]
    _, low, high = min(fitting)
    assert highest_density_interval(draws, None, level).tolist() == [low, high]


def test_fifty_five_of_a_hundred_are_fifty_five() -> None:
    """Rounding does not ask for one draw more: .55 times 100 is above 55 in floating point."""
    assert highest_density_interval(np.arange(100.0), None, 0.55).tolist() == [0, 54]


def test_windows_keep_the_shape_of_targets() -> None:
    """Draws (S, N, K) have windows (N, K, 2), each its own."""
    random = np.random.default_rng(1)
    draws = random.exponential(size=(50, 4, 3))
    found = highest_density_interval(draws, None, 0.8)
    assert found.shape == (4, 3, 2)
    assert found[2, 1].tolist() == highest_density_interval(draws[:, 2, 1], None, 0.8).tolist()


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("means", lambda: mixture_cdf([], None, 0.0)),
        ("means", lambda: mixture_cdf([[0.0, 1.0]], None, [0.0])),
        ("means", lambda: highest_density_interval(0.0, None, 0.5)),
        ("means", lambda: mixture_log_density([[math.nan]], [[1.0]], [0.0])),
        ("means, variances", lambda: mixture_cdf([[0.0]], [[1.0], [1.0]], [0.0])),
        ("means, variances", lambda: mixture_log_density([[0.0, 1.0]], [[1.0, 1.0]], [0.0])),
        ("means, variances", lambda: highest_density_interval(0.0, 1.0, 0.5)),
        ("variances", lambda: mixture_log_density([[0.0]], [[0.0]], [0.0])),
        ("variances", lambda: mixture_cdf([[0.0]], [[-1.0]], [0.0])),
        ("variances", lambda: highest_density_interval([0.0], [0.0], 0.5)),
        ("targets", lambda: mixture_cdf([[0.0]], [[1.0]], [math.inf])),
        ("level", lambda: highest_density_interval([0.0], [1.0], 0.0)),
        ("level", lambda: highest_density_interval([0.0], None, 1.0)),
    ],
)
def test_what_is_no_mixture_is_refused(field: str, call: Callable[[], object]) -> None:
    """No draws, shapes that do not fit, variances that are none, levels out of range: refused by the field's name."""
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert caught.value.field == field
