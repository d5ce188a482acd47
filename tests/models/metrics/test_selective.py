"""Selective prediction and detection, against values by hand and sums over all orders and pairs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dubito_models.metrics import (
    area_under_generalized_risk_coverage_curve,
    area_under_risk_coverage_curve,
    area_under_roc,
    excess_area_under_risk_coverage_curve,
    false_positive_rate_at,
    risk_coverage_curve,
)
from oracles.cases import doubted

few = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=6)
AREAS = (
    area_under_risk_coverage_curve,
    excess_area_under_risk_coverage_curve,
    area_under_generalized_risk_coverage_curve,
)


# --- Risk and coverage ---


def test_the_curve_by_hand() -> None:
    """Losses 0, 1, 0, 1 in order of uncertainty: risks 0, 1/2, 1/3, 1/2."""
    curve = risk_coverage_curve([1, 0, 1, 0], [4, 1, 2, 3])
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert curve.risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    area = (0 + 1 / 2 + 1 / 3 + 1 / 2) / 4
    assert area_under_risk_coverage_curve([1, 0, 1, 0], [4, 1, 2, 3]) == pytest.approx(area)
    # The best order has risks 0, 0, 1/3, 1/2.
    excess = area - (1 / 3 + 1 / 2) / 4
    assert excess_area_under_risk_coverage_curve([1, 0, 1, 0], [4, 1, 2, 3]) == pytest.approx(excess)
    # Losses so far over all rows are 0, 0, 1/4, 1/4, 1/2.
    generalized = (0 + 1 / 8 + 1 / 4 + 3 / 8) / 4
    assert area_under_generalized_risk_coverage_curve([1, 0, 1, 0], [4, 1, 2, 3]) == pytest.approx(generalized)


@given(few)
def test_ties_are_averaged_over_all_orders(rows: list[tuple[int, int]]) -> None:
    """With equal uncertainties the curve is the mean of the curves of every order of those rows."""
    losses, uncertainty = (np.array(values, dtype=float) for values in zip(*rows, strict=True))
    orders = [list(order) for order in itertools.permutations(range(len(rows)))]
    allowed = [order for order in orders if (np.diff(uncertainty[order]) >= 0).all()]
    curves = [np.cumsum(losses[order]) / np.arange(1, len(rows) + 1) for order in allowed]
    curve = risk_coverage_curve(losses, uncertainty)
    assert curve.risk.tolist() == pytest.approx(np.mean(curves, axis=0).tolist(), abs=1e-12)


@given(few, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows: list[tuple[int, int]], random: object) -> None:
    """Any arrangement of the rows has the same areas, equal uncertainties or not."""
    moved = rows.copy()
    random.shuffle(moved)  # type: ignore[attr-defined]
    for area in AREAS:
        assert area(*zip(*moved, strict=True)) == pytest.approx(area(*zip(*rows, strict=True)), abs=1e-12)


@given(few)
def test_the_best_order_is_by_the_losses(rows: list[tuple[int, int]]) -> None:
    """No uncertainty has a lower area than the losses themselves, and only the order of uncertainty counts."""
    losses, uncertainty = (np.array(values, dtype=float) for values in zip(*rows, strict=True))
    assert excess_area_under_risk_coverage_curve(losses, uncertainty) >= 0
    assert excess_area_under_risk_coverage_curve(losses, losses) == 0
    for area in AREAS:
        assert area(losses, np.exp(uncertainty)) == area(losses, uncertainty)


def test_useless_uncertainty_has_the_overall_risk_at_every_coverage() -> None:
    """Where all are equally uncertain every part of the rows has the mean loss: areas r, and r / 2 generalized."""
    losses = [1.0, 0.0, 0.0, 1.0, 0.0]
    assert risk_coverage_curve(losses, [7] * 5).risk.tolist() == pytest.approx([0.4] * 5)
    assert area_under_risk_coverage_curve(losses, [7] * 5) == pytest.approx(0.4)
    assert area_under_generalized_risk_coverage_curve(losses, [7] * 5) == pytest.approx(0.2)


@pytest.mark.parametrize("loss", [0.0, 1.0, 2.5])
def test_one_row_has_its_loss_as_risk(loss: float) -> None:
    """Of one row the area is its loss, half of it generalized, and no order is better."""
    assert area_under_risk_coverage_curve([loss], [0.0]) == loss
    assert area_under_generalized_risk_coverage_curve([loss], [0.0]) == loss / 2
    assert excess_area_under_risk_coverage_curve([loss], [0.0]) == 0


@given(few)
def test_the_generalized_area_follows_from_ranking_and_accuracy(rows: list[tuple[int, int]]) -> None:
    """For losses of 0 and 1: (1 - A) a (1 - a) + (1 - a)^2 / 2, with ties counting one half in A."""
    losses, uncertainty = (np.array(values, dtype=float) for values in zip(*rows, strict=True))
    losses = (losses > 1).astype(float)
    wrong, right = uncertainty[losses == 1], uncertainty[losses == 0]
    accurate = 1 - losses.mean()
    ranked = area_under_roc(right, wrong) if len(wrong) and len(right) else 0.0
    expected = (1 - ranked) * accurate * (1 - accurate) + (1 - accurate) ** 2 / 2
    assert area_under_generalized_risk_coverage_curve(losses, uncertainty) == pytest.approx(expected, abs=1e-12)


# --- Detection ---


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.lists(st.integers(-3, 3), min_size=1, max_size=30))
def test_the_area_under_the_roc_counts_pairs(inside: list[int], outside: list[int]) -> None:
    """It is the share of pairs in which the outsider scores higher, equal pairs counting one half."""
    pairs = [(a < b) + 0.5 * (a == b) for a in inside for b in outside]
    assert area_under_roc(inside, outside) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert area_under_roc(outside, inside) == pytest.approx(1 - sum(pairs) / len(pairs), abs=1e-12)


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=30),
    st.lists(st.integers(-3, 3), min_size=1, max_size=30),
    st.sampled_from([0.05, 0.5, 0.8, 0.95, 1.0]),
)
def test_false_alarms_are_the_fewest_that_any_threshold_has(inside: list[int], outside: list[int], rate: float) -> None:
    """Of all thresholds that find that share of outsiders, it is the one with the fewest false alarms."""
    expected = min(
        np.mean([score >= threshold for score in inside])
        for threshold in outside
        if np.mean([score >= threshold for score in outside]) >= rate - 1e-12
    )
    assert false_positive_rate_at(inside, outside, rate) == pytest.approx(expected)


def test_ninety_five_of_a_hundred_are_ninety_five() -> None:
    """Rounding does not ask for one more: outsiders 1 to 100, of which 6 to 100 are found by the threshold 6."""
    assert false_positive_rate_at([6, 5], range(1, 101)) == 0.5
    assert false_positive_rate_at([41, 40], range(1, 101), 0.6) == 0.5
    assert math.ceil(0.07 * 100) == 8  # what rounding would say
    assert false_positive_rate_at([94, 93], range(1, 101), 0.07) == 0.5


def test_scores_that_separate_are_perfect() -> None:
    """Where every outsider scores higher, the area is 1 and nothing is a false alarm; the other way round 0 and all."""
    assert (area_under_roc([0, 1], [2, 3]), false_positive_rate_at([0, 1], [2, 3])) == (1, 0)
    assert (area_under_roc([2, 3], [0, 1]), false_positive_rate_at([2, 3], [0, 1])) == (0, 1)


def test_informative_uncertainty_lies_between_best_and_useless() -> None:
    """Errors that are likelier where uncertainty is higher: a lower area than the mean loss, above the best."""
    case = doubted(50, 400)
    area = area_under_risk_coverage_curve(case.losses, case.uncertainty)
    best = area_under_risk_coverage_curve(case.losses, case.losses)
    assert best < area < case.losses.mean()
