"""The tables of observations, and a prediction's labels as rows of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import sqlalchemy as sql
from numpy.typing import NDArray

from dubito_service.observing.labels import Scored
from dubito_service.observing.receipts import Receipt

Array = NDArray[np.float64]

_NAME, _WHOLE = sql.String(256), sql.BigInteger().with_variant(sql.Integer, "sqlite")

TABLES = sql.MetaData()
FACTS = sql.Table(
    "dubito_facts", TABLES, sql.Column("name", _NAME, primary_key=True), sql.Column("value", sql.String(256))
)
PREDICTIONS = sql.Table(
    "dubito_predictions",
    TABLES,
    sql.Column("id", _NAME, primary_key=True),
    sql.Column("labels", sql.String(64), nullable=False),  # their digest
    sql.Column("model", _NAME, nullable=False),
    sql.Column("version", sql.BigInteger, nullable=False),
    sql.Column("rows", sql.BigInteger, nullable=False),
    sql.Column("issued", sql.Double, nullable=False, index=True),
    sql.Column("inputs", sql.LargeBinary),  # where the operator keeps them
)
ROWS = sql.Table(
    "dubito_rows",
    TABLES,
    sql.Column("number", _WHOLE, primary_key=True, autoincrement=True),
    sql.Column("prediction", _NAME, nullable=False, index=True),
    sql.Column("model", _NAME, nullable=False),
    sql.Column("version", sql.BigInteger, nullable=False),
    sql.Column("calibration", _NAME, nullable=False),
    sql.Column("stream", _NAME, nullable=False),
    sql.Column("seconds", sql.Double, nullable=False),  # when its label came, since 1970
    sql.Column("exact", sql.Boolean, nullable=False),
    sql.Column("negative_log_likelihood", sql.Double),
    sql.Column("brier_score", sql.Double),
    sql.Column("correct", sql.Double),
    sql.Column("confidence", sql.Double),
    sql.Column("squared_error", sql.Double),
    sql.Column("epistemic", sql.Double),
    sql.Column("covered", sql.Double),  # the share of its labels
    sql.Column("served_coverage", sql.Double),
    sql.Column("member", sql.BigInteger),  # the group within which coverage is kept
    sql.Column("labels", sql.LargeBinary, nullable=False),  # float64
    sql.Column("scores", sql.LargeBinary),  # float64
    sql.Index("dubito_rows_newest", "model", "version", "number"),
)
STATES = sql.Table(
    "dubito_states",
    TABLES,
    *(sql.Column(name, _NAME, primary_key=True) for name in ("kind", "model", "version", "calibration", "stream")),
    sql.Column("coverage", sql.String(32), primary_key=True),
    sql.Column("moved", sql.Double, nullable=False, index=True),  # seconds since 1970
    sql.Column("document", sql.LargeBinary, nullable=False),
)
MEASURES = (
    "negative_log_likelihood", "brier_score", "correct", "confidence", "squared_error", "covered", "served_coverage",
)  # fmt: skip


def row_values(receipt: Receipt, scored: Scored, now: float) -> list[dict[str, Any]]:
    """Return the rows to insert."""
    B = receipt.rows
    covered = None if scored.covered is None else scored.covered.mean(-1)
    measures: dict[str, NDArray[Any] | None] = {
        "negative_log_likelihood": scored.negative_log_likelihood,
        "brier_score": scored.brier_score,
        "correct": scored.correct,
        "confidence": scored.confidence,
        "squared_error": scored.squared_error,
        "epistemic": scored.epistemic,
        "covered": covered,
        "served_coverage": None if receipt.served_coverage is None else np.full(B, receipt.served_coverage),
    }
    columns = {name: _numbers(values, B) for name, values in measures.items()}
    same = {
        "prediction": receipt.prediction_id,
        "model": receipt.model,
        "version": receipt.version,
        "calibration": receipt.calibration_id,
        "stream": receipt.stream,
        "seconds": now,
        "exact": scored.exact,
    }
    return [
        {
            **same,
            **{name: column[row] for name, column in columns.items()},
            "member": None if receipt.groups is None else int(receipt.groups[row]),
            "labels": scored.labels[row].astype("<f8").tobytes(),
            "scores": None if scored.scores is None else scored.scores[row].astype("<f8").tobytes(),
        }
        for row in range(B)
    ]


def _numbers(values: NDArray[Any] | None, rows: int) -> list[float | None]:
    """Return a column; None for what is not known and for NaN, which SQLite does not tell apart."""
    if values is None:
        return [None] * rows
    return [None if math.isnan(value) else value for value in values.astype(np.float64).tolist()]


def stack(cells: Sequence[bytes]) -> Array:
    """Return (N, columns) of cells of float64; (0, 0) of none."""
    found = [np.frombuffer(cell, "<f8") for cell in cells]
    return np.stack(found).astype(np.float64) if found else np.zeros((0, 0))
