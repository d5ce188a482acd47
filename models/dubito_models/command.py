"""The command `dubito train`: train by a recipe, package, calibrate, and say what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dubito_models.data import Split, Splits, digits
from dubito_models.engine import SamplingSpec
from dubito_models.errors import DubitoError, InvalidArgument
from dubito_models.manifest import NAME
from dubito_models.metrics import ClassificationScores, classification_scores
from dubito_models.package import ModelVersion
from dubito_models.packing import pack
from dubito_models.predictive import Classification
from dubito_models.recipes import Recipe, read_recipe
from dubito_models.training import Epoch, Started, TrainedNetwork
from dubito_models.training import train as train_network

EXAMPLE_ROWS = 2  # of the inputs that packing looks at
INTERRUPTED = 130  # 128 + SIGINT, as a shell has it


class Refused(click.ClickException):
    """What the caller can mend, told in one line."""

    exit_code = 2

    def __init__(self, error: Exception) -> None:
        super().__init__(" ".join(str(error).split()))


def score_paths(version: ModelVersion, split: Split) -> dict[str, ClassificationScores]:
    """Return the scores of a classifier's standard path, its Monte Carlo path and, where it has one, its calibration.

    Both Monte Carlo rows are of the same draws: the version's default seed and number.
    """
    predictive = version.predict(split.images, SamplingSpec(uncalibrated=True))
    drawn = predictive.uncalibrated or predictive.answer
    standard = version.evaluate(split.images).probabilities
    if not isinstance(drawn, Classification) or standard is None:
        raise InvalidArgument("task", version.manifest.task.value, "classification")
    scores = {
        "standard": classification_scores(standard, split.labels),
        "Monte Carlo": classification_scores(drawn.probabilities, split.labels),
    }
    if version.calibration is not None and isinstance(predictive.answer, Classification):
        scores["Monte Carlo, calibrated"] = classification_scores(predictive.answer.probabilities, split.labels)
    return scores


def score_table(scores: Mapping[str, ClassificationScores], caption: str) -> Table:
    """Lay out scores by path as a table."""
    table = Table(title=caption, title_justify="left")
    table.add_column("path")
    for heading in ("accuracy", "NLL", "Brier", "ECE"):
        table.add_column(heading, justify="right")
    for path, score in scores.items():
        table.add_row(
            path,
            f"{score.accuracy:.4f}",
            f"{score.negative_log_likelihood:.4f}",
            f"{score.brier_score:.4f}",
            f"{score.expected_calibration_error:.4f}",
        )
    return table


def _train_with_bar(
    recipe: Recipe, data: Splits, device: Literal["auto", "cpu", "cuda"], run_directory: Path, fresh: bool
) -> TrainedNetwork:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=14),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[measured]}"),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task(recipe.name, total=recipe.epochs, measured="")
    with ExitStack() as stack:

        def show(event: Started | Epoch) -> None:
            if isinstance(event, Started):  # not before: a refusal is one line, without a bar
                stack.enter_context(bar)
                bar.update(task, completed=event.epochs_done)
                return
            measured = (
                f"loss {event.train_loss:.3f}  NLL {event.validation_nll:.3f}  accuracy {event.validation_accuracy:.3f}"
            )
            bar.update(task, completed=event.epoch, measured=measured)

        trained = train_network(recipe, data, device=device, run_directory=run_directory, progress=show, fresh=fresh)
        bar.update(task, total=len(trained.history))  # fewer than asked where it stopped early
    return trained


def _describe(version: ModelVersion, trained: TrainedNetwork) -> str:
    lines = [f"best epoch {trained.best.epoch} of {len(trained.history)}"]
    if version.calibration is not None:
        kept = "" if version.calibration.method == "temperature" else ", because none improved the likelihood"
        lines.append(f"temperature {version.calibration.temperature:.3f}{kept}")
    lines.append(f"version {version.version} of {version.name}: {version.folder}")
    return "\n".join(lines)


@click.command()
@click.argument("recipe", metavar="RECIPE")
@click.option(
    "--repository",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of models; the new version goes to DIRECTORY/<name>/<version>/.",
)
@click.option("--name", help="Of the model; the recipe's own by default.")
@click.option("--seed", type=click.IntRange(0), help="Of the split, the weights, the order and the noise.")
@click.option("--epochs", type=click.IntRange(1), help="At most so many; the recipe's own number by default.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--run-directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where checkpoint and log lie; runs/<recipe>-seed<seed> by default.",
)
@click.option("--fresh", is_flag=True, help="Start over, even where a checkpoint lies.")
@click.option("--calibration/--no-calibration", default=True, show_default=True, help="Fit a temperature.")
def train(
    recipe: str,
    repository: Path,
    name: str | None,
    seed: int | None,
    epochs: int | None,
    device: Literal["auto", "cpu", "cuda"],
    run_directory: Path | None,
    fresh: bool,
    calibration: bool,
) -> None:
    """Train, calibrate and package a model from RECIPE: the name of one that ships with dubito, or a .toml file.

    A run that is killed goes on from its last epoch when the same command is given again.
    """
    try:
        chosen = read_recipe(recipe).revised(seed=seed, epochs=epochs)
        model = name or chosen.name
        if not NAME.fullmatch(model):  # said now, not after the training
            raise InvalidArgument("name", repr(model), "1 to 128 of A-Z a-z 0-9 _ -")
        directory = run_directory or Path("runs") / f"{chosen.name}-seed{chosen.seed}"
    except DubitoError as error:
        raise Refused(error) from error
    try:
        data = digits(chosen.seed)
        trained = _train_with_bar(chosen, data, device, directory, fresh)
        version = pack(
            trained.network,
            torch.tensor(data.train.images[:EXAMPLE_ROWS]),
            repository=repository,
            name=model,
            task="classification",
            head="logits",
            class_names=data.class_names,
        )
        if calibration:
            version.calibrate(data.calibration.images, data.calibration.labels)
        scores = score_paths(version, data.test)
    except (DubitoError, OSError) as error:
        raise Refused(error) from error
    except KeyboardInterrupt:
        again = "the same command without --fresh" if fresh else "the same command"
        click.echo(f"Interrupted: {again} goes on from {directory}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    console = Console()
    console.print(score_table(scores, f"{model} on {len(data.test)} test images"))
    console.print(_describe(version, trained), highlight=False, soft_wrap=True)
