"""The tables of a scorecard, as a page and a terminal show them."""

from __future__ import annotations

from dataclasses import dataclass

from dubito_models.answering import CALIBRATED, DRAWN, STANDARD
from dubito_models.scorecard import Measure, Scorecard, improves, tell

PAIRS = ((DRAWN, STANDARD), (CALIBRATED, DRAWN), (CALIBRATED, STANDARD))  # whose differences are told


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure of a table, its interval, and whether it is for the better; a dash where there is none."""

    value: str = "-"
    interval: str = ""
    better: bool | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a table."""

    heading: str
    cells: tuple[Cell, ...]


def resamples_said(card: Scorecard) -> str:
    """Say how many times rows were drawn again, and of which scores fewer times."""
    fewer = "".join(
        f", {measure.label}: {max(1, card.resamples // measure.thrift)}"
        for measure in card.measures
        if measure.thrift > 1
    )
    return f"{card.resamples} resamples{fewer}"


def score_lines(card: Scorecard) -> list[Line]:
    """Return the table of scores: a line for each measure, a cell for each path."""
    return [
        Line(
            measure.label,
            tuple(
                Cell() if score is None else Cell(tell(measure, score.value), _interval(measure, score.low, score.high))
                for score in card.scores[measure.key].values()
            ),
        )
        for measure in card.measures
    ]


def difference_lines(card: Scorecard) -> list[Line]:
    """Return the table of differences: a line for each measure, a cell for each pair of paths."""
    lines = []
    for measure in card.measures:
        cells = []
        for first, second in pairs_of(card):
            found = card.difference(measure.key, first, second)
            if found is None:
                cells.append(Cell())
                continue
            interval = found.interval
            value = tell(measure, interval.value, difference=True)
            bounds = _interval(measure, interval.low, interval.high, difference=True)
            cells.append(Cell(value, bounds, improves(measure, found)))
        lines.append(Line(measure.label, tuple(cells)))
    return lines


def pairs_of(card: Scorecard) -> list[tuple[str, str]]:
    """Return the pairs of paths whose differences are known, in the order in which they are told."""
    known = {(each.first, each.second) for each in card.differences}
    return [pair for pair in PAIRS if pair in known]


def _interval(measure: Measure, low: float, high: float, *, difference: bool = False) -> str:
    return f"{tell(measure, low, difference=difference)} to {tell(measure, high, difference=difference)}"
