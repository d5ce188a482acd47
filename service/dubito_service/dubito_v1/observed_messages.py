"""The translator of labels that come back, and of what they say, between the wire and the core."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

from dubito_models.calibration.adaptive import AdaptiveState
from dubito_models.errors import InvalidArgument
from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb
from dubito_service.observing.drift import Drift
from dubito_service.observing.observations import StreamKey
from dubito_service.observing.observer import Observed, Observer
from dubito_service.observing.receipts import Classified, Receipt
from dubito_service.observing.rolling import Banded, Rolling

_SHOWN = 32  # characters of an id that is refused
_MOST_STREAMS = 100  # that `GetModel` lists, those of most labels


def read_observation(request: pb.ObserveRequest, observer: Observer) -> tuple[Receipt, NDArray[Any]]:
    """Check the receipt of an `ObserveRequest` and decode its labels; `InvalidArgument` names the field."""
    receipt = observer.verify(request.receipt)
    if request.prediction_id != receipt.prediction_id:
        given = repr(request.prediction_id[:_SHOWN])
        raise InvalidArgument("prediction_id", given, f"that of the receipt, {receipt.prediction_id}")
    if request.stream not in ("", receipt.stream):
        accepted = f"that of the receipt, {receipt.stream!r}, or nothing" if receipt.stream else "nothing, as asked"
        raise InvalidArgument("stream", repr(request.stream), accepted)
    if not request.HasField("label"):
        raise InvalidArgument("label", "nothing", f"a tensor of {receipt.rows} labels")
    try:
        return receipt, tensors.decode(request.label)
    except tensors.TensorError as error:
        raise InvalidArgument(f"label.{error.field}", error.given, error.accepted) from None


def write_observation(observed: Observed) -> pb.ObserveResponse:
    """Write the answer to an `ObserveRequest`."""
    receipt, covered, state = observed.receipt, observed.scored.covered, observed.outcome.stream
    if covered is not None and isinstance(receipt.answer, Classified):
        covered = covered[:, 0]
    reply = pb.ObserveResponse(
        duplicate=observed.outcome.duplicate,
        rows=receipt.rows,
        covered=None if covered is None else tensors.encode(covered),
    )
    if state is not None:
        reply.stream.CopyFrom(_write_stream(receipt.stream, state))
    return reply


def _write_stream(name: str, state: AdaptiveState) -> pb.StreamState:
    return pb.StreamState(
        stream=name,
        coverage=1.0 - state.target,
        served_coverage=state.coverage_to_ask,
        labels=state.count,
        covered=1.0 - state.mean_error if state.count else None,
    )


def write_rolling(found: Iterable[Rolling]) -> list[pb.Observed]:
    """Write what the newest labels say of a version."""
    return [
        pb.Observed(
            calibration_id=one.calibration_id,
            rows=one.rows,
            first_seconds=one.first_seconds,
            last_seconds=one.last_seconds,
            negative_log_likelihood=_write_banded(one.negative_log_likelihood),
            accuracy=_write_banded(one.accuracy),
            brier_score=_write_banded(one.brier_score),
            expected_calibration_error=_write_banded(one.expected_calibration_error),
            root_mean_squared_error=_write_banded(one.root_mean_squared_error),
            coverage=_write_banded(one.coverage),
            served_coverage=one.served_coverage,
            covered_rows=one.covered_rows,
            drift=[_write_drift(kind, drift) for kind, drift in sorted(one.drift.items())],
            streams=[_write_stream(key.stream, state) for key, state in _most_labelled(one)],
        )
        for one in found
    ]


def _most_labelled(rolling: Rolling) -> list[tuple[StreamKey, AdaptiveState]]:
    return sorted(rolling.streams.items(), key=lambda item: (-item[1].count, item[0].stream))[:_MOST_STREAMS]


def _write_banded(found: Banded | None) -> pb.Banded | None:
    return None if found is None else pb.Banded(value=found.value, low=found.low, high=found.high)


def _write_drift(kind: str, drift: Drift) -> pb.DriftState:
    test = drift.test
    return pb.DriftState(
        of=kind,
        reference_rows=0 if test is None else len(test.reference),
        rows=0 if test is None else test.count,
        evidence=0.0 if test is None else test.evidence,
        false_alarm=drift.false_alarm,
        alarm=drift.alarm,
    )
