"""Selective prediction: the risk that is promised is kept, by simulation; the bound by scipy's exact binomial test.

Simulations have fixed seeds. Where a promise is broken with probability at most delta, the number of broken ones among
so many is held to the highest that a binomial count reaches with probability 1 - 1e-4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from calibrations import read_back
from dubito_models.calibrating import Abstaining, CalibrationSpec
from dubito_models.calibration.selective import Selective, fit_selective, upper_bound
from dubito_models.errors import InvalidArgument
from dubito_models.heads import Task

Array = NDArray[np.float64]
GRID = np.linspace(0.0, 1.0, 100_001)


def fit(losses: ArrayLike, uncertainty: ArrayLike, risk: float = 0.1, delta: float = 0.05) -> Selective:
    return fit_selective(losses, uncertainty, quantity="predictive_entropy", risk=risk, delta=delta)


def simulate(
    error: Callable[[Array], Array],
    rows: int,
    ties: int | None,
    find: Callable[[Array, Array], float],
    risk: float,
    times: int = 1000,
) -> int:
    """Return how often a threshold's true risk is above `risk`, for uncertainties uniform in 0..1, or `ties` values."""
    random = np.random.default_rng(rows)
    edges = error(GRID)
    mass = np.concatenate([[0.0], np.cumsum((edges[1:] + edges[:-1]) / 2 * np.diff(GRID))])
    broken = 0
    for _ in range(times):
        u = random.random(rows)
        probability = error(u)
        if ties is not None:
            u = np.ceil(u * ties) / ties  # the value of a bin, whose error rate is the bin's mean
            probability = (np.interp(u, GRID, mass) - np.interp(u - 1 / ties, GRID, mass)) * ties
        threshold = find((random.random(rows) < probability).astype(float), u)
        broken += threshold > 0 and np.interp(threshold, GRID, mass) / threshold > risk
    return broken


CURVES: dict[str, Callable[[Array], Array]] = {
    "just too risky at every threshold": lambda u: np.full_like(u, 0.1005),
    "rising": lambda u: 0.25 * u,
    "a step": lambda u: np.where(u < 0.5, 0.09, 0.4),
    "nearly sure, then wrong": lambda u: np.where(u < 0.9, 0.0, 1.0),
}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
@pytest.mark.parametrize("ties", [None, 10])
@pytest.mark.parametrize(("rows", "delta"), [(150, 0.3), (1000, 0.05)])
def test_the_risk_among_accepted_rows_is_kept_but_for_a_share_delta(
    curve: Callable[[Array], Array], ties: int | None, rows: int, delta: float
) -> None:
    """Of 1,000 calibrations no more break their promise than delta explains: a false alarm in 10,000 for each case."""
    broken = simulate(curve, rows, ties, lambda wrong, u: fit(wrong, u, delta=delta).threshold, 0.1)
    assert broken <= stats.binom.ppf(1 - 1e-4, 1000, delta)


def test_the_error_rate_that_was_counted_promises_nothing() -> None:
    """The most rows whose counted error rate is at most the risk break it in every second calibration: no promise."""

    def counted(wrong: Array, u: Array) -> float:
        order = np.argsort(u)
        rate = np.cumsum(wrong[order]) / np.arange(1, len(u) + 1)
        kept = np.flatnonzero(rate <= 0.1)
        return float(u[order][kept[-1]]) if len(kept) else -math.inf

    assert simulate(CURVES["rising"], 1000, None, counted, 0.1) > stats.binom.ppf(1 - 1e-4, 1000, 0.3)


def test_enough_rows_are_accepted_to_be_of_use() -> None:
    """Of errors that rise to 40 %, a risk of 10 % leaves half of the rows by the curve, and here nearly as many."""
    random = np.random.default_rng(0)
    u = random.random(20_000)
    found = fit(random.random(20_000) < 0.4 * u, u)
    assert 0.44 < found.accepted < 0.5
    assert found.threshold == pytest.approx(found.accepted, abs=0.02)
    assert found.bound <= 0.1


@settings(deadline=None)
@given(st.integers(1, 300), st.data())
def test_the_bound_is_the_exact_binomial_one(rows: int, data: st.DataObject) -> None:
    """Clopper and Pearson's, by scipy."""
    errors = data.draw(st.integers(0, rows))
    delta = data.draw(st.sampled_from([0.001, 0.05, 0.5]))
    exact = stats.binomtest(errors, rows, alternative="less").proportion_ci(1 - delta, method="exact").high
    assert upper_bound(errors, rows, delta) == pytest.approx(exact, rel=1e-9)


def test_errorless_rows_by_hand() -> None:
    """Of 100 right rows all pass, at the bound 1 - (delta / 7)^(1 / 100): 7 steps for 101 outcomes; of 20, none."""
    found = fit(np.zeros(100), np.arange(100.0))
    assert (found.threshold, found.accepted) == (99.0, 1.0)
    assert found.bound == pytest.approx(1 - (0.05 / 7) ** (1 / 100))
    few = fit(np.zeros(20), np.arange(20.0))
    assert (few.threshold, few.accepted, few.bound) == (-math.inf, 0.0, 1.0)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.integers(1, 12), st.integers(0, 1000))
def test_what_passed_is_what_is_said(rows: int, values: int, seed: int) -> None:
    """The share accepted is that at or below the threshold, ties together, and its bound at most the risk."""
    random = np.random.default_rng(seed)
    u = random.integers(values, size=rows) / values
    wrong = random.random(rows) < 0.2 * u
    found = fit(wrong, u, risk=0.2)
    accepted = ~found.abstains(u)
    assert accepted.mean() == pytest.approx(found.accepted)
    if accepted.any():
        assert found.threshold in u
        assert found.bound == upper_bound(int(wrong[accepted].sum()), int(accepted.sum()), 0.05 / rows.bit_length())
        assert found.bound <= 0.2
    else:
        assert (found.threshold, found.bound) == (-math.inf, 1.0)


def test_the_order_of_the_rows_does_not_matter() -> None:
    random = np.random.default_rng(1)
    u = random.integers(30, size=500) / 30
    wrong = random.random(500) < 0.2 * u
    order = random.permutation(500)
    assert fit(wrong[order], u[order]) == fit(wrong, u)


def test_it_abstains_above_the_threshold_and_from_what_is_not_a_number() -> None:
    """At the threshold itself it answers; where nothing can be promised it abstains always."""
    found = fit(np.zeros(100), np.arange(100.0))
    given = [-math.inf, 98.0, 99.0, 99.5, math.inf, math.nan]
    assert found.abstains(given).tolist() == [False, False, False, True, True, True]
    assert replace(found, threshold=-math.inf).abstains(given).all()
    assert found.abstains([]).shape == (0,)


@pytest.mark.parametrize("threshold", [0.25, -3.0, -math.inf])
def test_json_gives_back_the_same_threshold(threshold: float) -> None:
    found = Selective("mutual_information", threshold, 0.1, 0.05, 0.3, 0.099)
    assert read_back(Selective, asdict(found)) == found


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("threshold", {"threshold": math.nan}),
        ("threshold", {"threshold": math.inf}),
        ("risk", {"risk": 0.0}),
        ("delta", {"delta": 1.0}),
        ("accepted", {"accepted": 1.5}),
        ("bound", {"bound": -0.1}),
        ("bound", {"bound": math.nan}),
    ],
)
def test_a_document_that_is_no_threshold_is_refused(field: str, change: dict[str, Any]) -> None:
    document = asdict(fit(np.zeros(100), np.arange(100.0)))
    with pytest.raises(InvalidArgument, match=f"^{field}: "):
        read_back(Selective, document | change)


@pytest.mark.parametrize(
    ("field", "ask"),
    [
        ("losses", lambda: fit([], [])),
        ("losses", lambda: fit([[0.0]], [[0.0]])),
        ("losses", lambda: fit([0.5], [0.0])),
        ("losses", lambda: fit([math.nan], [0.0])),
        ("uncertainty", lambda: fit([0.0], [0.0, 1.0])),
        ("uncertainty", lambda: fit([0.0], [math.nan])),
        ("risk", lambda: fit([0.0], [0.0], risk=1.0)),
        ("delta", lambda: fit([0.0], [0.0], delta=0.0)),
    ],
)
def test_what_has_no_threshold_is_refused(field: str, ask: Callable[[], object]) -> None:
    """No rows, losses neither 0 nor 1, uncertainties that are no numbers, shares of nothing or all: by name."""
    with pytest.raises(InvalidArgument, match=f"^{field}: "):
        ask()


@pytest.mark.parametrize("error", [math.nan, math.inf, -1.0, 0.0])
def test_an_error_that_no_row_can_be_held_to_is_refused(error: float) -> None:
    """Nothing is further off than infinity or what is no number, so a promise about it would mean nothing."""
    with pytest.raises(InvalidArgument, match=rf"^error: got {error}; accepted: a finite number > 0"):
        CalibrationSpec(abstaining=Abstaining(0.1, error=error)).check(Task.REGRESSION)
