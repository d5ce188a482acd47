"""Datatypes: raw bytes mean the array that they say they are, or are refused by what is wrong with them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dubito_models.errors import InvalidArgument
from dubito_service.open_inference.datatypes import (
    DTYPES,
    check_datatype,
    check_shape,
    datatype_of,
    decode,
    encode,
    widen,
)


@pytest.mark.parametrize("datatype", DTYPES)
def test_an_array_of_every_datatype_comes_back_as_it_was(datatype: str) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(DTYPES[datatype])
    assert datatype_of(array.dtype) == datatype
    back = decode(datatype, (2, 3), encode(array), "x")
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_texts_come_back_as_they_were_whatever_their_script() -> None:
    array = np.array([["", "straße"], ["日本", "a\x00b"]], object)
    np.testing.assert_array_equal(decode("BYTES", (2, 2), encode(array), "x"), array)


def test_a_brain_float_is_the_upper_half_of_a_float32() -> None:
    exact = np.array([1.0, -2.5, 0.0, np.inf], np.float32)
    raw = (exact.view(np.uint32) >> 16).astype("<u2").tobytes()
    found = decode("BF16", (4,), raw, "x")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, exact)


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", (2,), bytes(7)),
        ("FP32", (2,), bytes(9)),
        ("FP32", (2**62, 256), b""),
        ("BF16", (2,), bytes(8)),
        ("BOOL", (2,), b"\x00\x02"),
        ("BYTES", (1,), b""),
        ("BYTES", (1,), b"\x01\x00\x00"),
        ("BYTES", (1,), struct.pack("<I", 5) + b"abcd"),
        ("BYTES", (1,), struct.pack("<I", 2**32 - 1) + b"abcd"),
        ("BYTES", (2,), struct.pack("<I", 4) + b"abcd"),
        ("BYTES", (1,), struct.pack("<I", 1) + b"ab"),
        ("BYTES", (1,), struct.pack("<I", 1) + b"\xff"),
        ("BYTES", (2**61,), struct.pack("<I", 1) + b"a"),
    ],
)
def test_bytes_that_are_not_the_array_they_are_said_to_be_are_refused(
    datatype: str, shape: tuple[int, ...], data: bytes
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode(datatype, shape, data, "inputs['x']")
    assert caught.value.field == "inputs['x']"


@given(st.sampled_from([*DTYPES, "BF16", "BYTES"]), st.lists(st.integers(0, 5), max_size=3), st.binary(max_size=80))
@settings(max_examples=300, deadline=None)
def test_whatever_bytes_come_they_are_an_array_of_the_shape_or_refused(
    datatype: str, shape: list[int], data: bytes
) -> None:
    try:
        found = decode(datatype, tuple(shape), data, "x")
    except InvalidArgument:
        return
    assert found.shape == tuple(shape)


@pytest.mark.parametrize("datatype", [*DTYPES, "BF16", "BYTES"])
@given(st.lists(st.sampled_from([0, 1, 2**20, 2**31, 2**48, 2**62, 2**63 - 1]), max_size=4))
@settings(max_examples=100, deadline=None)
def test_of_no_bytes_whatever_the_sizes_there_is_an_array_or_a_refusal(datatype: str, sizes: list[int]) -> None:
    try:
        found = decode(datatype, check_shape(sizes, "x"), b"", "x")
    except InvalidArgument:
        return
    assert found.shape == tuple(sizes)


@pytest.mark.parametrize("shape", [(-1,), (3, -2), (1,) * 17, (2**63 - 1, 0), (0, 2**62), (0, 2**62, 2**62)])
def test_a_shape_that_no_array_has_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument, match="shape"):
        check_shape(shape, "x")


@pytest.mark.parametrize("datatype", ["", "fp32", "FLOAT", "FP8", "\x00"])
def test_a_datatype_that_the_protocol_does_not_have_is_refused_with_those_it_has(datatype: str) -> None:
    with pytest.raises(InvalidArgument, match="FP32, FP64, BF16, BYTES"):
        check_datatype(datatype, "x")


@pytest.mark.parametrize(
    ("given_dtype", "wanted", "changes"),
    [
        ("float16", "float32", True),
        ("uint8", "float32", True),
        ("int16", "float32", True),
        ("int32", "float64", True),
        ("int32", "int64", True),
        ("bool", "int64", True),
        ("int32", "float32", False),
        ("int64", "float64", False),
        ("uint64", "float64", False),
        ("float64", "float32", False),
        ("int64", "int32", False),
        ("int8", "uint8", False),
        ("float32", "int64", False),
    ],
)
def test_an_array_is_widened_only_where_no_value_changes(given_dtype: str, wanted: str, changes: bool) -> None:
    array = np.array([0, 1], given_dtype)
    assert widen(array, wanted).dtype == (wanted if changes else given_dtype)
