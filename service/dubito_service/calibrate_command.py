"""The command `dubito calibrate`: fit a calibration to labelled rows, list those there are, switch between them.

It imports the store of observations only where it is asked to: without it, it needs no more than the models do.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from dubito_models.calibrating import CONFORMAL, METHODS, Abstaining, CalibrationSpec
from dubito_models.calibration import Calibration, Grouping
from dubito_models.calibration.calibration import QUANTITIES
from dubito_models.calibration.describing import describe
from dubito_models.chosen import choose_version
from dubito_models.errors import DubitoError, InvalidArgument
from dubito_models.heads import Task
from dubito_models.package import ModelVersion
from dubito_models.refused import Refused
from dubito_models.repository import Repository
from dubito_models.rows import read_labelled
from dubito_models.sampling import Estimator, SamplingSpec
from dubito_models.stopping import Quantity, Stopping, StoppingRule

_BOTH = (Task.CLASSIFICATION, Task.REGRESSION)


def _choices(of: dict[Task, tuple[Any, ...]], *more: str) -> click.Choice[str]:
    return click.Choice([*dict.fromkeys(name for task in _BOTH for name in of[task]), *more])


@click.command()
@choose_version
@click.option(
    "--data",
    help="Labelled rows that training has not seen: .npz with `labels` or `targets`, a table with --target, or "
    "digits:calibration, TABLE:calibration.",
)
@click.option(
    "--from-observations",
    "observed",
    is_flag=True,
    help="Labels that came back to a server with --state: they refit the scores of sets or intervals, and where inputs "
    "were kept everything.",
)
@click.option("--state", metavar="DIR|URL", envvar="DUBITO_STATE", show_envvar=True, help="Of that server.")
@click.option(
    "--newest", type=click.IntRange(1), default=10_000, show_default=True, help="Rows of --from-observations, at most."
)
@click.option("--target", multiple=True, metavar="COLUMN", help="Of a table; may be repeated.")
@click.option(
    "--method",
    default="auto",
    show_default=True,
    type=_choices(METHODS),
    help="What is done to the predictive distribution; auto: the best by cross-validated likelihood, or nothing.",
)
@click.option(
    "--conformal",
    type=_choices(CONFORMAL, "none"),
    help="Scores of prediction sets or intervals.  [default: lac, normalized]",
)
@click.option("--within", metavar="class|COLUMN", help="Coverage for each class, or each value of a table's column.")
@click.option("--draws", type=click.IntRange(1), help="That will be served; the version's own number by default.")
@click.option("--min-draws", type=click.IntRange(1), help="Before --stop may look.")
@click.option("--stop", type=click.Choice([rule.value for rule in StoppingRule]), help="Rule that will be served.")
@click.option("--stop-at", type=float, metavar="NUMBER", help="Standard error of tolerance, bound of threshold.")
@click.option("--stop-on", type=click.Choice([quantity.value for quantity in Quantity]), help="What that is about.")
@click.option("--stop-level", type=float, help="Confidence of decision and threshold.  [default: 0.95]")
@click.option(
    "--estimator", type=click.Choice([estimator.value for estimator in Estimator]), help="That will be served."
)
@click.option("--risk", type=float, help="Abstain so that at most this share of the accepted rows is wrong.")
@click.option("--risk-confidence", type=float, default=0.95, show_default=True, help="With which --risk holds.")
@click.option("--risk-by", type=_choices(QUANTITIES), help="Uncertainty from which on to abstain.")
@click.option("--risk-error", type=float, help="Of a regression: the error from which on a row is wrong.")
@click.option(
    "--map-share",
    type=float,
    help="Of the rows, for the map; the others give scores and risk.  [default: 0.75, but 50 rows are kept for scores]",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Shares out the rows.")
@click.option("--list", "lists", is_flag=True, help="List what calibrations there are.")
@click.option("--use", metavar="ID", help="Go back to a calibration by its id; none: to none.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def calibrate(
    model: str,
    repository: Path,
    number: int | None,
    data: str | None,
    target: tuple[str, ...],
    observed: bool,
    state: str | None,
    newest: int,
    lists: bool,
    use: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Calibrate a version of MODEL on labelled rows, by the engine, seed and draws that serve it.

    One share of the rows fits the predictive distribution, the other gives prediction sets or intervals their coverage.
    The version itself is not touched: calibrations lie beside it, and a running server takes up the one in use.
    """
    waiting = Console(stderr=True)
    try:
        if sum((data is not None, observed, lists, use is not None)) != 1:
            raise InvalidArgument("data", data, "--data FILE, or --from-observations, or --list, or --use ID")
        version = Repository(repository).load(model, number)
        before = version.calibration
        if use is not None:
            version.use_calibration(None if use == "none" else use)
        elif data is not None:
            rows = read_labelled(data, version, target)
            spec = replace(_spec(version, **asked), overlap=rows.overlap)
            with waiting.status(f"calibrating {model} on {len(rows)} rows"):
                version.calibrate(rows.inputs, rows.targets, spec)
        elif observed:
            with waiting.status(f"calibrating {model} on labels that came back"):
                _refit(version, state, newest, _spec(version, **asked))
    except (DubitoError, OSError) as error:
        raise Refused(error) from error
    if as_json:
        click.echo(json.dumps(_document(version, lists), allow_nan=False))
    elif lists:
        _show_all(version)
    else:
        _show(version, before)


def _refit(version: ModelVersion, state: str | None, newest: int, spec: CalibrationSpec) -> None:
    if state is None:
        raise InvalidArgument("state", "nothing", "--state, for --from-observations: that of the server")
    try:
        from dubito_service.observing.refitting import open_observations, refit
    except ModuleNotFoundError as error:
        needed = "dubito calibrate --from-observations needs more than the models: pip install 'dubito[server]'"
        raise click.ClickException(needed) from error
    observations = open_observations(state)
    try:
        refit(version, observations, newest, spec)
    finally:
        observations.close()


def _spec(version: ModelVersion, **asked: Any) -> CalibrationSpec:
    """Read the options; those of the rule become one."""
    rule, at = asked["stop"], asked["stop_at"]
    stopping = None
    if rule is not None or at is not None:
        on, level = asked["stop_on"], asked["stop_level"]
        stopping = Stopping(
            StoppingRule(rule or "tolerance"), Quantity(on or "mean"), at, 0.95 if level is None else level
        )
    elif asked["stop_on"] is not None or asked["stop_level"] is not None:
        raise InvalidArgument("stop", "nothing", "a rule, for --stop-on and --stop-level")
    estimator = asked["estimator"]
    sampling = SamplingSpec(
        asked["draws"],
        asked["min_draws"],
        stopping=stopping,
        estimator=None if estimator is None else Estimator(estimator),
    )
    abstaining = None
    if asked["risk"] is not None:
        abstaining = Abstaining(asked["risk"], asked["risk_by"], asked["risk_confidence"], asked["risk_error"])
    elif asked["risk_by"] is not None or asked["risk_error"] is not None:
        raise InvalidArgument("risk", "nothing", "a share of wrong rows, for --risk-by and --risk-error")
    within = asked["within"]
    by_class = within == "class"
    return CalibrationSpec(
        sampling,
        asked["method"],
        asked["conformal"],
        "none" if within is None else "class" if by_class else "group",
        None if within is None or by_class else find_grouping(version, within),
        abstaining,
        asked["map_share"],
        seed=asked["seed"],
    )


def find_grouping(version: ModelVersion, name: str) -> Grouping:
    """Find the column of a version's table by whose values rows are grouped: one of categories or truth values."""
    known = []
    for entry in version.manifest.inputs:
        for place, column in enumerate(entry.columns or ()):
            if column.name == name:
                return Grouping(entry.name, place, name)
            known.append(column.name)
    accepted = f"class, or a column: {', '.join(known)}" if known else "class: this version takes no table"
    raise InvalidArgument("within", name, accepted)


# --- What is shown ---


def _document(version: ModelVersion, lists: bool) -> dict[str, Any]:
    current = version.calibration
    head = {"model": version.name, "version": version.version, "calibration": None if current is None else current.id}
    if lists:
        return {**head, "calibrations": [_summary(each) for each in version.calibrations()]}
    return {**head, **({} if current is None else _summary(current))}


def _summary(calibration: Calibration) -> dict[str, Any]:
    """Say all but the scores, of which there may be thousands."""
    said = {name: value for name, value in asdict(calibration).items() if name not in ("conformal", "map")}
    conformal = calibration.conformal[-1].conformal if calibration.conformal else None
    return {
        "id": calibration.id,
        "method": calibration.method,
        "parameters": calibration.parameters,
        "conformal": None if conformal is None else conformal.method,
        "condition": None if conformal is None else conformal.condition,
        **{name: _finite(value) for name, value in said.items()},
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _show(version: ModelVersion, before: Calibration | None) -> None:
    console, current = Console(highlight=False, markup=False), version.calibration
    title = f"{version.name} version {version.version}"
    if current is None:
        console.print(f"{title} is not calibrated now")
    else:
        console.print(f"{title}, calibration {current.id}\n")
        if len(current.tried) > 1:
            console.print(_tried_table(current))
        grid = Table.grid(padding=(0, 2))
        for name, said in describe(current).items():
            grid.add_row(name, said)
        console.print(grid)
    if before is not None and (current is None or before.id != current.id):
        console.print(f"\nIn use before: {before.id}; --use {before.id} goes back to it.")


def _tried_table(calibration: Calibration) -> Table:
    table = Table(
        title="Cross-validated", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for heading, side in (("map", "left"), ("NLL", "right"), ("", "left")):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    for kind, nll in sorted(calibration.tried, key=lambda each: each[1]):
        chosen = kind == calibration.method
        table.add_row(kind.replace("_", " "), f"{nll:.4f}", "chosen" if chosen else "")
    return table


def _show_all(version: ModelVersion) -> None:
    console, current = Console(highlight=False, markup=False), version.calibration
    found = version.calibrations()
    if not found:
        console.print(f"{version.name} version {version.version} has no calibration")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "id", "map", "rows", "coverage", "draws", "stopping", "NLL"):
        right = heading in ("rows", "draws", "NLL")
        table.add_column(heading, justify="right" if right else "left", no_wrap=heading != "map", overflow="fold")
    for each in found:
        conformal = each.conformal[-1].conformal.method if each.conformal else "-"
        table.add_row(
            "in use" if current is not None and each.id == current.id else "",
            each.id,
            each.method.replace("_", " "),
            str(each.rows + each.score_rows),
            conformal,
            str(each.draws),
            each.stopping.rule.value,
            "-" if each.nll_after is None else f"{each.nll_after:.4f}",
        )
    console.print(table)
