"""Laws of the inputs: what is converted keeps its value, what is reshaped keeps its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dubito_client.answers import InputSignature
from dubito_client.errors import InvalidArgument, ProtocolError
from dubito_client.inputs import fit_rows, named_arrays


def declared(dtype: str = "float32", shape: tuple[int | None, ...] = (None, 2), name: str = "x") -> InputSignature:
    return InputSignature(name, dtype, shape)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([[1, 2]], "float32"),
        ([[0.5, 2.0]], "float32"),
        (np.array([[1.0, np.nan]]), "float32"),
        (np.array([[1.0, np.inf]]), "float16"),
        (np.array([[1, 2**31 - 1]]), "int32"),
        (np.array([[1.0, 2.0]]), "int64"),
        (np.array([[0, 1]]), "bool"),
        (np.array([[True, False]]), "float32"),
        (np.array([[1, 255]]), "uint8"),
    ],
)
def test_a_value_that_fits_is_converted_to_the_declared_type(value: Any, dtype: str) -> None:
    converted = named_arrays(value, [declared(dtype)])["x"]
    assert converted.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(converted.astype(float), np.asarray(value, dtype=float))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.array([[1.0, 1e39]]), "float32"),
        (np.array([[1.0, 70000.0]]), "float16"),
        (np.array([[1, 2**31]]), "int32"),
        (np.array([[1.0, 2.5]]), "int64"),
        (np.array([[1.0, np.nan]]), "int64"),
        (np.array([[1, -1]]), "uint8"),
        (np.array([[0, 2]]), "bool"),
        (np.array([[1, 2**64 - 1]], dtype=np.uint64), "int64"),
        (np.array([["a", "b"]]), "float32"),
        (np.array([[1 + 2j, 0]]), "float32"),
        ([[1.0], [1.0, 2.0]], "float32"),
        ([[None, 1.0]], "float32"),
    ],
)
def test_a_value_that_would_change_is_refused_with_its_field(value: Any, dtype: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        named_arrays(value, [declared(dtype)])
    assert caught.value.field == "inputs.x"
    assert caught.value.given
    assert caught.value.accepted


def test_an_array_of_the_declared_type_is_not_copied() -> None:
    rows = np.ones((4, 2), np.float32)
    assert named_arrays(rows, [declared()])["x"] is rows


def test_rows_of_a_type_that_this_client_does_not_know_are_left_alone() -> None:
    rows = np.ones((4, 2), np.float64)
    assert named_arrays(rows, [declared("unspecified")])["x"] is rows


def test_inputs_are_named_as_declared_and_no_other_way() -> None:
    both = [declared(name="a"), declared(name="b")]
    assert list(named_arrays({"b": [[1, 2]], "a": [[3, 4]]}, both)) == ["a", "b"]
    for wrong in ([[1, 2]], {"a": [[1, 2]]}, {"a": [[1, 2]], "c": [[1, 2]]}, {}):
        with pytest.raises(InvalidArgument, match="names a, b"):
            named_arrays(wrong, both)


def test_a_model_without_declared_inputs_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        named_arrays([[1, 2]], [])


@pytest.mark.parametrize(
    ("given", "shape", "fitted"),
    [
        ((5, 64), (None, 1, 8, 8), (5, 1, 8, 8)),
        ((5, 1, 8, 8), (None, 1, 8, 8), (5, 1, 8, 8)),
        ((5, 8, 8), (None, 64), (5, 64)),
        ((64,), (None, 64), (1, 64)),
        ((8, 8), (None, 8, 8), (1, 8, 8)),
        ((5, 12), (None, None, 4), (5, 3, 4)),
        ((5, 1), (None,), (5,)),
        ((5, 63), (None, 1, 8, 8), (5, 63)),
        ((5, 13), (None, None, 4), (5, 13)),
        ((5, 12), (None, None, None, 4), (5, 12)),
        ((0, 64), (None, 1, 8, 8), (0, 64)),
        ((), (None, 2), ()),
    ],
)
def test_rows_take_their_declared_shape_only_where_their_values_fill_it(
    given: tuple[int, ...], shape: tuple[int | None, ...], fitted: tuple[int, ...]
) -> None:
    array = np.arange(np.prod(given, dtype=int)).reshape(given)
    result = fit_rows(array, declared(shape=shape))
    assert result.shape == fitted
    np.testing.assert_array_equal(result.ravel(), array.ravel())
