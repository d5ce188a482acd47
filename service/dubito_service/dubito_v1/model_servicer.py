"""The servicer of models: what is served and what it is, and what is to be loaded or given up."""

# ruff: noqa: N802 - methods bear the names of the wire
from __future__ import annotations

from typing import Any

import grpc

from dubito_protos import uncertainty_pb2 as pb
from dubito_protos import uncertainty_pb2_grpc as pb_grpc
from dubito_service.asking import RequestLimits
from dubito_service.dubito_v1 import model_messages, observed_messages
from dubito_service.observing.observer import Observer
from dubito_service.versions.registry import Registry

Context = grpc.aio.ServicerContext[Any, Any]


class ModelServicer(pb_grpc.ModelServiceServicer):
    """What is served, and what it is."""

    def __init__(self, registry: Registry, limits: RequestLimits, observer: Observer | None = None) -> None:
        self._registry = registry
        self._limits = limits
        self._observer = observer

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """List every version, loaded or not, those that failed to load with the reason."""
        return model_messages.write_models(self._registry.index())

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Describe one version, and what labels that came back say of it."""
        entry = model_messages.read_name(request, self._registry)
        if self._observer is None or entry.loaded is None:
            return model_messages.write_model(entry, self._limits)
        observed = observed_messages.write_rolling(await self._observer.rolling(entry.loaded))
        return model_messages.write_model(entry, self._limits, observed)

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        """Load a version, or what the policy says of a model; answer when that has ended."""
        entry = await self._registry.load(request.model, model_messages.read_version(request))
        return pb.LoadModelResponse(status=model_messages.write_status(entry))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        """Take a version or a model out of service; answer when no request holds it any more."""
        await self._registry.unload(request.model, model_messages.read_version(request))
        return pb.UnloadModelResponse()
