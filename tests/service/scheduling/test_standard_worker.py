"""The standard path: calls share runs, and none can fail, delay or hang another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from dubito_models.package import ModelVersion
from dubito_models.standard import Evaluation
from dubito_service.errors import DeadlineMissed, Draining, OutOfMemory, QueueFull, WorkerLost
from dubito_service.reports import PassReport, Report
from dubito_service.scheduling import dispatching
from dubito_service.scheduling.scheduler import Priority
from dubito_service.scheduling.standard_worker import Evaluated, EvaluationRequest, StandardLimits, StandardWorker

from ..conftest import Clock
from ..hooked import settle, until


class Broken(Exception):
    """What a run raises in these tests."""


class Watched(ModelVersion):
    """A version whose standard path waits for a gate and can be broken; `runs`: the rows of each."""

    def __init__(self, version: ModelVersion) -> None:
        self.__dict__.update(version.__dict__)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.runs: list[int] = []
        self.hook: Callable[[int], None] = lambda rows: None

    def evaluate_tensors(self, tensors: Mapping[str, Tensor]) -> Evaluation:
        rows = next(iter(tensors.values())).shape[0]
        self.runs.append(rows)
        self.entered.set()
        assert self.gate.wait(60)
        self.hook(rows)
        return super().evaluate_tensors(tensors)


@pytest.fixture
def version(packed: Callable[[str], ModelVersion]) -> Watched:
    return Watched(packed("mlp"))


@pytest.fixture
def told() -> list[Report]:
    return []


@pytest.fixture
async def standard(clock: Clock, told: list[Report]) -> AsyncIterator[StandardWorker]:
    worker = StandardWorker(StandardLimits(queue_rows=140, caller_share=0.4), clock, told.append)
    worker.start()
    yield worker
    worker.close()
    assert worker.join(30)


def asking(version: ModelVersion, rows: int = 1, shift: float = 0.0, **more: object) -> EvaluationRequest:
    inputs = {"input": shift + torch.arange(rows * 6, dtype=torch.float32).reshape(rows, 6) / 10}
    return EvaluationRequest(version, inputs, rows, **more)  # type: ignore[arg-type]


async def behind(
    standard: StandardWorker, version: Watched, *asked: EvaluationRequest
) -> tuple[asyncio.Task[Evaluated], list[asyncio.Task[Evaluated]]]:
    """Let requests gather behind a run that is held up."""
    version.gate.clear()
    version.entered.clear()
    first = asyncio.create_task(standard.evaluate(asking(version, caller="first")))
    await until(version.entered.is_set)
    tasks = [asyncio.create_task(standard.evaluate(each)) for each in asked]
    await settle()
    return first, tasks


def assert_own(asked: EvaluationRequest, done: object) -> None:
    """Hold an answer to what the request gets alone."""
    assert isinstance(done, Evaluated)
    alone = ModelVersion.evaluate_tensors(asked.version, asked.inputs)
    assert done.evaluation.output.shape == alone.output.shape
    np.testing.assert_allclose(done.evaluation.output, alone.output, rtol=0, atol=1e-5)
    assert done.evaluation.label is not None
    assert alone.label is not None
    assert done.evaluation.label.tolist() == alone.label.tolist()


async def test_calls_that_wait_share_a_run_and_each_gets_its_own_rows(
    standard: StandardWorker, version: Watched, told: list[Report], clock: Clock
) -> None:
    asked = [asking(version, rows, shift=rows) for rows in (1, 2, 3, 4)]
    first, tasks = await behind(standard, version, *asked)
    version.gate.set()
    await first
    for one, task in zip(asked, tasks, strict=True):
        assert_own(one, await task)
    assert version.runs == [1, 10]
    passes = [report for report in told if isinstance(report, PassReport)]
    assert [(each.requests, each.rows, each.draws, each.monte_carlo) for each in passes] == [
        (1, 1, 1, False),
        (4, 10, 1, False),
    ]
    assert standard.queued_rows == 0


async def test_a_run_is_told_of_before_its_answers_leave_though_its_step_goes_on(
    standard: StandardWorker, version: Watched, told: list[Report]
) -> None:
    other = Watched(version)
    other.gate.clear()
    first, [early, late] = await behind(standard, version, asking(version, 2), asking(other, 3))
    version.gate.set()
    await first
    await early
    assert [report.rows for report in told if isinstance(report, PassReport)] == [1, 2]
    other.gate.set()
    await late
    assert [report.rows for report in told if isinstance(report, PassReport)] == [1, 2, 3]


async def test_a_run_that_fails_fails_only_who_is_at_fault(standard: StandardWorker, version: Watched) -> None:
    asked = [asking(version, rows) for rows in (1, 5, 2)]
    first, tasks = await behind(standard, version, *asked)

    def fail(rows: int) -> None:
        if rows in (5, 8):
            raise Broken

    version.hook = fail
    version.gate.set()
    one, guilty, two = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(guilty, Broken)
    assert_own(asked[0], one)
    assert_own(asked[2], two)
    await first


async def test_a_run_that_takes_too_much_memory_is_split(standard: StandardWorker, version: Watched) -> None:
    asked = [asking(version, rows) for rows in (1, 2, 3, 7)]
    first, tasks = await behind(standard, version, *asked)

    def fail(rows: int) -> None:
        if rows > 4:
            raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for 4 bytes")

    version.hook = fail
    version.gate.set()
    *fine, guilty = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(guilty, OutOfMemory)
    for one, outcome in zip(asked[:3], fine, strict=True):
        assert_own(one, outcome)
    await first


async def test_who_has_left_takes_part_in_no_run_and_the_others_are_unaffected(
    standard: StandardWorker, version: Watched
) -> None:
    asked = [asking(version, rows) for rows in (1, 2, 3)]
    first, tasks = await behind(standard, version, *asked)
    tasks[1].cancel()
    await settle()
    version.gate.set()
    outcomes = await asyncio.gather(first, *tasks, return_exceptions=True)
    assert version.runs == [1, 4]
    assert isinstance(outcomes[2], asyncio.CancelledError)
    assert_own(asked[0], outcomes[1])
    assert_own(asked[2], outcomes[3])


async def test_a_deadline_ends_while_another_run_lasts_and_costs_no_run(
    standard: StandardWorker, version: Watched, clock: Clock
) -> None:
    late, fine = asking(version, 2, deadline=clock.now + 0.01), asking(version, 3)
    first, tasks = await behind(standard, version, late, fine)
    clock.now += 0.01
    with pytest.raises(DeadlineMissed):
        await tasks[0]
    assert not first.done()
    version.gate.set()
    assert_own(fine, await tasks[1])
    assert version.runs == [1, 3]
    await first


async def test_a_higher_priority_goes_first(clock: Clock, version: Watched) -> None:
    """Runs of two rows at most."""
    worker = StandardWorker(StandardLimits(queue_rows=100, step_rows=2), clock)
    worker.start()
    low, high = asking(version, 2, priority=Priority.LOW), asking(version, 2, priority=Priority.HIGH)
    first, tasks = await behind(worker, version, low, low, high)
    order: list[int] = []
    for number, task in enumerate(tasks):
        task.add_done_callback(lambda _, number=number: order.append(number))
    version.gate.set()
    await asyncio.gather(first, *tasks)
    assert order == [2, 0, 1]
    worker.close()
    assert worker.join(30)


async def test_a_full_queue_and_a_full_share_refuse_and_say_when_to_come_back(
    standard: StandardWorker, version: Watched
) -> None:
    first, tasks = await behind(standard, version, asking(version, 40, caller="a"), asking(version, 40, caller="b"))
    with pytest.raises(QueueFull, match="the share of caller a is full: 40 of 56 rows") as caught:
        await standard.evaluate(asking(version, 20, caller="a"))
    assert caught.value.retry_after > 0
    with pytest.raises(QueueFull, match="the queue is full: 81 of 140 rows"):
        await standard.evaluate(asking(version, 60, caller="c"))
    tasks[0].cancel()
    await settle()
    again = asyncio.create_task(standard.evaluate(asking(version, 60, caller="c")))  # what left gives room at once
    version.gate.set()
    assert (await again).evaluation.output.shape == (60, 4)
    await asyncio.gather(first, *tasks, return_exceptions=True)


async def test_closing_lets_go_of_everybody_even_while_a_run_lasts(clock: Clock, version: Watched) -> None:
    worker = StandardWorker(StandardLimits(queue_rows=100), clock)
    worker.start()
    first, tasks = await behind(worker, version, asking(version), asking(version))
    worker.close()
    for task in (first, *tasks):
        with pytest.raises(Draining):
            await task
    with pytest.raises(Draining):
        await worker.evaluate(asking(version))
    version.gate.set()
    assert worker.join(30)
    assert version.runs == [1]


async def test_a_thread_that_dies_fails_whom_it_had_and_another_goes_on(
    standard: StandardWorker, version: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "_RESTART_SECONDS", 0.2)

    def die(rows: int) -> None:
        raise SystemExit

    version.hook = die
    with pytest.raises(WorkerLost):
        await standard.evaluate(asking(version))
    assert not standard.alive
    version.hook = lambda rows: None
    await until(lambda: standard.alive)
    assert_own(asking(version), await standard.evaluate(asking(version)))


async def test_a_request_of_many_rows_is_cut_and_others_go_between_its_parts(clock: Clock, version: Watched) -> None:
    """A row takes .01 s, as a first call has shown, and a step is to last .1 s: ten rows."""
    worker = StandardWorker(StandardLimits(queue_rows=1000, step_seconds=0.1), clock)
    worker.start()
    version.hook = lambda rows: setattr(clock, "now", clock.now + 0.01 * rows)
    await worker.evaluate(asking(version, 10))
    large, small = asking(version, 95, priority=Priority.LOW), asking(version, 2, priority=Priority.HIGH)
    first, [of_many, of_two] = await behind(worker, version, large, small)
    version.gate.set()
    await first
    assert_own(small, await of_two)
    assert not of_many.done()
    assert_own(large, await of_many)
    assert max(version.runs) == 10
    assert sum(version.runs) == 10 + 1 + 95 + 2
    worker.close()
    assert worker.join(30)


async def test_the_first_rows_of_a_network_that_has_not_run_are_few(standard: StandardWorker, version: Watched) -> None:
    whole = asking(version, 600)
    assert_own(whole, await standard.evaluate(whole))
    assert version.runs[0] == 256
