"""The one codec between numpy arrays and the wire's `Tensor`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dubito_protos import uncertainty_pb2 as pb

MAX_RANK = 16

_DTYPES: dict[pb.DataType, np.dtype[Any]] = {
    pb.DATA_TYPE_BOOL: np.dtype("?"),
    pb.DATA_TYPE_UINT8: np.dtype("u1"),
    pb.DATA_TYPE_INT8: np.dtype("i1"),
    pb.DATA_TYPE_INT16: np.dtype("<i2"),
    pb.DATA_TYPE_INT32: np.dtype("<i4"),
    pb.DATA_TYPE_INT64: np.dtype("<i8"),
    pb.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    pb.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    pb.DATA_TYPE_FLOAT64: np.dtype("<f8"),
}
_CODES = {dtype.newbyteorder("="): code for code, dtype in _DTYPES.items()}


class TensorError(ValueError):
    """A `Tensor` that does not describe an array.

    `field` names what is wrong within the tensor, `given` what came, `accepted` what would do.
    """

    def __init__(self, field: str, given: str, accepted: str) -> None:
        super().__init__(f"{field}: got {given}; accepted: {accepted}")
        self.field, self.given, self.accepted = field, given, accepted


def dtype_code(dtype: np.dtype[Any] | str) -> pb.DataType:
    """Return the wire's code of a numpy dtype; `TensorError` where the wire has none."""
    found = _CODES.get(np.dtype(dtype))
    if found is None:
        found = _CODES.get(np.dtype(dtype).newbyteorder("="))
    if found is None:
        raise TensorError("dtype", str(np.dtype(dtype)), ", ".join(sorted(d.name for d in _CODES)))
    return found


def dtype_name(code: pb.DataType) -> str:
    """Return the numpy name of a wire dtype, for example `float32`; `unspecified` where it has none."""
    return _DTYPES[code].name if code in _DTYPES else "unspecified"


def encode(array: NDArray[Any], name: str = "") -> pb.Tensor:
    """Encode an array of any shape as a `Tensor`: row-major, little-endian."""
    tensor = pb.Tensor(name=name)
    fill(tensor, array)
    return tensor


def fill(tensor: pb.Tensor, array: NDArray[Any]) -> None:
    """Encode an array into an empty `Tensor`: in its place in a message that costs half of what a copy there does."""
    code = dtype_code(array.dtype)
    tensor.dtype = code
    tensor.shape.extend(array.shape)
    tensor.data = array.astype(_DTYPES[code], copy=False).tobytes()


def decode(tensor: pb.Tensor) -> NDArray[Any]:
    """Decode a `Tensor` to a read-only array that shares the message's bytes.

    Raises `TensorError` for an unknown dtype, a negative or absurd shape, or data of the wrong length.
    """
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        given = pb.DataType.Name(tensor.dtype) if tensor.dtype in pb.DataType.values() else str(tensor.dtype)
        raise TensorError("dtype", given, ", ".join(pb.DataType.Name(code) for code in _DTYPES))
    shape, data = tuple(tensor.shape), tensor.data
    if len(shape) > MAX_RANK or min(shape, default=0) < 0:
        given = f"rank {len(shape)}" if len(shape) > MAX_RANK else str(list(shape))
        raise TensorError("shape", given, f"at most {MAX_RANK} sizes, each >= 0")
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise TensorError("data", f"{len(data)} bytes", f"{expected} bytes for shape {list(shape)} of {dtype.name}")
    if not data and math.prod(size for size in shape if size) > 2**48:  # no memory is asked for; numpy counts it yet
        raise TensorError("shape", str(list(shape)), "sizes beside a 0 whose product is at most 2**48")
    return np.frombuffer(data, dtype=dtype).reshape(shape)
