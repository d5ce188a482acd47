"""Reading: one input of a block's rows, from the columns that feed it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as arrow
from numpy.typing import NDArray
from pyarrow import types

from dubito_batch.cells import Flags, Wanted, read_codes, read_numbers
from dubito_batch.lists import Lists, Shape, fit, is_list_kind, shape_text, unfold
from dubito_client.answers import Column, InputSignature

_SHOWN = 60  # characters of a cell


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """One input of a block's rows.

    `kinds` (B,): which of `shapes` each row has, -1 where it has a problem, which `problem` tells. `gather` returns
    the inputs (n, ...) of n rows that have all the same.
    """

    shapes: tuple[Shape, ...]
    kinds: NDArray[np.int64]
    problem: Callable[[int], str]
    gather: Callable[[NDArray[np.int64], Shape], NDArray[Any]]


def read_input(block: arrow.RecordBatch, declared: InputSignature, names: Sequence[str]) -> Rows:
    """Read an input from the columns of these names: one for each value of a row, or one of lists."""
    columns = [block.column(name) for name in names]
    if len(columns) == 1 and is_list_kind(columns[0].type):
        return _read_lists(columns[0], names[0], declared)
    return _read_scalars(columns, names, declared)


def problem_text(column: str, given: str, accepted: str) -> str:
    """Say what is wrong with a row."""
    return f"{column}: got {given}; accepted: {accepted}"


def _wanted(declared: InputSignature, column: Column | None) -> Wanted:
    if column is not None:
        return Wanted(declared.dtype, missing=column.allow_nan)
    return Wanted(declared.dtype, missing=declared.allow_nan, infinite=declared.allow_nan)


def _cell(value: object) -> str:
    if value is None:
        return "no value"
    text = repr(value) if isinstance(value, (str, bytes)) else str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


# --- One column for each value ---


def _read_scalars(columns: Sequence[arrow.Array], names: Sequence[str], declared: InputSignature) -> Rows:
    meant: Sequence[Column | None] = declared.columns or [None] * len(columns)
    read = [_read_column(cells, declared, column) for cells, column in zip(columns, meant, strict=True)]
    numbers = np.empty((len(columns[0]), len(columns)), np.result_type(*(found for found, _ in read)))  # (B, values)
    kinds = np.zeros(len(numbers), np.int64)
    for at, (found, bad) in enumerate(read):
        numbers[:, at] = found
        kinds[bad] = -1
    shape = fit((len(columns),), declared.shape[1:])

    def problem(row: int) -> str:
        at = next(at for at, (_, bad) in enumerate(read) if bad[row])
        return problem_text(names[at], _cell(columns[at][row].as_py()), str(_wanted(declared, meant[at])))

    def gather(chosen: NDArray[np.int64], to: Shape) -> NDArray[Any]:
        found = numbers if len(chosen) == len(numbers) else numbers[chosen]
        return found.reshape(len(chosen), *to)

    return Rows((shape or (),), kinds, problem, gather)


def _read_column(cells: arrow.Array, declared: InputSignature, column: Column | None) -> tuple[NDArray[Any], Flags]:
    """Return a column's numbers (B,) of the declared type, and which the model would not take."""
    wanted = _wanted(declared, column)
    if column is None:
        return read_numbers(cells, wanted)
    if column.kind == "category":
        return read_codes(cells, column, wanted)
    # A table's numbers pass through float64, as they did in training.
    return read_numbers(cells.cast(arrow.float64(), safe=False) if types.is_integer(cells.type) else cells, wanted)


# --- One column of lists ---


def _read_lists(column: arrow.Array, name: str, declared: InputSignature) -> Rows:
    lists = unfold(column)
    shapes, kinds = _declared_shapes(lists, declared.shape[1:])
    counts = np.where(kinds >= 0, lists.shapes.prod(axis=1), 0)
    values, bad = read_numbers(
        lists.values, Wanted(declared.dtype, missing=True) if declared.columns else _wanted(declared, None)
    )
    if declared.columns:
        bad |= _bad_in_columns(values, declared.columns, lists.starts[kinds >= 0])
    kinds = np.where(_any_between(bad, lists.starts, lists.starts + counts), -1, kinds)

    def problem(row: int) -> str:
        if lists.absent[row]:
            found = column[row].as_py()
            given = "no value" if found is None else f"{_cell(found)}, in which a list is missing"
            return problem_text(name, given, f"shape {shape_text(declared.shape[1:])}")
        at = np.flatnonzero(bad[lists.starts[row] : lists.starts[row] + counts[row]])
        if not at.size:
            shape = shape_text(lists.shapes[row].tolist())
            given = "lists of different lengths" if lists.uneven[row] else f"shape {shape}"
            return problem_text(name, given, f"shape {shape_text(declared.shape[1:])}")
        first = int(at[0])
        given = _cell(lists.values[int(lists.starts[row]) + first].as_py())
        meant = declared.columns[first] if declared.columns else None
        return problem_text(name, f"{given} as value {first} of the row", _accepted(declared, meant))

    return Rows(shapes, kinds, problem, lambda chosen, to: _gather(values, lists, chosen, to))


def _accepted(declared: InputSignature, column: Column | None) -> str:
    if column is not None and column.kind == "category":
        return "a category's code, a whole number from 0 on" + (", or none" if column.allow_nan else "")
    return str(_wanted(declared, column))


def _declared_shapes(lists: Lists, row: Sequence[int | None]) -> tuple[tuple[Shape, ...], NDArray[np.int64]]:
    """Return the shapes that an input takes of those that rows have, and which of them each row (B,) has, or -1."""
    shapes = lists.shapes if lists.axes is None else lists.shapes[:, list(lists.axes)]
    if not len(shapes):
        return (), np.zeros(0, np.int64)
    if (shapes == shapes[0]).all():
        different, kinds = shapes[:1], np.zeros(len(shapes), np.int64)
    else:
        different, kinds = np.unique(shapes, axis=0, return_inverse=True)
        kinds = kinds.reshape(-1)
    found = [fit(tuple(shape), row) for shape in different.tolist()]
    unfit = np.array([shape is None for shape in found])
    return tuple(shape or () for shape in found), np.where(lists.absent | lists.uneven | unfit[kinds], -1, kinds)


def _bad_in_columns(values: NDArray[Any], columns: Sequence[Column], starts: NDArray[np.int64]) -> Flags:
    """Return which values a table's columns do not take; a row begins at each start."""
    bad = np.zeros(len(values), np.bool_)
    for at, column in enumerate(columns):
        cells = values[starts + at]
        missing = np.isnan(cells)
        if not column.allow_nan:
            bad[starts + at] |= missing
        if column.kind == "category":
            bad[starts + at] |= ~missing & ((cells < 0) | (np.trunc(cells) != cells))
    return bad


def _any_between(flags: Flags, lows: NDArray[np.int64], highs: NDArray[np.int64]) -> Flags:
    if not flags.any():
        return np.zeros(len(lows), np.bool_)
    before = np.concatenate([[0], np.cumsum(flags, dtype=np.int64)])
    return np.asarray(before[highs] > before[lows], np.bool_)


def _gather(values: NDArray[Any], lists: Lists, chosen: NDArray[np.int64], shape: Shape) -> NDArray[Any]:
    """Return the inputs (n, *shape) of n rows."""
    count, starts = math.prod(shape), lists.starts[chosen]
    if (np.diff(starts) == count).all():
        found = values[starts[0] : starts[0] + len(chosen) * count]
    else:
        found = values[starts[:, None] + np.arange(count)]
    if lists.axes is None:
        return found.reshape(len(chosen), *shape)
    stored = found.reshape(len(chosen), *lists.shapes[chosen[0]])
    meant = np.ascontiguousarray(stored.transpose(0, *(1 + axis for axis in lists.axes)))
    return meant.reshape(len(chosen), *shape)
