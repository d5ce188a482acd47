"""Predictions whose labels come back: receipts made by hand, and labels that their probabilities mean."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dubito_models.calibration.nonconformity import lac_scores
from dubito_models.package import ModelVersion, load_version
from dubito_models.predictive import Validity
from dubito_service.observing.labels import Scored, read_label, score
from dubito_service.observing.receipts import Classified, Drawn, Receipt, Regressed, Scoring

KEY = b"k" * 32
NOW = 1.8e9
CLASSES = 3
LAC = Scoring("lac", 0.0, 0, 1e-12)
_numbers = itertools.count()


def class_probabilities(random: np.random.Generator, rows: int) -> NDArray[np.float64]:
    return random.dirichlet(np.ones(CLASSES), rows)


def labels_of(random: np.random.Generator, p: NDArray[np.float64]) -> NDArray[np.int64]:
    """Labels drawn by the probabilities: a perfectly calibrated classifier."""
    return (random.random((len(p), 1)) > p.cumsum(-1)).sum(-1)


def classified(p: NDArray[np.float64], **changes: Any) -> Receipt:
    """The receipt of a classification, drawn as calibrated; each has an id of its own."""
    rows = len(p)
    fields: dict[str, Any] = {
        "prediction_id": f"{next(_numbers):032x}",
        "model": "mlp",
        "version": 1,
        "calibration_id": "c0",
        "validity": Validity.EXACT,
        "issued": NOW,
        "answer": Classified(p, None),
        "drawn": Drawn(7, "balanced", "draw", np.full(rows, 40)),
        "epistemic": 1.0 - p.max(-1),
        "scoring": LAC,
    }
    return Receipt(**{**fields, **changes})


def regressed(mean: NDArray[np.float64], **changes: Any) -> Receipt:
    rows = len(mean)
    answer = Regressed(mean, np.full(mean.shape, 0.25), None, np.stack([mean - 1, mean + 1], -1))
    fields: dict[str, Any] = {
        "answer": answer,
        "epistemic": np.full(rows, 0.1),
        "scoring": Scoring("normalized", 0.0, 0, 1e-12),
        "coverage": 0.9,
        "served_coverage": 0.9,
    }
    return classified(np.full((rows, CLASSES), 1 / CLASSES), **{**fields, **changes})


def scored(receipt: Receipt, labels: Any) -> Scored:
    return score(receipt, read_label(np.asarray(labels), receipt))


def lac_reference(rows: int, seed: int) -> tuple[float, ...]:
    """Scores of calibration rows of the perfect classifier, ascending."""
    random = np.random.default_rng(seed)
    p = class_probabilities(random, rows)
    y = labels_of(random, p)
    return tuple(np.sort(lac_scores(p)[np.arange(rows), y]).tolist())


def calibrated(
    source: ModelVersion, repository: Path, inputs: dict[str, NDArray[Any]] | None = None, rows: int = 400
) -> ModelVersion:
    """A copy of a version in a repository of its own, calibrated on labels that it means.

    Of the "mlp" case, unless there are inputs of another, a regression: then their targets lie about what it says.
    """
    folder = repository / source.name / str(source.version)
    shutil.copytree(source.folder, folder, ignore=shutil.ignore_patterns("calibrations"))
    version = load_version(folder)
    if inputs is None:
        version.calibrate(*labelled(version, rows, seed=0))
        return version
    mean: NDArray[np.float64] = version.predict(inputs).answer.mean  # type: ignore[union-attr]
    version.calibrate(inputs, mean + np.random.default_rng(0).normal(size=mean.shape))
    return version


def labelled(
    version: ModelVersion, rows: int, seed: int, shift: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows of the "mlp" case and labels drawn by what it says of them; shifted rows have labels of all others."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(rows, 6)).astype(np.float32)
    p = version.predict(inputs).answer.probabilities  # type: ignore[union-attr]
    labels = labels_of(random, p)
    wrong = random.random(rows) < shift
    return inputs, np.where(wrong, p.argmin(-1), labels)
