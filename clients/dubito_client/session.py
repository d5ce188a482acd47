"""What the calls of one client share, and the steps that a call is made of.

A verb (calls.py) is a generator: it yields a `Call` or a `Pause`, is sent the reply's bytes or thrown the error, and
returns its result. It touches neither network nor clock, so one text serves the blocking and the asynchronous client.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from dubito_client.answers import ModelInfo
from dubito_client.errors import DeadlineExceeded, refused
from dubito_protos import uncertainty_pb2 as pb

T = TypeVar("T")

UNCERTAINTY = pb.DESCRIPTOR.services_by_name["UncertaintyService"].full_name
MODELS = pb.DESCRIPTOR.services_by_name["ModelService"].full_name

# Asking twice does no harm: questions, and labels, which count once. Loading and unloading are never repeated.
_REPEATABLE = {UNCERTAINTY: ("Predict", "Evaluate", "Observe"), MODELS: ("ListModels", "GetModel")}
MAX_RETRIES = 4  # gRPC makes at most five attempts


@dataclass(frozen=True, slots=True)
class Call:
    """One unary call to make: bytes out, bytes back."""

    path: str
    payload: bytes
    timeout: float  # seconds
    wait_for_ready: bool = False  # wait for a connection instead of failing without one


@dataclass(frozen=True, slots=True)
class Pause:
    """Seconds to wait; answered with empty bytes."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Open:
    """A call to start whose replies are many, in place of the one before; answered with empty bytes."""

    path: str
    payload: bytes
    timeout: float  # seconds


@dataclass(frozen=True, slots=True)
class Next:
    """The next reply of the call that was opened; empty bytes after the last."""


Steps: TypeAlias = Generator[Call | Pause, bytes, T]
Stream: TypeAlias = Generator[Call | Pause | Open | Next | T, bytes, None]  # yields what the caller gets, too


@dataclass(frozen=True, slots=True)
class Session:
    """Limits, clock and known models of one client; any number of calls may use it at once.

    Raises `InvalidArgument` for limits that no call could keep.
    """

    timeout: float  # seconds, of a call that brings none of its own
    retries: int  # attempts after the first
    max_message_bytes: int
    clock: Callable[[], float]  # seconds, monotonic
    # What GetModel last said, by name and version as asked (None: the newest). May be stale: see calls.py.
    known: dict[tuple[str, int | None], ModelInfo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_timeout(self.timeout)
        if not 0 <= self.retries <= MAX_RETRIES:
            raise refused("retries", self.retries, f"0 to {MAX_RETRIES}")
        if not 0 < self.max_message_bytes < 2**31:
            raise refused("max_message_bytes", self.max_message_bytes, "1 to 2147483647")

    def deadline(self, timeout: float | None) -> Deadline:
        """Start the time of a call, in seconds; None takes the client's own."""
        if timeout is not None:
            _check_timeout(timeout)
        seconds = self.timeout if timeout is None else timeout
        return Deadline(self.clock, seconds, self.clock() + seconds)


@dataclass(frozen=True, slots=True)
class Deadline:
    """The end of a call's time, whatever number of steps it takes."""

    clock: Callable[[], float]
    seconds: float  # that the caller gave
    end: float

    def left(self) -> float:
        """Return the seconds that are left, more than 0; `DeadlineExceeded` where none are."""
        left = self.end - self.clock()
        if left <= 0:
            raise self.missed()
        return left

    def missed(self) -> DeadlineExceeded:
        """Return the error of a call that ran out of time."""
        return DeadlineExceeded(f"no answer within {self.seconds:g} s")


def channel_options(session: Session) -> list[tuple[str, Any]]:
    """Return the options of a gRPC channel that keeps the session's limits and retries."""
    return [
        ("grpc.max_send_message_length", session.max_message_bytes),
        ("grpc.max_receive_message_length", session.max_message_bytes),
        ("grpc.service_config", service_config(session.retries)),
        # gRPC repeats only what it still holds, by default no more than 256 KiB of a request.
        ("grpc.per_rpc_retry_buffer_size", session.max_message_bytes),
        # A server that starts or restarts is found within seconds, not after gRPC's default of up to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 3000),
    ]


def service_config(retries: int) -> str:
    """Return the service config by which gRPC itself repeats the calls that may be repeated, within their deadline."""
    if not retries:
        return json.dumps({})
    names = [{"service": service, "method": method} for service, methods in _REPEATABLE.items() for method in methods]
    policy = {
        "maxAttempts": retries + 1,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": policy}]})


def _check_timeout(timeout: float) -> None:
    if not (math.isfinite(timeout) and timeout > 0):
        raise refused("timeout", timeout, "seconds, more than 0")
