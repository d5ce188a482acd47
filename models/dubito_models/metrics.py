"""Metrics: plain functions over numpy arrays, computed in float64; lower is better but for accuracy.

Probabilities are (N, K), labels and other targets (N,) or as said. Every function raises `InvalidArgument` for no rows,
shapes that do not fit, and values that are no probabilities, labels, variances or finite numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from dubito_models.errors import InvalidArgument

SUM_TOLERANCE = 1e-3  # what float16 leaves of a sum of 1


@dataclass(frozen=True, slots=True)
class ClassificationScores:
    """What is said of a classifier in one line of a table."""

    accuracy: float
    negative_log_likelihood: float
    brier_score: float
    expected_calibration_error: float


def classification_scores(probabilities: ArrayLike, labels: ArrayLike) -> ClassificationScores:
    """Return all four scores of probabilities (N, K) at labels (N,)."""
    return ClassificationScores(
        accuracy=accuracy(probabilities, labels),
        negative_log_likelihood=negative_log_likelihood(probabilities, labels),
        brier_score=brier_score(probabilities, labels),
        expected_calibration_error=expected_calibration_error(probabilities, labels),
    )


@dataclass(frozen=True, slots=True)
class RegressionScores:
    """What is said of a regression in one line of a table; None where the network does not know its noise."""

    root_mean_squared_error: float
    negative_log_likelihood: float | None
    interval_level: float
    interval_coverage: float | None
    interval_width: float | None


# --- What is accepted ---


def _finite(field: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidArgument(field, type(values).__name__, "an array of numbers") from None
    if array.size == 0:
        raise InvalidArgument(field, f"shape {array.shape}", "at least one row")
    if not np.isfinite(array).all():
        raise InvalidArgument(field, "NaN or infinity", "finite numbers")
    return array


def _classified(probabilities: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    p = _finite("probabilities", probabilities)
    if p.ndim != 2 or p.shape[1] < 2:
        raise InvalidArgument("probabilities", f"shape {p.shape}", "shape (N, K) with K of at least 2")
    if p.min() < 0 or p.max() > 1 + SUM_TOLERANCE or np.abs(p.sum(axis=1) - 1).max() > SUM_TOLERANCE:
        worst = int(np.abs(p.sum(axis=1) - 1).argmax())
        given = f"values in [{p.min():g}, {p.max():g}], row {worst} with the sum {p[worst].sum():g}"
        raise InvalidArgument("probabilities", given, "values in [0, 1], each row with the sum 1")
    y = np.asarray(labels)
    if y.shape != (len(p),) or not np.issubdtype(y.dtype, np.integer):
        raise InvalidArgument("labels", f"{y.dtype} of shape {y.shape}", f"integers of shape ({len(p)},)")
    if y.min() < 0 or y.max() >= p.shape[1]:
        accepted = f"classes 0 to {p.shape[1] - 1}"
        raise InvalidArgument("labels", f"values from {y.min()} to {y.max()}", accepted)
    return p, y.astype(np.int64)


def _paired(field: str, values: ArrayLike, targets: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    v, y = _finite(field, values), _finite("targets", targets)
    if v.shape != y.shape or v.ndim not in (1, 2):
        raise InvalidArgument(field, f"shape {v.shape} for targets of shape {y.shape}", "(N,) or (N, K) both")
    return v, y


# --- Classification ---


def accuracy(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of rows whose most probable class (the lowest of equals) is the label."""
    p, y = _classified(probabilities, labels)
    return float((p.argmax(axis=1) == y).mean())


def negative_log_likelihood(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of -log p(label), in nats; infinite where a label has probability 0."""
    p, y = _classified(probabilities, labels)
    with np.errstate(divide="ignore"):
        return float(-np.log(p[np.arange(len(y)), y]).mean()) + 0.0  # + 0.0: never -0.0


def brier_score(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of sum_k (p_k - [k = label])^2, in [0, 2] (Brier 1950)."""
    p, y = _classified(probabilities, labels)
    return float(((p - np.eye(p.shape[1])[y]) ** 2).sum(axis=1).mean())


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Return sum_b n_b / N |accuracy_b - confidence_b| over equal-width bins (l, u] of the highest probability.

    Confidence 0 would belong to the first bin (Naeini et al. 2015, Guo et al. 2017). Not 0 at finite N, even for a
    perfectly calibrated network.
    """
    p, y = _classified(probabilities, labels)
    if bins < 1:
        raise InvalidArgument("bins", bins, "at least 1")
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == y
    # Edges b / bins are correctly rounded, as are literal confidences: 0.2 of 15 bins lies on its edge.
    edges = np.arange(bins + 1) / bins
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(p))


# --- Regression ---


def root_mean_squared_error(predictions: ArrayLike, targets: ArrayLike) -> float:
    """Return the root of the mean squared error over all rows and targets, (N,) or (N, K), in the targets' unit."""
    prediction, y = _paired("predictions", predictions, targets)
    return float(np.sqrt(((prediction - y) ** 2).mean()))


def gaussian_negative_log_likelihood(mean: ArrayLike, variance: ArrayLike, targets: ArrayLike) -> float:
    """Return the mean over rows and targets of -log N(target; mean, variance), all (N,) or (N, K), in nats."""
    mu, y = _paired("mean", mean, targets)
    sigma2, _ = _paired("variance", variance, targets)
    if sigma2.min() <= 0:
        raise InvalidArgument("variance", f"{sigma2.min():g}", "values above 0")
    return float(0.5 * (math.log(2 * math.pi) + np.log(sigma2) + (y - mu) ** 2 / sigma2).mean())


def mixture_negative_log_likelihood(means: ArrayLike, variances: ArrayLike, targets: ArrayLike) -> float:
    """Return the mean over rows and targets of -log of the draws' equal-weight mixture of Gaussians, in nats.

    `means` and `variances` are (S, N) or (S, N, K), `targets` (N,) or (N, K):
    -(logsumexp_s log N(y; mu_s, sigma_s^2) - log S) (Gal & Ghahramani 2016, equation 8).
    """
    mu, sigma2, y = _finite("means", means), _finite("variances", variances), _finite("targets", targets)
    if mu.shape != sigma2.shape or mu.shape[1:] != y.shape or y.ndim not in (1, 2):
        given = f"shapes {mu.shape} and {sigma2.shape} for targets of shape {y.shape}"
        raise InvalidArgument("means, variances", given, "(S, N) for (N,), or (S, N, K) for (N, K)")
    if sigma2.min() <= 0:
        raise InvalidArgument("variances", f"{sigma2.min():g}", "values above 0")
    each = -0.5 * ((y - mu) ** 2 / sigma2 + np.log(sigma2) + math.log(2 * math.pi))
    return float(math.log(len(mu)) - special.logsumexp(each, axis=0).mean())


def interval_coverage(intervals: ArrayLike, targets: ArrayLike) -> float:
    """Return the share of targets (N,) or (N, K) within their closed intervals (N, 2) or (N, K, 2) (PICP)."""
    low, high, y = _bounds(intervals, targets)
    return float(((low <= y) & (y <= high)).mean())


def interval_width(intervals: ArrayLike) -> float:
    """Return the mean width of intervals (..., 2), in the targets' unit (MPIW)."""
    bounds = _finite("intervals", intervals)
    low, high, _ = _bounds(bounds, np.zeros(bounds.shape[:-1]))
    return float((high - low).mean())


def _bounds(
    intervals: ArrayLike, targets: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    bounds, y = _finite("intervals", intervals), _finite("targets", targets)
    if bounds.shape != (*y.shape, 2):
        raise InvalidArgument("intervals", f"shape {bounds.shape} for targets of shape {y.shape}", "targets' and (2,)")
    low, high = bounds[..., 0], bounds[..., 1]
    if (low > high).any():
        raise InvalidArgument("intervals", "a lower bound above the upper", "lower bounds first")
    return low, high, y
