"""Files of input rows: .npy, .npz, .csv, .parquet, .json."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dubito_client.errors import InvalidArgument, refused

Arrays: TypeAlias = NDArray[Any] | dict[str, NDArray[Any]]


def read_arrays(path: Path) -> Arrays:
    """Read one array of rows, or several by name, from a file; its suffix says what it is.

    Raises `InvalidArgument` for a file that is missing, of another kind, or does not hold rectangular numbers.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise refused("input", path.name, f"a file that ends in {', '.join(_READERS)}")
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
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [(reader.line_num, cells) for reader in [csv.reader(file)] for cells in reader if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise refused("input", f"{path} ({error})", "a comma-separated table in UTF-8") from error
    if lines and any(_cell(cell) is None for cell in lines[0][1]):
        del lines[0]
    if not lines:
        raise refused("input", f"{path} without a row", "at least one row of numbers")
    width = len(lines[0][1])
    for number, cells in lines:
        if len(cells) != width:
            raise refused("input", f"{len(cells)} values in line {number}", f"{width}, as in the first row")
    try:  # whole numbers stay whole: a 64-bit key is no float
        return np.array([cells for _, cells in lines]).astype(np.int64)
    except (ValueError, OverflowError):
        return np.array([[_number(cell, number) for cell in cells] for number, cells in lines])


def _read_parquet(path: Path) -> Arrays:
    """Read one column per feature, or columns of lists: one is the rows, several are inputs by their names."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise InvalidArgument("reading .parquet needs pyarrow: pip install 'dubito[parquet]'") from error
    try:
        with parquet.ParquetFile(path) as file:  # the file alone: a folder's name is no column
            table = file.read()
    except arrow.ArrowInvalid as error:
        raise refused("input", f"{path} ({error})", "a Parquet file") from error
    lists = [field.name for field in table.schema if arrow.types.is_nested(field.type)]
    if not lists and table.num_columns:
        columns = [_numbers(path, column.to_numpy()) for column in table.columns]
        return np.stack(columns, axis=1)
    if len(lists) != table.num_columns or not lists:
        given = f"{path} with {table.num_columns} columns, {len(lists)} of lists"
        raise refused("input", given, "columns that are all numbers or all lists")
    return _named(path, {name: _nested(path, table[name].to_pylist()) for name in lists})


def _read_json(path: Path) -> Arrays:
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise refused("input", f"{path} ({error})", "JSON") from error
    if isinstance(document, dict):
        return {name: _nested(path, values) for name, values in document.items()}
    return _nested(path, document)


_READERS: dict[str, Callable[[Path], Arrays]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".json": _read_json,
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
