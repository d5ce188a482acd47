"""dubito on Ray Serve: whole servers as replicas on many machines, behind Ray's gRPC proxies.

A replica runs what `dubito serve` runs, on a loopback port of its own, so that batches, refusals, tokens and metrics
are the same; Ray's router spreads calls over the replicas. Masks are a function of the seed and of nothing else, so
every replica gives the same answer.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import grpc
from grpc_health.v1 import health_pb2
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dubito_models.errors import InvalidArgument
from dubito_service import configuration
from dubito_service.ray_proxy import METHODS, REPLY, SECONDS_LEFT, STATUS, Method, add_services
from dubito_service.security.access import check_plaintext
from dubito_service.server import Server
from dubito_service.settings import Settings
from dubito_service.telemetry import logs

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.grpc_util import RayServegRPCContext

NAME = "dubito"
SERVICER_FUNCTION = f"{add_services.__module__}.{add_services.__name__}"  # what Ray's proxies are started with

Trailers: TypeAlias = "Iterable[tuple[str, str | bytes]] | None"

_WAY_SECONDS = 0.05  # through a proxy of Ray and back, kept from every deadline
_STOPPING_SECONDS = 20.0  # beyond its grace that a server may take to stop
_OF_THE_CONNECTION = frozenset(("user-agent", "te", "content-type", "grpc-accept-encoding", SECONDS_LEFT))
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Payload(bytes):
    """A reply as it goes on the wire, in the shape that Ray takes replies in."""

    def SerializeToString(self) -> bytes:  # noqa: N802 - as messages call it
        """Return the bytes."""
        return bytes(self)


class Replica:
    """One server, and the way to it from calls that Ray brings; it has a method for every RPC."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Ray awaits it
        """Start the server; returns when the first versions are loaded."""
        logs.start(settings.log_level, settings.log_format)
        self._server: Server | None = Server(settings)
        await self._server.start()
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.aio.insecure_channel(self._server.address, options=unlimited)
        self._calls = {method: _call(self._channel, method) for method in METHODS}
        self._alive: Any = self._channel.unary_unary(f"/{_HEALTH}/Check")

    async def check_health(self) -> None:
        """Raise where the server does not answer or has lost a worker, for Ray to put another one in its place."""
        reply = await self._alive(health_pb2.HealthCheckRequest(service=_HEALTH).SerializeToString(), timeout=10.0)
        if health_pb2.HealthCheckResponse.FromString(reply).status != health_pb2.HealthCheckResponse.SERVING:
            raise RuntimeError("the server has lost a worker")

    async def close(self) -> None:
        """Finish the calls in flight, and stop the server."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop()
            await self._channel.close()

    def __del__(self) -> Coroutine[Any, Any, None] | None:
        """Return what closes the replica, which Ray awaits; nothing where it is closed."""
        return self.close() if getattr(self, "_server", None) is not None else None

    async def answer(self, method: Method, request: Any, context: RayServegRPCContext) -> Payload:
        """Answer a call that has one reply; it goes with its status, in the context."""
        call = self._begin(method, request, context)
        try:
            reply = Payload(await call)
        except grpc.aio.AioRpcError as error:
            _end(context, error.code(), error.details(), error.trailing_metadata())
            return Payload()
        context.set_trailing_metadata(_pairs(await call.trailing_metadata()))
        return reply

    async def answer_often(self, method: Method, request: Any, context: RayServegRPCContext) -> AsyncIterator[Payload]:
        """Answer a call that has several replies; one more message goes with the status."""
        call = self._begin(method, request, context)
        try:
            async for reply in call:
                yield Payload(REPLY + reply)
            _end(context, grpc.StatusCode.OK, "", await call.trailing_metadata())
        except grpc.aio.AioRpcError as error:
            _end(context, error.code(), error.details(), error.trailing_metadata())
        finally:
            call.cancel()  # where the caller has left
        yield Payload(STATUS)

    def _begin(self, method: Method, request: Any, context: RayServegRPCContext) -> Any:
        received = context.invocation_metadata()
        left = [value for key, value in received if key == SECONDS_LEFT]
        sent = [(key, value) for key, value in received if key not in _OF_THE_CONNECTION]
        return self._calls[method](request, timeout=float(left[0]) if left else None, metadata=sent)


def _call(channel: grpc.aio.Channel, method: Method) -> Any:
    make: Mapping[tuple[bool, bool], Callable[[str], Any]] = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    return make[method.streams_in, method.streams_out](method.path)


def _end(context: RayServegRPCContext, code: grpc.StatusCode, details: str | None, trailers: Trailers) -> None:
    context.set_code(code)
    context.set_details(details or "")
    context.set_trailing_metadata(_pairs(trailers))


def _pairs(trailers: Trailers) -> list[Any]:
    return [(key, value) for key, value in trailers or ()]


def _answering(method: Method) -> Callable[..., Any]:
    """Return the method of `Replica` that Ray calls for an RPC, by its name."""

    async def once(self: Replica, request: Any, grpc_context: RayServegRPCContext) -> Payload:
        return await self.answer(method, request, grpc_context)

    async def often(self: Replica, request: Any, grpc_context: RayServegRPCContext) -> AsyncIterator[Payload]:
        async with contextlib.aclosing(self.answer_often(method, request, grpc_context)) as replies:  # type: ignore[type-var]
            async for reply in replies:
                yield reply

    return often if method.streams_out else once


for _method in METHODS:
    setattr(Replica, _method.name, _answering(_method))


class Arguments(BaseModel):
    """What an application is built from, beside settings by name."""

    model_config = ConfigDict(frozen=True, extra="allow")

    config: Path | None = None  # a file of settings, on the machine that builds the application
    replicas: Annotated[int, Field(ge=1)] = 1
    cpus: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2.0  # of each replica


def of_replica(settings: Settings, replicas: int, cpus: float) -> Settings:
    """Return the settings of each replica; raises `InvalidArgument` for what does not hold behind Ray's proxies."""
    for name in ("tls_certificate", "tls_key", "tls_client_ca"):
        if getattr(settings, name) is not None:
            accepted = "none: Ray's proxies take plaintext, so end TLS before them"
            raise InvalidArgument(name, getattr(settings, name), accepted)
    tokens = settings.tokens is not None
    check_plaintext(tokens=tokens, encrypted=False, loopback=False, allowed=settings.plaintext_tokens)
    for name in ("caller_work", "caller_calls"):
        if not tokens and getattr(settings, name) != Settings.model_fields[name].default:
            accepted = "such a limit with tokens: all other callers come from Ray's proxy"
            raise InvalidArgument(name, getattr(settings, name), accepted)
    if replicas > 1 and settings.state is not None:
        if "://" not in settings.state:
            raise InvalidArgument("state", f"a folder, of {replicas} replicas", "postgresql+psycopg://..., for all")
        if settings.receipt_key_file is None:
            raise InvalidArgument("receipt_key_file", f"none, of {replicas} replicas", "one key, for all")
    own = {
        "host": "127.0.0.1",
        "port": 0,
        "port_file": None,
        "admin": "off",
        "device": "cuda" if settings.device == "cuda" else "cpu",  # a GPU that Ray did not give is another's
        "torch_threads": settings.torch_threads or max(1, int(cpus) - 1),  # several share a machine
        "caller_calls": settings.caller_calls if tokens else settings.max_calls,
        "max_streams": settings.max_calls,  # all calls of a replica come by one connection
        "reply_seconds": settings.reply_seconds + _WAY_SECONDS,
        "connection_idle_seconds": 0.0,
        "connection_age_seconds": 0.0,
    }
    return settings.model_copy(update=own)


def build(settings: Settings, replicas: int = 1, cpus: float = 2.0) -> Application:
    """Build the application: each replica takes `cpus` cores, and a GPU where `device` is cuda.

    Raises `InvalidArgument` for settings that do not hold behind Ray's proxies.
    """
    from ray import serve  # not above: the rest needs no Ray

    deployment = serve.deployment(
        name=NAME,
        num_replicas=replicas,
        max_ongoing_requests=settings.max_calls,
        graceful_shutdown_timeout_s=settings.grace_seconds + _STOPPING_SECONDS,
        logging_config={"enable_access_log": False},  # the server has its own, which does not flood
        ray_actor_options={"num_cpus": cpus, "num_gpus": 1 if settings.device == "cuda" else 0},
    )
    application: Application = deployment(Replica).bind(of_replica(settings, replicas, cpus))
    return application


def app(arguments: dict[str, Any]) -> Application:
    """Build the application for `serve run`: `config`, `replicas` and `cpus`, and settings by name.

    A setting that is given beats the environment, and that the file. Raises `InvalidArgument`.
    """
    try:
        chosen = Arguments.model_validate(arguments)
    except ValidationError as error:
        [first, *_] = error.errors()
        raise InvalidArgument(str(first["loc"][0]), repr(first["input"]), first["msg"]) from None
    found = configuration.configure(chosen.model_extra or {}, os.environ, chosen.config)
    return build(found.settings, chosen.replicas, chosen.cpus)


def serve_on_ray(settings: Settings, replicas: int = 1, cpus: float = 2.0, port: int = 50051) -> None:
    """Run the application on the Ray cluster of this process, or on a new one here, and return when it is ready.

    `port`: of the gRPC proxy on every machine; Ray keeps it until Serve is shut down.
    """
    from ray import serve
    from ray.serve.config import gRPCOptions

    application = build(settings, replicas, cpus)
    serve.start(
        grpc_options=gRPCOptions(port=port, grpc_servicer_functions=[SERVICER_FUNCTION]),
        http_options={"host": "127.0.0.1", "port": 0},  # Ray starts HTTP beside gRPC; nothing is served there
    )
    serve.run(application, name=NAME, route_prefix=f"/{NAME}")  # Ray finds no gRPC application without one
