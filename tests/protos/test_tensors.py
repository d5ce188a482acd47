"""The codec between arrays and tensors of the wire."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb

NAMES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]


@given(
    st.sampled_from(NAMES).flatmap(lambda name: arrays_of.arrays(np.dtype(name), arrays_of.array_shapes(max_dims=4)))
)
def test_what_is_encoded_is_decoded(array: np.ndarray) -> None:
    back = tensors.decode(tensors.encode(array, "x"))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
def test_bytes_on_the_wire_are_little_endian_and_row_major(order: str) -> None:
    array = np.asfortranarray(np.array([[1, 2], [3, 4]], dtype=f"{order}i2"))
    tensor = tensors.encode(array)
    assert tensor.data == b"\x01\x00\x02\x00\x03\x00\x04\x00"
    assert tensors.decode(tensor).tolist() == [[1, 2], [3, 4]]


def test_a_decoded_array_shares_the_messages_bytes_and_cannot_be_written() -> None:
    array = tensors.decode(tensors.encode(np.ones(3)))
    assert not array.flags.writeable


@pytest.mark.parametrize(
    ("tensor", "field"),
    [
        (pb.Tensor(dtype=pb.DATA_TYPE_UNSPECIFIED, shape=[1], data=b"1234"), "dtype"),
        (pb.Tensor(dtype=99, shape=[1], data=b"1234"), "dtype"),
        (pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[-1], data=b"1234"), "shape"),
        (pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[1] * 17, data=b"1234"), "shape"),
        (pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[2], data=b"1234"), "data"),
        (pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[1], data=b"12345"), "data"),
        (pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[2**62, 4], data=b""), "data"),
        (pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[2**63 - 1, 0], data=b""), "shape"),
        (pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=[0, 2**62], data=b""), "shape"),
        (pb.Tensor(dtype=pb.DATA_TYPE_BOOL, shape=[0, 2**62, 2**62], data=b""), "shape"),
        (pb.Tensor(dtype=pb.DATA_TYPE_INT8, shape=[0] + [2**31] * 3, data=b""), "shape"),
    ],
)
def test_a_tensor_that_describes_no_array_is_refused_by_field(tensor: pb.Tensor, field: str) -> None:
    with pytest.raises(tensors.TensorError) as caught:
        tensors.decode(tensor)
    assert caught.value.field == field


SIZES = st.lists(st.sampled_from([0, 1, 3, 2**20, 2**31, 2**48, 2**62, 2**63 - 1]), max_size=5)


@given(st.sampled_from(pb.DataType.values()), SIZES, st.binary(max_size=8))
def test_whatever_the_sizes_there_is_an_array_of_them_or_a_refusal(
    dtype: pb.DataType, sizes: list[int], data: bytes
) -> None:
    for values in (b"", data):
        try:
            found = tensors.decode(pb.Tensor(dtype=dtype, shape=sizes, data=values))
        except tensors.TensorError:
            continue
        assert found.shape == tuple(sizes)


def test_an_array_of_a_type_that_the_wire_does_not_have_is_refused() -> None:
    with pytest.raises(tensors.TensorError, match="complex128"):
        tensors.encode(np.ones(2, complex))
    with pytest.raises(tensors.TensorError, match="object"):
        tensors.encode(np.array(["a"], object))
