"""What Ray's proxies are taught: every call goes on unread, with its deadline, and comes back with its status."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest.mock import Mock

import grpc

from dubito_service.ray_proxy import METHODS, REPLY, SECONDS_LEFT, STATUS, TimedContext, add_services
from dubito_service.security.scopes import SCOPES, Scope


class Caller:
    """The context of a call, as gRPC gives it to a proxy."""

    def __init__(self, left: float | None = None, *sent: tuple[str, str]) -> None:
        self._left, self._sent = left, sent
        self.code: grpc.StatusCode | None = None

    def time_remaining(self) -> float | None:
        return self._left

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._sent

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def peer(self) -> str:
        return "ipv4:10.0.0.1:5000"


class Proxy:
    """The gRPC server of a Ray proxy, as far as services are added to it; `once` and `often` are what Ray does."""

    def __init__(self, once: Any = None, often: Any = None) -> None:
        self._behaviors = {False: once, True: often}
        self.handlers: dict[str, Any] = {}

    def service_handler_factory(self, service_method: str, streaming_type: bool) -> Callable[..., Any]:
        return self._behaviors[streaming_type]  # type: ignore[no-any-return]

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        for path, handler in handlers[0]._method_handlers.items():
            self.handlers[path] = handler._replace(
                unary_unary=self.service_handler_factory(service_method=path, streaming_type=False),
                unary_stream=self.service_handler_factory(service_method=path, streaming_type=True),
            )


async def unused(request: bytes, context: Any) -> bytes:
    return b""


def test_every_call_is_there_but_those_that_change_what_one_replica_serves() -> None:
    proxy = Proxy(unused, unused)
    add_services(Mock(), proxy)
    open_to_all = {path for path, scope in SCOPES.items() if scope is not Scope.ADMIN and "reflection" not in path}
    served = set(proxy.handlers)
    assert {path for path in open_to_all if not path.endswith("Health/List")} <= served <= open_to_all
    assert len({method.name for method in METHODS}) == len(METHODS), "Ray calls a replica by the name alone"


def test_messages_pass_unread() -> None:
    proxy = Proxy(unused, unused)
    add_services(Mock(), proxy)
    assert {(handler.request_deserializer, handler.response_serializer) for handler in proxy.handlers.values()} == {
        (None, None)
    }


def test_streams_are_what_the_contract_says() -> None:
    proxy = Proxy(unused, unused)
    add_services(Mock(), proxy)
    kinds = {path: (found.request_streaming, found.response_streaming) for path, found in proxy.handlers.items()}
    assert kinds["/dubito.v1.UncertaintyService/Predict"] == (False, False)
    assert kinds["/dubito.v1.UncertaintyService/PredictStream"] == (False, True)
    assert kinds["/dubito.v1.UncertaintyService/PredictBulk"] == (True, True)
    assert kinds["/inference.GRPCInferenceService/ModelStreamInfer"] == (True, True)


def test_services_of_others_are_left_alone() -> None:
    proxy = Proxy(unused, unused)
    add_services(Mock(), proxy)
    assert proxy.service_handler_factory("/other.Service/Call", False) is unused


def test_a_replica_hears_for_how_long_the_caller_waits_and_from_nobody_else() -> None:
    token = ("authorization", "Bearer secret")
    sent = (token, (SECONDS_LEFT, "1000000"))
    assert TimedContext(Caller(1.5, *sent)).invocation_metadata() == (token, (SECONDS_LEFT, "1.500000"))
    assert TimedContext(Caller(-0.1, *sent)).invocation_metadata() == (token, (SECONDS_LEFT, "0.000000"))
    assert TimedContext(Caller(None, *sent)).invocation_metadata() == (token,)


async def test_a_call_with_one_reply_reaches_ray_with_its_deadline() -> None:
    async def once(request: bytes, context: TimedContext) -> bytes:
        return request + repr((context.invocation_metadata(), context.peer())).encode()

    proxy = Proxy(once, unused)
    add_services(Mock(), proxy)
    reply = await proxy.handlers["/dubito.v1.UncertaintyService/Predict"].unary_unary(b"asked ", Caller(2.0))
    assert reply == b"asked " + repr((((SECONDS_LEFT, "2.000000"),), "ipv4:10.0.0.1:5000")).encode()


async def test_the_message_that_brings_the_status_of_a_stream_is_taken_off() -> None:
    async def often(request: bytes, context: TimedContext) -> AsyncIterator[bytes]:
        context.set_code(grpc.StatusCode.NOT_FOUND)  # before the messages are out, as Ray does now and then
        for message in (REPLY + b"first", REPLY, STATUS):
            yield message

    proxy, caller = Proxy(unused, often), Caller()
    add_services(Mock(), proxy)
    stream = proxy.handlers["/dubito.v1.UncertaintyService/PredictStream"].unary_stream(b"", caller)
    assert [reply async for reply in stream] == [b"first", b""]
    assert caller.code is grpc.StatusCode.NOT_FOUND


async def test_a_caller_that_leaves_a_stream_ends_what_ray_does_for_it() -> None:
    ended = []

    async def often(request: bytes, context: TimedContext) -> AsyncIterator[bytes]:
        try:
            yield REPLY + b"first"
            yield REPLY + b"second"
        finally:
            ended.append(True)

    proxy = Proxy(unused, often)
    add_services(Mock(), proxy)
    stream = proxy.handlers["/dubito.v1.UncertaintyService/PredictStream"].unary_stream(b"", Caller())
    assert await anext(stream) == b"first"
    await stream.aclose()
    assert ended == [True]
