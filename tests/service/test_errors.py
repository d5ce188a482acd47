"""The table from error to status: nothing of the inside shows, and every detail fits gRPC's metadata."""

from __future__ import annotations

import grpc
import pytest

from dubito_models.errors import CorruptVersion, DubitoError, InvalidArgument, NotImplementedYet, UnknownModel
from dubito_service.errors import (
    ClientIdle,
    DeadlineMissed,
    Draining,
    Forbidden,
    NoFiniteAnswer,
    NotServed,
    QueueFull,
    TooManyCalls,
    Unauthenticated,
    refusal,
    shorten,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidArgument("rows", 0, "at least 1"), grpc.StatusCode.INVALID_ARGUMENT),
        (UnknownModel("no such model"), grpc.StatusCode.NOT_FOUND),
        (NotServed("model", "x", "y"), grpc.StatusCode.NOT_FOUND),
        (NotImplementedYet("later"), grpc.StatusCode.UNIMPLEMENTED),
        (QueueFull("10 of 10 rows", 0.5), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (Unauthenticated("no token", "a token"), grpc.StatusCode.UNAUTHENTICATED),
        (Forbidden("not for this"), grpc.StatusCode.PERMISSION_DENIED),
        (TooManyCalls("4 of 4", 0.1), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (ClientIdle("it is silent"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (DeadlineMissed("too late"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (NoFiniteAnswer([3, 7]), grpc.StatusCode.OUT_OF_RANGE),
        (Draining("the end"), grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_an_error_that_is_the_caller_s_business_has_a_status(error: DubitoError, code: grpc.StatusCode) -> None:
    found = refusal(error)
    assert found is not None
    assert found.code is code
    assert found.message == str(error)


@pytest.mark.parametrize("error", [CorruptVersion("x"), ValueError("x"), DubitoError("x")])
def test_any_other_error_has_none(error: Exception) -> None:
    assert refusal(error) is None


@pytest.mark.parametrize("letter", ["x", "\u00fc", "\U0001f600", "\0"])
def test_the_longest_status_fits_in_8_kib(letter: str) -> None:
    """The message travels percent-encoded, up to three bytes for one; the details in base64."""
    long = letter * 10**6
    found = refusal(InvalidArgument(long, long, long))
    assert found is not None
    [(_, packed)] = found.trailers
    assert 3 * len(found.message.encode()) + len(packed) * 4 / 3 < 8000


def test_a_text_is_cut_between_characters() -> None:
    assert shorten("\u00fc" * 10, 12) == "\u00fc" * 4 + "..."
    assert shorten("short", 12) == "short"
