"""Tables: from columns by name, as a caller has them, to the numbers that a model declares.

A number column takes numbers, texts that say one, true and false; a category column takes texts, each by its code: 1
for the first declared, 0 for any that is not. A missing value (None, NaN, an empty text) is NaN, or code 0 where a
category may not be missing. Columns may come in any order; those that the model does not declare are passed over.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dubito_client.answers import Column
from dubito_client.errors import ProtocolError, refused

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_MISSING_NUMBERS = {"", "?", "na", "n/a", "#n/a", "<na>", "nan", "null", "none"}  # in any letter case
_TRUTH = {"true": 1.0, "false": 0.0}  # in any letter case
_ABSENT = {"NAType", "NaTType"}  # pandas' types of what is missing


def is_table(value: object) -> bool:
    """Whether this holds columns by name: a mapping, a list of mappings, a data frame, a structured array."""
    if isinstance(value, Mapping) or getattr(getattr(value, "dtype", None), "names", None):
        return True
    if isinstance(value, (list, tuple)):
        return bool(value) and isinstance(value[0], Mapping)
    return hasattr(value, "__getitem__") and (hasattr(value, "columns") or hasattr(value, "column_names"))


def encode_table(table: Any, columns: Sequence[Column], field: str) -> NDArray[np.float64]:
    """Encode a table as numbers (B, C), C being the declared columns in their order.

    Raises `InvalidArgument`, by `field` and the column's name, where a column is missing or a value is no number.
    """
    by_name = _by_name(table, field)
    values = [_cells(by_name, column.name, columns, field) for column in columns]
    lengths = {column.name: len(cells) for column, cells in zip(columns, values, strict=True)}
    if len(set(lengths.values())) > 1:
        given = ", ".join(f"{length} of {name!r}" for name, length in lengths.items())
        raise refused(field, f"columns of different lengths: {given}", "as many values in every column")
    encoded = [_encode(cells, column, field) for column, cells in zip(columns, values, strict=True)]
    return np.stack(encoded, axis=1)


def _by_name(table: Any, field: str) -> Any:
    """Return a table of rows as one of columns; a value that a row lacks is missing."""
    if not isinstance(table, (list, tuple)):
        return table
    odd = next((type(row).__name__ for row in table if not isinstance(row, Mapping)), None)
    if odd is not None:
        raise refused(field, f"a row that is of type {odd}", "rows that all are mappings from column names")
    return {name: [row.get(name) for row in table] for name in dict.fromkeys(key for row in table for key in row)}


def _cells(table: Any, name: str, columns: Sequence[Column], field: str) -> Sequence[Any] | NDArray[Any]:
    """Return a column's values; an array where they are numbers already."""
    names = _names(table)
    if name not in names:
        others = some_of(column.name for column in columns if column.name != name)
        given = f"the columns {some_of(names)}, of which none has this name"
        raise refused(f"{field}.{name}", given, f"a column {name!r}{others and f', beside {others}'}")
    found = table[name]
    if isinstance(found, (str, bytes)) or not hasattr(found, "__len__"):  # one row, its values by name
        return [found]
    if isinstance(found, Mapping):  # values by row labels, as pandas writes a frame as mappings
        return list(found.values())
    if hasattr(found, "__array__"):
        array = np.asarray(found)
        if array.dtype.kind in "biuf" and array.ndim == 1:
            return array
    for method in ("to_pylist", "tolist", "to_list"):  # pyarrow; numpy and pandas; polars
        if hasattr(found, method):
            return list(getattr(found, method)())
    return list(found)


def _names(table: Any) -> list[str]:
    if isinstance(table, Mapping):
        return list(table)
    names = getattr(getattr(table, "dtype", None), "names", None) or getattr(table, "column_names", None)
    return list(table.columns if names is None else names)


def _encode(cells: Sequence[Any] | NDArray[Any], column: Column, field: str) -> NDArray[np.float64]:
    if column.kind == "category":
        codes: dict[str | None, float] = {text: float(code) for code, text in enumerate(column.categories, 1)}
        codes[None] = math.nan if column.allow_nan else 0.0
        return np.array([codes.get(_text(cell), 0.0) for cell in _plain(cells)], np.float64)
    if column.kind != "number":
        raise ProtocolError(f"column {column.name!r} is of a kind that this client does not know: {column.kind}")
    if isinstance(cells, np.ndarray):
        found = cells.astype(np.float64)
    else:
        found = np.array([_number(cell, row, f"{field}.{column.name}") for row, cell in enumerate(cells)], np.float64)
    wrong = np.isinf(found) if column.allow_nan else ~np.isfinite(found)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        given = "no value" if math.isnan(found[row]) else str(found[row])
        accepted = "a finite number, or none" if column.allow_nan else "a finite number in every row"
        raise refused(f"{field}.{column.name}", f"{given} in row {row}", accepted)
    return found


def _plain(cells: Sequence[Any] | NDArray[Any]) -> Sequence[Any]:
    return cells.tolist() if isinstance(cells, np.ndarray) else cells


def _number(cell: object, row: int, field: str) -> float:
    value: float | None = None
    if cell is None or type(cell).__name__ in _ABSENT:
        value = math.nan
    elif isinstance(cell, str):
        text = cell.strip()
        word = text.lower()
        value = float(text) if _NUMBER.fullmatch(text) else math.nan if word in _MISSING_NUMBERS else _TRUTH.get(word)
    elif isinstance(cell, (numbers.Real, Decimal, np.bool_)):
        try:
            value = float(cell)
        except OverflowError:
            value = math.inf
    if value is None:
        raise refused(field, f"{cell!r} in row {row}", "a number")
    return value


def _text(cell: object) -> str | None:
    """Return the text by which a cell is looked up; a whole number has no decimal point, however it came."""
    if isinstance(cell, np.generic):
        cell = cell.item()
    if isinstance(cell, bytes):
        cell = cell.decode("utf-8", "replace")
    if cell is None or type(cell).__name__ in _ABSENT or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return str(cell).strip() or None


def some_of(names: Iterable[object]) -> str:
    """Return names for a message, at most a dozen."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:12]) + (f" and {len(texts) - 12} more" if len(texts) > 12 else "")
