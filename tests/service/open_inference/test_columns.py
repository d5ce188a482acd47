"""Columns: a table means the same as numbers, as texts, and as one tensor for each column."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dubito_models.errors import InvalidArgument
from dubito_models.manifest import ColumnEntry, InputSignature
from dubito_service.open_inference.columns import check_texts, gather_columns

TABLE = InputSignature(
    name="table",
    dtype="float32",
    shape=(None, 3),
    columns=(
        ColumnEntry(name="area", kind="number", allow_nan=True),
        ColumnEntry(name="city", kind="category", categories=("Rome", "Oslo")),
        ColumnEntry(name="floor", kind="category", categories=("1", "2"), allow_nan=True),
    ),
    example_shape=(2, 3),
    low=0.0,
    high=1.0,
)
OTHER = InputSignature(name="x", dtype="float32", shape=(None, 2), example_shape=(2, 2), low=0.0, high=1.0)


def gathered(**inputs: NDArray[Any]) -> NDArray[Any]:
    [(name, table)] = gather_columns(inputs, (TABLE,)).items()
    assert name == "table"
    assert table.dtype == np.float32
    return table


def text(*values: str) -> NDArray[Any]:
    return np.array(values, object)


def test_texts_of_a_whole_table_become_numbers_and_codes() -> None:
    cells = np.array([["80.5", "Rome", "2"], ["", "Atlantis", ""], [" 1e2 ", " Oslo", "9"]], object)
    expected = [[80.5, 1, 2], [math.nan, 0, math.nan], [100, 2, 0]]
    np.testing.assert_array_equal(gathered(table=cells), np.array(expected, np.float32))


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_a_tensor_for_each_column_is_the_table_whatever_their_order(shape: tuple[int, ...]) -> None:
    found = gathered(
        floor=np.array([2, 7]).reshape(shape),
        area=np.array([80.5, math.nan]).reshape(shape),
        city=text("Oslo", "").reshape(shape),
    )
    np.testing.assert_array_equal(found, np.array([[80.5, 2, 2], [math.nan, 0, 0]], np.float32))


def test_numbers_of_a_whole_table_and_inputs_that_are_none_stay_as_they_are() -> None:
    numbers = np.ones((2, 3), np.float32)
    texts = text("a", "b")
    found = gather_columns({"table": numbers, "x": texts}, (TABLE, OTHER))
    assert found["table"] is numbers
    assert found["x"] is texts


def test_a_tensor_that_is_no_column_is_left_for_the_signature_to_refuse() -> None:
    columns = {"area": np.ones(2), "city": text("a", "b"), "floor": np.ones(2), "colour": np.ones(2)}
    assert set(gather_columns(columns, (TABLE,))) == {"table", "colour"}


@pytest.mark.parametrize(
    ("changes", "field", "accepted"),
    [
        ({"city": None}, "inputs['city']", "every column"),
        ({"area": np.ones((2, 2))}, "inputs['area'].shape", "(rows,)"),
        ({"area": np.ones(())}, "inputs['area'].shape", "(rows,)"),
        ({"floor": np.ones(3)}, "inputs['floor'].shape", "2 rows"),
        ({"area": text("1", "big")}, "inputs['area'].columns['area']", "a number"),
    ],
)
def test_what_is_wrong_with_a_column_is_refused_by_its_name(changes: dict[str, Any], field: str, accepted: str) -> None:
    columns: dict[str, Any] = {"area": np.ones(2), "city": text("a", "b"), "floor": np.ones(2)} | changes
    with pytest.raises(InvalidArgument) as caught:
        gather_columns({name: array for name, array in columns.items() if array is not None}, (TABLE,))
    assert caught.value.field == field
    assert accepted in caught.value.accepted


@pytest.mark.parametrize(
    ("name", "shape", "field"),
    [
        ("table", (10**9, 2), "inputs['table'].shape"),
        ("table", (3,), "inputs['table'].shape"),
        ("city", (10, 10**9), "inputs['city'].shape"),
        ("city", (), "inputs['city'].shape"),
        ("x", (3, 2), "inputs['x'].datatype"),
        ("nobody", (3,), "inputs['nobody'].datatype"),
    ],
)
def test_texts_that_no_table_has_are_refused_before_they_are_read(
    name: str, shape: tuple[int, ...], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_texts(name, shape, (TABLE, OTHER))
    assert caught.value.field == field


def test_texts_that_a_table_has_pass() -> None:
    for name, shape in (("table", (5, 3)), ("city", (5,)), ("area", (5, 1))):
        check_texts(name, shape, (TABLE, OTHER))
