"""Cells: the numbers that the cells of a column say, and which of them a model would not take.

What a cell says is as `dubito_client.columns` has it; here for whole columns at once, so that only texts that are
written in a rare way are looked at one by one, and each of them once.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np
import pyarrow as arrow
from numpy.typing import NDArray
from pyarrow import compute, types

from dubito_client.answers import Column
from dubito_client.columns import encode_table
from dubito_client.errors import InvalidArgument

Flags: TypeAlias = NDArray[np.bool_]

_PLAIN = r"^-?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_NOTHING = ("", "NA", "N/A", "nan", "NaN", "null", "NULL", "None", "?")  # other spellings are read one by one
_ANY = Column("text", "number", allow_nan=True)
_EXACT = 2.0**53  # from here on not every whole number is a float64


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a cell must be: a number of this type; missing, or infinite, only where that is said."""

    dtype: str  # numpy's name; "unspecified" for any
    missing: bool = False
    infinite: bool = False

    def __str__(self) -> str:
        if self.dtype == "bool":
            return "true or false, 1 or 0"
        if self.dtype == "unspecified":
            number = "number"
        else:
            number = f"number that {self.dtype} can hold"
            if np.dtype(self.dtype).kind != "f":
                return f"a whole {number}"
        finite = "" if self.infinite else "finite "
        return f"a {finite}{number}{', or none' if self.missing else ''}"


def is_number_kind(kind: arrow.DataType) -> bool:
    """Whether cells of a type may say numbers: numbers, truth values, texts."""
    if types.is_dictionary(kind):
        kind = kind.value_type
    return (
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or types.is_boolean(kind)
        or types.is_null(kind)
        or is_text_kind(kind)
    )


def is_text_kind(kind: arrow.DataType) -> bool:
    """Whether cells of a type are texts."""
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_category_kind(kind: arrow.DataType) -> bool:
    """Whether cells of a type may name categories."""
    if types.is_dictionary(kind):
        kind = kind.value_type
    return is_number_kind(kind) or bool(types.is_binary(kind) or types.is_large_binary(kind))


def _simple(cells: arrow.Array) -> arrow.Array:
    """Return cells of a type that numpy knows, or texts."""
    if types.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    if types.is_decimal(cells.type) or types.is_string_view(cells.type):
        return cells.cast(arrow.string())  # Arrow reads a text to the nearest float64, a decimal not always
    return cells.cast(arrow.float64()) if types.is_null(cells.type) else cells


def _stored_numbers(cells: arrow.Array) -> tuple[NDArray[Any], Flags, Flags]:
    """Return numbers (N,), which of them are absent, and that none is wrong."""
    absent = np.zeros(len(cells), np.bool_)
    if cells.null_count:
        absent = cells.is_null().to_numpy(zero_copy_only=False)
        cells = cells.fill_null(False if types.is_boolean(cells.type) else 0)
    return cells.to_numpy(zero_copy_only=False), absent, np.zeros(len(cells), np.bool_)


def _cast(texts: arrow.Array) -> tuple[arrow.Array, arrow.Array]:
    """Return texts (N,) without blanks about them or what many use for nothing, and the numbers (N,) that most say."""
    texts = compute.ascii_trim_whitespace(texts)
    nothing = compute.is_in(texts, arrow.array(_NOTHING, texts.type))
    texts = compute.if_else(nothing, arrow.scalar(None, texts.type), texts)
    try:
        return texts, texts.cast(arrow.float64())
    except arrow.ArrowInvalid:
        plain = compute.match_substring_regex(texts, _PLAIN)
        return texts, compute.if_else(plain, texts, arrow.scalar(None, texts.type)).cast(arrow.float64())


def _text_numbers(texts: arrow.Array) -> tuple[NDArray[np.float64], Flags, Flags]:
    """Return the numbers (N,) that texts say, which of these say that there is none, and which say something else."""
    texts, said = _cast(texts)
    absent = texts.is_null().to_numpy(zero_copy_only=False)
    wrong = np.zeros(len(texts), np.bool_)
    numbers: NDArray[np.float64] = np.array(said.to_numpy(zero_copy_only=False), np.float64)  # null as NaN
    rare = np.flatnonzero(~np.isfinite(numbers) & ~absent)
    if rare.size:
        different = texts.take(arrow.array(rare)).dictionary_encode()
        read = [_rare_number(text) for text in different.dictionary.to_pylist()]
        places = different.indices.to_numpy(zero_copy_only=False)
        numbers[rare] = np.array([np.nan if number is None else number for number in read])[places]
        wrong[rare] = np.array([number is None for number in read])[places]
        absent[rare] = np.isnan(numbers[rare]) & ~wrong[rare]
    return numbers, absent, wrong


def _rare_number(text: str) -> float | None:
    """Return the number that a text says, NaN where it says that there is none, None where it says something else."""
    try:
        return float(encode_table({"text": [text]}, [_ANY], "text")[0, 0])
    except InvalidArgument:
        return None


def _read_large(texts: arrow.Array, at: NDArray[np.int64], numbers: NDArray[Any], bad: Flags) -> None:
    """Read the whole numbers at these places exactly, which as float64 they are not."""
    limits = np.iinfo(numbers.dtype)
    for place in at.tolist():
        said = Decimal(texts[place].as_py().strip())
        bad[place] = not limits.min <= said <= limits.max or said != said.to_integral_value()
        numbers[place] = 0 if bad[place] else int(said)


def read_numbers(cells: arrow.Array, wanted: Wanted) -> tuple[NDArray[Any], Flags]:
    """Return what cells (N,) say, as numbers (N,) of the type wanted, and which of them (N,) are not to be had so."""
    cells = _simple(cells)
    texts = is_text_kind(cells.type)
    numbers, absent, wrong = _text_numbers(cells) if texts else _stored_numbers(cells)
    converted, bad = _convert(numbers, absent, wrong, wanted)
    if texts and converted.dtype.kind in "iu":
        _read_large(cells, np.flatnonzero(np.abs(numbers) >= _EXACT), converted, bad)
    return converted, bad


def read_codes(cells: arrow.Array, column: Column, wanted: Wanted) -> tuple[NDArray[Any], Flags]:
    """Return the codes (N,) of a category's texts, of the type wanted, and which of them (N,) are not to be had so."""
    if types.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    different = compute.dictionary_encode(cells, null_encoding="encode")
    codes = encode_table({column.name: different.dictionary.to_pylist()}, [column], column.name)[:, 0]
    found: NDArray[np.float64] = codes[different.indices.to_numpy(zero_copy_only=False)]
    return _convert(found, np.isnan(found), np.zeros(len(found), np.bool_), wanted)


def _convert(numbers: NDArray[Any], absent: Flags, wrong: Flags, wanted: Wanted) -> tuple[NDArray[Any], Flags]:
    """Return numbers (N,) as the type wanted, floats to the nearest, and which of them (N,) it does not take."""
    dtype = numbers.dtype if wanted.dtype == "unspecified" else np.dtype(wanted.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        converted = numbers.astype(dtype)
    if dtype.kind != "f":
        return converted, wrong | absent | (converted != numbers)
    bad = wrong | (np.isfinite(numbers) & ~np.isfinite(converted))
    converted[absent] = np.nan
    if not wanted.missing:
        bad |= np.isnan(converted)
    if not wanted.infinite:
        bad |= np.isinf(converted)
    return converted, bad
