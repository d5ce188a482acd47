"""The blocking client."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack

import grpc

from dubito_client import calls
from dubito_client.answers import Prediction
from dubito_client.errors import Cancelled, DubitoClientError, from_rpc
from dubito_client.inputs import Inputs
from dubito_client.many import PATH, Many, Outcome, begin, check_in_flight, read_outcome
from dubito_client.requests import Asked
from dubito_client.secure import Pem, identify
from dubito_client.session import Call, Next, Open, Pause, Session, Steps, Stream, channel_options

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(verb: Callable[Concatenate[Session, P], Steps[T]]) -> Callable[Concatenate[Client, P], T]:
    """Make a method of a verb: take its steps one by one, and return what it returns."""

    @wraps(verb)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        steps = verb(self._session, *args, **kwargs)
        try:
            step = next(steps)
            while True:
                outcome = self._take(step)
                step = steps.throw(outcome) if isinstance(outcome, DubitoClientError) else steps.send(outcome)
        except StopIteration as end:
            result: T = end.value
            return result

    return method


def _yielding(
    verb: Callable[Concatenate[Session, P], Stream[Prediction]],
) -> Callable[Concatenate[Client, P], Iterator[Prediction]]:
    """Make an iterating method of a verb: take its steps, and yield its answers."""

    @wraps(verb)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[Prediction]:
        steps = verb(self._session, *args, **kwargs)
        with contextlib.closing(_Replies()) as replies:
            outcome: bytes | DubitoClientError | None = None
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
                    outcome = (
                        Cancelled("the client is closed")
                        if self._closed
                        else replies.open(self._channel, step, self._metadata)
                    )
                else:
                    outcome = replies.next() if isinstance(step, Next) else self._take(step)

    return method


class _Replies:
    """The replies of one call at a time."""

    def __init__(self) -> None:
        self._call: Any = None

    def open(self, channel: grpc.Channel, step: Open, metadata: tuple[tuple[str, str], ...]) -> bytes:
        self.close()
        ask: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(step.path)
        self._call = ask(step.payload, timeout=step.timeout, metadata=metadata)
        return b""

    def next(self) -> bytes | DubitoClientError:
        try:
            reply: bytes = next(self._call, b"")
        except grpc.RpcError as error:
            return from_rpc(error)
        return reply

    def close(self) -> None:
        if self._call is not None:
            self._call.cancel()


class _Sender:
    """The requests of one call of many, taken by a thread of gRPC's: so many ahead of the answers, and no more."""

    def __init__(self, many: Many, inputs: Iterable[Inputs], in_flight: int) -> None:
        self.failure: Exception | None = None  # of the inputs themselves
        self._many = many
        self._numbered = enumerate(inputs)
        self._room = threading.Semaphore(in_flight)
        self._refused: deque[Outcome] = deque()  # before they were sent
        self._closed = False

    def __iter__(self) -> _Sender:
        return self

    def __next__(self) -> bytes:
        while True:
            self._room.acquire()
            if self._closed:
                raise StopIteration
            try:
                number, inputs = next(self._numbered)
            except StopIteration:
                raise
            except Exception as error:
                self.failure = error
                raise StopIteration from None
            try:
                return self._many.encode(number, inputs)
            except DubitoClientError as error:
                self._refused.append((number, error))
                self._room.release()

    def refused(self) -> Iterator[Outcome]:
        while self._refused:
            yield self._refused.popleft()

    def answered(self) -> None:
        self._room.release()

    def close(self) -> None:
        self._closed = True
        self._room.release()


class Client:
    """A client of one server, for use in a `with` block; threads may share it.

    `target`: HOST:PORT. `timeout`: seconds, of every call that brings none of its own. `max_message_bytes`: limit of a
    request and of a reply. `retries`: attempts after the first, 0 to 4, of questions that found nobody, or a full queue
    that said when to come back; never beyond the call's time.

    `token` goes along with every call. `tls`: encrypt, and make sure of the server by the authorities that gRPC knows,
    or by `root_certificates`; `client_certificate` and `client_key` show who asks. Each of the three is PEM, as bytes
    or a file, and implies `tls`. `credentials`: gRPC's own, in their place.
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
        self._metadata = identity.metadata
        self._session = Session(timeout, retries, max_message_bytes, time.monotonic)
        self._closed = False
        options = channel_options(self._session)
        if identity.credentials is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, identity.credentials, options)

    predict = _blocking(calls.predict)
    predict_stream = _yielding(calls.predict_stream)
    _begin_many = _blocking(begin)
    evaluate = _blocking(calls.evaluate)
    observe = _blocking(calls.observe)
    models = _blocking(calls.models)
    model = _blocking(calls.model)
    load = _blocking(calls.load)
    unload = _blocking(calls.unload)
    ready = _blocking(calls.ready)

    def predict_many(
        self,
        model: str,
        inputs: Iterable[Inputs],
        *,
        in_flight: int = 64,
        timeout: float | None = None,
        **asked: Unpack[Asked],
    ) -> Iterator[Outcome]:
        """Predict for each of many inputs over one call, and yield (number, answer or error) as each is ready.

        The numbers count the inputs from 0; each is as `predict` takes it, and so are the other arguments, for all of
        them. Inputs are taken from their iterable as there is room: at most `in_flight` requests are under way. A
        refusal is an outcome of its own and ends nothing. `timeout`: seconds for everything; None: no end. Leaving the
        loop early ends the call.
        """
        many = self._begin_many(model, timeout, asked)
        sender = _Sender(many, inputs, check_in_flight(in_flight))
        if self._closed:
            raise Cancelled("the client is closed")
        ask: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(PATH)
        call = ask(sender, timeout=timeout, metadata=self._metadata)
        try:
            for payload in call:
                yield from sender.refused()
                yield read_outcome(payload)
                sender.answered()
            yield from sender.refused()
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        finally:
            call.cancel()
            sender.close()
        if sender.failure is not None:
            raise sender.failure

    def close(self) -> None:
        """Hang up; calls that are under way, and later ones, end with `Cancelled`."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self, step: Call | Pause) -> bytes | DubitoClientError:
        """Take one step: the reply's bytes, or the error that came in their place."""
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return b""
        if self._closed:
            return Cancelled("the client is closed")
        # Without serialisers gRPC passes bytes through.
        ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(step.path)
        try:
            reply = ask(step.payload, timeout=step.timeout, metadata=self._metadata, wait_for_ready=step.wait_for_ready)
        except grpc.RpcError as error:
            return from_rpc(error)
        return reply
