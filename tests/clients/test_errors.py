"""Laws of the errors: every status has one meaning, and its details are read or passed over, never in the way."""

from __future__ import annotations

import pickle

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from dubito_client import errors


def trailers(*details: object) -> list[tuple[str, str | bytes]]:
    packed = [any_pb2.Any() for _ in details]
    for holder, detail in zip(packed, details, strict=True):
        holder.Pack(detail)
    return [("other", "text"), ("grpc-status-details-bin", status_pb2.Status(details=packed).SerializeToString())]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidArgument),
        (grpc.StatusCode.NOT_FOUND, errors.NotFound),
        (grpc.StatusCode.UNIMPLEMENTED, errors.NotImplementedByServer),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.NotPossible),
        (grpc.StatusCode.ALREADY_EXISTS, errors.InvalidArgument),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Overloaded),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.CANCELLED, errors.Cancelled),
        (grpc.StatusCode.UNAUTHENTICATED, errors.AccessDenied),
        (grpc.StatusCode.INTERNAL, errors.ServerError),
        (grpc.StatusCode.UNKNOWN, errors.ServerError),
        (grpc.StatusCode.DATA_LOSS, errors.ServerError),
    ],
)
def test_each_status_becomes_its_typed_error(code: grpc.StatusCode, kind: type[errors.DubitoClientError]) -> None:
    error = errors.from_status(code, "why")
    assert type(error) is kind
    assert (error.code, str(error)) == (code, "why")


def test_every_status_that_grpc_knows_has_an_error() -> None:
    assert all(str(errors.from_status(code, None)) for code in grpc.StatusCode if code is not grpc.StatusCode.OK)


def test_field_violations_say_what_was_given_and_what_is_accepted() -> None:
    violation = error_details_pb2.BadRequest.FieldViolation
    bad = error_details_pb2.BadRequest(
        field_violations=[
            violation(field="sampling.max_draws", description="got 0; accepted: 1 to 4096; or absent"),
            violation(field="model", description="a name"),
        ]
    )
    error = errors.from_status(grpc.StatusCode.INVALID_ARGUMENT, "", trailers(bad))
    assert (error.field, error.given, error.accepted) == ("sampling.max_draws", "0", "1 to 4096; or absent")
    assert error.violations[1] == errors.Violation("model", "", "a name")
    assert "sampling.max_draws: got 0" in str(error)


def test_a_full_queue_says_when_to_come_back() -> None:
    info = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000))
    error = errors.from_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", trailers(info))
    assert isinstance(error, errors.Overloaded)
    assert error.retry_after == 1.5


def test_a_message_too_large_is_told_from_a_full_queue() -> None:
    text = "SERVER: Received message larger than max (5 vs. 4)"
    assert type(errors.from_status(grpc.StatusCode.RESOURCE_EXHAUSTED, text)) is errors.MessageTooLarge


@pytest.mark.parametrize("garbage", [b"\xff\xff", status_pb2.Status(details=[any_pb2.Any()]).SerializeToString()])
def test_details_that_cannot_be_read_do_not_hide_the_status(garbage: bytes) -> None:
    error = errors.from_status(grpc.StatusCode.NOT_FOUND, "no such model", [("grpc-status-details-bin", garbage)])
    assert type(error) is errors.NotFound
    assert error.field == ""


def test_a_refusal_of_the_client_itself_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(errors.refused("draws", -1, "0 or more")))
    assert (error.field, error.given, error.accepted) == ("draws", "-1", "0 or more")
    assert str(error) == "draws: got -1; accepted: 0 or more"
