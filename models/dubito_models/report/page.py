"""The page of an assessment: one HTML file that stands alone, for screens light and dark, wide and narrow, and paper.

Everything that comes from a model or a file is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.image import imsave
from numpy.typing import NDArray

from dubito_models.answering import CALIBRATED
from dubito_models.doubtful import Example
from dubito_models.evaluating import Assessment, describe
from dubito_models.files import write_atomically
from dubito_models.heads import Task
from dubito_models.report.sheet import Plate
from dubito_models.scoreboard import difference_lines, pairs_of, resamples_said, score_lines
from dubito_models.scorecard import figure

PAGE = "report.html"
MOST_FEATURES = 12  # columns of a table of examples


def write_report(assessment: Assessment, plates: Sequence[Plate], folder: Path) -> Path:
    """Write the page, and the charts as PNG beside it, into a folder that is made where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    for plate in plates:
        for chart in plate.charts:
            write_atomically(folder / f"{chart.name}.png", chart.light)
    page = folder / PAGE
    write_atomically(page, compose_page(assessment, plates).encode())
    return page


def compose_page(assessment: Assessment, plates: Sequence[Plate]) -> str:
    """Return the page as text: the same for the same assessment."""
    environment = Environment(
        loader=PackageLoader("dubito_models.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["inline"] = inline
    card = assessment.card
    return environment.get_template("page.html.j2").render(
        identity=assessment.identity,
        facts=describe(assessment.identity),
        verdict=assessment.verdict,
        paths=list(next(iter(card.scores.values()))),
        scores=score_lines(card),
        pairs=[f"{_short(first)} less {_short(second)}" for first, second in pairs_of(card)],
        differences=difference_lines(card),
        level=f"{card.level:.0%}",
        resamples=resamples_said(card),
        plates=plates,
        sets=assessment.set_coverage,
        served=assessment.served,
        examples=[(example, _png(example.picture)) for example in assessment.examples],
        features=_feature_names(assessment.examples),
        figure=figure,
        classes=assessment.identity.task is Task.CLASSIFICATION,
    )


def _short(path: str) -> str:
    return "calibrated" if path == CALIBRATED else path


def _feature_names(examples: Sequence[Example]) -> list[str]:
    return [name for name, _ in examples[0].features[:MOST_FEATURES]] if examples else []


def inline(png: bytes) -> str:
    """Return a picture as a page holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _png(picture: NDArray[np.uint8] | None) -> bytes | None:
    if picture is None:
        return None
    found = io.BytesIO()
    imsave(found, picture, format="png", cmap="gray", vmin=0, vmax=255)
    return found.getvalue()
