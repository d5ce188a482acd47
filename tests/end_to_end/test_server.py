"""The server over a real socket: honest statuses, answers that neighbours do not change, and an orderly end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from numpy.typing import NDArray

from dubito_models.package import ModelVersion, load_version
from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb
from dubito_protos import uncertainty_pb2_grpc as pb_grpc
from service.wire import asking, detail, probabilities, rows

Code = grpc.StatusCode
Health = health_pb2.HealthCheckResponse
UNCERTAINTY, MODELS = "dubito.v1.UncertaintyService", "dubito.v1.ModelService"
MAX_BYTES = 2**20
SECONDS = 60.0  # that a call may take at most; nothing here waits for it


@pytest.fixture(scope="module")
def folder(packed: Callable[[str], ModelVersion], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository: a good version, then a corrupt and a half-written one, and a model of another task."""
    root = tmp_path_factory.mktemp("served")
    mlp, price = packed("mlp"), packed("two-inputs")
    for number in (1, 2, 3):
        target = root / "mlp" / str(number)
        shutil.copytree(mlp.folder, target)
        (target / "manifest.json").write_text(mlp.manifest.model_copy(update={"version": number}).model_dump_json())
    shutil.copytree(price.folder, root / "two-inputs" / str(price.version))
    program = root / "mlp" / "2" / "program.pt2"
    program.write_bytes(program.read_bytes()[:-1] + b"?")
    (root / "mlp" / "3" / "manifest.json").unlink()
    return root


@dataclass(frozen=True)
class Running:
    """`dubito serve` in a process of its own, and a channel to it."""

    process: subprocess.Popen[str]
    channel: grpc.Channel
    address: str

    @property
    def stub(self) -> pb_grpc.UncertaintyServiceStub:
        return pb_grpc.UncertaintyServiceStub(self.channel)

    def predict(self, request: pb.PredictRequest, timeout: float = SECONDS) -> pb.PredictResponse:
        return self.stub.Predict(request, timeout=timeout)

    def send(self, path: str, payload: bytes) -> bytes:
        return self.channel.unary_unary(path)(payload, timeout=SECONDS)  # type: ignore[no-any-return]


def command(*arguments: str) -> list[str]:
    start = "from dubito_service.command import serve; serve()"
    return [sys.executable, "-c", start, *arguments]


@contextmanager
def running(folder: Path, port_file: Path, *arguments: str, **settings: object) -> Iterator[Running]:
    given = ["--repository", str(folder), "--port", "0", "--port-file", str(port_file), *arguments]
    environment = {**os.environ, **{f"DUBITO_{name.upper()}": str(value) for name, value in settings.items()}}
    process = subprocess.Popen(command(*given), env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = f"127.0.0.1:{port_file.read_text().strip()}"
        assert f"on {address}" in line
        with grpc.insecure_channel(address) as channel:
            yield Running(process, channel, address)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits = {"max_message_bytes": MAX_BYTES, "max_rows": 1000}
    with running(folder, tmp_path_factory.mktemp("port") / "port", **limits) as server:
        yield server


Harm = Callable[[pb.PredictRequest], object]


def tensor(array: NDArray[np.generic]) -> Harm:
    return lambda request: request.inputs[0].CopyFrom(tensors.encode(array, "input"))


BAD: dict[str, tuple[Harm, grpc.StatusCode, str, str]] = {
    "model": (lambda r: setattr(r, "model", "nlp"), Code.NOT_FOUND, "model", "got 'nlp'; accepted: mlp, two-inputs"),
    "version": (lambda r: setattr(r, "version", 9), Code.NOT_FOUND, "version", "got 9; accepted: 1"),
    "input name": (lambda r: setattr(r.inputs[0], "name", "x"), Code.INVALID_ARGUMENT, "inputs['x']", "named input"),
    "rank": (tensor(rows(2)[None]), Code.INVALID_ARGUMENT, "inputs['input'].shape", "of shape (rows, 6)"),
    "dtype": (tensor(rows(2).astype("f8")), Code.INVALID_ARGUMENT, "inputs['input'].dtype", "got float64; accepted"),
    "byte length": (
        lambda r: setattr(r.inputs[0], "data", b"1234567"),
        Code.INVALID_ARGUMENT,
        "inputs['input'].data",
        "got 7 bytes; accepted: 72 bytes",
    ),
    "NaN": (tensor(rows(2) * np.float32(np.nan)), Code.INVALID_ARGUMENT, "inputs['input']", "accepted: finite"),
    "0 rows": (tensor(rows(0)), Code.INVALID_ARGUMENT, "inputs['input'].shape", "got 0 rows; accepted: at least 1"),
    "too many rows": (
        tensor(rows(1001)),
        Code.INVALID_ARGUMENT,
        "inputs['input'].shape",
        "got 1001 rows; accepted: 1 to 1000",
    ),
    "0 draws": (
        lambda r: setattr(r.sampling, "max_draws", 0),
        Code.INVALID_ARGUMENT,
        "sampling.max_draws",
        "got 0; accepted: 1 to 10000",
    ),
    "a million draws": (
        lambda r: setattr(r.sampling, "max_draws", 10**6),
        Code.INVALID_ARGUMENT,
        "sampling.max_draws",
        "got 1000000; accepted: 1 to 10000",
    ),
    "negative tolerance": (
        lambda r: setattr(r.sampling.stopping, "target", -1.0),
        Code.INVALID_ARGUMENT,
        "sampling.stopping.target",
        "got -1.0; accepted",
    ),
    "a name of half a megabyte": (
        lambda r: setattr(r, "model", "ü" * 250_000),
        Code.NOT_FOUND,
        "model",
        "...; accepted: mlp, two-inputs",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_gets_its_status_with_field_given_and_accepted_and_the_next_good_one_an_answer(
    case: str, server: Running
) -> None:
    harm, code, field, description = BAD[case]
    request = asking()
    harm(request)
    with pytest.raises(grpc.RpcError) as caught:
        server.predict(request)
    assert caught.value.code() is code
    [violation] = detail(caught.value, BadRequest).field_violations
    assert violation.field == field
    assert description in violation.description
    assert violation.reason == code.name
    assert len(server.predict(asking()).stop_reason) == 3


def test_a_million_rows_are_refused_by_a_server_as_it_comes_and_the_next_good_request_answered(
    folder: Path, tmp_path: Path
) -> None:
    with running(folder, tmp_path / "port") as server:
        request = asking()
        tensor(np.zeros((10**6, 6), np.float32))(request)
        with pytest.raises(grpc.RpcError) as caught:
            server.predict(request)
        assert caught.value.code() is Code.INVALID_ARGUMENT
        [violation] = detail(caught.value, BadRequest).field_violations
        assert violation.field == "inputs['input'].shape"
        assert violation.description == "got 1000000 rows; accepted: 1 to 10000 rows a request"
        assert len(server.predict(asking()).stop_reason) == 3


def test_a_message_beyond_the_limit_is_refused_and_the_next_good_request_answered(server: Running) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.send(f"/{UNCERTAINTY}/Predict", bytes(MAX_BYTES + 1))
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    assert server.predict(asking()).final


@pytest.mark.parametrize(
    "path",
    [
        f"/{UNCERTAINTY}/Predict",
        f"/{UNCERTAINTY}/Evaluate",
        f"/{MODELS}/GetModel",
        "/grpc.health.v1.Health/Check",
    ],
)
def test_garbage_is_an_invalid_argument_and_the_next_good_request_answered(path: str, server: Running) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.send(path, b"\xff\xfe garbage")
    assert caught.value.code() is Code.INVALID_ARGUMENT
    assert detail(caught.value, BadRequest).field_violations
    assert server.predict(asking()).final


def test_garbage_on_a_stream_is_an_invalid_argument(server: Running) -> None:
    call = server.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"\xff\xfe garbage", timeout=SECONDS)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() is Code.INVALID_ARGUMENT


def test_versions_that_did_not_load_are_listed_with_the_reason(server: Running) -> None:
    listed = pb_grpc.ModelServiceStub(server.channel).ListModels(pb.ListModelsRequest(), timeout=SECONDS).models
    states = {(status.model, status.version): status for status in listed}
    assert states["mlp", 1].state == states["two-inputs", 1].state == pb.MODEL_STATE_READY
    assert states["mlp", 2].state == states["mlp", 3].state == pb.MODEL_STATE_FAILED
    assert "checksum" in states["mlp", 2].reason
    assert "manifest.json is missing" in states["mlp", 3].reason
    assert server.predict(asking()).version == 1


def test_a_model_is_described(server: Running) -> None:
    stub = pb_grpc.ModelServiceStub(server.channel)
    reply = stub.GetModel(pb.GetModelRequest(model="two-inputs"), timeout=SECONDS)
    assert [signature.name for signature in reply.inputs] == ["tokens", "features"]
    assert reply.max_rows == 1000
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetModel(pb.GetModelRequest(model="nlp"), timeout=SECONDS)
    assert caught.value.code() is Code.NOT_FOUND


def test_a_tolerance_is_kept_row_by_row(server: Running) -> None:
    request = asking(8, max_draws=1000)
    error = tensors.decode(server.predict(asking(8)).standard_error).max(1)
    request.sampling.stopping.target = float(3 * np.median(error))  # a target alone means a tolerance
    reply = server.predict(request)
    draws = tensors.decode(reply.draws)
    assert draws.min() < 40 <= draws.max() < 1000
    assert set(reply.stop_reason) == {pb.STOP_REASON_TOLERANCE}
    assert (tensors.decode(reply.standard_error) <= request.sampling.stopping.target * (1 + 1e-6)).all()


@pytest.mark.parametrize(("change", "field"), [
    ({"rule": pb.STOPPING_RULE_TOLERANCE}, "sampling.stopping.target"),
    ({"target": -1.0}, "sampling.stopping.target"),
    ({"rule": pb.STOPPING_RULE_DECISION, "level": 1.5}, "sampling.stopping.level"),
    ({"rule": 17}, "sampling.stopping.rule"),
    ({"quantity": 9, "target": 0.1}, "sampling.stopping.quantity"),
])  # fmt: skip
def test_a_rule_that_makes_no_sense_names_the_field(server: Running, change: dict[str, float], field: str) -> None:
    request = asking()
    for name, value in change.items():
        setattr(request.sampling.stopping, name, value)
    with pytest.raises(grpc.RpcError) as caught:
        server.predict(request)
    assert caught.value.code() is Code.INVALID_ARGUMENT
    assert detail(caught.value, BadRequest).field_violations[0].field == field


def test_a_stream_refines_and_ends_as_predict_answers(server: Running) -> None:
    request = asking(5, max_draws=160, seed=4)
    replies = list(server.stub.PredictStream(request, timeout=SECONDS))
    whole = server.predict(request)
    used = [int(tensors.decode(reply.draws)[0]) for reply in replies]
    assert used == sorted(set(used))
    assert used[-1] == 160
    assert [reply.final for reply in replies] == [False] * (len(replies) - 1) + [True]
    assert all(set(reply.stop_reason) == {pb.STOP_REASON_UNSPECIFIED} for reply in replies[:-1])
    np.testing.assert_allclose(probabilities(replies[-1]), probabilities(whole), rtol=0, atol=1e-6)
    for reply in replies[:-1]:
        same = server.predict(asking(5, max_draws=int(tensors.decode(reply.draws)[0]), seed=4))
        np.testing.assert_allclose(probabilities(reply), probabilities(same), rtol=0, atol=1e-6)


def test_leaving_a_stream_costs_no_further_draw_and_a_wrong_request_has_its_status(server: Running) -> None:
    stream = server.stub.PredictStream(asking(100, max_draws=9000), timeout=SECONDS)
    first = next(stream)
    assert int(tensors.decode(first.draws)[0]) < 9000
    stream.cancel()
    assert server.predict(asking()).final
    with pytest.raises(grpc.RpcError) as caught:
        next(server.stub.PredictStream(asking(max_draws=0), timeout=SECONDS))
    assert caught.value.code() is Code.INVALID_ARGUMENT


def test_rows_have_a_joint_covariance(server: Running) -> None:
    request = asking(3)
    request.sampling.joint = True
    reply = server.predict(request)
    joint = tensors.decode(reply.joint_covariance)
    assert joint.shape == (3, 3, 4)
    deviation = tensors.decode(reply.classification.standard_deviation)
    np.testing.assert_allclose(np.einsum("iik->ik", joint), deviation**2, rtol=1e-9)


def test_neighbours_do_not_matter(server: Running) -> None:
    """Law 2: a request alone equals the same one among 32 concurrent strangers, at equal draws."""
    before = server.predict(asking(3, data=1))
    strangers = [asking(1 + i % 7, data=100 + i, max_draws=10 + 10 * (i % 8), seed=i % 3) for i in range(32)]
    calls = [server.stub.Predict.future(other, timeout=SECONDS) for other in strangers[:16]]
    mine = server.stub.Predict.future(asking(3, data=1), timeout=SECONDS)
    calls += [server.stub.Predict.future(other, timeout=SECONDS) for other in strangers[16:]]
    among = mine.result()
    assert all(call.result().final for call in calls)
    assert tensors.decode(among.draws).tolist() == tensors.decode(before.draws).tolist()
    np.testing.assert_allclose(probabilities(among), probabilities(before), rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        tensors.decode(among.classification.mutual_information),
        tensors.decode(before.classification.mutual_information),
        rtol=0,
        atol=1e-6,
    )


def test_an_answer_can_be_replayed_from_what_it_says(server: Running) -> None:
    reply = server.predict(asking(2, data=4, max_draws=33))
    used = int(tensors.decode(reply.draws)[0])
    assert used == 40  # whole groups of 10
    again = asking(2, data=4, max_draws=used, min_draws=used, seed=reply.seed, design=reply.design)
    again.version = reply.version
    np.testing.assert_allclose(probabilities(server.predict(again)), probabilities(reply), rtol=0, atol=1e-12)


def test_rows_may_have_masks_of_their_own_and_these_are_replayed_among_strangers_too(server: Running) -> None:
    request = asking(3, data=4, max_draws=20, raw_draws=True, mask_scope=pb.MASK_SCOPE_ROW)
    draws = tensors.decode(server.predict(request).raw_draws)
    others = [asking(5, data=9, max_draws=20), request] * 20  # which start together, and must not share a pass
    replies = [call.result() for call in [server.stub.Predict.future(each, timeout=SECONDS) for each in others]][1::2]
    for reply in replies:
        assert reply.mask_scope == pb.MASK_SCOPE_ROW
        np.testing.assert_allclose(tensors.decode(reply.raw_draws), draws, rtol=0, atol=1e-6)
    shared = tensors.decode(server.predict(asking(3, data=4, max_draws=20, raw_draws=True)).raw_draws)
    assert np.abs(draws - shared).max(axis=(0, 2)).min() > 1e-3


def test_what_was_asked_comes_back(server: Running) -> None:
    request = asking(2, max_draws=20, seed=11, raw_draws=True)
    request.id = "mine"
    request.output.uncalibrated = True
    reply = server.predict(request)
    assert (reply.id, reply.seed, reply.model) == ("mine", 11, "mlp")
    assert tensors.decode(reply.raw_draws).shape == (20, 2, 4)
    assert "no calibration" in reply.warnings[0]
    timings = reply.timings
    assert 0 <= timings.queue_seconds <= timings.total_seconds
    assert 0 < timings.compute_seconds <= timings.total_seconds


def test_the_standard_path_is_the_network_with_dropout_off(server: Running, folder: Path) -> None:
    request = pb.EvaluateRequest(model="mlp", inputs=asking(5).inputs, id="e")
    reply = server.stub.Evaluate(request, timeout=SECONDS)
    expected = load_version(folder / "mlp" / "1").evaluate(rows(5))
    np.testing.assert_allclose(tensors.decode(reply.output), expected.output, rtol=0, atol=1e-6)
    assert tensors.decode(reply.label).tolist() == np.asarray(expected.label).tolist()
    assert (reply.id, reply.version) == ("e", 1)


def test_reflection_lists_the_services(server: Running) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    [answer] = stub.ServerReflectionInfo(iter([ask]), timeout=SECONDS)
    names = {service.name for service in answer.list_services_response.service}
    assert {UNCERTAINTY, MODELS, "grpc.health.v1.Health"} <= names


def test_health_knows_the_server_and_each_service_and_no_other(server: Running) -> None:
    stub = health_pb2_grpc.HealthStub(server.channel)
    for name in ("", UNCERTAINTY, MODELS):
        assert stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=SECONDS).status == Health.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=SECONDS)
    assert caught.value.code() is Code.NOT_FOUND
    watching = stub.Watch(health_pb2.HealthCheckRequest(service="other"), timeout=SECONDS)
    assert next(watching).status == Health.SERVICE_UNKNOWN
    watching.cancel()


@contextmanager
def fresh(folder: Path, tmp_path: Path, *arguments: str, **settings: object) -> Iterator[Running]:
    """A server of the test's own, for it to stop; its log is on the process's standard error."""
    with running(folder, tmp_path / "port", *arguments, **settings) as server:
        yield server


def watch(server: Running) -> Iterator[health_pb2.HealthCheckResponse]:
    stub = health_pb2_grpc.HealthStub(server.channel)
    seen: Iterator[health_pb2.HealthCheckResponse] = stub.Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS)
    assert next(seen).status == Health.SERVING
    return seen


def test_sigterm_finishes_what_is_in_flight_refuses_what_is_new_and_exits_0(folder: Path, tmp_path: Path) -> None:
    with fresh(folder, tmp_path) as server:
        seen = watch(server)
        long = server.stub.Predict.future(asking(90, max_draws=10_000), timeout=SECONDS)
        assert server.predict(asking()).final  # the long one has arrived before it
        server.process.send_signal(signal.SIGTERM)
        assert next(seen).status == Health.NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            server.predict(asking())
        assert caught.value.code() is Code.UNAVAILABLE
        assert set(long.result().stop_reason) == {pb.STOP_REASON_MAX_DRAWS}
        assert server.process.wait(SECONDS) == 0


def test_beyond_the_grace_a_call_is_told_and_the_server_exits_0(folder: Path, tmp_path: Path) -> None:
    with fresh(folder, tmp_path, "--grace-seconds", "0", max_work=10**9, queue_work=10**9) as server:
        endless = server.stub.Predict.future(asking(9000, max_draws=4000), timeout=SECONDS)
        assert server.predict(asking()).final
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            endless.result()
        assert caught.value.code() is Code.UNAVAILABLE
        assert server.process.wait(SECONDS) == 0


def test_a_second_signal_exits_at_once(folder: Path, tmp_path: Path) -> None:
    with fresh(folder, tmp_path, "--grace-seconds", "600", max_work=10**9, queue_work=10**9) as server:
        seen = watch(server)
        endless = server.stub.Predict.future(asking(9000, max_draws=4000), timeout=SECONDS)
        assert server.predict(asking()).final
        server.process.send_signal(signal.SIGTERM)
        assert next(seen).status == Health.NOT_SERVING
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(SECONDS) == 128 + signal.SIGTERM
        with pytest.raises(grpc.RpcError):
            endless.result()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--repository", "."], "address"),
        (["--repository", "./nowhere"], "nowhere"),
        (["--repository", ".", "--max-rows", "0"], "--max-rows"),
        ([], "--repository"),
    ],
    ids=["port taken", "no such repository", "bad setting", "no repository"],
)
def test_a_server_that_cannot_start_says_why_in_a_line(
    arguments: list[str], said: str, server: Running, tmp_path: Path
) -> None:
    host, port = server.address.split(":")
    given = [*arguments, "--host", host, "--port", port]
    done = subprocess.run(command(*given), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert said in done.stderr if said != "address" else f"cannot listen on {server.address}" in done.stderr
    assert "Traceback" not in done.stderr
