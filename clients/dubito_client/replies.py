"""Reading: from the bytes of a reply to the answer that a caller gets."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from dubito_client.answers import (
    Answer,
    Banded,
    Calibration,
    Column,
    DriftState,
    Evaluation,
    InputSignature,
    ModelInfo,
    ModelStatus,
    Observation,
    Observed,
    Prediction,
    Selective,
    Site,
    StreamState,
    Timings,
    Validity,
)
from dubito_client.errors import ProtocolError
from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb

M = TypeVar("M", bound=Message)

# Rank and type of each array, under its name on the wire, which is its name in the answer too.
_ARRAYS: dict[str, tuple[int, type[np.generic]]] = {
    "label": (1, np.int64),
    "probabilities": (2, np.float64),
    "predictive_entropy": (1, np.float64),
    "expected_entropy": (1, np.float64),
    "mutual_information": (1, np.float64),
    "plain_mutual_information": (1, np.float64),
    "standard_deviation": (2, np.float64),
    "variation_ratio": (1, np.float64),
    "disagreement": (1, np.float64),
    "margin": (1, np.float64),
    "prediction_set": (2, np.bool_),
    "mean": (2, np.float64),
    "total_variance": (2, np.float64),
    "epistemic_variance": (2, np.float64),
    "aleatoric_variance": (2, np.float64),
    "interval": (3, np.float64),
    "quantiles": (3, np.float64),
    "prediction_interval": (3, np.float64),
    "abstain": (1, np.bool_),
    "draws": (1, np.int64),
    "standard_error": (2, np.float64),
    "raw_draws": (3, np.float64),
    "joint_covariance": (3, np.float64),
}
_VALIDITY: dict[int, Validity] = {
    pb.CALIBRATION_VALIDITY_APPROXIMATE: "approximate",
    pb.CALIBRATION_VALIDITY_EXACT: "exact",
}


def parse(kind: type[M], payload: bytes) -> M:
    """Parse a message; `ProtocolError` where the bytes are none."""
    try:
        return kind.FromString(payload)
    except DecodeError as error:
        raise ProtocolError(f"the reply is no {kind.DESCRIPTOR.full_name}: {error}") from error


def read_prediction(payload: bytes) -> Prediction:
    """Read a `PredictResponse`; `ProtocolError` where it lacks an answer, or its arrays do not fit each other."""
    return to_prediction(parse(pb.PredictResponse, payload))


def to_prediction(reply: pb.PredictResponse) -> Prediction:
    """Do the same with the message itself."""
    draws = _array(reply, "draws", rows=None)
    if draws is None:
        raise ProtocolError("the reply does not say how many draws were used")
    rows = len(draws)
    answer, uncalibrated = reply.WhichOneof("answer"), reply.WhichOneof("uncalibrated_answer")
    if answer is None:
        raise ProtocolError("the reply is neither a classification nor a regression")
    if len(reply.stop_reason) not in (0, rows):
        raise ProtocolError(f"the reply has {rows} rows and {len(reply.stop_reason)} reasons for stopping")
    return Prediction(
        **_answer(getattr(reply, answer), rows),
        model=reply.model,
        version=reply.version,
        id=reply.id,
        draws=draws,
        standard_error=_array(reply, "standard_error", rows),
        stop_reason=tuple(_word(pb.StopReason.DESCRIPTOR, reason) for reason in reply.stop_reason),
        seed=reply.seed,
        design=_word(pb.Design.DESCRIPTOR, reply.design),
        group_size=reply.group_size,
        mask_scope=_word(pb.MaskScope.DESCRIPTOR, reply.mask_scope),
        estimator=_word(pb.Estimator.DESCRIPTOR, reply.estimator),
        calibration_id=reply.calibration_id or None,
        # A server that does not say is not taken to vouch for anything.
        calibration_validity=_VALIDITY.get(reply.calibration_validity, "none"),
        warnings=tuple(reply.warnings),
        timings=_timings(reply),
        raw_draws=_array(reply, "raw_draws", rows, axis=1),
        joint_covariance=_array(reply, "joint_covariance", rows),
        coverage=reply.coverage if reply.HasField("coverage") else None,
        served_coverage=reply.served_coverage if reply.HasField("served_coverage") else None,
        prediction_id=reply.prediction_id or None,
        receipt=reply.receipt or None,
        abstain=_array(reply, "abstain", rows),
        final=reply.final,
        uncalibrated=Answer(**_answer(getattr(reply, uncalibrated), rows)) if uncalibrated else None,
    )


def read_evaluation(payload: bytes) -> Evaluation:
    """Read an `EvaluateResponse`."""
    reply = parse(pb.EvaluateResponse, payload)
    names = ("label", "probabilities", "mean", "aleatoric_variance")
    if not reply.HasField("output"):
        raise ProtocolError("the reply has no output")
    return Evaluation(
        model=reply.model,
        version=reply.version,
        id=reply.id,
        output=_decode("output", reply.output),
        timings=_timings(reply),
        **{name: _array(reply, name, rows=None) for name in names},
    )


def read_models(payload: bytes) -> tuple[ModelStatus, ...]:
    """Read a `ListModelsResponse`."""
    return tuple(ModelStatus(**_status(status)) for status in parse(pb.ListModelsResponse, payload).models)


def read_loaded(payload: bytes) -> ModelStatus:
    """Read a `LoadModelResponse`."""
    return ModelStatus(**_status(parse(pb.LoadModelResponse, payload).status))


def read_model(payload: bytes) -> ModelInfo:
    """Read a `GetModelResponse`."""
    reply = parse(pb.GetModelResponse, payload)
    return ModelInfo(
        **_status(reply.status),
        inputs=tuple(_input(signature) for signature in reply.inputs),
        head=reply.head,
        class_names=tuple(reply.class_names),
        outputs=reply.outputs,
        sites=tuple(Site(s.name, s.kind, s.rate, tuple(s.shape), s.balanced) for s in reply.sites),
        design=_word(pb.Design.DESCRIPTOR, reply.design),
        group_size=reply.group_size,
        default_draws=reply.default_draws,
        default_seed=reply.default_seed,
        calibration=_calibration(reply.calibration) if reply.HasField("calibration") else None,
        onnx_parity=reply.onnx_parity,
        warnings=tuple(reply.warnings),
        checksums=dict(reply.checksums),
        max_rows=reply.max_rows,
        max_draws=reply.max_draws,
        observed=tuple(_observed(one) for one in reply.observed),
    )


def read_observation(payload: bytes) -> Observation:
    """Read an `ObserveResponse`."""
    reply = parse(pb.ObserveResponse, payload)
    covered = _decode("covered", reply.covered) if reply.HasField("covered") else None
    if covered is not None and (covered.dtype != np.bool_ or covered.shape[:1] != (reply.rows,)):
        raise ProtocolError(f"the reply's covered is {covered.dtype.name} of shape {covered.shape}")
    stream = _stream(reply.stream) if reply.HasField("stream") else None
    return Observation(reply.rows, reply.duplicate, covered, stream)


def _stream(state: pb.StreamState) -> StreamState:
    covered = state.covered if state.HasField("covered") else None
    return StreamState(state.stream, state.coverage, state.served_coverage, state.labels, covered)


def _observed(found: pb.Observed) -> Observed:
    names = [
        "negative_log_likelihood", "accuracy", "brier_score", "expected_calibration_error", "root_mean_squared_error",
        "coverage",
    ]  # fmt: skip
    return Observed(
        calibration_id=found.calibration_id or None,
        rows=found.rows,
        first_seconds=found.first_seconds,
        last_seconds=found.last_seconds,
        served_coverage=found.served_coverage if found.HasField("served_coverage") else None,
        covered_rows=found.covered_rows,
        drift=tuple(
            DriftState(test.of, test.reference_rows, test.rows, test.evidence, test.false_alarm, test.alarm)
            for test in found.drift
        ),
        streams=tuple(_stream(state) for state in found.streams),
        **{name: _banded(getattr(found, name)) if found.HasField(name) else None for name in names},
    )


def _banded(found: pb.Banded) -> Banded:
    return Banded(found.value, found.low, found.high)


def _answer(message: pb.Classification | pb.Regression, rows: int) -> dict[str, Any]:
    """Return the fields of an `Answer`."""
    required = ("label", "probabilities") if isinstance(message, pb.Classification) else ("mean",)
    for name in required:
        if not message.HasField(name):
            raise ProtocolError(f"the reply has no {name}")
    names = [field.name for field in message.DESCRIPTOR.fields if field.name in _ARRAYS]
    fields: dict[str, Any] = {name: _array(message, name, rows) for name in names}
    if isinstance(message, pb.Regression) and message.HasField("interval"):
        fields["interval_level"] = message.interval_level
    return fields


def _array(message: Message, name: str, rows: int | None, axis: int = 0) -> NDArray[Any] | None:
    """Return an array of a message, None where it is absent; `rows`, where known, is its size along `axis`."""
    if not message.HasField(name):
        return None
    rank, kind = _ARRAYS[name]
    array = _decode(name, getattr(message, name))
    fits = array.ndim == rank and (rows is None or array.shape[axis] == rows)
    if not fits or not np.can_cast(array.dtype, kind):
        wanted = f"{np.dtype(kind).name} of rank {rank}" + ("" if rows is None else f" and {rows} rows")
        raise ProtocolError(f"the reply's {name} is {array.dtype.name} of shape {array.shape}, not {wanted}")
    return array.astype(kind, copy=False)


def _decode(name: str, tensor: pb.Tensor) -> NDArray[Any]:
    try:
        return tensors.decode(tensor)
    except tensors.TensorError as error:
        raise ProtocolError(f"the reply's {name} is no array: {error}") from error


def _word(enum: EnumDescriptor, number: int) -> str:
    """Return the lower-case name of a value without its type: STOP_REASON_MAX_DRAWS is "max_draws"."""
    value = enum.values_by_number.get(number)
    if value is None:  # from a newer server
        return f"unknown_{number}"
    # By convention the value 0 of every enum is called <TYPE>_UNSPECIFIED.
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return value.name.removeprefix(prefix).lower()


def _timings(reply: pb.PredictResponse | pb.EvaluateResponse) -> Timings | None:
    if not reply.HasField("timings"):
        return None
    spent = reply.timings
    return Timings(spent.queue_seconds, spent.compute_seconds, spent.total_seconds)


def _status(status: pb.ModelStatus) -> dict[str, Any]:
    """Return the fields of a `ModelStatus`."""
    return {
        "model": status.model,
        "version": status.version,
        "state": _word(pb.ModelState.DESCRIPTOR, status.state),
        "reason": status.reason,
        "task": status.task,
        "calibration_id": status.calibration_id or None,
    }


def _input(signature: pb.TensorSignature) -> InputSignature:
    return InputSignature(
        name=signature.name,
        dtype=tensors.dtype_name(signature.dtype),
        shape=tuple(None if size < 0 else size for size in signature.shape),
        allow_nan=signature.allow_nan,
        dimension_names=tuple(signature.dimension_names),
        columns=tuple(
            Column(
                column.name, _word(pb.ColumnKind.DESCRIPTOR, column.kind), tuple(column.categories), column.allow_nan
            )
            for column in signature.columns
        ),
    )


def _calibration(info: pb.CalibrationInfo) -> Calibration:
    return Calibration(
        id=info.id,
        method=info.method,
        parameters=dict(info.parameters),
        draws=info.draws,
        seed=info.seed,
        design=_word(pb.Design.DESCRIPTOR, info.design),
        rows=info.rows,
        data_fingerprint=info.data_fingerprint,
        stopping=_word(pb.StoppingRule.DESCRIPTOR, info.stopping.rule),
        estimator=_word(pb.Estimator.DESCRIPTOR, info.estimator),
        conformal=info.conformal or None,
        condition=info.condition or None,
        score_rows=info.score_rows,
        selective=_selective(info.selective) if info.HasField("selective") else None,
    )


def _selective(found: pb.Selective) -> Selective:
    return Selective(found.quantity, found.threshold, found.risk, found.confidence, found.accepted)
