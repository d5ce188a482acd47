"""A replica without Ray: what it answers is what its server answers, with the status, the deadline and the end."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2

from dubito_models.errors import InvalidArgument
from dubito_models.package import ModelVersion
from dubito_protos import open_inference_pb2 as open_pb
from dubito_protos import uncertainty_pb2 as pb
from dubito_service.ray_deployment import Arguments, Replica, app, of_replica
from dubito_service.ray_proxy import REPLY, SECONDS_LEFT, STATUS
from dubito_service.scheduling.devices import Devices
from dubito_service.settings import Settings
from dubito_service.telemetry import logs
from service.wire import asking, probabilities, rows

from .manifests import read

Code = grpc.StatusCode


class Context:
    """The context of a call, as Ray gives it to a replica."""

    def __init__(self, *sent: tuple[str, str]) -> None:
        self._sent = sent
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.trailers: dict[str, Any] = {}

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("user-agent", "grpc-python/1"), ("request_id", "of Ray"), *self._sent]

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, trailers: list[tuple[str, Any]]) -> None:
        self.trailers = dict(trailers)


@pytest.fixture
async def replica(
    packed: Callable[[str], ModelVersion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Any]:
    monkeypatch.setattr(logs, "start", lambda level, style: None)  # this process has its own logs
    version = packed("mlp")
    shutil.copytree(version.folder, tmp_path / "mlp" / "1")
    made = Replica.__new__(Replica)
    settings = Settings(repository=tmp_path, log_level="error", grace_seconds=5, calibration_seconds=0)
    await made.__init__(of_replica(settings, 1, 1.0))  # type: ignore[misc]
    yield made
    await made.close()


async def test_an_answer_is_the_servers_own_and_that_of_every_other_replica(
    replica: Any, packed: Callable[[str], ModelVersion]
) -> None:
    payload = asking(3).SerializeToString()
    answers = [pb.PredictResponse.FromString(bytes(await replica.Predict(payload, Context()))) for _ in range(2)]
    expected = packed("mlp").predict(rows(3)).answer.probabilities
    for answer in answers:
        np.testing.assert_allclose(probabilities(answer), expected, atol=1e-6)


async def test_both_protocols_and_health_are_there(replica: Any) -> None:
    assert open_pb.ServerReadyResponse.FromString(bytes(await replica.ServerReady(b"", Context()))).ready
    health = health_pb2.HealthCheckResponse.FromString(bytes(await replica.Check(b"", Context())))
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    await replica.check_health()


async def test_a_replica_that_has_lost_a_worker_is_not_healthy(replica: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Devices, "lost", True)
    with pytest.raises(RuntimeError, match="lost a worker"):
        await replica.check_health()


async def test_a_refusal_keeps_its_code_its_words_and_its_details(replica: Any) -> None:
    context = Context()
    request = pb.PredictRequest(model="roses")
    assert await replica.Predict(request.SerializeToString(), context) == b""
    assert context.code is Code.NOT_FOUND
    assert "roses" in context.details
    [packed] = Status.FromString(context.trailers["grpc-status-details-bin"]).details
    found = BadRequest()
    assert packed.Unpack(found)
    assert found.field_violations[0].field == "model"


async def test_what_is_no_message_is_the_callers_fault(replica: Any) -> None:
    context = Context()
    await replica.Predict(b"\xff\xff", context)
    assert context.code is Code.INVALID_ARGUMENT


async def test_the_id_of_a_request_comes_back(replica: Any) -> None:
    context = Context(("x-request-id", "mine"))
    await replica.Predict(asking(1).SerializeToString(), context)
    assert (context.code, context.trailers["x-request-id"]) == (None, "mine")


async def test_a_deadline_that_is_over_is_missed(replica: Any) -> None:
    context = Context((SECONDS_LEFT, "0.000000"))
    await replica.Predict(asking(1).SerializeToString(), context)
    assert context.code is Code.DEADLINE_EXCEEDED


async def test_a_stream_ends_with_one_message_more_that_brings_its_status(replica: Any) -> None:
    context = Context()
    stream = replica.PredictStream(asking(2, max_draws=640).SerializeToString(), context)
    *replies, last = [reply async for reply in stream]
    assert len(replies) > 1
    assert all(reply.startswith(REPLY) for reply in replies)
    assert pb.PredictResponse.FromString(replies[-1].removeprefix(REPLY)).classification.label
    assert (context.code, last) == (Code.OK, STATUS)


async def test_a_stream_that_is_refused_says_so_in_the_same_way(replica: Any) -> None:
    context = Context()
    request = pb.PredictRequest(model="roses").SerializeToString()
    assert [bytes(reply) async for reply in replica.PredictStream(request, context)] == [STATUS]
    assert context.code is Code.NOT_FOUND
    assert "grpc-status-details-bin" in context.trailers


async def test_requests_that_come_as_a_stream_go_on_as_one(replica: Any) -> None:
    async def requests() -> AsyncIterator[bytes]:
        yield open_pb.ModelInferRequest(model_name="roses", id="first").SerializeToString()

    context = Context()
    [reply, _] = [reply async for reply in replica.ModelStreamInfer(requests(), context)]
    found = open_pb.ModelStreamInferResponse.FromString(reply.removeprefix(REPLY))
    assert (context.code, found.infer_response.id) == (Code.OK, "first")
    assert "roses" in found.error_message


async def test_a_caller_that_leaves_ends_the_work(replica: Any) -> None:
    stream = replica.PredictStream(asking(50, max_draws=10_000).SerializeToString(), Context())
    await anext(stream)
    await stream.aclose()
    async with asyncio.timeout(60):
        while replica._server.device.queued_work:
            await asyncio.sleep(0.01)


async def test_nobody_changes_what_one_replica_of_many_serves(replica: Any) -> None:
    assert not hasattr(replica, "LoadModel")
    assert not hasattr(replica, "RepositoryModelUnload")


async def test_a_replica_that_is_closed_leaves_nothing_to_close(replica: Any) -> None:
    await replica.close()
    assert replica.__del__() is None


def settings(**given: Any) -> Settings:
    return Settings(repository="/models", **given)


@pytest.mark.parametrize(
    ("field", "replicas", "given"),
    [
        ("tls_certificate", 1, {"tls_certificate": "tls.crt", "tls_key": "tls.key"}),
        ("tokens", 1, {"tokens": "tokens.toml"}),
        ("caller_calls", 1, {"caller_calls": 5}),
        ("caller_work", 1, {"caller_work": 0.5}),
        ("state", 2, {"state": "/state"}),
        ("receipt_key_file", 2, {"state": "postgresql+psycopg://db/dubito"}),
    ],
)
def test_what_does_not_hold_behind_the_proxies_is_refused(field: str, replicas: int, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: got"):
        of_replica(settings(**given), replicas, 2.0)


@pytest.mark.parametrize(
    ("replicas", "given"),
    [
        (1, {"state": "/state"}),
        (2, {"state": "postgresql+psycopg://db/dubito", "receipt_key_file": "key"}),
        (2, {"tokens": "tokens.toml", "plaintext_tokens": True, "caller_calls": 5, "caller_work": 0.5}),
    ],
)
def test_what_holds_there_is_taken(replicas: int, given: dict[str, Any]) -> None:
    found = of_replica(settings(**given), replicas, 2.0)
    assert found.model_dump(include=set(given)) == settings(**given).model_dump(include=set(given))


def test_replicas_that_share_a_machine_get_along() -> None:
    found = of_replica(settings(host="0.0.0.0", port=50051, port_file="port"), 4, 3.0)
    assert (found.host, found.port, found.port_file, found.admin) == ("127.0.0.1", 0, None, "off")
    assert found.torch_threads == 2
    assert of_replica(settings(torch_threads=5), 4, 3.0).torch_threads == 5
    assert found.caller_calls == found.max_streams == found.max_calls  # all calls come from Ray's proxy


@pytest.mark.parametrize(("asked", "got"), [("auto", "cpu"), ("cpu", "cpu"), ("cuda", "cuda")])
def test_a_replica_uses_no_gpu_that_it_was_not_given(asked: str, got: str) -> None:
    assert of_replica(settings(device=asked), 2, 2.0).device == got


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("replicas", {"replicas": 0}),
        ("cpus", {"cpus": "none"}),
        ("--max-rowz", {"max_rowz": 5}),
        ("--port", {"port": -1}),
    ],
)
def test_an_application_names_the_argument_that_is_wrong(field: str, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: got"):
        app({"repository": "/models", **given})


def test_what_a_cluster_is_given_is_what_an_application_takes() -> None:
    [cluster] = read("ray/serve.yaml")
    [application] = cluster["applications"]
    chosen = Arguments.model_validate(application["args"])
    assert (chosen.replicas, chosen.cpus) == (2, 2.0)
    assert set(chosen.model_extra or ()) <= set(Settings.model_fields)
    assert application["import_path"] == f"{Replica.__module__}:app"
    assert cluster["grpc_options"]["port"] == Settings.model_fields["port"].default
