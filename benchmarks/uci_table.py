"""The published UCI regression figures, and how found ones compare with them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markdown_table import table
from rich.console import Console
from rich.table import Table

# RMSE, its standard error, log-likelihood, its standard error, over 20 splits. Columns of the authors' own table.
Figures = tuple[float, float, float, float]
PUBLISHED: dict[str, dict[str, Figures]] = {
    "400 epochs": {
        "concrete": (5.230, 0.118, -3.039, 0.020),
        "energy": (1.663, 0.043, -1.985, 0.020),
        "power-plant": (4.022, 0.041, -2.795, 0.010),
        "yacht": (1.109, 0.085, -1.554, 0.027),
    },
    "4000 epochs": {
        "concrete": (4.815, 0.143, -2.940, 0.023),
        "energy": (1.087, 0.046, -1.717, 0.016),
        "power-plant": (3.998, 0.037, -2.787, 0.009),
        "yacht": (0.724, 0.056, -1.375, 0.014),
    },
    "two layers": {
        "concrete": (4.504, 0.179, -2.825, 0.024),
        "energy": (0.474, 0.013, -1.479, 0.003),
        "power-plant": (3.629, 0.040, -2.675, 0.007),
        "yacht": (0.657, 0.062, -1.370, 0.018),
    },
    "2018 grid": {
        "concrete": (4.826, 0.161, -2.937, 0.025),
        "energy": (0.539, 0.0135, -1.2115, 0.0053),
        "power-plant": (4.014, 0.037, -2.808, 0.009),
        "yacht": (0.666, 0.049, -1.250, 0.015),
    },
}
COMPARED = {
    "paper": ("400 epochs",),
    "long": ("2018 grid", "4000 epochs"),
    "two-layer": ("two layers",),
    "heteroscedastic": ("2018 grid",),
}


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean over splits and its standard error; of one split there is none."""
    array = np.asarray(values)
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None


def summarise(name: str, rmses: Sequence[float], lls: Sequence[float], protocol: str) -> dict[str, Any]:
    """Return means and standard errors over the splits of a set and, for each published column, z of the differences.

    z is the difference over the root of the sum of both squared standard errors; positive is better than published.
    """
    rmse, rmse_error = mean_and_error(rmses)
    ll, ll_error = mean_and_error(lls)
    published = {}
    for column in COMPARED[protocol]:
        if name in PUBLISHED[column]:
            figures = PUBLISHED[column][name]
            published[column] = {
                **dict(zip(("rmse", "rmse_error", "ll", "ll_error"), figures, strict=True)),
                "rmse_z": z_score(figures[0] - rmse, figures[1], rmse_error),
                "ll_z": z_score(ll - figures[2], figures[3], ll_error),
            }
    return {"rmse": rmse, "rmse_error": rmse_error, "ll": ll, "ll_error": ll_error, "published": published}


def z_score(difference: float, error: float, other: float | None) -> float | None:
    return None if other is None else difference / math.hypot(error, other)


def print_table(console: Console, protocol: str, results: dict[str, dict[str, Any]]) -> None:
    table = Table(title=f"Protocol {protocol}: test rows, mean ± standard error over splits", title_justify="left")
    table.add_column("set", no_wrap=True)
    for heading in ("RMSE", "log-likelihood", "published", "RMSE", "z", "log-likelihood", "z"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, found in results.items():
        summary = found["summary"]
        cells = [name, show(summary, "rmse"), show(summary, "ll")]
        for column, published in summary["published"].items():
            others = [cell for key in ("rmse", "ll") for cell in (show(published, key), show_z(published[f"{key}_z"]))]
            table.add_row(*cells, column, *others)
            cells = ["", "", ""]
        if cells[0]:
            table.add_row(*cells)
    console.print(table)
    console.print("z: difference over both standard errors; positive is better than published")


def tabulate(documents: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table of all protocols: each set beside each published column."""
    headings = ("protocol", "set", "RMSE", "log-likelihood", "published", "RMSE", "z", "log-likelihood", "z")
    yield from table(
        headings,
        (
            line
            for protocol in COMPARED
            for name, found in sorted(documents[protocol]["sets"].items())
            for line in _compared(protocol, name, found["summary"])
        ),
    )


def _compared(protocol: str, name: str, summary: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    own = (protocol, name, show(summary, "rmse"), show(summary, "ll"))
    for column, published in summary["published"].items():
        yield (
            *own,
            column,
            *(cell for key in ("rmse", "ll") for cell in (show(published, key), show_z(published[f"{key}_z"]))),
        )
        own = ("", "", "", "")


def show(figures: dict[str, Any], key: str) -> str:
    error = figures[f"{key}_error"]
    return f"{figures[key]:.3f}" if error is None else f"{figures[key]:.3f} ± {error:.3f}"


def show_z(z: float | None) -> str:
    return "-" if z is None else f"{z:+.1f}"
