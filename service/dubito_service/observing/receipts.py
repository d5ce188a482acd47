"""Receipts: what a caller keeps of a prediction, and brings back with its labels; signed, so that no replica asks.

A receipt is a byte of format, an HMAC-SHA256 (RFC 2104) and the message of receipt.proto that it is of. It hides
nothing from the caller, who has the prediction anyway; it only cannot be made or changed without the key.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from dubito_models.calibration import Calibration
from dubito_models.calibration.calibration import uncertainty_of
from dubito_models.errors import InvalidArgument
from dubito_models.predictive import Classification, Predictive, Validity
from dubito_protos import receipt_pb2, tensors
from dubito_protos import uncertainty_pb2 as pb

Array = NDArray[np.float64]

KEY_BYTES = 32
MOST_KEY_BYTES = 4096
DAY = 86_400.0  # seconds

_FORMAT = b"\x01"
_DOMAIN = b"dubito receipt 1\x00"  # a key that signs other things too signs none of them as a receipt
_MAC_BYTES = hashlib.sha256().digest_size
_FAST_CLOCK = 300.0  # seconds by which another replica's clock may be ahead
_VALIDITY = {
    Validity.NONE: pb.CALIBRATION_VALIDITY_NONE,
    Validity.APPROXIMATE: pb.CALIBRATION_VALIDITY_APPROXIMATE,
    Validity.EXACT: pb.CALIBRATION_VALIDITY_EXACT,
}
_VALIDITIES = {code: validity for validity, code in _VALIDITY.items()}


@dataclass(frozen=True, slots=True)
class Classified:
    """What was said of rows of K classes."""

    probabilities: Array  # (B, K)
    prediction_set: NDArray[np.bool_] | None  # (B, K)


@dataclass(frozen=True, slots=True)
class Regressed:
    """What was said of rows of K targets; None where that was not known or not asked."""

    mean: Array  # (B, K)
    total_variance: Array | None  # (B, K)
    base_interval: Array | None  # (B, K, 2)
    prediction_interval: Array | None  # (B, K, 2)


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a calibration scores a row: the function's name and parameters (see `nonconformity`)."""

    method: str
    penalty: float
    regular_rank: int
    floor: float


@dataclass(frozen=True, slots=True)
class Drawn:
    """How an answer was drawn; `draws`: of each row, (B,)."""

    seed: int
    design: str
    scope: str
    draws: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Receipt:
    """A prediction as far as its labels need it to be scored.

    `validity` is of the draws, whatever coverage a stream asked for. `coverage` is what was asked, `served_coverage` at
    what the sets or intervals were made: by a stream from 0 (nothing) to 1 (everything). `issued`: seconds since 1970.
    """

    prediction_id: str
    model: str
    version: int
    calibration_id: str
    validity: Validity
    issued: float
    answer: Classified | Regressed
    drawn: Drawn
    stream: str = ""
    coverage: float | None = None
    served_coverage: float | None = None
    epistemic: Array | None = None  # (B,)
    scoring: Scoring | None = None
    groups: NDArray[np.int64] | None = None  # (B,)
    inputs: Mapping[str, NDArray[Any]] | None = None  # each (B, ...)

    @property
    def rows(self) -> int:
        """B."""
        return len(self.drawn.draws)

    @property
    def outputs(self) -> int:
        """K."""
        answer = self.answer
        return int((answer.probabilities if isinstance(answer, Classified) else answer.mean).shape[1])

    @property
    def bytes(self) -> int:
        """About as many as it takes when it is signed."""
        parts = [getattr(self.answer, field.name) for field in fields(self.answer)]
        parts += [self.drawn.draws, self.epistemic, self.groups, *(self.inputs or {}).values()]
        return 1024 + sum(int(part.nbytes) for part in parts if part is not None)


def new_prediction_id() -> str:
    """Return 128 random bits in hexadecimal digits."""
    return secrets.token_hex(16)


def make_receipt(
    predictive: Predictive,
    calibration: Calibration | None,
    *,
    model: str,
    version: int,
    prediction_id: str,
    issued: float,
    stream: str = "",
    coverage: float | None = None,
    served_coverage: float | None = None,
    groups: NDArray[np.int64] | None = None,
    inputs: Mapping[str, NDArray[Any]] | None = None,
) -> Receipt:
    """Keep of an answer, made with a calibration, what its labels will need."""
    answer = predictive.answer
    conformal = calibration.conformal[-1].conformal if calibration is not None and calibration.conformal else None
    kept: Classified | Regressed
    if isinstance(answer, Classification):
        kept = Classified(answer.probabilities, answer.prediction_set)
    else:
        kept = Regressed(answer.mean, answer.total_variance, answer.base_interval, answer.prediction_interval)
    return Receipt(
        prediction_id=prediction_id,
        model=model,
        version=version,
        calibration_id=predictive.calibration_id,
        validity=predictive.calibration_validity,
        issued=issued,
        answer=kept,
        drawn=Drawn(predictive.seed, predictive.design, predictive.scope, predictive.draws),
        stream=stream,
        coverage=coverage,
        served_coverage=served_coverage,
        epistemic=uncertainty_of(
            answer, "mutual_information" if isinstance(answer, Classification) else "epistemic_deviation"
        ),
        scoring=None
        if conformal is None
        else Scoring(conformal.method, conformal.penalty, conformal.regular_rank, conformal.floor),
        groups=groups,
        inputs=inputs,
    )


# --- Signing ---


def sign(receipt: Receipt, key: bytes) -> bytes:
    """Return the bytes that a caller gets."""
    payload = _write(receipt).SerializeToString()
    return _FORMAT + _mac(key, payload) + payload


def verify(data: bytes, key: bytes, *, now: float, days: float) -> Receipt:
    """Read a receipt that was signed by this key, at most so many days before `now` (seconds since 1970).

    Raises `InvalidArgument` for any other bytes.
    """
    accepted = "the receipt of a prediction of this server, or of one that shares its key, unchanged"
    payload = data[1 + _MAC_BYTES :]
    found = data[1 : 1 + _MAC_BYTES]
    signed = hmac.compare_digest(_mac(key, payload), found)  # in constant time, also where the lengths differ
    if data[:1] != _FORMAT or not signed:
        raise InvalidArgument("receipt", f"{len(data)} bytes that were not signed by this server's key", accepted)
    try:
        receipt = _read(receipt_pb2.Receipt.FromString(payload))
    except (DecodeError, tensors.TensorError, KeyError) as error:  # of another release
        raise InvalidArgument("receipt", f"one that cannot be read ({type(error).__name__})", accepted) from None
    age = now - receipt.issued
    if not -_FAST_CLOCK <= age <= days * DAY:
        raise InvalidArgument("receipt", f"one issued {age / DAY:.1f} days ago", f"receipts of the last {days:g} days")
    return receipt


def _mac(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, _DOMAIN + payload, "sha256")


def _write(receipt: Receipt) -> receipt_pb2.Receipt:
    message = receipt_pb2.Receipt(
        prediction_id=receipt.prediction_id,
        model=receipt.model,
        version=receipt.version,
        calibration_id=receipt.calibration_id,
        validity=_VALIDITY[receipt.validity],
        issued=receipt.issued,
        stream=receipt.stream,
        coverage=receipt.coverage,
        served_coverage=receipt.served_coverage,
        seed=receipt.drawn.seed,
        design=receipt.drawn.design,
        mask_scope=receipt.drawn.scope,
        draws=tensors.encode(receipt.drawn.draws),
        epistemic=_encode(receipt.epistemic),
        groups=_encode(receipt.groups),
        inputs=[tensors.encode(array, name) for name, array in (receipt.inputs or {}).items()],
    )
    answer, scoring = receipt.answer, receipt.scoring
    written = {field.name: _encode(getattr(answer, field.name)) for field in fields(answer)}
    if isinstance(answer, Classified):
        message.classified.CopyFrom(receipt_pb2.Classified(**written))
    else:
        message.regressed.CopyFrom(receipt_pb2.Regressed(**written))
    if scoring is not None:
        message.scoring.CopyFrom(
            receipt_pb2.Scoring(
                method=scoring.method,
                penalty=scoring.penalty,
                regular_rank=scoring.regular_rank,
                floor=scoring.floor,
            )
        )
    return message


def _read(message: receipt_pb2.Receipt) -> Receipt:
    answer: Classified | Regressed
    if message.WhichOneof("answer") == "classified":
        classified = message.classified
        answer = Classified(tensors.decode(classified.probabilities), _decode(classified, "prediction_set"))
    else:
        regressed = message.regressed
        names = ("total_variance", "base_interval", "prediction_interval")
        answer = Regressed(tensors.decode(regressed.mean), *(_decode(regressed, name) for name in names))
    scoring = message.scoring
    return Receipt(
        prediction_id=message.prediction_id,
        model=message.model,
        version=message.version,
        calibration_id=message.calibration_id,
        validity=_VALIDITIES[message.validity],
        issued=message.issued,
        answer=answer,
        drawn=Drawn(message.seed, message.design, message.mask_scope, tensors.decode(message.draws)),
        stream=message.stream,
        coverage=message.coverage if message.HasField("coverage") else None,
        served_coverage=message.served_coverage if message.HasField("served_coverage") else None,
        epistemic=_decode(message, "epistemic"),
        scoring=Scoring(scoring.method, scoring.penalty, scoring.regular_rank, scoring.floor)
        if message.HasField("scoring")
        else None,
        groups=_decode(message, "groups"),
        inputs={tensor.name: tensors.decode(tensor) for tensor in message.inputs} or None,
    )


def _encode(array: NDArray[Any] | None) -> pb.Tensor | None:
    return None if array is None else tensors.encode(array)


def _decode(message: Any, name: str) -> NDArray[Any] | None:
    return tensors.decode(getattr(message, name)) if message.HasField(name) else None


def write_inputs(inputs: Mapping[str, NDArray[Any]]) -> bytes:
    """Return inputs as bytes, to be stored."""
    message = receipt_pb2.Receipt(inputs=[tensors.encode(array, name) for name, array in inputs.items()])
    return message.SerializeToString()


def read_inputs(data: bytes) -> dict[str, NDArray[Any]]:
    """Return what `write_inputs` wrote."""
    return {tensor.name: tensors.decode(tensor) for tensor in receipt_pb2.Receipt.FromString(data).inputs}


# --- Keys ---


def new_key() -> bytes:
    """Return a random key."""
    return secrets.token_bytes(KEY_BYTES)


def read_key(path: Path) -> bytes:
    """Read a key from a file; `InvalidArgument` for one that is missing, short or long.

    A line end after it is not part of it.
    """
    accepted = f"a file of {KEY_BYTES} to {MOST_KEY_BYTES} bytes, the same for all replicas"
    try:
        with path.open("rb") as file:
            key = file.read(MOST_KEY_BYTES + 1).rstrip(b"\r\n")
    except OSError as error:
        raise InvalidArgument("receipt_key_file", f"{path} ({error.strerror})", accepted) from None
    if not KEY_BYTES <= len(key) <= MOST_KEY_BYTES:
        raise InvalidArgument("receipt_key_file", f"{path} of {len(key)} bytes", accepted)
    return key


def make_key_file(path: Path) -> bytes:
    """Return the key of a file that only its owner may read, made where there is none; two servers make the same."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    if not path.exists():
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(new_key().hex().encode())  # of no bytes that end a line
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, path)  # fails where another was first, unlike a rename
        except FileExistsError:
            pass
        finally:
            partial.unlink(missing_ok=True)
    return read_key(path)
