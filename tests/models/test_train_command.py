"""`dubito train`: from a recipe to a calibrated version on disk, and every way of not getting there."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from dubito_models.command import train
from dubito_models.data import digits
from dubito_models.metrics import ClassificationScores, accuracy
from dubito_models.predictive import Classification, Regression
from dubito_models.repository import Repository
from dubito_models.sampling import SamplingSpec
from dubito_models.scoring import score_paths

RECIPE = """
name = "tiny"
epochs = 3
patience = 3
batch_size = 64
learning_rate = 0.01
[network]
kind = "mlp"
widths = [16]
dropout = 0.2
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def run(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command in a folder of its own, with the tiny recipe and a repository, and further arguments."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str, recipe: str | Path = recipe) -> Result:
        return CliRunner().invoke(train, [str(recipe), "--repository", "repository", *arguments])

    return invoke


def found(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def refused(result: Result) -> str:
    """Return the one line that was said on stderr, after checking that it is one."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


TWO_LAYERS = RECIPE.replace("widths = [16]", "widths = [64, 64]")


def test_a_recipe_says_how_its_version_is_packed(run: Callable[..., Result], recipe: Path, tmp_path: Path) -> None:
    """By its section, which the command's options overrule; the run is the same one, and is not trained again."""
    recipe.write_text(TWO_LAYERS + "[packing]\nprecision = 'bfloat16'\nfan_out = 2\n")
    assert run("--no-calibration").exit_code == 0
    trained = (tmp_path / "runs" / "tiny-seed0" / "checkpoint.pt").read_bytes()
    assert run("--no-calibration", "--precision", "float32", "--fan-out", "4").exit_code == 0
    packed = [Repository(tmp_path / "repository").load("tiny", version).manifest for version in (1, 2)]
    assert [(each.precision.value, each.fan_out) for each in packed] == [("bfloat16", 2), ("float32", 4)]
    assert (tmp_path / "runs" / "tiny-seed0" / "checkpoint.pt").read_bytes() == trained


@pytest.mark.parametrize(
    ("packing", "said"),
    [
        ("precision = 'float16'", "recipe.packing.precision: got float16; accepted: Input should be 'float32' or"),
        ("fan_out = 65", "recipe.packing.fan_out: got 65; accepted: Input should be less than or equal to 64"),
        ("fan = 2", "recipe.packing.fan: got an unknown key; accepted: precision, fan_out"),
        ("fan_out = 2", "fan_out: got 2; accepted: 1"),  # of a network with a single site
    ],
)
def test_what_a_version_cannot_be_packed_with(
    run: Callable[..., Result], recipe: Path, packing: str, said: str
) -> None:
    recipe.write_text(f"{RECIPE}[packing]\n{packing}\n")
    result = run()
    assert result.exit_code == 2
    assert said in result.stderr.splitlines()[-1]


def test_a_recipe_becomes_a_calibrated_version(run: Callable[..., Result], tmp_path: Path) -> None:
    """One command trains, packs and calibrates, shows three rows of scores and where the version lies."""
    result = run()
    assert result.exit_code == 0, result.output
    for word in ("standard", "Monte Carlo", "Monte Carlo, calibrated", "accuracy", "NLL", "Brier", "ECE"):
        assert word in result.stdout
    assert f"version 1 of tiny: {Path('repository/tiny/1')}" in result.stdout
    assert found(tmp_path / "runs") == ["tiny-seed0/checkpoint.pt", "tiny-seed0/log.csv"]
    version = Repository(tmp_path / "repository").load("tiny")
    assert version.calibration is not None
    assert version.calibration.rows + version.calibration.score_rows == len(digits(0).calibration)
    assert version.manifest.class_names == digits(0).class_names


def test_scores_are_those_of_the_paths(run: Callable[..., Result], tmp_path: Path) -> None:
    """Scores come from the standard path and from the default draws, before and after calibration."""
    run()
    version, test = Repository(tmp_path / "repository").load("tiny"), digits(0).test
    scores = score_paths(version, test)
    predictive = version.predict(test.inputs, SamplingSpec(uncalibrated=True))
    assert isinstance(predictive.answer, Classification)
    assert isinstance(predictive.uncalibrated, Classification)
    probabilities = version.evaluate(test.inputs).probabilities
    assert probabilities is not None
    assert {path: score.accuracy for path, score in scores.items() if isinstance(score, ClassificationScores)} == {
        "standard": accuracy(probabilities, test.targets),
        "Monte Carlo": accuracy(predictive.uncalibrated.probabilities, test.targets),
        "Monte Carlo, calibrated": accuracy(predictive.answer.probabilities, test.targets),
    }


def test_the_same_command_again_packs_the_next_version(run: Callable[..., Result], tmp_path: Path) -> None:
    """A finished run is not trained again: the same program becomes version 2; without calibration, two rows."""
    run()
    log = (tmp_path / "runs/tiny-seed0/log.csv").read_bytes()
    result = run("--no-calibration")
    assert "version 2 of tiny" in result.stdout
    assert "calibrated" not in result.stdout
    assert (tmp_path / "runs/tiny-seed0/log.csv").read_bytes() == log
    first, second = (Repository(tmp_path / "repository").load("tiny", number) for number in (1, 2))
    assert first.manifest.checksums == second.manifest.checksums
    assert second.calibration is None


def test_options_override_the_recipe(run: Callable[..., Result], tmp_path: Path) -> None:
    """Name, seed, epochs and run directory are taken from the options where they are given."""
    arguments = ("--name", "mine", "--seed", "5", "--epochs", "1", "--run-directory", "elsewhere", "--device", "cpu")
    result = run(*arguments, "--no-calibration")
    assert "best epoch 1 of 1" in result.stdout
    assert "version 1 of mine" in result.stdout
    assert len((tmp_path / "elsewhere/log.csv").read_text().splitlines()) == 2
    assert found(tmp_path / "repository")[0].startswith("mine/1/")


def test_another_recipe_needs_fresh(run: Callable[..., Result], tmp_path: Path) -> None:
    """A run directory of another recipe is refused with the remedy, and the remedy works."""
    run("--no-calibration")
    line = refused(run("--epochs", "2"))
    assert "--fresh to start over, or another --run-directory" in line
    assert run("--epochs", "2", "--fresh", "--no-calibration").exit_code == 0
    assert len((tmp_path / "runs/tiny-seed0/log.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--name", "a b"), "name: got 'a b'"), (("--device", "cuda"), "no GPU can be used here")],
)
def test_a_refusal_is_one_line_and_leaves_nothing(
    run: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    """A value that cannot be used is told in one line with exit code 2, before anything is written."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert said in refused(run(*arguments))
    assert found(tmp_path) == ["tiny.toml"]


def test_an_unknown_recipe_is_one_line(run: Callable[..., Result]) -> None:
    """An unknown recipe lists those that exist."""
    assert "accepted: co2, diabetes, diabetes-heteroscedastic, digits-cnn" in refused(run(recipe="digits"))


def test_a_failure_after_training_leaves_no_version(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where packing fails the repository stays empty, and the run can be packed later without training again."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("dubito_models.packing.write_atomically", fail)
        result = run("--no-calibration")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "Error: [Errno 28] No space left on device"
    assert found(tmp_path / "repository") == []
    log = (tmp_path / "runs/tiny-seed0/log.csv").read_bytes()
    assert run("--no-calibration").exit_code == 0
    assert (tmp_path / "runs/tiny-seed0/log.csv").read_bytes() == log


def test_an_interrupted_run_says_how_to_go_on(recipe: Path, tmp_path: Path) -> None:
    """Ctrl-C ends the command with 130 and the word where it goes on, and leaves a checkpoint and no version."""
    recipe.write_text(RECIPE.replace("epochs = 3", "epochs = 5000").replace("patience = 3", "patience = 5000"))
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heeds}; from dubito_models.command import train; train()"
    arguments = [sys.executable, "-c", program, str(recipe), "--repository", "repository", "--no-calibration"]
    log = tmp_path / "runs/tiny-seed0/log.csv"
    with subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as child:
        while not log.exists():
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        _, stderr = child.communicate(timeout=60)
    assert child.returncode == 130
    assert stderr.splitlines()[-1] == "Interrupted: the same command goes on from runs/tiny-seed0"
    assert found(tmp_path) == ["runs/tiny-seed0/checkpoint.pt", "runs/tiny-seed0/log.csv", "tiny.toml"]


# --- Regression and tables ---

TABLE = """
name = "table"
epochs = 3
patience = 3
batch_size = 32
learning_rate = 0.01
[data]
kind = "table"
[network]
kind = "mlp"
widths = [16]
dropout = 0.2
"""


def write_table(path: Path, rows: int = 120, **columns: object) -> Path:
    """Write a table of a number with gaps, a category, two targets, and further columns of one value."""
    random = np.random.default_rng(0)
    area = random.normal(80, 20, rows).round(1)
    city = random.choice(["Rome", "Oslo"], rows)
    price = (area * 2 + 30 * (city == "Oslo") + random.normal(0, 5, rows)).round(2)
    frame = pd.DataFrame({"area": area, "city": city, "price": price, "dear": np.where(price > 180, "yes", "no")})
    frame.loc[::10, "area"] = np.nan
    frame.assign(**columns).to_csv(path, index=False)
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "table.toml").write_text(TABLE)
    return write_table(tmp_path / "homes.csv")


def test_a_table_becomes_a_version_that_knows_its_columns(run: Callable[..., Result], table: Path) -> None:
    """A regression from a .csv file: raw numbers and codes in, NaN where a value may be missing, prices out."""
    result = run("--data", str(table), "--target", "price", "--drop", "dear", recipe="table.toml")
    assert result.exit_code == 0, result.output
    assert "RMSE" in result.stdout
    assert "noise deviation" in result.stdout
    version = Repository(table.parent / "repository").load("table")
    [signature] = version.manifest.inputs
    assert signature.columns is not None
    assert [(column.name, column.kind, column.categories) for column in signature.columns] == [
        ("area", "number", ()),
        ("city", "category", ("Oslo", "Rome")),
    ]
    answer = version.predict(np.array([[100.0, 1], [100.0, 2], [np.nan, 0]], np.float32)).answer
    assert isinstance(answer, Regression)
    assert np.isfinite(answer.mean).all()


def test_a_tables_texts_are_classes(run: Callable[..., Result], table: Path) -> None:
    result = run("--data", str(table), "--target", "dear", "--drop", "price", recipe="table.toml")
    assert result.exit_code == 0, result.output
    version = Repository(table.parent / "repository").load("table")
    assert version.manifest.class_names == ("no", "yes")


def test_a_network_may_predict_its_own_noise(run: Callable[..., Result], table: Path) -> None:
    result = run(
        "--data", str(table), "--target", "price", "--drop", "dear", "--head", "mean_and_log_variance",
        recipe="table.toml",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    version = Repository(table.parent / "repository").load("table")
    assert version.manifest.head.value == "mean_and_log_variance"
    assert version.manifest.noise_variance is None
    assert version.calibration is not None


@pytest.mark.parametrize(
    ("arguments", "columns", "said"),
    [
        (("--data", "none.csv", "--target", "price"), {}, "none.csv (No such file or directory)"),
        (("--target", "price"), {}, "recipe.data.path: got nothing; accepted: a value; --data FILE gives one"),
        (("--data", "homes.csv"), {}, "recipe.data.target: got nothing; accepted: a value; --target COLUMN gives one"),
        (("--data", "homes.csv", "--target", "cost"), {}, "target: got 'cost'; accepted: a column of homes.csv: area"),
        (("--data", "homes.csv", "--target", "area"), {}, "target 'area': got no value in 12 of 120 rows"),
        (("--data", "homes.csv", "--target", "price"), {"same": 7}, "column 'same': got 7 in every row; accepted: a"),
        (("--data", "homes.csv", "--target", "all"), {"all": "x"}, "target 'all': got one class only, 'x'"),
        (
            ("--data", "homes.csv", "--target", "price", "--split", "1"),
            {},
            "recipe.data.split: got 1",
        ),
        (("--data", "homes.csv", "--target", "dear", "--head", "mean"), {}, "recipe.head: got mean; accepted: for cla"),
        (("--data", "homes.csv", "--target", "price", "--device", "cuda"), {}, "no GPU can be used here"),
    ],
)
def test_tables_that_cannot_be_learned_from_are_one_line(
    run: Callable[..., Result],
    table: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    columns: dict[str, object],
    said: str,
) -> None:
    """Every refusal comes before anything is written."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    write_table(table, **columns)
    before = found(table.parent)
    assert said in refused(run(*arguments, recipe="table.toml"))
    assert found(table.parent) == before


def test_a_checkpoint_of_another_network_is_one_line(run: Callable[..., Result], table: Path) -> None:
    arguments = ("--data", str(table), "--target", "price", "--drop", "dear", "--no-calibration")
    assert run(*arguments, recipe="table.toml").exit_code == 0
    (table.parent / "table.toml").write_text(TABLE.replace("[16]", "[8]"))
    assert "a checkpoint of another recipe or other data" in refused(run(*arguments, recipe="table.toml"))


def test_rates_are_tried_and_shown(run: Callable[..., Result], table: Path) -> None:
    """The table of candidates marks one, and what was chosen is what is packed."""
    (table.parent / "table.toml").write_text(TABLE + "[selection]\nrates = [0.1, 0.4]\n")
    result = run("--data", str(table), "--target", "price", "--drop", "dear", recipe="table.toml")
    assert result.exit_code == 0, result.output
    [line] = [line for line in result.stdout.splitlines() if "chosen" in line]
    version = Repository(table.parent / "repository").load("table")
    assert {f"{site.rate:g}" for site in version.manifest.sites} == {line.split()[1]}
    assert (".1" in line) == ("usually best within 0.2 and 0.5" in result.stdout)


def test_a_forecast_is_shown_step_by_step(run: Callable[..., Result], tmp_path: Path) -> None:
    """CO2 with a network too small to be good: 24 steps, each with its interval, and nothing fitted to few windows."""
    text = resources.files("dubito_models.recipes").joinpath("co2.toml").read_text("utf-8")
    (tmp_path / "co2.toml").write_text(text.replace("width = 64", "width = 4"))
    result = run("--epochs", "2", recipe="co2.toml")
    assert result.exit_code == 0, result.output
    steps = [line for line in result.stdout.splitlines() if "step " in line]
    assert len(steps) == 24
    assert "calibration, coverage: normalized scores of" in result.stdout
    version = Repository(tmp_path / "repository").load("co2")
    assert version.manifest.outputs == 24
    assert [site.kind for site in version.manifest.sites] == ["weight", "channel"]


def test_a_uci_folder_is_trained_on(run: Callable[..., Result], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(120, 3))
    np.savetxt(tmp_path / "data.txt", np.column_stack([inputs, inputs.sum(1)]))
    rows = random.permutation(120)
    files = {"features": [0, 1, 2], "target": [3], "train_1": rows[:100], "test_1": rows[100:]}
    for name, numbers in files.items():
        np.savetxt(tmp_path / f"index_{name}.txt", numbers)
    (tmp_path / "table.toml").write_text(TABLE.replace('kind = "table"', 'kind = "uci"'))
    assert "index_train_0.txt" in refused(run("--data", str(tmp_path), recipe="table.toml"))
    result = run("--data", str(tmp_path), "--split", "1", recipe="table.toml")
    assert result.exit_code == 0, result.output
    assert "on 20 test rows" in result.stdout
