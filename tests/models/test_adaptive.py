"""Adaptive conformal inference: the long-run error is bounded for every sequence, with labels on time or late."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dubito_models.calibration.adaptive import AdaptiveState, error_bound
from dubito_models.calibration.conformal import conformal_quantile
from dubito_models.errors import InvalidArgument

targets = st.sampled_from([0.01, 0.1, 0.3, 0.5, 0.9])
steps = st.sampled_from([1e-3, 0.01, 0.1, 0.7, 3.0])


def errs(state: AdaptiveState, adversary: bool) -> bool:
    """Return whether the label is missed: as the adversary likes, but for everything and nothing."""
    return not state.covers_all and (state.covers_none or adversary)


@settings(deadline=None)
@given(targets, steps, st.lists(st.booleans(), min_size=1, max_size=300))
def test_no_adversary_moves_the_mean_error_beyond_the_papers_bound(
    target: float, step: float, wanted: list[bool]
) -> None:
    """At every time, for any labels at all; and the level stays within a step of 0 and 1."""
    state = AdaptiveState.start(target, step)
    for adversary in wanted:
        state = state.after(errs(state, adversary))
        assert abs(state.mean_error - target) <= error_bound(target, step, state.count) + 1e-9
        assert -step - 1e-9 <= state.level <= 1 + step + 1e-9


@settings(deadline=None)
@given(targets, steps, st.integers(0, 8), st.lists(st.tuples(st.booleans(), st.integers(0, 8)), max_size=300))
def test_late_labels_in_any_order_keep_a_wider_bound(
    target: float, step: float, most: int, wanted: list[tuple[bool, int]]
) -> None:
    """With up to so many labels outstanding, each of which may move the level once more."""
    state, outstanding = AdaptiveState.start(target, step), []
    for adversary, which in wanted:
        outstanding.append(errs(state, adversary))
        if len(outstanding) > most:
            state = state.after(outstanding.pop(which % len(outstanding)))
            assert abs(state.mean_error - target) <= error_bound(target, step, state.count, most) + 1e-9


@given(targets, steps, st.lists(st.booleans(), max_size=60))
def test_the_order_of_labels_does_not_matter(target: float, step: float, wanted: list[bool]) -> None:
    """The level is that of the counts: first + step (target * count - errors)."""
    state = AdaptiveState.start(target, step)
    other = state
    for error in wanted:
        state = state.after(error)
    for error in sorted(wanted):
        other = other.after(error)
    assert (state.count, state.errors) == (len(wanted), sum(wanted)) == (other.count, other.errors)
    assert state.level == pytest.approx(target + step * (target * len(wanted) - sum(wanted)), abs=1e-9)
    assert other.level == pytest.approx(state.level, abs=1e-9)


def run(step: float, seed: int, times: int = 4000) -> tuple[list[bool], AdaptiveState]:
    """Return the errors on scores |N(0, 1)|, as calibrated, that are three times as large in the second half."""
    random = np.random.default_rng(seed)
    calibration = np.sort(np.abs(random.normal(size=500)))
    state, found = AdaptiveState.start(0.1, step), []
    for score in np.abs(random.normal(size=times)) * np.where(np.arange(times) < times // 2, 1.0, 3.0):
        if state.covers_all or state.covers_none:
            error = state.covers_none
        else:
            error = bool(score > conformal_quantile(calibration, state.coverage_to_ask))
        found.append(error)
        state = state.after(error)
    return found, state


def test_an_abrupt_shift_is_caught_up_with() -> None:
    """After scores become three times as large: 10 % errors again, where plain conformal prediction has 58 %.

    The latter by a fixed seed; the former is certain, as the level moves by at most 1 + 2 steps in the 2,000 labels.
    """
    adaptive, state = run(0.05, seed=0)
    plain, unmoved = run(0.0, seed=0)
    assert abs(np.mean(adaptive[2000:]) - 0.1) < (1 + 2 * 0.05) / (0.05 * 2000)
    assert np.mean(plain[2000:]) > 0.5
    assert state.coverage_to_ask > 0.99
    assert unmoved.level == 0.1


def test_a_step_of_zero_is_plain_conformal_prediction() -> None:
    """The coverage to ask never moves, and nothing is promised of other sequences than exchangeable ones."""
    state = AdaptiveState.start(0.1, 0.0)
    for error in [True] * 50 + [False] * 7:
        state = state.after(error)
    assert (state.level, state.count, state.errors) == (0.1, 57, 50)
    assert state.coverage_to_ask == 0.9
    assert error_bound(0.1, 0.0, 57) == math.inf


@pytest.mark.parametrize(
    ("level", "coverage", "everything", "nothing"),
    [(0.1, 0.9, False, False), (0.0, 1.0, True, False), (-0.2, 1.0, True, False), (1.0, 0.0, False, True),
     (1.3, 0.0, False, True)],
)  # fmt: skip
def test_levels_beyond_the_ends_ask_for_everything_or_nothing(
    level: float, coverage: float, everything: bool, nothing: bool
) -> None:
    state = AdaptiveState(level, 0.1, 0.05)
    assert (state.coverage_to_ask, state.covers_all, state.covers_none) == (coverage, everything, nothing)


def test_the_bound_by_hand() -> None:
    """(max(.1, .9) + .05) / (.05 * 100), and with 3 labels outstanding (.9 + .2) / 5; before any label, none."""
    assert error_bound(0.1, 0.05, 100) == pytest.approx(0.19)
    assert error_bound(0.1, 0.05, 100, outstanding=3) == pytest.approx(0.22)
    assert error_bound(0.1, 0.05, 0) == math.inf
    assert math.isnan(AdaptiveState.start(0.1, 0.05).mean_error)


def test_json_gives_back_the_same_state() -> None:
    state = AdaptiveState.start(0.1, 0.03).after(True).after(False)
    assert AdaptiveState(**json.loads(json.dumps(asdict(state)))) == state


@pytest.mark.parametrize(
    ("field", "ask"),
    [
        ("target", lambda: AdaptiveState.start(0.0, 0.1)),
        ("target", lambda: AdaptiveState.start(1.0, 0.1)),
        ("level", lambda: AdaptiveState(math.nan, 0.1, 0.1)),
        ("step", lambda: AdaptiveState.start(0.1, -0.1)),
        ("step", lambda: AdaptiveState.start(0.1, math.inf)),
        ("errors", lambda: AdaptiveState(0.1, 0.1, 0.1, count=1, errors=2)),
        ("errors", lambda: AdaptiveState(0.1, 0.1, 0.1, count=-1, errors=-1)),
        ("first_level", lambda: error_bound(1.5, 0.1, 10)),
        ("step, count, outstanding", lambda: error_bound(0.5, 0.1, 10, -1)),
    ],
)
def test_what_is_no_state_is_refused(field: str, ask: Callable[[], object]) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: "):
        ask()
