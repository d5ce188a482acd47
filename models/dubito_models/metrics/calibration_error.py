"""Calibration errors: how far confidence is from accuracy, of the predicted class unless a name says otherwise.

The confidence of a row is its highest probability; the row is correct where that class (the lowest of equals) is the
label. Binned errors depend on the bins and are above 0 at finite N even for a perfectly calibrated network, but for
the debiased one, whose square is right on the average; give them with an interval (`bootstrap_interval`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, optimize, special

from dubito_models.arrays import Array, share
from dubito_models.metrics.checks import classified, counted

NARROWEST = 2.0**-11  # the standard deviation of the narrowest kernel of the smooth error
_VANISHING = 8.7  # exp(-x^2 / 2) is below a rounding of 1 from here on
_BLOCK = 2**20  # numbers held at a time


@dataclass(frozen=True, slots=True)
class ReliabilityBins:
    """The points of a reliability diagram: of every bin (l, u] that is not empty, in order; all (bins,)."""

    lower_edge: Array
    upper_edge: Array
    confidence: Array  # mean
    accuracy: Array
    count: NDArray[np.int64]
    accuracy_low: Array  # Wilson's interval
    accuracy_high: Array


def equal_width_bins(values: Array, bins: int) -> NDArray[np.int64]:
    """Return the bin of each value in [0, 1]: (0, 1/bins], (1/bins, 2/bins], ..., and 0 in the first."""
    # Edges b / bins are correctly rounded, as are literal confidences: 0.2 of 15 bins lies on its edge.
    edges = np.arange(counted("bins", bins) + 1) / bins
    return np.clip(np.searchsorted(edges, values, side="left") - 1, 0, bins - 1).astype(np.int64)


def _equal_mass_bins(values: Array, bins: int) -> NDArray[np.int64]:
    """Return the bin of each value, in order of size; the first bins get one more where N is no multiple of them."""
    whole, left = divmod(len(values), counted("bins", bins))
    sizes = np.full(bins, whole) + (np.arange(bins) < left)
    index = np.empty(len(values), dtype=np.int64)
    index[np.argsort(values, kind="stable")] = np.repeat(np.arange(bins), sizes)
    return index


def _top(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    p, y = classified(probabilities, labels)
    return p.max(axis=1), (p.argmax(axis=1) == y).astype(np.float64)


def _gaps(confidence: Array, correct: Array, index: NDArray[np.int64]) -> tuple[Array, Array]:
    """Return accuracy - confidence and the number of rows of every bin that is not empty."""
    counts = np.bincount(index)
    sums = np.bincount(index, weights=correct - confidence)
    return sums[counts > 0] / counts[counts > 0], counts[counts > 0].astype(np.float64)


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Return sum_b n_b / N |accuracy_b - confidence_b| over equal-width bins (l, u] of the highest probability.

    Confidence 0 would belong to the first bin (Naeini et al. 2015, Guo et al. 2017). Not 0 at finite N, even for a
    perfectly calibrated network.
    """
    confidence, correct = _top(probabilities, labels)
    gaps, counts = _gaps(confidence, correct, equal_width_bins(confidence, bins))
    return float((counts * np.abs(gaps)).sum() / len(confidence))


def adaptive_expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Return the expected calibration error over bins of equally many rows in order of confidence.

    Rows of equal confidence stay in the order given, and may fall into two bins.
    """
    confidence, correct = _top(probabilities, labels)
    gaps, counts = _gaps(confidence, correct, _equal_mass_bins(confidence, bins))
    return float((counts * np.abs(gaps)).sum() / len(confidence))


def unweighted_calibration_error(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Return the mean of |accuracy_b - confidence_b| over the equal-width bins that are not empty, all alike.

    Some libraries call it ACE; that of Nixon et al. (2019) is another.
    """
    confidence, correct = _top(probabilities, labels)
    gaps, _ = _gaps(confidence, correct, equal_width_bins(confidence, bins))
    return float(np.abs(gaps).mean())


def maximum_calibration_error(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Return the largest |accuracy_b - confidence_b| of the equal-width bins (Naeini et al. 2015)."""
    confidence, correct = _top(probabilities, labels)
    gaps, _ = _gaps(confidence, correct, equal_width_bins(confidence, bins))
    return float(np.abs(gaps).max())


def root_mean_squared_calibration_error(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Return the root of sum_b n_b / N (accuracy_b - confidence_b)^2 over equal-width bins."""
    confidence, correct = _top(probabilities, labels)
    gaps, counts = _gaps(confidence, correct, equal_width_bins(confidence, bins))
    return float(np.sqrt((counts * gaps**2).sum() / len(confidence)))


def classwise_expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Return the mean over classes of sum_b n_b / N |frequency_b - probability_b|, each class against the rest.

    Equal-width bins of that class's probability over all rows (Kull et al. 2019).
    """
    p, y = classified(probabilities, labels)
    total = 0.0
    for k in range(p.shape[1]):
        gaps, counts = _gaps(p[:, k], (y == k).astype(np.float64), equal_width_bins(p[:, k], bins))
        total += float((counts * np.abs(gaps)).sum())
    return total / p.size


def debiased_calibration_error(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = 15) -> float:
    """Return the root of sum_b n_b / N [(accuracy_b - confidence_b)^2 - accuracy_b (1 - accuracy_b) / (n_b - 1)].

    The l2 error over bins of equally many rows, less what chance alone adds (Kumar et al. 2019); 0 where that is more
    than there is. A bin of one row cannot tell its chance and counts as 0.
    """
    confidence, correct = _top(probabilities, labels)
    index = _equal_mass_bins(confidence, bins)
    gaps, counts = _gaps(confidence, correct, index)
    accuracies = np.bincount(index, weights=correct)[: len(counts)] / counts  # the empty bins are the last
    chance = accuracies * (1 - accuracies) / np.maximum(counts - 1, 1)
    square = (counts * np.where(counts > 1, gaps**2 - chance, 0.0)).sum() / len(confidence)
    return math.sqrt(max(float(square), 0.0))


def reliability_bins(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15, level: float = 0.95
) -> ReliabilityBins:
    """Return mean confidence and accuracy of the equal-width bins, with Wilson's (1927) interval of the accuracy."""
    confidence, correct = _top(probabilities, labels)
    index = equal_width_bins(confidence, bins)
    counts = np.bincount(index)
    inside = np.flatnonzero(counts)
    n = counts[inside]
    accuracies = np.bincount(index, weights=correct)[inside] / n
    z = float(special.ndtri((1 + share("level", level)) / 2))
    middle = (accuracies + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(accuracies * (1 - accuracies) / n + z**2 / (4 * n**2))
    return ReliabilityBins(
        lower_edge=inside / bins,
        upper_edge=(inside + 1) / bins,
        confidence=np.bincount(index, weights=confidence)[inside] / n,
        accuracy=accuracies,
        count=n.astype(np.int64),
        accuracy_low=np.where(accuracies > 0, middle - half, 0.0),
        accuracy_high=np.where(accuracies < 1, middle + half, 1.0),
    )


# --- The smooth error ---


def smooth_calibration_error(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return smECE (Blasiok & Nakkiran 2023): without bins, and within a constant of the distance from calibration.

    The integral over [0, 1] of |mean_i (correct_i - confidence_i) k(t, confidence_i)|, where k is a Gaussian reflected
    at 0 and 1. Its standard deviation is the error itself, but no less than `NARROWEST`: the integral falls as it
    grows, so that there is one such value.
    """
    confidence, correct = _top(probabilities, labels)
    places, residuals = np.minimum(confidence, 1.0), correct - confidence
    narrow = 1.0  # at which the error cannot be above the deviation
    while True:
        narrow /= 2
        waves = _cosines(places, residuals, math.ceil(_VANISHING / (math.pi * narrow)))
        nodes = round(64 / narrow)
        error = _smoothed(waves, narrow, nodes)
        if error >= narrow:
            break
        if narrow <= NARROWEST:
            return error
    return float(optimize.brentq(lambda sigma: _smoothed(waves, sigma, nodes) - sigma, narrow, 2 * narrow, xtol=1e-13))


def _cosines(places: Array, weights: Array, waves: int) -> Array:
    """Return mean_i weight_i cos(m pi place_i) for m from 0 to `waves`, (waves + 1,)."""
    # With m = width a + b the exponentials are products of two, and the sums over rows a product of matrices.
    width = math.isqrt(waves) + 1
    step = max(1, _BLOCK // width)
    total = np.zeros((width, width))
    for start in range(0, len(places), step):
        angle = 1j * math.pi * places[start : start + step, None]
        coarse = weights[start : start + step, None] * np.exp(angle * (width * np.arange(width)))
        total += (coarse.T @ np.exp(angle * np.arange(width))).real
    return total.ravel()[: waves + 1] / len(places)


def _smoothed(waves: Array, sigma: float, nodes: int) -> float:
    """Return the integral of |r| over [0, 1] for the r whose cosine coefficients are `waves`, smoothed by `sigma`.

    The reflected Gaussian is 1 + 2 sum_m exp(-(m pi sigma)^2 / 2) cos(m pi t) cos(m pi s), so r and its integral are
    sums of cosines and sines. Between nodes the integral is exact where r keeps its sign; where it changes, r is taken
    for a straight line.
    """
    numbers = math.pi * np.arange(len(waves))
    padded = np.zeros(nodes + 1)
    padded[: len(waves)] = waves * np.exp(-0.5 * (numbers * sigma) ** 2)
    r = fft.dct(padded, type=1)
    padded[1 : len(waves)] /= numbers[1:]
    whole = padded[0] * np.arange(nodes + 1) / nodes
    whole[1:-1] += fft.dst(padded[1:-1], type=1)
    left, right = r[:-1], r[1:]
    turns = left * right < 0
    smaller = np.minimum(np.abs(left), np.abs(right))[turns]
    hidden = smaller**2 / (np.abs(left) + np.abs(right))[turns]  # twice the smaller triangle, over the nodes' distance
    return float(np.abs(np.diff(whole)).sum() + hidden.sum() / nodes)
