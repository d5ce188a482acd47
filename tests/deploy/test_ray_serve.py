"""Calls through Ray Serve, on a Ray cluster of this machine (make ray-check)."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import math
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest

from dubito_client import Client
from dubito_models.package import ModelVersion
from dubito_models.sampling import SamplingSpec
from dubito_protos import open_inference_pb2 as open_pb
from dubito_protos import open_inference_pb2_grpc as open_grpc
from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb
from dubito_protos import uncertainty_pb2_grpc as pb_grpc
from dubito_service import ray_deployment
from dubito_service.settings import Settings
from service.wire import asking, detail, probabilities, rows

from .manifests import read

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray (make ray-check)"),
    pytest.mark.filterwarnings("default"),  # Ray's own
]
SECONDS = 60.0  # that a call may take at most; nothing here waits for it


@pytest.fixture(scope="module")
def address(packed: Callable[[str], ModelVersion], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two replicas on a cluster of this machine, whose files lie where paths are short enough for its sockets."""
    repository = tmp_path_factory.mktemp("served")
    shutil.copytree(packed("mlp").folder, repository / "mlp" / "1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(
        repository=repository,
        log_level="warning",
        max_draws=10**6,
        max_work=10**9,
        queue_work=10**9,
        overload_seconds=math.inf,
        reply_seconds=1.0,  # so that a busy machine keeps its deadlines
    )
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray leaves one in the home folder
        import ray
        from ray import serve

        ray.init(num_cpus=2, include_dashboard=False, _temp_dir=folder)
        try:
            ray_deployment.serve_on_ray(settings, replicas=2, cpus=1.0, port=port)
            yield f"127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.fixture
def channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address) as channel:
        yield channel


def test_both_replicas_answer_and_the_same_seed_gets_the_same_answer_from_each(
    channel: grpc.Channel, packed: Callable[[str], ModelVersion]
) -> None:
    stub, open_stub = pb_grpc.UncertaintyServiceStub(channel), open_grpc.GRPCInferenceServiceStub(channel)
    with concurrent.futures.ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda seed: stub.Predict(asking(3, seed=seed % 4), timeout=SECONDS), range(40)))
    for seed in range(4):
        expected = packed("mlp").predict(rows(3), SamplingSpec(seed=seed)).answer.probabilities  # type: ignore[union-attr]
        for answer in answers[seed::4]:
            np.testing.assert_allclose(probabilities(answer), expected, atol=1e-6)
    asked = open_pb.ModelStatisticsRequest(name="mlp")
    with concurrent.futures.ThreadPoolExecutor(8) as callers:
        told = list(callers.map(lambda _: open_stub.ModelStatistics(asked, timeout=SECONDS).model_stats[0], range(64)))
    assert len({(each.last_inference, each.inference_count) for each in told}) == 2


def test_a_client_need_not_know(address: str) -> None:
    with Client(address, timeout=SECONDS) as client:
        assert client.ready(SECONDS)
        assert [each.model for each in client.models()] == ["mlp"]
        *_, last = client.predict_stream("mlp", rows(2), draws=640)
        assert last.final
        assert client.evaluate("mlp", rows(2)).probabilities is not None


def test_a_refusal_keeps_its_details(channel: grpc.Channel) -> None:
    stub = pb_grpc.UncertaintyServiceStub(channel)
    with pytest.raises(grpc.RpcError) as refused:
        stub.Predict(pb.PredictRequest(model="roses"), timeout=SECONDS)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert detail(refused.value, BadRequest).field_violations[0].field == "model"
    with pytest.raises(grpc.RpcError) as refused:
        list(stub.PredictStream(pb.PredictRequest(model="roses"), timeout=SECONDS))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert detail(refused.value, BadRequest).field_violations[0].field == "model"


def test_what_is_no_message_is_the_callers_fault(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/dubito.v1.UncertaintyService/Predict")(b"\xff\xff", timeout=SECONDS)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_before_its_deadline_a_caller_gets_what_has_been_drawn(channel: grpc.Channel) -> None:
    stub = pb_grpc.UncertaintyServiceStub(channel)
    answer = stub.Predict(asking(100, max_draws=10**5), timeout=1.0)
    assert set(answer.stop_reason) == {pb.STOP_REASON_DEADLINE}
    draws = tensors.decode(answer.draws)
    assert 0 < draws.min() <= draws.max() < 10**5


def test_requests_go_both_ways_over_one_stream(channel: grpc.Channel) -> None:
    stub, names = open_grpc.GRPCInferenceServiceStub(channel), [str(number) for number in range(50)]
    asked = [open_pb.ModelInferRequest(model_name="roses", id=name) for name in names]
    replies = list(stub.ModelStreamInfer(iter(asked), timeout=SECONDS))
    assert sorted(reply.infer_response.id for reply in replies) == sorted(names)


def test_no_stream_loses_its_last_message(channel: grpc.Channel) -> None:
    stub = pb_grpc.UncertaintyServiceStub(channel)
    with concurrent.futures.ThreadPoolExecutor(4) as callers:
        streams = callers.map(lambda _: list(stub.PredictStream(asking(1, max_draws=80), timeout=SECONDS)), range(50))
        assert all(replies[-1].final for replies in streams)


def test_calls_that_change_one_replica_of_many_are_not_there(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        pb_grpc.ModelServiceStub(channel).LoadModel(pb.LoadModelRequest(model="mlp"), timeout=SECONDS)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_ray_reads_the_file_for_a_cluster(tmp_path: Path) -> None:
    from ray.serve import Application
    from ray.serve.config import gRPCOptions
    from ray.serve.schema import ServeDeploySchema

    [document] = read("ray/serve.yaml")
    cluster = ServeDeploySchema.model_validate(document)
    assert gRPCOptions(**cluster.grpc_options.model_dump()).grpc_servicer_func_callable == [ray_deployment.add_services]
    [application] = cluster.applications
    assert isinstance(ray_deployment.app({**application.args, "repository": str(tmp_path)}), Application)
