"""The journal: every call has an id and ends in one report and one line; a flood of refusals does not flood the log."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import weakref
from collections.abc import Callable, Iterator

import pytest

from dubito_models.package import ModelVersion
from dubito_models.sampling import SamplingSpec
from dubito_service.reports import AnswerReport, CallReport, Report, StreamedReport
from dubito_service.telemetry import logs
from dubito_service.telemetry.journal import REFUSALS_A_SECOND, Journal
from networks import sample

from ..conftest import Clock

METHOD = "/dubito.v1.UncertaintyService/Predict"
HEALTH = "grpc.health.v1.Health"


class Book:
    """A journal, what it reported, and the lines that it wrote."""

    def __init__(self, clock: Clock, stream: io.StringIO) -> None:
        self.reports: list[Report] = []
        self.journal = Journal(self.reports.append, clock, quiet=(HEALTH,))
        self.clock = clock
        self._stream = stream

    @property
    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]

    def visit(self, code: str = "OK", reason: str = "", request_id: str | None = None, method: str = METHOD) -> str:
        metadata = () if request_id is None else (("x-request-id", request_id),)
        visit = self.journal.begin(method, metadata)
        self.clock.now += 0.25
        self.journal.end(visit, code, reason)
        return visit.request_id


@pytest.fixture
def book(clock: Clock) -> Iterator[Book]:
    stream, handler = io.StringIO(), None
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter())
    access = logging.getLogger("dubito_service.access")
    access.addHandler(handler)
    yield Book(clock, stream)
    access.removeHandler(handler)
    access.setLevel(logging.NOTSET)


def level(value: int) -> None:
    logging.getLogger("dubito_service.access").setLevel(value)


def report(version: ModelVersion) -> AnswerReport:
    answer = version.predict(sample("mlp", 3), SamplingSpec(max_draws=20))
    return AnswerReport(version, 3, answer, 20, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("given", ["mine-1", "a/b:c_d.e+f=@9", "x" * 128])
def test_a_sane_id_is_kept(given: str, book: Book) -> None:
    assert book.visit(request_id=given) == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "two words", "a\nb", "\x1b[31m", "\u00fc", 'a"b'])
def test_any_other_is_replaced_by_a_new_one(given: str | None, book: Book) -> None:
    first, second = book.visit(request_id=given), book.visit(request_id=given)
    assert first != second
    assert {len(first), len(second)} == {16}
    assert given not in (first, second)


def test_a_call_ends_in_one_report_of_its_seconds_and_status(book: Book) -> None:
    book.visit("RESOURCE_EXHAUSTED", "QueueFull")
    assert book.reports == [CallReport(METHOD, "RESOURCE_EXHAUSTED", 0.25, "QueueFull")]


def test_a_call_that_ended_well_has_a_line_for_debugging_that_says_what_was_answered_but_not_the_answer(
    book: Book, packed: Callable[[str], ModelVersion]
) -> None:
    level(logging.INFO)
    book.visit()
    assert book.lines == []
    level(logging.DEBUG)
    visit = book.journal.begin(METHOD, (("x-request-id", "mine"),))
    book.journal.note(report(packed("mlp")))
    book.clock.now += 0.5
    book.journal.end(visit, "OK")
    [line] = book.lines
    assert line.pop("time")
    assert line == {
        "level": "debug",
        "logger": "dubito_service.access",
        "message": "call ended",
        "method": METHOD,
        "code": "OK",
        "milliseconds": 500.0,
        "model": "mlp",
        "version": 1,
        "rows": 3,
        "draws": 20,
        "request_id": "mine",
    }


def test_a_refusal_is_information_and_names_the_error(book: Book) -> None:
    level(logging.INFO)
    book.visit("INVALID_ARGUMENT", "InvalidArgument", "mine")
    [line] = book.lines
    assert (line["code"], line["reason"], line["request_id"]) == ("INVALID_ARGUMENT", "InvalidArgument", "mine")


def test_of_a_flood_the_first_of_each_second_are_written_and_the_next_says_how_many_were_not(book: Book) -> None:
    level(logging.INFO)
    book.clock.now = 100.0
    for _ in range(50):
        book.journal.end(book.journal.begin(METHOD, ()), "RESOURCE_EXHAUSTED", "QueueFull")
    assert len(book.lines) == REFUSALS_A_SECOND
    book.journal.end(book.journal.begin(METHOD, ()), "NOT_FOUND", "NotServed")  # another kind is not held back
    book.clock.now = 101.0
    book.journal.end(book.journal.begin(METHOD, ()), "RESOURCE_EXHAUSTED", "QueueFull")
    *_, other, last = book.lines
    assert other["code"] == "NOT_FOUND"
    assert last["unwritten"] == 50 - REFUSALS_A_SECOND
    assert len(book.reports) == 52  # all of them are counted


def test_a_refused_request_of_a_stream_has_a_line_of_its_call_s_id_and_a_flood_of_them_few(book: Book) -> None:
    level(logging.INFO)
    book.clock.now = 100.0
    visit = book.journal.begin(METHOD, (("x-request-id", "mine"),))
    book.journal.note(StreamedReport(METHOD, "OK"))
    for _ in range(50):
        book.journal.note(StreamedReport(METHOD, "INVALID_ARGUMENT", "InvalidArgument"))
    book.journal.end(visit, "OK")
    assert len(book.lines) == REFUSALS_A_SECOND
    said = {(line["message"], line["code"], line["reason"], line["request_id"]) for line in book.lines}
    assert said == {("request of a stream refused", "INVALID_ARGUMENT", "InvalidArgument", "mine")}


def test_when_debugging_nothing_is_held_back(book: Book) -> None:
    level(logging.DEBUG)
    for _ in range(50):
        book.journal.end(book.journal.begin(METHOD, ()), "RESOURCE_EXHAUSTED", "QueueFull")
    assert len(book.lines) == 50


def test_probes_are_quiet(book: Book) -> None:
    level(logging.INFO)
    book.visit("NOT_FOUND", "NotServed", method=f"/{HEALTH}/Check")
    assert book.lines == []
    assert len(book.reports) == 1


async def test_calls_side_by_side_do_not_mix_and_tasks_of_a_call_are_its_own(
    book: Book, packed: Callable[[str], ModelVersion]
) -> None:
    level(logging.DEBUG)
    ready = asyncio.Barrier(2)
    found = report(packed("mlp"))

    async def call(name: str, answers: int) -> None:
        visit = book.journal.begin(METHOD, (("x-request-id", name),))
        await ready.wait()

        async def answer() -> None:
            book.journal.note(found)

        await asyncio.gather(*(answer() for _ in range(answers)))
        book.journal.end(visit, "OK")

    await asyncio.gather(asyncio.create_task(call("a", 2)), asyncio.create_task(call("b", 0)))
    lines = {line["request_id"]: line for line in book.lines}
    assert lines["a"]["answers"] == 2
    assert "model" not in lines["b"]


def test_an_answer_outside_a_call_is_nobody_s(book: Book, packed: Callable[[str], ModelVersion]) -> None:
    found = report(packed("mlp"))
    asyncio.run(asyncio.sleep(0))
    book.journal.note(found)
    assert book.reports == []


async def test_a_call_that_has_ended_holds_on_to_no_answer(book: Book, packed: Callable[[str], ModelVersion]) -> None:
    visit = book.journal.begin(METHOD, ())
    found = report(packed("mlp"))
    gone = weakref.ref(found.answer.draws)  # type: ignore[union-attr]
    book.journal.note(found)
    book.journal.end(visit, "OK")
    del found
    gc.collect()
    assert gone() is None
