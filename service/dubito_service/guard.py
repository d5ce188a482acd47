"""The guard: what stands between gRPC and every handler, so that a call ends with an answer or an honest status.

Requests reach it as bytes, because gRPC answers what it cannot parse itself with INTERNAL. An error becomes a status
by the table in errors.py; any other exception INTERNAL with nothing but an id, which stands in the log beside the
trace. And a `CancelledError` that a handler lets out of a call still alive would leave the caller waiting forever
(grpc#29248): it ends the call too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from dubito_models.errors import InvalidArgument
from dubito_service.errors import Draining, Refusal, refusal

log = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # a string: not generic when it runs
Context = grpc.aio.ServicerContext[Any, Any]


class Guard(grpc.aio.ServerInterceptor):
    """Guards all handlers; knows how many calls of `services` are in flight, and refuses new ones while draining."""

    def __init__(self, services: Collection[str]) -> None:
        self.in_flight = 0
        self._services = frozenset(services)
        self._draining = False
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
        """Refuse new calls and wait for those in flight; False where they take longer."""
        self._draining = True
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False
        return True

    def _guarded(self, method: str, handler: Handler) -> Handler:
        if not handler.request_streaming and not handler.response_streaming:
            return grpc.unary_unary_rpc_method_handler(self._unary(method, handler))
        if not handler.request_streaming:
            stream = self._stream(method, handler.unary_stream, handler.request_deserializer)
            return grpc.unary_stream_rpc_method_handler(stream, None, handler.response_serializer)
        if handler.response_streaming:
            stream = self._stream(method, handler.stream_stream, None)
            return grpc.stream_stream_rpc_method_handler(
                stream, handler.request_deserializer, handler.response_serializer
            )
        raise TypeError(f"{method}: no handler here takes a stream and answers once")

    def _unary(self, method: str, handler: Any) -> Any:
        answer, read, write = handler.unary_unary, handler.request_deserializer, handler.response_serializer

        async def call(payload: bytes, context: Context) -> bytes:
            async with self._ending(method, context):
                reply = await answer(_parse(read, payload), context)
                data: bytes = write(reply)
                return data
            raise AssertionError("the call was ended with a status")

        return call

    def _stream(self, method: str, answer: Any, read: Callable[[bytes], Any] | None) -> Any:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self._ending(method, context):
                async for reply in answer(request if read is None else _parse(read, request), context):
                    yield reply

        return call

    @contextlib.asynccontextmanager
    async def _ending(self, method: str, context: Context) -> AsyncIterator[None]:
        """Count a call, and end it with a status whatever is raised inside."""
        counted = method.split("/")[1] in self._services
        if counted and self._draining:
            await _abort(context, method, Draining("the server is stopping; ask another one, or again later"))
        self._count(counted)
        try:
            yield
        except (grpc.aio.AbortError, GeneratorExit):
            raise  # it has a status already
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the caller has left
            await _abort(context, method, error)
        except Exception as error:
            await _abort(context, method, error)
        finally:
            self._count(-counted)

    def _count(self, change: int) -> None:
        self.in_flight += change
        if self.in_flight:
            self._idle.clear()
        else:
            self._idle.set()


def _parse(read: Callable[[bytes], Any], payload: bytes) -> Any:
    try:
        return read(payload)
    except DecodeError:
        raise InvalidArgument("request", f"{len(payload)} bytes that are no such message", "protobuf") from None


async def _abort(context: Context, method: str, error: BaseException) -> None:
    found = refusal(error) if isinstance(error, Exception) else None
    if found is None:
        number = secrets.token_hex(4)
        log.error("call failed method=%s error_id=%s", method, number, exc_info=error)
        found = Refusal(grpc.StatusCode.INTERNAL, f"internal error {number}; the server's log has more under this id")
    else:
        log.debug("call refused method=%s code=%s", method, found.code.name)
    await context.abort(found.code, found.message, found.trailers)
