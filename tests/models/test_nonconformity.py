"""Nonconformity scores, by hand and by their definitions word for word."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dubito_models.calibration.nonconformity import (
    absolute_scores,
    aps_scores,
    choose_regular_rank,
    cqr_scores,
    lac_scores,
    normalized_scores,
    raps_scores,
)

P = np.array([[0.5, 0.2, 0.3], [0.25, 0.5, 0.25]])


def test_scores_of_classes_by_hand() -> None:
    """Equal probabilities rank by class number."""
    np.testing.assert_allclose(lac_scores(P), [[0.5, 0.8, 0.7], [0.75, 0.5, 0.75]])
    np.testing.assert_allclose(aps_scores(P), [[0.25, 0.9, 0.65], [0.625, 0.25, 0.875]])
    np.testing.assert_allclose(aps_scores(P, 0.0), [[0.5, 1.0, 0.8], [0.75, 0.5, 1.0]])
    np.testing.assert_allclose(aps_scores(P, np.array([1.0, 0.0])), [[0.0, 0.8, 0.5], [0.75, 0.5, 1.0]], atol=1e-15)
    np.testing.assert_allclose(raps_scores(P, 0.1, 1), aps_scores(P) + np.array([[0, 0.2, 0.1], [0.1, 0, 0.2]]))
    np.testing.assert_allclose(raps_scores(P, 0.1, 3), aps_scores(P))


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(0, 1000))
def test_scores_by_sums_over_ranks_are_those_of_the_definition(classes: int, seed: int) -> None:
    """Word for word: the probabilities of classes ranked above, half of the class's own, and the ranks beyond."""
    probabilities = np.random.default_rng(seed).multinomial(12, np.full(classes, 1 / classes), 3) / 12  # with ties
    for row, aps, raps in zip(
        probabilities, aps_scores(probabilities), raps_scores(probabilities, 0.2, 2), strict=True
    ):
        for k in range(classes):
            above = [j for j in range(classes) if row[j] > row[k] or (row[j] == row[k] and j < k)]
            assert aps[k] == pytest.approx(sum(row[j] for j in above) + row[k] / 2)
            assert raps[k] == pytest.approx(aps[k] + 0.2 * max(0, len(above) + 1 - 2))


def test_half_of_a_classs_own_probability_is_what_a_drawn_share_takes_on_average() -> None:
    """The mean of 4,000 uniform shares: |z| < 4.5 for 60 scores, a false alarm in 2,000 seeds."""
    probabilities = np.random.default_rng(0).dirichlet(np.full(5, 0.4), 12)
    random = np.random.default_rng(1)
    drawn = np.mean([aps_scores(probabilities, random.random(12)) for _ in range(4000)], 0)
    assert (np.abs(drawn - aps_scores(probabilities)) <= 4.5 * probabilities / math.sqrt(12 * 4000) + 1e-12).all()


def test_scores_of_targets_by_hand() -> None:
    """A target below, within and above what was predicted."""
    y, mean, deviation = np.array([[1.0], [5.0], [9.0]]), np.full((3, 1), 5.0), np.array([[2.0], [1.0], [0.5]])
    base = np.stack([mean - 2.0, mean + 1.0], -1)
    assert absolute_scores(y, mean).ravel().tolist() == [4.0, 0.0, 4.0]
    assert normalized_scores(y, mean, deviation).ravel().tolist() == [2.0, 0.0, 8.0]
    assert cqr_scores(y, base).ravel().tolist() == [2.0, -1.0, 3.0]


def test_a_deviation_of_zero_gives_finite_scores() -> None:
    """It counts as the floor; what overflows stays a number."""
    nothing, one = np.zeros((1, 1)), np.ones((1, 1))
    assert normalized_scores(one, nothing, nothing).item() == pytest.approx(1e12)
    assert normalized_scores(one, nothing, nothing, 0.5).item() == 2.0
    assert math.isfinite(normalized_scores(1e300 * one, nothing, nothing).item())


def test_the_regular_rank_holds_nine_tenths_of_the_labels() -> None:
    """Of ten labels nine rank first or second, and of nine all must rank no lower than the ninth."""
    p = np.tile([0.6, 0.3, 0.1], (10, 1))
    assert choose_regular_rank(p, np.array([0] * 5 + [1] * 4 + [2])) == 2
    assert choose_regular_rank(p, np.array([0] * 9 + [2])) == 1
    assert choose_regular_rank(p[:9], np.array([0] * 8 + [2])) == 3
