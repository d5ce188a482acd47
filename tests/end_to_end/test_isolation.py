"""Callers that share a server cannot fail, delay or hang each other: over a real socket, with all of them at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from torch import Tensor

from dubito_models.engine import Engine, Run
from dubito_models.package import ModelVersion
from dubito_models.standard import Evaluation
from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb
from dubito_protos import uncertainty_pb2_grpc as pb_grpc
from dubito_service.server import Server
from dubito_service.settings import Settings
from service.wire import asking, probabilities, rows

Code = grpc.StatusCode
SECONDS = 60.0  # that a call may take at most; nothing here waits for it


@dataclass
class House:
    """A server in this process, whose passes can be held up, and a channel to it."""

    server: Server
    stub: pb_grpc.UncertaintyServiceAsyncStub
    channel: grpc.aio.Channel
    version: ModelVersion
    door: threading.Event  # passes and runs wait for it
    entered: threading.Event

    async def held_up(self) -> None:
        """Wait until a pass or run is at the door."""
        while not self.entered.is_set():
            await asyncio.sleep(0.001)


@pytest.fixture
async def house(
    packed: Callable[[str], ModelVersion], repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[House]:
    packed("mlp")
    (tmp_path / "mlp").symlink_to(repository / "mlp")
    door, entered = threading.Event(), threading.Event()
    door.set()
    advance, evaluate = Engine.advance, ModelVersion.evaluate_tensors

    def wait() -> None:
        entered.set()
        assert door.wait(SECONDS)

    def held_advance(engine: Engine, runs: Sequence[Run], draws: int) -> list[Run]:
        wait()
        return advance(engine, runs, draws)

    def held_evaluate(version: ModelVersion, given: Mapping[str, Tensor]) -> Evaluation:
        wait()
        return evaluate(version, given)

    server = Server(Settings(repository=tmp_path, port=0, stream_requests=16))
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = pb_grpc.UncertaintyServiceStub(channel)
        while not server.registry.opened:
            await asyncio.sleep(0.01)
        await stub.Predict(asking())
        monkeypatch.setattr(Engine, "advance", held_advance)
        monkeypatch.setattr(ModelVersion, "evaluate_tensors", held_evaluate)
        entered.clear()
        version = server.registry.find("mlp", None)
        yield House(server, stub, channel, version, door, entered)
        door.set()
    assert await server.stop(0)


async def outcome(call: grpc.aio.UnaryUnaryCall) -> pb.PredictResponse | grpc.StatusCode:
    try:
        return await call  # type: ignore[no-any-return]
    except grpc.aio.AioRpcError as error:
        return error.code()


def assert_answered(reply: object, data: int, house: House) -> None:
    assert isinstance(reply, pb.PredictResponse)
    whole = house.version.predict(rows(3, data))
    np.testing.assert_allclose(probabilities(reply), whole.answer.probabilities, atol=1e-6)  # type: ignore[union-attr]


async def test_one_timed_out_caller_and_one_bad_shape_change_nothing_for_the_others(house: House) -> None:
    """Four callers behind a pass: in a server that batches by futures alone two of them would hang, or all fail."""
    house.door.clear()
    first = asyncio.create_task(outcome(house.stub.Predict(asking(data=9), timeout=SECONDS)))
    await house.held_up()
    bad = asking(data=3)
    bad.inputs[0].CopyFrom(tensors.encode(np.zeros((3, 17), np.float32), "input"))
    tasks = [
        asyncio.create_task(outcome(house.stub.Predict(asking(data=0), timeout=SECONDS))),
        asyncio.create_task(outcome(house.stub.Predict(asking(data=1), timeout=0.3))),
        asyncio.create_task(outcome(house.stub.Predict(asking(data=2), timeout=SECONDS))),
        asyncio.create_task(outcome(house.stub.Predict(bad, timeout=SECONDS))),
    ]
    assert await tasks[1] is Code.DEADLINE_EXCEEDED  # while the pass before it still lasts
    assert await tasks[3] is Code.INVALID_ARGUMENT
    assert not first.done()
    house.door.set()
    assert_answered(await first, 9, house)
    assert_answered(await tasks[0], 0, house)
    assert_answered(await tasks[2], 2, house)
    assert house.server.device.queued_work == 0


async def test_the_standard_path_is_as_isolated(house: House) -> None:
    house.door.clear()
    ask = house.stub.Evaluate
    first = asyncio.create_task(outcome(ask(evaluating(9), timeout=SECONDS)))
    await house.held_up()
    bad = evaluating(3)
    bad.inputs[0].CopyFrom(tensors.encode(np.zeros((3, 17), np.float32), "input"))
    timeouts = (SECONDS, 0.3, SECONDS)
    tasks = [asyncio.create_task(outcome(ask(evaluating(i), timeout=timeouts[i]))) for i in range(3)]
    refused = asyncio.create_task(outcome(ask(bad, timeout=SECONDS)))
    assert await tasks[1] is Code.DEADLINE_EXCEEDED
    assert await refused is Code.INVALID_ARGUMENT
    house.door.set()
    for data, task in ((9, first), (0, tasks[0]), (2, tasks[2])):
        reply = await task
        assert isinstance(reply, pb.EvaluateResponse)
        whole = house.version.evaluate(rows(3, data))
        np.testing.assert_allclose(tensors.decode(reply.output), whole.output, atol=1e-5)
    assert house.server.standard.queued_rows == 0


def evaluating(data: int) -> pb.EvaluateRequest:
    return pb.EvaluateRequest(model="mlp", inputs=[tensors.encode(rows(3, data), "input")])


async def test_the_standard_path_is_not_behind_draws(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    advance, door, entered = Engine.advance, threading.Event(), threading.Event()

    def held(engine: Engine, runs: Sequence[Run], draws: int) -> list[Run]:
        entered.set()
        assert door.wait(SECONDS)
        return advance(engine, runs, draws)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "advance", held)
        drawing = asyncio.create_task(outcome(house.stub.Predict(asking(), timeout=SECONDS)))
        while not entered.is_set():
            await asyncio.sleep(0.001)
        assert isinstance(await outcome(house.stub.Evaluate(evaluating(0), timeout=SECONDS)), pb.EvaluateResponse)
        assert not drawing.done()
        door.set()
        assert isinstance(await drawing, pb.PredictResponse)


async def test_a_thousand_cancelled_calls_leave_nothing_behind_and_the_next_is_answered(house: House) -> None:
    house.door.clear()
    first = asyncio.create_task(outcome(house.stub.Predict(asking(data=9), timeout=SECONDS)))
    await house.held_up()
    for _ in range(10):
        calls = [house.stub.Predict(asking(data=i), timeout=SECONDS) for i in range(100)]
        await asyncio.sleep(0.02)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    house.door.set()
    assert_answered(await first, 9, house)
    assert_answered(await outcome(house.stub.Predict(asking(data=4), timeout=SECONDS)), 4, house)
    while house.server.device.queued_work:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("method", ["Predict", "Evaluate"])
async def test_a_priority_is_accepted_and_one_that_is_none_names_the_field(house: House, method: str) -> None:
    ask, request = getattr(house.stub, method), asking() if method == "Predict" else evaluating(0)
    request.priority = pb.PRIORITY_LOW
    assert (await ask(request, timeout=SECONDS)).model == "mlp"
    request.priority = 17
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(request, timeout=SECONDS)
    assert caught.value.code() is Code.INVALID_ARGUMENT
    assert "priority: got 17; accepted: PRIORITY_UNSPECIFIED, PRIORITY_HIGH" in (caught.value.details() or "")


async def test_a_bulk_call_answers_each_as_predict_does_and_refuses_each_alone(house: House) -> None:
    asked = [asking(data=i) for i in range(40)]
    for i, request in enumerate(asked):
        request.id = f"n{i}"
    asked[7].model = "nlp"
    asked[11].sampling.max_draws = 0
    call = house.stub.PredictBulk(iter(asked), timeout=SECONDS)
    replies = {reply.id: reply async for reply in call}
    assert len(replies) == 40
    assert replies["n7"].error.code == Code.NOT_FOUND.value[0]
    assert replies["n7"].error.field == "model"
    assert replies["n11"].error.code == Code.INVALID_ARGUMENT.value[0]
    assert replies["n11"].error.field == "sampling.max_draws"
    assert "1 to 10000" in replies["n11"].error.message
    for i in set(range(40)) - {7, 11}:
        assert_answered(replies[f"n{i}"].response, i, house)


async def test_an_id_that_is_still_to_be_answered_is_refused_and_a_late_answer_comes_last(house: House) -> None:
    house.door.clear()
    call = house.stub.PredictBulk(timeout=SECONDS)
    request = asking(data=1)
    request.id = "twice"
    await call.write(request)
    await call.write(request)
    refused = await call.read()
    assert refused.id == "twice"
    assert refused.error.field == "id"
    bad = asking(data=2)
    bad.id, bad.model = "bad", "nlp"
    await call.write(bad)
    assert (await call.read()).error.field == "model"  # while the first one is still drawn
    house.door.set()
    answered = await call.read()
    assert answered.id == "twice"
    assert_answered(answered.response, 1, house)
    await call.write(request)  # answered, so its id is free again
    assert (await call.read()).WhichOneof("result") == "response"
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_a_bulk_call_that_nobody_reads_holds_few_requests_and_cancelling_frees_them(house: House) -> None:
    """Sixteen may be under way at once."""
    house.door.clear()
    call = house.stub.PredictBulk(timeout=SECONDS)
    work = 3 * 40

    async def send() -> None:
        for number in range(200):
            request = asking(data=number, max_draws=40)
            request.id = str(number)
            await call.write(request)

    sending = asyncio.create_task(send())
    while house.server.device.queued_work < 16 * work:
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.1)
    assert house.server.device.queued_work == 16 * work
    call.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    while house.server.device.queued_work:
        await asyncio.sleep(0.005)
    house.door.set()
    assert_answered(await outcome(house.stub.Predict(asking(data=4), timeout=SECONDS)), 4, house)
