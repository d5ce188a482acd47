"""The rows that a version doubts most, shown as a person would look at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dubito_models.answering import Answers, ClassAnswers
from dubito_models.curves import losses_of
from dubito_models.package import ModelVersion
from dubito_models.rows import Labelled
from dubito_models.shifting import is_image

EXAMPLES = 12


@dataclass(frozen=True, slots=True)
class Example:
    """A row that the served path is in doubt about; `probability`: of the class predicted, None for a number.

    `picture`: (H, W) or (H, W, 3), where rows are images.
    """

    row: int
    truth: str
    prediction: str
    probability: float | None
    wrong: bool | None
    total: float
    epistemic: float
    features: tuple[tuple[str, str], ...]
    picture: NDArray[np.uint8] | None


def most_doubtful(version: ModelVersion, answers: Answers, labelled: Labelled) -> tuple[Example, ...]:
    """Return the rows of the highest epistemic uncertainty, the highest first."""
    epistemic = answers.epistemic
    if epistemic is None:
        return ()
    worst = np.argsort(-epistemic, kind="stable")[:EXAMPLES]
    losses = losses_of(answers, labelled.targets)
    found = []
    for row in worst.tolist():
        if isinstance(answers, ClassAnswers):
            label = int(answers.probabilities[row].argmax())
            said = _class_name(version, int(labelled.targets[row])), _class_name(version, label)
            probability, wrong = float(answers.probabilities[row, label]), bool(losses[row])
            total = float(answers.predictive_entropy[row])
        else:
            said = _numbers(labelled.targets[row]), _numbers(answers.mean[row])
            probability, wrong, total = None, None, float(answers.doubt[row])
        shown = _features(version, labelled, row), _picture(version, labelled, row)
        found.append(Example(row, *said, probability, wrong, total, float(epistemic[row]), *shown))
    return tuple(found)


def _class_name(version: ModelVersion, label: int) -> str:
    names = version.manifest.class_names
    return str(label) if names is None else names[label]


def _numbers(values: NDArray[Any], most: int = 8) -> str:
    said = ", ".join(f"{value:.4g}" for value in values[:most].tolist())
    return said + (", ..." if len(values) > most else "")


def _features(version: ModelVersion, labelled: Labelled, row: int) -> tuple[tuple[str, str], ...]:
    """Return a row's features by name, as a person would write them."""
    said: list[tuple[str, str]] = []
    for entry in version.manifest.inputs:
        values = labelled.inputs[entry.name][row]
        if entry.columns is None:
            said.append((entry.name, _numbers(values.ravel())))
            continue
        for column, value in zip(entry.columns, values.tolist(), strict=True):
            known = column.kind == "category" and 0 < value <= len(column.categories)
            text = (
                column.categories[int(value) - 1] if known else "other" if column.kind == "category" else f"{value:.4g}"
            )
            said.append((column.name, "missing" if np.isnan(value) else text))
    return tuple(said)


def _picture(version: ModelVersion, labelled: Labelled, row: int) -> NDArray[np.uint8] | None:
    """Return the first input that is an image, its pixels' range over all rows brought into 0 to 255."""
    for entry in version.manifest.inputs:
        if is_image(entry):
            images = labelled.inputs[entry.name]
            low, high = float(images.min()), float(images.max())
            image = (images[row].astype(np.float64) - low) / (high - low or 1.0)  # (C, H, W)
            colours = np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]
            shades: NDArray[np.uint8] = np.rint(255 * colours).astype(np.uint8)
            return shades
    return None
