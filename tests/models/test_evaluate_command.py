"""`dubito evaluate`: what it shows, one JSON document, a report where it is asked for, every refusal in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from dubito_models.evaluate_command import evaluate
from dubito_models.package import ModelVersion
from houses import pack_houses, write_houses
from judged import labelled, line

Packed = Callable[[str], ModelVersion]


def run(version: ModelVersion, *arguments: str) -> Result:
    """Run the command with few resamples, 80 columns wide."""
    given = ("--resamples", "20", "--repository", str(version.folder.parent.parent))
    return CliRunner().invoke(evaluate, [version.name, *given, *arguments], env={"COLUMNS": "80"})


def refused(result: Result) -> str:
    """Return the one line that was said on stderr, after checking that it is one."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    [said] = result.stderr.splitlines()
    assert said.startswith("Error: ")
    return said


@pytest.fixture
def rows(packed: Packed, tmp_path: Path) -> Path:
    """A file of 30 rows for the CNN."""
    found = labelled(packed("cnn"), 30)
    np.savez(tmp_path / "rows.npz", **found.inputs, labels=found.targets)
    return tmp_path / "rows.npz"


def test_scores_and_a_verdict_are_shown(packed: Packed, rows: Path) -> None:
    """Within 80 columns: what was judged, every score of both paths, how many draws suffice, warnings, one sentence."""
    result = run(packed("cnn"), "--data", str(rows))
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(result.stdout.split())
    for said in (
        "cnn version 1, classification",
        "Scores, with intervals of 95% (20 resamples, smooth ECE: 4)",
        "standard Monte Carlo",
        "accuracy", "NLL", "Brier score", "classwise ECE", "AURC",
        "Monte Carlo error of a probability (mutual information) by draws:",
        "warning: 30 rows are few",
    ):  # fmt: skip
        assert said in text
    assert "shift" not in text
    assert "report:" not in text


def test_json_is_one_document(packed: Packed, rows: Path) -> None:
    """Standard output holds the document alone, shifts and all."""
    result = run(packed("cnn"), "--data", str(rows), "--json", "--shift", "--no-convergence", "--seed", "3")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["identity"]["model"], said["identity"]["rows"], said["identity"]["data"]) == ("cnn", 30, str(rows))
    assert (len(said["shifts"]), said["convergence"], said["report"]) == (3, None, None)
    assert set(said["card"]["scores"]["nll"]) == {"standard", "Monte Carlo"}
    assert said["verdict"]["sentence"].endswith(".")


def test_a_report_is_written_where_it_is_asked_for(packed: Packed, rows: Path) -> None:
    result = run(packed("cnn"), "--data", str(rows), "--report", str(rows.parent / "out"), "--no-convergence")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"report: {rows.parent / 'out' / 'report.html'}"
    written = {path.suffix for path in (rows.parent / "out").iterdir()}
    assert written == {".html", ".png"}


def test_shifts_are_told_step_by_step(packed: Packed, rows: Path) -> None:
    result = run(packed("cnn"), "--data", str(rows), "--shift", "--no-convergence")
    text = " ".join(result.stdout.split())
    for said in ("rotation (degrees), 30 rows", "blur (standard deviation in % of the smaller side)", "noise"):
        assert f"Under growing shift: {said}" in text
    assert sum(line.startswith(" 90 ") for line in result.stdout.splitlines()) == 1


def test_a_table_is_judged_on_what_training_left_for_the_test(tmp_path: Path) -> None:
    """Its own part, by columns' names; intervals, deviations and feature noise."""
    path = write_houses(tmp_path / "houses.csv")
    version = pack_houses(tmp_path / "repository", path)
    result = run(version, "--data", f"{path}:test", "--target", "price", "--shift")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    for said in (
        "60 of ",
        "90% interval covers",
        "interval score",
        "feature noise",
        "error of a mean (epistemic deviation)",
    ):
        assert said in text


def test_draws_in_closed_form_are_said_to_be(tmp_path: Path) -> None:
    version, rows = line(tmp_path)
    np.savez(tmp_path / "rows.npz", **rows.inputs, targets=rows.targets)
    text = " ".join(run(version, "--data", str(tmp_path / "rows.npz")).stdout.split())
    assert "Draws leave nothing to chance here" in text
    assert "NLL - -" in text


def test_a_calibration_s_sets_are_told(packed: Packed, rows: Path) -> None:
    version = packed("cnn")
    fresh = labelled(version, 40, seed=4)
    before = version.calibration
    try:
        version.calibrate(fresh.inputs, fresh.targets)
        text = " ".join(run(version, "--data", str(rows), "--no-convergence").stdout.split())
    finally:
        version.use_calibration(None)
    assert version.calibration is before is None
    assert "Prediction sets for 90% of rows hold the truth of " in text
    assert version.folder.name == "1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "none.npz"), "data: got none.npz (No such file or directory)"),
        (("--data", "rows.npy"), "which holds the truth beside the inputs; or digits:test, diabetes:test, co2:test"),
        (("--data", "diabetes:test"), "data: got diabetes, a regression; accepted: rows for a classification"),
        (("--data", "digits:test", "--version", "7"), "no mlp version 7 in "),
        (("--data", "digits:test"), "targets: got classes 0 to 9; accepted: class numbers 0 to 3"),
    ],
)
def test_a_refusal_is_one_line(packed: Packed, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(run(packed("mlp"), *arguments))


def test_a_report_that_cannot_be_written_is_one_line(packed: Packed, rows: Path) -> None:
    (rows.parent / "file").write_text("")
    arguments = ("--data", str(rows), "--no-convergence", "--report", str(rows.parent / "file" / "below"))
    assert "Not a directory" in refused(run(packed("cnn"), *arguments))


def test_help_says_what_rows_are() -> None:
    text = " ".join(CliRunner().invoke(evaluate, ["--help"]).output.split())
    for said in ("FILE.npz", "--target COLUMN", "FILE.csv:test:SEED", "digits:test", "diabetes or co2", "report.html"):
        assert said in text


def test_the_command_is_an_entry_point() -> None:
    [entry] = entry_points(group="dubito.commands", name="evaluate")
    assert entry.load() is evaluate
