"""Whatever a request holds, it is found good or refused as the caller's fault; nothing else is ever raised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dubito_models.errors import DubitoError
from dubito_models.package import ModelVersion
from dubito_protos import open_inference_pb2 as pb
from dubito_service.asking import RequestLimits
from dubito_service.errors import refusal
from dubito_service.open_inference.datatypes import DATATYPES
from dubito_service.open_inference.messages import Inference, find_served, read_inference
from dubito_service.open_inference.options import SAMPLING, SCHEDULING
from dubito_service.versions.registry import Entry, Registry

from ..tables import with_table
from .wire import parameter, texts

LIMITS = RequestLimits(max_rows=50, max_draws=1000, max_work=20_000, max_message_bytes=2**16)

NAMES = st.sampled_from(["input", "tokens", "features", "area", "city", "rooms", "", "x", "日\x00"])
SHAPES = st.one_of(
    st.sampled_from([(2, 6), (2, 7), (2, 3), (2,), (2, 1), (0, 6), (0, 3), ()]),
    st.lists(st.integers(-2, 3), max_size=4).map(tuple),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3).map(tuple),
    st.lists(st.sampled_from([0, 6, 2**31, 2**48, 2**62, 2**63 - 1]), min_size=2, max_size=4).map(tuple),
)
SIZES = {"BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "BF16": 2, "UINT32": 4, "INT32": 4,
         "FP32": 4, "UINT64": 8, "INT64": 8, "FP64": 8}  # fmt: skip
CONTENTS = st.fixed_dictionaries(
    {},
    optional={
        "bool_contents": st.lists(st.booleans(), max_size=18),
        "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=18),
        "int64_contents": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=18),
        "uint_contents": st.lists(st.integers(0, 2**32 - 1), max_size=18),
        "uint64_contents": st.lists(st.integers(0, 2**64 - 1), max_size=18),
        "fp32_contents": st.lists(st.floats(width=32), max_size=18),
        "fp64_contents": st.lists(st.floats(), max_size=18),
        "bytes_contents": st.lists(st.binary(max_size=6), max_size=18),
    },
)
VALUES = st.one_of(st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=8))
PARAMETERS = st.dictionaries(
    st.one_of(st.sampled_from([*SAMPLING, *SCHEDULING, "sequence_id", "content_type"]), st.text(max_size=4)),
    st.one_of(VALUES, st.sampled_from(["10", "0.5", "true", "none", "balanced", "row", "0.1,0.9"])),
    max_size=3,
)


@st.composite
def tensor_and_raw(draw: st.DrawFn) -> tuple[pb.ModelInferRequest.InferInputTensor, bytes]:
    """A tensor, and raw bytes that are often of its length."""
    datatype = draw(st.one_of(st.sampled_from(DATATYPES), st.text(max_size=3)))
    shape = draw(SHAPES)
    given_contents = draw(st.one_of(st.just({}), CONTENTS))
    tensor = pb.ModelInferRequest.InferInputTensor(
        name=draw(NAMES), datatype=datatype, shape=shape, contents=pb.InferTensorContents(**given_contents)
    )
    count = 1
    for size in shape:
        count = count * size if 0 <= count * size < 200 else 0
    if datatype == "BYTES":
        fitting = texts(*draw(st.lists(st.sampled_from(["1", "Rome", "", "x"]), min_size=count, max_size=count)))
    else:
        fitting = bytes(count * SIZES.get(datatype, 1))
    return tensor, draw(st.one_of(st.just(fitting), st.just(fitting), st.binary(max_size=20)))


@st.composite
def requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    model = draw(st.sampled_from(["mlp", "mlp.standard", "price", "price.standard", "nobody", ""]))
    found = draw(st.lists(tensor_and_raw(), max_size=4))
    raw = draw(
        st.one_of(st.just([each for _, each in found]), st.just([]), st.lists(st.binary(max_size=4), max_size=3))
    )
    outputs = draw(st.lists(st.sampled_from(["label", "probabilities", "mean", "raw_draws", ""]), max_size=3))
    return pb.ModelInferRequest(
        model_name=model,
        model_version=draw(st.sampled_from(["", "1", "2", "0", "x"])),
        parameters={name: parameter(value) if _fits(value) else pb.InferParameter()
                    for name, value in draw(PARAMETERS).items()},
        inputs=[tensor for tensor, _ in found],
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
        raw_input_contents=raw,
    )  # fmt: skip


def _fits(value: Any) -> bool:
    return not isinstance(value, int) or -(2**63) <= value < 2**64


@pytest.fixture(scope="module")
def registry(packed: Callable[[str], ModelVersion]) -> Registry:
    """A network of rows, and one whose second input is a table."""
    return Registry([Entry("mlp", 1, packed("mlp")), Entry("price", 1, with_table(packed("two-inputs")))])


def read(request: pb.ModelInferRequest, registry: Registry) -> Inference | None:
    """Read a request; None where it is refused in a way that its caller may know."""
    try:
        served = find_served(request.model_name, request.model_version, registry)
        return read_inference(request, served, LIMITS)
    except DubitoError as caught:
        error = caught
    assert refusal(error) is not None
    return None


@given(request=requests())
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_any_request_is_found_good_or_refused(request: pb.ModelInferRequest, registry: Registry) -> None:
    read(request, registry)


@given(payload=st.binary(max_size=300))
@settings(max_examples=500, deadline=None)
def test_any_bytes_that_parse_are_found_good_or_refused(payload: bytes, registry: Registry) -> None:
    good = pb.ModelInferRequest(model_name="mlp")
    good.inputs.add(name="input", datatype="FP32", shape=[1, 6])
    good.raw_input_contents.append(bytes(24))
    try:
        request = pb.ModelInferRequest.FromString(good.SerializeToString() + payload)
    except DecodeError:
        return
    read(request, registry)
