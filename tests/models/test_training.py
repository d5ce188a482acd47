"""Training: recipes, determinism, resumption after any kill, early stopping, and how good the shipped recipes are."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dubito_models import training
from dubito_models.data import Split, Splits, digits
from dubito_models.errors import InvalidArgument
from dubito_models.metrics import accuracy
from dubito_models.recipes import Recipe, read_recipe, shipped_recipes
from dubito_models.recipes.sections import AugmentationSection
from dubito_models.training import Epoch, Started, TrainedNetwork, augment, train

MLP_TABLE = {"kind": "mlp", "widths": (8,), "dropout": (0.3,)}
CNN_TABLE = {
    "kind": "cnn",
    "widths": (4, 4),
    "channel_dropout": (0.2,),
    "head_width": 8,
    "head_dropout": 0.3,
}
PLATEAU = {"kind": "plateau", "patience": 0, "factor": 0.5}


def tiny(**changes: Any) -> Recipe:
    tables = {
        "name": "tiny",
        "epochs": 5,
        "patience": 100,
        "batch_size": 16,
        "learning_rate": 0.01,
        "weight_decay": 0.01,
        "label_smoothing": 0.05,
        "augmentation": {"rotation_degrees": 10.0, "shift_pixels": 1.0},
        "network": MLP_TABLE,
    }
    return Recipe.model_validate({**tables, **changes})


@pytest.fixture(scope="module")
def data() -> Splits:
    """A hundred digits to train with, fifty to stop by."""
    whole = digits(0)

    def first(split: Split, rows: int) -> Split:
        return Split(split.inputs[:rows], split.targets[:rows])

    return replace(whole, train=first(whole.train, 100), validation=first(whole.validation, 50))


def weights(trained: TrainedNetwork) -> dict[str, Tensor]:
    return trained.network.state_dict()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def logged(folder: Path) -> list[int]:
    with (folder / "log.csv").open() as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


class Killed(BaseException):
    """Stands for whatever ends a process."""


def killer(after: int) -> Callable[[Started | Epoch], None]:
    def progress(event: Started | Epoch) -> None:
        if isinstance(event, Epoch) and event.epoch == after:
            raise Killed

    return progress


# --- Recipes ---


def test_shipped_recipes_are_read_by_name() -> None:
    """Every shipped recipe is valid and bears the name that it is asked by."""
    digits_recipes = ("cnn", "concrete", "dropconnect", "mlp", "resnet", "rnn", "selu", "transformer")
    assert shipped_recipes() == sorted(
        [f"digits-{kind}" for kind in digits_recipes]
        + ["co2", "diabetes", "diabetes-heteroscedastic", "tabular", "uci", "uci-heteroscedastic"]
    )
    for name in shipped_recipes():
        assert read_recipe(name).name == name


TOML = """
name = "mine"
epochs = 3
patience = 2
batch_size = 8
learning_rate = 1
[schedule]
kind = "plateau"
[network]
kind = "mlp"
widths = [8, 8]
dropout = 0.25
"""


def test_a_file_is_a_recipe_too(tmp_path: Path) -> None:
    """A path that ends in .toml is read; whole numbers serve as fractions, one rate as a list."""
    path = tmp_path / "mine.toml"
    path.write_text(TOML)
    recipe = read_recipe(path)
    assert recipe == read_recipe(str(path))
    assert (recipe.name, recipe.learning_rate, recipe.network.model_dump()["dropout"]) == ("mine", 1.0, (0.25,))


@pytest.mark.parametrize(
    ("old", "new", "field", "said"),
    [
        ("epochs = 3", "epochs = 3\nepoch = 3", "recipe.epoch", "an unknown key; accepted: name, seed, epochs"),
        ("widths", "width = 8\nwidths", "recipe.network.width", "an unknown key; accepted: kind, widths, dropout"),
        ("[schedule]", "[schedule]\nslope = 1", "recipe.schedule.slope", "accepted: kind, factor, patience, floor"),
        ("[network]", "[augmentation]\nzoom = 2\n[network]", "recipe.augmentation.zoom", "shift_pixels"),
        ("epochs = 3", "", "recipe.epochs", "got nothing"),
        ("epochs = 3", "epochs = 0", "recipe.epochs", "got 0; accepted: Input should be greater than or equal to 1"),
        ("epochs = 3", 'epochs = "3"', "recipe.epochs", "valid integer"),
        ("epochs = 3", "epochs = true", "recipe.epochs", "valid integer"),
        ("learning_rate = 1", "learning_rate = 0.0", "recipe.learning_rate", "greater than 0"),
        ("learning_rate = 1", "learning_rate = nan", "recipe.learning_rate", "finite"),
        ('"mine"', '"my recipe"', "recipe.name", "pattern"),
        ("dropout = 0.25", "dropout = 0.99", "recipe.network.dropout.0", "0.95"),
        ("dropout = 0.25", "dropout = [0.1, -0.1]", "recipe.network.dropout.1", "got -0.1"),
        ("dropout = 0.25", "dropout = 0.0", "recipe.network", "at least one dropout rate above 0"),
        ('kind = "mlp"', 'kind = "lstm"', "recipe.network", "'mlp', 'cnn'"),
        ("widths = [8, 8]", "widths = []", "recipe.network.widths", "at least 1"),
        ("epochs = 3", "epochs = ", "recipe", "a TOML file"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(tmp_path: Path, old: str, new: str, field: str, said: str) -> None:
    """A recipe with an unknown, missing or impossible value is refused by key, with what is accepted, in one line."""
    path = tmp_path / "mine.toml"
    path.write_text(TOML.replace(old, new, 1))
    with pytest.raises(InvalidArgument) as caught:
        read_recipe(path)
    assert caught.value.field == field
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_recipes_that_are_not_there(tmp_path: Path) -> None:
    """An unknown name lists the shipped recipes; a missing, unreadable or binary file is named."""
    with pytest.raises(InvalidArgument, match=r"got digits; accepted: co2, diabetes, .* or the path"):
        read_recipe("digits")
    with pytest.raises(InvalidArgument, match=r"none\.toml \(No such file"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(InvalidArgument, match=r"folder\.toml \(Is a directory"):
        read_recipe(tmp_path / "folder.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidArgument, match="a TOML file"):
        read_recipe(tmp_path / "binary.toml")


def test_a_revised_recipe_is_validated() -> None:
    """Another seed or number of epochs gives another recipe, or the refusal that a file would get."""
    recipe = read_recipe("digits-cnn")
    assert recipe.revised() == recipe
    revised = recipe.revised(seed=4, epochs=2)
    assert (revised.seed, revised.epochs, revised.network) == (4, 2, recipe.network)
    with pytest.raises(InvalidArgument, match=r"recipe\.epochs"):
        recipe.revised(epochs=0)


# --- Randomness ---


def test_the_seed_alone_decides(data: Splits, tmp_path: Path) -> None:
    """Two runs of one seed end with the same bits, whatever the global generators hold; another seed with others."""
    runs = []
    for number, seed in enumerate((7, 7, 8)):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(number)
            np.random.seed(number)
            runs.append(weights(train(tiny(seed=seed), data, device="cpu", run_directory=tmp_path / str(number))))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_global_generators_are_left_alone(data: Splits, tmp_path: Path) -> None:
    """Training leaves torch's and numpy's global generators where they were, also when it is interrupted."""
    before, numpy_before = torch.get_rng_state(), np.random.get_state()
    with pytest.raises(Killed):
        train(tiny(), data, device="cpu", run_directory=tmp_path, progress=killer(2))
    train(tiny(), data, device="cpu", run_directory=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(np.random.get_state()) == repr(numpy_before)


def test_augmentation_moves_each_image_by_its_own() -> None:
    """Bounds of 0 change nothing; else equal images part, by no more light than falls out at the edge."""
    image = torch.zeros(64, 1, 9, 9)
    image[:, :, 3:6, 3:6] = 1
    still = augment(image, AugmentationSection(), np.random.default_rng(0))
    torch.testing.assert_close(still, image)
    moved = augment(image, AugmentationSection(shift_pixels=2.0), np.random.default_rng(0))
    assert len(moved.unique(dim=0)) == 64
    torch.testing.assert_close(moved.sum((1, 2, 3)), torch.full((64,), 9.0))
    # Uniform on [-2, 2], the light's centre has a standard deviation of 4 / sqrt(12).
    rows = torch.arange(9.0).view(1, 1, 9, 1)
    centre = (moved * rows).sum((1, 2, 3)) / 9
    assert 2 <= centre.min() < 3
    assert 5 < centre.max() <= 6


def test_augmentation_turns_without_stretching() -> None:
    """A quarter turn of an oblong keeps what lies on the circle about its centre, for one height and another width."""
    image = torch.zeros(1, 1, 5, 9)
    image[0, 0, 2, 6] = 1  # two pixels right of the centre

    class Quarter(np.random.Generator):
        def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
            return np.full(size, high)

    turned = augment(image, AugmentationSection(rotation_degrees=90.0), Quarter(np.random.PCG64(0)))
    assert turned[0, 0, [0, 4], 4].max() == pytest.approx(1, abs=1e-4)
    assert turned.sum() == pytest.approx(1, abs=1e-4)


# --- Resumption ---


@pytest.mark.parametrize(
    "changes",
    [{"network": MLP_TABLE, "schedule": PLATEAU, "learning_rate": 0.5}, {"network": CNN_TABLE}],
    ids=["mlp-plateau", "cnn-cosine"],
)
def test_an_interrupted_run_ends_like_an_unbroken_one(data: Splits, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Stopped after an epoch, the last, or each, and resumed: the same weights and history, to the bit."""
    recipe = tiny(**changes)
    unbroken = train(recipe, data, device="cpu", run_directory=tmp_path / "unbroken")
    stops = [[2], [5], [1, 2, 3, 4, 5]]
    for number, epochs in enumerate(stops):
        folder = tmp_path / str(number)
        for epoch in epochs:
            with pytest.raises(Killed):
                train(recipe, data, device="cpu", run_directory=folder, progress=killer(epoch))
        resumed = train(recipe, data, device="cpu", run_directory=folder)
        assert same(weights(resumed), weights(unbroken))
        assert [replace(e, seconds=0) for e in resumed.history] == [replace(e, seconds=0) for e in unbroken.history]
        assert logged(folder) == [1, 2, 3, 4, 5]


CHILD = """
import sys
from pathlib import Path
import torch
from dubito_models.data import digits
from dubito_models.recipes import read_recipe
from dubito_models.recipes.sections import AugmentationSection
from dubito_models.training import Epoch, train

torch.set_num_threads(int(sys.argv[3]))
def progress(event):
    if isinstance(event, Epoch):
        print(event.epoch, flush=True)
train(read_recipe(sys.argv[1]), digits(0), device="cpu", run_directory=Path(sys.argv[2]), progress=progress)
"""


def test_a_run_killed_by_sigkill_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    """A process killed in the middle of an epoch, twice, leaves what a third needs to end with the same bits."""
    path = tmp_path / "tiny.toml"
    path.write_text(
        TOML.replace("epochs = 3", "epochs = 40")
        .replace("batch_size = 8", "batch_size = 128")
        .replace("patience = 2", "patience = 50")
        .replace("learning_rate = 1", "learning_rate = 0.001")
    )
    killed = tmp_path / "killed"
    for line in range(2):
        command = [sys.executable, "-c", CHILD, str(path), str(killed), str(torch.get_num_threads())]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            first = int(child.stdout.readline())
            child.stdout.readline()
            child.send_signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
        assert first == 1 if line == 0 else first > 2
        assert len(logged(killed)) < 40
    events: list[Started | Epoch] = []
    resumed = train(read_recipe(path), digits(0), device="cpu", run_directory=killed, progress=events.append)
    assert isinstance(events[0], Started)
    assert 4 <= events[0].epochs_done < 40
    unbroken = train(read_recipe(path), digits(0), device="cpu", run_directory=tmp_path / "unbroken")
    assert same(weights(resumed), weights(unbroken))
    assert logged(killed) == logged(tmp_path / "unbroken") == list(range(1, 41))


def test_a_kill_between_checkpoint_and_log_leaves_no_gap(
    data: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the checkpoint and before the log, a resumed run has every epoch in the log once."""

    def die(path: Path, history: list[Epoch]) -> None:
        if len(history) == 3:
            raise Killed
        write(path, history)

    write = training._write_log
    with monkeypatch.context() as patch:
        patch.setattr(training, "_write_log", die)
        with pytest.raises(Killed):
            train(tiny(), data, device="cpu", run_directory=tmp_path)
    assert logged(tmp_path) == [1, 2]
    train(tiny(), data, device="cpu", run_directory=tmp_path)
    assert logged(tmp_path) == [1, 2, 3, 4, 5]


def test_a_checkpoint_is_whole_or_absent(data: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure while a checkpoint is written leaves the one before it, and no partial file."""
    with pytest.raises(Killed):
        train(tiny(), data, device="cpu", run_directory=tmp_path, progress=killer(2))
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def die(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die)
        with pytest.raises(OSError, match="No space"):
            training.write_atomically(tmp_path / "checkpoint.pt", b"half of it")
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "log.csv"]


def test_a_finished_run_is_not_trained_again(data: Splits, tmp_path: Path) -> None:
    """Training that has ended answers from its checkpoint; `fresh` trains it anew, to the same bits."""
    first = train(tiny(), data, device="cpu", run_directory=tmp_path)
    events: list[Started | Epoch] = []
    again = train(tiny(), data, device="cpu", run_directory=tmp_path, progress=events.append)
    assert events == [Started("cpu", epochs=5, epochs_done=5, metric="accuracy")]
    assert same(weights(first), weights(again))
    events.clear()
    fresh = train(tiny(), data, device="cpu", run_directory=tmp_path, progress=events.append, fresh=True)
    assert len(events) == 6
    assert same(weights(first), weights(fresh))
    assert logged(tmp_path) == [1, 2, 3, 4, 5]


def test_another_recipe_or_other_data_do_not_resume(data: Splits, tmp_path: Path) -> None:
    """A checkpoint of another recipe or of other data is refused with the remedies, and stays as it was."""
    train(tiny(), data, device="cpu", run_directory=tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    other = replace(data, train=Split(data.train.inputs[1:], data.train.targets[1:]))
    for recipe, rows in ((tiny(seed=1), data), (tiny(epochs=6), data), (tiny(), other)):
        with pytest.raises(InvalidArgument, match="--fresh to start over, or another --run-directory") as caught:
            train(recipe, rows, device="cpu", run_directory=tmp_path)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    train(tiny(seed=1), data, device="cpu", run_directory=tmp_path, fresh=True)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_checkpoint_is_refused(data: Splits, tmp_path: Path, content: bytes) -> None:
    """A file that is no checkpoint is refused in one line."""
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InvalidArgument, match="which is no checkpoint") as caught:
        train(tiny(), data, device="cpu", run_directory=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_runs_no_code(data: Splits, tmp_path: Path) -> None:
    """A checkpoint that asks to call a function is refused, and the function is not called."""

    class Harmful:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"fingerprint": Harmful()}, tmp_path / "checkpoint.pt")
    with pytest.raises(InvalidArgument, match="which is no checkpoint"):
        train(tiny(), data, device="cpu", run_directory=tmp_path)
    assert not (tmp_path / "made").exists()


# --- When it ends ---


def test_early_stopping_restores_the_best_weights(data: Splits, tmp_path: Path) -> None:
    """After `patience` epochs without a lower validation NLL training ends, with the weights of the lowest."""
    recipe = tiny(epochs=200, patience=3, learning_rate=0.05, label_smoothing=0.0)
    trained = train(recipe, data, device="cpu", run_directory=tmp_path)
    assert len(trained.history) == trained.best.epoch + 3 < 200
    assert trained.best.validation_loss == min(epoch.validation_loss for epoch in trained.history)
    assert not trained.network.training
    with torch.inference_mode():
        logits = trained.network(torch.tensor(data.validation.inputs)).double()
    nll = F.cross_entropy(logits, torch.tensor(data.validation.targets))
    assert float(nll) == trained.best.validation_loss < trained.history[-1].validation_loss


def test_a_plateau_lowers_the_learning_rate(data: Splits, tmp_path: Path) -> None:
    """The plateau schedule halves after each epoch that does not improve; the cosine is half a wave."""
    plateau = tiny(schedule=PLATEAU, learning_rate=0.5, epochs=8)
    history = train(plateau, data, device="cpu", run_directory=tmp_path / "plateau").history
    rate, best = 0.5, float("inf")
    for epoch in history:
        assert epoch.learning_rate == pytest.approx(rate)
        rate, best = (rate, epoch.validation_loss) if epoch.validation_loss < best * (1 - 1e-4) else (rate / 2, best)
    assert history[-1].learning_rate < 0.5
    history = train(tiny(), data, device="cpu", run_directory=tmp_path / "cosine").history
    expected = [0.01 * (1 + np.cos(np.pi * epoch / 5)) / 2 for epoch in range(5)]
    np.testing.assert_allclose([epoch.learning_rate for epoch in history], expected)


def test_the_log_says_what_the_history_says(data: Splits, tmp_path: Path) -> None:
    """Each line of the log is an epoch's numbers, exactly; seconds come from the given clock."""
    ticks = iter(range(100))
    trained = train(tiny(), data, device="cpu", run_directory=tmp_path, clock=lambda: float(next(ticks)))
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [Epoch(int(row.pop("epoch")), **{key: float(row[key]) for key in row}) for row in rows] == list(
        trained.history
    )
    assert {epoch.seconds for epoch in trained.history} == {1.0}


def test_a_loss_that_is_not_finite_ends_the_run(data: Splits, tmp_path: Path) -> None:
    """Weights that overflow end the run with advice, and no checkpoint holds them."""
    huge = Split(data.train.inputs * np.float32(3e38), data.train.targets)
    with pytest.raises(InvalidArgument, match="the loss of epoch 1 is not finite; accepted: a lower one"):
        train(tiny(), replace(data, train=huge), device="cpu", run_directory=tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_what_cannot_be_used_is_refused(data: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is not there, and a run directory that is a file, are refused by name."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidArgument, match="device"):
        train(tiny(), data, device="cuda", run_directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match="run_directory"):
        train(tiny(), data, device="cpu", run_directory=tmp_path / "file")


# --- How good it is ---


def monte_carlo(network: nn.Module, images: Tensor, draws: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Average the probabilities (N, K) of passes in training mode, batch norm apart."""
    for part in network.modules():
        part.training = not hasattr(part, "running_mean")
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.default_generator.manual_seed(0)
        return torch.stack([network(images).double().softmax(1) for _ in range(draws)]).mean(0).numpy()


RECIPES = (
    "digits-mlp", "digits-selu", "digits-dropconnect", "digits-concrete", "digits-cnn", "digits-resnet", "digits-rnn",
    "digits-transformer",
)  # fmt: skip


@pytest.mark.parametrize(("name", "seed"), [*((name, 0) for name in RECIPES), ("digits-mlp", 1)])
def test_shipped_recipes_are_accurate(name: str, seed: int, tmp_path: Path) -> None:
    """The Monte Carlo mean of 40 draws is right on at least 97 % of the test images."""
    data = digits(seed)
    trained = train(read_recipe(name).revised(seed=seed), data, device="cpu", run_directory=tmp_path)
    probabilities = monte_carlo(trained.network, torch.tensor(data.test.inputs), draws=40)
    assert accuracy(probabilities, data.test.targets) >= 0.97
