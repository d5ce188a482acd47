"""Files of input rows: .npy, .npz, .csv, .parquet, .json."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from dubito_client.columns import is_table
from dubito_client.errors import InvalidArgument, refused

Arrays: TypeAlias = NDArray[Any] | dict[str, NDArray[Any]]
Table: TypeAlias = dict[str, Any] | list[dict[str, Any]]  # columns by name, or rows by column names

T = TypeVar("T")


def read_arrays(path: Path) -> Arrays:
    """Read one array of rows, or several by name, from a file; its suffix says what it is.

    Raises `InvalidArgument` for a file that is missing, of another kind, or does not hold rectangular numbers.
    """
    return _read(path, _READERS)


def read_table(path: Path) -> Table | Arrays:
    """Read columns by name from .csv with a header, .parquet or .json; the numbers of the other files as they are."""
    return _read(path, {**_READERS, **_TABLE_READERS})


def _read(path: Path, readers: Mapping[str, Callable[[Path], T]]) -> T:
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise refused("input", path.name, f"a file that ends in {', '.join(readers)}")
    try:
        return reader(path)
    except OSError as error:
        raise refused("input", f"{path} ({error.strerror or error})", "a file that can be read") from error


def _read_npy(path: Path) -> Arrays:
    try:
        return _numbers(path, np.load(path, allow_pickle=False))
    except (ValueError, EOFError, AttributeError) as error:
        raise refused("input", f"{path} ({error})", "an array of numbers as numpy.save writes it") from error


def _read_npz(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: _numbers(path, archive[name]) for name in archive.files}
    except (ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise refused("input", f"{path} ({error})", "arrays of numbers as numpy.savez writes them") from error
    return _named(path, arrays)


def _read_csv(path: Path) -> Arrays:
    """Read a table of numbers; its first line is a header where a cell of it is no number. An empty cell is NaN."""
    lines = _lines(path, ",")
    if lines and any(_cell(cell) is None for cell in lines[0][1]):
        del lines[0]
    if not lines:
        raise refused("input", f"{path} without a row", "at least one row of numbers")
    _check_widths(lines)
    try:  # whole numbers stay whole: a 64-bit key is no float
        return np.array([cells for _, cells in lines]).astype(np.int64)
    except (ValueError, OverflowError):
        return np.array([[_number(cell, number) for cell in cells] for number, cells in lines])


def _read_csv_table(path: Path) -> Table:
    """Read texts by the names in the first line; between them stand commas, semicolons or tabs, whichever it has."""
    lines = _lines(path, None)
    if len(lines) < 2:
        raise refused("input", f"{path} without a row", "a line of column names, and at least one row")
    _check_widths(lines)
    names = _names(path, lines[0][1])
    return {name: [cells[at] for _, cells in lines[1:]] for at, name in enumerate(names)}


def _lines(path: Path, delimiter: str | None) -> list[tuple[int, list[str]]]:
    """Return the lines that are not blank, each with its number; no delimiter: the first line's most frequent one."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if delimiter is None:
                delimiter = max(",;\t", key=file.readline().count)
                file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            return [(reader.line_num, cells) for cells in reader if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise refused("input", f"{path} ({error})", "a comma-separated table in UTF-8") from error


def _check_widths(lines: list[tuple[int, list[str]]]) -> None:
    width = len(lines[0][1])
    for number, cells in lines:
        if len(cells) != width:
            raise refused("input", f"{len(cells)} values in line {number}", f"{width}, as in the first row")


def _read_parquet(path: Path) -> Arrays:
    """Read one column per feature, or columns of lists: one is the rows, several are inputs by their names."""
    table = _parquet(path)
    from pyarrow import types

    lists = [field.name for field in table.schema if types.is_nested(field.type)]
    if not lists and table.num_columns:
        columns = [_numbers(path, column.to_numpy()) for column in table.columns]
        return np.stack(columns, axis=1)
    if len(lists) != table.num_columns or not lists:
        given = f"{path} with {table.num_columns} columns, {len(lists)} of lists"
        raise refused("input", given, "columns that are all numbers or all lists")
    return _named(path, {name: _nested(path, table[name].to_pylist()) for name in lists})


def _read_parquet_table(path: Path) -> Table:
    table = _parquet(path)
    return dict(zip(_names(path, table.column_names), table.columns, strict=True))


def _names(path: Path, given: Sequence[str]) -> list[str]:
    names = [name.strip() for name in given]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise refused("input", f"{path} with two columns {twice!r}", "columns whose names differ")
    return names


def _parquet(path: Path) -> Any:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise InvalidArgument("reading .parquet needs pyarrow: pip install 'dubito[parquet]'") from error
    try:
        with parquet.ParquetFile(path) as file:  # the file alone: a folder's name is no column
            return file.read()
    except arrow.ArrowInvalid as error:
        raise refused("input", f"{path} ({error})", "a Parquet file") from error


def _read_json(path: Path) -> Arrays:
    document = _json(path)
    if isinstance(document, dict):
        return {name: _nested(path, values) for name, values in document.items()}
    return _nested(path, document)


def _read_json_table(path: Path) -> Table | Arrays:
    """Read a list of rows by column names, or columns by name; other lists are rows of numbers."""
    document = _json(path)
    table: Table = document
    return table if is_table(document) else _nested(path, document)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise refused("input", f"{path} ({error})", "JSON") from error


_READERS: dict[str, Callable[[Path], Arrays]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".json": _read_json,
}
_TABLE_READERS: dict[str, Callable[[Path], Table | Arrays]] = {
    ".csv": _read_csv_table,
    ".parquet": _read_parquet_table,
    ".json": _read_json_table,
}


def _named(path: Path, arrays: dict[str, NDArray[Any]]) -> Arrays:
    """Return arrays by name; one that stands alone needs none, and often has one that nobody chose (`arr_0`)."""
    if not arrays:
        raise refused("input", f"{path} without an array", "at least one")
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def _nested(path: Path, values: object) -> NDArray[Any]:
    """Return nested lists as an array; null is NaN."""
    try:
        array = np.asarray(values)
        return array.astype(np.float64) if array.dtype.kind == "O" else _numbers(path, array)
    except (ValueError, TypeError) as error:
        raise refused("input", f"{path} ({error})", "rectangular nested lists of numbers") from error


def _numbers(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind not in "biuf":
        raise refused("input", f"{path} with {array.dtype} values", "numbers")
    return array


def _number(text: str, line: int) -> float:
    value = _cell(text)
    if value is None:
        raise refused("input", f"{text!r} in line {line}", "a number")
    return value


def _cell(text: str) -> float | None:
    """Return a cell's number, NaN for an empty one, None for what is no number."""
    try:
        return float(text) if text.strip() else float("nan")
    except ValueError:
        return None
