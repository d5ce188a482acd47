"""The errors a client raises, and how a gRPC status becomes one of them.

DubitoClientError
├── InvalidArgument        a value that was given; names the field, what came, what is accepted
├── NotFound               no such model or version
├── NotImplementedByServer the server does not do this (yet)
├── NotPossible            not as things stand: a version that cannot be loaded, a server that is not set up for it
├── Overloaded             the server's queue is full; says when to come back, where the server knows
├── MessageTooLarge        a request or reply above the limit of one side
├── AccessDenied           a token is missing, unknown or not for this call
├── TlsFailed              no secure connection: a certificate is not trusted, or one side speaks plaintext
├── DeadlineExceeded       no answer in time
├── Unavailable            nobody answers at the target
├── Cancelled              the call was cancelled, or the client was closed under it
├── ServerError            the server failed
└── ProtocolError          an answer that cannot be read
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status

_DETAILS = "grpc-status-details-bin"
_UNTRUSTED = re.compile(r"CERTIFICATE_VERIFY_FAILED: ([^:\]}]+)")
_OTHER_NAME = re.compile(r"(Hostname Verification Check failed|Peer name \S+ is not in peer certificate)")


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that was refused: what was given, and what is accepted; empty where the server did not say."""

    field: str
    given: str
    accepted: str


class DubitoClientError(Exception):
    """Root of every error that the client raises on purpose.

    `code` is the gRPC status that the server (or the channel) answered with, None where the client refused by itself.
    """

    code: grpc.StatusCode | None = None

    def __init__(self, message: str, violations: Iterable[Violation] = ()) -> None:
        super().__init__(message)
        self.violations = tuple(violations)

    @property
    def field(self) -> str:
        """The first field that was refused; empty where none is named."""
        return self.violations[0].field if self.violations else ""

    @property
    def given(self) -> str:
        """What was given for it."""
        return self.violations[0].given if self.violations else ""

    @property
    def accepted(self) -> str:
        """What would have been accepted."""
        return self.violations[0].accepted if self.violations else ""


class InvalidArgument(DubitoClientError):
    """A value is not accepted: `field` names it, `given` is what came, `accepted` what would do."""


class NotFound(DubitoClientError):
    """No model of that name, or no version of that number, is served."""


class NotImplementedByServer(DubitoClientError):
    """The server does not do this (yet)."""


class NotPossible(DubitoClientError):
    """Not as things stand: a version cannot be loaded, or the server is not set up for what is asked."""


class Overloaded(DubitoClientError):
    """The server's queue is full. `retry_after`: seconds to wait before the next attempt, None if unknown."""

    retry_after: float | None = None


class MessageTooLarge(DubitoClientError):
    """A request or a reply holds more bytes than one side accepts: send fewer rows per call, or raise the limit."""


class AccessDenied(DubitoClientError):
    """The server wants a token and got no good one (UNAUTHENTICATED), or not for this call (PERMISSION_DENIED)."""


class TlsFailed(DubitoClientError):
    """No secure connection came about: a certificate is not trusted, or the server speaks no TLS."""


class DeadlineExceeded(DubitoClientError):
    """No answer within the time that the caller gave."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unavailable(DubitoClientError):
    """Nobody answers at the target, or the connection broke."""


class Cancelled(DubitoClientError):
    """The call was cancelled before its answer came."""


class ServerError(DubitoClientError):
    """The server failed; the fault is not the request's."""


class ProtocolError(DubitoClientError):
    """An answer came that cannot be read."""


_KINDS: dict[grpc.StatusCode, type[DubitoClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.ALREADY_EXISTS: InvalidArgument,  # other labels of a prediction came before
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNIMPLEMENTED: NotImplementedByServer,
    grpc.StatusCode.FAILED_PRECONDITION: NotPossible,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Cancelled,
}


_STATUSES = {status.value[0]: status for status in grpc.StatusCode}


def refused(field: str, given: object, accepted: str) -> InvalidArgument:
    """Return the error for a value that the client itself refuses."""
    violation = Violation(field, str(given), accepted)
    return InvalidArgument(f"{field}: got {given}; accepted: {accepted}", [violation])


def from_status(
    code: grpc.StatusCode, message: str | None, trailers: Iterable[tuple[str, str | bytes]] | None = None
) -> DubitoClientError:
    """Return the error that a gRPC status means.

    `trailers` may hold a `google.rpc.Status` under `grpc-status-details-bin`: its BadRequest names the fields, its
    RetryInfo the delay. Details that cannot be read are passed over, so that they never hide the status itself.
    """
    violations, retry_after = _details(trailers or ())
    kind = _KINDS.get(code, ServerError)
    # gRPC's own refusal of a message's size shares its code with a full queue; only the text tells them apart.
    if kind is Overloaded and "larger than max" in (message or ""):
        kind = MessageTooLarge
    if kind is Unavailable:
        failure = _tls_failure(message or "")
        kind, message = (TlsFailed, failure) if failure else (kind, _hint(message or ""))
    text = message or "; ".join(f"{v.field}: got {v.given}; accepted: {v.accepted}" for v in violations)
    error = kind(text or f"the server answered {code.name}", violations)
    error.code = code
    if isinstance(error, Overloaded):
        error.retry_after = retry_after
    return error


def from_error(code: int, message: str, field: str, retry_after: float | None) -> DubitoClientError:
    """Return the error that a refusal inside a stream means: `code` of google.rpc.Code."""
    error = from_status(_STATUSES.get(code, grpc.StatusCode.UNKNOWN), message)
    if field:
        error.violations = (_violation(field, message.removeprefix(f"{field}: ")),)
    if isinstance(error, Overloaded):
        error.retry_after = retry_after
    return error


def _tls_failure(text: str) -> str:
    """Return what is wrong with TLS; empty where it is something else. gRPC tells it by the text alone."""
    if found := _UNTRUSTED.search(text):
        return (
            f"the server's certificate is not trusted: {found[1]}; name its authority by root_certificates, or --ca "
            "on the command line"
        )
    if found := _OTHER_NAME.search(text):
        return f"the server's certificate is of another name than the target's: {found[0]}"
    if "WRONG_VERSION_NUMBER" in text:
        return "the server speaks no TLS here: connect without tls, or to another port"
    return text if "handshake failed" in text.lower() else ""


def _hint(text: str) -> str:
    """Add what may be behind a server that hangs up at once, which says nothing itself."""
    if "failed to connect" in text and "Socket closed" in text:
        return f"{text} (it hung up: does it want TLS, a client's certificate, or have too many connections?)"
    return text


def from_rpc(error: grpc.RpcError) -> DubitoClientError:
    """Return the error that a failed call, blocking or asynchronous, means."""
    if isinstance(error, (grpc.Call, grpc.aio.AioRpcError)):
        return from_status(error.code(), error.details(), error.trailing_metadata())
    return ServerError(f"the call failed without a status: {error}")


def _details(trailers: Iterable[tuple[str, str | bytes]]) -> tuple[list[Violation], float | None]:
    """Return the fields that were refused and the delay in seconds."""
    violations: list[Violation] = []
    retry_after: float | None = None
    for packed in _status(trailers).details:
        try:
            if packed.Is(BadRequest.DESCRIPTOR):
                bad = BadRequest.FromString(packed.value)
                violations += [_violation(v.field, v.description) for v in bad.field_violations]
            elif packed.Is(RetryInfo.DESCRIPTOR):
                delay = RetryInfo.FromString(packed.value).retry_delay
                retry_after = max(0.0, delay.seconds + delay.nanos / 1e9)
        except DecodeError:
            continue
    return violations, retry_after


def _status(trailers: Iterable[tuple[str, str | bytes]]) -> Status:
    for key, value in trailers:
        if key == _DETAILS and isinstance(value, bytes):
            try:
                return Status.FromString(value)
            except DecodeError:
                break
    return Status()


def _violation(field: str, description: str) -> Violation:
    """Read a description of the form `got X; accepted: Y`; another form is all about what is accepted."""
    given, separator, accepted = description.removeprefix("got ").partition("; accepted: ")
    return Violation(field, given, accepted) if separator else Violation(field, "", description)
