"""Laws of the reading: what is absent on the wire is None, and what does not fit is an error, never a wrong answer."""

from __future__ import annotations

import numpy as np
import pytest

from dubito_client import replies
from dubito_client.errors import InvalidArgument, ProtocolError
from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb

from .fakes import LOGITS_ROWS, B, K, classify, describe, regress


def test_a_classification_is_read_in_full() -> None:
    p = replies.read_prediction(classify(raw_draws=tensors.encode(np.zeros((64, B, K)))).SerializeToString())
    np.testing.assert_array_equal(p.probabilities, LOGITS_ROWS)
    assert p.label is not None
    assert p.label.tolist() == [0, 1, 1]
    assert p.mutual_information is not None
    assert p.raw_draws is not None
    assert p.raw_draws.shape == (64, B, K)
    assert (p.mean, p.interval, p.interval_level, p.prediction_set, p.uncalibrated) == (None,) * 5
    assert (p.rows, p.version, p.seed, p.design, p.group_size) == (B, 3, 7, "balanced", 16)
    assert p.stop_reason == ("max_draws",) * B
    assert (p.calibration_id, p.calibration_validity, p.estimator, p.mask_scope) == ("9f3a", "exact", "plain", "draw")
    assert p.timings is not None
    assert p.timings.total_seconds == 0.3
    assert "digits version 3: classification" in repr(p)


def test_a_regression_is_read_in_full() -> None:
    other = pb.Regression(mean=tensors.encode(np.zeros((B, K))))
    p = replies.read_prediction(regress(uncalibrated_regression=other).SerializeToString())
    assert p.mean is not None
    assert p.interval is not None
    assert (p.mean.shape, p.interval.shape, p.interval_level) == ((B, K), (B, K, 2), 0.9)
    assert (p.label, p.probabilities, p.quantiles) == (None,) * 3
    assert p.uncalibrated is not None
    np.testing.assert_array_equal(p.uncalibrated.mean, np.zeros((B, K)))
    assert p.uncalibrated.interval_level is None


def test_what_one_draw_cannot_tell_is_none() -> None:
    reply = classify(calibration_id="", calibration_validity=pb.CALIBRATION_VALIDITY_UNSPECIFIED)
    for name in ("mutual_information", "standard_deviation", "expected_entropy", "predictive_entropy"):
        reply.classification.ClearField(name)
    for name in ("standard_error", "timings", "raw_draws", "stop_reason"):
        reply.ClearField(name)
    p = replies.read_prediction(reply.SerializeToString())
    assert (p.mutual_information, p.standard_deviation, p.expected_entropy, p.standard_error, p.timings) == (None,) * 5
    assert (p.calibration_id, p.calibration_validity, p.stop_reason) == (None, "none", ())


def test_a_reply_without_rows_is_read() -> None:
    reply = classify(draws=tensors.encode(np.zeros(0, int)), stop_reason=[], standard_error=None)
    empty = pb.Classification(
        probabilities=tensors.encode(np.zeros((0, K))), label=tensors.encode(np.zeros(0, np.int64))
    )
    reply.classification.CopyFrom(empty)
    p = replies.read_prediction(reply.SerializeToString())
    assert p.rows == 0
    with pytest.raises(InvalidArgument, match="no rows"):
        p.replay  # noqa: B018 - reading it is the test


def test_values_of_a_newer_server_are_named_by_their_numbers() -> None:
    reply = classify()
    reply.stop_reason[0] = 99  # type: ignore[call-overload]
    p = replies.read_prediction(reply.SerializeToString())
    assert p.stop_reason == ("unknown_99", "max_draws", "max_draws")


def test_a_replay_asks_for_the_draws_that_were_used() -> None:
    p = replies.read_prediction(classify(design=pb.DESIGN_MIXED).SerializeToString())
    expected = {"version": 3, "seed": 7, "min_draws": 64, "draws": 64, "design": "balanced", "mask_scope": "draw"}
    expected["estimator"] = "plain"
    assert p.replay == expected
    other = classify(design=pb.DESIGN_INDEPENDENT, mask_scope=pb.MASK_SCOPE_ROW)
    replay = replies.read_prediction(other.SerializeToString()).replay
    assert (replay["design"], replay["mask_scope"]) == ("independent", "row")


def test_rows_that_stopped_apart_are_replayed_row_by_row() -> None:
    p = replies.read_prediction(classify(draws=tensors.encode(np.array([16, 64, 64]))).SerializeToString())
    with pytest.raises(InvalidArgument, match="16, 64"):
        p.replay  # noqa: B018 - reading it is the test
    assert [p.replay_row(row)["draws"] for row in range(B)] == [16, 64, 64]


def spoil(reply: pb.PredictResponse, what: str) -> bytes:
    match what:
        case "bytes":
            return b"\xff\xff\xff"
        case "answer":
            reply.ClearField("classification")
        case "draws":
            reply.ClearField("draws")
        case "label":
            reply.classification.ClearField("label")
        case "rows":
            reply.classification.predictive_entropy.CopyFrom(tensors.encode(np.zeros(B + 1)))
        case "rank":
            reply.classification.probabilities.CopyFrom(tensors.encode(np.zeros(B)))
        case "type":
            reply.classification.label.CopyFrom(tensors.encode(np.zeros(B)))
        case "data":
            reply.classification.probabilities.data = b"123"
        case "reasons":
            reply.stop_reason.append(pb.STOP_REASON_LOAD)
    return reply.SerializeToString()


@pytest.mark.parametrize("what", ["bytes", "answer", "draws", "label", "rows", "rank", "type", "data", "reasons"])
def test_an_answer_that_does_not_fit_itself_is_a_protocol_error(what: str) -> None:
    with pytest.raises(ProtocolError):
        replies.read_prediction(spoil(classify(), what))


def test_an_evaluation_is_read_raw_and_decoded() -> None:
    output = tensors.encode(np.ones((B, K), np.float32))
    reply = pb.EvaluateResponse(model="digits", version=3, output=output, probabilities=tensors.encode(LOGITS_ROWS))
    e = replies.read_evaluation(reply.SerializeToString())
    assert e.output.dtype == np.float32
    np.testing.assert_array_equal(e.probabilities, LOGITS_ROWS)
    assert (e.label, e.mean, e.timings) == (None, None, None)
    with pytest.raises(ProtocolError):
        replies.read_evaluation(pb.EvaluateResponse().SerializeToString())


def test_a_model_is_read_with_its_inputs_sites_and_calibration() -> None:
    reply = describe(
        sites=[pb.SiteInfo(name="drop", kind="element", rate=0.5, shape=["64"], balanced=True)],
        calibration=pb.CalibrationInfo(id="9f3a", method="temperature", parameters={"t": 1.5}, draws=64),
        design=pb.DESIGN_BALANCED,
    )
    info = replies.read_model(reply.SerializeToString())
    (signature,) = info.inputs
    assert (signature.name, signature.dtype, signature.shape) == ("image", "float32", (None, 1, 8, 8))
    assert (info.model, info.version, info.state, info.class_names) == ("digits", 3, "ready", ("cat", "dog"))
    assert (info.sites[0].rate, info.design) == (0.5, "balanced")
    assert info.calibration is not None
    assert info.calibration.parameters == {"t": 1.5}
    assert replies.read_model(describe().SerializeToString()).calibration is None
