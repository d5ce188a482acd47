"""Under overload: draws are shed before requests, in a world whose clock moves by what passes take."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from dubito_models.predictive import StopReason
from dubito_service.errors import DeadlineMissed, QueueFull
from dubito_service.scheduling.drawing import Drawn, Request
from dubito_service.scheduling.scheduler import Priority
from dubito_service.scheduling.worker import DeviceWorker

from ..conftest import Clock
from ..hooked import Gate, Hooked, Pass, limits, request, settle, until

UNIT = 1 / 1600  # seconds of a row and draw: ten requests of 160 draws are what a second holds
MOST, LEAST = 160, 10


@dataclass
class Call:
    """A request that comes at a time, and what became of it when."""

    when: float
    asked: Request
    ended: float = 0.0
    outcome: Drawn | Exception | None = None


@dataclass
class World:
    """Calls that come while passes take their time: the clock stands still but for passes and idleness."""

    clock: Clock
    worker: DeviceWorker
    loop: asyncio.AbstractEventLoop
    coming: list[Call]
    overhead: float = 0.0  # seconds of every pass, whatever it holds
    flying: set[asyncio.Task[None]] = field(default_factory=set)

    def during(self, this: Pass) -> None:
        """What a pass takes; called in the device thread, which waits until the loop has taken note."""
        asyncio.run_coroutine_threadsafe(self._settle(), self.loop).result(60)
        self.clock.now += self.overhead + UNIT * sum(this.rows) * this.draws
        asyncio.run_coroutine_threadsafe(self._arrive(), self.loop).result(60)

    async def live(self) -> None:
        while self.coming or self.flying:
            if not self.flying:
                self.clock.now = max(self.clock.now, self.coming[0].when)
                await self._arrive()
            if self.flying:
                await asyncio.wait(self.flying, return_when=asyncio.FIRST_COMPLETED)

    async def _settle(self) -> None:
        for _ in range(4):
            await asyncio.sleep(0)

    async def _arrive(self) -> None:
        while self.coming and self.coming[0].when <= self.clock.now:
            task = asyncio.create_task(self._answer(self.coming.pop(0)))
            self.flying.add(task)
            task.add_done_callback(self.flying.discard)
        await self._settle()

    async def _answer(self, call: Call) -> None:
        call.when = self.clock.now
        try:
            call.outcome = await self.worker.draw(call.asked)
        except (QueueFull, DeadlineMissed) as error:
            call.outcome = error
        call.ended = self.clock.now


def draws(call: Call) -> int:
    assert isinstance(call.outcome, Drawn)
    return int(call.outcome.predictive.draws[0])


async def test_at_three_times_its_capacity_answers_meet_deadlines_refusals_come_at_once_and_full_draws_return(
    clock: Clock, engine: Hooked
) -> None:
    """Twenty seconds at three times the capacity, every tenth a replay that cannot be shortened, then ten at half."""
    worker = DeviceWorker(limits(overload_seconds=0.5, step_seconds=0.02, reply_seconds=0.02), clock)
    worker.start()
    start, allowed = clock.now, 2.0
    times = [start + i / 30 for i in range(600)] + [start + 20 + i / 5 for i in range(50)]
    calls = [
        Call(
            when,
            request(
                engine,
                shift=number,
                deadline=when + allowed,
                min_draws=MOST if number % 3 == 0 else LEAST,
                max_draws=MOST,
                priority=Priority.LOW if number % 7 == 1 and number % 3 else Priority.NORMAL,
            ),
        )
        for number, when in enumerate(times)
    ]
    world = World(clock, worker, asyncio.get_running_loop(), list(calls))
    engine.hook = world.during
    await world.live()

    answered = [call for call in calls if isinstance(call.outcome, Drawn)]
    refused = [call for call in calls if isinstance(call.outcome, QueueFull)]
    late = [call for call in calls if isinstance(call.outcome, DeadlineMissed)]
    assert len(answered) + len(refused) + len(late) == len(calls)
    crowded_out = [call for call in refused if call.ended > call.when]  # by priorities that came later, or starved
    assert len(late) + len(crowded_out) <= 0.01 * len(calls)
    assert refused
    assert all(call.ended <= (call.asked.deadline or 0.0) for call in (*answered, *refused))
    # The least that would do is an eighth more than it can: so many have to be refused, whatever their size.
    assert len(answered) >= 0.88 * len(calls)
    for call in answered:
        [reason] = call.outcome.predictive.stop_reason  # type: ignore[union-attr]
        assert draws(call) == MOST or reason in (StopReason.LOAD, StopReason.DEADLINE)
        assert draws(call) >= call.asked.plan.min_draws
        if draws(call) < MOST:
            assert call.outcome.predictive.standard_error is not None  # type: ignore[union-attr]
    assert sum(draws(call) < MOST for call in answered) > 300
    assert worker.counters.shed > 0
    assert all(draws(call) == MOST for call in calls if call.when > start + 22)  # two seconds after the load fell
    worker.close()
    assert worker.join(30)


async def test_overload_by_requests_that_share_no_pass_is_noticed_and_refused(clock: Clock, engine: Hooked) -> None:
    """Each with a seed of its own, ten seconds at three times the capacity: the cost is the passes', not the draws'."""
    worker = DeviceWorker(limits(overload_seconds=0.5, step_seconds=0.05, reply_seconds=0.02), clock)
    worker.start()
    start, overhead = clock.now, 0.02
    capacity = 1 / (overhead + UNIT * LEAST)
    calls = [
        Call(when, request(engine, shift=i, seed=i, deadline=when + 1.0, min_draws=LEAST, max_draws=MOST))
        for i, when in enumerate(start + i / (3 * capacity) for i in range(int(30 * capacity)))
    ]
    world = World(clock, worker, asyncio.get_running_loop(), list(calls), overhead)
    engine.hook = world.during
    await world.live()

    settled = [call for call in calls if call.when > start + 3]  # by then it has noticed
    late = [call for call in settled if isinstance(call.outcome, DeadlineMissed)]
    refused = [call for call in settled if isinstance(call.outcome, QueueFull)]
    answered = [call for call in calls if isinstance(call.outcome, Drawn)]
    assert len(late) <= 0.05 * len(settled)
    assert len(refused) >= 0.5 * len(settled)
    assert all(call.ended == call.when for call in refused)
    # The timer that lets go of whoever is behind a pass runs by another clock: so within a step of it.
    assert all(call.ended <= (call.asked.deadline or 0.0) + 0.06 for call in answered)
    assert len(answered) >= 0.9 * capacity * (world.clock.now - start)
    worker.close()
    assert worker.join(30)


async def test_whoever_is_refused_for_want_of_time_counts_as_load_for_a_second(clock: Clock, engine: Hooked) -> None:
    """Nobody is refused while others get more draws than they need."""
    worker = DeviceWorker(limits(overload_seconds=0.5), clock)
    worker.start()
    world = World(clock, worker, asyncio.get_running_loop(), [])
    asked = {"min_draws": 40, "max_draws": 160}

    async def drawn_beside(refused: bool) -> Drawn:
        first = request(engine, rows=9, min_draws=10, max_draws=70, priority=Priority.HIGH)
        gate = Gate()
        engine.hook = lambda this: gate(this) or world.during(this)
        busy = asyncio.create_task(worker.draw(first))
        await until(gate.has_entered)
        late = request(engine, rows=9, min_draws=160, max_draws=160, deadline=clock.now + 0.91, seed=1)
        task = asyncio.create_task(worker.draw(request(engine, **asked)))
        await settle()
        if refused:
            with pytest.raises(QueueFull):
                await worker.draw(late)
        gate.open()
        await busy
        return await task

    engine.hook = world.during
    await worker.draw(request(engine, rows=9, max_draws=160))
    assert (await drawn_beside(False)).predictive.draws.tolist() == [160]
    assert (await drawn_beside(True)).predictive.stop_reason == (StopReason.LOAD,)
    clock.now += 3
    assert (await drawn_beside(False)).predictive.draws.tolist() == [160]
    worker.close()
    assert worker.join(30)


async def test_one_request_alone_is_never_shortened_however_long_it_takes(clock: Clock, engine: Hooked) -> None:
    worker = DeviceWorker(limits(overload_seconds=0.5), clock)
    worker.start()
    world = World(clock, worker, asyncio.get_running_loop(), [])
    engine.hook = world.during
    await worker.draw(request(engine, max_draws=10))
    drawn = await worker.draw(request(engine, rows=9, max_draws=2000))
    assert drawn.predictive.draws.tolist() == [2000] * 9
    worker.close()
    assert worker.join(30)


async def test_one_large_request_that_is_refused_shortens_nobody(clock: Clock, engine: Hooked) -> None:
    worker = DeviceWorker(limits(overload_seconds=0.5, step_seconds=0.05), clock)
    worker.start()
    world = World(clock, worker, asyncio.get_running_loop(), [])
    engine.hook = world.during
    await worker.draw(request(engine, max_draws=160))
    gate = Gate()
    engine.hook = lambda this: gate(this) or world.during(this)
    first = asyncio.create_task(worker.draw(request(engine, min_draws=10, max_draws=160, priority=Priority.HIGH)))
    await until(gate.has_entered)
    large = request(engine, rows=100, min_draws=10, max_draws=160, deadline=clock.now + 0.63, seed=1)
    with pytest.raises(QueueFull):
        await worker.draw(large)
    gate.open()
    assert (await first).predictive.draws.tolist() == [160]
    worker.close()
    assert worker.join(30)


@pytest.mark.parametrize("least", [10, 120, 160])
async def test_what_is_shed_is_honest_and_never_below_the_least(clock: Clock, engine: Hooked, least: int) -> None:
    worker = DeviceWorker(limits(overload_seconds=0.1), clock)
    worker.start()
    world = World(clock, worker, asyncio.get_running_loop(), [])
    engine.hook = world.during
    await worker.draw(request(engine, max_draws=10))
    asked = [request(engine, shift=i, seed=i, min_draws=least, max_draws=160) for i in range(20)]
    answers = await asyncio.gather(*(worker.draw(each) for each in asked))
    fewest = min(int(drawn.predictive.draws[0]) for drawn in answers)
    assert fewest == least
    for drawn in answers:
        reason = StopReason.MAX_DRAWS if drawn.predictive.draws[0] == 160 else StopReason.LOAD
        assert drawn.predictive.stop_reason == (reason,)
    worker.close()
    assert worker.join(30)


async def test_whoever_higher_priorities_will_overtake_is_refused_at_once_and_not_let_in_to_expire(
    clock: Clock, engine: Hooked
) -> None:
    """Three times the capacity by requests that share no pass: the highest priority alone is three quarters of it."""
    worker = DeviceWorker(limits(overload_seconds=0.5, step_seconds=0.05, reply_seconds=0.02), clock)
    worker.start()
    start, overhead = clock.now, 0.02
    capacity = 1 / (overhead + UNIT * LEAST)
    ranks = (Priority.NORMAL, Priority.HIGH, Priority.LOW, Priority.NORMAL)
    calls = [
        Call(
            when,
            request(
                engine, shift=i, seed=i, deadline=when + 1.0, min_draws=LEAST, max_draws=MOST, priority=ranks[i * 7 % 4]
            ),
        )
        for i, when in enumerate(start + i / (3 * capacity) for i in range(int(45 * capacity)))
    ]
    world = World(clock, worker, asyncio.get_running_loop(), list(calls), overhead)
    engine.hook = world.during
    await world.live()

    settled = [call for call in calls if call.when > start + 4]  # by then it has noticed
    late = [call for call in settled if isinstance(call.outcome, DeadlineMissed)]
    answered = [call for call in calls if isinstance(call.outcome, Drawn)]
    by_rank = {
        rank: sum(isinstance(call.outcome, Drawn) for call in settled if call.asked.priority is rank)
        for rank in Priority
    }
    crowded_out = [call for call in settled if isinstance(call.outcome, QueueFull) and call.ended > call.when]
    assert len(late) <= 0.01 * len(settled)
    assert len(crowded_out) <= 0.05 * len(settled)
    assert by_rank[Priority.HIGH] >= 0.9 * sum(call.asked.priority is Priority.HIGH for call in settled)
    assert by_rank[Priority.NORMAL] > by_rank[Priority.LOW]
    assert len(answered) >= 0.9 * capacity * (world.clock.now - start)
    worker.close()
    assert worker.join(30)
