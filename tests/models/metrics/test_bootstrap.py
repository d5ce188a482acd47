"""Bootstrap intervals, against scipy's and against sampling theory."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from dubito_models.metrics import accuracy, area_under_risk_coverage_curve, bootstrap_interval, paired_difference
from oracles.cases import classified, doubted

Rows = NDArray[np.int64]


def mean_of(values: NDArray[np.float64]) -> partial[float]:
    return partial(_mean, values)


def _mean(values: NDArray[np.float64], rows: Rows) -> float:
    return float(values[rows].mean())


def test_the_value_is_the_score_of_all_rows() -> None:
    """The middle is no resample: it is the score itself, and the interval holds it."""
    case = classified(60, 80, 3, 1.5, 0.8)
    found = bootstrap_interval(lambda rows: accuracy(case.probabilities[rows], case.labels[rows]), 80)
    assert found.value == accuracy(case.probabilities, case.labels)
    assert found.low < found.value < found.high


def test_scipy_agrees() -> None:
    """Bounds are scipy's percentile bounds of as many resamples, within what another draw of resamples moves them."""
    values = np.random.default_rng(8).exponential(size=50)
    found = bootstrap_interval(mean_of(values), 50, resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(9)
    ).confidence_interval
    # The standard error of a 2.5 % quantile of 20 000 means is below .002; five of them, fixed seeds: 1e-6.
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_bounds_are_the_percentiles_rounded_outwards() -> None:
    """Of 1000 resamples the 25th lowest and the 25th highest are told, the next ones outside numpy's percentiles."""
    values, seen = np.random.default_rng(10).normal(size=30), []

    def score(rows: Rows) -> float:
        seen.append(float(values[rows].mean()))
        return seen[-1]

    found = bootstrap_interval(score, 30, resamples=1000, seed=3)
    ordered = sorted(seen[:1000])
    assert (found.low, found.high) == (ordered[24], ordered[-25])
    low, high = np.quantile(ordered, [0.025, 0.975])
    assert found.low <= low <= ordered[25]
    assert ordered[-26] <= high <= found.high


def test_the_seed_is_all_that_is_random() -> None:
    """The same seed gives the same interval, another seed another."""
    values = np.arange(20.0)
    assert bootstrap_interval(mean_of(values), 20, seed=4) == bootstrap_interval(mean_of(values), 20, seed=4)
    assert bootstrap_interval(mean_of(values), 20, seed=4) != bootstrap_interval(mean_of(values), 20, seed=5)


def test_intervals_of_a_mean_cover_it() -> None:
    """90 % intervals of means of 100 normal numbers hold the true mean in 85 to 95 % of 300 data sets.

    The percentile interval's own coverage is .895; a binomial share is out of these bounds with a rate of .5 %; fixed
    seeds.
    """
    random = np.random.default_rng(11)
    covered = 0
    for _ in range(300):
        found = bootstrap_interval(mean_of(random.normal(size=100)), 100, level=0.9, resamples=200)
        covered += found.low <= 0 <= found.high
    assert 0.85 <= covered / 300 <= 0.95


def test_higher_levels_are_wider() -> None:
    """An interval of a higher level holds that of a lower one."""
    values = np.random.default_rng(12).normal(size=40)
    narrow, wide = (bootstrap_interval(mean_of(values), 40, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_one_row_leaves_no_doubt_and_one_resample_is_enough() -> None:
    """A single row is drawn again each time; a single resample is both bounds."""
    found = bootstrap_interval(mean_of(np.array([3.0])), 1)
    assert (found.value, found.low, found.high) == (3, 3, 3)
    once = bootstrap_interval(mean_of(np.arange(9.0)), 9, resamples=1)
    assert once.low == once.high


def test_infinite_scores_are_bounds() -> None:
    """Where one row makes the score infinite the interval reaches up to infinity, and its lower bound is a number."""
    surprise = np.array([math.inf, *[1.0] * 9])
    found = bootstrap_interval(mean_of(surprise), 10)
    assert (found.value, found.high) == (math.inf, math.inf)
    assert found.low == 1  # a tenth is drawn in 1 - .9^10 = 65 % of the resamples


# --- Differences ---


def test_both_scores_see_the_same_rows() -> None:
    """The difference of scores that differ by a constant on every row is that constant, without doubt."""
    values = np.random.default_rng(13).normal(size=50)
    found = paired_difference(mean_of(values + 0.25), mean_of(values), 50)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    assert found.share_not_higher == 0
    turned = paired_difference(mean_of(values), mean_of(values + 0.25), 50)
    assert (turned.value, turned.share_not_higher) == (pytest.approx(-0.25), 1)


def test_equal_scores_differ_by_nothing() -> None:
    """A score is never higher than itself: the interval is 0 and the share 1."""
    score = mean_of(np.random.default_rng(14).normal(size=10))
    found = paired_difference(score, score, 10)
    assert (found.value, found.low, found.high, found.share_not_higher) == (0, 0, 0, 1)


def test_the_difference_is_the_interval_of_the_difference() -> None:
    """It is `bootstrap_interval` of first - second, narrower than what the two intervals alone would say."""
    case = doubted(61, 120)

    def risk(rows: Rows) -> float:
        return area_under_risk_coverage_curve(case.losses[rows], case.uncertainty[rows])

    overall = mean_of(case.losses)
    found = paired_difference(overall, risk, 120, seed=2)
    joint = bootstrap_interval(lambda rows: overall(rows) - risk(rows), 120, seed=2)
    assert (found.value, found.low, found.high) == (joint.value, joint.low, joint.high)
    first, second = bootstrap_interval(overall, 120, seed=2), bootstrap_interval(risk, 120, seed=2)
    assert found.high - found.low < (first.high - first.low) + (second.high - second.low)


def test_the_share_is_a_one_sided_p_value() -> None:
    """For a mean it is close to the normal p-value: within .03 over 4000 resamples of 200 rows; fixed seed."""
    values = np.random.default_rng(15).normal(0.1, 1, size=200)
    found = paired_difference(mean_of(values), lambda rows: 0.0, 200, resamples=4000)
    expected = stats.norm.sf(values.mean() / (values.std() / math.sqrt(200)))
    assert found.share_not_higher == pytest.approx(expected, abs=0.03)
