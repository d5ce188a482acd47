"""The test of drift: false alarms within their budget whenever one looks, drifts found, states that repeat.

Simulations have fixed seeds. False alarms among 1,000 streams are held to the highest count that a binomial with the
budget reaches with probability 1 - 1e-4.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from dubito_models.calibration import exchangeability
from dubito_models.calibration.exchangeability import Exchangeability, exchangeability_from
from dubito_models.errors import InvalidArgument

STREAMS, BUDGET = 1000, 0.2

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]

EXCHANGEABLE: dict[str, Draw] = {
    "normal": lambda random, size: random.normal(size=size),
    "two values": lambda random, size: random.integers(2, size=size).astype(float),
    "mostly zero": lambda random, size: np.maximum(random.normal(size=size) - 1.5, 0.0),
    "all the same": lambda random, size: np.zeros(size),
}


def follow(state: Exchangeability, scores: Iterable[float]) -> Exchangeability:
    for score in scores:
        state = state.after(float(score))
    return state


def p_values(reference: int, scores: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Return the p-values of scores (T,) after those of the reference, the first ones."""
    state, found = Exchangeability.start(scores[:reference], 0.1, seed), []
    for score in scores[reference:].tolist():
        found.append(state._p_value(score))
        state = state.after(score)
    return np.array(found)


@pytest.mark.parametrize("draw", EXCHANGEABLE.values(), ids=EXCHANGEABLE)
def test_false_alarms_are_as_rare_as_promised(draw: Draw) -> None:
    """Of 1,000 exchangeable streams of 100 scores, looked at after each: a false alarm of this test in 10,000 seeds."""
    alarms = 0
    for stream in range(STREAMS):
        scores = draw(np.random.default_rng(stream), 130)
        alarms += follow(Exchangeability.start(scores[:30], BUDGET, stream), scores[30:]).alarm
    assert alarms <= stats.binom.ppf(1 - 1e-4, STREAMS, BUDGET)


def test_false_alarms_are_as_rare_over_many_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for 30 scores only, half of them the reference's, 150 are ten periods: the same budget."""
    monkeypatch.setattr(exchangeability, "CAPACITY", 30)
    alarms = 0
    for stream in range(STREAMS):
        scores = np.random.default_rng(stream).normal(size=165)
        state = follow(Exchangeability.start(scores[:15], BUDGET, stream), scores[15:])
        assert (state.period, len(state.scores)) == (10, 15)
        alarms += state.alarm
    assert alarms <= stats.binom.ppf(1 - 1e-4, STREAMS, BUDGET)


@pytest.mark.parametrize("draw", EXCHANGEABLE.values(), ids=EXCHANGEABLE)
def test_p_values_of_exchangeable_scores_are_uniform_and_independent(draw: Draw) -> None:
    """Kolmogorov's test and the correlation of neighbours, over 20,000 p-values: false alarms in 10,000 seeds each."""
    found = [p_values(20, draw(np.random.default_rng(stream), 120), stream) for stream in range(200)]
    together = np.concatenate(found)
    assert stats.kstest(together, "uniform").pvalue > 1e-4
    neighbours = np.corrcoef(np.concatenate([p[:-1] for p in found]), np.concatenate([p[1:] for p in found]))[0, 1]
    assert abs(neighbours) < stats.norm.ppf(1 - 0.5e-4) / math.sqrt(200 * 99)


@pytest.mark.parametrize(("shift", "before", "within"), [(2.0, 0, 40), (2.0, 1000, 80), (1.0, 0, 80), (1.0, 1000, 160)])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_shift_is_found(shift: float, before: int, within: int, sign: int) -> None:
    """By standard deviations of the mean, up or down, at once or after 1,000 quiet scores: all of 20 seeds."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        state = follow(Exchangeability.start(random.normal(size=500), 0.01, seed), random.normal(size=before))
        assert not state.alarm
        assert follow(state, sign * shift + random.normal(size=within)).alarm


def test_a_shift_in_a_later_period_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each period has less of the budget: the third alarms at 12 / .01, which takes some scores more."""
    monkeypatch.setattr(exchangeability, "CAPACITY", 700)
    random = np.random.default_rng(0)
    state = follow(Exchangeability.start(random.normal(size=500), 0.01, 0), random.normal(size=450))
    assert (state.period, state.alarm, len(state.scores)) == (3, False, 50)
    state = follow(state, 2 + random.normal(size=60))
    assert state.alarm
    assert state.evidence > math.log10(12 / 0.01)


def test_each_period_has_its_share_of_the_budget_and_begins_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Period k alarms at k (k + 1) / false_alarm; what a period has won is not bet in the next, which tests it anew."""
    idle = replace(Exchangeability.start([0.0, 1.0], 0.01, 0), shares=(0.0,) * 12 + (1 / 3,) * 3)  # bets on nothing
    for period in range(1, 6):
        limit = math.log(period * (period + 1) / 0.01)
        assert not replace(idle, period=period, log_wealth=limit - 1e-6).after(0.5).alarm
        assert replace(idle, period=period, log_wealth=limit + 1e-6).after(0.5).alarm
    monkeypatch.setattr(exchangeability, "CAPACITY", 4)
    full = replace(follow(Exchangeability.start([0.0, 1.0], 0.01, 0), [0.2, 0.7]), log_wealth=9.0)
    full = replace(full, shares=(1.0,) + (0.0,) * 14)
    renewed = full.after(0.5)
    assert (renewed.period, renewed.scores, renewed.count, renewed.alarm) == (2, (0.5,), 3, False)
    assert abs(renewed.log_wealth) < math.log(1.5)
    assert max(renewed.shares) < 0.2


def test_an_alarm_stays() -> None:
    """Also where the scores are quiet again and the wealth is lost, and in the periods that follow."""
    random = np.random.default_rng(0)
    state = follow(Exchangeability.start(random.normal(size=200), 0.05, 0), 3 + random.normal(size=40))
    assert state.alarm
    assert replace(state, log_wealth=-20.0).after(0.0).alarm
    assert state._renewed().after(0.0).alarm


def test_the_wealth_is_that_of_the_jumper_word_for_word() -> None:
    """The mean over five rates of the sum over three bets, each as the paper's algorithm has it."""
    random = np.random.default_rng(4)
    scores = np.concatenate([random.normal(size=60), 1 + random.normal(size=60)])
    state = follow(Exchangeability.start(scores[:20], 0.01, 9), scores[20:])
    wealth = []
    for rate in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        capital = {-1: 1 / 3, 0: 1 / 3, 1: 1 / 3}
        for p in p_values(20, scores, 9):
            total = sum(capital.values())
            capital = {e: (1 - rate) * own + rate / 3 * total for e, own in capital.items()}
            capital = {e: own * (1 + e * (p - 0.5)) for e, own in capital.items()}
        wealth.append(sum(capital.values()))
    assert state.evidence == pytest.approx(math.log10(np.mean(wealth)), abs=1e-9)


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(-3, 3).map(float), max_size=30))
def test_the_wealth_of_equal_betting_is_kept_by_every_p_value(seed: int, scores: list[float]) -> None:
    """The shares sum to 1, and the wealth never falls below the fifth that is bet on nothing."""
    state = follow(Exchangeability.start([0.0, 1.0], 0.01, seed), scores)
    assert sum(state.shares) == pytest.approx(1.0)
    assert state.log_wealth >= math.log(1 / 5) - 1e-9
    assert state.scores == tuple(sorted(scores))


def test_evidence_beyond_every_float_stays_a_number() -> None:
    """5,000 scores that are each the highest yet: the wealth is above 10^300."""
    state = follow(Exchangeability.start(np.zeros(100), 0.01, 0), range(1, 5000))
    assert 300 < state.evidence < math.inf


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**64 - 1))
def test_a_replica_repeats_the_state(seed: int) -> None:
    """The same scores in the same order, also from JSON in between, end in the same state; another seed's differs."""
    random = np.random.default_rng(0)
    reference, scores = random.integers(3, size=20), random.integers(3, size=40)
    state = follow(Exchangeability.start(reference, 0.01, seed), scores)
    halfway = follow(Exchangeability.start(reference[::-1], 0.01, seed), scores[:20])
    restored = exchangeability_from(json.loads(json.dumps(asdict(halfway), allow_nan=False)))
    assert restored == halfway
    assert follow(restored, scores[20:]) == state
    assert follow(Exchangeability.start(reference, 0.01, (seed + 1) % 2**64), scores) != state


def test_a_long_reference_is_a_random_choice_of_it() -> None:
    """So many of its scores, whatever order they come in, of the same mean: |z| < 4."""
    scores = np.sort(np.random.default_rng(0).normal(size=40_000))
    state = Exchangeability.start(scores, 0.01, 0)
    assert len(state.reference) == exchangeability.MOST_REFERENCE
    assert set(state.reference) <= set(scores)
    assert abs(np.mean(state.reference) - scores.mean()) < 4 / math.sqrt(len(state.reference))
    assert Exchangeability.start(scores[::-1], 0.01, 0) == state


def test_no_reference_and_infinite_scores_are_accepted() -> None:
    """Without a reference the scores are compared with each other; an infinite one is the highest number."""
    state = follow(Exchangeability.start([], 0.01, 0), [math.inf, -math.inf, 0.0])
    json.dumps(asdict(state), allow_nan=False)
    assert state.scores[1] == 0.0
    assert not state.alarm


@pytest.mark.parametrize(
    ("field", "ask"),
    [
        ("false_alarm", lambda: Exchangeability.start([0.0], 0.0, 0)),
        ("false_alarm", lambda: Exchangeability.start([0.0], math.nan, 0)),
        ("seed", lambda: Exchangeability.start([0.0], 0.1, -1)),
        ("seed", lambda: Exchangeability.start([0.0], 0.1, 2**64)),
        ("reference_scores", lambda: Exchangeability.start([[0.0]], 0.1, 0)),
        ("score", lambda: Exchangeability.start([math.nan], 0.1, 0)),
        ("score", lambda: Exchangeability.start([0.0], 0.1, 0).after(math.nan)),
    ],
)
def test_what_cannot_be_tested_is_refused(field: str, ask: Callable[[], object]) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: "):
        ask()


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1},
        {"reference": [1.0, 0.0]},
        {"reference": [math.nan]},
        {"reference": 3},
        {"reference": [0.0] * (exchangeability.CAPACITY + 1)},
        {"scores": [0.0, 1.0]},
        {"shares": [1.0]},
        {"shares": [0.0] * 15},
        {"shares": [-1.0] + [2 / 14] * 14},
        {"period": 0},
        {"log_wealth": math.inf},
    ],
)
def test_a_document_that_is_no_state_is_refused(change: dict[str, Any]) -> None:
    document = json.loads(json.dumps(asdict(Exchangeability.start([0.0], 0.1, 0).after(0.5))))
    with pytest.raises(InvalidArgument, match=r"^exchangeability: "):
        exchangeability_from(document | change)
