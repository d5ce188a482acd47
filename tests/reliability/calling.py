"""Calling: a question goes over the wire by its kind of call, and what comes back is noted."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from dubito_protos import open_inference_pb2_grpc as oip_grpc
from dubito_protos import uncertainty_pb2 as pb
from dubito_protos import uncertainty_pb2_grpc as pb_grpc

from .questions import Question, as_evaluation, as_inference
from .replay import Answered, answered, evaluated, inferred

DETAILS = "grpc-status-details-bin"
SECONDS = 60.0
LONGER = 1.0  # seconds that the caller of a ModelInfer waits beyond the deadline it tells, so as to see a late answer
_NOT_SENT = "Internal error from Core"  # says the client's own gRPC of a call whose deadline is over before it begins
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that was refused: its status, and after how many seconds to come back, if that was said."""

    code: str
    message: str
    retry_seconds: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a call, and after how many seconds."""

    answers: tuple[Answered, ...] = ()
    refused: tuple[Refused, ...] = ()
    observed: str = ""  # the prediction whose labels were taken
    shortened: int = 0  # answers that load or a deadline ended
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Stubs:
    """Both protocols over one connection."""

    own: Any
    open_inference: Any


class Callers:
    """Stubs over several connections, taken in turn."""

    def __init__(self, address: str, connections: int = 4) -> None:
        self._address, self._connections = address, connections
        self._stack = AsyncExitStack()
        self._stubs: list[Stubs] = []

    async def __aenter__(self) -> Callers:
        for _ in range(self._connections):
            channel = grpc.aio.insecure_channel(self._address, options=OWN_CONNECTION)
            await self._stack.enter_async_context(channel)
            stubs = pb_grpc.UncertaintyServiceStub(channel), oip_grpc.GRPCInferenceServiceStub(channel)
            self._stubs.append(Stubs(*stubs))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def stub(self) -> Any:
        """The stub of the first connection."""
        return self._stubs[0].own

    async def ask(self, question: Question, timeout: float = SECONDS) -> Outcome:
        """Ask, and note what comes back; a refusal is an outcome like any other."""
        began = time.perf_counter()
        try:
            found = await _ACTS[question.kind](self._stubs[question.number % len(self._stubs)], question, timeout)
        except grpc.aio.AioRpcError as error:
            found = Outcome(refused=(refusal(error),) * len(question.requests))
        return replace(found, seconds=time.perf_counter() - began)


def refusal(error: grpc.aio.AioRpcError) -> Refused:
    """Return what a status says."""
    retry = None
    packed = dict(error.trailing_metadata() or ()).get(DETAILS)
    if packed is not None:
        for detail in Status.FromString(packed).details:  # type: ignore[arg-type]
            info = RetryInfo()
            if detail.Unpack(info):
                retry = info.retry_delay.ToNanoseconds() / 1e9
    code, said = error.code().name, error.details() or ""
    return Refused("NOT_SENT" if said == _NOT_SENT else code, said, retry)


async def _predict(stubs: Stubs, question: Question, timeout: float) -> Outcome:
    [request] = question.requests
    found = answered(request, await stubs.own.Predict(request, timeout=timeout))
    return Outcome((found,), shortened=int(not found.own_rule))


async def _stream(stubs: Stubs, question: Question, timeout: float) -> Outcome:
    [request] = question.requests
    last = None
    async for reply in stubs.own.PredictStream(request, timeout=timeout):
        last = reply
    if last is None or not last.final:
        return Outcome(refused=(Refused("NO_FINAL_ANSWER", "the stream ended without its last answer", None),))
    found = answered(request, last)
    return Outcome((found,), shortened=int(not found.own_rule))


async def _bulk(stubs: Stubs, question: Question, timeout: float) -> Outcome:
    by_id = {request.id: request for request in question.requests}
    answers, refused = [], []
    missing = Refused("NO_ANSWER", "the call ended without it", None)
    try:
        async for reply in stubs.own.PredictBulk(iter(question.requests), timeout=timeout):
            request = by_id.pop(reply.id)
            if reply.WhichOneof("result") == "response":
                answers.append(answered(request, reply.response))
            else:
                error = reply.error
                retry = error.retry_seconds if error.HasField("retry_seconds") else None
                refused.append(Refused(_CODES[error.code], error.message, retry))
    except grpc.aio.AioRpcError as error:  # which those that are answered already do not share
        missing = refusal(error)
    refused += [missing for _ in by_id]
    return Outcome(tuple(answers), tuple(refused), shortened=sum(not found.own_rule for found in answers))


async def _evaluate(stubs: Stubs, question: Question, timeout: float) -> Outcome:
    [request] = question.requests
    return Outcome((evaluated(request, await stubs.own.Evaluate(as_evaluation(request), timeout=timeout)),))


async def _infer(stubs: Stubs, question: Question, timeout: float) -> Outcome:
    [request] = question.requests
    asked = as_inference(request)
    asked.parameters["timeout"].int64_param = int(timeout * 1e6)
    found = inferred(request, await stubs.open_inference.ModelInfer(asked, timeout=timeout + LONGER))
    return Outcome((found,), shortened=int(not found.own_rule))


async def _observe(stubs: Stubs, question: Question, timeout: float) -> Outcome:
    """Ask for a prediction, and bring its own first classes back as labels."""
    [request], until = question.requests, time.perf_counter() + timeout
    reply = await stubs.own.Predict(request, timeout=timeout)
    taken = await stubs.own.Observe(observation(reply), timeout=max(0.0, until - time.perf_counter()))
    found = answered(request, reply)
    if taken.duplicate or taken.rows != len(found.values["probabilities"]):
        return Outcome(refused=(Refused("MISCOUNTED", f"{taken.rows} labels, duplicate: {taken.duplicate}", None),))
    return Outcome((found,), (), reply.prediction_id, int(not found.own_rule))


def observation(reply: pb.PredictResponse) -> pb.ObserveRequest:
    """Return the labels that a prediction's own first classes would be."""
    return pb.ObserveRequest(prediction_id=reply.prediction_id, receipt=reply.receipt, label=reply.classification.label)


_ACTS: dict[str, Callable[[Stubs, Question, float], Awaitable[Outcome]]] = {
    "Predict": _predict,
    "PredictStream": _stream,
    "PredictBulk": _bulk,
    "Evaluate": _evaluate,
    "ModelInfer": _infer,
    "Observe": _observe,
}
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
