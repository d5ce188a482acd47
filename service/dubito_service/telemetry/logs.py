"""Logs: one line for each record, as text or as JSON, whatever callers put into names and ids.

A record whose template is words and `name=%s` pairs is written as an event and its fields. What is not printable is
escaped and a value with blanks in it quoted, so that no caller can end a line, begin another or add a field. Within a
call its request id, and that of its trace, stand in every line. Metadata that are no text, which gRPC itself would
quote before it is known who calls, are counted and not told.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

# Of the call that is being answered; goes into every line.
call_fields: ContextVar[Mapping[str, str]] = ContextVar("call_fields", default={})  # noqa: B039 - nobody changes it

UNREADABLE_SECONDS = 60.0  # between lines about metadata that are no text

_PAIR = re.compile(r"(\w+)=(%[-.\d]*[a-z])")
_PLAIN = re.compile(r"[^\s\"=]+")


def escape(text: str) -> str:
    """Return a text with all that is not printable escaped: line ends, control characters, signs that turn the line."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


@functools.lru_cache(maxsize=1024)
def _read(template: str) -> tuple[str, tuple[tuple[str, str], ...]] | None:
    """Split a template into what happened and (name, conversion) pairs; None where it is written otherwise."""
    pairs = _PAIR.findall(template)
    if not pairs or template.count("%") != len(pairs):
        return None
    return " ".join(re.sub(rf",?\s*{_PAIR.pattern}", "", template).split()), tuple(pairs)


def _parts(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """Return what happened, and the fields: (name, value), numbers as such."""
    found = _read(record.msg) if isinstance(record.msg, str) else None
    if found is None or not isinstance(record.args, tuple) or len(record.args) != len(found[1]):
        return record.getMessage(), dict(call_fields.get())
    event, pairs = found
    fields: dict[str, Any] = {}
    for (name, conversion), value in zip(pairs, record.args, strict=True):
        numeric = isinstance(value, int | float)
        fields[name] = value if numeric and conversion in ("%s", "%d") else conversion % (value,)
        if numeric and conversion.endswith("f"):
            fields[name] = float(fields[name])
    return event, {**fields, **call_fields.get()}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """Time, level, logger, what happened, name=value pairs; the lines of a trace are indented below."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record."""
        event, fields = _parts(record)
        pairs = "".join(f" {name}={_quoted(str(value))}" for name, value in fields.items())
        line = f"{_time(record)} {record.levelname} {record.name} {escape(event)}{pairs}"
        if record.exc_info:
            trace = self.formatException(record.exc_info).splitlines()
            line += "".join(f"\n    {escape(each)}" for each in trace)
        return line


def _quoted(value: str) -> str:
    return value if _PLAIN.fullmatch(value) and value.isprintable() else escape(json.dumps(value, ensure_ascii=False))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the fields, and the trace where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        event, fields = _parts(record)
        said = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name, "message": event}
        trace = {"trace": self.formatException(record.exc_info)} if record.exc_info else {}
        return json.dumps({**said, **fields, **trace, **said}, default=str)


class Unreadable(logging.Filter):
    """Of metadata that are no text, of which gRPC writes every byte and a trace, tells once in a while how many came.

    Whoever reaches the port can send them, and they may be secrets.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._next = -math.inf
        self._unwritten = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is written, and leave nothing in it that a caller sent."""
        if not (record.name.startswith("grpc.") and record.exc_info and isinstance(record.exc_info[1], UnicodeError)):
            return True
        now = self._clock()
        if now < self._next:
            self._unwritten += 1
            return False
        record.msg, record.args = "metadata that are no text unwritten=%d", (self._unwritten,)
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.exc_info = record.exc_text = None
        self._next, self._unwritten = now + UNREADABLE_SECONDS, 0
        return logging.getLogger(record.name).isEnabledFor(logging.WARNING)


def start(level: str, style: str, stream: TextIO = sys.stderr) -> None:
    """Send all records of a level or above to a stream, as "text" or "json"; Python's warnings too.

    Of other packages none below information: what they say for debugging may hold what callers sent.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    handler.addFilter(Unreadable(time.monotonic))
    least: int = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(least, logging.INFO), handlers=[handler], force=True)
    for package in ("dubito_service", "dubito_models"):
        logging.getLogger(package).setLevel(least)
    logging.captureWarnings(True)
