"""The servicer of predictions: each call is read, answered by a worker, and written."""

# ruff: noqa: N802 - methods bear the names of the wire
from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Any

import grpc

from dubito_models.errors import InvalidArgument
from dubito_models.package import ModelVersion
from dubito_protos import uncertainty_pb2 as pb
from dubito_protos import uncertainty_pb2_grpc as pb_grpc
from dubito_service.asking import Prediction, RequestLimits
from dubito_service.dubito_v1 import messages, observed_messages
from dubito_service.errors import NotServed, Refusal, StateUnset
from dubito_service.observing.observer import Observer, find_reference
from dubito_service.observing.receipts import Receipt
from dubito_service.predicting import Predictor
from dubito_service.reading import decode, is_large
from dubito_service.reports import Watch, ignore
from dubito_service.security.callers import caller_of
from dubito_service.streaming import answer_each, tell_each
from dubito_service.versions.registry import Registry

Context = grpc.aio.ServicerContext[Any, Any]
_BULK = "/dubito.v1.UncertaintyService/PredictBulk"
SERVICES = tuple(service.full_name for service in pb.DESCRIPTOR.services_by_name.values())


class UncertaintyServicer(pb_grpc.UncertaintyServiceServicer):
    """Monte Carlo predictions and the standard path."""

    def __init__(
        self,
        registry: Registry,
        predictor: Predictor,
        limits: RequestLimits,
        observer: Observer | None = None,
        bulk: int = 128,
        watch: Watch = ignore,
    ) -> None:
        """Set up; `bulk`: requests of one `PredictBulk` that are under way at once, at most."""
        self._registry = registry
        self._predictor = predictor
        self._limits = limits
        self._observer = observer
        self._bulk = bulk
        self._watch = watch

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        """Predict with dropout active."""
        return await self._predict(request, context, caller_of(context))

    async def Evaluate(self, request: pb.EvaluateRequest, context: Context) -> pb.EvaluateResponse:
        """Evaluate the standard network."""
        call = self._predictor.call(context.time_remaining(), caller_of(context))
        read = partial(messages.read_evaluation, request, self._registry, self._limits)
        asked = await decode(read, large=_is_large(request))
        return messages.write_evaluation(await self._predictor.evaluate(asked, call))

    async def PredictStream(self, request: pb.PredictRequest, context: Context) -> AsyncIterator[pb.PredictResponse]:
        """Predict with dropout active, and refine."""
        call = self._predictor.call(context.time_remaining(), caller_of(context))
        asked = await self._read(request)
        async with contextlib.aclosing(self._predictor.refine(asked, call)) as answers:
            async for answer in answers:
                yield messages.write_prediction(answer)

    async def PredictBulk(
        self, request_iterator: AsyncIterator[pb.PredictRequest], context: Context
    ) -> AsyncIterator[pb.PredictBulkResponse]:
        """Answer each request of a stream as `Predict` does, as they are ready; a refusal ends its request alone."""
        caller, flying = caller_of(context), set[str]()

        async def answer(request: pb.PredictRequest) -> AsyncGenerator[pb.PredictBulkResponse]:
            name = request.id
            if name in flying:
                accepted = "an id that no request of this call has that is still to be answered"
                raise InvalidArgument("id", repr(name), accepted)
            flying.add(name)
            try:
                reply = pb.PredictBulkResponse(id=name, response=await self._predict(request, context, caller))
            finally:
                flying.discard(name)
            yield reply

        def refuse(request: pb.PredictRequest, error: Exception, found: Refusal) -> pb.PredictBulkResponse:
            return messages.write_error(request.id, error, found)

        answering = tell_each(answer, refuse, _BULK, self._watch)
        async with contextlib.aclosing(answer_each(request_iterator, answering, self._bulk)) as replies:
            async for reply in replies:
                yield reply

    async def _predict(self, request: pb.PredictRequest, context: Context, caller: str) -> pb.PredictResponse:
        call = self._predictor.call(context.time_remaining(), caller)
        asked = await self._read(request)
        return messages.write_prediction(await self._predictor.predict(asked, call))

    async def _read(self, request: pb.PredictRequest) -> Prediction:
        read = partial(messages.read_prediction, request, self._registry, self._limits, self._predictor.adapt)
        return await decode(read, large=_is_large(request))

    async def Observe(self, request: pb.ObserveRequest, context: Context) -> pb.ObserveResponse:
        """Take the labels of a prediction in, once."""
        if self._observer is None:
            raise StateUnset("receipt", f"{len(request.receipt)} bytes")
        receipt, label = observed_messages.read_observation(request, self._observer)
        reference = find_reference(self._held(receipt), receipt)
        return observed_messages.write_observation(await self._observer.observe(receipt, label, reference))

    def _held(self, receipt: Receipt) -> ModelVersion | None:
        """Return the version that a receipt is of, where it is still served: its labels are scored in any case."""
        try:
            return self._registry.find(receipt.model, receipt.version)
        except NotServed:
            return None


def _is_large(request: pb.PredictRequest | pb.EvaluateRequest) -> bool:
    return is_large(tensor.shape for tensor in request.inputs)
