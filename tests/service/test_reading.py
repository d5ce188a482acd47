"""Reading: a large message of too many fields is never parsed, and what it is made of is counted as the parser does."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from dubito_models.errors import InvalidArgument
from dubito_protos import open_inference_pb2 as oip
from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb
from dubito_service.reading import LARGE_BYTES, LARGE_VALUES, MOST_FIELDS, PACKED, check_fields, decode, is_large, parse

INFER = oip.ModelInferRequest.DESCRIPTOR


def field(number: int, payload: bytes) -> bytes:
    """A field of bytes on the wire."""
    size, length = b"", len(payload)
    while length >= 128:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + payload


def inside(payload: bytes) -> bytes:
    """The contents of an input."""
    return field(5, field(5, payload))


FLOODS = {
    "inputs": b"\x2a\x00" * (MOST_FIELDS + 1),
    "outputs": b"\x32\x00" * (MOST_FIELDS + 1),
    "raw contents": b"\x3a\x00" * (MOST_FIELDS + 1),
    "parameters": b"\x22\x00" * (MOST_FIELDS + 1),
    "an input's parameters": field(5, b"\x22\x00" * (MOST_FIELDS + 1)),
    "sizes": field(5, b"\x18\x00" * (MOST_FIELDS + 1)),
    "packed sizes": field(5, field(3, bytes(PACKED * MOST_FIELDS))),
    "texts": inside(b"\x42\x00" * (MOST_FIELDS + 1)),
    "whole numbers": inside(field(3, bytes(PACKED * MOST_FIELDS))),
    "truths": inside(field(1, bytes(PACKED * MOST_FIELDS))),
    "fields of no contract": b"\x78\x00" * (MOST_FIELDS + 1),
}


@pytest.mark.parametrize("case", FLOODS)
async def test_a_message_of_too_many_fields_is_refused_and_never_parsed(case: str) -> None:
    parsed: list[bytes] = []
    with pytest.raises(InvalidArgument, match=f"request: got more than {MOST_FIELDS} fields; accepted: at most"):
        await parse(parsed.append, FLOODS[case], INFER)
    assert not parsed


WIDE: dict[str, Message] = {
    "raw": oip.ModelInferRequest(raw_input_contents=[bytes(2**20), bytes(2**22)]),
    "typed": oip.ModelInferRequest(
        inputs=[
            oip.ModelInferRequest.InferInputTensor(
                contents=oip.InferTensorContents(
                    fp32_contents=np.ones(2**20), fp64_contents=np.ones(2**20), int64_contents=range(-(2**17), 2**17)
                )
            )
        ]
    ),
    "texts": oip.ModelInferRequest(
        inputs=[oip.ModelInferRequest.InferInputTensor(contents={"bytes_contents": [b"a text"] * (MOST_FIELDS // 2)})]
    ),
    "own": pb.PredictRequest(inputs=[tensors.encode(np.ones((1000, 1000)))]),
}


@pytest.mark.parametrize("case", WIDE)
async def test_a_message_of_many_values_is_read_whatever_its_size(case: str) -> None:
    message = WIDE[case]
    payload = message.SerializeToString()
    assert len(payload) > LARGE_BYTES
    assert await parse(type(message).FromString, payload, message.DESCRIPTOR) == message


ENDS = [b"\xff", b"\xff" * 11, field(5, b"\x2a\x05"), b"\x3a\x7f", b"\x2b", b"\x2f", field(5, b"\x19"), b"\x28\xff\xff"]


@pytest.mark.parametrize("end", ENDS, ids=bytes.hex)
async def test_large_bytes_that_are_no_message_are_refused_as_small_ones_are(end: bytes) -> None:
    payload = field(7, bytes(LARGE_BYTES)) + end
    for kind in (INFER, None):
        with pytest.raises(InvalidArgument, match=f"{len(payload)} bytes that are no such message"):
            await parse(oip.ModelInferRequest.FromString, payload, kind)


@given(st.binary(max_size=60))
@settings(max_examples=500, deadline=None)
def test_what_the_parser_takes_the_count_takes(payload: bytes) -> None:
    try:
        message = oip.ModelInferRequest.FromString(payload)
    except DecodeError:
        return
    check_fields(message.SerializeToString(deterministic=True), INFER)


async def test_large_messages_are_parsed_and_decoded_beside_the_loop_and_small_ones_on_it() -> None:
    here, places = threading.get_ident(), list[int]()

    def note(payload: bytes = b"") -> None:
        places.append(threading.get_ident())

    await parse(note, bytes(LARGE_BYTES - 1), None)
    await decode(note, large=False)
    assert places == [here, here]
    await parse(note, bytes(LARGE_BYTES), None)
    await decode(note, large=True)
    assert here not in places[2:]
    assert len(places) == 4


@pytest.mark.parametrize(
    ("shapes", "large"),
    [
        ([], False),
        ([[1, 4], [3, 100]], False),
        ([[1, 4], [1, LARGE_VALUES]], True),
        ([[1]] * 65, True),
        ([[2] * 17], False),
        ([[2**62] * 16], True),
    ],
)
def test_a_request_is_large_by_what_it_says_of_its_tensors(shapes: list[list[int]], large: bool) -> None:
    assert is_large(shapes) is large
