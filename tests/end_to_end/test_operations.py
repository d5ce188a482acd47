"""What an operator sees of a running server: its settings, metrics, logs and traces."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from dubito_models.package import ModelVersion
from dubito_protos import open_inference_pb2_grpc as open_grpc
from dubito_protos import uncertainty_pb2 as pb
from dubito_protos import uncertainty_pb2_grpc as pb_grpc
from service.open_inference.wire import asking as inferring
from service.wire import asking

T = TypeVar("T")
SECONDS = 60.0
EVIL = "x\n2026 ERROR forged\u2028 level=error"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PREDICT = "dubito.v1.UncertaintyService/Predict"


def until(found: Callable[[], T]) -> T:
    """Wait for what comes by itself, a moment later."""
    end = time.monotonic() + SECONDS
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return value


@dataclass
class Running:
    """A server in a process of its own, with its log in a file."""

    process: subprocess.Popen[str]
    channel: grpc.Channel
    log: Path

    def predict(self, request: pb.PredictRequest, **metadata: str) -> tuple[grpc.StatusCode, dict[str, Any]]:
        """Ask; returns the status and what came beside the answer."""
        pairs = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
        call = pb_grpc.UncertaintyServiceStub(self.channel).Predict.future(request, timeout=SECONDS, metadata=pairs)
        assert call.exception(SECONDS) is None or isinstance(call.exception(), grpc.RpcError)
        return call.code(), dict(call.trailing_metadata())

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def line(self, request_id: str) -> dict[str, Any]:
        """The line of a call that has ended; that of a refusal may be written just after its status has left."""
        return until(lambda: [line for line in self.lines() if line.get("request_id") == request_id])[-1]

    def scrape(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        [address] = [line["address"] for line in self.lines() if line["message"] == "metrics"]
        with urllib.request.urlopen(address, timeout=SECONDS) as reply:
            families = text_string_to_metric_families(reply.read().decode())
        return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(SECONDS) == 0


@contextlib.contextmanager
def running(repository: Path, folder: Path, environment: Mapping[str, str]) -> Iterator[Running]:
    port, log = folder / "port", folder / "log"
    start = [sys.executable, "-c", "from dubito_service.command import serve; serve()"]
    given = ["--repository", str(repository), "--port", "0", "--port-file", str(port), "--log-format", "json"]
    known = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "DUBITO_"))}
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*start, *given], env={**known, **environment}, stdout=subprocess.PIPE, stderr=stream, text=True
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline(), log.read_text()
        with grpc.insecure_channel(f"127.0.0.1:{port.read_text().strip()}") as channel:
            yield Running(process, channel, log)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture(scope="module")
def repository_of_one(packed: Callable[[str], ModelVersion]) -> Path:
    return packed("mlp").folder.parent.parent


@pytest.fixture(scope="module")
def server(repository_of_one: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    environment = {"DUBITO_METRICS_PORT": "0", "DUBITO_LOG_LEVEL": "debug"}
    with running(repository_of_one, tmp_path_factory.mktemp("served"), environment) as server:
        yield server


def test_an_answer_and_a_refusal_carry_the_caller_s_id_and_so_do_their_lines(server: Running) -> None:
    code, beside = server.predict(asking(3, max_draws=20), x_request_id="mine-1")
    assert (code, beside["x-request-id"]) == (grpc.StatusCode.OK, "mine-1")
    code, beside = server.predict(asking(3, max_draws=0), x_request_id="mine-2")
    assert (code, beside["x-request-id"]) == (grpc.StatusCode.INVALID_ARGUMENT, "mine-2")
    assert "grpc-status-details-bin" in beside
    lines = {name: server.line(name) for name in ("mine-1", "mine-2")}
    assert (lines["mine-1"]["code"], lines["mine-1"]["rows"], lines["mine-1"]["draws"]) == ("OK", 3, 20)
    assert (lines["mine-2"]["level"], lines["mine-2"]["reason"]) == ("info", "InvalidArgument")


def test_a_call_without_an_id_gets_one(server: Running) -> None:
    _, first = server.predict(asking())
    _, second = server.predict(asking())
    assert first["x-request-id"] != second["x-request-id"]


def test_no_name_that_a_caller_makes_up_forges_a_line(server: Running) -> None:
    request = asking()
    request.model = request.id = EVIL
    code, _ = server.predict(request, x_request_id="two words")
    assert code is grpc.StatusCode.NOT_FOUND
    assert all(set(line) >= {"time", "level", "logger", "message"} for line in server.lines())
    assert not [line for line in server.log.read_text().split("\n") if line.startswith("2026 ERROR")]


def test_a_scrape_tells_of_every_call(server: Running) -> None:
    before = server.scrape()
    for _ in range(3):
        server.predict(asking(4, max_draws=20))
    server.predict(asking(4, max_draws=0), x_request_id="refused")
    assert server.line("refused")
    after = server.scrape()

    def grown(name: str, **labels: str) -> float:
        key = name, frozenset(labels.items())
        return after.get(key, 0.0) - before.get(key, 0.0)

    model = {"model": "mlp", "version": "1"}
    assert grown("dubito_calls_total", method=PREDICT, code="OK") == 3
    assert grown("dubito_refusals_total", method=PREDICT, reason="InvalidArgument") == 1
    assert grown("dubito_rows_total", **model, path="monte_carlo") == 12
    assert grown("dubito_draws_total", **model) == 240
    assert grown("dubito_stops_total", **model, reason="max_draws") == 12
    assert grown("dubito_predictive_entropy_nats_count", **model) == 12
    assert grown("dubito_step_seconds_count") >= 3
    assert grown("dubito_pass_rows_sum", **model, path="monte_carlo") >= 12
    assert after["dubito_calls_in_flight", frozenset()] == 0
    assert after["dubito_queue_work", frozenset()] == 0
    state = "dubito_version_state", frozenset({**model, "state": "ready"}.items())
    assert until(lambda: server.scrape().get(state)) == 1
    assert after["dubito_load_seconds_count", frozenset({"model": "mlp"}.items())] == 1
    assert after["process_resident_memory_bytes", frozenset()] > 10**7


def test_a_stream_has_one_id_and_one_line_and_one_that_its_caller_leaves_is_counted_as_cancelled(
    server: Running,
) -> None:
    stub = pb_grpc.UncertaintyServiceStub(server.channel)
    metadata = (("x-request-id", "stream-1"),)
    stream = stub.PredictStream(asking(3, max_draws=160), timeout=SECONDS, metadata=metadata)
    assert len(list(stream)) > 1
    assert dict(stream.trailing_metadata())["x-request-id"] == "stream-1"
    line = server.line("stream-1")
    assert (line["code"], line["draws"]) == ("OK", 160)
    left = stub.PredictStream(asking(100, max_draws=9000), timeout=SECONDS, metadata=(("x-request-id", "left"),))
    next(left)
    left.cancel()
    assert server.line("left")["code"] == "CANCELLED"
    labels = {"method": "dubito.v1.UncertaintyService/PredictStream", "code": "CANCELLED"}
    assert server.scrape()["dubito_calls_total", frozenset(labels.items())] == 1


def test_requests_that_a_stream_refuses_alone_are_counted_by_status_and_error_and_have_lines(server: Running) -> None:
    metadata = (("x-request-id", "bulk-1"),)
    asked = [asking(3, max_draws=20), asking(3, max_draws=0), asking(3, max_draws=0)]
    for number, request in enumerate(asked):
        request.id = str(number)
    own = pb_grpc.UncertaintyServiceStub(server.channel)
    assert len(list(own.PredictBulk(iter(asked), timeout=SECONDS, metadata=metadata))) == 3
    theirs = open_grpc.GRPCInferenceServiceStub(server.channel)
    assert len(list(theirs.ModelStreamInfer(iter([inferring(), inferring(draws=0)]), timeout=SECONDS))) == 2
    found = server.scrape()
    streams = {"dubito.v1.UncertaintyService/PredictBulk": 2, "inference.GRPCInferenceService/ModelStreamInfer": 1}
    for method, refused in streams.items():
        for name, labels, count in (
            ("dubito_stream_requests_total", {"code": "OK"}, 1),
            ("dubito_stream_requests_total", {"code": "INVALID_ARGUMENT"}, refused),
            ("dubito_refusals_total", {"reason": "InvalidArgument"}, refused),
        ):
            assert found[name, frozenset({"method": method, **labels}.items())] == count
    said = [line for line in server.lines() if line["message"] == "request of a stream refused"]
    assert [line.get("request_id") for line in said].count("bulk-1") == 2


def test_without_a_port_there_are_no_metrics_and_calls_that_end_well_leave_no_line(
    repository_of_one: Path, tmp_path: Path
) -> None:
    with running(repository_of_one, tmp_path, {}) as server:
        server.predict(asking(), x_request_id="mine")
        server.stop()
        assert not [line for line in server.lines() if line["message"] == "metrics" or "request_id" in line]
        assert [line for line in server.lines() if line["message"] == "stopped"]


class Collector(otlp_grpc.TraceServiceServicer):
    """Takes in spans, as any collector of OpenTelemetry does."""

    def __init__(self) -> None:
        self.spans: queue.SimpleQueue[Span] = queue.SimpleQueue()
        self.service = ""

    def Export(  # noqa: N802 - of the wire
        self, request: otlp.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> otlp.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            names = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            self.service = names["service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.put(span)
        return otlp.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    servicer = Collector()
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        otlp_grpc.add_TraceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield servicer, f"http://127.0.0.1:{port}"
        server.stop(None).wait()


def test_spans_reach_a_collector_in_the_caller_s_trace_the_last_of_them_when_the_server_stops(
    repository_of_one: Path, tmp_path: Path, collector: tuple[Collector, str]
) -> None:
    servicer, endpoint = collector
    with running(repository_of_one, tmp_path, {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}) as server:
        server.predict(asking(3, max_draws=20), traceparent=f"00-{TRACE}-{PARENT}-01")
        server.stop()
    spans = {}
    while not servicer.spans.empty():
        span = servicer.spans.get()
        spans[span.name] = span
    assert servicer.service == "dubito"
    assert set(spans) == {PREDICT, "queue", "draw"}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert spans[PREDICT].parent_span_id.hex() == PARENT


def test_a_collector_that_is_not_there_keeps_no_server_from_answering_and_stopping(
    repository_of_one: Path, tmp_path: Path
) -> None:
    with running(repository_of_one, tmp_path, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}) as server:
        code, _ = server.predict(asking())
        assert code is grpc.StatusCode.OK
        server.stop()


def test_settings_that_make_no_sense_end_with_2_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "dubito.toml").write_text("max_row = 1\n")
    start = [sys.executable, "-c", "from dubito_service.command import serve; serve()"]
    given = ["--repository", ".", "--config", "dubito.toml"]
    done = subprocess.run([*start, *given], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    said = "max_row in dubito.toml: got a setting that there is not; accepted: max_rows in dubito.toml"
    assert done.stderr == f"Error: {said}, if that was meant\n"
