"""Charts of what draws and shifts do to an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from dubito_models.answering import CALIBRATED, DRAWN
from dubito_models.convergence import Convergence, Errors
from dubito_models.heads import Task
from dubito_models.report.sheet import MARKS, NAMES, OTHERS, Group, Sketch, Theme, explain
from dubito_models.scorecard import figure
from dubito_models.shifting import Series, ShiftCurve

DECADES = 20  # times the least error: beyond it, only whole powers of 10 are labelled
FAR = 50  # times the least: the most is shown on a logarithmic scale


def chart_convergence(found: Convergence, task: Task) -> Group:
    """Sketch Monte Carlo errors against the number of draws."""
    what = "mutual information" if task is Task.CLASSIFICATION else "epistemic deviation"
    mean = "probabilities" if task is Task.CLASSIFICATION else "mean"
    at = found.draws.index(found.default_draws) if found.default_draws in found.draws else -1
    if found.exact:
        return Group(
            "How many draws suffice",
            "Draws leave nothing to chance here: the only dropout is averaged over in closed form.",
            (),
        )

    def sketch(name: str, label: str, errors: Errors) -> Sketch:
        def draw(axes: Axes, theme: Theme) -> None:
            x = found.draws
            axes.plot(x, errors.found, color=theme.paths[CALIBRATED], marker="o", markersize=4, label="found")
            if errors.promised is not None:
                axes.plot(x, errors.promised, color=theme.paths[DRAWN], marker="s", markersize=3.5, linestyle="--",
                          label="standard error")  # fmt: skip
            axes.axvline(
                found.default_draws,
                color=theme.muted,
                linewidth=1,
                linestyle=":",
                label=f"default, {found.default_draws}",
            )
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks(x, [str(count) for count in x])
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(axis="x", which="minor", length=0)
            lines = [values for values in (errors.found, errors.promised) if values is not None]
            few = max(map(max, lines)) < DECADES * min(map(min, lines))  # else small labels would overlap
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}") if few else NullFormatter())
            axes.tick_params(axis="y", which="minor", labelsize=7, labelcolor=theme.muted)
            axes.set(xlabel="draws", ylabel=f"error of {label}")
            explain(axes, theme, 3)

        told = ", ".join(f"{value:.2g} with {count}" for count, value in zip(found.draws, errors.found, strict=True))
        return Sketch(name, f"Monte Carlo error of the {label} by draws: {told}.", draw)

    verb = "are" if task is Task.CLASSIFICATION else "is"
    default = (
        f"With the default {found.default_draws} draws the {mean} {verb} off by {found.mean.found[at]:.2g}, and the "
        f"{what}, {found.scale:.2g} in root mean square, by {found.epistemic.found[at]:.2g}."
    )
    return Group(
        "How many draws suffice",
        f"Root mean square of what an answer of so many draws is off one of very many others ({found.rows} rows, "
        f"{found.seeds} seeds), and what its standard errors say. {default}",
        (sketch("draws-mean", mean, found.mean), sketch("draws-epistemic", what, found.epistemic)),
    )


_SHIFT_PANELS: Mapping[Task, tuple[tuple[str, tuple[str, ...]], ...]] = {
    Task.CLASSIFICATION: (
        ("accuracy, confidence", ("accuracy", "confidence")),
        ("NLL (nats)", ("NLL",)),
        ("ECE", ("ECE",)),
        ("uncertainty (nats)", ("predictive entropy", "expected entropy", "mutual information")),
    ),
    Task.REGRESSION: (
        ("RMSE", ("RMSE",)),
        ("NLL (nats)", ("NLL",)),
        ("coverage of 90% intervals", ("90% interval covers",)),
        ("deviation", ("total deviation", "epistemic deviation")),
    ),
}


def chart_shift(curve: ShiftCurve, task: Task) -> Group:
    """Sketch what becomes of errors and uncertainties along a ladder of shifts."""
    sketches = []
    for label, figures in _SHIFT_PANELS[task]:
        series = [one for figure in figures for one in curve.of(figure)]
        if series:
            sketches.append(_shift_sketch(curve, label, series))
    sure = "confidence should fall with accuracy" if task is Task.CLASSIFICATION else "intervals should keep covering"
    return Group(
        f"Under growing shift: {curve.ladder.shift.value}",
        f"The same {curve.rows} rows moved step by step ({curve.ladder.unit}); whiskers: standard errors over rows. "
        f"Where a version knows what it does not know, {sure}, and its uncertainty should grow.",
        tuple(sketches),
    )


def _shift_sketch(curve: ShiftCurve, label: str, series: Sequence[Series]) -> Sketch:
    figures = list(dict.fromkeys(one.figure for one in series))
    paths = list(dict.fromkeys(one.path for one in series))

    def draw(axes: Axes, theme: Theme) -> None:
        for one in series:
            other = figures.index(one.figure)
            marker, dashes = OTHERS[other] if len(figures) > 1 else MARKS[one.path]
            colour = theme.paths[one.path] if len(paths) > 1 else theme.others[other]
            path = NAMES[one.path]
            name = (
                one.figure
                if len(paths) == 1
                else path
                if len(figures) == 1
                else f"{one.figure.removesuffix(' deviation')}, {path}"
            )
            axes.errorbar(
                curve.amounts, one.values, one.errors, color=colour, marker=marker, markersize=3.5, linestyle=dashes,
                linewidth=1.4, elinewidth=1, capsize=1.5, label=name,
            )  # fmt: skip
        axes.set(xlabel=curve.ladder.unit, ylabel=label)
        least, most = min(min(one.values) for one in series), max(max(one.values) for one in series)
        if label.startswith("NLL") and most > FAR * least > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axes.set_ylim(bottom=0 if least >= 0 else None)
        explain(axes, theme)

    told = "; ".join(
        f"{one.figure}, {one.path}: from {figure(one.values[0])} to {figure(one.values[-1])}" for one in series
    )
    name = f"shift-{curve.ladder.shift.value}-{figures[0]}".lower().replace(" ", "-").replace("%", "")
    return Sketch(name, f"{label} by {curve.ladder.shift.value}. {told}.", draw)
