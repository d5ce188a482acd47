"""The journal: every call from its arrival to its end, its id, what was answered, its metrics, line and span.

A call has the id that its metadata brings (`x-request-id`), or a new one; it goes back with the answer and stands in
every line of the log that the call leaves. The line of a call that ended well is for debugging, that of one that was
refused is information, as is that of a stream's request, which is refused alone. Of many such a second only the first
are written: the next one says how many were not.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable, Collection, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dubito_models.predictive import Predictive
from dubito_service.reports import AnswerReport, CallReport, Report, StreamedReport, Watch
from dubito_service.telemetry.logs import call_fields
from dubito_service.telemetry.tracing import Tracer, trace_id

if TYPE_CHECKING:
    from opentelemetry.trace import Span

REQUEST_ID = "x-request-id"
REFUSALS_A_SECOND = 5  # that are written of each method and code
_SANE = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

access = logging.getLogger("dubito_service.access")


@dataclass(slots=True)
class Visit:
    """A call that is being answered, how many answers it has had, and the last of them."""

    method: str
    request_id: str
    began: float
    span: Span | None = None
    answers: int = 0
    last: AnswerReport | None = None

    @property
    def trailers(self) -> tuple[tuple[str, str], ...]:
        """What goes back to the caller beside the answer."""
        return ((REQUEST_ID, self.request_id),)


_visit: ContextVar[Visit | None] = ContextVar("visit", default=None)


@dataclass(slots=True)
class _Flood:
    """How many lines of one kind were written in a second, and how many were not."""

    second: int = -1
    written: int = 0
    kept_back: int = 0


class Journal:
    """Follows the calls of one event loop. `quiet`: services of which neither lines above debug nor spans are made."""

    def __init__(
        self,
        watch: Watch,
        clock: Callable[[], float],
        tracer: Tracer | None = None,
        quiet: Collection[str] = (),
    ) -> None:
        self._watch = watch
        self._clock = clock
        self._tracer = tracer
        self._quiet = frozenset(quiet)
        self._floods: dict[tuple[str, str], _Flood] = {}

    def begin(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Visit:
        """Begin to follow a call, in the task that answers it."""
        pairs = tuple(metadata)
        visit = Visit(method, _request_id(pairs), self._clock())
        fields = {"request_id": visit.request_id}
        if self._tracer is not None and not self._is_quiet(method):
            visit.span = self._tracer.begin(method, pairs)
            fields["trace_id"] = trace_id(visit.span)
        _visit.set(visit)
        call_fields.set(fields)
        return visit

    def note(self, report: Report) -> None:
        """Take up an answer that is made for the call of this task, or of the one that started it, or a refusal."""
        if isinstance(report, StreamedReport) and report.reason:
            template = "request of a stream refused method=%s code=%s reason=%s"
            said: list[object] = [report.method, report.code, report.reason]
            self._write_some((report.method, report.code), template, said, self._clock())
        visit = _visit.get()
        if visit is None or not isinstance(report, AnswerReport):
            return
        visit.last = report
        visit.answers += 1
        if self._tracer is not None and visit.span is not None:
            self._tracer.note(visit.span, report)

    def end(self, visit: Visit, code: str, reason: str = "") -> None:
        """End a call with the name of its status, and of the error it was refused with."""
        now = self._clock()
        self._watch(CallReport(visit.method, code, now - visit.began, reason))
        self._write(visit, code, reason, now)
        if self._tracer is not None and visit.span is not None:
            self._tracer.end(visit.span, code, visit.request_id)
        visit.last = None  # tasks that this one started may outlive it, and must not hold on to a version
        _visit.set(None)
        call_fields.set({})

    def _is_quiet(self, method: str) -> bool:
        return method.split("/")[1] in self._quiet

    def _write(self, visit: Visit, code: str, reason: str, now: float) -> None:
        level = logging.DEBUG if code == "OK" or self._is_quiet(visit.method) else logging.INFO
        if not access.isEnabledFor(level):
            return
        template = "call ended method=%s code=%s milliseconds=%.1f"
        said: list[object] = [visit.method, code, (now - visit.began) * 1e3]
        if reason:
            template += " reason=%s"
            said.append(reason)
        if visit.last is not None:
            version, answer = visit.last.version, visit.last.answer
            draws = int(answer.draws.max()) if isinstance(answer, Predictive) else 1
            template += " model=%s version=%d rows=%d draws=%d"
            said += [version.name, version.version, visit.last.rows, draws]
        if visit.answers > 1:
            template += " answers=%d"
            said.append(visit.answers)
        if level > logging.DEBUG:
            self._write_some((visit.method, code), template, said, now)
        else:
            access.log(level, template, *said)

    def _write_some(self, kind: tuple[str, str], template: str, said: list[object], now: float) -> None:
        """Write the line of a refusal, or count it where there are many of its method and code."""
        if not access.isEnabledFor(logging.DEBUG):
            flood = self._floods.setdefault(kind, _Flood())
            if not _admit(flood, int(now)):
                return
            if flood.kept_back:
                template += " unwritten=%d"
                said.append(flood.kept_back)
                flood.kept_back = 0
        access.info(template, *said)


def _admit(flood: _Flood, second: int) -> bool:
    """Tell whether one more line of this kind is written in this second."""
    if flood.second != second:
        flood.second, flood.written = second, 0
    flood.written += 1
    if flood.written > REFUSALS_A_SECOND:
        flood.kept_back += 1
        return False
    return True


def _request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the id that a caller gave, where it is one; else a new one."""
    for key, value in metadata:
        if key == REQUEST_ID and isinstance(value, str) and _SANE.fullmatch(value):
            return value
    return secrets.token_hex(8)
