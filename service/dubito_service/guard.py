"""The guard: what stands between gRPC and every handler, so that a call ends with an answer or an honest status.

Whether a call may be made is settled before its first message is read; then the guard reads that message itself, as
bytes, because gRPC answers what it cannot parse with INTERNAL, and leaves a caller that sends none without an answer.
An error becomes a status by the table in errors.py; any other exception INTERNAL with nothing but an id, which stands
in the log beside the trace. And a `CancelledError` that a handler lets out of a call still alive would leave the caller
waiting forever (grpc#29248): it ends the call too.

A call counts until its reply is out, so that a client which does not read takes up its own places and nobody else's.
One that keeps a call waiting for too long is told so; gRPC lets go of the stream itself when that client reads on,
leaves, or its connection ends. Calls without a deadline have no other end than these: each asks for a bounded amount of
work, and gRPC's own pings find a client that has vanished.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor

from dubito_models.errors import InvalidArgument
from dubito_service.draining import Drain
from dubito_service.errors import ClientIdle, Draining, Refusal, told
from dubito_service.reading import Parser, parse
from dubito_service.reports import ignore
from dubito_service.security.access import Access, bearer
from dubito_service.security.callers import caller_of
from dubito_service.security.concurrency import CallLimits, Concurrency
from dubito_service.security.patience import Patience, Watchdog
from dubito_service.security.scopes import PROBES, Scope, scope_of
from dubito_service.telemetry.journal import Journal, Visit

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # a string: not generic when it runs
Context = grpc.aio.ServicerContext[Any, Any]
Clock: TypeAlias = Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Route:
    """One method, and what its calls need."""

    method: str
    counted: bool  # among the calls that are waited for when the server stops
    probe: bool
    scope: Scope | None
    stream: bool  # of requests
    parser: Parser
    kind: Descriptor | None  # of its messages; None where no contract has it

    @property
    def brings_work(self) -> bool:
        """Whether its calls are refused when the server stops."""
        return self.counted and not self.probe


class _Call:
    """One call that was let in; its messages are read and written as bytes."""

    __slots__ = ("_access", "_context", "_drain", "_route", "_secret", "_waits", "patience")

    def __init__(self, route: _Route, context: Context, access: Access, patience: Patience, drain: Drain) -> None:
        self._route, self._context, self._access, self.patience = route, context, access, patience
        self._drain = drain
        self._secret: str | None = None
        self._waits = False

    async def request(self) -> Any:
        """Return the only request; raises `Draining` where the server stops before it is there."""
        payload = await self._receive(self._context.read)
        self.patience.finished()
        if payload is grpc.aio.EOF:
            raise InvalidArgument("request", "no message", "one")
        return await parse(self._route.parser, payload, self._route.kind)

    def __aiter__(self) -> _Call:
        return self

    async def __anext__(self) -> Any:
        """Return the next request; each after the first waits until its caller's rate has room for it.

        Raises `Draining` where the server stops before.
        """
        return await self._receive(self._next)

    async def _receive(self, read: Callable[[], Awaitable[Any]]) -> Any:
        if not self._route.brings_work:
            return await read()
        try:
            return await self._drain.receive(read)
        except Draining:
            self.patience.finished()
            raise

    async def _next(self) -> Any:
        payload = await self._context.read()
        if payload is grpc.aio.EOF:
            self.patience.finished()
            raise StopAsyncIteration
        self.patience.received()
        if not self._waits:
            self._waits, self._secret = True, bearer(self._context)
        else:
            while short := self._access.stay(self._route.scope, self._secret):
                await asyncio.sleep(short)
        return await parse(self._route.parser, payload, self._route.kind)

    async def send(self, reply: bytes) -> None:
        """Write one of several replies."""
        self.patience.sending()
        await self._context.write(reply)
        self.patience.sent()


Serve: TypeAlias = Callable[[_Call, Context], Awaitable[bytes | None]]


class Guard(grpc.aio.ServerInterceptor):
    """Guards all handlers; knows how many calls of `services` are in flight, and refuses new ones while draining."""

    def __init__(
        self,
        services: Collection[str],
        access: Access | None = None,
        limits: CallLimits | None = None,
        clock: Clock = time.monotonic,
        journal: Journal | None = None,
    ) -> None:
        self.in_flight = 0
        self._services = frozenset(services)
        self._access = access or Access()
        self._limits = limits or CallLimits()
        self._concurrency = Concurrency(self._limits)
        self._watchdog = Watchdog(self._limits.idle_seconds, clock, self._limits.message_seconds)
        self._journal = journal or Journal(ignore, clock)
        self._drain = Drain()
        self._idle = asyncio.Event()
        self._idle.set()
        self._handlers: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the guarded handler of a method; None where nobody serves it."""
        method = handler_call_details.method
        if method not in self._handlers:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            self._handlers[method] = self._guarded(method, handler)
        return self._handlers[method]

    async def drain(self, timeout: float) -> bool:
        """Refuse new calls and messages, and wait until all that were taken are answered; False where it takes longer.

        A stream ends once nothing is owed on it.
        """
        self._drain.begin()
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False
        return True

    def _guarded(self, method: str, handler: Any) -> Handler:
        """Return a handler that reads its requests itself, so to gRPC it takes a stream of them, and no parser."""
        counted = method.split("/")[1] in self._services
        route = _Route(
            method,
            counted,
            method in PROBES,
            scope_of(method),
            handler.request_streaming,
            handler.request_deserializer,
            _kind(method),
        )
        if not handler.response_streaming:
            if handler.request_streaming:
                raise TypeError(f"{method}: no handler here takes a stream and answers once")
            serve = _once(handler.unary_unary, handler.response_serializer)
            return grpc.stream_unary_rpc_method_handler(self._behavior(route, serve))
        several = handler.stream_stream if handler.request_streaming else handler.unary_stream
        serve = _often(several, handler.response_serializer, handler.request_streaming)
        return grpc.stream_stream_rpc_method_handler(self._behavior(route, serve))

    def _behavior(self, route: _Route, serve: Serve) -> Any:
        async def behavior(_: object, context: Context) -> bytes | None:
            """Run one call, and end it with a status whatever is raised inside."""
            visit, code, reason = self._journal.begin(route.method, context.invocation_metadata() or ()), "OK", ""
            context.set_trailing_metadata(visit.trailers)
            patience: Patience | None = None
            try:
                try:
                    patience = self._enter(route, context)
                    return await serve(_Call(route, context, self._access, patience, self._drain), context)
                except grpc.aio.AbortError:  # the handler's own
                    code = _name(context)
                    raise
                except (Exception, asyncio.CancelledError) as error:
                    found = _reason(error, patience, route)
                    if found is None:  # the caller has left, or its time is up
                        left = context.time_remaining()
                        code = "CANCELLED" if left is None or left > 0 else "DEADLINE_EXCEEDED"
                        raise
                    code, reason = found.code.name, type(error).__name__
                if patience is not None:
                    patience.stop()
                # Not while the error is handled: gRPC keeps what it raises here, in a cycle, and would keep the error
                # too, with all that its frames hold, such as a version that is to be unloaded.
                await _abort(context, found, visit)
                raise AssertionError("the call was ended with a status")
            finally:
                if patience is not None:
                    patience.stop()
                self._journal.end(visit, code, reason)

        return behavior

    def _enter(self, route: _Route, context: Context) -> Patience:
        """Let a call in, and count it until gRPC has done with it; raises an error of errors.py."""
        if route.brings_work:
            self._drain.check()
        self._access.enter(route.scope, context)
        caller = caller_of(context) if self._limits.by_caller else ""
        task = asyncio.current_task()
        assert task is not None  # gRPC gives each call its own
        if not route.probe:
            self._concurrency.enter(caller)
        self._count(route.counted)

        def leave(_: object) -> None:
            if not route.probe:
                self._concurrency.leave(caller)
            self._count(-route.counted)

        task.add_done_callback(leave)
        return self._watchdog.watch(task, stream=route.stream)

    def _count(self, change: int) -> None:
        self.in_flight += change
        if self.in_flight:
            self._idle.clear()
        else:
            self._idle.set()


def _once(answer: Any, write: Callable[[Any], bytes]) -> Serve:
    async def serve(call: _Call, context: Context) -> bytes:
        request = await call.request()
        call.patience.stop()
        return write(await answer(request, context))

    return serve


def _often(answer: Any, write: Callable[[Any], bytes], streaming: bool) -> Serve:
    async def serve(call: _Call, context: Context) -> None:
        request = call if streaming else await call.request()
        async with contextlib.aclosing(answer(request, context)) as replies:
            async for reply in replies:
                await call.send(write(reply))

    return serve


def _kind(method: str) -> Descriptor | None:
    """Return what the messages of a method are; None for one that no contract in this process has."""
    try:
        return descriptor_pool.Default().FindMethodByName(method.lstrip("/").replace("/", ".")).input_type
    except KeyError:
        return None


def _reason(error: BaseException, patience: Patience | None, route: _Route) -> Refusal | None:
    """Return the status that ends a call; None where nobody waits for one."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        if patience is None or not patience.lost:
            return None
        task.uncancel()
        error = ClientIdle("the client has kept the call waiting for too long: it neither sends nor reads")
    return told(error, route.method)


async def _abort(context: Context, found: Refusal, visit: Visit) -> None:
    try:
        await context.abort(found.code, found.message, (*visit.trailers, *found.trailers))
    except grpc.aio.AbortError:
        raise
    except Exception:  # there is no call any more: gRPC refused its message, or the connection broke
        raise asyncio.CancelledError from None


def _name(context: Context) -> str:
    """Return the name of the status that a handler has ended its call with."""
    code = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else _NAMES.get(code, "UNKNOWN")


_NAMES: dict[object, str] = {code.value[0]: code.name for code in grpc.StatusCode}
