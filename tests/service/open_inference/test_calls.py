"""Calls of the Open Inference Protocol over a socket to a server in this process, whose engine can be held up."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from google.rpc.error_details_pb2 import BadRequest

from dubito_models.package import ModelVersion
from dubito_protos import open_inference_pb2 as pb
from dubito_protos import open_inference_pb2_grpc as pb_grpc
from dubito_protos import tensors, uncertainty_pb2, uncertainty_pb2_grpc
from dubito_service.open_inference.messages import read_inference
from dubito_service.server import Server
from dubito_service.settings import Settings

from ..hooked import Gate, Hooked, until
from ..wire import detail
from .wire import arrays, asking, put, said

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one loop for all of gRPC's calls in this process

Code = grpc.StatusCode
SECONDS = 60.0  # that a call may take at most; nothing here waits for it


@dataclass(frozen=True)
class Inside:
    server: Server
    engine: Hooked
    channel: grpc.aio.Channel
    stub: pb_grpc.GRPCInferenceServiceAsyncStub

    async def infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        return await self.stub.ModelInfer(request, timeout=SECONDS)

    async def statistics(self, name: str = "mlp") -> pb.ModelStatistics:
        [found] = (await self.stub.ModelStatistics(pb.ModelStatisticsRequest(name=name))).model_stats
        return found


Open = Callable[..., Awaitable[Inside]]


@pytest_asyncio.fixture(loop_scope="module")
async def opened(packed: Callable[[str], ModelVersion], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Open]:
    """Opens servers in this process; each is stopped when the test ends."""
    version = packed("mlp")
    servers: list[Server] = []
    channels: list[grpc.aio.Channel] = []

    async def open_server(*, hooked: bool = True, **settings: float | str) -> Inside:
        engine = Hooked(version.engine)
        repository = version.folder.parent.parent
        server = Server(Settings(repository=repository, port=0, **settings))  # type: ignore[arg-type]
        servers.append(server)
        await server.start()
        if hooked:  # which holds the version, so that it cannot be given up
            monkeypatch.setattr(server.registry.find("mlp", None), "engine", engine)
        channels.append(grpc.aio.insecure_channel(server.address))
        return Inside(server, engine, channels[-1], pb_grpc.GRPCInferenceServiceStub(channels[-1]))

    yield open_server
    for channel in channels:
        await channel.close()
    for server in servers:
        await server.stop(0.0)


async def refused(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def everything(replies: AsyncIterable[Any]) -> list[Any]:
    return [reply async for reply in replies]


async def test_the_server_says_what_it_is_and_whether_it_is_ready(opened: Open) -> None:
    inside = await opened(server_name="triton")
    assert (await inside.stub.ServerLive(pb.ServerLiveRequest())).live
    assert (await inside.stub.ServerReady(pb.ServerReadyRequest())).ready
    about = await inside.stub.ServerMetadata(pb.ServerMetadataRequest())
    assert about.name == "triton"
    assert about.version
    assert "statistics" in about.extensions
    assert not {"sequence", "classification", "system_shared_memory", "trace", "logging"} & set(about.extensions)


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [
        ("mlp", "", True), ("mlp.standard", "1", True), ("mlp", "7", False), ("nobody", "", False), ("", "", False),
        ("../mlp", "", False),
    ],
)  # fmt: skip
async def test_a_model_that_is_not_known_is_not_ready_which_is_no_error(
    name: str, version: str, ready: bool, opened: Open
) -> None:
    inside = await opened()
    assert (await inside.stub.ModelReady(pb.ModelReadyRequest(name=name, version=version))).ready is ready


async def test_a_bad_version_is_refused_by_the_field_of_its_own_call(opened: Open) -> None:
    inside = await opened()
    error = await refused(inside.stub.ModelMetadata(pb.ModelMetadataRequest(name="mlp", version="new")))
    assert error.code() is Code.INVALID_ARGUMENT
    assert detail(error, BadRequest).field_violations[0].field == "version"
    error = await refused(inside.stub.ModelConfig(pb.ModelConfigRequest(name="nobody")))
    assert error.code() is Code.NOT_FOUND
    assert detail(error, BadRequest).field_violations[0].field == "name"


async def test_an_answer_is_that_of_the_engine_and_can_be_asked_for_again(opened: Open) -> None:
    inside = await opened()
    reply = await inside.infer(asking(seed=5, draws=30))
    again = await inside.infer(asking(seed=said(reply)["seed"], draws="30", stopping_rule="none"))
    np.testing.assert_allclose(arrays(again)["probabilities"], arrays(reply)["probabilities"], rtol=0, atol=1e-6)
    standard = await inside.infer(asking(model="mlp.standard"))
    assert (standard.model_name, standard.model_version, standard.id) == ("mlp.standard", "1", "mine")


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_large_request_is_read_beside_the_loop_and_a_small_one_on_it(
    opened: Open, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    inside, here, places = await opened(max_rows=2**14), threading.get_ident(), list[int]()

    def note(*given: Any) -> Any:
        places.append(threading.get_ident())
        return read_inference(*given)

    monkeypatch.setattr("dubito_service.open_inference.messages.read_inference", note)
    for rows in (3, 2**14):
        request = asking(rows, draws=2, model="mlp.standard" if rows > 3 else "mlp")
        request.parameters.clear()
        if streamed:
            [reply] = await everything(inside.stub.ModelStreamInfer(iter([request]), timeout=SECONDS))
            assert not reply.error_message
        else:
            await inside.infer(request)
    assert places[0] == here
    assert places[1] != here


async def test_a_timeout_of_the_request_ends_it_before_the_calls_deadline(opened: Open) -> None:
    inside = await opened()
    gate = inside.engine.hook = Gate()
    first = asyncio.create_task(inside.infer(asking(1)))
    await until(gate.has_entered)
    error = await refused(inside.infer(asking(2, timeout=100_000)))
    assert error.code() is Code.DEADLINE_EXCEEDED
    gate.open()
    await first


async def test_a_cancelled_call_leaves_the_queue(opened: Open) -> None:
    inside = await opened(step_work=10)
    gate = inside.engine.hook = Gate()
    call = inside.stub.ModelInfer(asking(1, draws=10_000), timeout=SECONDS)
    await until(gate.has_entered)
    call.cancel()
    await until(lambda: inside.server.device.queued_work == 0)
    gate.open()
    await inside.infer(asking(2))


async def test_requests_that_share_a_pass_get_each_the_outputs_that_it_named(opened: Open) -> None:
    inside = await opened(step_seconds=1e6)  # however long the first pass is held
    gate = inside.engine.hook = Gate()
    first = asyncio.create_task(inside.infer(asking(1)))
    await until(gate.has_entered)
    wanted = [("label",), ("mutual_information", "probabilities"), ()]
    tasks = [asyncio.create_task(inside.infer(asking(2, data=i, outputs=each))) for i, each in enumerate(wanted)]
    await until(lambda: inside.server.device.queued_work == (1 + 3 * 2) * 40)
    gate.open()
    await first
    found = [arrays(await task) for task in tasks]
    assert inside.engine.passes[-1].rows == (2, 2, 2)
    assert [tuple(each) for each in found[:2]] == wanted[:2]
    assert len(found[2]) > 10
    alone = arrays(await inside.infer(asking(2, data=1)))
    np.testing.assert_allclose(found[1]["probabilities"], alone["probabilities"], rtol=0, atol=1e-6)


async def test_statistics_count_answers_rows_passes_and_failures_exactly(opened: Open) -> None:
    inside = await opened()
    for rows in (1, 2, 3):
        await inside.infer(asking(rows))
    await refused(inside.infer(asking(draws=0)))
    await refused(inside.infer(asking(model="nobody")))
    await inside.infer(asking(4, model="mlp.standard"))
    found = await inside.statistics()
    stats = found.inference_stats
    assert (found.inference_count, stats.success.count, stats.fail.count) == (6, 3, 1)
    assert found.execution_count == len(inside.engine.passes)
    assert [part.count for part in (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)] == [
        3
    ] * 4
    assert {each.batch_size for each in found.batch_stats} == {1, 2, 3}
    standard = await inside.statistics("mlp.standard")
    assert (standard.inference_count, standard.execution_count, standard.batch_stats[0].batch_size) == (4, 1, 4)
    error = await refused(inside.stub.ModelStatistics(pb.ModelStatisticsRequest(name="nobody")))
    assert error.code() is Code.NOT_FOUND


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("SystemSharedMemoryRegister", "shared memory is not served"),
        ("CudaSharedMemoryStatus", "shared memory is not served"),
        ("TraceSetting", "OpenTelemetry"),
        ("LogSettings", "--log-level"),
        ("ModelDance", ""),
    ],
)
async def test_what_is_not_served_of_the_extension_says_so(method: str, words: str, opened: Open) -> None:
    inside = await opened()
    call = inside.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
    error = await refused(call(b"", timeout=SECONDS))
    assert error.code() is Code.UNIMPLEMENTED
    assert words in str(error.details())


async def test_labels_come_back_with_the_receipt_of_an_answer(opened: Open, tmp_path: Path) -> None:
    inside = await opened(state=str(tmp_path))
    how = said(await inside.infer(asking()))
    uncertainty = uncertainty_pb2_grpc.UncertaintyServiceStub(inside.channel)
    request = uncertainty_pb2.ObserveRequest(
        prediction_id=str(how["prediction_id"]),
        receipt=base64.b64decode(str(how["receipt"])),
        label=tensors.encode(np.zeros(3, np.int64)),
    )
    assert (await uncertainty.Observe(request, timeout=SECONDS)).rows == 3


async def test_a_server_that_stops_is_not_ready_and_finishes_what_it_has(opened: Open) -> None:
    inside = await opened()
    gate = inside.engine.hook = Gate()
    call = asyncio.create_task(inside.infer(asking()))
    await until(gate.has_entered)
    stopping = asyncio.create_task(inside.server.stop(SECONDS))
    while (await inside.stub.ServerReady(pb.ServerReadyRequest())).ready:
        await asyncio.sleep(0)
    assert (await inside.stub.ServerLive(pb.ServerLiveRequest())).live
    assert (await refused(inside.infer(asking()))).code() is Code.UNAVAILABLE
    gate.open()
    assert arrays(await call)["label"].shape == (3,)
    assert await stopping


# --- Streams ---


async def test_a_stream_answers_what_is_ready_and_refuses_within_itself(opened: Open) -> None:
    inside = await opened()

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        for number in range(10):
            request = asking(2, data=number)
            request.id = str(number)
            yield request
        yield asking(draws=0)
        yield asking(model="nobody")
        yield asking(model="mlp.standard")

    replies = await everything(inside.stub.ModelStreamInfer(requests(), timeout=SECONDS))
    assert len(replies) == 13
    assert all(reply.infer_response.parameters["triton_final_response"].bool_param for reply in replies)
    errors = {reply.infer_response.model_name: reply for reply in replies if reply.error_message}
    assert set(errors) == {"mlp", "nobody"}
    assert errors["mlp"].infer_response.id == "mine"
    assert "parameters.draws" in errors["mlp"].error_message
    by_id = {reply.infer_response.id: reply.infer_response for reply in replies if not reply.error_message}
    for number in range(10):
        alone = await inside.infer(asking(2, data=number))
        found = arrays(by_id[str(number)])["probabilities"]
        np.testing.assert_allclose(found, arrays(alone)["probabilities"], rtol=0, atol=1e-6)


async def test_refinements_of_one_request_come_among_the_answers_of_others(opened: Open) -> None:
    inside = await opened(step_work=10)

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        yield asking(1, refine=True, draws=80)
        other = asking(1, draws=10)
        other.id = "other"
        yield other

    finals, draws = [], []
    async for reply in inside.stub.ModelStreamInfer(requests(), timeout=SECONDS):
        answer = reply.infer_response
        if answer.id == "mine":
            draws.append(int(arrays(answer)["draws"][0]))
            finals.append(answer.parameters["triton_final_response"].bool_param)
    assert draws == sorted(set(draws))
    assert draws[-1] == 80
    assert finals == [False] * (len(finals) - 1) + [True]
    assert len(finals) > 1


@pytest.mark.parametrize("model", ["mlp", "mlp.standard"])
async def test_rows_without_a_finite_answer_are_refused_by_their_numbers_and_counted(model: str, opened: Open) -> None:
    inside = await opened()
    x = np.zeros((12, 6), np.float32)
    x[1:] = 3e38
    bad = pb.ModelInferRequest(model_name=model)
    put(bad, "input", x)
    error = await refused(inside.infer(bad))
    assert error.code() is Code.OUT_OF_RANGE
    assert error.details() == (
        "inputs: got rows 1, 2, 3, 4, 5, 6, 7, 8 and 3 more (from 0); "
        "accepted: rows to which the network's answer is finite"
    )
    assert (await inside.statistics(model)).inference_stats.fail.count == 1

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        yield bad
        yield asking(2, model=model)

    replies = await everything(inside.stub.ModelStreamInfer(requests(), timeout=SECONDS))
    assert sorted(reply.error_message for reply in replies) == ["", error.details()]


async def test_draining_answers_what_streams_have_sent_and_refuses_what_they_send_then(opened: Open) -> None:
    inside = await opened()
    idle, busy = (inside.stub.ModelStreamInfer(timeout=SECONDS) for _ in range(2))
    for call in (idle, busy):
        await call.write(asking())
        assert not (await call.read()).error_message
    gate = inside.engine.hook = Gate()
    await busy.write(asking(2))
    await until(gate.has_entered)
    stopping = asyncio.create_task(inside.server.stop(SECONDS))
    assert await idle.code() is Code.UNAVAILABLE
    assert "the server is stopping; ask another one" in await idle.details()
    await busy.write(asking(2, data=1))
    gate.open()
    assert arrays((await busy.read()).infer_response)["label"].shape == (2,)
    assert await busy.code() is Code.UNAVAILABLE
    assert "the server is stopping; ask another one" in await busy.details()
    assert await stopping


async def test_a_unary_call_cannot_be_refined(opened: Open) -> None:
    inside = await opened()
    error = await refused(inside.infer(asking(refine=True)))
    assert error.code() is Code.INVALID_ARGUMENT
    assert "parameters.refine" in str(error.details())


async def test_who_asks_for_statuses_gets_the_first_refusal_as_the_streams_end(opened: Open) -> None:
    inside = await opened()

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        yield asking()
        yield asking(draws=0)

    metadata = (("triton_grpc_error", "true"),)
    error = await refused(everything(inside.stub.ModelStreamInfer(requests(), metadata=metadata, timeout=SECONDS)))
    assert error.code() is Code.INVALID_ARGUMENT
    assert "parameters.draws" in str(error.details())


async def test_bytes_that_are_no_request_end_the_stream_with_a_status(opened: Open) -> None:
    inside = await opened()
    call = inside.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(iter([b"\xff\xff"]))
    assert (await refused(everything(call))).code() is Code.INVALID_ARGUMENT


async def test_no_more_requests_of_a_stream_are_under_way_than_allowed(opened: Open) -> None:
    inside = await opened(stream_requests=3)
    gate = inside.engine.hook = Gate()
    work = 40  # of one row, by the version's own draws

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        for _ in range(12):
            yield asking(1)

    call = inside.stub.ModelStreamInfer(requests(), timeout=SECONDS)
    await until(gate.has_entered)
    await until(lambda: inside.server.device.queued_work == 3 * work)
    for _ in range(200):
        await asyncio.sleep(0)
    assert inside.server.device.queued_work == 3 * work
    gate.open()
    assert len(await everything(call)) == 12


async def test_cancelling_a_stream_frees_everything_it_asked_for(opened: Open) -> None:
    inside = await opened(step_work=10)
    gate = inside.engine.hook = Gate()

    async def requests() -> AsyncIterator[pb.ModelInferRequest]:
        for number in range(20):
            yield asking(1, refine=number % 2 == 0, draws=1000)
        await asyncio.Event().wait()

    call = inside.stub.ModelStreamInfer(requests(), timeout=SECONDS)
    reading = asyncio.create_task(call.read())  # sends are lazy until somebody reads
    await until(gate.has_entered)
    await until(lambda: inside.server.device.queued_work == 20 * 1000)
    call.cancel()
    await until(lambda: inside.server.device.queued_work == 0)
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await inside.infer(asking())


# --- Repository ---


async def test_a_model_is_unloaded_and_loaded_again_by_its_name(opened: Open) -> None:
    inside = await opened(hooked=False)
    await inside.infer(asking())
    await inside.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="mlp"), timeout=SECONDS)
    assert not (await inside.stub.ModelReady(pb.ModelReadyRequest(name="mlp"))).ready
    assert (await refused(inside.infer(asking()))).code() is Code.NOT_FOUND
    index = (await inside.stub.RepositoryIndex(pb.RepositoryIndexRequest())).models
    assert {each.state for each in index if each.name in ("mlp", "mlp.standard")} == {"UNAVAILABLE"}
    await inside.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="mlp"), timeout=SECONDS)
    assert (await inside.stub.ModelReady(pb.ModelReadyRequest(name="mlp"))).ready
    await inside.infer(asking())


async def test_loading_what_is_not_there_or_otherwise_than_it_is_there_is_refused(opened: Open) -> None:
    inside = await opened()
    override = {"config": pb.ModelRepositoryParameter(string_param="{}")}
    for request, code in (
        (pb.RepositoryModelLoadRequest(model_name="nobody"), Code.NOT_FOUND),
        (pb.RepositoryModelLoadRequest(model_name="mlp.standard"), Code.INVALID_ARGUMENT),
        (pb.RepositoryModelLoadRequest(model_name="mlp", parameters=override), Code.INVALID_ARGUMENT),
        (pb.RepositoryModelLoadRequest(model_name="mlp", repository_name="other"), Code.INVALID_ARGUMENT),
    ):
        error = await refused(inside.stub.RepositoryModelLoad(request, timeout=SECONDS))
        assert error.code() is code, error.details()
    unknown = pb.RepositoryModelUnloadRequest(model_name="nobody")
    assert (await refused(inside.stub.RepositoryModelUnload(unknown, timeout=SECONDS))).code() is Code.NOT_FOUND
