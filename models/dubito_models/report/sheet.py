"""The sheet that charts are drawn on, once for a light and once for a dark page.

Colours are told apart by people who see few of them (Okabe & Ito 2008), and never alone: markers and dashes differ too.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from dubito_models.answering import CALIBRATED, DRAWN, STANDARD

WIDTH, HEIGHT, DPI = 4.2, 3.3, 190  # inches, dots per inch
_COLOURS = 192  # of a picture: enough for smooth edges, and a third of the bytes


@dataclass(frozen=True, slots=True)
class Theme:
    """The colours of a page; `paths`: of the version's paths, `others`: of lines beside them."""

    paper: str
    ink: str
    muted: str
    grid: str
    paths: Mapping[str, str]
    others: tuple[str, ...]
    wrong: str
    scale: tuple[str, ...]  # from little to much


LIGHT = Theme(
    "#ffffff", "#1b1f24", "#6a727c", "#e3e6ea",
    {STANDARD: "#5d646c", DRAWN: "#0072b2", CALIBRATED: "#c64a00"},
    ("#c64a00", "#0072b2", "#00795a", "#a3487f"), "#c64a00", ("#c3cad2", "#d98b5f", "#c64a00", "#6e1d00"),
)  # fmt: skip
DARK = Theme(
    "#15181d", "#e4e7eb", "#98a1ab", "#2b3038",
    {STANDARD: "#c3c8ce", DRAWN: "#56b4e9", CALIBRATED: "#ee8a3c"},
    ("#ee8a3c", "#56b4e9", "#3cc29a", "#d98ab8"), "#ee8a3c", ("#4a525d", "#8f6a50", "#ee8a3c", "#ffe0c2"),
)  # fmt: skip
MARKS = {STANDARD: ("o", "-"), DRAWN: ("s", "--"), CALIBRATED: ("^", "-")}
NAMES = {STANDARD: STANDARD, DRAWN: DRAWN, CALIBRATED: "calibrated"}  # in a legend
OTHERS = (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":"))

Draw = Callable[[Axes, Theme], None]


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture in PNG for either kind of page, and in words what it shows."""

    name: str  # of its file
    alt: str
    light: bytes
    dark: bytes


@dataclass(frozen=True, slots=True)
class Plate:
    """Charts that belong together, under one heading, and how they are read."""

    heading: str
    caption: str
    charts: tuple[Chart, ...]


@dataclass(frozen=True, slots=True)
class Sketch:
    """A chart before it is drawn."""

    name: str
    alt: str
    draw: Draw


@dataclass(frozen=True, slots=True)
class Group:
    """A plate before it is drawn."""

    heading: str
    caption: str
    sketches: tuple[Sketch, ...]


def render(draw: Draw, theme: Theme) -> bytes:
    """Return a chart as PNG: the same bytes for the same data."""
    sheet = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor=theme.paper, layout="constrained")
    canvas = FigureCanvasAgg(sheet)
    axes = sheet.add_subplot()
    axes.set_facecolor(theme.paper)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", color=theme.muted, labelcolor=theme.ink, labelsize=9, length=3)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(theme.muted)
    draw(axes, theme)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(theme.ink)
        label.set_fontsize(9.5)
    canvas.draw()  # type: ignore[no-untyped-call]
    found = io.BytesIO()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    Image.fromarray(pixels).quantize(_COLOURS, dither=Image.Dither.NONE).save(found, "png", optimize=True)
    return found.getvalue()


def explain(axes: Axes, theme: Theme, columns: int = 2) -> None:
    """Name the lines above the chart, where they hide nothing."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=8.5, labelcolor=theme.ink, frameon=False,
        borderaxespad=0.2, handlelength=2.2, columnspacing=1.2, labelspacing=0.3,
    )  # fmt: skip
