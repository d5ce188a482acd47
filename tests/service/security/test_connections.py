"""Connections: gRPC's own options do what they are set for."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
import pytest_asyncio

from dubito_service.security import connections
from dubito_service.security.connections import ConnectionLimits, channel_options

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one loop for all of gRPC's calls in this process

Code = grpc.StatusCode
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # and no settings
SECONDS = 60.0  # that a call may take at most; nothing here waits for it


async def echo(_: Any, context: Any) -> bytes:
    message: bytes = await context.read()
    return message


class Echo(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.stream_unary_rpc_method_handler(echo)


def limits(**changes: float) -> ConnectionLimits:
    fields: dict[str, float] = {
        "connections": 100,
        "streams": 100,
        "message_bytes": 2**20,
        "metadata_bytes": 4096,
        "ping_seconds": 60.0,
        "idle_seconds": 0.0,
        "age_seconds": 0.0,
        "grace_seconds": 5.0,
        **changes,
    }
    return ConnectionLimits(**fields)  # type: ignore[arg-type]


class Connect:
    """Opens connections to a server, each of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.channels: list[grpc.aio.Channel] = []

    def __call__(self, *options: tuple[str, int]) -> grpc.aio.Channel:
        own = [("grpc.use_local_subchannel_pool", 1), *options]
        self.channels.append(grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", own))
        return self.channels[-1]


Serve = Callable[..., Awaitable[Connect]]


@pytest_asyncio.fixture(loop_scope="module")
async def served() -> AsyncIterator[Serve]:
    """Serves an echo under some limits; gives what opens connections to it."""
    servers: list[grpc.aio.Server] = []
    opened: list[Connect] = []

    async def serve(**changes: float) -> Connect:
        server = grpc.aio.server(options=channel_options(limits(**changes)))
        server.add_generic_rpc_handlers((Echo(),))
        opened.append(Connect(server.add_insecure_port("127.0.0.1:0")))
        await server.start()
        servers.append(server)
        return opened[-1]

    yield serve
    for connect in opened:
        for channel in connect.channels:
            await channel.close()
    for server in servers:
        await server.stop(None)


async def ask(channel: grpc.aio.Channel, payload: bytes = b"x", **more: Any) -> Code:
    call: Any = channel.unary_unary("/a/echo")
    try:
        await call(payload, timeout=SECONDS, **more)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return Code.OK


async def leaves(channel: grpc.aio.Channel) -> None:
    """Wait until a connection that was ready is no longer."""
    while channel.get_state() is grpc.ChannelConnectivity.READY:
        await asyncio.sleep(0.01)


async def test_connections_over_the_limit_are_hung_up_on_and_a_place_that_is_left_is_free(served: Serve) -> None:
    connect = await served(connections=2)
    first, second, third = connect(), connect(), connect()
    assert [await ask(first), await ask(second), await ask(third)] == [Code.OK, Code.OK, Code.UNAVAILABLE]
    await first.close()
    while await ask(connect()) is not Code.OK:
        await asyncio.sleep(0.05)


async def test_metadata_over_the_limit_are_refused_and_the_connection_stays(served: Serve) -> None:
    channel = (await served())()
    assert await ask(channel, metadata=[("key", "x" * 3000)]) is Code.OK
    for size in (4100, 8000, 60_000):
        assert await ask(channel, metadata=[("key", "x" * size)]) is Code.RESOURCE_EXHAUSTED
    assert await ask(channel) is Code.OK


async def test_a_message_over_the_limit_is_refused(served: Serve) -> None:
    channel = (await served())()
    assert await ask(channel, b"x" * (2**20 + 1)) is Code.RESOURCE_EXHAUSTED
    assert await ask(channel, b"x" * 2**20) is Code.OK


async def test_more_calls_than_a_connection_may_hold_wait_for_their_turn(served: Serve) -> None:
    channel = (await served(streams=8))()
    assert await ask(channel) is Code.OK  # the server's settings are known from here on
    for _ in range(5):
        assert set(await asyncio.gather(*(ask(channel) for _ in range(64)))) == {Code.OK}


async def test_a_connection_without_calls_is_closed_and_opened_again(served: Serve) -> None:
    channel = (await served(idle_seconds=0.2))()
    assert await ask(channel) is Code.OK
    await leaves(channel)
    assert await ask(channel) is Code.OK


async def test_a_connection_of_age_is_replaced_without_a_failed_call(served: Serve) -> None:
    channel = (await served(age_seconds=0.3))()
    assert await ask(channel) is Code.OK
    await leaves(channel)
    assert await ask(channel) is Code.OK


async def test_a_client_that_vanished_is_found_by_a_ping(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It connects, says what HTTP/2 starts with, and answers nothing any more."""
    monkeypatch.setattr(connections, "_PING_ANSWER_SECONDS", 0.5)
    connect = await served(ping_seconds=1.0)
    reader, writer = await asyncio.open_connection("127.0.0.1", connect.port)
    writer.write(PREFACE)
    await asyncio.wait_for(reader.read(-1), SECONDS)  # returns when it is hung up on
    writer.close()


async def test_a_client_may_ping_between_its_calls(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_LEAST_PING_SECONDS", 0.1)
    often = ("grpc.keepalive_time_ms", 1000), ("grpc.keepalive_permit_without_calls", 1)
    channel = (await served())(*often, ("grpc.http2.max_pings_without_data", 0))
    assert await ask(channel) is Code.OK
    await asyncio.sleep(4.0)  # three pings would be two too many
    assert channel.get_state() is grpc.ChannelConnectivity.READY


async def test_garbage_on_the_socket_harms_nobody(served: Serve) -> None:
    connect = await served()
    channel = connect()
    assert await ask(channel) is Code.OK
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", b"\x00" * 1000, PREFACE + b"\xff" * 1000):
        with socket.create_connection(("127.0.0.1", connect.port)) as raw:
            raw.sendall(data)
    assert await ask(channel) is Code.OK
