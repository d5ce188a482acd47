"""A calibration's whole way: made by the command line, served, switched under a running server, and switched back."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from dubito_client import Client
from dubito_client.command import main
from dubito_client.errors import InvalidArgument
from dubito_client.stopping import Stopping
from dubito_models.packing import pack
from served import DUBITO, served

WIDTH, CLASSES = 5, 3


def rows(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make rows, and labels that hang on them, noisily."""
    chance = np.random.default_rng(seed)
    x = chance.normal(size=(count, WIDTH)).astype(np.float32)
    return x, (x[:, :CLASSES] + chance.gumbel(size=(count, CLASSES))).argmax(-1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("calibrated")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Dropout(0.4), nn.Linear(32, CLASSES)).eval()
    where = {"repository": root / "repository", "name": "m"}
    pack(network, torch.randn(4, WIDTH), task="classification", head="logits", class_names=["a", "b", "c"], **where)
    x, labels = rows(400, 1)
    np.savez(root / "labelled.npz", input=x, labels=labels)
    np.save(root / "rows.npy", rows(6, 2)[0])
    return root


@pytest.fixture(scope="module")
def target(folder: Path) -> Iterator[str]:
    with served(folder) as address:
        yield address


def invoke(folder: Path, *arguments: str) -> Result:
    given = [str(folder / each) if each.endswith(".npz") else each for each in arguments]
    return CliRunner().invoke(main, ["calibrate", "m", "--repository", str(folder / "repository"), *given])


def run(folder: Path, *arguments: str) -> str:
    done = invoke(folder, *arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def until(client: Client, wanted: Callable[[str | None], bool]) -> str | None:
    """Wait until the server's calibration is as wanted, for a minute at most."""
    for _ in range(600):
        found = client.models()[0].calibration_id
        if wanted(found):
            return found
        time.sleep(0.1)
    raise AssertionError("the server did not take the calibration up")


def test_a_running_server_takes_calibrations_up_and_answers_by_them(folder: Path, target: str) -> None:
    x, labels = rows(2000, 3)
    with Client(target) as client:
        with pytest.raises(InvalidArgument, match=r"output\.coverage.*m version 1 has no calibration"):
            client.predict("m", x[:3], coverage=0.9)
        first = json.loads(run(folder, "--data", "labelled.npz", "--risk", "0.45", "--json"))["id"]
        assert until(client, lambda found: found == first)
        answer = client.predict("m", x, coverage=0.8)
        assert (answer.calibration_id, answer.calibration_validity, answer.coverage) == (first, "exact", 0.8)
        assert answer.prediction_set is not None
        assert answer.abstain is not None
        covered = answer.prediction_set[np.arange(len(x)), labels].mean()
        assert abs(covered - 0.8) < 5 * np.sqrt(0.16 / 100 + 0.16 / 2000) + 1 / 101  # of 100 scores: false in millions
        replayed = client.predict("m", x, coverage=0.8, **answer.replay)
        np.testing.assert_array_equal(replayed.prediction_set, answer.prediction_set)
        assert replayed.calibration_validity == "exact"
        about = client.model("m").calibration
        assert about is not None
        assert (about.id, about.conformal, about.condition, about.score_rows) == (first, "lac", "none", 100)
        assert about.selective is not None
        assert (about.selective.quantity, about.selective.risk) == ("predictive_entropy", 0.45)

        ruled = ("--stop", "decision", "--draws", "160", "--conformal", "aps", "--within", "class")
        second = json.loads(run(folder, "--data", "labelled.npz", *ruled, "--json"))["id"]
        assert until(client, lambda found: found == second)
        answer = client.predict("m", x[:50], coverage=0.8)
        assert answer.calibration_validity == "exact"
        assert {"decision"} <= set(answer.stop_reason) <= {"decision", "max_draws"}
        own = client.predict("m", x[:50], coverage=0.8, stopping=Stopping.none())
        assert (own.calibration_validity, set(own.stop_reason)) == ("approximate", {"max_draws"})
        about = client.model("m").calibration
        assert about is not None
        assert (about.stopping, about.conformal, about.condition) == ("decision", "aps", "class")

        run(folder, "--use", first)
        assert until(client, lambda found: found == first)
        assert first in run(folder, "--list")
        assert second in run(folder, "--list")
        run(folder, "--use", "none")
        assert until(client, lambda found: found is None) is None
        assert client.predict("m", x[:2]).calibration_validity == "none"
        run(folder, "--use", first)
        until(client, lambda found: found == first)


def test_the_command_line_shows_sets_and_who_abstains(folder: Path, target: str) -> None:
    command = [DUBITO, "predict", "m", "--server", target, "--input", "rows.npy", "--coverage", "0.9"]
    shown = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    assert "set" in shown.splitlines()[0] + shown.splitlines()[1]
    assert "abstain" in shown
    said = json.loads(subprocess.run([*command, "--json"], cwd=folder, check=True, capture_output=True).stdout)
    assert np.shape(said["prediction_set"]) == (6, CLASSES)
    assert np.shape(said["abstain"]) == (6,)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "data: got None; accepted: --data FILE"),
        (("--data", "nothing.npz"), "nothing.npz (No such file"),
        (("--data", "labelled.npz", "--method", "noise_scale"), "method: got noise_scale"),
        (("--data", "labelled.npz", "--within", "city"), "within: got city"),
        (("--data", "labelled.npz", "--stop-level", "0.9"), "stop: got nothing"),
        (("--data", "labelled.npz", "--risk-by", "disagreement"), "risk: got nothing"),
        (("--data", "labelled.npz", "--risk", "2"), "risk, confidence: got 2.0, 0.95"),
        (("--use", "f00"), "calibration: got f00"),
    ],
)
def test_what_cannot_be_done_is_one_line_that_names_it(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    done = invoke(folder, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
