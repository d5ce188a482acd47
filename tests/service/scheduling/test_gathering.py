"""Gathering: a step waits for callers to come back only where that was measured to answer more requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from dubito_service.scheduling.dispatching import Dispatcher, Job
from dubito_service.scheduling.gathering import SHARES, Gathering, choose
from dubito_service.scheduling.scheduler import Priority


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


class Batches:
    """A dispatcher that waits for long, and what its steps held; a step takes as long as is set."""

    def __init__(self) -> None:
        self.now, self.held = 0.0, list[int]()
        self.hold: threading.Event | None = None  # a step lasts until it is set
        self.began = threading.Event()
        self.dispatcher: Dispatcher[Job[int]] = Dispatcher(
            "test", self.step, lambda job: None, lambda: self.now, gather_seconds=60.0
        )
        self.dispatcher._gathering.share = 3.0

    def step(self, jobs: Sequence[Job[int]]) -> None:
        self.held.append(len(jobs))
        self.began.set()
        if self.hold is not None:
            assert self.hold.wait(30)
        self.now += 100.0
        for job in jobs:
            job.outcome = job.number

    async def ask(self) -> int:
        future = asyncio.get_running_loop().create_future()
        number = next(self.dispatcher.numbers)
        job = Job[int](number, future, self.now, self.now, None, Priority.NORMAL)
        with self.dispatcher.carry([job], None):
            return await asyncio.wait_for(job.future, 30)


async def test_a_caller_that_is_alone_is_not_waited_for_others() -> None:
    batches = Batches()
    batches.dispatcher.start()
    for number in range(4):
        assert await batches.ask() == number
    batches.dispatcher.close()
    assert batches.dispatcher.join(30)
    assert batches.held == [1, 1, 1, 1]


async def test_those_that_come_during_a_step_wait_for_those_that_it_answers() -> None:
    batches = Batches()
    batches.hold = threading.Event()
    batches.dispatcher.start()
    first = asyncio.create_task(batches.ask())
    assert await asyncio.to_thread(batches.began.wait, 30)
    second = asyncio.create_task(batches.ask())
    await asyncio.sleep(0)  # it is submitted
    await asyncio.sleep(0)
    batches.hold.set()
    await first
    again = asyncio.create_task(batches.ask())
    assert (await second, await again) == (1, 2)
    batches.dispatcher.close()
    assert batches.dispatcher.join(30)
    assert batches.held == [1, 2]
