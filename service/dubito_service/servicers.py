"""The servicers: each call is read, answered by a worker, and written."""

# ruff: noqa: N802 - methods bear the names of the wire
from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from dubito_models.errors import NotImplementedYet
from dubito_models.package import ModelVersion
from dubito_models.predictive import StopReason
from dubito_protos import uncertainty_pb2 as pb
from dubito_protos import uncertainty_pb2_grpc as pb_grpc
from dubito_service import messages, observed_messages
from dubito_service.errors import NotServed, StateUnset
from dubito_service.messages import Prediction, RequestLimits, Spent
from dubito_service.observing import Issued, Observer, find_reference, settle_coverage
from dubito_service.receipts import Receipt
from dubito_service.registry import Registry
from dubito_service.worker import Clock, DeviceWorker, Drawn, Request, StandardWorker

Context = grpc.aio.ServicerContext[Any, Any]
SERVICES = tuple(service.full_name for service in pb.DESCRIPTOR.services_by_name.values())


class UncertaintyServicer(pb_grpc.UncertaintyServiceServicer):
    """Monte Carlo predictions and the standard path."""

    def __init__(
        self,
        registry: Registry,
        device: DeviceWorker,
        standard: StandardWorker,
        limits: RequestLimits,
        clock: Clock,
        observer: Observer | None = None,
    ) -> None:
        self._registry = registry
        self._device = device
        self._standard = standard
        self._limits = limits
        self._clock = clock
        self._observer = observer
        self._adapt = None if observer is None else observer.coverage_to_ask

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        """Predict with dropout active."""
        arrived = self._clock()
        asked = messages.read_prediction(request, self._registry, self._limits, self._adapt)
        return self._answer(asked, await self._device.draw(_work(asked, arrived, context)), arrived)

    def _answer(self, asked: Prediction, drawn: Drawn, arrived: float) -> pb.PredictResponse:
        """Write an answer; the last one comes with a receipt."""
        predictive, issued = settle_coverage(drawn.predictive, asked.served_coverage), Issued()
        if self._observer is not None and StopReason.UNFINISHED not in predictive.stop_reason:
            issued = self._observer.issue(
                asked.version,
                asked.calibration,
                asked.inputs,
                predictive,
                stream=asked.stream,
                coverage=asked.coverage,
                served_coverage=asked.served_coverage,
            )
        return messages.write_prediction(asked, predictive, self._spent(drawn, arrived), issued)

    def _spent(self, drawn: Drawn, arrived: float) -> Spent:
        return Spent(drawn.queue_seconds, drawn.compute_seconds, self._clock() - arrived)

    async def Evaluate(self, request: pb.EvaluateRequest, context: Context) -> pb.EvaluateResponse:
        """Evaluate the standard network."""
        arrived = self._clock()
        asked = messages.read_evaluation(request, self._registry, self._limits)
        done = await self._standard.evaluate(asked.version, asked.inputs, asked.rows)
        spent = Spent(done.queue_seconds, done.compute_seconds, self._clock() - arrived)
        return messages.write_evaluation(asked, done.evaluation, spent)

    async def PredictStream(self, request: pb.PredictRequest, context: Context) -> AsyncIterator[pb.PredictResponse]:
        """Predict with dropout active, and refine."""
        arrived = self._clock()
        asked = messages.read_prediction(request, self._registry, self._limits, self._adapt)
        async with contextlib.aclosing(self._device.watch(_work(asked, arrived, context))) as answers:
            async for drawn in answers:
                yield self._answer(asked, drawn, arrived)

    async def PredictBulk(
        self, request_iterator: AsyncIterator[pb.PredictRequest], context: Context
    ) -> AsyncIterator[pb.PredictBulkResponse]:
        """Refuse: not served yet."""
        raise NotImplementedYet("PredictBulk is not served yet; send Predict calls side by side")
        yield  # makes it a stream

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


def _work(asked: Prediction, arrived: float, context: Context) -> Request:
    left = context.time_remaining()
    return Request(
        engine=asked.version.engine,
        calibration=asked.calibration,
        inputs=asked.inputs,
        plan=asked.plan,
        rows=asked.rows,
        deadline=None if left is None else arrived + left,
    )


class ModelServicer(pb_grpc.ModelServiceServicer):
    """What is served, and what it is."""

    def __init__(self, registry: Registry, limits: RequestLimits, observer: Observer | None = None) -> None:
        self._registry = registry
        self._limits = limits
        self._observer = observer

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """List every version, those that failed to load with the reason."""
        return messages.write_models(self._registry.entries())

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Describe one version, and what labels that came back say of it."""
        entry = messages.read_name(request, self._registry)
        if self._observer is None or entry.loaded is None:
            return messages.write_model(entry, self._limits)
        observed = observed_messages.write_rolling(await self._observer.rolling(entry.loaded))
        return messages.write_model(entry, self._limits, observed)

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        """Refuse: not served yet."""
        raise NotImplementedYet("LoadModel is not served yet: versions are loaded when the server starts")

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        """Refuse: not served yet."""
        raise NotImplementedYet("UnloadModel is not served yet: versions are served until the server stops")
