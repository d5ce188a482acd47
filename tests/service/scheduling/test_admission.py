"""Admission: a bounded queue with fair shares, and no request that could only fail."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from dubito_service.errors import DeadlineMissed, QueueFull
from dubito_service.scheduling.admission import Admission, Bounds
from dubito_service.scheduling.drawing import Drawn, Request
from dubito_service.scheduling.pace import Caution, Demand, Pace, Slowness
from dubito_service.scheduling.scheduler import Priority
from dubito_service.scheduling.worker import DeviceWorker

from ..conftest import Clock
from ..hooked import Gate, Hooked, Pass, limits, request, settle, until


@contextlib.asynccontextmanager
async def running(clock: Clock, **bounds: float) -> AsyncIterator[DeviceWorker]:
    device = DeviceWorker(limits(**bounds), clock)
    device.start()
    yield device
    device.close()
    assert device.join(30)


def holding(admission: Admission, work: int, model: str = "m", caller: str = "c") -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    stack.enter_context(admission.hold(model, caller, work, 0.01))
    return stack


def test_one_model_and_one_caller_hold_no_more_than_their_share_and_leave_room_for_others() -> None:
    admission = Admission(Bounds(100, model_share=0.5, caller_share=0.3))
    with holding(admission, 25, "a", "x"):
        with pytest.raises(QueueFull, match=r"the share of caller x is full: 25 of 30 rows x draws, and 10 more"):
            holding(admission, 10, "b", "x")
        with holding(admission, 20, "a", "y"):
            with pytest.raises(QueueFull, match="the share of model a is full: 45 of 50"):
                holding(admission, 10, "a", "z")
            others = holding(admission, 30, "b", "z"), holding(admission, 25, "c", "w")
            with others[0], others[1], pytest.raises(QueueFull, match="the queue is full: 100 of 100"):
                holding(admission, 1, "d", "v")
    assert admission.work == 0
    holding(admission, 100, "a", "x").close()


def test_who_holds_nothing_comes_in_with_one_request_however_large() -> None:
    admission = Admission(Bounds(100, caller_share=0.1))
    with holding(admission, 60, "a", "x"), holding(admission, 30, "a", "y"), pytest.raises(QueueFull, match="caller x"):
        holding(admission, 1, "a", "x")


def test_a_refusal_says_when_there_will_be_room_at_the_measured_pace() -> None:
    admission = Admission(Bounds(1000))
    with holding(admission, 900), pytest.raises(QueueFull) as caught:
        holding(admission, 400)
    assert caught.value.retry_after == pytest.approx(300 * 0.01)


async def test_what_even_an_idle_server_could_not_answer_in_time_is_refused_at_once(
    clock: Clock, engine: Hooked
) -> None:
    """A row and draw takes .01 s, as a request has shown; forty draws take .4 s."""
    async with running(clock, step_seconds=0.1) as worker:
        engine.hook = lambda this: setattr(clock, "now", clock.now + 0.01 * sum(this.rows) * this.draws)
        await worker.draw(request(engine, max_draws=40))
        passes = len(engine.passes)
        with pytest.raises(DeadlineMissed, match=r"leaves 0\.35 s; an answer takes at least 0\.4 s"):
            await worker.draw(request(engine, min_draws=40, max_draws=40, deadline=clock.now + 0.35))
        assert len(engine.passes) == passes
        assert await worker.draw(request(engine, min_draws=40, max_draws=40, deadline=clock.now + 0.41))
        assert await worker.draw(request(engine, min_draws=10, max_draws=40, deadline=clock.now + 0.35))


async def test_where_only_the_queue_is_in_the_way_the_refusal_says_when_to_come_back(
    clock: Clock, engine: Hooked
) -> None:
    """The queue holds a second of work, behind a step of .4 s; whoever can wait for it, or goes before, is let in."""
    async with running(clock, step_seconds=0.1) as worker:
        engine.hook = lambda this: setattr(clock, "now", clock.now + 0.01 * sum(this.rows) * this.draws)
        await worker.draw(request(engine, max_draws=40))
        while not worker.counters.steps:  # an outcome may cross before its step has ended
            await asyncio.sleep(0.001)
        gate = Gate()

        def hold(this: Pass) -> None:
            gate(this)
            clock.now += 0.01 * sum(this.rows) * this.draws

        engine.hook = hold
        first = request(engine, min_draws=100, max_draws=100, deadline=clock.now + 3)
        busy = asyncio.create_task(worker.draw(first))
        await settle()
        asked = {"min_draws": 40, "max_draws": 40, "seed": 3}
        with pytest.raises(QueueFull, match=r"1\.4 s of work are due before this request") as caught:
            await worker.draw(
                request(engine, rows=6, deadline=clock.now + 3, **asked)
            )  # of equal dates the first leads
        assert caught.value.retry_after == pytest.approx(0.8)
        with pytest.raises(QueueFull):
            await worker.draw(request(engine, rows=5, deadline=clock.now + 2.9, priority=Priority.LOW, **asked))
        inside = [
            request(engine, deadline=clock.now + 2, **asked),  # is due before
            request(engine, deadline=clock.now + 5, **asked),  # can wait
            request(engine, deadline=clock.now + 3, priority=Priority.HIGH, **asked),
        ]
        tasks = [asyncio.create_task(worker.draw(each)) for each in inside]
        await settle()
        gate.open()
        for task in (busy, *tasks):
            assert isinstance(await task, Drawn)


async def test_a_network_that_has_not_run_yet_is_given_a_try(clock: Clock, engine: Hooked) -> None:
    async with running(clock) as worker:
        assert await worker.draw(request(engine, min_draws=1000, max_draws=1000, deadline=clock.now + 0.5))


def test_small_passes_say_nothing_of_what_large_ones_take() -> None:
    pace = Pace()
    pace.note(0.001, 10)
    assert pace.at_least(10, 1000) == pytest.approx(0.001)
    assert pace.at_least(10_000, 1000) == pytest.approx(0.001)
    pace.note(0.01, 1000)
    assert pace.at_least(10_000, 1000) == pytest.approx(0.1)
    for _ in range(100):
        pace.note(0.001, 10)  # the load falls, and passes are small again
    assert pace.at_least(10_000, 1000) == pytest.approx(0.1)


def test_slowness_tells_by_how_much_bounds_were_too_low_and_never_lowers_them() -> None:
    slowness = Slowness()
    assert slowness.factor == 1.0
    slowness.note(1.0, 0.0)  # there was no bound
    assert slowness.factor == 1.0
    for _ in range(200):
        slowness.note(0.6, 0.2)
    assert slowness.factor == pytest.approx(3.0)
    for _ in range(200):
        slowness.note(0.0, 0.2)
    assert slowness.factor == 1.0


def test_what_goes_first_and_goes_on_coming_leaves_the_rest_of_the_time_and_never_less_than_is_kept() -> None:
    demand = Demand()
    assert demand.share(1, 0.0) == 1.0
    for tick in range(100):  # 0.4 seconds of work a second
        demand.note(0, 0.04, tick / 10)
    assert demand.share(1, 9.9) == pytest.approx(0.6, abs=0.03)
    assert demand.share(1, 9.9, factor=2.0) == 0.25
    assert demand.share(0, 9.9) == 1.0
    assert demand.share(1, 30.0) == pytest.approx(1.0)  # it came no more
    demand.note(2, 5.0, 30.0)
    assert demand.share(0, 30.0) == 0.75  # those that starve have their turns


def test_caution_rises_until_few_of_those_let_in_are_missed() -> None:
    """Misses by chance, the likelier the lower it is: their share ends at the target, within 3.5 standard errors."""
    caution, random = Caution(memory=math.inf), Random(3)
    assert caution.level(0.0) == 0.0
    missed = list[bool]()
    for _ in range(30_000):
        level = caution.level(0.0)
        missed.append(random.random() < 0.6 * math.exp(-2 * level))
        caution.note(missed[-1], level, 0.0)
    late, target = missed[5_000:], caution.target
    assert abs(sum(late) / len(late) - target) < 3.5 * math.sqrt(target * (1 - target) / len(late))
    assert caution.level(0.0) == pytest.approx(math.log(0.6 / target) / 2, abs=0.5)
    for _ in range(1_000):
        caution.note(False, caution.level(0.0), 0.0)
    assert caution.level(0.0) == 0.0


def test_many_that_were_let_in_together_teach_no_more_caution_than_one_of_them_and_it_is_forgotten() -> None:
    caution = Caution()
    for _ in range(100):
        caution.note(True, 0.0, 5.0)
    once = caution.gain * (1 - caution.target)
    assert caution.level(5.0) == pytest.approx(once)
    caution.note(True, once, 5.0)
    assert caution.level(5.0) == pytest.approx(2 * once)
    assert caution.level(13.0) == pytest.approx(2 * once / math.e)
    assert caution.level(100.0) < 1e-4


async def test_after_some_that_were_let_in_and_missed_their_deadline_fewer_are_let_in(
    clock: Clock, engine: Hooked
) -> None:
    """Behind a second of work, with time enough else; those of the priority that has missed, and of lower ones."""
    async with running(clock, step_seconds=0.1) as worker:

        def work(this: Pass) -> None:
            clock.now += 0.01 * sum(this.rows) * this.draws

        async def behind(asked: Request, later: float = 0.0) -> Drawn | BaseException:
            """Ask behind a second of work, and behind draws for which nobody waits, held up for so long."""
            gate = Gate()
            engine.hook = lambda this: (gate(this) if this.first == 10 else None) or work(this)
            spare = asyncio.create_task(worker.draw(request(engine, min_draws=10, max_draws=20)))
            await until(gate.has_entered)
            ahead = asyncio.create_task(worker.draw(request(engine, min_draws=100, max_draws=100, **first)))
            await settle()
            task = asyncio.create_task(worker.draw(asked))
            await settle()
            clock.now += later
            gate.open()
            outcomes = await asyncio.gather(spare, ahead, task, return_exceptions=True)
            assert [isinstance(outcome, Drawn) for outcome in outcomes[:2]] == [True, True]
            return outcomes[2]

        first: dict[str, Any] = {"seed": 2, "priority": Priority.HIGH}

        def hurried(left: float, priority: Priority = Priority.NORMAL) -> Request:
            spec = {"min_draws": 10, "max_draws": 10, "seed": 1}
            return request(engine, deadline=clock.now + left, priority=priority, **spec)

        engine.hook = work
        await worker.draw(request(engine, max_draws=40))
        for again in (False, True):
            assert isinstance(await behind(hurried(5.0)), Drawn)
            assert isinstance(await behind(hurried(5.0, Priority.LOW)), Drawn)
            if not again:
                for _ in range(2):
                    assert isinstance(await behind(hurried(6.0), later=6.5), (DeadlineMissed, QueueFull))
                assert isinstance(await behind(hurried(5.0)), QueueFull)
                assert isinstance(await behind(hurried(5.0, Priority.LOW)), QueueFull)
                assert isinstance(await behind(hurried(5.0, Priority.HIGH)), Drawn)
                await behind(request(engine), later=100.0)


def test_a_machine_that_slows_down_is_noticed_in_the_end() -> None:
    pace = Pace()
    pace.note(0.01, 1000)
    for _ in range(100):
        pace.note(0.02, 1000)
    assert pace.at_least(1000, 1000) == pytest.approx(0.02)
