"""The guard: every call ends with an answer or an honest status, and none takes more than its share."""

# ruff: noqa: N802 - methods bear the names of the wire

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc.error_details_pb2 import RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dubito_models.errors import InvalidArgument
from dubito_protos import uncertainty_pb2 as pb
from dubito_protos import uncertainty_pb2_grpc as pb_grpc
from dubito_service.guard import Guard
from dubito_service.reading import LARGE_BYTES, MOST_FIELDS
from dubito_service.reports import CallReport, Report
from dubito_service.security.access import Access
from dubito_service.security.callers import caller_of
from dubito_service.security.concurrency import CallLimits
from dubito_service.security.scopes import Scope
from dubito_service.security.tokens import Tokens, add_token, new_secret
from dubito_service.telemetry.journal import Journal

from .hooked import until
from .wire import detail

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one loop for all of gRPC's calls in this process

Code = grpc.StatusCode
UNCERTAINTY = "/dubito.v1.UncertaintyService/"
SECONDS = 60.0  # that a call may take at most; nothing here waits for it
LIMIT = 2**20  # bytes of a message
Metadata = list[tuple[str, str]] | None


class Scripted(pb_grpc.UncertaintyServiceServicer, pb_grpc.ModelServiceServicer):
    """Does what a test tells it to."""

    def __init__(self) -> None:
        self.callers: list[str] = []
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.closed = asyncio.Event()
        self.fault: BaseException | None = None
        self.size = 0  # of a reply, beside what it echoes

    async def Evaluate(self, request: pb.EvaluateRequest, context: Any) -> pb.EvaluateResponse:
        self.callers.append(caller_of(context))
        self.entered.set()
        if request.model == "hold":
            await self.release.wait()
        if self.fault is not None:
            raise self.fault
        return pb.EvaluateResponse(model=request.model + "x" * self.size)

    async def PredictStream(self, request: pb.PredictRequest, context: Any) -> AsyncIterator[pb.PredictResponse]:
        try:
            for _ in range(100_000):
                yield pb.PredictResponse(model="x" * 100_000)
        finally:
            self.closed.set()

    async def PredictBulk(
        self, request_iterator: AsyncIterator[pb.PredictRequest], context: Any
    ) -> AsyncIterator[pb.PredictBulkResponse]:
        async for request in request_iterator:
            if request.model == "hold":
                self.entered.set()
                await self.release.wait()
            yield pb.PredictBulkResponse(id=request.id)

    async def LoadModel(self, request: pb.LoadModelRequest, context: Any) -> pb.LoadModelResponse:
        return pb.LoadModelResponse()


class Serving(health_pb2_grpc.HealthServicer):
    """Says that it serves, and goes on being watched."""

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        yield await self.Check(request, context)
        await asyncio.Event().wait()


class Inside:
    """A guarded server in this process, and a channel to it."""

    def __init__(self, **choices: Any) -> None:
        self.servicer = Scripted()
        self.reports: list[Report] = []
        journal = Journal(self.reports.append, time.monotonic)
        self.guard = Guard(("dubito.v1.UncertaintyService",), journal=journal, **choices)
        self.server = grpc.aio.server(
            interceptors=[self.guard],
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", LIMIT)],
        )
        pb_grpc.add_UncertaintyServiceServicer_to_server(self.servicer, self.server)
        pb_grpc.add_ModelServiceServicer_to_server(self.servicer, self.server)
        health_pb2_grpc.add_HealthServicer_to_server(Serving(), self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        own = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", own)

    async def ask(self, method: str, payload: bytes = b"", metadata: Metadata = None, path: str = UNCERTAINTY) -> bytes:
        call: Any = self.channel.unary_unary(path + method)
        reply: bytes = await call(payload, timeout=SECONDS, metadata=metadata)
        return reply

    async def refused(self, method: str, payload: bytes = b"", **more: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.ask(method, payload, **more)
        return caught.value

    def hold(self, metadata: Metadata = None) -> Any:
        """Start a call that does not end before `release` is set."""
        call: Any = self.channel.unary_unary(UNCERTAINTY + "Evaluate")
        return call(pb.EvaluateRequest(model="hold").SerializeToString(), timeout=SECONDS, metadata=metadata)

    def bulk(self, metadata: Metadata = None) -> Any:
        call: Any = self.channel.stream_stream(
            UNCERTAINTY + "PredictBulk",
            request_serializer=pb.PredictRequest.SerializeToString,
            response_deserializer=pb.PredictBulkResponse.FromString,
        )
        return call(timeout=SECONDS, metadata=metadata)


Open = Callable[..., Awaitable[Inside]]


@pytest_asyncio.fixture(loop_scope="module")
async def opened() -> AsyncIterator[Open]:
    servers: list[Inside] = []

    async def open_server(**choices: Any) -> Inside:
        servers.append(Inside(**choices))
        await servers[-1].server.start()
        return servers[-1]

    yield open_server
    for inside in servers:
        inside.servicer.release.set()
        await inside.channel.close()
        await inside.server.stop(0.0)


async def count(call: Any) -> int:
    return len([None async for _ in call])


def keyed(path: Path, *scopes: Scope, **more: Any) -> tuple[Access, list[tuple[str, str]]]:
    """Access by one token, and the metadata that brings it."""
    secret = new_secret()
    add_token(path, secret, "mobile", scopes or (Scope.PREDICT,), **more)
    return Access(Tokens(path, time.monotonic, time.time)), [("authorization", f"Bearer {secret}")]


async def test_a_call_that_brings_no_message_is_refused_and_not_left_waiting(opened: Open) -> None:
    inside = await opened()
    call: Any = inside.channel.stream_unary(UNCERTAINTY + "Evaluate")(timeout=SECONDS)
    await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError, match="no message") as caught:
        await call
    assert caught.value.code() is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("method", ["Evaluate", "PredictStream", "PredictBulk"])
async def test_bytes_that_are_no_message_are_the_caller_s_fault(opened: Open, method: str) -> None:
    inside = await opened()
    error = await inside.refused(method, b"\xff\xff\xff")
    assert error.code() is Code.INVALID_ARGUMENT
    assert "3 bytes that are no such message" in str(error.details())


class Held:
    """A service whose messages are parsed only when a test lets them."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self.entered, self.release = threading.Event(), threading.Event()
        handlers = {
            "Once": grpc.unary_unary_rpc_method_handler(self._once, self._parse, bytes),
            "Often": grpc.stream_stream_rpc_method_handler(self._often, self._parse, bytes),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Held", handlers),))

    def _parse(self, payload: bytes) -> bytes:
        if len(payload) >= LARGE_BYTES:
            self.entered.set()
            assert self.release.wait(10)
        return payload[:1]

    async def _once(self, request: bytes, context: Any) -> bytes:
        return request

    async def _often(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request


@pytest.mark.parametrize("method", ["Once", "Often"])
async def test_the_loop_goes_on_while_a_large_message_is_parsed_and_a_stream_s_order_is_kept(
    opened: Open, method: str
) -> None:
    inside = await opened()
    held = Held(inside.server)
    call: Any = inside.channel.stream_stream(f"/Held/{method}")(timeout=SECONDS)
    sent = [b"a" * LARGE_BYTES, b"b"] if method == "Often" else [b"a" * LARGE_BYTES]
    for message in sent:
        await call.write(message)
    await call.done_writing()
    await until(held.entered.is_set)
    assert await inside.ask("Evaluate") == b""
    held.release.set()
    assert [reply async for reply in call] == [message[:1] for message in sent]


async def test_a_message_of_too_many_fields_is_the_caller_s_fault(opened: Open) -> None:
    inside = await opened()
    for method in ("Evaluate", "PredictStream", "PredictBulk"):
        error = await inside.refused(method, b"\x78\x00" * (MOST_FIELDS + 1))
        assert error.code() is Code.INVALID_ARGUMENT
        assert f"request: got more than {MOST_FIELDS} fields" in str(error.details())
    assert inside.servicer.callers == []


async def test_an_unknown_method_is_unimplemented(opened: Open) -> None:
    assert (await (await opened()).refused("Guess")).code() is Code.UNIMPLEMENTED


async def test_a_message_above_the_limit_is_refused_packed_or_not(opened: Open, caplog: Any) -> None:
    inside = await opened()
    big = pb.EvaluateRequest(model="x" * (LIMIT + 1)).SerializeToString()
    assert (await inside.refused("Evaluate", big)).code() is Code.RESOURCE_EXHAUSTED
    packed: Any = grpc.aio.insecure_channel(f"127.0.0.1:{inside.port}", compression=grpc.Compression.Gzip)
    async with packed:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await packed.unary_unary(UNCERTAINTY + "Evaluate")(big, timeout=SECONDS)
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    assert await inside.ask("Evaluate") == b""
    await until(lambda: inside.guard.in_flight == 0)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("fault", [ZeroDivisionError("a secret"), asyncio.CancelledError()])
async def test_a_fault_is_internal_with_an_id_alone_and_the_log_has_the_rest(
    opened: Open, caplog: pytest.LogCaptureFixture, fault: BaseException
) -> None:
    inside = await opened()
    inside.servicer.fault = fault
    with caplog.at_level(logging.ERROR):
        error = await inside.refused("Evaluate")
    assert error.code() is Code.INTERNAL
    assert "secret" not in str(error.details())
    assert str(error.details()).split()[2].rstrip(";") in caplog.text


async def test_without_a_token_the_message_is_not_even_read(opened: Open, tmp_path: Path) -> None:
    access, metadata = keyed(tmp_path / "tokens.toml")
    inside = await opened(access=access)
    for wrong in (None, [("authorization", "Bearer dubito_x")], [("authorization", "Basic eDp5")], metadata * 2):
        error = await inside.refused("Evaluate", b"\xff" * (LIMIT * 4), metadata=wrong)
        assert error.code() is Code.UNAUTHENTICATED
    assert inside.servicer.callers == []
    await inside.ask("Evaluate", metadata=[("authorization", metadata[0][1].replace("Bearer", "bearer"))])
    assert inside.servicer.callers == ["mobile"]


async def test_a_token_without_the_scope_is_told_which_one_it_lacks(opened: Open, tmp_path: Path) -> None:
    access, metadata = keyed(tmp_path / "tokens.toml", Scope.PREDICT)
    inside = await opened(access=access)
    error = await inside.refused("LoadModel", metadata=metadata, path="/dubito.v1.ModelService/")
    assert error.code() is Code.PERMISSION_DENIED
    assert "needs the scope admin" in str(error.details())


async def test_admin_calls_that_are_off_say_how_to_turn_them_on(opened: Open) -> None:
    inside = await opened(access=Access(admin=False))
    error = await inside.refused("LoadModel", path="/dubito.v1.ModelService/")
    assert error.code() is Code.PERMISSION_DENIED
    assert "dubito serve --admin on" in str(error.details())
    assert await inside.ask("Evaluate") == b""


async def test_a_rate_is_kept_and_its_refusal_says_when_to_come_back(opened: Open, tmp_path: Path) -> None:
    access, metadata = keyed(tmp_path / "tokens.toml", rate=0.01, burst=2)
    inside = await opened(access=access)
    for _ in range(2):
        await inside.ask("Evaluate", metadata=metadata)
    error = await inside.refused("Evaluate", metadata=metadata)
    assert error.code() is Code.RESOURCE_EXHAUSTED
    assert 50 < detail(error, RetryInfo).retry_delay.ToSeconds() <= 100


class Rated(Access):
    """Lets every second message of a stream wait once."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def stay(self, scope: Scope | None, secret: str | None) -> float:
        self.asked += 1
        return 0.001 if self.asked % 2 else 0.0


async def test_a_stream_s_messages_wait_for_the_rate_instead_of_being_refused(opened: Open) -> None:
    access = Rated()
    inside = await opened(access=access)
    call = inside.bulk()
    for number in range(5):
        await call.write(pb.PredictRequest(id=str(number)))
    await call.done_writing()
    assert [reply.id async for reply in call] == list("01234")
    assert access.asked == 8  # twice for each after the first


async def test_a_token_that_is_revoked_ends_the_streams_that_it_opened(opened: Open, tmp_path: Path) -> None:
    path, now = tmp_path / "tokens.toml", [0.0]
    secret = new_secret()
    add_token(path, secret, "batch", (Scope.PREDICT,))
    inside = await opened(access=Access(Tokens(path, lambda: now[0], time.time)))
    call = inside.bulk([("authorization", f"Bearer {secret}")])
    await call.write(pb.PredictRequest(id="1"))
    assert (await call.read()).id == "1"
    path.write_text("")
    now[0] += 1.0
    await call.write(pb.PredictRequest(id="2"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is Code.UNAUTHENTICATED


async def test_calls_over_the_limit_are_refused_and_a_place_that_is_left_is_free(opened: Open) -> None:
    inside = await opened(limits=CallLimits(calls=2))
    held = [inside.hold() for _ in range(2)]
    await until(lambda: len(inside.servicer.callers) == 2)
    error = await inside.refused("Evaluate")
    assert error.code() is Code.RESOURCE_EXHAUSTED
    assert "2 of 2 are under way" in str(error.details())
    assert detail(error, RetryInfo).retry_delay.ToNanoseconds() > 0
    health = health_pb2_grpc.HealthStub(inside.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)).status  # never refused
    held[0].cancel()
    await until(lambda: inside.guard.in_flight == 1)
    assert await inside.ask("Evaluate") == b""
    inside.servicer.release.set()
    await held[1]
    await until(lambda: inside.guard.in_flight == 0)
    for _ in range(4):
        assert await inside.ask("Evaluate") == b""
        await until(lambda: inside.guard.in_flight == 0)


async def test_one_caller_at_its_limit_leaves_room_for_the_others(opened: Open, tmp_path: Path) -> None:
    path, secrets = tmp_path / "tokens.toml", [new_secret(), new_secret()]
    for name, secret in zip(("greedy", "modest"), secrets, strict=True):
        add_token(path, secret, name, (Scope.PREDICT,))
    greedy, modest = ([("authorization", f"Bearer {secret}")] for secret in secrets)
    access = Access(Tokens(path, time.monotonic, time.time))
    inside = await opened(access=access, limits=CallLimits(calls=4, caller_calls=1))
    held = inside.hold(greedy)
    await inside.servicer.entered.wait()
    error = await inside.refused("Evaluate", metadata=greedy)
    assert "1 of 1 by this caller (greedy) are under way" in str(error.details())
    assert await inside.ask("Evaluate", metadata=modest) == b""
    inside.servicer.release.set()
    await held


async def test_a_client_that_does_not_read_loses_its_call_and_the_work_is_let_go(opened: Open) -> None:
    inside = await opened(limits=CallLimits(idle_seconds=0.2))
    call: Any = inside.channel.unary_stream(UNCERTAINTY + "PredictStream")(b"", timeout=SECONDS)
    await inside.servicer.closed.wait()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await count(call)
    assert caught.value.code() is Code.DEADLINE_EXCEEDED
    assert "kept the call waiting" in str(caught.value.details())
    await until(lambda: inside.guard.in_flight == 0)


async def test_a_reply_that_nobody_reads_keeps_its_caller_s_place_until_it_is_out(opened: Open) -> None:
    inside = await opened(limits=CallLimits(calls=1))
    inside.servicer.size = 32 * 2**20
    call: Any = inside.channel.unary_stream(UNCERTAINTY + "Evaluate")(b"", timeout=SECONDS)
    await inside.servicer.entered.wait()
    await asyncio.sleep(0.2)
    assert inside.guard.in_flight == 1
    assert (await inside.refused("Evaluate")).code() is Code.RESOURCE_EXHAUSTED
    call.cancel()
    await until(lambda: inside.guard.in_flight == 0)
    inside.servicer.size = 0
    assert await inside.ask("Evaluate") == b""


@pytest.mark.parametrize("method", ["Evaluate", "PredictStream", "PredictBulk"])
async def test_a_client_that_does_not_send_loses_its_call(opened: Open, method: str) -> None:
    inside = await opened(limits=CallLimits(idle_seconds=0.3))
    call: Any = inside.channel.stream_unary(UNCERTAINTY + method)(timeout=SECONDS)
    await call.wait_for_connection()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is Code.DEADLINE_EXCEEDED
    assert await inside.ask("Evaluate") == b""


async def test_the_only_message_of_a_call_is_waited_for_less_long_than_those_of_a_stream(opened: Open) -> None:
    inside = await opened(limits=CallLimits(idle_seconds=SECONDS, message_seconds=0.1))
    stream = inside.bulk()
    await stream.wait_for_connection()
    call: Any = inside.channel.stream_unary(UNCERTAINTY + "Evaluate")(timeout=SECONDS)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is Code.DEADLINE_EXCEEDED
    await stream.write(pb.PredictRequest(id="1"))
    assert (await stream.read()).id == "1"
    stream.cancel()


async def test_a_stream_that_waits_for_its_answer_is_not_idle_and_after_it_is(opened: Open) -> None:
    inside = await opened(limits=CallLimits(idle_seconds=0.3))
    call = inside.bulk()
    await call.write(pb.PredictRequest(id="1", model="hold"))
    await asyncio.sleep(0.5)
    assert not call.done()
    inside.servicer.release.set()
    assert (await call.read()).id == "1"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is Code.DEADLINE_EXCEEDED


async def test_a_call_that_takes_long_is_not_idle(opened: Open) -> None:
    inside = await opened(limits=CallLimits(idle_seconds=0.3))
    held = inside.hold()
    await asyncio.sleep(0.5)
    inside.servicer.release.set()
    assert await held == pb.EvaluateResponse(model="hold").SerializeToString()


async def test_a_watcher_of_the_health_is_not_idle(opened: Open) -> None:
    inside = await opened(limits=CallLimits(idle_seconds=0.3))
    watch: Any = health_pb2_grpc.HealthStub(inside.channel).Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS)
    await watch.read()
    await asyncio.sleep(0.5)
    assert not watch.done()
    watch.cancel()


async def test_draining_waits_for_what_is_in_flight_and_refuses_what_is_new(opened: Open) -> None:
    inside = await opened()
    held = inside.hold()
    await inside.servicer.entered.wait()
    assert not await inside.guard.drain(0.0)
    assert (await inside.refused("Evaluate")).code() is Code.UNAVAILABLE
    draining = asyncio.create_task(inside.guard.drain(SECONDS))
    inside.servicer.release.set()
    assert await draining
    assert await held


async def test_draining_refuses_what_open_streams_would_still_send_and_ends_those_that_are_owed_nothing(
    opened: Open,
) -> None:
    inside = await opened()
    silent, idle, busy = (inside.bulk() for _ in range(3))
    half: Any = inside.channel.stream_unary(UNCERTAINTY + "Evaluate")(timeout=SECONDS)  # which sends nothing
    await idle.write(pb.PredictRequest(id="first"))
    assert (await idle.read()).id == "first"
    await busy.write(pb.PredictRequest(id="taken", model="hold"))
    await until(lambda: inside.guard.in_flight == 4)
    await inside.servicer.entered.wait()
    draining = asyncio.create_task(inside.guard.drain(SECONDS))
    for call in (silent, idle, half):
        assert await call.code() is Code.UNAVAILABLE
        assert await call.details() == "the server is stopping; ask another one, or again later"
    await busy.write(pb.PredictRequest(id="late"))
    assert inside.guard.in_flight == 1
    assert not draining.done()
    inside.servicer.release.set()
    assert (await busy.read()).id == "taken"
    assert await busy.code() is Code.UNAVAILABLE
    assert await draining


async def test_who_leaves_while_the_server_drains_has_left(opened: Open) -> None:
    inside = await opened()
    gone = inside.bulk()
    await gone.write(pb.PredictRequest(id="taken", model="hold"))
    await inside.servicer.entered.wait()
    draining = asyncio.create_task(inside.guard.drain(SECONDS))
    gone.cancel()
    assert await draining
    assert [report.code for report in inside.reports if isinstance(report, CallReport)] == ["CANCELLED"]


async def test_every_call_is_reported_once_with_how_it_ended(opened: Open) -> None:
    inside = await opened(limits=CallLimits(calls=1))

    async def ended() -> None:  # a call counts until its reply is out, which its caller may have a little before
        await until(lambda: inside.guard.in_flight == 0)

    await inside.ask("Evaluate")
    await ended()
    await inside.refused("Evaluate", b"\xff")
    await ended()
    held = inside.hold()
    await until(lambda: len(inside.servicer.callers) == 2)
    await inside.refused("Evaluate")
    held.cancel()
    await until(lambda: len(inside.reports) == 4)
    inside.servicer.fault = InvalidArgument("rows", 0, "at least 1")
    await ended()
    await inside.refused("Evaluate")
    await until(lambda: len(inside.reports) == 5)
    reports = [report for report in inside.reports if isinstance(report, CallReport)]
    assert [(report.code, report.reason) for report in reports] == [
        ("OK", ""),
        ("INVALID_ARGUMENT", "InvalidArgument"),
        ("RESOURCE_EXHAUSTED", "TooManyCalls"),
        ("CANCELLED", ""),
        ("INVALID_ARGUMENT", "InvalidArgument"),
    ]
    assert all(report.method == UNCERTAINTY + "Evaluate" and report.seconds >= 0 for report in reports)
