"""The servicers: each call is read, answered by a worker, and written."""

# ruff: noqa: N802 - methods bear the names of the wire
from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from dubito_models.errors import NotImplementedYet
from dubito_protos import uncertainty_pb2 as pb
from dubito_protos import uncertainty_pb2_grpc as pb_grpc
from dubito_service import messages
from dubito_service.messages import Prediction, RequestLimits, Spent
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
    ) -> None:
        self._registry = registry
        self._device = device
        self._standard = standard
        self._limits = limits
        self._clock = clock

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        """Predict with dropout active."""
        arrived = self._clock()
        asked = messages.read_prediction(request, self._registry, self._limits)
        drawn = await self._device.draw(_work(asked, arrived, context))
        return messages.write_prediction(asked, drawn.predictive, self._spent(drawn, arrived))

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
        asked = messages.read_prediction(request, self._registry, self._limits)
        async with contextlib.aclosing(self._device.watch(_work(asked, arrived, context))) as answers:
            async for drawn in answers:
                yield messages.write_prediction(asked, drawn.predictive, self._spent(drawn, arrived))

    async def PredictBulk(
        self, request_iterator: AsyncIterator[pb.PredictRequest], context: Context
    ) -> AsyncIterator[pb.PredictBulkResponse]:
        """Refuse: not served yet."""
        raise NotImplementedYet("PredictBulk is not served yet; send Predict calls side by side")
        yield  # makes it a stream

    async def Observe(self, request: pb.ObserveRequest, context: Context) -> pb.ObserveResponse:
        """Refuse: not served yet."""
        raise NotImplementedYet("Observe is not served yet: labels are not taken back")


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

    def __init__(self, registry: Registry, limits: RequestLimits) -> None:
        self._registry = registry
        self._limits = limits

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """List every version, those that failed to load with the reason."""
        return messages.write_models(self._registry.entries())

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Describe one version."""
        return messages.write_model(messages.read_name(request, self._registry), self._limits)

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        """Refuse: not served yet."""
        raise NotImplementedYet("LoadModel is not served yet: versions are loaded when the server starts")

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        """Refuse: not served yet."""
        raise NotImplementedYet("UnloadModel is not served yet: versions are served until the server stops")
