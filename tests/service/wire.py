"""What tests put on the wire and read from it: the "mlp" case's requests, and the details of a status."""

from __future__ import annotations

from typing import TypeVar

import grpc
import numpy as np
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from numpy.typing import NDArray

from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb

M = TypeVar("M", bound=Message)


def rows(count: int, data: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(data).normal(size=(count, 6)).astype(np.float32)


def asking(count: int = 3, data: int = 0, **sampling: int) -> pb.PredictRequest:
    """A request of so many rows; `data` tells its rows from others'."""
    inputs = [tensors.encode(rows(count, data), "input")]
    return pb.PredictRequest(model="mlp", inputs=inputs, sampling=pb.SamplingSpec(**sampling))  # type: ignore[arg-type]


def probabilities(reply: pb.PredictResponse) -> NDArray[np.float64]:
    return tensors.decode(reply.classification.probabilities)


def detail(error: grpc.RpcError, kind: type[M]) -> M:
    """The one detail that a status carries."""
    status = Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    [packed] = status.details
    found = kind()
    assert packed.Unpack(found)
    return found
