"""Many predictions over one call: what goes out, and what to make of what comes back; without the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from dubito_client.answers import ModelInfo, Prediction
from dubito_client.calls import describe, fill
from dubito_client.errors import DubitoClientError, ProtocolError, from_error, refused
from dubito_client.inputs import Inputs, named_arrays
from dubito_client.replies import parse, to_prediction
from dubito_client.requests import INT64, Asked, prediction_request, text, whole
from dubito_client.session import UNCERTAINTY, Session, Steps
from dubito_protos import uncertainty_pb2 as pb

PATH = f"/{UNCERTAINTY}/PredictBulk"
Outcome: TypeAlias = tuple[int, Prediction | DubitoClientError]  # with the number of its inputs, from 0


@dataclass(frozen=True, slots=True)
class Many:
    """The requests of one call: all of one version, and alike but for their inputs."""

    template: pb.PredictRequest
    info: ModelInfo
    max_message_bytes: int

    def encode(self, number: int, inputs: Inputs) -> bytes:
        """Write the request of these inputs; raises what is wrong with them."""
        request = pb.PredictRequest()
        request.CopyFrom(self.template)
        request.id = str(number)
        fill(request, named_arrays(inputs, self.info.inputs), self.max_message_bytes)
        return request.SerializeToString()


def begin(session: Session, model: str, timeout: float | None, asked: Asked) -> Steps[Many]:
    """Ask what the model is, unless that is known, and fix what all requests have in common."""
    request = prediction_request(text("model", model), **asked)
    about = pb.GetModelRequest(model=request.model, version=whole("version", asked.get("version"), *INT64))
    info = yield from describe(session, session.deadline(timeout), about)
    request.version = info.version  # so that all answers are of the version that was described
    return Many(request, info, session.max_message_bytes)


def check_in_flight(in_flight: int) -> int:
    """Check how many requests may be under way at once."""
    if not isinstance(in_flight, int) or in_flight < 1:
        raise refused("in_flight", in_flight, "a whole number, at least 1")
    return in_flight


def read_outcome(payload: bytes) -> Outcome:
    """Read one reply: an answer, or the error that one request got."""
    reply = parse(pb.PredictBulkResponse, payload)
    if not reply.id.isdecimal():
        raise ProtocolError(f"a reply came to {reply.id!r}, which was not asked")
    number = int(reply.id)
    if reply.WhichOneof("result") == "response":
        return number, to_prediction(reply.response)
    error = reply.error
    retry = error.retry_seconds if error.HasField("retry_seconds") else None
    return number, from_error(error.code, error.message, error.field, retry)
