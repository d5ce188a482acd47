"""Laws of features: a block's rows become what a caller's would, each by itself, and a bad row harms no other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import dubito_models.errors
from dubito_batch.features import FeatureMap, Features, check_columns, map_columns, read_asked, read_features
from dubito_client.answers import Column, InputSignature
from dubito_client.errors import InvalidArgument, ProtocolError
from dubito_client.inputs import named_arrays
from dubito_models import manifest

NAN, INF = math.nan, math.inf
HOUSES = InputSignature(
    "inputs",
    "float32",
    (None, 4),
    columns=(
        Column("area", "number", allow_nan=True),
        Column("city", "category", ("Bern", "Rome"), allow_nan=True),
        Column("rooms", "number"),
        Column("style", "category", ("new", "1")),
    ),
)
PIXELS = InputSignature("pixels", "float32", (None, 1, 2, 3))
TOKENS = InputSignature("tokens", "int64", (None, None), dimension_names=("rows", "length"))
MASK = InputSignature("mask", "bool", (None, None), dimension_names=("rows", "length"))


def block_of(columns: Mapping[str, Any]) -> arrow.RecordBatch:
    return arrow.RecordBatch.from_pydict(dict(columns))


def mapped(
    block: arrow.RecordBatch, *inputs: InputSignature, asked: Mapping[str, Sequence[str]] | None = None
) -> FeatureMap:
    return map_columns(inputs, block.schema, asked)


def read(
    block: arrow.RecordBatch, *inputs: InputSignature, asked: Mapping[str, Sequence[str]] | None = None
) -> Features:
    """Read a block, and make sure of what holds for all: each row has one place, and the engine takes each group."""
    features = read_features(block, mapped(block, *inputs, asked=asked))
    rows = [row for group in features.groups for row in group.rows.tolist()]
    assert sorted([*rows, *features.problems]) == list(range(block.num_rows))
    for group in features.groups:
        assert group.rows.tolist() == sorted(group.rows.tolist())
        taken(group.inputs, inputs)
    assert all("\n" not in problem for problem in features.problems.values())
    return features


def by_row(features: Features) -> dict[int, dict[str, NDArray[Any]]]:
    return {
        row: {name: array[at] for name, array in group.inputs.items()}
        for group in features.groups
        for at, row in enumerate(group.rows.tolist())
    }


def taken(arrays: Mapping[str, NDArray[Any]], inputs: Sequence[InputSignature]) -> None:
    """Raise where the engine would not take these inputs."""
    declared = [
        manifest.InputSignature(
            name=entry.name,
            dtype=entry.dtype,  # type: ignore[arg-type]
            shape=entry.shape,
            free={
                axis: entry.dimension_names[axis] if entry.dimension_names else f"{entry.name} {axis}"
                for axis, size in enumerate(entry.shape)
                if axis and size is None
            },
            allow_nan=entry.allow_nan,
            columns=tuple(
                manifest.ColumnEntry(
                    name=column.name,
                    kind=column.kind,  # type: ignore[arg-type]
                    categories=column.categories,
                    allow_nan=column.allow_nan,
                )
                for column in entry.columns
            )
            or None,
            example_shape=(1,),
            low=0,
            high=1,
        )
        for entry in inputs
    ]
    manifest.read_inputs(declared, arrays)


def wanted(cells: Any, declared: InputSignature) -> NDArray[Any] | None:
    """What a caller's own row becomes; None where the client or the engine refuses it."""
    try:
        arrays = named_arrays({declared.name: cells}, [declared])
        taken(arrays, [declared])
    except (InvalidArgument, dubito_models.errors.InvalidArgument):
        return None
    row: NDArray[Any] = arrays[declared.name][0]
    return row


# --- Tables ---

KINDS = {
    "int8": arrow.int8(),
    "int64": arrow.int64(),
    "uint64": arrow.uint64(),
    "float16": arrow.float16(),
    "float32": arrow.float32(),
    "float64": arrow.float64(),
    "bool": arrow.bool_(),
    "decimal": arrow.decimal128(12, 3),
    "string": arrow.string(),
    "large_string": arrow.large_string(),
    "string_view": arrow.string_view(),
    "null": arrow.null(),
}
FLOATS = st.one_of(
    st.floats(), st.sampled_from([NAN, INF, -INF, 0.1, -0.0, 1.0, 3.4e38, 3.5e38, 65519.0, 65520.0, 1e308])
)
USUAL = "1| 2.5 |+3|-.5|5.|1e3|1E-400|| |NA|n/a|?|NaN|null|NULL|None|True|FALSE|a|b| a"
RARE = "inf|-Infinity|1e999|0x10|1_0|\uff11|1,5|many|\u00a01|--1|+-1|1e|.|1 2"
SAID = st.one_of(
    st.sampled_from(USUAL.split("|")),
    st.sampled_from(RARE.split("|")),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.text(max_size=4),
)
VALUES = {
    "int8": st.integers(-128, 127),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "float16": FLOATS.map(lambda value: float(np.float16(value)) if abs(value) < 60000 else 1.5),
    "float32": st.floats(width=32),
    "float64": FLOATS,
    "bool": st.booleans(),
    "decimal": st.decimals(-(10**8), 10**8, places=3),
    "string": SAID,
    "large_string": SAID,
    "string_view": SAID,
    "null": st.none(),
}


@st.composite
def column_arrays(draw: st.DrawFn, rows: int, kinds: Sequence[str] = tuple(KINDS)) -> arrow.Array:
    """A column with nulls, of any type that may say numbers, sliced out of a longer one."""
    kind = draw(st.sampled_from(kinds))
    cells = draw(st.lists(st.one_of(st.none(), VALUES[kind]), min_size=rows + 2, max_size=rows + 2))
    array = arrow.array(cells, KINDS[kind])
    if kind in ("string", "int64", "float64") and draw(st.booleans()):
        array = array.dictionary_encode()
    return array.slice(1, rows)


@st.composite
def declared_columns(draw: st.DrawFn) -> Column:
    name, allow_nan = draw(st.uuids()).hex, draw(st.booleans())
    if draw(st.booleans()):
        return Column(name, "number", allow_nan=allow_nan)
    return Column(name, "category", tuple(draw(st.permutations(["a", "b", "1", "-0.5", "True"]))), allow_nan)


@settings(max_examples=120, deadline=None)
@given(
    st.data(), st.lists(declared_columns(), min_size=1, max_size=3), st.sampled_from(["float32", "float64", "float16"])
)
def test_a_tables_rows_become_what_the_client_makes_of_each(
    data: st.DataObject, columns: list[Column], dtype: str
) -> None:
    rows = 6
    declared = InputSignature("inputs", dtype, (None, len(columns)), columns=tuple(columns))
    block = block_of({column.name: data.draw(column_arrays(rows)) for column in columns})
    found = by_row(features := read(block, declared))
    for row in range(rows):
        expected = wanted({name: block.column(name).slice(row, 1) for name in block.schema.names}, declared)
        if expected is None:
            assert row in features.problems
        else:
            np.testing.assert_array_equal(found[row]["inputs"], expected)
            assert found[row]["inputs"].dtype == dtype


def test_a_csvs_texts_and_parquets_types_become_the_same() -> None:
    typed = block_of(
        {
            "style": ["1", "new", "old"],
            "rooms": [3, 2, 1],
            "city": ["Rome", "Paris", None],
            "area": [80.5, None, 60],
            "more": [[1], [], None],
        }
    )
    texts = block_of(
        {
            "area": ["80.5", "NA", " 60"],
            "city": [" Rome", "Paris", ""],
            "rooms": ["3", "2.0", "+1"],
            "style": ["1", "new ", "old"],
        }
    )
    encoded = np.float32([[80.5, 2, 3, 2], [NAN, 0, 2, 1], [60, NAN, 1, 0]])
    for block in (typed, texts):
        [group] = read(block, HOUSES).groups
        np.testing.assert_array_equal(group.inputs["inputs"], encoded)


def test_a_tables_rows_may_come_as_lists_of_numbers_and_codes() -> None:
    rows = [[80.5, 2, 3, 2], [NAN, NAN, 2, 0], [1, 2, NAN, 1], [1, 1.5, 1, 1], [1, -1, 1, 1], [INF, 1, 1, 1], [1, 2, 3]]
    features = read(block_of({"inputs": rows}), HOUSES)
    [group] = features.groups
    assert group.rows.tolist() == [0, 1]
    np.testing.assert_array_equal(group.inputs["inputs"], np.float32(rows[:2]))
    assert features.problems == {
        2: "inputs: got nan as value 2 of the row; accepted: a finite number that float32 can hold",
        3: "inputs: got 1.5 as value 1 of the row; accepted: a category's code, a whole number from 0 on, or none",
        4: "inputs: got -1.0 as value 1 of the row; accepted: a category's code, a whole number from 0 on, or none",
        5: "inputs: got inf as value 0 of the row; accepted: a finite number that float32 can hold, or none",
        6: "inputs: got shape [3]; accepted: shape [4]",
    }


# --- Plain inputs, one column for each value ---

DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
NUMERIC = ["int8", "int64", "uint64", "float16", "float32", "float64", "bool"]


@settings(max_examples=120, deadline=None)
@given(st.data(), st.sampled_from(DTYPES), st.booleans())
def test_columns_of_numbers_become_what_the_client_makes_of_each_row(
    data: st.DataObject, dtype: str, allow_nan: bool
) -> None:
    rows = 6
    declared = InputSignature("x", dtype, (None, 2), allow_nan)
    block = block_of({name: data.draw(column_arrays(rows, NUMERIC)) for name in ("a", "b")})
    found = by_row(features := read(block, declared, asked={"x": ["a", "b"]}))
    for row in range(rows):
        cells = [block.column(name)[row].as_py() for name in ("a", "b")]
        parts = [
            wanted(np.asarray([cell if cell is not None else NAN]), InputSignature("x", dtype, (None,), allow_nan))
            for cell in cells
        ]
        if any(part is None for part in parts):
            assert row in features.problems
        else:
            np.testing.assert_array_equal(found[row]["x"], np.array(parts, dtype))


@settings(max_examples=120, deadline=None)
@given(st.lists(st.one_of(st.none(), SAID, st.integers().map(str)), min_size=1, max_size=6), st.sampled_from(DTYPES))
def test_texts_become_the_numbers_that_they_say(cells: list[str | None], dtype: str) -> None:
    features = read(block_of({"x": arrow.array(cells, arrow.string())}), InputSignature("x", dtype, (None, 1), True))
    found = by_row(features)
    table = InputSignature("table", "float64", (None, 1), columns=(Column("x", "number", allow_nan=True),))
    for row, cell in enumerate(cells):
        said = wanted({"x": [cell]}, table)
        if said is not None and dtype in ("int32", "int64") and abs(said[0]) >= 2**53:  # read to the last digit
            exact, limits = Decimal(str(cell).strip()), np.iinfo(dtype)
            held = limits.min <= exact <= limits.max and exact == exact.to_integral_value()
            assert found[row]["x"].tolist() == [int(exact)] if held else row in features.problems
            continue
        expected = None if said is None else wanted(said[None], InputSignature("x", dtype, (None, 1), True))
        if expected is None:
            assert row in features.problems
        else:
            np.testing.assert_array_equal(found[row]["x"], expected)


def test_whole_numbers_that_no_float_holds_come_through_exactly() -> None:
    large = 2**53 + 1
    for cells in ([large, -large], [str(large), f" -{large} "], [Decimal(large), Decimal(-large)], [f"{large}.0"] * 2):
        [group] = read(block_of({"x": cells}), InputSignature("x", "int64", (None,))).groups
        assert abs(group.inputs["x"]).tolist() == [large] * 2


def test_columns_fill_a_shape_in_their_order() -> None:
    block = block_of({f"p{at}": [at, 10 + at] for at in range(6)} | {"id": ["a", "b"]})
    [group] = read(block, PIXELS, asked={"pixels": ["p*"]}).groups
    np.testing.assert_array_equal(group.inputs["pixels"], np.float32([range(6), range(10, 16)]).reshape(2, 1, 2, 3))
    free = InputSignature("x", "float32", (None, None, 3))
    [group] = read(block, free, asked={"x": ["p*"]}).groups
    assert group.inputs["x"].shape == (2, 2, 3)
    single = InputSignature("p3", "float64", (None,))
    np.testing.assert_array_equal(read(block, single).groups[0].inputs["p3"], [3, 13])


def test_an_input_of_a_type_that_is_not_known_here_gets_what_its_columns_have() -> None:
    block = block_of({"a": [1, 2], "b": [0.5, 1.5]})
    [group] = read_features(
        block, mapped(block, InputSignature("x", "unspecified", (None, 2)), asked={"x": "ab"})
    ).groups
    np.testing.assert_array_equal(group.inputs["x"], [[1, 0.5], [2, 1.5]])


# --- Lists ---

SHAPES = st.sampled_from([(2,), (None,), (2, 3), (None, 2), (2, None), (None, None), (1, 2, 2), (2, None, 2)])


@st.composite
def nested(draw: st.DrawFn, row: Sequence[int | None], cells: st.SearchStrategy[Any]) -> Any:
    """A nested list that mostly is of this shape, or of a wrong one, or ragged, or lacks a list."""
    if not row:
        return draw(cells)
    length = draw(st.integers(0, 3)) if row[0] is None or draw(st.integers(0, 9)) == 0 else row[0]
    if draw(st.integers(0, 19)) == 0:
        return None
    inside = row[1:]
    if inside and None in inside and draw(st.integers(0, 4)):  # the same in all, so that not all are ragged
        size = draw(st.integers(1, 3))
        inside = tuple(size if want is None else want for want in inside)
    return [draw(nested(inside, cells)) for _ in range(length)]


def list_kind(depth: int, value: arrow.DataType, large: bool) -> arrow.DataType:
    for _ in range(depth):
        value = arrow.large_list(value) if large else arrow.list_(value)
    return value


def lacks_a_list(cell: Any, depth: int) -> bool:
    return depth > 0 and (cell is None or any(lacks_a_list(inside, depth - 1) for inside in cell))


def wanted_of_nested(cell: Any, declared: InputSignature) -> NDArray[Any] | None:
    """What one row's lists become: as they are, or flat in the same order."""
    try:
        array = np.array([cell], np.float64)  # None as NaN
    except (ValueError, TypeError):
        return None
    row = declared.shape[1:]
    given_shape = array.shape[1:]
    if len(given_shape) == len(row) and all(want in (None, have) for want, have in zip(row, given_shape, strict=True)):
        return wanted(array, declared)
    alike = [size for size in given_shape if size != 1] == [size for size in row if size != 1]
    if not (len(given_shape) == 1 or alike) or row.count(None) > 1 or not array.size:
        return None
    try:
        return wanted(array.reshape(1, *(-1 if size is None else size for size in row)), declared)
    except ValueError:
        return None


@settings(max_examples=150, deadline=None)
@given(st.data(), SHAPES, st.sampled_from(["float32", "float64", "int16", "bool"]), st.booleans(), st.booleans())
def test_lists_become_what_the_client_makes_of_each_row(
    data: st.DataObject, row: tuple[int | None, ...], dtype: str, allow_nan: bool, large: bool
) -> None:
    declared = InputSignature("x", dtype, (None, *row), allow_nan)
    values = data.draw(st.sampled_from([st.integers(0, 1), st.one_of(st.none(), FLOATS)]))
    flat = (math.prod(size or 2 for size in row),) if data.draw(st.booleans()) else row
    cells = data.draw(st.lists(nested(flat, values), min_size=3, max_size=7))
    column = arrow.array(cells, list_kind(len(flat), arrow.float64(), large)).slice(1)
    found = by_row(features := read(block_of({"x": column}), declared))
    for at, cell in enumerate(cells[1:]):
        expected = None if lacks_a_list(cell, len(flat)) else wanted_of_nested(cell, declared)
        if expected is None:
            assert at in features.problems
        else:
            np.testing.assert_array_equal(found[at]["x"], expected)
            assert found[at]["x"].dtype == dtype


def test_lists_of_every_arrow_type_become_the_same() -> None:
    numbers = np.arange(24, dtype=np.float32).reshape(4, 1, 2, 3)
    flat = arrow.array(numbers.ravel())
    fixed = arrow.FixedSizeListArray.from_arrays(flat, 6)
    deep = arrow.FixedSizeListArray.from_arrays(arrow.FixedSizeListArray.from_arrays(flat, 3), 2)
    offsets = np.arange(0, 25, 6)
    columns = {
        "lists": arrow.array(numbers.tolist()),
        "without the axis of size 1": arrow.array(numbers[:, 0].tolist()),
        "flat": arrow.ListArray.from_arrays(offsets.astype(np.int32), flat),
        "large": arrow.LargeListArray.from_arrays(offsets, flat),
        "fixed": fixed,
        "deep": deep,
        "texts": arrow.array([[str(value) for value in row.ravel()] for row in numbers]),
        "whole": arrow.array(numbers.reshape(4, 6).astype(np.uint8).tolist(), arrow.list_(arrow.uint8())),
        "tensor": arrow.FixedShapeTensorArray.from_numpy_ndarray(numbers),
        "moved": arrow.ExtensionArray.from_storage(
            arrow.fixed_shape_tensor(arrow.float32(), (2, 3, 1), permutation=[2, 0, 1]), fixed
        ),
    }
    for name, column in columns.items():
        for start in (0, 1, 3):
            part = column.slice(start)
            [group] = read(block_of({"image": part}), PIXELS, asked={"pixels": ["image"]}).groups
            np.testing.assert_array_equal(group.inputs["pixels"], numbers[start:], err_msg=name)
            assert group.rows.tolist() == list(range(4 - start))


def test_an_image_of_other_axes_is_not_taken_apart_and_put_together_wrongly() -> None:
    image = np.zeros((2, 3, 1, 2), np.float32)  # as many values, another order
    with pytest.raises(InvalidArgument, match=r"rows of shape \[3, 1, 2\].*rows of shape \[1, 2, 3\]"):
        read(block_of({"pixels": arrow.FixedShapeTensorArray.from_numpy_ndarray(image)}), PIXELS)
    features = read(block_of({"pixels": image.tolist()}), PIXELS)
    assert features.problems[0] == "pixels: got shape [3, 1, 2]; accepted: shape [1, 2, 3]"


def test_rows_of_equal_lengths_make_a_group_in_the_order_of_their_first() -> None:
    tokens = [[5, 6], [1], [7, 8], [1, 2, 3], [9]]
    features = read(block_of({"tokens": tokens}), TOKENS)
    assert [group.rows.tolist() for group in features.groups] == [[0, 2], [1, 4], [3]]
    assert [group.inputs["tokens"].tolist() for group in features.groups] == [[[5, 6], [7, 8]], [[1], [9]], [[1, 2, 3]]]


def test_lengths_that_should_be_the_same_in_two_inputs_are() -> None:
    block = block_of({"tokens": [[5, 6], [1], [7, 8]], "mask": [[1, 1], [1, 0], [1, 0]]})
    features = read(block, TOKENS, MASK)
    [group] = features.groups
    assert group.rows.tolist() == [0, 2]
    assert group.inputs["mask"].tolist() == [[True, True], [True, False]]
    assert features.problems == {1: "mask: got length = 2; accepted: 1, as in tokens"}


# --- Bad rows ---


def test_what_is_wrong_with_a_row_is_said_by_column_and_value() -> None:
    block = block_of(
        {
            "area": ["1", "2", "3", "4", "x" * 100],
            "city": ["Rome"] * 5,
            "rooms": ["1", "many", "", "1e39", "5"],
            "style": ["new"] * 5,
        }
    )
    features = read(block, HOUSES)
    accepted = "accepted: a finite number that float32 can hold"
    assert features.problems == {
        1: f"rooms: got 'many'; {accepted}",
        2: f"rooms: got ''; {accepted}",
        3: f"rooms: got '1e39'; {accepted}",
        4: f"area: got '{'x' * 56}...; {accepted}, or none",
    }


@pytest.mark.parametrize(
    ("declared", "cells", "problem"),
    [
        (InputSignature("x", "float32", (None, 2)), [[1, 2], None], "x: got no value; accepted: shape [2]"),
        (InputSignature("x", "float32", (None, 2)), [[1, 2], []], "x: got shape [0]; accepted: shape [2]"),
        (InputSignature("x", "float32", (None, None)), [[1, 2], []], "x: got shape [0]; accepted: shape [any]"),
        (
            InputSignature("x", "float32", (None, 2)),
            [[1, 2], [1, None]],
            "x: got no value as value 1 of the row; accepted: a finite number that float32 can hold",
        ),
        (
            InputSignature("x", "float32", (None, 2), True),
            [[1, 2], [1, 1e39]],
            "x: got 1e+39 as value 1 of the row; accepted: a number that float32 can hold, or none",
        ),
        (
            InputSignature("x", "int8", (None, 2)),
            [[1, 2], [1, 1000]],
            "x: got 1000 as value 1 of the row; accepted: a whole number that int8 can hold",
        ),
        (
            InputSignature("x", "bool", (None, 2)),
            [[0, 1], [1, 2]],
            "x: got 2 as value 1 of the row; accepted: true or false, 1 or 0",
        ),
        (
            InputSignature("x", "float32", (None, 2, 2)),
            [[[1, 2], [3, 4]], [[1, 2], [3]]],
            "x: got lists of different lengths; accepted: shape [2, 2]",
        ),
        (
            InputSignature("x", "float32", (None, 2, 2)),
            [[[1, 2], [3, 4]], [[1, 2], None]],
            "x: got [[1, 2], None], in which a list is missing; accepted: shape [2, 2]",
        ),
        (
            InputSignature("x", "int64", (None,)),
            [1, None],
            "x: got no value; accepted: a whole number that int64 can hold",
        ),
    ],
)
def test_what_is_wrong_with_a_value_is_said(declared: InputSignature, cells: list[Any], problem: str) -> None:
    features = read(block_of({"x": cells}), declared)
    assert features.problems == {1: problem}
    assert [group.rows.tolist() for group in features.groups] == [[0]]


def test_bad_rows_leave_their_neighbours_as_they_are() -> None:
    random = np.random.default_rng(0)
    good = random.normal(size=(200, 4))
    spoilt, bad = good.copy(), random.choice(200, 60, replace=False)
    spoilt[bad, random.integers(0, 4, 60)] = random.choice([NAN, INF, 1e300], 60)
    declared = InputSignature("x", "float32", (None, 4))
    for columns, asked in (
        ({f"c{at}": spoilt[:, at] for at in range(4)}, {"x": ["c*"]}),
        ({"x": spoilt.tolist()}, None),
    ):
        features = read(block_of(columns), declared, asked=asked)
        assert sorted(features.problems) == sorted(bad.tolist())
        [group] = features.groups
        np.testing.assert_array_equal(group.inputs["x"], good[group.rows].astype(np.float32))


def test_blocks_without_rows_or_without_a_good_one_have_no_group() -> None:
    for declared, column in ((PIXELS, arrow.array([], arrow.list_(arrow.float32()))), (TOKENS, [None, [], [None]])):
        block = block_of({declared.name: column})
        assert read(block, declared).groups == ()
    table = block_of({column.name: arrow.array([], arrow.string()) for column in HOUSES.columns})
    assert read(table, HOUSES).groups == ()


# --- Which columns ---


def test_columns_are_found_by_the_names_that_the_model_declares() -> None:
    schema = arrow.schema({name: arrow.float64() for name in ("style", "more", "rooms", "area", "city")})
    assert map_columns([HOUSES], schema).columns == {"inputs": ("area", "city", "rooms", "style")}
    schema = arrow.schema({"mask": arrow.list_(arrow.bool_()), "tokens": arrow.list_(arrow.int8()), "id": arrow.int8()})
    assert map_columns([TOKENS, MASK], schema).columns == {"tokens": ("tokens",), "mask": ("mask",)}


def test_columns_asked_for_are_taken_and_asking_for_what_was_found_finds_the_same() -> None:
    names = ["id", "f10", "f2", "f[1]", "g"]
    schema = arrow.schema({name: arrow.float64() for name in names})
    declared = InputSignature("x", "float32", (None, None))
    for asked, found in [
        (["f*"], ("f10", "f2", "f[1]")),
        (["g", "f?"], ("g", "f2")),
        (["f[1]"], ("f[1]",)),
        (["f[0-9]*", "id"], ("f10", "f2", "id")),
    ]:
        mapping = map_columns([declared], schema, {"x": asked})
        assert mapping.columns == {"x": found}
        assert map_columns([declared], schema, mapping.columns) == mapping


def test_a_tables_declared_columns_keep_their_order_under_a_glob() -> None:
    schema = arrow.schema({name: arrow.string() for name in ("style", "rooms", "city", "area")})
    assert map_columns([HOUSES], schema, {"inputs": ["*"]}).columns == {"inputs": ("area", "city", "rooms", "style")}
    others = arrow.schema({name: arrow.string() for name in ("m2", "town", "n", "kind")})
    asked = {"inputs": ["m2", "town", "n", "kind"]}
    assert map_columns([HOUSES], others, asked).columns == {"inputs": ("m2", "town", "n", "kind")}


@pytest.mark.parametrize(
    ("declared", "kinds", "asked", "said"),
    [
        (HOUSES, {"area": "f8", "city": "U", "style": "U"}, None, "not found: rooms"),
        (PIXELS, {"a": "f8", "b": "f8"}, None, "got the columns a, b; accepted: a column 'pixels' that holds rows of"),
        (PIXELS, {"a": "f8"}, None, "--columns pixels=COLUMN (one of such rows, or the 6 values of a row"),
        (PIXELS, {"a": "f8", "b": "f8"}, {"pixels": ["a", "b"]}, "got 2 columns (a, b); accepted: as many as"),
        (PIXELS, {"a": "f8"}, {"pixels": ["c"]}, "got 'c' for 'pixels'; accepted: names or globs"),
        (PIXELS, {"a": "f8"}, {"pixels": ["p*"]}, "got 'p*' for 'pixels'"),
        (PIXELS, {"a": "f8"}, {"pixels": []}, "at least one"),
        (PIXELS, {"a": "f8"}, {"image": ["a"]}, "got an input 'image'; accepted: the model's inputs: pixels"),
        (PIXELS, {"pixels": "f8"}, None, "got 1 columns (pixels); accepted: as many as"),
        (PIXELS, {"pixels": "list of U"}, {"pixels": ["pixels"]}, None),
        (PIXELS, {"pixels": "list of date"}, None, "accepted: lists of numbers"),
        (TOKENS, {"tokens": "date"}, None, "columns.tokens: got values of type date32[day]; accepted: numbers, or"),
        (TOKENS, {"a": "list of U", "b": "f8"}, {"tokens": "ab"}, "columns.a: got values of type list"),
        (HOUSES, {"area": "f8", "city": "date", "rooms": "f8", "style": "U"}, None, "columns.city: got values of type"),
    ],
)
def test_columns_that_cannot_feed_an_input_are_refused(
    declared: InputSignature, kinds: dict[str, str], asked: dict[str, Sequence[str]] | None, said: str | None
) -> None:
    types = {"f8": arrow.float64(), "U": arrow.string(), "date": arrow.date32()}
    types |= {f"list of {name}": arrow.list_(kind) for name, kind in types.items()}
    schema = arrow.schema({name: types[kind] for name, kind in kinds.items()})
    if said is None:
        map_columns([declared], schema, asked)
        return
    with pytest.raises(InvalidArgument) as caught:
        map_columns([declared], schema, asked)
    assert said in str(caught.value)
    assert caught.value.field.startswith("columns")


def test_another_files_columns_are_checked_against_the_same_map() -> None:
    mapping = map_columns([TOKENS], arrow.schema({"tokens": arrow.list_(arrow.int64())}))
    check_columns(mapping, arrow.schema({"more": arrow.int8(), "tokens": arrow.large_list(arrow.int16())}))
    for schema in ({"token": arrow.list_(arrow.int64())}, {"tokens": arrow.date32()}):
        with pytest.raises(InvalidArgument, match="tokens"):
            check_columns(mapping, arrow.schema(schema))
    with pytest.raises(InvalidArgument, match="one column 'tokens'"):
        check_columns(mapping, arrow.schema([("tokens", arrow.int8()), ("tokens", arrow.int8())]))


def test_signatures_that_say_too_little_or_too_much_are_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        map_columns([], arrow.schema({"a": arrow.int8()}))
    odd = InputSignature("x", "float32", (None, 1), columns=(Column("a", "unknown_9"),))
    with pytest.raises(ProtocolError, match="unknown_9"):
        map_columns([odd], arrow.schema({"a": arrow.int8()}))


def test_columns_are_asked_for_by_texts() -> None:
    assert read_asked(["x=a,b*", 'y="c,d",e=f', "x=g"]) == {"x": ("a", "b*", "g"), "y": ("c,d", "e=f")}
    for text in ("x", "x=", "=a", "", "x=,"):
        with pytest.raises(InvalidArgument, match="INPUT=COLUMN"):
            read_asked([text])
