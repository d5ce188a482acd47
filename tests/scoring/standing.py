"""A scorer that stands in for a model: its answers are a pure function of the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
from numpy.typing import NDArray
from pyarrow import parquet

from dubito_batch.answers import Asked, Described
from dubito_client.answers import Column, InputSignature

FEATURES = 4
CLASSES = ("cat", "dog", "owl")
DRAWS = 16
CLASSIFIER = Described(
    model="stand-in",
    version=3,
    task="classification",
    head="logits",
    outputs=len(CLASSES),
    class_names=CLASSES,
    inputs=(
        InputSignature(
            "x",
            "float64",
            (None, FEATURES),
            columns=tuple(Column(f"f{place}", "number") for place in range(FEATURES)),
        ),
    ),
    checksums={"program.pt2": "a" * 64},
    calibration_id="c1",
    covers=False,
    abstains=True,
)


@dataclass
class StandIn:
    """Answers by sums of the features; `before` is called first, with the number of rows."""

    described: Described = CLASSIFIER
    asked: Asked = field(default_factory=Asked)
    threads: int = 1
    passes: dict[str, int] = field(default_factory=lambda: {"rows": 64})
    before: Callable[[int], None] = lambda rows: None

    def score(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        rows = inputs["x"]
        self.before(len(rows))
        return classify(rows) if self.described.classifies else regress(rows, self.described.outputs)


def classify(rows: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    logits = np.stack([np.sin(rows.sum(1) + turn) for turn in range(len(CLASSES))], axis=1)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    entropy = -(probabilities * np.log(probabilities)).sum(1)
    doubt = 0.1 * np.abs(np.cos(rows[:, 0]))
    ordered = np.sort(probabilities, axis=1)
    return {
        "label": probabilities.argmax(1),
        "probabilities": probabilities,
        "predictive_entropy": entropy,
        "expected_entropy": entropy - doubt,
        "mutual_information": doubt,
        "standard_deviation": 0.1 * probabilities,
        "margin": ordered[:, -1] - ordered[:, -2],
        "standard_error": 0.01 * probabilities,
        "draws": np.where(rows[:, 0] > 0, DRAWS, 2 * DRAWS),
        "stop_reason": np.where(rows[:, 0] > 0, "tolerance", "max_draws").astype(object),
        "abstain": doubt > 0.09,
    }


def regress(rows: NDArray[np.float64], outputs: int) -> dict[str, NDArray[Any]]:
    mean = rows[:, :outputs]
    return {
        "mean": mean,
        "total_variance": mean**2 + 1.0,
        "epistemic_variance": mean**2,
        "aleatoric_variance": np.ones_like(mean),
        "interval": np.stack([mean - 1.0, mean + 1.0], -1),
        "standard_error": 0.1 * np.abs(mean),
        "draws": np.full(len(rows), DRAWS),
        "stop_reason": np.full(len(rows), "max_draws", object),
    }


def table(rows: int, seed: int = 0) -> arrow.Table:
    """Return a table of features, with an id and a note that pass through."""
    values = np.random.default_rng(seed).normal(size=(rows, FEATURES))
    features = {f"f{place}": values[:, place] for place in range(FEATURES)}
    notes = arrow.array([f"row {row}" for row in range(rows)], arrow.string())
    return arrow.table({"id": np.arange(rows), **features, "note": notes})


def write_input(folder: Path, *rows: int) -> Path:
    """Write files of so many rows each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, count in enumerate(rows):
        parquet.write_table(table(count, number), folder / f"day-{number}.parquet", row_group_size=100)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every part."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}
