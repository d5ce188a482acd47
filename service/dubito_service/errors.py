"""What the service itself refuses, and the one table from error to gRPC status.

DubitoError
├── NotServed (an UnknownModel)  names the field, what came, what is served
├── StillLoading                 there soon; says when to come back
├── LoadFailed                   a version that was asked for cannot be loaded, and why
├── LoadingOff                   nothing is loaded or unloaded by request here; names the setting
├── Unauthenticated              no token, or one that is not known or has expired
├── Forbidden                    the token is not for this call; says what would be
├── TooManyCalls                 of all callers, of one, or in a second; says when to come back
├── ClientIdle                   the client neither sends nor reads
├── QueueFull                    says when to come back
├── OutOfMemory                  the request alone, in the smallest passes, takes more memory than there is
├── WorkerLost                   the thread that drew has died and is started anew; says when to come back
├── DeadlineMissed               nothing to answer with before the deadline
├── NoFiniteAnswer               the network's answer to some rows is no number; says which
├── Draining                     the server finishes what it has, and takes nothing new
├── StateUnset                   nothing is kept of labels here; names the setting
├── StateUnavailable             the store of observations does not answer; says when to come back
├── AlreadyObserved              other labels of this prediction came before
├── CannotOpenState              the store of observations cannot be opened
└── CannotListen                 the address is taken, or not ours
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status

from dubito_models.errors import (
    DubitoError,
    InvalidArgument,
    NotImplementedYet,
    RepositoryUnavailable,
    UnknownModel,
)

log = logging.getLogger(__name__)

DETAILS = "grpc-status-details-bin"
LONGEST_FIELD, _LONGEST_VALUE, _LONGEST_MESSAGE = 128, 256, 512  # bytes: all of it must fit gRPC's 8 KiB of metadata

_NAMED_ROWS = 8


class NotServed(UnknownModel):
    """No such model or version is served: `field` names which, `given` is what came, `accepted` what is served."""

    def __init__(self, field: str, given: object, accepted: str) -> None:
        super().__init__(f"{field}: got {given}; accepted: {accepted}")
        self.field, self.given, self.accepted = field, str(given), accepted


class StillLoading(DubitoError):
    """The version is being loaded and warmed up; `retry_after` seconds may do."""

    def __init__(self, model: str, version: int | None, retry_after: float = 1.0) -> None:
        what = "the server is starting, and loads models" if version is None else f"{model} version {version} is loaded"
        super().__init__(f"{what} just now; come back in {retry_after:.2g} s")
        self.retry_after = retry_after


class LoadFailed(DubitoError):
    """A version cannot be loaded: `reason` says why. What was served before still is."""

    def __init__(self, model: str, version: int, reason: str) -> None:
        super().__init__(f"{model} version {version} failed to load: {reason}")
        self.reason = reason


class LoadingOff(DubitoError):
    """The server neither loads nor unloads by request."""

    def __init__(self) -> None:
        super().__init__("models are loaded at the start alone here: dubito serve --model-control none")


class Unauthenticated(DubitoError):
    """A call does not say who makes it: what came, and what is accepted."""

    def __init__(self, given: str, accepted: str) -> None:
        super().__init__(f"got {given}; accepted: {accepted}")


class Forbidden(DubitoError):
    """The caller may not make this call."""


class TooManyCalls(DubitoError):
    """More calls than are allowed; `retry_after` seconds are likely to make room."""

    def __init__(self, what: str, retry_after: float) -> None:
        super().__init__(f"too many calls: {what}; come back in {retry_after:.2g} s")
        self.retry_after = retry_after


class ClientIdle(DubitoError):
    """The client has neither sent nor read anything for too long."""


class QueueFull(DubitoError):
    """The queue holds all the work it may; `retry_after` seconds are likely to make room."""

    def __init__(self, what: str, retry_after: float, which: str = "the queue") -> None:
        super().__init__(f"{which} is full: {what}; come back in {retry_after:.2g} s")
        self.retry_after = retry_after


class OutOfMemory(DubitoError):
    """A request takes more memory than there is, even alone and in the smallest passes."""


class WorkerLost(DubitoError):
    """The thread that had the request has died; another is there in `retry_after` seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"the worker of this request has ended; another one starts; come back in {retry_after:.2g} s")
        self.retry_after = retry_after


class DeadlineMissed(DubitoError):
    """The deadline came before there was anything to answer with."""


class NoFiniteAnswer(DubitoError):
    """The network's answer to some rows of a request, of these numbers in order, is NaN or infinite."""

    def __init__(self, rows: Sequence[int]) -> None:
        more = f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
        named = ", ".join(map(str, rows[:_NAMED_ROWS]))
        self.field, self.given = "inputs", f"row{'s' * (len(rows) > 1)} {named}{more} (from 0)"
        self.accepted = "rows to which the network's answer is finite"
        super().__init__(f"{self.field}: got {self.given}; accepted: {self.accepted}")


class Draining(DubitoError):
    """The server is stopping."""


class StateUnset(DubitoError):
    """The server keeps no observations, which `field` would need."""

    def __init__(self, field: str, given: object) -> None:
        self.field, self.given = field, str(given)
        self.accepted = "this only by a server that keeps observations: dubito serve --state (DUBITO_STATE)"
        super().__init__(f"{field}: got {given}; accepted: {self.accepted}")


class StateUnavailable(DubitoError):
    """The store of observations does not answer now; `retry_after` seconds may help."""

    def __init__(self, what: str, retry_after: float = 1.0) -> None:
        super().__init__(f"the store of observations {what}; come back in {retry_after:.2g} s")
        self.retry_after = retry_after


class AlreadyObserved(DubitoError):
    """Other labels of the same prediction came before, and count."""

    def __init__(self, prediction_id: str) -> None:
        self.field, self.given = "label", f"other labels of {prediction_id} than before"
        self.accepted = "the same labels once more; each prediction counts once"
        super().__init__(f"{self.field}: got {self.given}; accepted: {self.accepted}")


class CannotOpenState(DubitoError):
    """The store of observations cannot be opened."""


class CannotListen(DubitoError):
    """The server cannot listen at the address."""


_CODES: dict[type[DubitoError], grpc.StatusCode] = {
    InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    NotServed: grpc.StatusCode.NOT_FOUND,
    StillLoading: grpc.StatusCode.UNAVAILABLE,
    LoadFailed: grpc.StatusCode.FAILED_PRECONDITION,
    LoadingOff: grpc.StatusCode.FAILED_PRECONDITION,
    RepositoryUnavailable: grpc.StatusCode.UNAVAILABLE,
    NotImplementedYet: grpc.StatusCode.UNIMPLEMENTED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    TooManyCalls: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ClientIdle: grpc.StatusCode.DEADLINE_EXCEEDED,
    QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    OutOfMemory: grpc.StatusCode.RESOURCE_EXHAUSTED,
    WorkerLost: grpc.StatusCode.UNAVAILABLE,
    DeadlineMissed: grpc.StatusCode.DEADLINE_EXCEEDED,
    NoFiniteAnswer: grpc.StatusCode.OUT_OF_RANGE,
    Draining: grpc.StatusCode.UNAVAILABLE,
    StateUnset: grpc.StatusCode.FAILED_PRECONDITION,
    StateUnavailable: grpc.StatusCode.UNAVAILABLE,
    AlreadyObserved: grpc.StatusCode.ALREADY_EXISTS,
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A status to end a call with."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, bytes], ...] = ()


def refusal(error: Exception) -> Refusal | None:
    """Return the status that an error means; None where it is not the caller's to know."""
    code = _CODES.get(type(error)) if isinstance(error, DubitoError) else None
    if code is None:
        return None
    message = shorten(str(error), _LONGEST_MESSAGE)
    detail: Message | None = None
    if isinstance(error, (InvalidArgument, NotServed, NoFiniteAnswer, StateUnset, AlreadyObserved)):
        detail = _bad_request(error.field, error.given, error.accepted, code.name)
    elif isinstance(error, (QueueFull, WorkerLost, TooManyCalls, StateUnavailable, StillLoading)):
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        detail = RetryInfo(retry_delay=delay)
    if detail is None:
        return Refusal(code, message)
    packed = Packed()
    packed.Pack(detail)
    number: int = code.value[0]
    status = Status(code=number, message=message, details=[packed])
    return Refusal(code, message, ((DETAILS, status.SerializeToString()),))


def told(error: BaseException, method: str) -> Refusal:
    """Return the status that a caller is told; of what is not its to know an id, which stands in the log."""
    found = refusal(error) if isinstance(error, Exception) else None
    if found is not None:
        return found
    number = secrets.token_hex(4)
    log.error("call failed method=%s error_id=%s", method, number, exc_info=error)
    return Refusal(grpc.StatusCode.INTERNAL, f"internal error {number}; the server's log has more under this id")


def _bad_request(field: str, given: str, accepted: str, reason: str) -> BadRequest:
    given, accepted = shorten(given, _LONGEST_VALUE), shorten(accepted, _LONGEST_VALUE)
    violation = BadRequest.FieldViolation(
        field=shorten(field, LONGEST_FIELD),
        description=f"got {given}; accepted: {accepted}",
        reason=reason,
    )
    return BadRequest(field_violations=[violation])


def shorten(text: str, most: int) -> str:
    """Cut a text to at most `most` bytes of UTF-8."""
    data = text.encode(errors="replace")
    return text if len(data) <= most else data[: most - 3].decode(errors="ignore") + "..."
