"""Gathering: a step waits for callers to come back only where that was measured to answer more requests."""

from __future__ import annotations

import pytest

from dubito_service.scheduling.gathering import SHARES, Gathering, choose


def live(gathering: Gathering, gain: dict[float, float], steps: int) -> list[float]:
    """Take steps of 5 ms that answer as many requests as their wait is worth; returns the waits' shares."""
    now, shares = 0.0, []
    for _ in range(steps):
        now += 0.005
        shares.append(gathering.share)
        gathering.note(now, round(100 * gain[gathering.share]))
    return shares


@pytest.mark.parametrize(
    ("gain", "best"),
    [
        ({0.0: 1.0, 0.5: 1.36, 3.0: 1.1}, 0.5),
        ({0.0: 1.0, 0.5: 1.1, 3.0: 1.7}, 3.0),
        ({0.0: 1.0, 0.5: 0.9, 3.0: 0.5}, 0.0),
        ({0.0: 1.0, 0.5: 1.02, 3.0: 1.03}, 0.0),
    ],
    ids=["two cohorts", "passes that cost little", "waiting costs", "hardly a gain"],
)
def test_what_answers_clearly_more_is_kept_for_long_and_then_tried_again(gain: dict[float, float], best: float) -> None:
    shares = live(Gathering(1.0), gain, 32 * 60)
    assert set(shares[: 32 * 6]) == set(SHARES)
    assert set(shares[32 * 6 + 1 :]) == {best}
    later = live(Gathering(1.0), gain, 32 * 80)
    assert set(later[32 * 66 + 1 :]) == set(SHARES)


def test_one_lucky_trial_decides_nothing() -> None:
    assert choose({0.0: [100.0, 101.0], 0.5: [99.0, 300.0], 3.0: [50.0, 60.0]}) == 0.0


def test_a_wait_is_bounded_and_none_is_none() -> None:
    gathering = Gathering(0.005, share=3.0)
    assert gathering.seconds(0.001) == pytest.approx(0.003)
    assert gathering.seconds(1.0) == 0.005
    never = Gathering(0.0)
    live(never, {0.0: 1.0}, 1000)
    assert never.seconds(1.0) == 0.0
