"""The workers: requests share passes, and none can fail, delay or hang another."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dubito_models.engine import Engine, Run
from dubito_models.predictive import Classification, Predictive, StopReason
from dubito_models.stopping import Quantity, Stopping, StoppingRule
from dubito_service.errors import DeadlineMissed, Draining, OutOfMemory, QueueFull, WorkerLost
from dubito_service.reports import PassReport, Report, StepReport, WorkerReport
from dubito_service.scheduling import dispatching, stepping
from dubito_service.scheduling.drawing import Drawn, Request
from dubito_service.scheduling.worker import DeviceWorker

from ..conftest import Clock
from ..hooked import Gate, Hooked, Pass, limits, request, settle, until


class Broken(Exception):
    """What a pass raises in these tests."""


class Crowd:
    """Requests that gather behind a pass which is held up, and start together when it is let go."""

    def __init__(self, worker: DeviceWorker, gate: Gate, first: asyncio.Task[Drawn]) -> None:
        self.worker = worker
        self._gate = gate
        self.first = first

    async def add(self, *requests: Request) -> list[asyncio.Task[Drawn]]:
        tasks = [asyncio.create_task(self.worker.draw(each)) for each in requests]
        await settle()
        return tasks

    def go(self) -> None:
        self._gate.open()


@pytest.fixture
async def crowd(worker: DeviceWorker, engine: Hooked) -> AsyncIterator[Crowd]:
    gate = engine.hook = Gate()
    first = asyncio.create_task(worker.draw(request(engine, max_draws=10)))
    await until(gate.has_entered)
    yield Crowd(worker, gate, first)
    gate.open()
    await asyncio.gather(first, return_exceptions=True)


def probabilities(predictive: Predictive) -> NDArray[np.float64]:
    assert isinstance(predictive.answer, Classification)
    return predictive.answer.probabilities


def alone(asked: Request) -> Predictive:
    engine = asked.engines[0]
    plain = Engine(engine.program, engine.masks, engine.head, engine.defaults)
    return plain.predict(asked.inputs, asked.plan.spec)


def assert_same(one: Predictive, other: Predictive) -> None:
    assert one.draws.tolist() == other.draws.tolist()
    np.testing.assert_allclose(probabilities(one), probabilities(other), rtol=0, atol=1e-6)


async def test_an_answer_is_the_same_alone_and_among_strangers(crowd: Crowd, engine: Hooked) -> None:
    asked = [request(engine, rows=1 + i % 5, shift=i, seed=i % 3, max_draws=(10, 40, 120)[i % 3]) for i in range(32)]
    tasks = await crowd.add(*asked)
    crowd.go()
    for one, drawn in zip(asked, await asyncio.gather(*tasks), strict=True):
        assert_same(drawn.predictive, alone(one))


async def test_newcomers_share_one_prefix_and_their_passes(crowd: Crowd, engine: Hooked) -> None:
    tasks = await crowd.add(*(request(engine, rows=rows, max_draws=40) for rows in (1, 2, 3)))
    crowd.go()
    await asyncio.gather(*tasks)
    assert engine.prefixes[1:] == [(1, 2, 3)]
    assert engine.passes[1:] == [Pass((1, 2, 3), 0, 40)]


async def test_newcomers_share_the_prefix_across_seeds_but_no_pass(crowd: Crowd, engine: Hooked) -> None:
    tasks = await crowd.add(*(request(engine, max_draws=10, seed=seed) for seed in (7, 8)))
    crowd.go()
    await asyncio.gather(*tasks)
    assert engine.prefixes[1:] == [(1, 1)]
    assert engine.passes[1:] == [Pass((1,), 0, 10)] * 2


async def test_whoever_wants_fewer_draws_leaves_earlier(crowd: Crowd, engine: Hooked) -> None:
    tasks = await crowd.add(*(request(engine, max_draws=draws) for draws in (40, 10)))
    crowd.go()
    drawn = await asyncio.gather(*tasks)
    assert [int(each.predictive.draws[0]) for each in drawn] == [40, 10]
    assert engine.passes[1:] == [Pass((1, 1), 0, 10), Pass((1,), 10, 30)]


async def test_a_newcomer_does_not_wait_for_a_long_request(clock: Clock, engine: Hooked) -> None:
    device = DeviceWorker(limits(step_work=20), clock)
    device.start()
    engine.hook = lambda this: setattr(clock, "now", clock.now + 1.0)
    long = asyncio.create_task(device.draw(request(engine, max_draws=10_000)))
    await until(lambda: len(engine.passes) > 2)
    short = await device.draw(request(engine, max_draws=10))
    assert short.predictive.stop_reason == (StopReason.MAX_DRAWS,)
    assert not long.done()
    long.cancel()
    device.close()
    assert device.join(30)


async def test_cancelled_in_the_queue_costs_no_pass(crowd: Crowd, engine: Hooked) -> None:
    gone, stays = await crowd.add(request(engine, rows=3), request(engine, rows=2))
    gone.cancel()
    await settle()
    crowd.go()
    await stays
    assert engine.prefixes[1:] == [(2,)]
    assert all(this.rows == (2,) for this in engine.passes[1:])
    assert crowd.worker.counters.work == 10 + 2 * 40


async def test_cancelled_while_drawn_costs_no_further_pass(clock: Clock, engine: Hooked) -> None:
    device = DeviceWorker(limits(step_work=10), clock)
    device.start()
    gate = engine.hook = Gate()
    task = asyncio.create_task(device.draw(request(engine, max_draws=1000)))
    await until(gate.has_entered)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.open()
    await device.draw(request(engine, shift=1, max_draws=10))
    assert [(this.rows, this.first) for this in engine.passes] == [((1,), 0)] * 2
    assert device.queued_work == 0
    device.close()
    assert device.join(30)


async def test_cancelling_one_of_a_shared_pass_leaves_the_others_unaffected(
    worker: DeviceWorker, crowd: Crowd, engine: Hooked
) -> None:
    asked = [request(engine, shift=i, max_draws=40) for i in range(8)]
    tasks = await crowd.add(*asked)
    inner = Gate()
    engine.hook = inner
    crowd.go()
    await until(inner.has_entered)  # all eight are in this pass
    tasks[3].cancel()
    inner.open()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes.pop(3), asyncio.CancelledError)
    del asked[3]
    for one, outcome in zip(asked, outcomes, strict=True):
        assert isinstance(outcome, Drawn)
        assert_same(outcome.predictive, alone(one))


async def test_a_deadline_that_ends_in_the_queue_costs_no_pass(crowd: Crowd, engine: Hooked, clock: Clock) -> None:
    late, fine = await crowd.add(request(engine, rows=3, deadline=clock.now + 1), request(engine, rows=2))
    clock.now += 1
    crowd.go()
    await fine
    with pytest.raises(DeadlineMissed, match="after 0 draws"):
        await late
    assert engine.prefixes[1:] == [(2,)]


async def test_near_its_deadline_a_request_gets_what_was_drawn_and_it_can_be_replayed(
    clock: Clock, engine: Hooked
) -> None:
    device = DeviceWorker(limits(step_work=20), clock)
    device.start()
    engine.hook = lambda this: setattr(clock, "now", clock.now + 1.0)
    drawn = await device.draw(request(engine, max_draws=1000, deadline=clock.now + 5.5))
    predictive = drawn.predictive
    assert predictive.stop_reason == (StopReason.DEADLINE,)
    assert 20 <= predictive.draws[0] < 1000
    used = int(predictive.draws[0])
    assert_same(predictive, alone(request(engine, min_draws=used, max_draws=used, seed=predictive.seed)))
    device.close()
    assert device.join(30)


async def test_nobody_complains_of_the_outcome_of_who_has_left(
    worker: DeviceWorker, engine: Hooked, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "dubito_service")  # or the lines that are captured keep the request
    said: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    gate = Gate()

    def fail(this: Pass) -> None:
        if this.rows == (2,):
            gate(this)
            raise Broken("a pass that nobody waits for")

    engine.hook = fail
    watching = asyncio.create_task(anext(worker.watch(request(engine, rows=2, max_draws=10))))
    await until(gate.has_entered)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    gate.open()
    await worker.draw(request(engine, max_draws=10))  # by then the outcome has crossed
    engine.hook = lambda this: None
    del watching
    gc.collect()
    assert said == []


async def test_a_deadline_before_the_least_draws_gives_no_answer(clock: Clock, engine: Hooked) -> None:
    device = DeviceWorker(limits(step_work=10), clock)
    device.start()
    engine.hook = lambda this: setattr(clock, "now", clock.now + 1.0)
    with pytest.raises(DeadlineMissed, match="takes at least 500"):
        await device.draw(request(engine, min_draws=500, max_draws=1000, deadline=clock.now + 5.5))
    device.close()
    assert device.join(30)


async def test_a_pass_that_fails_fails_only_who_is_at_fault(crowd: Crowd, engine: Hooked) -> None:
    def fail(this: Pass) -> None:
        if 3 in this.rows:
            raise Broken

    asked = [request(engine, rows=rows) for rows in (1, 3, 2)]
    tasks = await crowd.add(*asked)
    engine.hook = fail
    crowd.go()
    one, guilty, two = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(guilty, Broken)
    for which, outcome in ((0, one), (2, two)):
        assert isinstance(outcome, Drawn)
        assert_same(outcome.predictive, alone(asked[which]))
    assert (await crowd.worker.draw(asked[0])).predictive


MEMORY = {
    "of a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "of a CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"
    ),
    "of Python": MemoryError(),
}


@pytest.mark.parametrize("kind", MEMORY)
async def test_a_pass_that_takes_too_much_memory_is_split_by_requests_then_by_draws(
    crowd: Crowd, engine: Hooked, kind: str
) -> None:
    """No pass may have more than 60 rows x draws: of 40 draws each, one row does, two do by halves, seven never."""

    def fail(this: Pass) -> None:
        if sum(this.rows) * this.draws > 60:
            raise MEMORY[kind]

    asked = [request(engine, rows=rows, shift=rows, max_draws=40) for rows in (1, 2, 7, 1)]
    tasks = await crowd.add(*asked)
    engine.hook = fail
    crowd.go()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes.pop(2), OutOfMemory)
    del asked[2]
    for one, outcome in zip(asked, outcomes, strict=True):
        assert isinstance(outcome, Drawn)
        assert outcome.predictive.stop_reason == (StopReason.MAX_DRAWS,) * one.rows
        assert_same(outcome.predictive, alone(one))
    assert crowd.worker.counters.work == 10 + (1 + 2 + 1) * 40


async def test_a_prefix_that_takes_too_much_memory_is_split_by_requests(crowd: Crowd, engine: Hooked) -> None:
    def fail(rows: tuple[int, ...]) -> None:
        if sum(rows) > 4:
            raise MEMORY["of a GPU"]

    engine.prefix_hook = fail
    tasks = await crowd.add(*(request(engine, rows=rows) for rows in (1, 2, 3, 5)))
    crowd.go()
    *fine, guilty = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(guilty, OutOfMemory)
    assert all(isinstance(outcome, Drawn) for outcome in fine)


async def test_a_deadline_behind_one_long_pass_ends_while_the_pass_lasts(
    crowd: Crowd, engine: Hooked, clock: Clock
) -> None:
    [late] = await crowd.add(request(engine, deadline=clock.now + 0.01))
    clock.now += 0.01
    with pytest.raises(DeadlineMissed, match="after 0 draws"):
        await late
    assert not crowd.first.done()
    assert crowd.worker.queued_work == 10


async def test_who_has_drawn_enough_is_answered_by_the_deadline_while_a_long_pass_lasts(
    clock: Clock, engine: Hooked
) -> None:
    device = DeviceWorker(limits(step_work=20), clock)
    device.start()
    gate = Gate()

    def hold(this: Pass) -> None:
        if this.first == 20:
            clock.now += 0.05
            gate(this)

    engine.hook = hold
    asked = request(engine, max_draws=1000, deadline=clock.now + 0.05)
    drawn = await device.draw(asked)
    assert drawn.predictive.stop_reason == (StopReason.DEADLINE,)
    assert_same(drawn.predictive, alone(request(engine, min_draws=20, max_draws=20)))
    assert device.queued_work == 0
    gate.open()
    engine.hook = lambda this: None
    assert await device.draw(request(engine))
    assert [this.first for this in engine.passes] == [0, 20, 0, 20]  # nothing more was drawn for who had left
    device.close()
    assert device.join(30)


async def test_a_thread_that_dies_fails_whom_it_had_and_another_goes_on(
    worker: DeviceWorker, engine: Hooked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "_RESTART_SECONDS", 0.2)

    def die(this: Pass) -> None:
        raise SystemExit

    engine.hook = die
    assert worker.alive
    outcomes = await asyncio.gather(*(worker.draw(request(engine)) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(outcome, WorkerLost) for outcome in outcomes)
    assert not worker.alive
    with pytest.raises(WorkerLost) as caught:
        await worker.draw(request(engine))
    assert caught.value.retry_after == 0.2
    engine.hook = lambda this: None
    await until(lambda: worker.alive)
    assert await worker.draw(request(engine))
    assert worker.queued_work == 0


async def test_a_thread_that_cannot_be_started_is_tried_again(
    worker: DeviceWorker, engine: Hooked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dispatching, "_RESTART_SECONDS", 0.01)
    start, tries = threading.Thread.start, list[str]()

    def fail(thread: threading.Thread) -> None:
        tries.append(thread.name)
        if len(tries) < 3:
            raise RuntimeError("can't start new thread")
        start(thread)

    def die(this: Pass) -> None:
        raise SystemExit

    engine.hook = die
    with monkeypatch.context() as patch:
        patch.setattr(dispatching.threading.Thread, "start", fail)
        with pytest.raises(WorkerLost):
            await worker.draw(request(engine))
        engine.hook = lambda this: None
        await until(lambda: worker.alive)
    assert tries == ["device"] * 3
    assert caplog.text.count("thread not restarted name=device reason=can't start new thread") == 2
    assert await worker.draw(request(engine))


async def test_a_worker_is_lost_after_so_many_deaths_in_a_row_until_it_takes_a_step(
    clock: Clock, engine: Hooked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "_RESTART_SECONDS", 0.0)
    told: list[Report] = []
    device = DeviceWorker(limits(), clock, told.append)
    device.start()

    def die(this: Pass) -> None:
        raise SystemExit

    async def dies() -> None:
        engine.hook = die
        with pytest.raises(WorkerLost):
            await device.draw(request(engine))
        await until(lambda: device.alive)

    async def answers() -> None:
        engine.hook = lambda this: None
        assert await device.draw(request(engine))

    await dies()
    await answers()
    for _ in range(dispatching.MOST_DEATHS):
        assert not device.lost
        await dies()
    assert device.lost
    told.clear()
    await answers()
    await until(lambda: not device.lost)
    await until(lambda: WorkerReport(alive=True) in told)
    device.close()
    assert device.join(30)


async def test_steps_report_what_they_did_and_nothing_twice(clock: Clock, engine: Hooked) -> None:
    told: list[Report] = []
    device = DeviceWorker(limits(step_work=400), clock, told.append)
    device.start()

    def take(this: Pass) -> None:
        clock.now += 0.5
        if 3 in this.rows and len(this.rows) > 1:
            raise Broken

    engine.hook = take
    await asyncio.gather(*(device.draw(request(engine, rows=rows, max_draws=40)) for rows in (1, 2, 3)))
    device.close()
    assert device.join(30)  # an outcome may cross before its step has ended
    steps = [report for report in told if isinstance(report, StepReport)]
    passes = [report for report in told if isinstance(report, PassReport)]
    assert len(steps) == device.counters.steps
    assert len(passes) == device.counters.passes
    assert sum(step.prefixes for step in steps) == device.counters.prefixes
    assert sum(each.rows * each.draws for each in passes) == device.counters.work == 6 * 40
    assert {(each.model, each.version, each.monte_carlo) for each in passes} == {("mlp", 1, True)}
    assert {each.seconds for each in passes} == {0.5}
    assert all(0 < step.fill <= 1 and step.seconds >= 0.5 for step in steps)
    assert steps[-1].waiting == 0


async def test_who_is_done_early_does_not_wait_for_the_rest_of_a_long_step(clock: Clock, engine: Hooked) -> None:
    device = DeviceWorker(limits(), clock)
    device.start()
    first = engine.hook = Gate()
    busy = asyncio.create_task(device.draw(request(engine, max_draws=10)))
    await until(first.has_entered)
    quick, slow = (asyncio.create_task(device.draw(request(engine, seed=seed))) for seed in (1, 2))
    await settle()
    second, passes = Gate(), iter(range(100))

    def hold(this: Pass) -> None:
        clock.now += 1.0
        if next(passes) == 1:
            second(this)

    engine.hook = hold
    first.open()
    await busy
    await quick  # whose pass was the first of the step that now holds `slow`
    assert not slow.done()
    second.open()
    await slow
    device.close()
    assert device.join(30)


async def test_a_failure_that_passes_fails_nobody(worker: DeviceWorker, engine: Hooked) -> None:
    failures = [Broken()]

    def fail(this: object) -> None:
        if failures:
            raise failures.pop()

    engine.hook = fail
    await worker.draw(request(engine))
    failures.append(Broken())
    engine.hook, engine.prefix_hook = lambda this: None, fail
    await worker.draw(request(engine))


async def test_a_prefix_that_fails_fails_only_who_is_at_fault(crowd: Crowd, engine: Hooked) -> None:
    def fail(rows: tuple[int, ...]) -> None:
        if 3 in rows:
            raise Broken

    engine.prefix_hook = fail
    tasks = await crowd.add(*(request(engine, rows=rows) for rows in (1, 3, 2)))
    crowd.go()
    one, guilty, two = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(guilty, Broken)
    assert isinstance(one, Drawn)
    assert isinstance(two, Drawn)


async def test_an_answer_that_cannot_be_made_fails_alone(
    crowd: Crowd, engine: Hooked, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = engine.finish

    def fail(runs: Sequence[Run], reason: StopReason = StopReason.MAX_DRAWS) -> list[Predictive]:
        if any(run.rows == 3 for run in runs):
            raise Broken
        return finish(runs, reason)

    monkeypatch.setattr(engine, "finish", fail)
    tasks = await crowd.add(request(engine, rows=3), request(engine, rows=2))
    crowd.go()
    guilty, fine = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(guilty, Broken)
    assert isinstance(fine, Drawn)


async def test_the_thread_outlives_a_failure_of_its_own(
    worker: DeviceWorker, engine: Hooked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise Broken

    with monkeypatch.context() as patch:
        patch.setattr(stepping, "schedule", fail)
        with pytest.raises(Broken):
            await worker.draw(request(engine))
    assert await worker.draw(request(engine))


async def test_results_of_a_step_cross_to_the_loop_at_once(
    crowd: Crowd, engine: Hooked, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    crossings: list[str] = []
    real = loop.call_soon_threadsafe

    def counted(*args: object, **kwargs: object) -> asyncio.Handle:
        if threading.current_thread().name == "device":
            crossings.append("results")
        return real(*args, **kwargs)  # type: ignore[arg-type]

    tasks = await crowd.add(*(request(engine, seed=seed) for seed in range(5)))
    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    crowd.go()
    await asyncio.gather(*tasks)
    assert crossings == ["results"] * 2  # the held pass, and the step of the five


async def test_a_full_queue_refuses_and_says_when_to_come_back(clock: Clock, engine: Hooked) -> None:
    device = DeviceWorker(limits(queue_work=100), clock)
    device.start()
    gate = engine.hook = Gate()
    first = asyncio.create_task(device.draw(request(engine, max_draws=80)))
    await until(gate.has_entered)
    with pytest.raises(QueueFull, match="80 of 100") as caught:
        await device.draw(request(engine, max_draws=40))
    assert caught.value.retry_after > 0
    first.cancel()
    await settle()
    again = asyncio.create_task(device.draw(request(engine, max_draws=40)))  # what left gives room at once
    gate.open()
    assert (await again).predictive.draws[0] == 40
    device.close()
    assert device.join(30)


async def test_closing_lets_go_of_everybody_even_while_a_pass_lasts(
    worker: DeviceWorker, crowd: Crowd, engine: Hooked
) -> None:
    tasks = await crowd.add(request(engine), request(engine))
    worker.close()
    for task in (crowd.first, *tasks):
        with pytest.raises(Draining):
            await task
    with pytest.raises(Draining):
        await worker.draw(request(engine))
    crowd.go()
    assert worker.join(30)
    assert len(engine.passes) == 1


async def test_a_slow_network_gets_small_steps(clock: Clock, engine: Hooked) -> None:
    """A row and draw takes .01 s and a step should take .5 s: 50 of them."""
    device = DeviceWorker(limits(step_seconds=0.5), clock)
    device.start()
    engine.hook = lambda this: setattr(clock, "now", clock.now + 0.01 * sum(this.rows) * this.draws)
    await device.draw(request(engine, max_draws=1000))
    assert {this.draws for this in engine.passes[1:-1]} == {50}
    device.close()
    assert device.join(30)


async def test_every_answer_of_a_random_crowd_is_its_own(clock: Clock, engine: Hooked) -> None:
    """Sixty requests of random sizes and rules, half watched, a third cancelled at random moments, in small steps."""
    chance = random.Random(5)
    device = DeviceWorker(limits(step_work=100), clock)
    device.start()
    rules = [Stopping(), Stopping(StoppingRule.TOLERANCE, target=0.01), Stopping(StoppingRule.DECISION)]
    asked = [
        request(
            engine,
            rows=chance.randint(1, 9),
            shift=i,
            seed=i % 2,
            max_draws=chance.choice([10, 20, 50, 90]),
            stopping=chance.choice(rules),
        )
        for i in range(60)
    ]

    async def watch(one: Request) -> Drawn:
        return [drawn async for drawn in device.watch(one)][-1]

    async def call(one: Request) -> Drawn | None:
        task = asyncio.create_task(watch(one) if chance.random() < 0.5 else device.draw(one))
        await asyncio.sleep(chance.random() * 0.05)
        if chance.random() < 0.3:
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            return None

    outcomes = await asyncio.gather(*(call(one) for one in asked))
    for one, outcome in zip(asked, outcomes, strict=True):
        if outcome is not None:
            assert_same(outcome.predictive, alone(one))
    assert sum(outcome is not None for outcome in outcomes) >= 30
    assert device.queued_work == 0
    device.close()
    assert device.join(30)


async def test_whoever_watches_sees_more_and_more_draws(worker: DeviceWorker, engine: Hooked) -> None:
    asked = request(engine, rows=3, max_draws=160)
    seen = [drawn.predictive async for drawn in worker.watch(asked)]
    draws = [int(each.draws[0]) for each in seen]
    assert draws == sorted(set(draws))
    assert set(draws) <= {10, 20, 30, 40, 60, 80, 120, 160}
    assert {reason for each in seen[:-1] for reason in each.stop_reason} <= {StopReason.UNFINISHED}
    assert_same(seen[-1], alone(asked))
    for each in seen[:-1]:
        assert_same(each, alone(request(engine, rows=3, max_draws=int(each.draws[0]))))


@pytest.mark.parametrize("asked", [
    {},
    {"min_draws": 100},
    {"stopping": Stopping(StoppingRule.TOLERANCE, Quantity.PREDICTIVE_ENTROPY, 0.02)},
    {"stopping": Stopping(StoppingRule.TOLERANCE, target=0.02), "min_draws": 60},
])  # fmt: skip
async def test_whoever_watches_hears_of_the_first_group_whatever_the_rule(
    worker: DeviceWorker, engine: Hooked, asked: dict[str, Any]
) -> None:
    one, gate = request(engine, rows=3, max_draws=160, **asked), Gate()
    engine.hook = lambda this: gate(this) if this.first else None  # all passes but the first
    async with contextlib.aclosing(worker.watch(one)) as watching:
        first = (await anext(watching)).predictive
        gate.open()
        last = [drawn.predictive async for drawn in watching][-1]
    assert set(first.stop_reason) == {StopReason.UNFINISHED}
    assert_same(first, alone(request(engine, rows=3, max_draws=engine.masks.group_size)))
    assert_same(last, alone(one))
    assert last.stop_reason == alone(one).stop_reason


async def test_whoever_watches_slowly_misses_what_is_out_of_date(worker: DeviceWorker, engine: Hooked) -> None:
    watching = worker.watch(request(engine, max_draws=160))
    async with contextlib.aclosing(watching):
        await anext(watching)
        await until(lambda: len(engine.passes) == 8)
        await asyncio.sleep(0.05)
        last = await anext(watching)
        assert set(last.predictive.stop_reason) == {StopReason.MAX_DRAWS}


async def test_leaving_a_watch_costs_no_further_pass(clock: Clock, engine: Hooked) -> None:
    device = DeviceWorker(limits(step_work=10), clock)
    device.start()
    watching = device.watch(request(engine, max_draws=1000))
    async with contextlib.aclosing(watching):
        await anext(watching)
        gate = engine.hook = Gate()
        await until(gate.has_entered)
    gate.open()
    passes = len(engine.passes)
    await device.draw(request(engine, shift=1, max_draws=10))
    assert len(engine.passes) == passes + 1
    assert device.queued_work == 0
    device.close()
    assert device.join(30)


async def test_rows_that_are_settled_cost_no_work(worker: DeviceWorker, engine: Hooked) -> None:
    asked = request(engine, rows=9, max_draws=160, stopping=Stopping(StoppingRule.TOLERANCE, target=0.003))
    drawn = await worker.draw(asked)
    assert_same(drawn.predictive, alone(asked))
    assert worker.counters.work == drawn.predictive.draws.sum() < 9 * 160
