"""Calls over a socket to a server in this process, whose engine can be watched, held up and broken."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from torch import Tensor

from dubito_models.package import ModelVersion
from dubito_models.standard import Evaluation
from dubito_protos import open_inference_pb2, open_inference_pb2_grpc, tensors
from dubito_protos import uncertainty_pb2 as pb
from dubito_protos import uncertainty_pb2_grpc as pb_grpc
from dubito_service.dubito_v1 import messages
from dubito_service.health import SERVICE as LIVENESS
from dubito_service.scheduling import dispatching
from dubito_service.server import Server
from dubito_service.settings import Settings

from .hooked import Gate, Hooked, Pass, settle, until
from .wire import asking, detail, probabilities, rows

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one loop for all of gRPC's calls in this process

Code = grpc.StatusCode
Health = health_pb2.HealthCheckResponse
SECONDS = 60.0  # that a call may take at most; nothing here waits for it


@dataclass(frozen=True)
class Inside:
    server: Server
    engine: Hooked
    stub: pb_grpc.UncertaintyServiceAsyncStub
    health: health_pb2_grpc.HealthStub
    channel: grpc.aio.Channel

    async def predict(self, request: pb.PredictRequest, timeout: float | None = SECONDS) -> pb.PredictResponse:
        return await self.stub.Predict(request, timeout=timeout)


Open = Callable[..., Awaitable[Inside]]


@pytest_asyncio.fixture(loop_scope="module")
async def opened(packed: Callable[[str], ModelVersion], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """Opens servers in this process; each is stopped when the test ends."""
    version = packed("mlp")
    servers: list[Server] = []
    channels: list[grpc.aio.Channel] = []

    async def open_server(**settings: float) -> Inside:
        engine = Hooked(version.engine)
        server = Server(Settings(repository=version.folder.parent.parent, port=0, **settings))  # type: ignore[arg-type]
        servers.append(server)
        await server.start()
        monkeypatch.setattr(server.registry.find("mlp", None), "engine", engine)
        channels.append(grpc.aio.insecure_channel(server.address))
        stub = pb_grpc.UncertaintyServiceStub(channels[-1])
        return Inside(server, engine, stub, health_pb2_grpc.HealthStub(channels[-1]), channels[-1])

    yield open_server
    for channel in channels:
        await channel.close()
    for server in servers:
        await server.stop(0.0)


def linger(seconds: float) -> Callable[[Pass], None]:
    return lambda this: time.sleep(seconds)


@pytest.mark.parametrize("method", ["Predict", "PredictStream", "PredictBulk", "Evaluate"])
async def test_a_large_request_is_read_beside_the_loop_and_a_small_one_on_it(
    opened: Open, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    inside, here, places = await opened(max_rows=2**14), threading.get_ident(), list[int]()
    read = "read_evaluation" if method == "Evaluate" else "read_prediction"
    reader = getattr(messages, read)

    def note(*given: Any) -> Any:
        places.append(threading.get_ident())
        return reader(*given)

    monkeypatch.setattr(messages, read, note)
    for count in (3, 2**14):
        request = asking(count, max_draws=2)
        if method == "Evaluate":
            await inside.stub.Evaluate(pb.EvaluateRequest(model="mlp", inputs=request.inputs), timeout=SECONDS)
        elif method == "Predict":
            await inside.predict(request)
        elif method == "PredictStream":
            assert [reply async for reply in inside.stub.PredictStream(request, timeout=SECONDS)]
        else:
            [reply] = [reply async for reply in inside.stub.PredictBulk(iter([request]), timeout=SECONDS)]
            assert reply.HasField("response")
    assert places[0] == here
    assert places[1] != here


async def test_near_the_deadline_what_was_drawn_is_the_answer_and_it_is_marked(opened: Open) -> None:
    inside = await opened(step_work=50, reply_seconds=1.5)
    inside.engine.hook = linger(0.01)
    reply = await inside.predict(asking(2, max_draws=10_000), timeout=3.0)
    used = int(tensors.decode(reply.draws)[0])
    assert list(reply.stop_reason) == [pb.STOP_REASON_DEADLINE] * 2
    assert 10 <= used < 10_000
    assert reply.warnings[0] == f"the deadline ended drawing after {used} of 10000 draws"
    inside.engine.hook = linger(0)
    again = await inside.predict(asking(2, max_draws=used, min_draws=used))
    np.testing.assert_allclose(probabilities(again), probabilities(reply), rtol=0, atol=1e-6)


async def test_a_deadline_with_nothing_drawn_is_exceeded_and_costs_no_pass(opened: Open) -> None:
    inside = await opened(step_seconds=1e6)  # however long the first pass is held
    gate = inside.engine.hook = Gate()
    first = asyncio.create_task(inside.predict(asking(1)))
    await until(gate.has_entered)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await inside.predict(asking(3), timeout=0.2)
    assert caught.value.code() is Code.DEADLINE_EXCEEDED
    await until(lambda: inside.server.device.queued_work == 40)
    gate.open()
    await first
    await inside.predict(asking(2))
    assert {this.rows for this in inside.engine.passes} == {(1,), (2,)}


async def test_a_cancelled_call_leaves_and_costs_no_further_pass(opened: Open) -> None:
    inside = await opened(step_work=10)
    gate = inside.engine.hook = Gate()
    call = inside.stub.Predict(asking(1, max_draws=10_000), timeout=SECONDS)
    await until(gate.has_entered)
    call.cancel()
    await until(lambda: inside.server.device.queued_work == 0)
    gate.open()
    await inside.predict(asking(1, data=1, max_draws=10))
    assert [(this.rows, this.first) for this in inside.engine.passes] == [((1,), 0)] * 2
    assert inside.server.device.counters.passes == 2


async def test_cancelling_one_of_many_leaves_the_others_unaffected(opened: Open) -> None:
    """The case in which other servers hang the whole batch: one caller leaves in the middle of a shared pass."""
    inside = await opened(step_seconds=1000)  # however long the first pass is held up
    alone = [await inside.predict(asking(2, data=i)) for i in range(6)]
    held, shared = Gate(), Gate()
    inside.engine.hook = held
    first = asyncio.create_task(inside.predict(asking(1)))
    await until(held.has_entered)
    calls = [inside.stub.Predict(asking(2, data=i), timeout=SECONDS) for i in range(6)]
    await until(lambda: inside.server.device.queued_work == 40 + 6 * 80)
    await settle()
    inside.engine.hook = shared
    held.open()
    await until(shared.has_entered)
    assert inside.engine.passes[-1].rows == (2,) * 6
    calls[2].cancel()
    await until(lambda: inside.server.device.queued_work <= 40 + 5 * 80)
    shared.open()
    await first
    for i in (0, 1, 3, 4, 5):
        np.testing.assert_allclose(probabilities(await calls[i]), probabilities(alone[i]), rtol=0, atol=1e-6)
    with pytest.raises(asyncio.CancelledError):
        await calls[2]


async def test_a_stream_begins_with_the_first_group_whatever_the_rule(opened: Open) -> None:
    inside, gate = await opened(), Gate()
    inside.engine.hook = lambda this: gate(this) if this.first else None  # all passes but the first
    request = asking(2, max_draws=80)
    request.sampling.stopping.quantity, request.sampling.stopping.target = pb.STOPPING_QUANTITY_MUTUAL_INFORMATION, 0.01
    stream = aiter(inside.stub.PredictStream(request, timeout=SECONDS))
    first = await anext(stream)
    gate.open()
    replies = [first, *[reply async for reply in stream]]
    assert tensors.decode(first.draws).tolist() == [inside.engine.masks.group_size] * 2
    assert [reply.final for reply in replies] == [False] * (len(replies) - 1) + [True]
    whole = await inside.predict(request)
    assert tensors.decode(replies[-1].draws).tolist() == tensors.decode(whole.draws).tolist()
    np.testing.assert_allclose(probabilities(replies[-1]), probabilities(whole), rtol=0, atol=1e-6)


async def test_a_failure_is_internal_with_an_id_that_the_log_explains(opened, caplog: pytest.LogCaptureFixture) -> None:
    inside = await opened()

    def fail(this: Pass) -> None:
        raise ZeroDivisionError("a secret")

    inside.engine.hook = fail
    with caplog.at_level(logging.ERROR), pytest.raises(grpc.aio.AioRpcError) as caught:
        await inside.predict(asking())
    assert caught.value.code() is Code.INTERNAL
    number = str(caught.value.details()).split()[2].rstrip(";")
    assert "secret" not in str(caught.value.details())
    assert number in caplog.text
    assert "a secret" in caplog.text
    inside.engine.hook = linger(0)
    assert (await inside.predict(asking())).final


async def test_a_cancellation_from_within_ends_the_call_with_a_status(
    opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A CancelledError that a handler lets out of a live call would leave the caller waiting."""
    inside = await opened()

    async def leak(*args: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(inside.server.device, "draw", leak)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await inside.predict(asking())
    assert caught.value.code() is Code.INTERNAL
    assert (await inside.predict(asking())).final


def overflowing(*which: int) -> list[pb.Tensor]:
    """Inputs of four rows, those of these numbers so large that the network's numbers end at infinity."""
    x = rows(4)
    x[list(which)] = 3e38
    return [tensors.encode(x, "input")]


async def test_rows_without_a_finite_answer_fail_their_request_alone(opened: Open) -> None:
    """Also among strangers in one pass, near whom they leave no trace."""
    inside = await opened(step_seconds=1000)  # however long the first pass is held up
    alone = await inside.predict(asking(2, data=1))
    gate = inside.engine.hook = Gate()
    first = asyncio.create_task(inside.predict(asking(1)))
    await until(gate.has_entered)
    bad, good = pb.PredictRequest(model="mlp", inputs=overflowing(1, 3)), asking(2, data=1)
    calls = [asyncio.create_task(inside.predict(each)) for each in (bad, good, bad)]
    await until(lambda: inside.server.device.queued_work == 40 * (1 + 4 + 2 + 4))
    await settle()
    gate.open()
    await first
    np.testing.assert_allclose(probabilities(await calls[1]), probabilities(alone), rtol=0, atol=1e-6)
    assert inside.engine.passes[-1].rows == (4, 2, 4)
    for call in (calls[0], calls[2]):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is Code.OUT_OF_RANGE
        [violation] = detail(caught.value, BadRequest).field_violations
        assert violation.field == "inputs"
        assert violation.description == "got rows 1, 3 (from 0); accepted: rows to which the network's answer is finite"


async def test_a_row_without_a_finite_answer_is_refused_by_every_call_that_predicts(opened: Open) -> None:
    inside = await opened()
    bad = pb.PredictRequest(model="mlp", id="bad", inputs=overflowing(2), sampling=pb.SamplingSpec(max_draws=200))
    calls = (
        inside.stub.PredictStream(bad, timeout=SECONDS),
        inside.stub.Evaluate(pb.EvaluateRequest(model="mlp", inputs=bad.inputs), timeout=SECONDS),
    )
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (call.read() if call is calls[0] else call)
        assert caught.value.code() is Code.OUT_OF_RANGE
        assert "inputs: got row 2 (from 0)" in str(caught.value.details())
    bulk = inside.stub.PredictBulk(iter([bad, asking()]), timeout=SECONDS)
    replies = [reply async for reply in bulk]
    assert sorted(reply.WhichOneof("result") for reply in replies) == ["error", "response"]
    [error] = [reply.error for reply in replies if reply.HasField("error")]
    assert (error.code, error.field) == (Code.OUT_OF_RANGE.value[0], "inputs")


async def test_standard_rows_without_a_finite_answer_fail_their_request_alone(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = await opened()
    version = inside.server.registry.find("mlp", None)
    entered, release, runs = threading.Event(), threading.Event(), list[int]()
    run = version.evaluate_tensors

    def hold(inputs: Mapping[str, Tensor]) -> Evaluation:
        runs.append(len(inputs["input"]))
        entered.set()
        assert release.wait(SECONDS)
        return run(inputs)

    monkeypatch.setattr(version, "evaluate_tensors", hold)
    good, bad = ({"inputs": asking(2).inputs}, {"inputs": overflowing(0)})
    asked = [pb.EvaluateRequest(model="mlp", **each) for each in (good, bad, good)]
    calls = [asyncio.ensure_future(inside.stub.Evaluate(asked[0], timeout=SECONDS))]
    await until(entered.is_set)
    calls += [asyncio.ensure_future(inside.stub.Evaluate(each, timeout=SECONDS)) for each in asked[1:]]
    await until(lambda: inside.server.standard.queued_rows == 8)
    await settle()
    release.set()
    alone, refused, shared = await asyncio.gather(*calls, return_exceptions=True)
    assert runs == [2, 6]
    np.testing.assert_allclose(tensors.decode(shared.output), tensors.decode(alone.output), rtol=0, atol=1e-5)
    assert refused.code() is Code.OUT_OF_RANGE
    assert "inputs: got row 0 (from 0)" in str(refused.details())


async def test_a_full_queue_is_exhausted_and_says_when_to_come_back(opened: Open) -> None:
    inside = await opened(queue_work=50)
    gate = inside.engine.hook = Gate()
    first = asyncio.create_task(inside.predict(asking(1, max_draws=40)))
    await until(gate.has_entered)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await inside.predict(asking(1, max_draws=20))
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    assert detail(caught.value, RetryInfo).retry_delay.ToNanoseconds() > 0
    gate.open()
    assert (await first).final


async def test_while_a_worker_is_dead_the_server_is_not_ready_by_any_protocol(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "_RESTART_SECONDS", SECONDS)
    inside = await opened()
    triton = open_inference_pb2_grpc.GRPCInferenceServiceStub(inside.channel)
    names = ["", "dubito.v1.UncertaintyService", "inference.GRPCInferenceService", "mlp"]
    asked = [health_pb2.HealthCheckRequest(service=name) for name in names]
    watchers = [inside.health.Watch(each, timeout=SECONDS) for each in asked]

    async def said() -> list[int]:
        return [(await watcher.read()).status for watcher in watchers]

    async def ready() -> tuple[bool, bool]:
        model = open_inference_pb2.ModelReadyRequest(name="mlp")
        server = await triton.ServerReady(open_inference_pb2.ServerReadyRequest())
        return server.ready, (await triton.ModelReady(model)).ready

    def die(this: Pass) -> None:
        raise SystemExit

    async def fails() -> None:
        inside.engine.hook = die
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await inside.predict(asking())
        assert caught.value.code() is Code.UNAVAILABLE

    async def lives() -> tuple[int, bool]:
        alive = await inside.health.Check(health_pb2.HealthCheckRequest(service=LIVENESS))
        return alive.status, (await triton.ServerLive(open_inference_pb2.ServerLiveRequest())).live

    assert await said() == [Health.SERVING] * 4
    await fails()
    assert await said() == [Health.NOT_SERVING] * 4
    assert [(await inside.health.Check(each)).status for each in asked] == [Health.NOT_SERVING] * 4
    assert await ready() == (False, False)
    assert await lives() == (Health.SERVING, True)
    monkeypatch.setattr(dispatching, "_RESTART_SECONDS", 0.0)
    [worker] = inside.server.device._workers
    worker._dispatcher._revive()
    assert await said() == [Health.SERVING] * 4
    assert await ready() == (True, True)
    for _ in range(dispatching.MOST_DEATHS - 1):
        await fails()
        await until(lambda: worker.alive)
    assert await lives() == (Health.NOT_SERVING, False)
    inside.engine.hook = linger(0)
    assert (await inside.predict(asking())).final
    await until(lambda: not worker.lost)
    assert await lives() == (Health.SERVING, True)


async def test_draining_tells_every_watcher_and_refuses_new_calls(opened: Open) -> None:
    inside = await opened()
    gate = inside.engine.hook = Gate()
    watchers = [inside.health.Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS) for _ in range(3)]
    for watcher in watchers:
        assert (await watcher.read()).status == Health.SERVING
    watchers[0].cancel()
    first = asyncio.create_task(inside.predict(asking()))
    await until(gate.has_entered)
    stopping = asyncio.create_task(inside.server.stop(SECONDS))
    for watcher in watchers[1:]:
        assert (await watcher.read()).status == Health.NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await inside.predict(asking())
    assert caught.value.code() is Code.UNAVAILABLE
    assert (await inside.health.Check(health_pb2.HealthCheckRequest())).status == Health.NOT_SERVING
    gate.open()
    assert (await first).final
    assert await stopping


async def test_draining_answers_what_streams_have_sent_and_refuses_what_they_send_then(opened: Open) -> None:
    inside = await opened(step_work=10)
    idle, busy = (inside.stub.PredictBulk(timeout=SECONDS) for _ in range(2))
    for call in (idle, busy):
        await call.write(asking())
        assert (await call.read()).WhichOneof("result") == "response"
    gate = inside.engine.hook = Gate()
    refined = inside.stub.PredictStream(asking(1, max_draws=80), timeout=SECONDS)
    await until(gate.has_entered)
    await busy.write(asking(2))
    await until(lambda: inside.server.device.queued_work == 80 + 80)
    stopping = asyncio.create_task(inside.server.stop(SECONDS))
    assert await idle.code() is Code.UNAVAILABLE
    assert "the server is stopping; ask another one" in await idle.details()
    await busy.write(asking(2, data=1))
    gate.open()
    assert tensors.decode((await busy.read()).response.draws).shape == (2,)
    assert await busy.code() is Code.UNAVAILABLE
    assert "the server is stopping; ask another one" in await busy.details()
    assert [reply.final async for reply in refined][-1]
    assert await stopping


async def test_evaluate_is_not_behind_monte_carlo_work(opened: Open) -> None:
    inside = await opened()
    gate = inside.engine.hook = Gate()
    first = asyncio.create_task(inside.predict(asking()))
    await until(gate.has_entered)
    reply = await inside.stub.Evaluate(pb.EvaluateRequest(model="mlp", inputs=asking().inputs), timeout=SECONDS)
    assert tensors.decode(reply.label).shape == (3,)
    assert not first.done()
    gate.open()
    await first


async def test_a_mix_of_good_bad_and_leaving_callers_gets_each_its_own(opened: Open) -> None:
    """Good answers stay right, bad requests get their status, and nothing is left behind."""
    inside = await opened(step_work=200)
    alone = [await inside.predict(asking(1 + i % 4, data=i, max_draws=40, seed=i % 3)) for i in range(12)]

    async def good(i: int) -> None:
        reply = await inside.predict(asking(1 + i % 4, data=i, max_draws=40, seed=i % 3))
        np.testing.assert_allclose(probabilities(reply), probabilities(alone[i]), rtol=0, atol=1e-6)

    async def bad(i: int) -> None:
        request = asking(2)
        request.inputs[0].name = f"nobody-{i}"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await inside.predict(request)
        assert caught.value.code() is Code.INVALID_ARGUMENT

    async def leaving(i: int) -> None:
        call = inside.stub.Predict(asking(3, data=i, max_draws=5000), timeout=SECONDS)
        await asyncio.sleep(0.002 * i)
        call.cancel()

    await asyncio.gather(*(kind(i) for i in range(12) for kind in (good, bad, leaving)))
    await until(lambda: inside.server.device.queued_work == 0)
