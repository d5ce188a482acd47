"""Requests of many rows are cut: whoever waits has a turn between their parts, and their answers are of one piece."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import numpy as np
import pytest

from dubito_models.engine import Engine
from dubito_models.predictive import Classification, Predictive, StopReason
from dubito_models.stopping import Stopping, StoppingRule
from dubito_models.thinning import MaskScope
from dubito_service.errors import DeadlineMissed
from dubito_service.reports import PassReport, Report
from dubito_service.scheduling.drawing import Drawn, Request
from dubito_service.scheduling.scheduler import Priority
from dubito_service.scheduling.worker import DeviceWorker

from ..conftest import Clock
from ..hooked import Gate, Hooked, limits, request

ROOM = 80  # rows x draws of a step: eight rows with a group of ten


class Broken(Exception):
    """What a pass raises in these tests."""


@contextlib.asynccontextmanager
async def cutting(clock: Clock, told: list[Report] | None = None, **changes: float) -> AsyncIterator[DeviceWorker]:
    """A worker that cuts at eight rows; the clock stands still, so that nothing is known of speeds but this."""
    device = DeviceWorker(limits(step_work=ROOM, **changes), clock, [].append if told is None else told.append)
    device.start()
    yield device
    device.close()
    assert device.join(30)


def whole(asked: Request) -> Predictive:
    engine = asked.engines[0]
    plain = Engine(engine.program, engine.masks, engine.head, engine.defaults)
    return plain.predict(asked.inputs, asked.plan.spec)


def assert_same(one: Predictive, other: Predictive) -> None:
    assert isinstance(one.answer, Classification)
    assert isinstance(other.answer, Classification)
    assert one.draws.tolist() == other.draws.tolist()
    assert one.stop_reason == other.stop_reason
    for name in ("probabilities", "mutual_information", "standard_deviation"):
        np.testing.assert_allclose(getattr(one.answer, name), getattr(other.answer, name), rtol=0, atol=1e-6)
    assert (one.raw_draws is None) == (other.raw_draws is None)
    if one.raw_draws is not None and other.raw_draws is not None:
        np.testing.assert_allclose(one.raw_draws, other.raw_draws, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"raw_draws": True},
        {"scope": MaskScope.ROW},
        {"scope": MaskScope.ROW, "seed": 5, "raw_draws": True},
        {"max_draws": 160, "stopping": Stopping(StoppingRule.TOLERANCE, target=0.01), "raw_draws": True},
    ],
    ids=["plain", "raw", "masks of rows", "raw, masks of rows", "with a rule"],
)
async def test_an_answer_in_parts_is_that_of_the_whole(spec: dict[str, object], clock: Clock, engine: Hooked) -> None:
    asked = request(engine, rows=37, **{"max_draws": 40, **spec})
    async with cutting(clock) as device:
        drawn = await device.draw(asked)
    assert max(sum(this.rows) for this in engine.passes) == 8
    assert_same(drawn.predictive, whole(asked))


async def test_rows_that_are_asked_about_together_are_not_cut(clock: Clock, engine: Hooked) -> None:
    async with cutting(clock) as device:
        drawn = await device.draw(request(engine, rows=37, max_draws=40, joint=True))
    assert {this.rows for this in engine.passes} == {(37,)}
    assert drawn.predictive.joint_covariance is not None


async def test_between_the_parts_of_a_large_request_of_low_priority_others_are_answered(
    clock: Clock, engine: Hooked
) -> None:
    async with cutting(clock) as device:
        gate = engine.hook = Gate()
        large = asyncio.create_task(device.draw(request(engine, rows=800, max_draws=10, priority=Priority.LOW)))
        while not gate.has_entered():
            await asyncio.sleep(0.001)
        small = asyncio.create_task(device.draw(request(engine, max_draws=10, priority=Priority.HIGH, seed=1)))
        await asyncio.sleep(0.01)
        gate.open()
        await small
        assert engine.passes[1].rows == (1,)
        assert not large.done()
        await large


async def test_who_runs_the_prefix_takes_no_more_rows_than_a_step_has_room_for(clock: Clock, engine: Hooked) -> None:
    """Before the first draw a row takes as long as eight draws of it, as a first request has shown."""

    def prefix(rows: tuple[int, ...]) -> None:
        clock.now += 0.04 * sum(rows)

    engine.prefix_hook = prefix
    engine.hook = lambda this: setattr(clock, "now", clock.now + 0.005 * sum(this.rows) * this.draws)
    async with cutting(clock, step_seconds=0.4) as device:
        await device.draw(request(engine, rows=8, max_draws=40))
        del engine.prefixes[:]
        small = [device.draw(request(engine, shift=shift, max_draws=10)) for shift in range(20)]
        await asyncio.gather(device.draw(request(engine, rows=40, max_draws=10)), *small)
    assert sum(map(sum, engine.prefixes)) == 60
    assert max(map(sum, engine.prefixes)) == 4  # .4 s a step; .09 s a row with its first group


async def test_a_part_that_fails_fails_its_request_and_no_other(clock: Clock, engine: Hooked) -> None:
    def take(this: object) -> None:
        if getattr(this, "rows", None) == (5,):
            raise Broken

    engine.hook = take
    async with cutting(clock) as device:
        bad = device.draw(request(engine, rows=37, max_draws=40))  # the last part has five rows
        good = device.draw(request(engine, rows=16, max_draws=40, seed=3))
        found = await asyncio.gather(bad, good, return_exceptions=True)
        assert isinstance(found[0], Broken)
        assert isinstance(found[1], Drawn)
        assert device.queued_work == 0


async def test_a_cancelled_request_takes_all_its_parts_with_it(clock: Clock, engine: Hooked) -> None:
    async with cutting(clock) as device:
        gate = engine.hook = Gate()
        task = asyncio.create_task(device.draw(request(engine, rows=80, max_draws=1000)))
        while not gate.has_entered():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open()
        await device.draw(request(engine, shift=1, max_draws=10))
        assert len(engine.passes) == 2
        assert device.queued_work == device.load == 0


async def test_near_its_deadline_all_parts_answer_with_what_they_have(clock: Clock, engine: Hooked) -> None:
    engine.hook = lambda this: setattr(clock, "now", clock.now + 0.01 * sum(this.rows) * this.draws)
    async with cutting(clock, step_seconds=0.8) as device:
        await device.draw(request(engine, rows=8, max_draws=10))
        drawn = await device.draw(request(engine, rows=16, max_draws=10_000, deadline=clock.now + 10.0))
    assert set(drawn.predictive.stop_reason) == {StopReason.DEADLINE}
    draws = drawn.predictive.draws
    assert 40 <= draws.min() <= draws.max() <= draws.min() + 10  # parts take turns: no row is far behind


async def test_what_cannot_be_answered_in_time_is_refused_by_all_its_rows_and_not_those_of_a_part(
    clock: Clock, engine: Hooked
) -> None:
    engine.hook = lambda this: setattr(clock, "now", clock.now + 0.01 * sum(this.rows) * this.draws)
    async with cutting(clock, step_seconds=0.8) as device:
        await device.draw(request(engine, rows=8, max_draws=10))
        passes = len(engine.passes)
        with pytest.raises(DeadlineMissed):  # ten parts of .8 s
            await device.draw(request(engine, rows=80, max_draws=10, deadline=clock.now + 4.0))
        assert len(engine.passes) == passes


async def test_a_request_that_is_too_slow_for_its_deadline_is_not_crowded_out_by_its_own_parts(
    clock: Clock, engine: Hooked
) -> None:
    """It was let in by what a first request took; then every pass takes ten times as long."""
    slow = [1.0]
    engine.hook = lambda this: setattr(clock, "now", clock.now + slow[0] * 0.01 * sum(this.rows) * this.draws)
    async with cutting(clock, step_seconds=0.8) as device:
        await device.draw(request(engine, rows=8, max_draws=10))
        slow[0] = 10.0
        with pytest.raises(DeadlineMissed):
            await device.draw(request(engine, rows=80, max_draws=10, deadline=clock.now + 10.0))


async def test_a_request_alone_is_not_shed_for_its_own_parts(clock: Clock, engine: Hooked) -> None:
    engine.hook = lambda this: setattr(clock, "now", clock.now + 0.01 * sum(this.rows) * this.draws)
    async with cutting(clock, step_seconds=0.8, overload_seconds=1.0) as device:
        await device.draw(request(engine, rows=8, max_draws=10))
        drawn = await device.draw(request(engine, rows=80, max_draws=40))
    assert set(drawn.predictive.draws) == {40}


async def test_one_who_watches_sees_all_rows_get_better(clock: Clock, engine: Hooked) -> None:
    asked = request(engine, rows=37, max_draws=160)
    async with cutting(clock) as device:
        seen = [drawn.predictive async for drawn in device.watch(asked)]
    assert all(len(each.draws) == 37 for each in seen)
    assert all(StopReason.UNFINISHED in each.stop_reason for each in seen[:-1])
    assert (np.diff([each.draws.min() for each in seen]) > 0).all()
    assert_same(seen[-1], whole(asked))


async def test_reports_count_requests_and_not_their_parts(clock: Clock, engine: Hooked) -> None:
    told: list[Report] = []
    async with cutting(clock, told) as device:
        await asyncio.gather(*(device.draw(request(engine, rows=rows, max_draws=10)) for rows in (9, 1)))
    passes = [report for report in told if isinstance(report, PassReport)]
    assert sum(report.rows for report in passes) == 10
    assert all(report.requests <= 2 for report in passes)


def test_parts_have_all_rows_in_their_order(engine: Hooked) -> None:
    asked = request(engine, rows=10)
    parts = asked.cut(4)
    assert [(part.first_row, part.rows) for part in parts] == [(0, 4), (4, 4), (8, 2)]
    assert np.concatenate([part.inputs["input"].numpy() for part in parts]).tolist() == asked.inputs["input"].tolist()
    assert sum(part.work for part in parts) == asked.work
    assert asked.cut(10) == [asked]
