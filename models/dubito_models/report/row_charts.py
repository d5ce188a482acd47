"""Charts of an assessment's rows: reliability, selection, coverage, and the two kinds of doubt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import PercentFormatter

from dubito_models.answering import CALIBRATED, DRAWN, STANDARD
from dubito_models.curves import PIT_BINS, Curve, Scatter
from dubito_models.evaluating import Assessment
from dubito_models.heads import Task
from dubito_models.metrics import ReliabilityBins
from dubito_models.report.sheet import MARKS, NAMES, Group, Sketch, Theme, explain
from dubito_models.scorecard import figure


def _line(axes: Axes, theme: Theme, path: str, x: Sequence[float], y: Sequence[float], label: str) -> None:
    marker, dashes = MARKS[path]
    axes.plot(
        x, y, color=theme.paths[path], marker=marker, markersize=3.5, linestyle=dashes, linewidth=1.5, label=label
    )


def _name(path: str) -> str:
    return {DRAWN: "drawn", CALIBRATED: "calibrated"}.get(path, path)


def chart_reliability(assessment: Assessment) -> Group:
    """Sketch accuracy against confidence, a chart for each path."""

    def sketch(path: str, bins: ReliabilityBins) -> Sketch:
        def draw(axes: Axes, theme: Theme) -> None:
            share = np.asarray(bins.count) / np.sum(bins.count)
            edges = np.asarray(bins.lower_edge), np.asarray(bins.upper_edge)
            axes.bar(edges[0], share, edges[1] - edges[0], align="edge", color=theme.grid, edgecolor=theme.paper)
            axes.plot([0, 1], [0, 1], color=theme.muted, linewidth=1, linestyle=(0, (4, 3)))
            accuracy = np.asarray(bins.accuracy)
            reach = np.abs(np.stack([bins.accuracy_low, bins.accuracy_high]) - accuracy)
            axes.errorbar(
                bins.confidence, accuracy, reach, fmt=MARKS[path][0], color=theme.paths[path], markersize=4.5,
                elinewidth=1.3, capsize=2,
            )  # fmt: skip
            axes.set(
                xlim=(0, 1), ylim=(-0.02, 1.02), xlabel=f"highest probability, {NAMES[path]}", ylabel="share right"
            )

        told = ", ".join(
            f"{confidence:.2f}: {right:.2f} of {count}"
            for confidence, right, count in zip(bins.confidence, bins.accuracy, bins.count, strict=True)
        )
        return Sketch(f"reliability-{_name(path)}", f"Reliability of the path {path}: {told}.", draw)

    return Group(
        "Reliability",
        "On the dashed line, predictions of 80% are right 80% of the time: points below it are too sure, points above "
        "it not sure enough. Whiskers: Wilson intervals of 95%; grey bars: the share of rows in each bin.",
        tuple(sketch(path, bins) for path, bins in assessment.reliability.items()),
    )


def chart_selection(assessment: Assessment) -> Group:
    """Sketch the risk of what is kept against the share that is kept."""
    classes = assessment.identity.task is Task.CLASSIFICATION
    risk = "error rate" if classes else "RMSE"
    heading = "Keeping the surest rows"
    if classes and not any(curve.y[-1] for curve in assessment.selection):
        return Group(heading, "No row is wrong, so there is no error to be found by its uncertainty.", ())

    def draw(axes: Axes, theme: Theme) -> None:
        styles = zip(assessment.selection, _selection_styles(assessment, theme), strict=True)
        for curve, (colour, dashes) in styles:
            y = curve.y if classes else np.sqrt(curve.y)
            axes.plot(curve.x, y, color=colour, linestyle=dashes, linewidth=1.6, label=_label(curve.name))
        axes.set(xlim=(0, 1), xlabel="share of rows kept, the surest first", ylabel=f"{risk} of the rows kept")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
        if classes:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        explain(axes, theme, 1)

    told = "; ".join(f"{curve.name}, {_at_half(curve, classes)}" for curve in assessment.selection)
    return Group(
        heading,
        f"The {risk} of the rows that are kept when the most doubtful are set aside: the faster a line falls to the "
        "left, the better its uncertainty finds the errors.",
        (Sketch("risk-coverage", f"Risk against coverage. {told}.", draw),) if assessment.selection else (),
    )


def _label(name: str) -> str:
    path, order = name.split(": ")
    return f"{NAMES[path]}, {order}"


def _selection_styles(assessment: Assessment, theme: Theme) -> Iterator[tuple[str, object]]:
    others = iter(zip(theme.others, ("-", "--", "-.", ":"), strict=True))
    for curve in assessment.selection:
        standard = curve.name.startswith(f"{STANDARD}:")
        yield (theme.paths[STANDARD], (0, (1, 1))) if standard else next(others)


def _at_half(curve: Curve, classes: bool) -> str:
    half, whole = (float(np.interp(share, curve.x, curve.y)) for share in (0.5, 1.0))
    if classes:
        return f"{half:.1%} wrong of the surest half, {whole:.1%} of all"
    return f"RMSE {figure(half**0.5)} of the surest half, {figure(whole**0.5)} of all"


def chart_coverage(assessment: Assessment) -> Group:
    """Sketch how far observed coverage is off the nominal one."""
    rows, classes = assessment.identity.rows, assessment.identity.task is Task.CLASSIFICATION

    def draw(axes: Axes, theme: Theme) -> None:
        nominal = np.linspace(0, 1, 101)
        reach = 1.96 * np.sqrt(nominal * (1 - nominal) / rows)
        axes.fill_between(nominal, -reach, reach, color=theme.grid, alpha=0.8, linewidth=0)
        axes.axhline(0, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)))
        for curve in assessment.coverage:
            _line(axes, theme, curve.name, curve.x, np.subtract(curve.y, curve.x).tolist(), NAMES[curve.name])
        axes.set(xlim=(0, 1), xlabel="nominal coverage", ylabel="observed less nominal")
        axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        explain(axes, theme, 3)

    what = "sets of the most probable classes" if classes else "central intervals"
    told = "; ".join(
        f"{curve.name}: {np.interp(0.5, curve.x, curve.y):.0%} at 50%, {np.interp(0.9, curve.x, curve.y):.0%} at 90%"
        for curve in assessment.coverage
    )
    return Group(
        "Coverage",
        f"How often {what} hold the truth, less how often they should: above 0 they are too wide, below too narrow. "
        "Within the band, a deviation may be chance (95%, point by point).",
        (Sketch("coverage", f"Observed coverage of {what}. {told}.", draw),),
    )


def chart_pit(assessment: Assessment) -> Group:
    """Sketch where within their distributions the true numbers lie."""

    def draw(axes: Axes, theme: Theme) -> None:
        edges = np.linspace(0, 1, PIT_BINS + 1)
        total = sum(next(iter(assessment.pit.values())))
        reach = 1.96 * np.sqrt((1 / PIT_BINS) * (1 - 1 / PIT_BINS) / total)
        axes.axhspan(1 / PIT_BINS - reach, 1 / PIT_BINS + reach, color=theme.grid, alpha=0.8, linewidth=0)
        for path, counts in assessment.pit.items():
            axes.stairs(
                np.divide(counts, total), edges, color=theme.paths[path], linestyle=MARKS[path][1], linewidth=1.7,
                baseline=None, label=NAMES[path],
            )  # fmt: skip
        axes.set(xlim=(0, 1), xlabel="distribution function at the truth (PIT)", ylabel="share of rows")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        explain(axes, theme, 3)

    told = "; ".join(f"{path}: {', '.join(map(str, counts))}" for path, counts in assessment.pit.items())
    return Group(
        "Where the truth falls",
        "Flat, within the band, where predictive distributions are right; hollow in the middle where they are too "
        "narrow, heaped there where too wide, and sloping where predictions are off to one side.",
        (Sketch("pit", f"Rows by tenths of the probability integral transform. {told}.", draw),),
    )


def chart_uncertainty(assessment: Assessment, scatter: Scatter) -> Group:
    """Sketch both kinds of doubt row by row; where the noise is constant, errors against the epistemic kind."""
    classes = assessment.identity.task is Task.CLASSIFICATION
    varies = np.ptp(scatter.aleatoric) > 1e-6 * max(map(abs, scatter.aleatoric), default=0.0)
    aleatoric, epistemic, off = map(np.asarray, (scatter.aleatoric, scatter.epistemic, scatter.off))

    def draw(axes: Axes, theme: Theme) -> None:
        if classes:
            right = off == 0
            colour = theme.paths[STANDARD]
            axes.scatter(aleatoric[right], epistemic[right], 14, facecolors="none", edgecolors=colour, linewidths=0.8,
                         label="right")  # fmt: skip
            if not right.all():
                axes.scatter(aleatoric[~right], epistemic[~right], 24, color=theme.wrong, marker="X", label="wrong")
            axes.set(xlabel="aleatoric: expected entropy (nats)", ylabel="epistemic: mutual information (nats)")
            explain(axes, theme)
        elif varies:
            colours = LinearSegmentedColormap.from_list("error", theme.scale)
            points = axes.scatter(aleatoric, epistemic, 18, c=off, cmap=colours, linewidths=0)
            bar = axes.figure.colorbar(points, ax=axes)
            bar.set_label("absolute error", color=theme.ink, fontsize=9.5)
            bar.outline.set_visible(False)
            bar.ax.tick_params(color=theme.muted, labelcolor=theme.ink, labelsize=9)
            axes.set(xlabel="aleatoric deviation", ylabel="epistemic deviation")
        else:
            axes.scatter(epistemic, off, 14, facecolors="none", edgecolors=theme.paths[DRAWN], linewidths=0.9)
            axes.set(xlabel="epistemic deviation", ylabel="absolute error")
            axes.set_ylim(bottom=0)

    if classes:
        wrong = off > 0
        means = [float(epistemic[some].mean()) if some.any() else 0.0 for some in (~wrong, wrong)]
        alt = f"{int((~wrong).sum())} right rows, mean mutual information {figure(means[0])} nats; "
        alt += f"{int(wrong.sum())} wrong rows" + (f", {figure(means[1])} nats." if wrong.any() else ".")
        caption = "To the right, rows that are unclear in themselves; at the top, rows of which training says little."
    else:
        alt = f"Epistemic deviation from {figure(epistemic.min())} to {figure(epistemic.max())}, " + (
            f"aleatoric from {figure(aleatoric.min())} to {figure(aleatoric.max())}."
            if varies
            else f"against absolute errors up to {figure(off.max())}."
        )
        caption = "To the right, rows that are noisy in themselves; at the top, rows of which training says little."
        if not varies:
            caption = (
                f"The noise is the same for every row, a deviation of {figure(float(aleatoric[0]))}, so errors are set "
                "against the epistemic part alone: it is of use where they grow with it."
            )
    return Group("Two kinds of doubt", caption, (Sketch("uncertainty", alt, draw),))
