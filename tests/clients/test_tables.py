"""Laws of what is shown: no number is ever cut, and a document holds everything."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dubito_client import replies, tables
from dubito_client.answers import ModelStatus
from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb

from .fakes import B, K, classify, describe, regress

INFO = replies.read_model(
    describe(class_names=["cat", "a creature of a very long name, [red]indeed[/red]"]).SerializeToString()
)


@pytest.fixture(params=[40, 80, 120])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


def shown(reply: pb.PredictResponse, capsys: pytest.CaptureFixture[str], limit: int | None = None) -> list[str]:
    tables.show(tables.answer_columns(replies.read_prediction(reply.SerializeToString()), INFO, limit))
    return capsys.readouterr().out.splitlines()


def test_a_classification_fits_a_terminal_and_keeps_its_numbers(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    reply = classify()
    sets = np.array([[True, False], [False, False], [True, True]])
    reply.classification.prediction_set.CopyFrom(tensors.encode(sets))
    lines = shown(reply, capsys)
    assert max(map(len, lines)) <= max(width, 80)
    assert all(any(number in line for line in lines) for number in ("0.900", "0.3250", "0.0250", "0.3000", "64"))
    assert any("(empty)" in line for line in lines)
    assert any("cat" in line for line in lines)


def test_a_regression_fits_a_terminal_and_keeps_its_numbers(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(regress(), capsys)
    assert max(map(len, lines)) <= max(width, 80)
    assert len(lines) == 3 + B * K
    assert lines[3].split() == ["0", "0", "1.5000", "0.50000", "0.5000", "2.5000", "0.30000", "0.40000"]


def test_what_is_absent_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    reply = classify()
    reply.classification.ClearField("mutual_information")
    assert shown(reply, capsys)[-1].split()[-3:] == ["-", "0.4000", "64"]


def test_no_more_lines_are_shown_than_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(shown(classify(), capsys, limit=2)) == len(shown(classify(), capsys)) - 1
    assert len(shown(regress(), capsys, limit=2)) == len(shown(regress(), capsys)) - 4


def test_numbers_of_unlike_sizes_are_scientific_and_none_are_lost(capsys: pytest.CaptureFixture[str]) -> None:
    reply = regress()
    reply.regression.mean.CopyFrom(tensors.encode(np.array([[1e-9, 1e9], [np.nan, np.inf], [0.0, 1.0]])))
    means = [line.split()[2] for line in shown(reply, capsys)[3:]]
    assert means == ["1e-09", "1e+09", "nan", "inf", "0", "1"]


def test_the_caption_says_how_the_answer_was_made() -> None:
    reply = classify(draws=tensors.encode(np.array([16, 64, 64])), stop_reason=[pb.STOP_REASON_TOLERANCE, 1, 1])
    text = tables.caption(replies.read_prediction(reply.SerializeToString()))
    assert "digits version 3, seed 7, 16 to 64 draws, design balanced in groups of 16" in text
    assert "calibration 9f3a (exact); stopped by: max_draws, tolerance" in text
    plain = tables.caption(replies.read_prediction(classify(calibration_id="").SerializeToString()))
    assert "not calibrated" in plain


def test_a_document_is_strict_json_with_null_for_what_is_absent() -> None:
    reply = regress()
    reply.regression.mean.CopyFrom(tensors.encode(np.array([[np.nan, np.inf], [-np.inf, 1.0], [2.0, 3.0]])))
    document = json.loads(tables.document(replies.read_prediction(reply.SerializeToString()), class_names=[]))
    assert document["mean"] == [["NaN", "Infinity"], ["-Infinity", 1.0], [2.0, 3.0]]
    assert document["label"] is None
    assert document["timings"]["total_seconds"] == 0.3
    assert document["stop_reason"] == ["max_draws"] * B


def test_a_servers_text_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    status = ModelStatus(
        model="a\x1b[31mb", version=1, state="failed", reason="x\ny", task="regression", calibration_id=None
    )
    tables.show(tables.models_columns([status]))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "a?[31mb" in out
    assert "x?y" in out
