"""A version judged: one document that holds everything, of the rows that were given and no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from dubito_models.answering import DRAWN, STANDARD, ask
from dubito_models.calibrating import CalibrationSpec
from dubito_models.doubtful import EXAMPLES
from dubito_models.errors import InvalidArgument
from dubito_models.evaluating import CONVERGENCE_ROWS, Assessment, describe, document, evaluate, identify
from dubito_models.heads import Task
from dubito_models.package import ModelVersion
from dubito_models.rows import Labelled
from judged import assessed, houses, labelled, line

Packed = Callable[[str], ModelVersion]


def test_a_classification_is_judged_by_everything(packed: Packed) -> None:
    """Every part is there and of the same paths; shifts only where they are asked for."""
    found = assessed(packed("cnn"), 30, shift=True)
    assert (found.identity.task, found.identity.rows, found.identity.data) == (Task.CLASSIFICATION, 30, "rows.npz")
    assert found.served == DRAWN
    assert list(found.reliability) == [STANDARD, DRAWN]
    assert [curve.name for curve in found.coverage] == [STANDARD, DRAWN]
    assert len(found.shifts) == 3
    assert found.convergence is not None
    assert found.convergence.rows == 30
    assert found.uncertainty is not None
    assert found.pit == {}
    assert found.set_coverage is None
    assert assessed(packed("cnn"), 30).shifts == ()


def test_a_regression_is_judged_by_its_distribution(tmp_path: Path) -> None:
    version, rows = houses(tmp_path)
    found = evaluate(version, rows, "houses.csv:test", convergence=False, resamples=20)
    assert (found.reliability, found.convergence) == ({}, None)
    assert list(found.pit) == [STANDARD, DRAWN]
    assert sum(found.pit[DRAWN]) == len(rows)
    assert found.card.scores["rmse"][STANDARD] is not None


def test_progress_reaches_the_end_of_every_part(packed: Packed) -> None:
    """From none to all, in order, part by part."""
    version = packed("mlp")
    told: dict[str, list[tuple[int, int]]] = {}

    def progress(what: str, done: int, total: int) -> None:
        told.setdefault(what, []).append((done, total))

    evaluate(version, labelled(version, 300), "x", shift=True, resamples=20, progress=progress)
    assert list(told) == ["answers", "scores", "draws needed", "shifts"]
    for steps in told.values():
        done = [number for number, _ in steps]
        assert done == sorted(done)
        assert (done[0], done[-1]) == (0, steps[0][1])


def test_the_most_doubtful_rows_are_shown(packed: Packed) -> None:
    """The highest mutual information first, with truth, prediction and picture of the very row."""
    version = packed("cnn")
    rows = labelled(version, 30)
    found = assessed(version, 30).examples
    answers = ask(version, rows)[DRAWN]
    order = np.argsort(-answers.mutual_information, kind="stable")[:EXAMPLES].tolist()
    assert [example.row for example in found] == order
    for example in found:
        p = answers.probabilities[example.row]
        assert example.truth == str(rows.targets[example.row])
        assert example.prediction == str(p.argmax())
        assert example.probability == pytest.approx(p.max())
        assert example.wrong == (example.truth != example.prediction)
        assert example.epistemic == pytest.approx(answers.mutual_information[example.row])
        image = rows.inputs["images"][example.row, 0]
        assert example.picture is not None
        assert np.corrcoef(example.picture.ravel(), image.ravel())[0, 1] > 0.999
        assert example.picture.dtype == np.uint8


def test_a_table_s_rows_are_shown_by_their_columns(tmp_path: Path) -> None:
    """Categories by their texts, codes that stand for none as other, gaps as missing."""
    version, rows = houses(tmp_path)
    inputs = rows.inputs["inputs"].copy()
    names = [column.name for column in version.manifest.inputs[0].columns or ()]
    inputs[:, names.index("area")] = np.nan
    inputs[:, names.index("city")] = 2
    inputs[:, names.index("style")] = 0
    found = evaluate(version, Labelled({"inputs": inputs}, rows.targets), "x", convergence=False, resamples=20)
    for example in found.examples:
        said = dict(example.features)
        assert list(said) == names
        assert (said["area"], said["city"], said["style"]) == ("missing", "Oslo", "other")
        assert (example.picture, example.probability, example.wrong) == (None, None, None)
        assert float(example.truth) == pytest.approx(rows.targets[example.row, 0], rel=1e-3)


def test_rows_of_the_calibration_are_known_again(tmp_path: Path) -> None:
    """Also in the single precision that training has them in; others are not, nor rows that training split off."""
    version, rows = houses(tmp_path)
    fresh = ModelVersion(version.folder, version.manifest, version.engine, version.standard)
    rounded = rows.targets.astype(np.float32)
    fresh.save_calibration = lambda found: setattr(fresh, "calibration", found)  # type: ignore[method-assign]
    fresh.calibrate(rows.inputs, rounded, CalibrationSpec(method="identity"))
    same, other = (
        evaluate(fresh, some, "x", convergence=False, resamples=20)
        for some in (rows, Labelled(rows.inputs, rows.targets + 1, part="train"))
    )
    assert same.identity.calibrated_on_these
    assert same.verdict.warnings[0].startswith("The calibration was fitted to these very rows")
    assert not other.identity.calibrated_on_these
    assert other.verdict.warnings[0].startswith("Training has seen these rows")
    assert not identify(version, rows, "x").calibrated_on_these
    assert same.set_coverage is not None
    assert same.set_coverage.covered >= 0.85


def test_a_document_is_json(packed: Packed, tmp_path: Path) -> None:
    """Without pictures, and with nothing where a number is not finite; the same for the same rows and seed."""
    found = assessed(packed("cnn"), 30, shift=True)
    text = json.dumps(document(found), allow_nan=False)
    said = json.loads(text)
    assert list(said) == [field.name for field in fields(Assessment)]
    assert "picture" not in said["examples"][0]
    assert said["identity"]["task"] == "classification"
    assert said["card"]["scores"]["accuracy"][DRAWN]["value"] == found.card.scores["accuracy"][DRAWN].value
    again = evaluate(packed("cnn"), labelled(packed("cnn"), 30), "rows.npz", shift=True, resamples=40)
    assert json.dumps(document(again), allow_nan=False) == text
    assert document({"x": (float("nan"), np.array([1.5, np.inf]), Task.REGRESSION, None, 2)}) == {
        "x": [None, [1.5, None], "regression", None, 2]
    }
    version, rows = line(tmp_path)
    json.dumps(document(evaluate(version, rows, "x", shift=True, resamples=20)), allow_nan=False)


def test_a_description_says_what_was_judged(packed: Packed, tmp_path: Path) -> None:
    found = describe(assessed(packed("cnn"), 30).identity)
    assert found == {
        "model": "cnn version 1, classification",
        "rows": "30 of rows.npz",
        "draws": f"{packed('cnn').manifest.default_draws}, balanced, in groups of "
        f"{packed('cnn').manifest.group_size}, seed 0",
        "dropout sites": "2",
        "calibration": "none",
    }
    version, rows = line(tmp_path)
    overlapping = Labelled(rows.inputs, rows.targets, overlap=6)
    assert "6 consecutive ones share targets" in describe(identify(version, overlapping, "x"))["rows"]


@pytest.mark.parametrize(
    ("method", "parameters", "said"),
    [
        (None, {}, "none"),
        ("identity", {}, "identity, 0abc"),
        ("temperature", {"temperature": 0.4567}, "temperature 0.457, 0abc"),
        ("noise_scale", {"factor": 1.5}, "noise scale (factor 1.5), 0abc"),
    ],
)
def test_a_calibration_is_told_by_its_numbers(
    packed: Packed, method: str | None, parameters: dict[str, float], said: str
) -> None:
    identity = replace(
        assessed(packed("cnn"), 30).identity,
        calibration=None if method is None else "0abc",
        calibration_method=method,
        calibration_parameters=parameters,
    )
    assert describe(identity)["calibration"] == said


def test_many_rows_do_not_make_convergence_dearer(packed: Packed) -> None:
    version = packed("mlp")
    found = evaluate(version, labelled(version, 100), "x", resamples=20)
    assert found.convergence is not None
    assert found.convergence.rows == CONVERGENCE_ROWS


def test_a_single_row_is_refused(packed: Packed) -> None:
    version = packed("mlp")
    with pytest.raises(InvalidArgument, match="data: got 1 rows; accepted: at least 2 rows"):
        evaluate(version, labelled(version, 1), "x")
