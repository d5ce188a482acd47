"""Tracing: a span for each call in the caller's trace, with what was answered and no payload; nothing unless asked."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from dubito_models.package import ModelVersion
from dubito_models.sampling import SamplingSpec
from dubito_service.reports import AnswerReport, ignore
from dubito_service.telemetry.journal import Journal
from dubito_service.telemetry.logs import call_fields
from dubito_service.telemetry.tracing import Tracer, open_tracer, wants_traces
from networks import sample

from ..conftest import Clock

METHOD = "/dubito.v1.UncertaintyService/Predict"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def journal(exporter: InMemorySpanExporter, clock: Clock) -> Iterator[Journal]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield Journal(ignore, clock, Tracer(provider), ("grpc.health.v1.Health",))
    provider.shutdown()


def call(journal: Journal, *answers: AnswerReport, code: str = "OK", traceparent: str = "") -> None:
    metadata = (("x-request-id", "mine"), ("traceparent", traceparent), ("token-bin", b"\0"))
    visit = journal.begin(METHOD, metadata)
    for answer in answers:
        journal.note(answer)
    journal.end(visit, code)


def report(version: ModelVersion, standard: bool = False) -> AnswerReport:
    rows = sample("mlp", 3)
    answer: Any = version.evaluate(rows) if standard else version.predict(rows, SamplingSpec(max_draws=20))
    return AnswerReport(version, 3, answer, 20, queue_seconds=0.25, compute_seconds=0.125, total_seconds=1.0)


def ended(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name.rpartition("/")[2]: span for span in exporter.get_finished_spans()}


def test_a_call_is_a_server_s_span_in_the_trace_of_its_metadata(
    journal: Journal, exporter: InMemorySpanExporter
) -> None:
    call(journal, traceparent=f"00-{TRACE}-{PARENT}-01")
    [span] = exporter.get_finished_spans()
    assert (span.name, span.kind) == (METHOD[1:], SpanKind.SERVER)
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == PARENT
    assert dict(span.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "dubito.v1.UncertaintyService",
        "rpc.method": "Predict",
        "rpc.grpc.status_code": 0,
        "dubito.request_id": "mine",
    }


@pytest.mark.parametrize("traceparent", ["", "garbage", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{PARENT}"])
def test_without_a_sound_context_a_call_begins_a_trace_of_its_own(
    traceparent: str, journal: Journal, exporter: InMemorySpanExporter
) -> None:
    call(journal, traceparent=traceparent)
    [span] = exporter.get_finished_spans()
    assert span.parent is None
    assert span.context.trace_id


def test_the_trace_s_id_stands_in_the_lines_of_the_call(journal: Journal) -> None:
    visit = journal.begin(METHOD, (("x-request-id", "mine"), ("traceparent", f"00-{TRACE}-{PARENT}-01")))
    assert call_fields.get() == {"request_id": "mine", "trace_id": TRACE}
    journal.end(visit, "OK")
    assert call_fields.get() == {}


def test_an_answer_has_spans_of_its_wait_and_its_draws_and_says_what_it_is(
    journal: Journal, exporter: InMemorySpanExporter, packed: Callable[[str], ModelVersion]
) -> None:
    call(journal, report(packed("mlp")))
    spans = ended(exporter)
    assert set(spans) == {"queue", "draw", "Predict"}
    root, queue, draw = spans["Predict"], spans["queue"], spans["draw"]
    for part in (queue, draw):
        assert part.parent is not None
        assert part.parent.span_id == root.context.span_id
        assert part.start_time is not None
        assert part.end_time is not None
    assert queue.end_time == draw.start_time
    assert (queue.end_time or 0) - (queue.start_time or 0) == 250_000_000
    assert (draw.end_time or 0) - (draw.start_time or 0) == 750_000_000
    assert dict(draw.attributes or {}) == {"dubito.compute_seconds": 0.125}
    attributes = dict(root.attributes or {})
    assert {key: value for key, value in attributes.items() if key.startswith("dubito.")} == {
        "dubito.model": "mlp",
        "dubito.version": 1,
        "dubito.rows": 3,
        "dubito.draws": 20,
        "dubito.stop_reasons": ("max_draws",),
        "dubito.request_id": "mine",
    }


def test_the_standard_path_is_evaluated(
    journal: Journal, exporter: InMemorySpanExporter, packed: Callable[[str], ModelVersion]
) -> None:
    call(journal, report(packed("mlp"), standard=True))
    assert set(ended(exporter)) == {"queue", "evaluate", "Predict"}


@pytest.mark.parametrize(
    ("code", "number", "status"),
    [
        ("INVALID_ARGUMENT", 3, StatusCode.UNSET),
        ("RESOURCE_EXHAUSTED", 8, StatusCode.UNSET),
        ("INTERNAL", 13, StatusCode.ERROR),
        ("UNAVAILABLE", 14, StatusCode.ERROR),
    ],
)
def test_a_server_s_fault_is_an_error_and_a_caller_s_is_not(
    code: str, number: int, status: StatusCode, journal: Journal, exporter: InMemorySpanExporter
) -> None:
    call(journal, code=code)
    [span] = exporter.get_finished_spans()
    assert (span.attributes or {})["rpc.grpc.status_code"] == number
    assert span.status.status_code is status


def test_what_the_caller_does_not_sample_is_not_recorded(
    journal: Journal, exporter: InMemorySpanExporter, packed: Callable[[str], ModelVersion]
) -> None:
    call(journal, report(packed("mlp")), traceparent=f"00-{TRACE}-{PARENT}-00")
    assert exporter.get_finished_spans() == ()


def test_probes_leave_no_spans(journal: Journal, exporter: InMemorySpanExporter) -> None:
    journal.end(journal.begin("/grpc.health.v1.Health/Check", ()), "OK")
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4317"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317"}, False),
    ],
)
def test_traces_are_made_where_the_environment_asks_for_them(environment: dict[str, str], wanted: bool) -> None:
    assert wants_traces(environment) is wanted


def test_where_nobody_asks_nothing_of_opentelemetry_is_imported() -> None:
    code = (
        "import sys; from dubito_service import server; from dubito_service.telemetry import tracing; "
        "assert tracing.open_tracer({}) is None; "
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_the_packages_are_missing_the_server_says_so_and_serves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert open_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4317"}) is None
    assert "dubito[otel]" in caplog.text


def test_an_exporter_that_is_not_known_is_named(caplog: pytest.LogCaptureFixture) -> None:
    assert open_tracer({"OTEL_TRACES_EXPORTER": "zipkin"}) is None
    assert "zipkin" in caplog.text


class Stuck(InMemorySpanExporter):
    """Tries to send until it is shut down."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        assert self.stopped.wait(60)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.stopped.set()


async def test_spans_that_cannot_be_sent_do_not_keep_the_server(clock: Clock) -> None:
    provider, stuck = TracerProvider(), Stuck()
    provider.add_span_processor(BatchSpanProcessor(stuck))
    tracer = Tracer(provider, stuck)
    call(Journal(ignore, clock, tracer))
    await tracer.close(0.01)
    assert stuck.stopped.is_set()
