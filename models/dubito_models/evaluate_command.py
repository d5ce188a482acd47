"""The command `dubito evaluate`: how good a packaged version is on rows whose truth is known, and which path to use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from dubito_models import evaluating
from dubito_models.chosen import choose_version
from dubito_models.convergence import Convergence
from dubito_models.errors import DubitoError
from dubito_models.evaluating import Assessment, describe, document
from dubito_models.heads import Task
from dubito_models.refused import Refused
from dubito_models.repository import Repository
from dubito_models.rows import read_labelled
from dubito_models.scoreboard import resamples_said, score_lines
from dubito_models.scorecard import figure
from dubito_models.shifting import ShiftCurve


def show(assessment: Assessment, page: Path | None) -> None:
    """Print an assessment to standard output; `page`: where its report was written."""
    console = Console(highlight=False, markup=False)
    grid = Table.grid(padding=(0, 2))
    for name, said in describe(assessment.identity).items():
        grid.add_row(name, said)
    console.print(grid)
    console.print()
    console.print(_score_table(assessment))
    sets = assessment.set_coverage
    if sets is not None:
        what = "Prediction sets" if assessment.identity.task is Task.CLASSIFICATION else "Prediction intervals"
        size = "some of them infinite" if sets.size is None else f"mean size {figure(sets.size)}"
        console.print(f"{what} for {sets.level:.0%} of rows hold the truth of {sets.covered:.1%}, {size}.\n")
    for curve in assessment.shifts:
        console.print(_shift_table(curve, assessment.identity.task))
    if assessment.convergence is not None:
        console.print(_on_draws(assessment.convergence, assessment.identity.task) + "\n")
    for warning in assessment.verdict.warnings:
        console.print(f"warning: {warning}")
    console.print(assessment.verdict.sentence, style="bold")
    if page is not None:
        console.print(f"report: {page}", soft_wrap=True)


def _score_table(assessment: Assessment) -> Table:
    card = assessment.card
    table = _table(f"Scores, with intervals of {card.level:.0%} ({resamples_said(card)})", "score", *_paths(assessment))
    for line in score_lines(card):
        table.add_row(line.heading, *(f"{cell.value}\n{cell.interval}" for cell in line.cells))
    return table


def _paths(assessment: Assessment) -> list[str]:
    return list(next(iter(assessment.card.scores.values())))


def _table(title: str, first: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _shift_table(curve: ShiftCurve, task: Task) -> Table:
    shown = ("accuracy", "NLL", "mutual information")
    if task is Task.REGRESSION:
        shown = ("RMSE", "90% interval covers", "epistemic deviation")
    series = [one for name in shown for one in curve.of(name)]
    title = f"Under growing shift: {curve.ladder.shift.value} ({curve.ladder.unit}), {curve.rows} rows"
    table = _table(title, "shift", *(f"{one.figure},\n{one.path}" for one in series))
    for step, amount in enumerate(curve.amounts):
        table.add_row(f"{amount:g}", *(figure(one.values[step]) for one in series))
    return table


def _on_draws(found: Convergence, task: Task) -> str:
    if found.exact:
        return "Draws leave nothing to chance here: the only dropout is averaged over in closed form."
    what = "mutual information" if task is Task.CLASSIFICATION else "epistemic deviation"
    mean = "probability" if task is Task.CLASSIFICATION else "mean"
    errors = [
        f"{count}: {error:.2g} ({doubt:.2g})"
        for count, error, doubt in zip(found.draws, found.mean.found, found.epistemic.found, strict=True)
    ]
    return f"Monte Carlo error of a {mean} ({what}) by draws: {', '.join(errors)}; default {found.default_draws}."


@contextmanager
def _bars(quiet: bool) -> Iterator[evaluating.Progress]:
    """Show how far each part of the work is; on standard error, so that a document stays alone."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bars:

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield tell


@click.command()
@choose_version
@click.option("--data", required=True, metavar="ROWS", help="Rows whose truth is known; see above.")
@click.option(
    "--target", multiple=True, metavar="COLUMN", help="Of a table: the truth. Once for each number predicted."
)
@click.option("--shift", is_flag=True, help="Also move the rows away from what they are, step by step.")
@click.option("--convergence/--no-convergence", default=True, show_default=True, help="Measure how many draws suffice.")
@click.option(
    "--report",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write a page with charts (report.html) and the charts as PNG there.",
)
@click.option("--resamples", type=click.IntRange(20, 100_000), default=1000, show_default=True, help="Of the rows.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of resamples and noise.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def evaluate(
    model: str,
    repository: Path,
    number: int | None,
    data: str,
    target: tuple[str, ...],
    shift: bool,
    convergence: bool,
    report: Path | None,
    resamples: int,
    seed: int,
    as_json: bool,
) -> None:
    """Judge a version of MODEL: scores of its paths with intervals, and which path to use.

    \b
    ROWS is one of
      FILE.npz               the inputs by name, and labels or targets
      FILE.csv, .parquet     a table with a line of names; --target COLUMN
      FILE.csv:test          of a table, the part that `dubito train` left for
                             the test; FILE.csv:test:SEED where it had a --seed
      digits:test            a part of data that ship with dubito: digits,
                             diabetes or co2; digits:test:SEED likewise

    A part is train, validation, calibration or test. Judge on rows that neither training nor calibration has seen.
    """
    waiting = Console(stderr=True)
    page = None
    try:
        version = Repository(repository).load(model, number)
        rows = read_labelled(data, version, target)
        with _bars(quiet=not waiting.is_terminal) as progress:
            found = evaluating.evaluate(
                version,
                rows,
                data,
                shift=shift,
                convergence=convergence,
                resamples=resamples,
                seed=seed,
                progress=progress,
            )
            if report is not None:
                from dubito_models.report import draw_plates, write_report  # needs matplotlib

                plates = draw_plates(found, lambda done, total: progress("charts", done, total))
                page = write_report(found, plates, report)
    except (DubitoError, OSError) as error:
        raise Refused(error) from error
    if as_json:
        path = None if page is None else str(page)
        click.echo(json.dumps({**document(found), "report": path}, allow_nan=False))
    else:
        show(found, page)
