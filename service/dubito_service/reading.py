"""Reading: what large messages cost, and where that is spent, so that no message holds up the calls of others.

Protobuf keeps Python's lock while it parses, in any thread, and makes an object of every field: what takes long is not
a message of many bytes but one of millions of small fields. So the fields of a large message are counted, by a walk
through its bytes that gives way to other threads, and too many refused before it is parsed. The walk, the parser and
the decoding of large tensors run beside the event loop; small messages, which are most, are read on it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from dubito_models.errors import InvalidArgument

R = TypeVar("R")
Parser: TypeAlias = Callable[[bytes], Any]

LARGE_BYTES = 2**18  # of a message
LARGE_VALUES = 2**16  # of a tensor
MOST_FIELDS = 2**18  # of a message: twice as many as a small one has room for
PACKED = 16  # bytes of packed whole numbers, which take about as long as a field
_FEW_TENSORS = 64
_MOST_SIZES = 16  # of a shape; of more it is refused

_VARINT, _BYTES = 0, 2  # kinds of fields on the wire
_FIXED = {1: 8, 5: 4}  # bytes of those that are always as long; groups are not served
_LONGEST_VARINT = 10  # bytes
_WHOLE = frozenset(
    (
        FieldDescriptor.CPPTYPE_BOOL,
        FieldDescriptor.CPPTYPE_ENUM,
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
    )
)


async def parse(parser: Parser, payload: bytes, kind: Descriptor | None) -> Any:
    """Return the message that bytes are; `kind`: what it is, None where its fields need not be counted.

    Raises `InvalidArgument`.
    """
    if len(payload) < LARGE_BYTES:
        return _parse(parser, payload)
    return await asyncio.to_thread(_parse, parser, payload, kind)


async def decode(read: Callable[[], R], *, large: bool) -> R:
    """Return what a message means; `large`: reading it takes long."""
    return await asyncio.to_thread(read) if large else read()


def is_large(shapes: Iterable[Sequence[int]]) -> bool:
    """Tell whether tensors take long to decode, by what they say of their shapes before anything is checked."""
    for place, shape in enumerate(shapes):
        if place >= _FEW_TENSORS or (len(shape) <= _MOST_SIZES and math.prod(shape) >= LARGE_VALUES):
            return True
    return False


def check_fields(payload: bytes, kind: Descriptor) -> None:
    """Refuse a message of more than `MOST_FIELDS` fields, at whatever depth; raises `InvalidArgument`.

    `DecodeError` for bytes that are no message.
    """
    at, count = 0, 0
    within = [(len(payload), kind)]  # the messages around this place and where they end, the innermost last
    while within:
        end, kind = within[-1]
        if at == end:
            within.pop()
            continue
        key, at = _read_varint(payload, at)
        number, wire = divmod(key, 8)
        size, inner = _FIXED.get(wire, 0), None
        if wire == _VARINT:
            _, at = _read_varint(payload, at)
        elif wire == _BYTES:
            size, at = _read_varint(payload, at)
            inner = _messages(kind).get(number)
            count += size // PACKED if number in _packed(kind) else 0
        elif not size:
            raise DecodeError(f"a field of kind {wire} on the wire")
        if at + size > end:
            raise DecodeError("a field that ends after its message")
        count += 1
        if count > MOST_FIELDS:
            accepted = f"at most {MOST_FIELDS}, {PACKED} bytes of packed whole numbers one of them; or the values raw"
            raise InvalidArgument("request", f"more than {MOST_FIELDS} fields", accepted)
        if inner is None:
            at += size
        else:
            within.append((at + size, inner))


def _read_varint(payload: bytes, at: int) -> tuple[int, int]:
    """Return the number that stands at a place, and the place after it."""
    value = 0
    for place, byte in enumerate(payload[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise DecodeError("a number that does not end")


@cache
def _messages(kind: Descriptor) -> Mapping[int, Descriptor]:
    """Return the fields of a message that are messages, by number."""
    return {field.number: field.message_type for field in kind.fields if field.message_type is not None}


@cache
def _packed(kind: Descriptor) -> frozenset[int]:
    """Return the numbers of the fields that hold many whole numbers, which take from one byte on each."""
    return frozenset(field.number for field in kind.fields if field.is_repeated and field.cpp_type in _WHOLE)


def _parse(parser: Parser, payload: bytes, kind: Descriptor | None = None) -> Any:
    try:
        if kind is not None:
            check_fields(payload, kind)
        return parser(payload)
    except DecodeError:
        raise InvalidArgument("request", f"{len(payload)} bytes that are no such message", "protobuf") from None
