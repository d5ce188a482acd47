"""Curves: coverage that is nominal where probabilities are right, risks that end in the score of all rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from dubito_models.answering import DRAWN, STANDARD, ClassAnswers, TargetAnswers
from dubito_models.curves import (
    CURVE,
    LEVELS,
    POINTS,
    SetCoverage,
    count_pit,
    coverage_of,
    cumulative_coverage,
    losses_of,
    reliability_of,
    scatter_of,
    select_surest,
    set_coverage_of,
)
from dubito_models.predictive import entropy


def classes(rows: int, seed: int = 0, classes: int = 5) -> tuple[ClassAnswers, np.ndarray]:
    """Answers whose labels are drawn from them: calibrated."""
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.full(classes, 0.4), rows)
    labels = (p.cumsum(-1) > random.random((rows, 1))).argmax(-1)
    epistemic = random.uniform(0, 0.3, rows)
    return ClassAnswers(p, entropy(p), entropy(p) - epistemic, epistemic), labels


# --- Coverage ---


def test_sets_of_calibrated_probabilities_cover_as_they_should() -> None:
    """Of 20,000 rows within four standard errors at every level: beyond in one of a thousand runs."""
    answers, labels = classes(20_000)
    [curve] = coverage_of({DRAWN: answers}, labels)
    assert curve.x == LEVELS
    reach = 4 * np.sqrt(np.multiply(LEVELS, np.subtract(1, LEVELS)) / 20_000)
    assert (np.abs(np.subtract(curve.y, LEVELS)) < reach).all()


@given(some.integers(2, 6), some.integers(0, 10**6), some.sampled_from([0.05, 0.3, 0.5, 0.9, 1.0]))
def test_coverage_is_that_of_a_class_drawn_in_or_out(count: int, seed: int, level: float) -> None:
    """By hand: classes in order until the level is reached, the last with the chance that the level still needs."""
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.full(count, 0.5), 4)
    p[0] = np.eye(count)[1]
    labels = random.integers(count, size=4)
    expected = []
    for row, label in zip(p, labels, strict=True):
        left, chance = level, 0.0
        for place in np.argsort(-row, kind="stable"):
            share = 1.0 if row[place] <= left and row[place] > 0 else max(left, 0.0) / row[place] if row[place] else 0.0
            chance = min(share, 1.0) if place == label else chance
            left -= row[place]
        expected.append(chance)
    found = cumulative_coverage(p, labels, np.array([level]))[0]
    if p[np.arange(4), labels].min() > 1e-12:
        assert found == pytest.approx(np.mean(expected), abs=1e-9)
    assert 0 <= found <= 1


def test_intervals_cover_as_the_pit_says() -> None:
    """A central interval holds the truth where its distribution function is within half the level of one half."""
    pit = np.array([[0.5], [0.27], [0.99], [0.1]])
    answers = TargetAnswers(np.zeros((4, 1)), pit=pit)
    [curve] = coverage_of({DRAWN: answers, STANDARD: TargetAnswers(np.zeros((4, 1)))}, np.zeros((4, 1)))
    at = dict(zip(curve.x, curve.y, strict=True))
    assert (at[0.05], at[0.45], at[0.5], at[0.85], at[0.95]) == (0.25, 0.25, 0.5, 0.75, 0.75)
    assert count_pit({DRAWN: answers}) == {DRAWN: (0, 1, 1, 0, 0, 1, 0, 0, 0, 1)}


def test_prediction_sets_and_intervals_are_counted() -> None:
    p = np.array([[0.7, 0.3], [0.4, 0.6]])
    sets = np.array([[True, False], [True, True]])
    assert set_coverage_of(ClassAnswers(p, entropy(p), promised=sets), np.array([1, 1])) == SetCoverage(0.9, 0.5, 1.5)
    assert set_coverage_of(ClassAnswers(p, entropy(p)), np.array([1, 1])) is None
    bounds = np.array([[[0.0, 2.0]], [[1.0, 5.0]]])
    answers = TargetAnswers(np.zeros((2, 1)), promised=bounds)
    assert set_coverage_of(answers, np.array([[2.0], [0.9]])) == SetCoverage(0.9, 0.5, 3.0)
    endless = TargetAnswers(np.zeros((2, 1)), promised=np.array([[[-np.inf, np.inf]], [[1.0, 5.0]]]))
    assert set_coverage_of(endless, np.array([[2.0], [0.9]])) == SetCoverage(0.9, 0.5, None)


# --- Selection, clouds ---


def test_risk_ends_in_the_error_of_all_rows() -> None:
    answers, labels = classes(700)
    plain = ClassAnswers(answers.probabilities, answers.predictive_entropy)
    curves = select_surest({STANDARD: plain, DRAWN: answers}, labels)
    assert [curve.name for curve in curves] == [
        f"{STANDARD}: max. probability",
        f"{DRAWN}: max. probability",
        f"{DRAWN}: predictive entropy",
        f"{DRAWN}: mutual information",
    ]
    wrong = losses_of(answers, labels)
    for curve in curves:
        assert len(curve.x) == CURVE
        assert curve.x[-1] == 1
        assert curve.y[-1] == pytest.approx(wrong.mean())
    surest = np.argsort(-answers.probabilities.max(-1))[: round(curves[1].x[50] * 700)]
    assert curves[1].y[50] == pytest.approx(wrong[surest].mean())


def test_an_order_is_shown_once() -> None:
    """Of two classes, entropy orders as the probability does; what does not vary orders nothing."""
    answers, labels = classes(100, classes=2)
    names = [curve.name for curve in select_surest({STANDARD: answers, DRAWN: answers}, labels)]
    assert f"{DRAWN}: predictive entropy" not in names
    random = np.random.default_rng(0)
    flat = TargetAnswers(random.normal(size=(9, 1)), total_variance=np.ones((9, 1)))
    drawn = TargetAnswers(
        flat.mean, total_variance=np.ones((9, 1)) + (spread := random.uniform(size=(9, 1))), epistemic_variance=spread
    )
    curves = select_surest({STANDARD: flat, DRAWN: drawn}, np.zeros((9, 1)))
    assert [curve.name for curve in curves] == [f"{DRAWN}: total deviation"]
    assert curves[0].y[-1] == pytest.approx((flat.mean**2).mean())


def test_clouds_are_thinned_and_of_both_kinds() -> None:
    answers, labels = classes(POINTS + 500)
    cloud = scatter_of(answers, labels)
    assert cloud is not None
    assert len(cloud.off) == len(cloud.epistemic) == len(cloud.aleatoric) == POINTS
    assert set(cloud.off) == {0.0, 1.0}
    assert scatter_of(ClassAnswers(answers.probabilities, answers.predictive_entropy), labels) is None
    variance = np.array([[4.0, 16.0]])
    known = TargetAnswers(np.zeros((1, 2)), epistemic_variance=variance, aleatoric_variance=variance / 4)
    found = scatter_of(known, np.array([[1.0, -3.0]]))
    assert found is not None
    assert (found.epistemic, found.aleatoric, found.off) == ((math.sqrt(10),), (math.sqrt(2.5),), (2.0,))


def test_reliability_is_of_classes_alone() -> None:
    answers, labels = classes(50)
    found = reliability_of({STANDARD: answers, DRAWN: answers}, labels)
    assert list(found) == [STANDARD, DRAWN]
    assert found[DRAWN].count.sum() == 50
    assert reliability_of({STANDARD: TargetAnswers(np.zeros((4, 1)))}, np.zeros((4, 1))) == {}
