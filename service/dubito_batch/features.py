"""Features: which columns of a table feed which input of a model, and what numbers its rows hold.

An input is fed by one column for each value of a row, or by one column of lists, nested as the input's rows are or flat
in the same order. Rows of different lengths are not padded: those of equal shapes make a group.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as arrow
from numpy.typing import NDArray

from dubito_batch.cells import is_category_kind, is_number_kind
from dubito_batch.lists import Shape, fit, fixed_shape, is_list_kind, shape_text, value_kind
from dubito_batch.reading import problem_text, read_input
from dubito_client.answers import InputSignature
from dubito_client.columns import some_of
from dubito_client.errors import ProtocolError, refused


@dataclass(frozen=True, slots=True)
class Feature:
    """One input of a model, and the columns that feed it: one for each value of a row, or one of lists."""

    declared: InputSignature
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """Every input of a model, in its order."""

    features: tuple[Feature, ...]

    @property
    def columns(self) -> dict[str, tuple[str, ...]]:
        """The columns by the input's name: what to ask `map_columns` for to get the same again."""
        return {feature.declared.name: feature.columns for feature in self.features}


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Rows of equal shapes: their positions in the block (B,), ascending, and the inputs (B, ...) by name."""

    rows: NDArray[np.int64]
    inputs: dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """The rows of a block: each is in one group, or has a problem."""

    groups: tuple[Group, ...]
    problems: dict[int, str]  # by position in the block; of the form `COLUMN: got X; accepted: Y`


# --- Which columns ---


def read_asked(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Read columns by input from texts such as `pixels=image` and `inputs=f0,f1,g*`; quotes go about a comma.

    Raises `InvalidArgument` for a text of another form.
    """
    asked: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, separator, columns = text.partition("=")
        found = [column for column in next(csv.reader([columns]), []) if column]
        if not (name and separator and found):
            raise refused("columns", repr(text), "INPUT=COLUMN,COLUMN,... such as inputs=area,rooms or pixels=image")
        asked[name] = (*asked.get(name, ()), *found)
    return asked


def map_columns(
    inputs: Sequence[InputSignature], schema: arrow.Schema, asked: Mapping[str, Sequence[str]] | None = None
) -> FeatureMap:
    """Find the columns for each input: those asked for, by name or glob, else those of the names that it declares.

    Raises `InvalidArgument` where a column is missing or holds what the input cannot take, or where columns do not
    fill the input's shape.
    """
    asked = asked or {}
    if not inputs:
        raise ProtocolError("nobody says what the model's inputs are")
    names = [declared.name for declared in inputs]
    for name in asked:
        if name not in names:
            raise refused("columns", f"an input {name!r}", f"the model's inputs: {some_of(names)}")
    features = tuple(
        Feature(declared, _expand(declared, asked[declared.name], schema))
        if declared.name in asked
        else Feature(declared, _declared_columns(declared, schema))
        for declared in inputs
    )
    mapping = FeatureMap(features)
    check_columns(mapping, schema)
    return mapping


def check_columns(mapping: FeatureMap, schema: arrow.Schema) -> None:
    """Raise `InvalidArgument` where a table of these columns cannot feed the inputs."""
    for feature in mapping.features:
        odd = next((column for column in feature.declared.columns if column.kind not in ("number", "category")), None)
        if odd is not None:
            raise ProtocolError(f"column {odd.name!r} is of a kind that is not known here: {odd.kind}")
        for name in feature.columns:
            if schema.names.count(name) != 1:
                raise refused("columns", f"the columns {some_of(schema.names)}", f"one column {name!r} among them")
        kinds = [schema.field(name).type for name in feature.columns]
        if _holds_lists(feature, schema):
            _check_lists(feature, kinds[0])
        else:
            _check_scalars(feature, kinds)


def _expand(declared: InputSignature, asked: Sequence[str], schema: arrow.Schema) -> tuple[str, ...]:
    """Return the columns of these names, and for a glob those that fit it, in the table's order.

    The columns that an input declares by name keep the order in which it does.
    """
    found = [[name] if name in schema.names else [n for n in schema.names if fnmatchcase(n, name)] for name in asked]
    for name, fitting in zip(asked, found, strict=True):
        if not fitting:
            accepted = f"names or globs of the table's columns: {some_of(schema.names)}"
            raise refused("columns", f"{name!r} for {declared.name!r}", accepted)
    if not any(found):
        raise refused("columns", f"no column for {declared.name!r}", "at least one")
    own = [column.name for column in declared.columns]
    columns = list(chain.from_iterable(found))
    return tuple(own if sorted(columns) == sorted(own) else columns)


def _declared_columns(declared: InputSignature, schema: arrow.Schema) -> tuple[str, ...]:
    """Return the columns that an input declares by name, or the one of its own name."""
    names = [column.name for column in declared.columns]
    lacking = [name for name in names if name not in schema.names]
    if names and not lacking:
        return tuple(names)
    own = schema.field(declared.name).type if declared.name in schema.names else None
    if own is not None and (not names or is_list_kind(own)):
        return (declared.name,)
    given = f"the columns {some_of(schema.names)}"
    if names:
        raise refused("columns", given, f"columns named {some_of(names)}; not found: {some_of(lacking)}")
    row = declared.shape[1:]
    values = "the values of a row" if None in row else f"the {math.prod(map(int, filter(None, row)))} values of a row"
    accepted = (
        f"a column {declared.name!r} that holds rows of shape {shape_text(row)}, or --columns {declared.name}=COLUMN"
    )
    raise refused("columns", given, f"{accepted} (one of such rows, or {values}: names or globs, between commas)")


def _holds_lists(feature: Feature, schema: arrow.Schema) -> bool:
    return len(feature.columns) == 1 and is_list_kind(schema.field(feature.columns[0]).type)


def _check_lists(feature: Feature, kind: arrow.DataType) -> None:
    field = f"columns.{feature.columns[0]}"
    if not is_number_kind(value_kind(kind)):
        raise refused(field, f"values of type {kind}", "lists of numbers")
    shape, row = fixed_shape(kind), feature.declared.shape[1:]
    if shape is not None and fit(shape, row) is None:
        raise refused(
            field, f"rows of shape {shape_text(shape)}", f"rows of shape {shape_text(row)}, as {_name(feature)} has"
        )


def _check_scalars(feature: Feature, kinds: Sequence[arrow.DataType]) -> None:
    declared, count = feature.declared, len(feature.columns)
    row = declared.shape[1:]
    if fit((count,), row) is None:
        accepted = f"as many as the values of {_name(feature)}, of shape {shape_text(row)}, or one of lists"
        raise refused("columns", f"{count} columns ({some_of(feature.columns)})", accepted)
    for at, (name, kind) in enumerate(zip(feature.columns, kinds, strict=True)):
        category = bool(declared.columns) and declared.columns[at].kind == "category"
        if not (is_category_kind(kind) if category else is_number_kind(kind)):
            accepted = "texts or numbers" if category else "numbers, or texts that say some"
            raise refused(f"columns.{name}", f"values of type {kind}", accepted)


def _name(feature: Feature) -> str:
    return f"the input {feature.declared.name!r}"


# --- What they hold ---


def read_features(block: arrow.RecordBatch, mapping: FeatureMap) -> Features:
    """Read the inputs of a block's rows; a row that the model would not take has a problem, which says why.

    The block's columns are such as `check_columns` accepts.
    """
    read = {feature.declared.name: read_input(block, feature.declared, feature.columns) for feature in mapping.features}
    kinds = np.stack([rows.kinds for rows in read.values()], axis=1)  # (B, inputs)
    first_bad = (kinds < 0).argmax(axis=1)
    inputs_read = list(read.values())
    problems = {
        row: inputs_read[int(first_bad[row])].problem(row) for row in np.flatnonzero((kinds < 0).any(axis=1)).tolist()
    }
    groups = []
    for rows, combination in _alike(kinds):
        shapes = [rows_of.shapes[kind] for rows_of, kind in zip(inputs_read, combination, strict=True)]
        if conflict := _conflict(mapping, shapes):
            problems |= dict.fromkeys(rows.tolist(), conflict)
            continue
        inputs = {name: read[name].gather(rows, shape) for name, shape in zip(read, shapes, strict=True)}
        groups.append(Group(rows, inputs))
    return Features(tuple(groups), dict(sorted(problems.items())))


def _alike(kinds: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], list[int]]]:
    """Return the rows that have no problem, by the shapes that they have; in the order of the first of each."""
    good = np.flatnonzero((kinds >= 0).all(axis=1))
    if not good.size:
        return []
    if (kinds[good] == kinds[good[0]]).all():
        return [(good, kinds[good[0]].tolist())]
    different, first, place = np.unique(kinds[good], axis=0, return_index=True, return_inverse=True)
    place = place.reshape(-1)
    return [(good[place == at], different[at].tolist()) for at in np.argsort(first)]


def _conflict(mapping: FeatureMap, shapes: Sequence[Shape]) -> str:
    """Say which free sizes of a row ought to be the same and are not; nothing where there are none."""
    seen: dict[str, tuple[int, str]] = {}
    for feature, shape in zip(mapping.features, shapes, strict=True):
        labels = feature.declared.dimension_names[1:]
        for label, size, want in zip(labels, shape, feature.declared.shape[1:], strict=False):
            if want is not None or not label:
                continue
            first, column = seen.setdefault(label, (size, feature.columns[0]))
            if first != size:
                return problem_text(feature.columns[0], f"{label} = {size}", f"{first}, as in {column}")
    return ""
