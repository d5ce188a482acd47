"""Tables: from texts, or from one tensor per column, to the numbers that a network was trained on.

A table may come as the signature has it, as numbers (B, C); as texts of the same shape; or as a tensor for each column
under the column's name, (B,) or (B, 1), of numbers or texts, which is how other servers' clients send a data frame.
Texts mean what they mean to `dubito_client`: a number, or a category by the code that the signature gives it, 0 for one
that it does not know; an empty text is a missing value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dubito_models.columns import number_of, text_of
from dubito_models.errors import InvalidArgument
from dubito_models.manifest import ColumnEntry, InputSignature


def check_texts(name: str, shape: tuple[int, ...], signature: Sequence[InputSignature]) -> None:
    """Refuse texts of a name or shape that no table has, before any of them is looked at."""
    field, tables = f"inputs[{name!r}]", [entry for entry in signature if entry.columns is not None]
    for entry in tables:
        columns = entry.columns or ()
        if name == entry.name:
            if len(shape) != 2 or shape[1] != len(columns):
                raise InvalidArgument(f"{field}.shape", str(shape), f"(rows, {len(columns)}), a text for each column")
            return
        if any(name == column.name for column in columns):
            check_column(shape, field)
            return
    names = ", ".join(repr(entry.name) for entry in tables)
    accepted = f"texts for {names} and its columns, numbers for others" if tables else "numbers: no input is a table"
    raise InvalidArgument(f"{field}.datatype", "BYTES", accepted)


def is_column(name: str, signature: Sequence[InputSignature]) -> bool:
    """Tell whether a name is that of a table's column, and of no input."""
    columns = (column.name for entry in signature for column in entry.columns or ())
    return all(name != entry.name for entry in signature) and name in columns


def check_column(shape: tuple[int, ...], field: str) -> None:
    """Refuse a shape that no column has."""
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
        raise InvalidArgument(f"{field}.shape", str(shape), "(rows,) or (rows, 1)")


def gather_columns(inputs: Mapping[str, NDArray[Any]], signature: Sequence[InputSignature]) -> dict[str, NDArray[Any]]:
    """Return inputs as the signature names and types them; anything but tables stays as it is.

    Texts are of a shape that `check_texts` lets pass.
    """
    found = dict(inputs)
    for entry in signature:
        if entry.columns is None:
            continue
        if entry.name in found:
            if found[entry.name].dtype == object:
                found[entry.name] = _of_texts(found[entry.name], entry, entry.columns)
        elif any(column.name in found for column in entry.columns):
            found[entry.name] = _of_columns(found, entry, entry.columns)
    return found


def _of_texts(cells: NDArray[Any], entry: InputSignature, columns: Sequence[ColumnEntry]) -> NDArray[Any]:
    """Return a table of texts as one of numbers."""
    field = f"inputs[{entry.name!r}]"
    encoded = [_encode(cells[:, at], column, field) for at, column in enumerate(columns)]
    return _stack(encoded, entry.dtype)


def _of_columns(inputs: dict[str, NDArray[Any]], entry: InputSignature, columns: Sequence[ColumnEntry]) -> NDArray[Any]:
    """Take the tensors of a table's columns out of the inputs, and return the table."""
    cells: list[NDArray[Any]] = []
    for column in columns:
        field = f"inputs[{column.name!r}]"
        if column.name not in inputs:
            raise InvalidArgument(field, "nothing", f"every column of {entry.name!r}, as one column of it came")
        given = inputs.pop(column.name)
        check_column(given.shape, field)
        if cells and len(given) != len(cells[0]):
            accepted = f"{len(cells[0])} rows, as in {columns[0].name!r}"
            raise InvalidArgument(f"{field}.shape", f"{len(given)} rows", accepted)
        cells.append(given.reshape(-1))
    encoded = [_encode(given, column, f"inputs[{column.name!r}]") for given, column in zip(cells, columns, strict=True)]
    return _stack(encoded, entry.dtype)


def _stack(columns: Sequence[NDArray[np.float64]], dtype: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
        return np.stack(columns, axis=1).astype(dtype)


def _encode(cells: NDArray[Any], column: ColumnEntry, field: str) -> NDArray[np.float64]:
    if column.kind == "category":
        codes: dict[str | None, float] = {text: float(code) for code, text in enumerate(column.categories, 1)}
        codes[None] = math.nan if column.allow_nan else 0.0
        return np.array([codes.get(text_of(cell), 0.0) for cell in cells.tolist()], np.float64)
    if cells.dtype != object:
        return cells.astype(np.float64)
    found = [number_of(cell.strip()) for cell in cells]
    for row, number in enumerate(found):
        if number is None:
            given = f"{cells[row][:64]!r} in row {row}"
            raise InvalidArgument(f"{field}.columns[{column.name!r}]", given, "a number, or an empty text for none")
    return np.array(found, np.float64)
