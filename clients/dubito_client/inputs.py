"""Inputs: from what a caller has to the named arrays that a model declares."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dubito_client.answers import InputSignature
from dubito_client.columns import encode_table, is_table, some_of
from dubito_client.errors import ProtocolError, refused

# An array, arrays by name; for a model of tables a table, or one by name: see columns.py for what is one.
Inputs: TypeAlias = ArrayLike | Mapping[str, Any] | Sequence[Mapping[str, Any]]


def named_arrays(inputs: Inputs, signature: Sequence[InputSignature]) -> dict[str, NDArray[Any]]:
    """Name each array and convert it to its declared type; shapes are left for the server to judge.

    One array serves a model of one input; a mapping has every name that the model declares, and no other. Where an
    input is a table, it may come as one: its columns are found by their names, and texts become codes.
    Raises `InvalidArgument` for other names, and for values that the declared type cannot hold.
    """
    names = [declared.name for declared in signature]
    if not names:
        raise ProtocolError("the server does not say what the model's inputs are")
    if _is_the_table(inputs, signature):
        inputs = {names[0]: inputs}
    elif not isinstance(inputs, Mapping):
        if len(names) > 1:
            raise refused("inputs", "one array", f"a mapping with the names {_listed(names)}")
        inputs = {names[0]: inputs}
    elif set(inputs) != set(names):
        given = f"the names {_listed(inputs)}" if inputs else "no names"
        raise refused("inputs", given, f"the names {_listed(names)}")
    return {declared.name: _convert(inputs[declared.name], declared) for declared in signature}


def fit_rows(array: NDArray[Any], declared: InputSignature) -> NDArray[Any]:
    """Reshape rows to their declared shape where their values fill it: (B, 64) to (B, 1, 8, 8).

    One row without its row axis gets one. What does not fit comes back as it is, for the server to refuse.
    """
    row = declared.shape[1:]
    if array.ndim and _fits(array.shape[1:], row):
        return array
    if _fits(array.shape, row):
        return array[np.newaxis]
    fixed = math.prod(size for size in row if size is not None)
    free = row.count(None)
    if not array.size or not array.ndim or not fixed or free > 1:
        return array
    values = math.prod(array.shape[1:])
    if values == fixed or (free and values % fixed == 0):
        return array.reshape(len(array), *(-1 if size is None else size for size in row))
    return array


def _is_the_table(inputs: Inputs, signature: Sequence[InputSignature]) -> bool:
    """Whether these are the columns of the model's one input, and not that input by its name."""
    [first, *others] = signature
    if others or not first.columns or not is_table(inputs):
        return False
    by_name = isinstance(inputs, Mapping) and set(inputs) == {first.name}
    return not by_name or first.name in [column.name for column in first.columns]


def _convert(value: Any, declared: InputSignature) -> NDArray[Any]:
    """Convert to the declared type, rounding floats but never changing a number beyond that."""
    field = f"inputs.{declared.name}"
    numbers = "numbers"
    if declared.columns:
        numbers += f", or a table with the columns {some_of(column.name for column in declared.columns)}"
        if is_table(value):
            value = encode_table(value, declared.columns, field)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise refused(field, f"values that make no array ({error})", f"a rectangular array of {numbers}") from error
    if array.dtype.kind not in "biuf":
        raise refused(field, f"{array.dtype} values", numbers)
    if declared.dtype in (array.dtype.name, "unspecified"):
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(declared.dtype)
    rounds = converted.dtype.kind == "f"
    lost = np.isfinite(array) & ~np.isfinite(converted) if rounds else converted != array
    if lost.any():
        first = tuple(int(i) for i in np.argwhere(lost)[0])
        where = f" at {list(first)}" if first else ""
        given = f"{array.dtype.name} values such as {array[first]}{where}"
        raise refused(field, given, f"values that {declared.dtype} can hold")
    return converted


def _fits(shape: Sequence[int], declared: Sequence[int | None]) -> bool:
    sizes = zip(shape, declared, strict=False)
    return len(shape) == len(declared) and all(want in (None, have) for have, want in sizes)


def _listed(names: Iterable[object]) -> str:
    return ", ".join(sorted(str(name) for name in names))
