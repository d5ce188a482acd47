"""The client: predictions, and how far to trust them, from a dubito server; needs no torch."""

from dubito_client.aio import AsyncClient
from dubito_client.answers import (
    Answer,
    Calibration,
    Column,
    Evaluation,
    InputSignature,
    ModelInfo,
    ModelStatus,
    Prediction,
    Replay,
    Site,
    Timings,
)
from dubito_client.client import Client
from dubito_client.errors import (
    AccessDenied,
    Cancelled,
    DeadlineExceeded,
    DubitoClientError,
    InvalidArgument,
    MessageTooLarge,
    NotFound,
    NotImplementedByServer,
    Overloaded,
    ProtocolError,
    ServerError,
    Unavailable,
    Violation,
)
from dubito_client.stopping import Stopping

__all__ = [
    "AccessDenied",
    "Answer",
    "AsyncClient",
    "Calibration",
    "Cancelled",
    "Client",
    "Column",
    "DeadlineExceeded",
    "DubitoClientError",
    "Evaluation",
    "InputSignature",
    "InvalidArgument",
    "MessageTooLarge",
    "ModelInfo",
    "ModelStatus",
    "NotFound",
    "NotImplementedByServer",
    "Overloaded",
    "Prediction",
    "ProtocolError",
    "Replay",
    "ServerError",
    "Site",
    "Stopping",
    "Timings",
    "Unavailable",
    "Violation",
]
