"""The asynchronous client: the same verbs, awaited."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack

import grpc
import grpc.aio

from dubito_client import calls
from dubito_client.answers import Prediction
from dubito_client.errors import Cancelled, DubitoClientError, ServerError, Unavailable, from_rpc
from dubito_client.inputs import Inputs
from dubito_client.many import PATH, Many, Outcome, begin, check_in_flight, read_outcome
from dubito_client.requests import Asked
from dubito_client.secure import Pem, identify
from dubito_client.session import Call, Next, Open, Pause, Session, Steps, Stream, channel_options

P = ParamSpec("P")
T = TypeVar("T")


def _awaited(
    verb: Callable[Concatenate[Session, P], Steps[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """Make a coroutine method of a verb: take its steps one by one, and return what it returns."""

    @wraps(verb)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        steps = verb(self._session, *args, **kwargs)
        try:
            step = next(steps)
            while True:
                outcome = await self._take(step)
                step = steps.throw(outcome) if isinstance(outcome, DubitoClientError) else steps.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result

    return method


def _yielding(
    verb: Callable[Concatenate[Session, P], Stream[Prediction]],
) -> Callable[Concatenate[AsyncClient, P], AsyncIterator[Prediction]]:
    """Make an iterating method of a verb: take its steps, and yield its answers."""

    @wraps(verb)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[Prediction]:
        steps = verb(self._session, *args, **kwargs)
        call: Any = None
        outcome: bytes | DubitoClientError | None = None
        try:
            while True:
                try:
                    if isinstance(outcome, DubitoClientError):
                        step = steps.throw(outcome)
                    else:
                        step = next(steps) if outcome is None else steps.send(outcome)
                except StopIteration:
                    return
                if isinstance(step, Prediction):
                    yield step
                    outcome = None
                elif isinstance(step, Open):
                    _cancel(call)
                    call, outcome = self._open(step), b""
                else:
                    outcome = await (_next(call) if isinstance(step, Next) else self._take(step))
        finally:
            _cancel(call)

    return method


def _cancel(call: Any) -> None:
    if call is not None:
        call.cancel()


async def _next(call: Any) -> bytes | DubitoClientError:
    if call is None:
        return Cancelled("the client is closed")
    try:
        reply = await call.read()
    except grpc.RpcError as error:
        return from_rpc(error)
    except asyncio.CancelledError:
        return _closed_under_way()
    return b"" if reply is grpc.aio.EOF else bytes(reply)


def _hung_up(error: DubitoClientError) -> DubitoClientError:
    """Return an error of a call that was being written to: where the server ends it then, gRPC knows of no reason."""
    if isinstance(error, ServerError) and "Internal error from Core" in str(error):
        return Unavailable("the server has ended the call while it was being sent requests")
    return error


async def _send(
    call: Any,
    many: Many,
    inputs: Iterable[Inputs] | AsyncIterable[Inputs],
    room: asyncio.Semaphore,
    refused: deque[Outcome],
) -> None:
    """Send the requests of one call of many, as there is room; raises what the inputs themselves do."""
    number = 0
    try:
        async for given in _each(inputs):
            await room.acquire()
            try:
                payload = many.encode(number, given)
            except DubitoClientError as error:
                refused.append((number, error))
                room.release()
            else:
                await call.write(payload)
            number += 1
    except (grpc.RpcError, asyncio.InvalidStateError):
        return  # the call has ended: whoever reads it is told why
    finally:
        if not call.done():
            await call.done_writing()


async def _each(inputs: Iterable[Inputs] | AsyncIterable[Inputs]) -> AsyncIterator[Inputs]:
    if isinstance(inputs, AsyncIterable):
        async for given in inputs:
            yield given
    else:
        for given in inputs:
            yield given


def _closed_under_way() -> Cancelled:
    """Tell a channel that was closed from a task that somebody cancelled: gRPC says the same of both."""
    task = asyncio.current_task()
    if task is None or task.cancelling():
        raise asyncio.CancelledError
    return Cancelled("the client was closed before the answer came")


class AsyncClient:
    """A client of one server, for use in an `async with` block, within one event loop; tasks may share it.

    Arguments and verbs are those of `dubito_client.Client`; every verb is awaited, `predict_stream` by `async for`.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = 30.0,
        token: str | None = None,
        tls: bool = False,
        root_certificates: Pem | None = None,
        client_certificate: Pem | None = None,
        client_key: Pem | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        max_message_bytes: int = 32 * 2**20,
        retries: int = 3,
    ) -> None:
        identity = identify(
            credentials=credentials,
            token=token,
            tls=tls,
            root_certificates=root_certificates,
            client_certificate=client_certificate,
            client_key=client_key,
        )
        self._target, self._credentials, self._metadata = target, identity.credentials, identity.metadata
        self._session = Session(timeout, retries, max_message_bytes, time.monotonic)
        self._channel: grpc.aio.Channel | None = None
        self._closed = False

    predict = _awaited(calls.predict)
    predict_stream = _yielding(calls.predict_stream)
    _begin_many = _awaited(begin)
    evaluate = _awaited(calls.evaluate)
    observe = _awaited(calls.observe)
    models = _awaited(calls.models)
    model = _awaited(calls.model)
    load = _awaited(calls.load)
    unload = _awaited(calls.unload)
    ready = _awaited(calls.ready)

    async def predict_many(
        self,
        model: str,
        inputs: Iterable[Inputs] | AsyncIterable[Inputs],
        *,
        in_flight: int = 64,
        timeout: float | None = None,
        **asked: Unpack[Asked],
    ) -> AsyncGenerator[Outcome]:
        """Predict for each of many inputs over one call, as `Client.predict_many` does; inputs may be asynchronous."""
        many = await self._begin_many(model, timeout, asked)
        room, refused = asyncio.Semaphore(check_in_flight(in_flight)), deque[Outcome]()
        if self._closed:
            raise Cancelled("the client is closed")
        ask: grpc.aio.StreamStreamMultiCallable[Any, bytes] = self._connected().stream_stream(PATH)
        call: Any = ask(timeout=timeout, metadata=self._metadata)
        sending = asyncio.create_task(_send(call, many, inputs, room, refused))
        try:
            while payload := await _next(call):
                if isinstance(payload, DubitoClientError):
                    raise _hung_up(payload)
                while refused:
                    yield refused.popleft()
                yield read_outcome(payload)
                room.release()
            while refused:
                yield refused.popleft()
            await sending
        finally:
            call.cancel()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def close(self) -> None:
        """Hang up; calls that are under way, and later ones, end with `Cancelled`."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _connected(self) -> grpc.aio.Channel:
        """Return the channel; it binds to the running loop, so it is made by the first call and not before."""
        if self._channel is None:
            options = channel_options(self._session)
            if self._credentials is None:
                self._channel = grpc.aio.insecure_channel(self._target, options)
            else:
                self._channel = grpc.aio.secure_channel(self._target, self._credentials, options)
        return self._channel

    def _open(self, step: Open) -> Any:
        """Start a call whose replies are many; None where the client is closed."""
        if self._closed:
            return None
        ask: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._connected().unary_stream(step.path)
        return ask(step.payload, timeout=step.timeout, metadata=self._metadata)

    async def _take(self, step: Call | Pause) -> bytes | DubitoClientError:
        """Take one step: the reply's bytes, or the error that came in their place."""
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return b""
        if self._closed:
            return Cancelled("the client is closed")
        # Without serialisers gRPC passes bytes through.
        ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._connected().unary_unary(step.path)
        try:
            reply = await ask(
                step.payload, timeout=step.timeout, metadata=self._metadata, wait_for_ready=step.wait_for_ready
            )
        except grpc.RpcError as error:
            return from_rpc(error)
        except asyncio.CancelledError:
            return _closed_under_way()
        return reply
