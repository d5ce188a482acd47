"""Logs: a line for each record, read back by machine, that no caller can break or forge."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest

from dubito_service.telemetry import logs

from ..conftest import Clock

EVIL = 'x\n2026-01-01T00:00:00.000Z ERROR root forged admin=yes \x1b[31m\r\u2028\u202e level=error "quoted"'


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    root.handlers.clear()  # pytest's own would be closed
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    for package in ("dubito_service", "dubito_models"):
        logging.getLogger(package).setLevel(logging.NOTSET)
    logging.captureWarnings(False)


def log() -> logging.Logger:
    return logging.getLogger("dubito_service.somewhere")


def test_a_template_of_pairs_is_an_event_and_its_fields(stream: io.StringIO) -> None:
    logs.start("info", "json", stream)
    log().info("version ready model=%s version=%d seconds=%.2f", "digits", 3, 1.234)
    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "dubito_service.somewhere",
        "message": "version ready",
        "model": "digits",
        "version": 3,
        "seconds": 1.23,
    }


def test_text_has_the_same_fields(stream: io.StringIO) -> None:
    logs.start("info", "text", stream)
    log().info("version ready model=%s version=%d reason=%s", "digits", 3, "two words")
    line = stream.getvalue()
    assert line.endswith('Z INFO dubito_service.somewhere version ready model=digits version=3 reason="two words"\n')


def test_a_record_that_is_written_otherwise_is_a_message(stream: io.StringIO) -> None:
    logs.start("info", "json", stream)
    log().info("50%% done of %s", "it")
    log().info("plain")
    log().info("mapped %(a)s a=%(a)s", {"a": 1})
    messages = [json.loads(line)["message"] for line in stream.getvalue().splitlines()]
    assert messages == ["50% done of it", "plain", "mapped 1 a=1"]


@pytest.mark.parametrize("style", ["text", "json"])
def test_no_text_of_a_caller_begins_a_line_or_adds_a_field(style: str, stream: io.StringIO) -> None:
    logs.start("info", style, stream)
    log().info("call ended model=%s rows=%d", EVIL, 1)
    log().info("said %s", EVIL)
    log().info("call ended model=%s rows=%d", "x rows=9", 1)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    if style == "json":
        assert json.loads(lines[0])["model"] == EVIL
        assert json.loads(lines[2])["rows"] == 1
    else:
        assert 'model="x rows=9" rows=1' in lines[2]
        assert " rows=1" in lines[0].rsplit('"', 1)[1]


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_trace_stays_with_its_record_whatever_the_error_says(style: str, stream: io.StringIO) -> None:
    logs.start("info", style, stream)
    try:
        raise ValueError(EVIL)
    except ValueError:
        log().exception("pass failed requests=%d", 2)
    first, *rest = stream.getvalue().splitlines()
    if style == "json":
        assert not rest
        assert EVIL in json.loads(first)["trace"]
    else:
        assert rest
        assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_the_fields_of_the_call_stand_in_every_line_of_it(stream: io.StringIO) -> None:
    logs.start("info", "json", stream)
    token = logs.call_fields.set({"request_id": "abc"})
    try:
        log().info("version ready model=%s", "digits")
        log().info("plain")
    finally:
        logs.call_fields.reset(token)
    log().info("plain")
    assert [json.loads(line).get("request_id") for line in stream.getvalue().splitlines()] == ["abc", "abc", None]


def unreadable(value: bytes, name: str = "grpc._cython.cygrpc") -> logging.LogRecord:
    """What gRPC says of metadata that are no text."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return logging.LogRecord(name, logging.ERROR, __file__, 1, "Invalid encoding on %s", (value,), sys.exc_info())
    raise AssertionError("a text")


@pytest.mark.parametrize("style", ["text", "json"])
def test_of_metadata_that_are_no_text_no_byte_and_few_lines_are_written(style: str, stream: io.StringIO) -> None:
    logs.start("warning", style, stream)
    for _ in range(50):
        logging.getLogger("grpc._cython.cygrpc").handle(unreadable(b"\xff a secret"))
    [line] = stream.getvalue().splitlines()
    assert "metadata that are no text" in line
    assert not re.search("secret|xff|error", line, re.IGNORECASE)


def test_metadata_that_are_no_text_are_counted_and_told_of_after_a_while(clock: Clock) -> None:
    filtering, written = logs.Unreadable(clock), []
    for _ in range(3):
        records = [unreadable(b"\xff") for _ in range(10)]
        written += [record.getMessage() for record in records if filtering.filter(record)]
        clock.now += logs.UNREADABLE_SECONDS
    assert written == [f"metadata that are no text unwritten={count}" for count in (0, 9, 9)]


def test_what_else_is_logged_stays_as_it_is(clock: Clock) -> None:
    own = unreadable(b"\xff", "dubito_service.somewhere")
    failed = logging.LogRecord("grpc._cython.cygrpc", logging.ERROR, __file__, 1, "Unexpected %s", ("end",), None)
    filtering = logs.Unreadable(clock)
    assert filtering.filter(own)
    assert filtering.filter(failed)
    assert own.exc_info
    assert failed.getMessage() == "Unexpected end"


def test_records_below_the_level_are_left_out(stream: io.StringIO) -> None:
    logs.start("warning", "text", stream)
    log().info("plain")
    assert stream.getvalue() == ""


def test_of_other_packages_nothing_is_written_for_debugging(stream: io.StringIO) -> None:
    """It may hold what callers sent."""
    logs.start("debug", "text", stream)
    logging.getLogger("grpc").debug("a payload")
    log().debug("plain")
    assert "plain" in stream.getvalue()
    assert "payload" not in stream.getvalue()
