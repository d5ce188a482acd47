"""Inputs of the scores that other libraries were asked about, drawn from seeds; `scores.json` holds their answers.

Only numpy is needed, so that the libraries' virtual environment and the tests draw the same inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Classified:
    """Probabilities and labels that are drawn from sharper or blunter ones."""

    probabilities: Array  # (N, K)
    labels: NDArray[np.int64]  # (N,)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Draws of a regression, and one Gaussian for each row."""

    means: Array  # (S, N)
    variances: Array  # (S, N)
    mean: Array  # (N,)
    variance: Array  # (N,)
    targets: Array  # (N,)
    intervals: Array  # (N, 2)


@dataclass(frozen=True, slots=True)
class Doubted:
    """Errors with their uncertainty, no two of which are equal, and scores inside and outside with many that are."""

    losses: Array  # (N,): 0 or 1
    uncertainty: Array  # (N,)
    inside: Array  # (N,)
    outside: Array  # (M,)


def classified(seed: int, rows: int, classes: int, scale: float, sharpness: float) -> Classified:
    """Draw softmax probabilities of Gaussian logits; labels from those of the logits times `sharpness`."""
    random = np.random.default_rng(seed)
    logits = scale * random.standard_normal((rows, classes))
    true = _softmax(sharpness * logits).cumsum(axis=1)
    labels = (random.random((rows, 1)) > true / true[:, -1:]).sum(axis=1)
    return Classified(_softmax(logits), labels.astype(np.int64))


def drawn(seed: int, draws: int, rows: int) -> Drawn:
    """Draw means that scatter about a row's own, variances, and targets that scatter more than both."""
    random = np.random.default_rng(seed)
    centre = 3 * random.standard_normal(rows)
    means = centre + random.standard_normal((draws, rows))
    variances = 0.05 + random.random((draws, rows))
    targets = centre + 1.6 * random.standard_normal(rows)
    mean, variance = means.mean(axis=0), variances.mean(axis=0) + means.var(axis=0)
    half = 1.5 * np.sqrt(variance)
    return Drawn(means, variances, mean, variance, targets, np.stack([mean - half, mean + half], axis=-1))


def doubted(seed: int, rows: int) -> Doubted:
    """Draw errors that are likelier where uncertainty is higher, and rounded scores that are higher outside."""
    random = np.random.default_rng(seed)
    uncertainty = random.random(rows)
    losses = (random.random(rows) < 0.6 * uncertainty).astype(np.float64)
    inside = np.round(random.standard_normal(rows), 1)
    outside = np.round(random.standard_normal(rows // 2 + 3) + 1.5, 1)
    return Doubted(losses, uncertainty, inside, outside)


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    share: Array = powers / powers.sum(axis=1, keepdims=True)
    return share


CLASSIFIED = {
    "binary": classified(1, 60, 2, 1.0, 0.6),
    "three": classified(2, 80, 3, 1.5, 1.0),
    "ten": classified(3, 120, 10, 2.0, 0.95),
    "sure": classified(4, 50, 4, 6.0, 0.8),
}
DRAWN = {"two": drawn(5, 2, 40), "seven": drawn(6, 7, 30), "thirty": drawn(7, 30, 25)}
DOUBTED = {"forty": doubted(8, 40), "hundred": doubted(9, 100)}
