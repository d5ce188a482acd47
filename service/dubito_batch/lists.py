"""Lists: columns that hold a tensor in every row, nested or flat, as numbers that lie one after another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as arrow
from numpy.typing import NDArray
from pyarrow import types

Shape: TypeAlias = tuple[int, ...]  # of a row


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """The lists of B rows: where in `values` each row's begin, and the shapes that they have.

    `axes` is the order in which the axes of a shape are meant, where it is not the one in which they lie.
    """

    values: arrow.Array
    starts: NDArray[np.int64]  # (B,)
    shapes: NDArray[np.int64]  # (B, depth)
    absent: NDArray[np.bool_]  # (B,): no list at all, or a list without one inside
    uneven: NDArray[np.bool_]  # (B,): beside one another stand lists of different lengths
    axes: tuple[int, ...] | None = None


def is_list_kind(kind: arrow.DataType) -> bool:
    """Whether cells of a type are lists."""
    kind = _stored(kind)
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def value_kind(kind: arrow.DataType) -> arrow.DataType:
    """Return the type of what is in lists, however deep."""
    return value_kind(_stored(kind).value_type) if is_list_kind(kind) else kind


def fixed_shape(kind: arrow.DataType) -> tuple[int, ...] | None:
    """Return the shape that every row has; None where the type leaves it open."""
    if isinstance(kind, arrow.FixedShapeTensorType):
        return tuple(kind.shape[axis] for axis in _axes(kind) or range(len(kind.shape)))
    sizes: list[int] = []
    while is_list_kind(kind):
        kind = _stored(kind)
        if not types.is_fixed_size_list(kind):
            return None
        sizes.append(kind.list_size)
        kind = kind.value_type
    return tuple(sizes)


def shape_text(shape: Iterable[int | None]) -> str:
    """Return a shape for a message; a size of None is free."""
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"


def fit(shape: Shape, row: Sequence[int | None]) -> Shape | None:
    """Return the declared shape that values of this shape fill, in their order; None where they fill none.

    They do where both shapes are alike but for axes of size 1, or where the values come in one list.
    """
    if len(shape) == len(row) and all(want in (None, have) for have, want in zip(shape, row, strict=True)):
        return shape if all(shape) else None
    long, wanted = [size for size in shape if size != 1], [size for size in row if size != 1]
    alike = len(long) == len(wanted) and all(want in (None, have) for have, want in zip(long, wanted, strict=True))
    values, fixed = math.prod(shape), math.prod(size for size in row if size is not None)
    if not (alike or len(shape) == 1) or not values or not fixed or row.count(None) > 1:
        return None
    free, rest = divmod(values, fixed)
    if rest or (None not in row and free != 1):
        return None
    return tuple(free if size is None else size for size in row)


def unfold(column: arrow.Array) -> Lists:
    """Return where the numbers of each row's list are, without copying any."""
    rows = len(column)
    lows, highs = np.arange(rows), np.arange(1, rows + 1)
    absent, uneven = np.zeros(rows, np.bool_), np.zeros(rows, np.bool_)
    sizes: list[NDArray[np.int64]] = []
    cells = column
    while is_list_kind(cells.type):
        if isinstance(cells, arrow.ExtensionArray):
            cells = cells.storage
        if cells.null_count:
            nulls = _running(cells.is_null().to_numpy(zero_copy_only=False))
            absent |= nulls[highs] > nulls[lows]
        if types.is_fixed_size_list(cells.type):
            size = cells.type.list_size
            sizes.append(np.full(rows, size))
            lows, highs = (cells.offset + lows) * size, (cells.offset + highs) * size
        else:
            offsets = cells.offsets.to_numpy().astype(np.int64)
            lengths, unequal = _lengths(offsets, lows, highs)
            sizes.append(lengths)
            uneven |= unequal
            lows, highs = offsets[lows], offsets[highs]
        cells = cells.values
    first, last = (int(lows.min()), int(highs.max())) if rows else (0, 0)
    shapes = np.stack(sizes, axis=1)
    axes = None
    if isinstance(column.type, arrow.FixedShapeTensorType):
        axes = _axes(column.type)
        shapes = np.tile(np.array(column.type.shape), (rows, 1))
    return Lists(cells.slice(first, last - first), lows - first, shapes, absent, uneven & ~absent, axes)


def _stored(kind: arrow.DataType) -> arrow.DataType:
    return kind.storage_type if isinstance(kind, arrow.BaseExtensionType) else kind


def _axes(kind: arrow.FixedShapeTensorType) -> tuple[int, ...] | None:
    order = kind.permutation
    return None if order is None or list(order) == sorted(order) else tuple(order)


def _lengths(
    offsets: NDArray[np.int64], lows: NDArray[np.int64], highs: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the length of the first list of each row, and whether others of the row are of another."""
    lengths = np.diff(offsets)
    filled = highs > lows
    firsts, lasts = lows[filled], highs[filled] - 1
    changes = _running(lengths[1:] != lengths[:-1])
    first_lengths, unequal = np.zeros(len(lows), np.int64), np.zeros(len(lows), np.bool_)
    first_lengths[filled] = lengths[firsts]
    unequal[filled] = changes[lasts] > changes[firsts]
    return first_lengths, unequal


def _running(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return how many flags are set before each place, and after the last."""
    return np.concatenate([[0], np.cumsum(flags, dtype=np.int64)])
