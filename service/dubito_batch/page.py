"""The page of a summary, and its histogram as PNG: for who has what draws charts (the extra `train`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dubito_batch.parts import Folder
from dubito_batch.summary import Spread, Summary

if TYPE_CHECKING:
    from dubito_models.report.sheet import Draw

CHART, PAGE = "_dubito_summary.png", "_dubito_summary.html"


def put_page(folder: Folder, summary: Summary) -> str:
    """Write the page of a summary, and its chart where it has one; returns why not, empty where it did."""
    try:
        chart, page = compose_page(summary)
    except ModuleNotFoundError as error:
        return f"no chart and no page: {error.name} is not installed (pip install 'dubito[train]')"
    if chart is not None:
        folder.put(CHART, chart)
    folder.put(PAGE, page.encode())
    return ""


def compose_page(summary: Summary) -> tuple[bytes | None, str]:
    """Return the chart as PNG, None where no row tells its epistemic uncertainty, and the page, which stands alone."""
    from jinja2 import Environment, PackageLoader, PrefixLoader, StrictUndefined

    from dubito_models.report.page import inline
    from dubito_models.report.sheet import DARK, LIGHT, render

    spread, charts = summary.epistemic, None
    if spread is not None:
        draw = _histogram(spread, summary)
        charts = (render(draw, LIGHT), render(draw, DARK))
    packages = {"batch": "dubito_batch", "report": "dubito_models.report"}
    environment = Environment(
        loader=PrefixLoader({name: PackageLoader(package, ".") for name, package in packages.items()}),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["inline"] = inline
    page = environment.get_template("batch/summary.html.j2").render(
        summary=summary, facts=describe(summary), spread=spread, charts=charts, alt=_alt(spread), name=file_name
    )
    return None if charts is None else charts[0], page


def describe(summary: Summary) -> dict[str, str]:
    """Say what came of a job, by name, for the page and the terminal."""
    calibration = summary.calibration or "none"
    said = {
        "model": f"{summary.model} version {summary.version}, calibration {calibration}",
        "rows": f"{summary.rows:,} of {_counted(summary.files, 'file')}, in {_counted(summary.parts, 'part')}",
    }
    if summary.invalid:
        said["not scored"] = f"{summary.invalid:,} ({share(summary.invalid / summary.rows)})"
    if summary.scored:
        speed = f"{summary.rows_per_second:,.0f} rows/s"
        last = "" if summary.scored == summary.rows else f" (the last run: {summary.scored:,} rows)"
        said["speed"] = f"{speed}{last}"
    if summary.mean_draws is not None:
        reasons = ", ".join(
            f"{reason.replace('_', ' ')} {share(rows / summary.answered)}"
            for reason, rows in sorted(summary.stop_reasons.items(), key=lambda each: -each[1])
        )
        said["draws"] = f"{summary.mean_draws:.1f} a row; stopped by {reasons}"
    if summary.abstained is not None and summary.answered:
        said["abstained"] = f"{summary.abstained:,} ({share(summary.abstained / summary.answered)}), as calibrated"
    if summary.above is not None and summary.epistemic is not None:
        rows, what = summary.above.rows, summary.epistemic
        said["too uncertain"] = (
            f"{rows:,} ({share(rows / summary.answered)}) with {what.quantity} above {summary.above.threshold:g}"
        )
    if summary.epistemic is not None:
        found = summary.epistemic
        said[found.quantity] = (
            f"mean {found.mean:.3g}, median {found.median:.3g}, 90% {found.ninety:.3g}, 99% {found.ninety_nine:.3g}, "
            f"most {found.most:.3g} {found.unit}".rstrip()
        )
    return said


def share(part: float) -> str:
    """Return a part of one in per cent; what is not nothing, and not all, does not look so."""
    if 0.0 < part < 0.0005:
        return "under 0.1%"
    return "over 99.9%" if 0.9995 < part < 1.0 else f"{part:.1%}"


def file_name(url: str) -> str:
    """Return the last part of a path or a URL."""
    return Path(url).name


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _alt(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return (
        f"Histogram of the {spread.quantity} of {spread.rows} rows: half of them up to {spread.median:.3g}, "
        f"nine in ten up to {spread.ninety:.3g}, the most {spread.most:.3g}."
    )


def _histogram(spread: Spread, summary: Summary) -> Draw:
    from matplotlib.axes import Axes
    from matplotlib.ticker import FuncFormatter

    from dubito_models.answering import DRAWN
    from dubito_models.report.sheet import Theme, explain

    def draw(axes: Axes, theme: Theme) -> None:
        colour = theme.paths[DRAWN]
        axes.stairs(spread.counts, spread.edges, fill=True, color=colour, alpha=0.85)
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.axvline(spread.median, color=theme.ink, linewidth=1, linestyle="--", label=f"median {spread.median:.3g}")
        above = summary.above
        if above is not None:
            label = f"threshold {above.threshold:g}"
            axes.axvline(above.threshold, color=theme.wrong, linewidth=1.4, linestyle="-", label=label)
        axes.set(xlabel=f"{spread.quantity} ({spread.unit or 'in the unit of the target'})", ylabel="rows")
        explain(axes, theme)

    return draw
