"""All charts of an assessment, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dubito_models.evaluating import Assessment
from dubito_models.report.draw_charts import chart_convergence, chart_shift
from dubito_models.report.row_charts import (
    chart_coverage,
    chart_pit,
    chart_reliability,
    chart_selection,
    chart_uncertainty,
)
from dubito_models.report.sheet import DARK, LIGHT, Chart, Group, Plate, render


def draw_plates(assessment: Assessment, advance: Callable[[int, int], None] | None = None) -> tuple[Plate, ...]:
    """Draw everything that an assessment holds; `advance` is told how many charts of how many are done."""
    groups = list(_groups(assessment))
    total, done = sum(len(group.sketches) for group in groups), 0
    plates = []
    for group in groups:
        charts = []
        for sketch in group.sketches:
            charts.append(Chart(sketch.name, sketch.alt, render(sketch.draw, LIGHT), render(sketch.draw, DARK)))
            done += 1
            if advance is not None:
                advance(done, total)
        plates.append(Plate(group.heading, group.caption, tuple(charts)))
    return tuple(plates)


def _groups(assessment: Assessment) -> Iterator[Group]:
    if assessment.reliability:
        yield chart_reliability(assessment)
    yield chart_selection(assessment)
    if assessment.coverage:
        yield chart_coverage(assessment)
    if assessment.pit:
        yield chart_pit(assessment)
    if assessment.uncertainty is not None:
        yield chart_uncertainty(assessment, assessment.uncertainty)
    if assessment.convergence is not None:
        yield chart_convergence(assessment.convergence, assessment.identity.task)
    for curve in assessment.shifts:
        yield chart_shift(curve, assessment.identity.task)
