"""The servicer of the Open Inference Protocol: each call is read, answered by a worker, and written."""

# ruff: noqa: N802 - methods bear the names of the wire
from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import grpc

from dubito_models.errors import InvalidArgument, NotImplementedYet
from dubito_protos import open_inference_pb2 as pb
from dubito_protos import open_inference_pb2_grpc as pb_grpc
from dubito_service.asking import RequestLimits, StandardRequest
from dubito_service.errors import NotServed, Refusal, StillLoading
from dubito_service.open_inference import messages, model_messages
from dubito_service.open_inference.datatypes import TEXT
from dubito_service.open_inference.messages import Inference, Served, find_served
from dubito_service.open_inference.options import soonest
from dubito_service.open_inference.statistics import Statistics
from dubito_service.predicting import Call, Predictor
from dubito_service.reading import decode, is_large
from dubito_service.reports import Watch
from dubito_service.scheduling.dispatching import Clock
from dubito_service.security.callers import caller_of
from dubito_service.streaming import answer_each, tell_each
from dubito_service.versions.policy import Policy
from dubito_service.versions.registry import Registry

Context = grpc.aio.ServicerContext[Any, Any]
SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_STREAM = f"/{SERVICE}/ModelStreamInfer"
_MANY_TEXTS = 2**15  # bytes
# Of Triton's extension, and why not.
_UNSERVED = {
    **{
        f"{kind}SharedMemory{action}": "shared memory is not served: tensors travel in the messages"
        for kind in ("System", "Cuda")
        for action in ("Status", "Register", "Unregister")
    },
    "TraceSetting": "traces are not set by calls: the server writes OpenTelemetry's, as its environment says",
    "LogSettings": "log settings are not set by calls: dubito serve --log-level",
}


@dataclass(frozen=True, slots=True)
class Profile:
    """What the server says of itself and of what it serves."""

    name: str
    version: str
    policy: Policy
    stream_requests: int  # of one call, under way at once
    replicas: int  # threads that draw on a CPU


class OpenInferenceServicer(pb_grpc.GRPCInferenceServiceServicer):
    """Every model of the registry by its name, and by its name and `.standard` the network without dropout."""

    def __init__(
        self,
        registry: Registry,
        predictor: Predictor,
        limits: RequestLimits,
        statistics: Statistics,
        profile: Profile,
        clock: Clock,
        ready: Callable[[], bool],
        live: Callable[[], bool],
        watch: Watch,
    ) -> None:
        self._registry = registry
        self._predictor = predictor
        self._limits = limits
        self._statistics = statistics
        self._profile = profile
        self._clock = clock
        self._ready = ready
        self._live = live
        self._watch = watch

    # --- Health and metadata ---

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """Tell whether the server lives: whoever answers does, unless a worker is lost."""
        return pb.ServerLiveResponse(live=self._live())

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Tell whether inferences are answered."""
        return pb.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Tell whether a model is served, also of one that is not known."""
        try:
            self._find(request)
        except (NotServed, StillLoading):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._ready())

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """Say what the server is and which extensions it has."""
        return pb.ServerMetadataResponse(
            name=self._profile.name, version=self._profile.version, extensions=model_messages.EXTENSIONS
        )

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """Say what a model takes and gives."""
        served = self._find(request)
        name = served.version.name
        ready = [each.version for each in self._registry.entries() if each.model == name and each.loaded is not None]
        return model_messages.write_metadata(served, ready)

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        """Say how a model is served."""
        profile = self._profile
        config = model_messages.write_config(
            self._find(request), self._limits.max_rows, profile.policy, profile.replicas
        )
        return pb.ModelConfigResponse(config=config)

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        """Say what models have done since the server started: one version, all of a model, or all."""
        number = messages.read_version(request.version, "version")
        if request.name and number is not None:
            found = [self._find(request)]
        else:
            if request.name:
                self._find(request)  # or it is refused
            found = [each for each in self._all() if request.name in ("", each.name)]
        return model_messages.write_statistics({served: self._statistics.of(served.path) for served in found})

    # --- Inference ---

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Answer a request."""
        call = self._predictor.call(context.time_remaining(), caller_of(context))
        served = find_served(request.model_name, request.model_version, self._registry)
        with self._counting(served, call):
            inference = await self._read(request, served)
            if inference.options.refine:
                raise InvalidArgument("parameters.refine", "true", "this only in a ModelStreamInfer")
            return await self._answer(inference, _within(call, inference))

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Answer the requests of a stream as they come, each on its own; a refusal ends its request alone."""
        caller, metadata = caller_of(context), dict(context.invocation_metadata() or ())
        strict = metadata.get("triton_grpc_error") == "true"

        async def answer(request: pb.ModelInferRequest) -> AsyncGenerator[pb.ModelStreamInferResponse]:
            call = self._predictor.call(context.time_remaining(), caller)
            async with contextlib.aclosing(self._answers(request, call)) as replies:
                async for reply in replies:
                    yield reply

        def refuse(request: pb.ModelInferRequest, error: Exception, found: Refusal) -> pb.ModelStreamInferResponse:
            return messages.write_refusal(request, found.message)

        answering = tell_each(answer, None if strict else refuse, _STREAM, self._watch)
        replies = answer_each(request_iterator, answering, self._profile.stream_requests)
        async with contextlib.aclosing(replies):
            async for reply in replies:
                yield reply

    async def _answers(self, request: pb.ModelInferRequest, call: Call) -> AsyncGenerator[pb.ModelStreamInferResponse]:
        """Answer a request of a stream: once, or better and better."""
        served = find_served(request.model_name, request.model_version, self._registry)
        with self._counting(served, call):
            inference = await self._read(request, served)
            call, asked = _within(call, inference), inference.asked
            if isinstance(asked, StandardRequest) or not inference.options.refine:
                yield messages.write_stream(await self._answer(inference, call), final=True)
                return
            async with contextlib.aclosing(self._predictor.refine(asked, call)) as answers:
                async for answer in answers:
                    reply = messages.write_inference(inference, answer)
                    yield messages.write_stream(reply, final=answer.final)

    async def _read(self, request: pb.ModelInferRequest, served: Served) -> Inference:
        read = partial(messages.read_inference, request, served, self._limits, self._predictor.adapt)
        return await decode(read, large=_is_large(request))

    async def _answer(self, inference: Inference, call: Call) -> pb.ModelInferResponse:
        asked = inference.asked
        if isinstance(asked, StandardRequest):
            return messages.write_inference(inference, await self._predictor.evaluate(asked, call))
        return messages.write_inference(inference, await self._predictor.predict(asked, call))

    # --- Repository ---

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        """List every version, and how it stands."""
        model_messages.check_repository(request.repository_name)
        return model_messages.write_index(self._registry.index(), only_ready=request.ready)

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Load what the repository has of a model."""
        model_messages.check_repository(request.repository_name, request.parameters)
        with model_messages.naming():
            await self._registry.load(model_messages.read_loaded_name(request.model_name))
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload a model; requests that are under way are finished."""
        model_messages.check_repository(request.repository_name, request.parameters)
        with model_messages.naming():
            await self._registry.unload(model_messages.read_loaded_name(request.model_name))
        return pb.RepositoryModelUnloadResponse()

    # ---

    def _find(self, request: Any) -> Served:
        return find_served(request.name, request.version, self._registry, "")

    def _all(self) -> Iterator[Served]:
        for entry in self._registry.entries():
            if entry.loaded is not None:
                yield Served(entry.loaded, False)
                yield Served(entry.loaded, True)

    @contextlib.contextmanager
    def _counting(self, served: Served, call: Call) -> Iterator[None]:
        """Count a request that gets no answer."""
        try:
            yield
        except GeneratorExit:
            raise  # nobody waits any more
        except BaseException:
            self._statistics.fail(served.path, self._clock() - call.arrived)
            raise


class Unserved(grpc.GenericRpcHandler):
    """Refuses those calls of Triton's extension that are not served, and says why."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method, None for any other."""
        service, _, method = handler_call_details.method.lstrip("/").partition("/")
        if service != SERVICE or method not in _UNSERVED:
            return None

        async def refuse(request: bytes, context: Context) -> bytes:
            raise NotImplementedYet(f"{method}: {_UNSERVED[method]}")

        return grpc.unary_unary_rpc_method_handler(refuse, _as_it_is, _as_it_is)


def _as_it_is(payload: bytes) -> bytes:
    return payload


def _is_large(request: pb.ModelInferRequest) -> bool:
    """Tell whether a request takes long to read, as one of many texts does."""
    if is_large(tensor.shape for tensor in request.inputs):
        return True
    return any(tensor.datatype == TEXT for tensor in request.inputs) and request.ByteSize() > _MANY_TEXTS


def _within(call: Call, inference: Inference) -> Call:
    """Return a call with its request's own timeout, where that ends before its deadline."""
    timeout = inference.options.timeout
    return call if timeout is None else replace(call, deadline=soonest(call.deadline, call.arrived + timeout))
