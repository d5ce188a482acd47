"""Laws of bringing labels back: by both clients and the command line, whole, in order, and as often as one likes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from click.testing import CliRunner, Result

from dubito_client import (
    AsyncClient,
    Client,
    InvalidArgument,
    NotPossible,
    ProtocolError,
    StreamState,
    command,
    replies,
)
from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb

from .fakes import B, Fake, abort, classify, describe, refuse

ROWS = np.zeros((B, 1, 8, 8))
RECEIPT = bytes(range(256))


@pytest.fixture(autouse=True)
def receipts(fake: Fake) -> None:
    fake.prediction = classify(prediction_id="ab" * 16, receipt=RECEIPT, coverage=0.9, served_coverage=0.87)


def observation(**changes: Any) -> pb.ObserveResponse:
    covered = tensors.encode(np.array([True, False, True]))
    state = pb.StreamState(stream="s", coverage=0.9, served_coverage=0.95, labels=3, covered=2 / 3)
    return pb.ObserveResponse(**{"rows": B, "covered": covered, "stream": state, **changes})


async def test_a_prediction_brings_its_receipt_and_its_labels_bring_the_answer(fake: Fake) -> None:
    fake.observation = observation()
    with Client(fake.target) as client:
        p = client.predict("digits", ROWS, coverage=0.9, stream="s")
        assert (p.prediction_id, p.receipt, p.served_coverage) == ("ab" * 16, RECEIPT, 0.87)
        found = client.observe(p, [0, 1, 1], stream="s")
    async with AsyncClient(fake.target) as client:
        again = await client.observe("ab" * 16, np.array([0, 1, 1], np.uint8), receipt=RECEIPT)
    assert fake.predictions[0].output.stream == "s"
    assert (found.rows, found.duplicate, again.rows) == (B, False, B)
    np.testing.assert_array_equal(found.covered, [True, False, True])
    assert found.stream == StreamState("s", 0.9, 0.95, 3, pytest.approx(2 / 3))
    for request, stream in zip(fake.observations, ("s", ""), strict=True):
        assert (request.prediction_id, request.receipt, request.stream) == ("ab" * 16, RECEIPT, stream)
        np.testing.assert_array_equal(tensors.decode(request.label), [0, 1, 1])


def test_what_cannot_be_brought_back_is_refused_before_it_is_sent(fake: Fake) -> None:
    fake.prediction = classify()
    with Client(fake.target) as client:
        p = client.predict("digits", ROWS)
        assert (p.prediction_id, p.receipt, p.served_coverage) == (None, None, None)
        with pytest.raises(InvalidArgument, match=r"receipt: got nothing; accepted: a prediction with a receipt"):
            client.observe(p, [0, 1, 1])
        with pytest.raises(InvalidArgument, match="receipt: got nothing"):
            client.observe("ab" * 16, [0, 1, 1])
        for label in (["cat", "dog", "cat"], [None, 1, 2], [[0], [1, 2]]):
            with pytest.raises(InvalidArgument, match=r"^label"):
                client.observe("ab" * 16, label, receipt=RECEIPT)
    assert fake.observations == []


def test_a_store_that_is_busy_is_asked_again(fake: Fake) -> None:
    """Labels count once, so asking twice does no harm."""
    fake.script = [lambda context: abort(context, grpc.StatusCode.UNAVAILABLE, "the store is locked")] * 2
    with Client(fake.target) as client:
        assert client.observe("ab" * 16, [0, 1, 1], receipt=RECEIPT).rows == B
    assert len(fake.observations) == 3


def test_refusals_are_typed(fake: Fake) -> None:
    fake.script = [
        lambda context: refuse(context, grpc.StatusCode.ALREADY_EXISTS, "label", "other labels", "the same"),
        lambda context: refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "receipt", "9 bytes", "--state"),
    ]
    with Client(fake.target) as client:
        with pytest.raises(InvalidArgument, match="other labels") as caught:
            client.observe("ab" * 16, [0, 1, 1], receipt=RECEIPT)
        assert caught.value.field == "label"
        with pytest.raises(NotPossible, match="--state"):
            client.observe("ab" * 16, [0, 1, 1], receipt=RECEIPT)


def test_an_answer_that_does_not_fit_itself_is_a_protocol_error() -> None:
    for covered in (np.zeros(B), np.zeros(B + 1, bool)):
        with pytest.raises(ProtocolError, match="covered"):
            replies.read_observation(observation(covered=tensors.encode(covered)).SerializeToString())


def test_what_labels_say_of_a_model_is_read(fake: Fake) -> None:
    fake.model = describe(
        observed=[
            pb.Observed(
                calibration_id="9f3a",
                rows=40,
                accuracy=pb.Banded(value=0.9, low=0.8, high=0.95),
                covered_rows=30,
                served_coverage=0.9,
                drift=[pb.DriftState(of="conformal_score", rows=40, evidence=2.5, false_alarm=0.01, alarm=True)],
                streams=[pb.StreamState(stream="s", coverage=0.9, served_coverage=1.0)],
            )
        ]
    )
    with Client(fake.target) as client:
        [found] = client.model("digits").observed
    assert (found.calibration_id, found.rows, found.covered_rows, found.served_coverage) == ("9f3a", 40, 30, 0.9)
    assert found.accuracy is not None
    assert (found.accuracy.value, found.accuracy.low, found.accuracy.high) == (0.9, 0.8, 0.95)
    assert found.coverage is found.negative_log_likelihood is None
    assert (found.drift[0].of, found.drift[0].alarm) == ("conformal_score", True)
    assert found.streams == (StreamState("s", 0.9, 1.0, 0, None),)


# --- The command line ---


def predict(fake: Fake, folder: Path, *options: str) -> Result:
    np.save(folder / "rows.npy", ROWS)
    arguments = ["predict", "digits", "--server", fake.target, "--input", str(folder / "rows.npy"), *options]
    return CliRunner().invoke(command.main, arguments)


def observe(fake: Fake, file: Path, labels: Path, *options: str) -> Result:
    arguments = ["observe", str(file), "--labels", str(labels), "--server", fake.target, *options]
    return CliRunner().invoke(command.main, arguments)


@pytest.fixture
def kept(fake: Fake, tmp_path: Path) -> Path:
    """The receipts of two predictions."""
    file = tmp_path / "receipts.jsonl"
    for options in ((), ("--coverage", "0.9", "--stream", "s")):
        assert predict(fake, tmp_path, "--receipt", str(file), *options).exit_code == 0
    return file


def write_labels(folder: Path, kind: str) -> Path:
    values, path = [0, 1, 1, 1, 0, 0], folder / f"labels.{kind}"
    if kind == "npy":
        np.save(path, np.array(values))
    elif kind == "csv":
        path.write_text("label\n" + "\n".join(map(str, values)) + "\n")
    else:
        path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize("kind", ["npy", "csv", "json"])
def test_labels_go_back_to_their_predictions_in_order(fake: Fake, tmp_path: Path, kept: Path, kind: str) -> None:
    fake.observation = observation(duplicate=True)
    result = observe(fake, kept, write_labels(tmp_path, kind))
    assert result.exit_code == 0, result.output
    first, second = result.output.splitlines()
    assert first == "6 labels of 2 predictions, 2 of which had brought theirs before"
    assert second == "66.7% of them were covered"
    labels = [tensors.decode(request.label).tolist() for request in fake.observations]
    assert labels == [[0, 1, 1], [1, 0, 0]]
    assert {(request.prediction_id, request.receipt) for request in fake.observations} == {("ab" * 16, RECEIPT)}
    assert fake.predictions[1].output.stream == "s"


def test_one_document_says_it_too(fake: Fake, tmp_path: Path, kept: Path) -> None:
    result = observe(fake, kept, write_labels(tmp_path, "npy"), "--json")
    assert json.loads(result.output) == {"predictions": 2, "rows": 6, "duplicates": 0, "covered": None}


def test_a_predictions_document_holds_its_receipt(fake: Fake, tmp_path: Path) -> None:
    document = json.loads(predict(fake, tmp_path, "--json").output)
    assert document["prediction_id"] == "ab" * 16
    assert isinstance(document["receipt"], str)


def test_what_does_not_fit_is_told_in_one_line(fake: Fake, tmp_path: Path, kept: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros(5, int))
    np.savez(tmp_path / "two.npz", a=np.zeros(6, int), b=np.zeros(6, int))
    (tmp_path / "bad.jsonl").write_text('{"prediction_id": "ab", "rows": 3}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    good = write_labels(tmp_path, "npy")
    for file, labels, words in (
        (kept, tmp_path / "few.npy", "of shape (5,); accepted: 6 labels, one for every row predicted"),
        (kept, tmp_path / "two.npz", "2 arrays; accepted: one array of labels"),
        (tmp_path / "bad.jsonl", good, "line 1 (KeyError); accepted: lines as `dubito predict --receipt` writes them"),
        (tmp_path / "empty.jsonl", good, "without a line"),
        (tmp_path / "none.jsonl", good, "accepted: a file that can be read"),
    ):
        result = observe(fake, file, labels)
        assert result.exit_code == 2
        assert words in result.output
        assert result.output.count("\n") == 1
    fake.prediction = classify()
    assert "dubito serve --state" in predict(fake, tmp_path, "--receipt", str(tmp_path / "more.jsonl")).output
    assert "this without --standard" in predict(fake, tmp_path, "--receipt", str(kept), "--standard").output
