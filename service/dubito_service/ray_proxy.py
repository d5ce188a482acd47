"""Ray's proxies: what lets the gRPC proxies of Ray Serve carry our calls to replicas and back.

Messages pass a proxy unread. Two things it does not pass on by itself: the seconds that a caller still waits, which
travel to the replica as metadata, and the status of a stream, which comes back with one more message, taken off again.
(The context of a call is no way to mark that message: Ray reads it when a message leaves, by when a later one may have
changed it.)
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from dubito_protos import open_inference_pb2 as open_pb
from dubito_protos import uncertainty_pb2 as pb
from dubito_service.security.scopes import SCOPES, Scope

SECONDS_LEFT = "dubito-seconds-left"  # metadata between proxy and replica
REPLY, STATUS = b"\x00", b"\x01"  # what each message of a stream begins with on its way from replica to proxy


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC, and which of its sides are streams."""

    service: str
    name: str
    streams_in: bool
    streams_out: bool

    @property
    def path(self) -> str:
        """Its path on the wire."""
        return f"/{self.service}/{self.name}"


def _methods() -> tuple[Method, ...]:
    """Return every RPC but those that change what is served: they would reach one replica out of many."""
    services = [
        service
        for file in (pb.DESCRIPTOR, open_pb.DESCRIPTOR, health_pb2.DESCRIPTOR)
        for service in file.services_by_name.values()
    ]
    found = [
        Method(service.full_name, method.name, method.client_streaming, method.server_streaming)
        for service in services
        for method in service.methods
    ]
    return tuple(method for method in found if SCOPES.get(method.path, Scope.ADMIN) is not Scope.ADMIN)


METHODS = _methods()


class TimedContext:
    """The context of a call in Ray's proxy, which tells a replica how long the caller waits."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """Return what the caller sent, and the seconds left where there is a deadline."""
        pairs = tuple((key, value) for key, value in self._context.invocation_metadata() or () if key != SECONDS_LEFT)
        left = self._context.time_remaining()
        return pairs if left is None else (*pairs, (SECONDS_LEFT, f"{max(0.0, left):.6f}"))


def _timed(behavior: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Wrap what Ray does with a call, once or as a stream."""

    async def answer(request: Any, context: Any) -> bytes:
        reply: bytes = await behavior(request, TimedContext(context))
        return reply

    async def answers(request: Any, context: Any) -> AsyncIterator[bytes]:
        async with contextlib.aclosing(behavior(request, TimedContext(context))) as messages:
            async for message in messages:
                if message.startswith(REPLY):
                    yield message[len(REPLY) :]

    return answers if inspect.isasyncgenfunction(behavior) else answer


def add_services(servicer: object, server: Any) -> None:
    """Add every RPC to the gRPC server of a Ray proxy, with messages as bytes."""
    spread = server.service_handler_factory
    server.service_handler_factory = lambda **about: _timed(spread(**about))
    try:
        for service, methods in groupby(METHODS, key=lambda method: method.service):
            handlers = {method.name: _handler(method, servicer) for method in methods}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    finally:
        server.service_handler_factory = spread


def _handler(method: Method, servicer: object) -> Any:
    make: Mapping[tuple[bool, bool], Callable[[Any], Any]] = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    return make[method.streams_in, method.streams_out](getattr(servicer, method.name))  # Ray puts its own there
