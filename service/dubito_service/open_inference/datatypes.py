"""The datatypes of the Open Inference Protocol: their names, and the arrays that raw bytes mean.

Raw values are row-major and little-endian; a text (BYTES) is its length in four bytes, and then itself.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dubito_models.errors import InvalidArgument

MAX_RANK = 16
TEXT, BRAIN_FLOAT = "BYTES", "BF16"

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
DATATYPES = (*DTYPES, BRAIN_FLOAT, TEXT)
_NAMES = {np.dtype(object): TEXT, **{dtype.newbyteorder("="): name for name, dtype in DTYPES.items()}}
_LENGTH = struct.Struct("<I")


def datatype_of(dtype: np.dtype[Any] | str) -> str:
    """Return the protocol's name of a numpy dtype; texts are arrays of objects."""
    return _NAMES[np.dtype(dtype).newbyteorder("=")]


def check_datatype(datatype: str, field: str) -> None:
    """Raise `InvalidArgument` for a datatype that the protocol does not have."""
    if datatype not in DATATYPES:
        raise InvalidArgument(f"{field}.datatype", repr(datatype), ", ".join(DATATYPES))


def check_shape(shape: Sequence[int], field: str) -> tuple[int, ...]:
    """Return a shape that an array can have; `InvalidArgument` for others."""
    if len(shape) > MAX_RANK or any(size < 0 for size in shape):
        given = f"rank {len(shape)}" if len(shape) > MAX_RANK else str(list(shape))
        raise InvalidArgument(f"{field}.shape", given, f"at most {MAX_RANK} sizes, each >= 0")
    if 0 in shape and math.prod(size for size in shape if size) > 2**48:  # no memory is asked for; numpy counts it yet
        raise InvalidArgument(f"{field}.shape", str(list(shape)), "sizes beside a 0 whose product is at most 2**48")
    return tuple(shape)


def decode(datatype: str, shape: tuple[int, ...], data: bytes, field: str) -> NDArray[Any]:
    """Return the array that raw bytes mean, read-only where it can share them; BF16 becomes float32.

    Texts become an array of `str`. `InvalidArgument`, by `field`, for bytes of another length or texts that are not
    UTF-8.
    """
    count = math.prod(shape)
    if datatype == TEXT:
        return as_texts(_split(data, count, field), shape, field)
    dtype = np.dtype("<u2") if datatype == BRAIN_FLOAT else DTYPES[datatype]
    if len(data) != count * dtype.itemsize:
        accepted = f"{count * dtype.itemsize} bytes for shape {list(shape)} of {datatype}"
        raise InvalidArgument(field, f"{len(data)} raw bytes", accepted)
    values = np.frombuffer(data, dtype)
    if datatype == "BOOL" and (values.view(np.uint8) > 1).any():
        raise InvalidArgument(field, f"a BOOL of {int(values.view(np.uint8).max())}", "bytes 0 and 1")
    if datatype == BRAIN_FLOAT:
        values = (values.astype(np.uint32) << 16).view(np.float32)  # the upper half of a float32
    return values.reshape(shape)


def as_texts(values: Sequence[bytes], shape: tuple[int, ...], field: str) -> NDArray[Any]:
    """Return an array of `str`; `InvalidArgument` for bytes that are not UTF-8."""
    texts = np.empty(len(values), object)
    for place, value in enumerate(values):
        try:
            texts[place] = value.decode()
        except UnicodeDecodeError:
            raise InvalidArgument(field, f"bytes that are no text, at {place}", "UTF-8") from None
    return texts.reshape(shape)


def _split(data: bytes, count: int, field: str) -> list[bytes]:
    """Split the raw form of so many texts."""
    if count * _LENGTH.size > len(data):  # before anything of that size is made
        raise InvalidArgument(field, f"{len(data)} raw bytes", f"{count} texts, each with its length in 4 bytes before")
    found, at = [], 0
    for place in range(count):
        start = at + _LENGTH.size
        if start > len(data):
            raise InvalidArgument(field, f"{place} texts in {len(data)} raw bytes", f"{count} texts")
        at = start + _LENGTH.unpack_from(data, at)[0]
        if at > len(data):
            given = f"a text of {at - start} bytes where {len(data) - start} are left"
            raise InvalidArgument(field, given, "lengths that the texts have")
        found.append(data[start:at])
    if at != len(data):
        raise InvalidArgument(field, f"{len(data) - at} raw bytes after the last text", f"{count} texts and no more")
    return found


def encode(array: NDArray[Any]) -> bytes:
    """Return an array's raw bytes."""
    if array.dtype == object:
        texts = [str(text).encode() for text in array.ravel()]
        return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def widen(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return an array in another dtype where that can hold every value of its own; else the array as it is."""
    wanted = np.dtype(dtype)
    if array.dtype.newbyteorder("=") == wanted:
        return array
    rounds = array.dtype.itemsize == 8 and array.dtype.kind in "iu" and wanted.kind == "f"  # numpy calls that safe
    return array.astype(wanted) if np.can_cast(array.dtype, wanted) and not rounds else array
