"""Tracing: one span for each call, by OpenTelemetry, in the trace that the caller's metadata names (W3C).

Nothing of OpenTelemetry is imported unless the environment asks for traces, by the variables that its specification
knows: OTEL_EXPORTER_OTLP_ENDPOINT or _TRACES_ENDPOINT, OTEL_TRACES_EXPORTER. Those of the resource, the sampler, the
batches, the exporter and the propagators are read by the SDK itself. No span holds an input or an answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from dubito_models.predictive import Predictive
from dubito_service.reports import AnswerReport

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_STATUS_NUMBERS = {
    "OK": 0, "CANCELLED": 1, "UNKNOWN": 2, "INVALID_ARGUMENT": 3, "DEADLINE_EXCEEDED": 4, "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6, "PERMISSION_DENIED": 7, "RESOURCE_EXHAUSTED": 8, "FAILED_PRECONDITION": 9, "ABORTED": 10,
    "OUT_OF_RANGE": 11, "UNIMPLEMENTED": 12, "INTERNAL": 13, "UNAVAILABLE": 14, "DATA_LOSS": 15, "UNAUTHENTICATED": 16,
}  # fmt: skip
_FAULTS = frozenset(("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"))


class Tracer:
    """Makes spans of calls, and of the parts of each answer."""

    def __init__(self, provider: TracerProvider, exporter: SpanExporter | None = None) -> None:
        self._provider = provider
        self._exporter = exporter
        self._tracer = provider.get_tracer("dubito_service")

    def begin(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Span:
        """Begin the span of a call, within the trace that its metadata names."""
        from opentelemetry import propagate
        from opentelemetry.trace import SpanKind

        name = method.lstrip("/")
        service, _, called = name.rpartition("/")
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        said = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": called}
        return self._tracer.start_span(name, propagate.extract(carrier), SpanKind.SERVER, said)

    def note(self, span: Span, report: AnswerReport) -> None:
        """Put an answer into the span of its call: what it is, and spans of its wait and of its draws, now ended."""
        from opentelemetry import trace

        if not span.is_recording():
            return
        answer = report.answer
        said: dict[str, str | int | list[str]] = {
            "dubito.model": report.version.name,
            "dubito.version": report.version.version,
            "dubito.rows": report.rows,
        }
        if isinstance(answer, Predictive):
            said["dubito.draws"] = int(answer.draws.max())
            said["dubito.stop_reasons"] = sorted({str(reason) for reason in answer.stop_reason})
        span.set_attributes(said)
        ended = time.time_ns()
        arrived = ended - _nanoseconds(report.total_seconds)
        drawing = arrived + _nanoseconds(report.queue_seconds)
        within = trace.set_span_in_context(span)
        self._tracer.start_span("queue", within, start_time=arrived).end(drawing)
        part = self._tracer.start_span(
            "draw" if isinstance(answer, Predictive) else "evaluate",
            within,
            attributes={
                "dubito.compute_seconds": report.compute_seconds
            },  # of the passes it was in; the rest it waited
            start_time=drawing,
        )
        part.end(ended)

    def end(self, span: Span, code: str, request_id: str) -> None:
        """End the span of a call; the faults of a server, not those of a caller, make it an error."""
        from opentelemetry.trace import StatusCode

        span.set_attributes({"rpc.grpc.status_code": _STATUS_NUMBERS.get(code, 2), "dubito.request_id": request_id})
        if code in _FAULTS:
            span.set_status(StatusCode.ERROR, code)
        span.end()

    async def close(self, seconds: float) -> None:
        """Send what is left, and stop; after so many seconds nothing is sent again that did not arrive."""
        closing = asyncio.create_task(asyncio.to_thread(self._provider.shutdown))
        done, _ = await asyncio.wait({closing}, timeout=seconds)
        if not done and self._exporter is not None:
            await asyncio.to_thread(self._exporter.shutdown)
        await closing


def trace_id(span: Span) -> str:
    """Return the id of a span's trace, 32 hexadecimal digits."""
    return f"{span.get_span_context().trace_id:032x}"


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def wants_traces(environment: Mapping[str, str]) -> bool:
    """Tell whether an environment asks for traces."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(environment.get(name) for name in (*_ENDPOINTS, "OTEL_TRACES_EXPORTER"))


def open_tracer(environment: Mapping[str, str]) -> Tracer | None:
    """Return what makes spans where the environment asks for it; else, or where that cannot be done, None and a line.

    The variables are often those of a whole cluster, so that a server which cannot follow them serves all the same.
    """
    if not wants_traces(environment):
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _exporter(environment)
    except ImportError as error:
        log.warning("no traces missing=%s install=%s", error.name, "dubito[otel]")
        return None
    if exporter is None:
        log.warning("no traces exporter=%s accepted=%s", environment["OTEL_TRACES_EXPORTER"], "otlp, console, none")
        return None
    named = {} if environment.get("OTEL_SERVICE_NAME") else {"service.name": "dubito"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracer(provider, exporter)


def _exporter(environment: Mapping[str, str]) -> SpanExporter | None:
    """Return what sends spans away; None for one that is not known."""
    chosen = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    if chosen == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if chosen != "otlp":
        return None
    general = environment.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    if (environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or general) == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    from opentelemetry.exporter.otlp.proto.http import trace_exporter

    return trace_exporter.OTLPSpanExporter()
