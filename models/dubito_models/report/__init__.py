"""One page that shows an assessment: scores, charts and examples in a single file, and the charts beside it."""

from __future__ import annotations

from dubito_models.report.charts import draw_plates
from dubito_models.report.page import compose_page, write_report
from dubito_models.report.sheet import Chart, Plate

__all__ = ["Chart", "Plate", "compose_page", "draw_plates", "write_report"]
