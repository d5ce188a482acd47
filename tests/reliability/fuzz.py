"""Fuzz: random messages, valid and broken, for every call of every service that a server lists by reflection.

    python -m reliability.fuzz HOST:PORT --cases 50000 --seed 1

Messages are made by their descriptors, which the server itself gives: some of nothing but chance, most by changing a
good one here and there, some by changing its bytes or the shapes of its tensors. A call may be refused; no refusal may
be the server's own fault, tell of its insides, or be late; and the next good request is answered right.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import hypothesis
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from hypothesis import strategies as st

from dubito_protos import open_inference_pb2 as oip
from dubito_protos import uncertainty_pb2 as pb
from dubito_protos import uncertainty_pb2_grpc as pb_grpc

from .calling import OWN_CONNECTION, observation
from .questions import as_evaluation, as_inference, probe

SECONDS = 60.0
REPLIES = 20  # of a stream that are read: some have no end
OWN_FAULTS = ("INTERNAL", "UNKNOWN", "DATA_LOSS", "DEADLINE_EXCEEDED", "UNAVAILABLE")
INSIDES = ("Traceback", 'File "', ".py", "Error(", "Exception", "internal error")
RARELY = ("UnloadModel", "RepositoryModelUnload", "LoadModel", "RepositoryModelLoad")  # they take their time
# Names and texts that mean something somewhere.
WORDS = (
    "", "mlp", "mlp.standard", "input", "1", "-1", "9" * 30, "FP32", "INT64", "BYTES", "BF16", "probabilities", "draws",
    "seed", "tolerance", "coverage", "stream", "priority", "timeout", "quantiles", "sequence_id", "../mlp", "m\x00p",
    "é" * 100, "\u2028", "x" * 5000, "dubito.v1.UncertaintyService", "uncertainty.proto",
)  # fmt: skip
EDGES = (0, 1, -1, 2, 3, 20, 100, 10_000, 2**31 - 1, 2**31, -(2**31), 2**32 - 1, 2**62, 2**63 - 1, -(2**63), 2**64 - 1)
REALS = (0.0, -0.0, 0.05, 0.5, 0.9, 1.0, -1.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"))
# Of no values, where sizes or what they come to is more than an array counts.
SHAPES = ((0, 2**62), (0, 2**62, 2**62), (2**31, 0, 2**31, 2**31), (0, 2**63 - 1), (2**32, 2**32), (0, 6), (0,) * 16)
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-3, 12),
}
_DEEPEST = 4
Draw: TypeAlias = Callable[[st.SearchStrategy[Any]], Any]
_TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


@dataclass(frozen=True, slots=True)
class Method:
    """One call that a server takes."""

    path: str
    takes: type[Message]
    gives: type[Message]
    asks_often: bool
    answers_often: bool


@dataclass(frozen=True, slots=True)
class Case:
    """A call to make: its messages, as bytes."""

    method: Method
    payloads: tuple[bytes, ...]


@dataclass
class Findings:
    """What calls came to; faults with the case, so that they can be made again."""

    codes: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[dict[str, Any]] = field(default_factory=list)
    slowest: float = 0.0


def methods(channel: grpc.Channel) -> list[Method]:
    """Return every call of every service that a server lists."""
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    found: list[MethodDescriptor] = []
    for name in database.get_services():
        found += pool.FindServiceByName(name).methods
    return [
        Method(
            f"/{method.containing_service.full_name}/{method.name}",
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
            method.client_streaming,
            method.server_streaming,
        )
        for method in found
    ]


# --- Messages ---


def _number(kind: int) -> st.SearchStrategy[int]:
    least, most = _RANGES[kind]
    edges = [edge for edge in EDGES if least <= edge <= most]
    return st.sampled_from(edges) if kind != FieldDescriptor.CPPTYPE_ENUM else st.integers(least, most)


def scalar(described: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Return values of a field that is no message."""
    kind = described.cpp_type
    if kind in _RANGES:
        return _number(kind)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return st.sampled_from(REALS)
    if described.type == FieldDescriptor.TYPE_BYTES:
        return st.sampled_from((b"", bytes(24), bytes(72), b"\xff" * 24, bytes(2000))) | st.binary(max_size=40)
    return st.sampled_from(WORDS) | _TEXTS


def fill(draw: Draw, message: Message, described: FieldDescriptor, deep: int) -> None:
    """Set one field of a message to something."""
    name = described.name
    if described.is_repeated:
        message.ClearField(name)
        for _ in range(draw(st.integers(0, 3))):
            _add(draw, message, described, deep)
    elif described.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        getattr(message, name).SetInParent()
        if deep < _DEEPEST:
            vary(draw, getattr(message, name), deep + 1)
    else:
        setattr(message, name, draw(scalar(described)))


def _add(draw: Draw, message: Message, described: FieldDescriptor, deep: int) -> None:
    values = getattr(message, described.name)
    entry = described.message_type
    if entry is None:
        values.append(draw(scalar(described)))
    elif entry.GetOptions().map_entry:
        key = draw(scalar(entry.fields_by_name["key"]))
        inner = entry.fields_by_name["value"]
        if inner.message_type is None:
            values[key] = draw(scalar(inner))
        else:
            vary(draw, values[key], deep + 1)
    elif deep < _DEEPEST:
        vary(draw, values.add(), deep + 1)


def vary(draw: Draw, message: Message, deep: int = 0) -> None:
    """Set some fields of a message to something, or go into one that is there and vary that."""
    fields = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    for _ in range(draw(st.integers(1, 3))):
        described = draw(st.sampled_from(fields))
        inner = described.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
        within = list(getattr(message, described.name)) if described.is_repeated and inner else []
        if inner and not described.is_repeated and draw(st.booleans()):
            vary(draw, getattr(message, described.name), deep + 1)
        elif within and isinstance(within[0], Message) and draw(st.booleans()):
            vary(draw, draw(st.sampled_from(within)), deep + 1)
        elif draw(st.integers(0, 5)) == 0:
            message.ClearField(described.name)
        else:
            fill(draw, message, described, deep)


def reshape(draw: Draw, message: Message) -> None:
    """Give every tensor of a message a shape that holds nothing, or so much that it counts as nothing."""
    for described, value in message.ListFields():
        if described.name == "shape":
            value[:] = draw(st.sampled_from(SHAPES))
        elif described.name == "data":
            message.ClearField("data")
        elif described.name == "raw_input_contents":
            value[:] = [b""] * len(value)
        elif isinstance(value, Message):
            reshape(draw, value)
        elif described.name == "inputs":
            for tensor in value:
                reshape(draw, tensor)


@st.composite
def payload(draw: Draw, kind: type[Message], good: Message | None) -> bytes:
    """Return the bytes of a message: of chance alone, or a good one that is changed, reshaped, or its bytes."""
    how = draw(st.integers(0, 9))
    message = kind()
    if good is not None and how > 0:
        message.MergeFromString(good.SerializeToString())
    if how == 9:
        reshape(draw, message)
    elif how > 2:
        vary(draw, message)
    data = message.SerializeToString()
    if how in (1, 2):
        data = _harmed(draw, data)
    return data


def _harmed(draw: Draw, data: bytes) -> bytes:
    place = draw(st.integers(0, max(0, len(data) - 1)))
    how = draw(st.integers(0, 2))
    if how == 0:
        return data[:place]
    if how == 1:
        return data[:place] + draw(st.binary(min_size=1, max_size=8)) + data[place:]
    return data[:place] + draw(st.binary(min_size=1, max_size=8)) + data[place + 8 :]


def cases(known: Sequence[Method], good: dict[str, Message]) -> st.SearchStrategy[Case]:
    """Return calls of all methods, those that take their time rarely."""
    often = [method for method in known if method.path.rsplit("/", 1)[1] not in RARELY]
    rare = [method for method in known if method not in often]

    @st.composite
    def case(draw: Draw) -> Case:
        seldom = rare and draw(st.integers(0, 199)) == 0
        method = draw(st.sampled_from(rare if seldom else often))
        count = draw(st.integers(0, 3)) if method.asks_often else 1
        made = payload(method.takes, good.get(method.takes.DESCRIPTOR.full_name))
        return Case(method, tuple(draw(made) for _ in range(count)))

    return case()


# --- Calls ---


class Fuzzed:
    """A server under fuzz, what a good question is there, and its right answer."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._stub = pb_grpc.UncertaintyServiceStub(channel)
        self._models = pb_grpc.ModelServiceStub(channel)
        self._good = probe(0).requests[0]
        self._right = self._ask()
        self.known = methods(channel)
        self.findings = Findings()

    def good(self) -> dict[str, Message]:
        """Return a good message of every kind that has more to it than a name."""
        labelled = self._stub.Predict(self._good, timeout=SECONDS)
        found = [self._good, as_evaluation(self._good), as_inference(self._good)]
        if labelled.receipt:
            found.append(observation(labelled))
        found += [pb.GetModelRequest(model="mlp"), oip.ModelMetadataRequest(name="mlp")]
        return {message.DESCRIPTOR.full_name: message for message in found}

    def _ask(self) -> bytes:
        reply = self._stub.Predict(self._good, timeout=SECONDS)
        return reply.classification.probabilities.data

    def is_right(self) -> bool:
        """Tell whether the next good request is answered right."""
        try:
            return self._ask() == self._right
        except grpc.RpcError:
            return False

    def make(self, case: Case) -> None:
        """Make a call, and note what came of it."""
        began = time.perf_counter()
        code, said = self._call(case)
        seconds = time.perf_counter() - began
        self.findings.codes[code] += 1
        self.findings.slowest = max(self.findings.slowest, seconds)
        if code in OWN_FAULTS or any(word in said for word in INSIDES):
            self._blame(case, code, said)
        if "Unload" in case.method.path:
            self._models.LoadModel(pb.LoadModelRequest(model="mlp"), timeout=SECONDS)

    def _blame(self, case: Case, code: str, said: str) -> None:
        sent = [data.hex() if len(data) < 2000 else data[:2000].hex() + "..." for data in case.payloads]
        self.findings.faults.append({"method": case.method.path, "code": code, "said": said[:500], "sent": sent})

    def _call(self, case: Case) -> tuple[str, str]:
        """Return the worst status, also of those inside a stream, and what was said."""
        method = case.method
        read = method.gives.FromString
        try:
            if not (method.asks_often or method.answers_often):
                self._channel.unary_unary(method.path, None, read)(case.payloads[0], timeout=SECONDS)
                return "OK", ""
            if method.asks_often:
                call = self._channel.stream_stream(method.path, None, read)(iter(case.payloads), timeout=SECONDS)
            else:
                call = self._channel.unary_stream(method.path, None, read)(case.payloads[0], timeout=SECONDS)
            return self._read(call, endless=method.path.endswith("/Watch"))
        except grpc.RpcError as error:
            return error.code().name, error.details() or ""

    def _read(self, call: Any, *, endless: bool) -> tuple[str, str]:
        refused: list[tuple[str, str]] = []
        for number, reply in enumerate(call):
            refused += _inside(reply)
            if endless or number > REPLIES:
                call.cancel()
                break
        return max(refused, key=lambda found: found[0] in OWN_FAULTS, default=("OK", ""))


def _inside(reply: Any) -> Iterator[tuple[str, str]]:
    """Return the refusals that an answer of a stream carries."""
    names = reply.DESCRIPTOR.fields_by_name
    if "error_message" in names and reply.error_message:
        yield "REFUSED", reply.error_message
    if reply.DESCRIPTOR.name == "PredictBulkResponse" and reply.HasField("error"):
        code = next(code for code in grpc.StatusCode if code.value[0] == reply.error.code)
        yield code.name, reply.error.message


def fuzz(address: str, count: int, seed: int) -> dict[str, Any]:
    """Make so many calls, a good one after every few, and return what was found."""
    with grpc.insecure_channel(address, options=OWN_CONNECTION) as channel:
        fuzzed = Fuzzed(channel)
        wrong = 0
        made = 0

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(cases(fuzzed.known, fuzzed.good()))
        def each(case: Case) -> None:
            nonlocal wrong, made
            made += 1
            fuzzed.make(case)
            if made % 5 == 0:
                wrong += not fuzzed.is_right()

        began = time.perf_counter()
        each()
        return {
            "phase": "fuzz",
            "seed": seed,
            "cases": made,
            "seconds": round(time.perf_counter() - began, 1),
            "methods": len(fuzzed.known),
            "codes": dict(fuzzed.findings.codes.most_common()),
            "slowest_seconds": round(fuzzed.findings.slowest, 2),
            "wrong_after": wrong,
            "faults": fuzzed.findings.faults[:20],
            "fault_count": len(fuzzed.findings.faults),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="HOST:PORT")
    parser.add_argument("--cases", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    print(json.dumps(fuzz(options.target, options.cases, options.seed), indent=1))


if __name__ == "__main__":
    main()
