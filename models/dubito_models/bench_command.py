"""The command `dubito bench`: what a packaged version costs, how many draws it needs, and what to make of it."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path

import click
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from dubito_models.advising import document, recommend
from dubito_models.benching import Bench, Calibrated, Drawing, Needs, measure
from dubito_models.calibration.describing import describe_rule
from dubito_models.chosen import choose_version
from dubito_models.errors import DubitoError, InvalidArgument
from dubito_models.package import ModelVersion
from dubito_models.refused import Refused
from dubito_models.repository import Repository
from dubito_models.rows import Arrays, read_rows
from dubito_models.sampling import Estimator
from dubito_models.stopping import StoppingRule
from dubito_models.thinning import Design

MOST, MOST_WORK = 10_000, 1_000_000  # rows or draws of a request, and rows x draws, as a server takes them by default
CORES = os.cpu_count() or 1


# --- Tables ---

_WAYS = {
    "leading axis": "many to a pass, as a leading axis",
    "vmapped": "many to a pass, by vmap",
    "looped": "one to a pass, in a loop",
}
_SMALL = 1e-3  # standard errors below it are not told apart


def show(bench: Bench, source: str | None) -> None:
    """Print a bench to standard output; `source`: what the rows were taken from, None for made-up ones."""
    console = Console(highlight=False, markup=False)
    threads = "1 thread" if bench.threads == 1 else f"{bench.threads} threads"
    rows = "made-up rows" if source is None else f"rows of {source}"
    console.print(f"{bench.model} version {bench.version}, {bench.task.value}; {threads}, {rows}\n")
    grid = Table.grid(padding=(0, 2))
    for name, said in describe(bench.drawing, bench.default_draws).items():
        grid.add_row(name, said)
    console.print(grid)
    console.print()
    console.print(_speed_table(bench))
    if any(speed.milliseconds is None for speed in bench.speeds):
        console.print("-: left out, because it would take longer than --seconds\n")
    console.print(_pass_table(bench))
    if bench.needs is None:
        console.print("Draws needed: not told, as the errors of made-up rows say little of yours; --data FILE.\n")
    else:
        console.print(_needs_table(bench.needs, bench))
        console.print(_on_units(bench.needs, bench) + "\n")
    console.print("Recommendation", style="bold")
    points = Table.grid(padding=(0, 1))
    for point in recommend(bench):
        points.add_row("-", point)
    console.print(points)


def describe(drawing: Drawing, draws: int) -> dict[str, str]:
    """Say how draws are run, by what it is about."""
    design = drawing.design
    if drawing.design != Design.INDEPENDENT:
        design += f", in groups of {drawing.group_size}, at {drawing.balanced_sites} of {drawing.sites} dropout sites"
    kept = "of the default seed kept" if drawing.keeps_masks else "made anew, being too large to keep"
    last = {}
    if drawing.integrated:
        last = {"last site": "integrated in closed form"}
    elif drawing.fan_out > 1:
        last = {"last site": f"{drawing.fan_out} masks for each draw of the others"}
    return {
        "draws": f"{_WAYS[drawing.way]}, {drawing.precision}",
        "design": design,
        **last,
        "masks": f"{kept}: {_bytes(drawing.mask_bytes)} for {draws} draws",
        **({"calibration": "none"} if drawing.calibration is None else _on_calibration(drawing.calibration, draws)),
    }


def _on_calibration(calibration: Calibrated, draws: int) -> dict[str, str]:
    words = [f"{name} {value:.3g}" for name, value in calibration.parameters.items()]
    if calibration.method not in calibration.parameters:
        words.insert(0, "none, because none helped" if calibration.method == "identity" else calibration.method)
    said = {"calibration": ", ".join(words).replace("_", " ")}
    if calibration.stopping.rule is not StoppingRule.NONE:
        rule = describe_rule(calibration.stopping)
        said["rule"] = f"{rule}, at most {draws} draws; not applied here, where all draws are made"
    if calibration.control_variate:
        said["estimator"] = "variance with control variates"
    elif calibration.estimator is not Estimator.PLAIN:
        said["estimator"] = calibration.estimator.value
    return said


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _speed_table(bench: Bench) -> Table:
    own = "ms, seed of one's own"
    table = _table("Time of a request (median)", "rows", "draws", "ms", "rows/s", own)
    for before, speed in zip((None, *bench.speeds), bench.speeds, strict=False):
        rate = speed.rows_per_second
        table.add_row(
            "" if before is not None and before.rows == speed.rows else str(speed.rows),
            str(speed.draws),
            _time(speed.milliseconds),
            "-" if rate is None else f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}",
            _time(speed.own_seed_milliseconds),
        )
    return table


def _time(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _pass_table(bench: Bench) -> Table:
    headings = ("rows", "prefix ms", "rest, one draw ms", "prefix share", "draws a pass, at most")
    table = _table("A single pass (median)", *headings)
    for prefix in bench.prefixes:
        table.add_row(
            str(prefix.rows),
            _figures(prefix.prefix_milliseconds),
            _figures(prefix.suffix_milliseconds),
            f"{prefix.share:.0%}",
            str(bench.drawing.pass_draws[prefix.rows]),
        )
    return table


def _figures(value: float) -> str:
    return f"{value:.3f}" if value < 1 else _time(value)


def _needs_table(needs: Needs, bench: Bench) -> Table:
    title = f"Draws needed (measured from {needs.draws} draws of {needs.rows} rows)"
    own = "balanced" if bench.drawing.balanced_sites else bench.drawing.design
    several = bench.drawing.balanced_sites > 0
    further = ["independent:\nmedian row", "independent:\n9 rows of 10"] if several else []
    table = _table(title, "standard\nerror", f"{own}:\nmedian row", f"{own}:\n9 rows of 10", *further)
    for need in needs.needs:
        cells = [need.median, need.nine_tenths]
        cells += [need.independent_median, need.independent_nine_tenths] if several else []
        table.add_row(f"{need.target:g}", *map(str, cells))
    return table


def _on_units(needs: Needs, bench: Bench) -> str:
    unit = "of the mean probabilities, the largest of a row"
    if needs.scale is not None:
        scale = ", ".join(f"{value:.3g}" for value in needs.scale[:8]) + (", ..." if len(needs.scale) > 8 else "")
        unit = f"of the mean, in units of the median epistemic standard deviation ({scale})"
    median, most = needs.default_error
    reached = f"{_error(median)} at the median row, {_error(most)} at nine rows of ten"
    draws = f"The default {bench.default_draws} draws"
    if bench.drawing.stops:
        draws = f"{bench.default_draws} draws, the most that the calibration's rule takes,"
    return f"Standard errors are {unit}. {draws} reach {reached}."


def _error(value: float) -> str:
    return f"{value:.2g}" if value >= _SMALL else f"less than {_SMALL:g}"


# --- The command ---


def _counts(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) <= 5 and 1 <= int(part) <= MOST for part in parts):
        name = parameter.name or ""
        raise Refused(InvalidArgument(name, repr(text), f"whole numbers of 1 to {MOST}, with commas between"))
    return tuple(sorted({int(part) for part in parts}))


@click.command()
@choose_version
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Rows of your own, .npz, .npy, .csv or .parquet: the draws needed are told from them.",
)
@click.option("--rows", default="1,8,32", show_default=True, callback=_counts, help="Of a request.")
@click.option("--draws", default="16,64,256", show_default=True, callback=_counts, help="Rounded up to whole groups.")
@click.option("--threads", type=click.IntRange(1, CORES), help="As a server has them by default: all cores but one.")
@click.option(
    "--seconds", type=float, default=20.0, show_default=True, help="For the requests; a large network takes some more."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def bench(
    model: str,
    repository: Path,
    number: int | None,
    data: Path | None,
    rows: tuple[int, ...],
    draws: tuple[int, ...],
    threads: int | None,
    seconds: float,
    as_json: bool,
) -> None:
    """Measure a version of MODEL on this machine: time per request, rows a second, draws needed.

    Requests are answered in this process, without a server and a network, tuned and with threads as a server has them.
    """
    if rows[-1] * draws[-1] > MOST_WORK:
        most = InvalidArgument("rows x draws", f"{rows[-1]} x {draws[-1]}", f"at most {MOST_WORK}")
        raise Refused(most)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or max(1, CORES - 1))
    waiting = Console(stderr=True)
    try:
        version = Repository(repository).load(model, number)
        own = None if data is None else _check(version, read_rows(data, version.manifest.inputs))
        with waiting.status(f"measuring {model} for up to {seconds:g} s") if waiting.is_terminal else nullcontext():
            version.tune()
            found = measure(version, rows, draws, data=own, seconds=seconds)
    except (DubitoError, OSError) as error:
        raise Refused(error) from error
    finally:
        torch.set_num_threads(before)
    if as_json:
        source = None if data is None else str(data)
        click.echo(json.dumps({**document(found), "data": source}, allow_nan=False))
    else:
        show(found, None if data is None else data.name)


def _check(version: ModelVersion, arrays: Arrays) -> Arrays:
    version.read_inputs(arrays)
    return arrays
