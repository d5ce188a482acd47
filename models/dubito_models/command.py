"""The command `dubito train`: train by a recipe, package, calibrate, and say what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from dubito_models.calibrating import CalibrationSpec
from dubito_models.calibration.describing import describe
from dubito_models.data import Splits
from dubito_models.errors import DubitoError, InvalidArgument
from dubito_models.manifest import MAX_FAN_OUT, NAME
from dubito_models.metrics import (
    ClassificationScores,
    interval_coverage,
    interval_width,
    root_mean_squared_error,
)
from dubito_models.package import ModelVersion
from dubito_models.predictive import Regression
from dubito_models.preparing import choose_head, load_splits
from dubito_models.recipes import Recipe, read_recipe
from dubito_models.refused import Refused
from dubito_models.scoring import Scores, score_paths
from dubito_models.selection import Candidate, Trying, pack_trained, train_candidates
from dubito_models.training import Epoch, Started

INTERRUPTED = 130  # 128 + SIGINT, as a shell has it
LOWEST, HIGHEST = 0.2, 0.5  # usual rates of hidden layers


def score_table(scores: Mapping[str, Scores], caption: str) -> Table:
    """Lay out scores by path as a table."""
    table = Table(title=caption, title_justify="left")
    table.add_column("path", no_wrap=True)
    cells = {path: _cells(score) for path, score in scores.items()}
    for heading in next(iter(cells.values())):
        table.add_column(heading, justify="right")
    for path, row in cells.items():
        table.add_row(path, *row.values())
    return table


def _cells(score: Scores) -> dict[str, str]:
    if isinstance(score, ClassificationScores):
        return {
            "accuracy": f"{score.accuracy:.4f}",
            "NLL": f"{score.negative_log_likelihood:.4f}",
            "Brier": f"{score.brier_score:.4f}",
            "ECE": f"{score.expected_calibration_error:.4f}",
        }
    return {
        "RMSE": f"{score.root_mean_squared_error:.4g}",
        "NLL": _number(score.negative_log_likelihood, ".4f"),
        f"{score.interval_level:.0%} interval covers": _number(score.interval_coverage, ".1%"),
        "width": _number(score.interval_width, ".4g"),
    }


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _target_table(version: ModelVersion, data: Splits) -> Table:
    """Lay out, target by target, how far the calibrated Monte Carlo path is off and how wide its intervals are."""
    answer = version.predict(data.test.inputs).answer
    assert isinstance(answer, Regression)
    assert data.target_names is not None
    table = Table(title="The same by target", title_justify="left")
    for heading in ("target", "RMSE", f"{answer.interval_level:.0%} interval covers", "width"):
        table.add_column(heading, justify="left" if heading == "target" else "right")
    for k, name in enumerate(data.target_names):
        targets = data.test.targets[:, k]
        interval = None if answer.interval is None else answer.interval[:, k]
        table.add_row(
            name,
            f"{root_mean_squared_error(answer.mean[:, k], targets):.4g}",
            "-" if interval is None else f"{interval_coverage(interval, targets):.1%}",
            "-" if interval is None else f"{interval_width(interval):.4g}",
        )
    return table


def _candidate_table(candidates: Sequence[Candidate]) -> Table:
    """Lay out what was tried, in order of the rates, the chosen one marked."""
    noisy = candidates[0].noise_variance is not None
    table = Table(title="Dropout rates tried (validation rows, nats)", title_justify="left")
    for heading in ("rate", "NLL", *(["noise deviation"] if noisy else []), ""):
        table.add_column(heading, justify="right")
    for candidate in sorted(candidates, key=lambda each: each.rate or 0.0):
        cells = [f"{candidate.rate:g}", _number(candidate.validation_nll, ".4f")]
        if candidate.noise_variance is not None:
            cells.append(" ".join(f"{math.sqrt(value):.4g}" for value in candidate.noise_variance))
        table.add_row(*cells, "chosen" if candidate is candidates[0] else "")
    return table


def advise(version: ModelVersion, chosen: Candidate) -> list[str]:
    """Say what about the dropout of a version is unusual, beside what the version itself warns of."""
    hidden = {"element", "channel", "alpha", "channel_alpha"}
    sites = [site for site in version.manifest.sites if site.kind in hidden and not site.name.endswith("input_dropout")]
    unusual = [f"{site.name} {site.rate:.3g}" for site in sites if not LOWEST <= site.rate <= HIGHEST]
    if not unusual:
        return []
    learned = getattr(chosen.trained.recipe.network, "variant", "") == "concrete"
    remedy = "a [selection] of rates, or a concrete variant, lets the data decide"
    if learned or chosen.rate is not None:
        remedy = "the data decided so here" if learned else "the validation likelihood decided so here"
    return [
        f"rates of hidden layers are usually best within {LOWEST} and {HIGHEST} (Srivastava et al. 2014), other are: "
        f"{', '.join(unusual)}; {remedy}"
    ]


def _train_with_bar(
    recipe: Recipe, data: Splits, device: Literal["auto", "cpu", "cuda"], run_directory: Path, fresh: bool
) -> tuple[Candidate, ...]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[measured]}"),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    title, metric, task = recipe.name, "", TaskID(0)
    done = 0
    with ExitStack() as stack:

        def show(event: Trying | Started | Epoch) -> None:
            nonlocal title, metric, task, done
            if isinstance(event, Trying):
                if event.number > 1:
                    bar.update(task, total=done)  # fewer than asked where it stopped early
                title = recipe.name if event.rate is None else f"{recipe.name}, rate {event.rate:g}"
            elif isinstance(event, Started):  # not before: a refusal is one line, without a bar
                if not bar.live.is_started:
                    stack.enter_context(bar)
                metric, done = event.metric, event.epochs_done
                task = bar.add_task(title, total=event.epochs, completed=done, measured="")
            else:
                losses = f"{event.train_loss:.3f} / {event.validation_loss:.3f}"  # of training and validation rows
                measured = f"loss {losses}  {metric} {event.validation_metric:.4g}"
                done = event.epoch
                bar.update(task, completed=done, measured=measured)

        candidates = train_candidates(
            recipe, data, device=device, run_directory=run_directory, progress=show, fresh=fresh
        )
        bar.update(task, total=done)
    return candidates


def _describe(version: ModelVersion, chosen: Candidate, notes: Sequence[str]) -> str:
    trained = chosen.trained
    lines = [f"note: {note}" for note in notes]
    lines.append(f"best epoch {trained.best.epoch} of {len(trained.history)}")
    if version.manifest.noise_variance is not None:
        deviations = ", ".join(f"{math.sqrt(value):.4g}" for value in version.manifest.noise_variance)
        lines.append(f"noise deviation {deviations}: 1 / sqrt(tau), fitted to the validation rows")
    if version.calibration is not None:
        lines.extend(f"calibration, {name}: {said}" for name, said in describe(version.calibration).items())
    lines.extend(f"warning: {warning}" for warning in version.manifest.warnings)
    lines.extend(f"advice: {advice}" for advice in advise(version, chosen))
    lines.append(f"version {version.version} of {version.name}: {version.folder}")
    return "\n".join(lines)


@click.command()
@click.argument("recipe", metavar="RECIPE")
@click.option(
    "--repository",
    default=Path("repository"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of models; the new version goes to DIRECTORY/<name>/<version>/.",
)
@click.option("--name", help="Of the model; the recipe's own by default.")
@click.option("--seed", type=click.IntRange(0), help="Of the split, the weights, the order and the noise.")
@click.option("--epochs", type=click.IntRange(1), help="At most so many; the recipe's own number by default.")
@click.option(
    "--head",
    type=click.Choice(["mean", "mean_and_log_variance"]),
    help="Of a regression: whether the network predicts its noise too.",
)
@click.option("--data", "path", help="Of the recipe's data: the folder of `uci`, the file of a table.")
@click.option("--split", type=click.IntRange(0), help="Which split of a `uci` folder.")
@click.option("--target", help="The column of a table to predict.")
@click.option(
    "--task", type=click.Choice(["classification", "regression"]), help="Where a table's target leaves it open."
)
@click.option("--drop", multiple=True, metavar="COLUMN", help="A column of a table to leave out; may be repeated.")
@click.option(
    "--precision", type=click.Choice(["float32", "bfloat16"]), help="Of the products of the draws; see the README."
)
@click.option(
    "--fan-out", type=click.IntRange(1, MAX_FAN_OUT), help="Masks of the last dropout for each draw of the others."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--run-directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where checkpoint and log lie; runs/<name>-seed<seed> by default.",
)
@click.option("--fresh", is_flag=True, help="Start over, even where a checkpoint lies.")
@click.option("--calibration/--no-calibration", default=True, show_default=True, help="On the calibration rows.")
def train(
    recipe: str,
    repository: Path,
    name: str | None,
    seed: int | None,
    epochs: int | None,
    head: str | None,
    path: str | None,
    split: int | None,
    target: str | None,
    task: str | None,
    drop: tuple[str, ...],
    precision: str | None,
    fan_out: int | None,
    device: Literal["auto", "cpu", "cuda"],
    run_directory: Path | None,
    fresh: bool,
    calibration: bool,
) -> None:
    """Train, calibrate and package a model from RECIPE: the name of one that ships with dubito, or a .toml file.

    A run that is killed goes on from its last epoch when the same command is given again.
    """
    try:
        of_data = {"path": path, "split": split, "target": target, "task": task, "drop": drop or None}
        changes = {f"data.{key}": value for key, value in of_data.items()}
        changes |= {"packing.precision": precision, "packing.fan_out": fan_out}
        chosen = read_recipe(recipe).revised(changes, seed=seed, epochs=epochs, head=head)
        model = name or chosen.name
        if not NAME.fullmatch(model):  # said now, not after the training
            raise InvalidArgument("name", repr(model), "1 to 128 of A-Z a-z 0-9 _ -")
        directory = run_directory or Path("runs") / f"{model}-seed{chosen.seed}"
    except DubitoError as error:
        raise Refused(error) from error
    try:
        data = load_splits(chosen)
        candidates = _train_with_bar(chosen, data, device, directory, fresh)
        best = candidates[0]
        version = pack_trained(
            best.trained.network,
            data,
            choose_head(chosen, data.task),
            repository=repository,
            name=model,
            noise_variance=best.noise_variance,
            packing=chosen.packing,
        )
        if calibration:
            spec = CalibrationSpec(overlap=data.overlap)
            version.calibrate(data.calibration.inputs, data.calibration.targets, spec)
        scores = score_paths(version, data.test)
    except (DubitoError, OSError) as error:
        raise Refused(error) from error
    except KeyboardInterrupt:
        again = "the same command without --fresh" if fresh else "the same command"
        click.echo(f"Interrupted: {again} goes on from {directory}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    console = Console()
    if len(candidates) > 1:
        console.print(_candidate_table(candidates))
    console.print(score_table(scores, f"{model} on {len(data.test)} test rows"))
    if data.target_names is not None and len(data.target_names) > 1:
        console.print(_target_table(version, data))
    console.print(_describe(version, best, data.notes), highlight=False, soft_wrap=True, markup=False)
