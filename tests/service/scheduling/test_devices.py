"""Several device threads: each request stays with one, answers do not depend on which, and all share one queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dubito_models.engine import Engine
from dubito_models.package import ModelVersion, open_version
from dubito_models.predictive import Classification, Predictive
from dubito_models.sampling import SamplingSpec
from dubito_service.errors import Draining, QueueFull
from dubito_service.scheduling.devices import Devices
from dubito_service.scheduling.drawing import Request

from ..conftest import Clock
from ..hooked import Gate, Hooked, Pass, limits, request, settle, until


def probabilities(predictive: Predictive) -> NDArray[np.float64]:
    assert isinstance(predictive.answer, Classification)
    return predictive.answer.probabilities


@pytest.fixture
async def devices(clock: Clock) -> AsyncIterator[Devices]:
    found = Devices(limits(queue_work=1000), clock, places=(0, 0))
    found.start()
    yield found
    found.close()
    assert found.join(30)


async def test_two_threads_draw_at_once_for_two_requests(devices: Devices, engine: Hooked) -> None:
    gate = engine.hook = Gate()
    tasks = [asyncio.create_task(devices.draw(request(engine, shift=i))) for i in range(2)]
    await until(lambda: len(engine.passes) == 2)  # both are held up in a pass of their own
    gate.open()
    await asyncio.gather(*tasks)
    assert [this.rows for this in engine.passes] == [(1,), (1,)]


async def test_a_newcomer_goes_where_there_is_least_to_do(devices: Devices, engine: Hooked) -> None:
    gate = engine.hook = Gate()
    tasks = [asyncio.create_task(devices.draw(request(engine, rows=9, max_draws=10)))]
    await until(gate.has_entered)
    tasks += [asyncio.create_task(devices.draw(request(engine, rows=rows, max_draws=10))) for rows in (2, 1)]
    await until(lambda: len(engine.passes) == 2)
    await settle()
    gate.open()
    await asyncio.gather(*tasks)
    assert engine.passes[0].rows == (9,)
    assert sum(len(this.rows) for this in engine.passes[1:]) == 2


async def test_the_queue_is_one(devices: Devices, engine: Hooked) -> None:
    gate = engine.hook = Gate()
    tasks = [asyncio.create_task(devices.draw(request(engine, rows=4, max_draws=100))) for _ in range(2)]
    await settle()
    assert devices.queued_work == 800
    with pytest.raises(QueueFull):
        await devices.draw(request(engine, rows=3, max_draws=100))
    gate.open()
    await asyncio.gather(*tasks)
    assert devices.queued_work == 0


async def test_when_a_thread_has_died_the_others_answer(devices: Devices, engine: Hooked) -> None:
    def die(this: Pass) -> None:
        raise SystemExit

    engine.hook = die
    await asyncio.gather(devices.draw(request(engine)), return_exceptions=True)
    engine.hook = lambda this: None
    assert not devices.alive
    for _ in range(5):
        assert await devices.draw(request(engine))


async def test_closing_lets_go_of_everybody(clock: Clock, engine: Hooked) -> None:
    found = Devices(limits(), clock, places=(0, 0, 0))
    found.start()
    gate = engine.hook = Gate()
    tasks = [asyncio.create_task(found.draw(request(engine))) for _ in range(5)]
    await until(gate.has_entered)
    found.close()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, Draining)
    gate.open()
    assert found.join(30)


async def test_answers_under_four_threads_of_one_network_are_those_of_one(engine: Hooked) -> None:
    """Two hundred requests over several seeds and sizes, all with the same kept masks."""
    found = Devices(limits(step_work=200), time.monotonic, places=(0,) * 4)
    found.start()
    asked = [request(engine, rows=1 + i % 4, shift=i, seed=i % 3, max_draws=(10, 40, 90)[i % 3]) for i in range(200)]
    answers = await asyncio.gather(*(found.draw(each) for each in asked))
    plain = Engine(engine.program, engine.masks, engine.head, engine.defaults)
    for one, drawn in zip(asked, answers, strict=True):
        alone = plain.predict(one.inputs, one.plan.spec)
        np.testing.assert_allclose(probabilities(drawn.predictive), probabilities(alone), rtol=0, atol=1e-6)
    assert found.counters.work == sum(each.work for each in asked)
    found.close()
    assert found.join(30)


async def test_each_device_has_an_engine_of_its_own_that_says_the_same(
    packed: Callable[[str], ModelVersion], clock: Clock
) -> None:
    """The CPU stands for a second device."""
    made = packed("mlp")
    version = open_version(made.folder, made.manifest, device=torch.device("cpu"), others=[torch.device("cpu")])
    one, other = (Hooked(each) for each in version.engines)
    assert one.program is not other.program
    rows = {"input": torch.arange(12, dtype=torch.float32).reshape(2, 6) / 10}
    spec = SamplingSpec(max_draws=40)
    asked = Request((one, other), None, rows, one.plan(spec), 2, None, "mlp", 1)
    found = Devices(limits(), clock, places=(0, 1))
    found.start()
    gate = Gate()
    one.hook = other.hook = gate
    tasks = [asyncio.create_task(found.draw(asked)) for _ in range(2)]
    await until(lambda: len(one.passes) == len(other.passes) == 1)
    gate.open()
    answers = [probabilities((await task).predictive) for task in tasks]
    np.testing.assert_allclose(answers[0], answers[1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(answers[0], probabilities(version.engine.predict(rows, spec)), rtol=0, atol=1e-6)
    found.close()
    assert found.join(30)
