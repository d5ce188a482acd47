"""Files: one is written whole or not at all; the lines of a table are read."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from dubito_models.errors import InvalidArgument


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file through a partial one beside it, flushed to the disk, that then takes its name."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Read a table's lines that are not empty: their numbers, and cells between commas, semicolons or tabs.

    Raises `InvalidArgument` where it is no such table in UTF-8.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=first.count))
            return [(reader.line_num, cells) for cells in reader if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidArgument("data", f"{path} ({error})", "a comma-separated table in UTF-8") from None
