"""Scores of class probabilities (N, K) at labels (N,)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dubito_models.metrics.calibration_error import equal_width_bins, expected_calibration_error
from dubito_models.metrics.checks import classified, counted


@dataclass(frozen=True, slots=True)
class ClassificationScores:
    """What is said of a classifier in one line of a table."""

    accuracy: float
    negative_log_likelihood: float
    brier_score: float
    expected_calibration_error: float


@dataclass(frozen=True, slots=True)
class BrierDecomposition:
    """The parts of a Brier score over bins; without the parts within bins they do not add up to it."""

    reliability: float  # how far frequencies are from what was forecast: lower is better
    resolution: float  # how far frequencies are from each other: higher is better
    uncertainty: float  # that of the labels alone
    within_bin_variance: float  # of the forecasts
    within_bin_covariance: float  # of forecasts and outcomes, twice: higher is better

    @property
    def score(self) -> float:
        """The Brier score."""
        binned = self.reliability - self.resolution + self.uncertainty
        return binned + self.within_bin_variance - self.within_bin_covariance


def classification_scores(probabilities: ArrayLike, labels: ArrayLike) -> ClassificationScores:
    """Return all four scores of probabilities (N, K) at labels (N,)."""
    return ClassificationScores(
        accuracy=accuracy(probabilities, labels),
        negative_log_likelihood=negative_log_likelihood(probabilities, labels),
        brier_score=brier_score(probabilities, labels),
        expected_calibration_error=expected_calibration_error(probabilities, labels),
    )


def accuracy(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of rows whose most probable class (the lowest of equals) is the label."""
    p, y = classified(probabilities, labels)
    return float((p.argmax(axis=1) == y).mean())


def negative_log_likelihood(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of -log p(label), in nats; infinite where a label has probability 0."""
    p, y = classified(probabilities, labels)
    with np.errstate(divide="ignore"):
        return float(-np.log(p[np.arange(len(y)), y]).mean()) + 0.0  # + 0.0: never -0.0


def brier_score(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of sum_k (p_k - [k = label])^2, in [0, 2] (Brier 1950)."""
    p, y = classified(probabilities, labels)
    return float(((p - np.eye(p.shape[1])[y]) ** 2).sum(axis=1).mean())


def brier_decomposition(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> BrierDecomposition:
    """Return the parts of the Brier score over equal-width bins (l, u] of each class's probability.

    Each class against the rest, summed over classes (Murphy 1973); with the variance and covariance within bins that
    Stephenson et al. (2008) add, `score` is the Brier score but for rounding.
    """
    p, y = classified(probabilities, labels)
    counted("bins", bins)
    parts = np.zeros(5)
    for k in range(p.shape[1]):
        forecast, outcome = p[:, k], (y == k).astype(np.float64)
        index = equal_width_bins(forecast, bins)
        counts = np.maximum(np.bincount(index), 1)
        expected = (np.bincount(index, weights=forecast) / counts)[index]
        frequency = (np.bincount(index, weights=outcome) / counts)[index]
        rate = outcome.mean()
        parts += (
            ((expected - frequency) ** 2).mean(),
            ((frequency - rate) ** 2).mean(),
            rate * (1 - rate),
            ((forecast - expected) ** 2).mean(),
            2 * ((forecast - expected) * (outcome - frequency)).mean(),
        )
    return BrierDecomposition(*(float(part) for part in parts))
