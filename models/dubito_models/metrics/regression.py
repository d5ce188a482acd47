"""Scores of predicted numbers, Gaussians, draws and intervals at targets (N,) or (N, K).

Each is a mean over rows and targets. Draws stand first: (S, N) or (S, N, K).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from dubito_models.arrays import Array, finite, fitting, gaussians, share, spreads
from dubito_models.errors import InvalidArgument
from dubito_models.metrics.checks import bounded, paired
from dubito_models.mixtures import mixture_log_density

LEVELS = 100  # nominal proportions, from 0 to 1, that observed ones are compared with
_BLOCK = 2**16  # pairs of draws held at a time


@dataclass(frozen=True, slots=True)
class RegressionScores:
    """What is said of a regression in one line of a table; None where the network does not know its noise."""

    root_mean_squared_error: float
    negative_log_likelihood: float | None
    interval_level: float
    interval_coverage: float | None
    interval_width: float | None


# --- Of numbers ---


def root_mean_squared_error(predictions: ArrayLike, targets: ArrayLike) -> float:
    """Return the root of the mean squared error over all rows and targets, (N,) or (N, K), in the targets' unit."""
    prediction, y = paired("predictions", predictions, targets)
    return float(np.sqrt(((prediction - y) ** 2).mean()))


def mean_absolute_error(predictions: ArrayLike, targets: ArrayLike) -> float:
    """Return the mean absolute error over all rows and targets, (N,) or (N, K), in the targets' unit."""
    prediction, y = paired("predictions", predictions, targets)
    return float(np.abs(prediction - y).mean())


# --- Of distributions ---


def gaussian_negative_log_likelihood(mean: ArrayLike, variance: ArrayLike, targets: ArrayLike) -> float:
    """Return the mean over rows and targets of -log N(target; mean, variance), all (N,) or (N, K), in nats."""
    mu, y = paired("mean", mean, targets)
    sigma2, _ = paired("variance", spreads("variance", variance), targets)
    return float(0.5 * (math.log(2 * math.pi) + np.log(sigma2) + (y - mu) ** 2 / sigma2).mean())


def mixture_negative_log_likelihood(means: ArrayLike, variances: ArrayLike, targets: ArrayLike) -> float:
    """Return the mean over rows and targets of -log of the draws' equal-weight mixture of Gaussians, in nats.

    `means` and `variances` are (S, N) or (S, N, K), `targets` (N,) or (N, K):
    -(logsumexp_s log N(y; mu_s, sigma_s^2) - log S) (Gal & Ghahramani 2016, equation 8).
    """
    return float(-mixture_log_density(means, variances, targets).mean())


def gaussian_crps(mean: ArrayLike, variance: ArrayLike, targets: ArrayLike) -> float:
    """Return the mean continuous ranked probability score of N(mean, variance), all (N,) or (N, K), in their unit.

    Of variance 0 it is the absolute error (Gneiting et al. 2005, equation 5).
    """
    mu, y = paired("mean", mean, targets)
    sigma2, _ = paired("variance", spreads("variance", variance, zero=True), targets)
    return float((_expected_distance(y - mu, sigma2) - np.sqrt(sigma2 / math.pi)).mean())


def ensemble_crps(samples: ArrayLike, targets: ArrayLike, *, fair: bool = False) -> float:
    """Return the mean continuous ranked probability score of samples (S, N) or (S, N, K), in the targets' unit.

    mean_s |x_s - y| - sum_{s, t} |x_s - x_t| / (2 S^2), from sorted samples: the score of their step function, which
    is too high for few. `fair` divides by S (S - 1): unbiased for the distribution that they are drawn from, and
    possibly below 0 (Ferro 2014).
    """
    x = finite("samples", samples)
    y = fitting("samples", x, targets)
    count = len(x)
    if fair and count < 2:
        raise InvalidArgument("samples", "1 of every target", "at least 2 where fair")
    ordered = np.sort(x - y, axis=0)  # about the target: the sum below cancels
    weights = 2.0 * np.arange(1, count + 1) - count - 1
    pairs = np.tensordot(weights, ordered, axes=1) / (count * (count - 1 if fair else count))
    return float((np.abs(ordered).mean(axis=0) - pairs).mean())


def mixture_crps(means: ArrayLike, variances: ArrayLike, targets: ArrayLike) -> float:
    """Return the mean continuous ranked probability score of the draws' mixture of Gaussians, in the targets' unit.

    `means` and `variances` (S, N) or (S, N, K): mean_s A(y - mu_s, sigma_s^2) - mean_{s, t} A(mu_s - mu_t,
    sigma_s^2 + sigma_t^2) / 2 with A(m, v) the mean of |N(m, v)| (Grimit et al. 2006, equation 5). Exact, in time
    S^2 N K; variances may be 0.
    """
    mu, sigma2 = gaussians(means, variances, zero=True)
    y = fitting("means, variances", mu, targets)
    count = len(mu)
    near = _expected_distance(mu - y, sigma2).mean()
    mu, sigma2 = mu.reshape(count, -1), sigma2.reshape(count, -1)
    columns = max(1, _BLOCK // count)
    pairs = np.sqrt(sigma2 / math.pi).sum()  # half of each draw with itself
    for start in range(0, mu.shape[1], columns):
        m, v = mu[:, start : start + columns], sigma2[:, start : start + columns]
        for s in range(1, count):
            pairs += _expected_distance(m[s:] - m[s - 1], v[s:] + v[s - 1]).sum()
    return float(near - pairs / (count * mu.size))


def _expected_distance(m: Array, v: Array) -> Array:
    """Return the mean of |x| for x from N(m, v): m erf(m / sqrt(2 v)) + sqrt(2 v / pi) exp(-m^2 / (2 v))."""
    root = np.sqrt(2 * v)
    with np.errstate(over="ignore"):
        z = m / np.maximum(root, np.finfo(np.float64).tiny)
        distance: Array = m * special.erf(z) + root / math.sqrt(math.pi) * np.exp(-(z**2))
    return distance


# --- Of intervals ---


def interval_score(intervals: ArrayLike, targets: ArrayLike, level: float) -> float:
    """Return the mean of (u - l) + 2 / a (l - y)+ + 2 / a (y - u)+ with a = 1 - level, in the targets' unit.

    Intervals (N, 2) or (N, K, 2) that are meant to hold `level` of the targets, a / 2 beyond either bound; the lowest
    expected score is that of those quantiles (Gneiting & Raftery 2007, equation 43).
    """
    low, high, y = bounded(intervals, targets)
    beyond = np.maximum(low - y, 0) + np.maximum(y - high, 0)
    return float((high - low + 2 / (1 - share("level", level)) * beyond).mean())


def interval_coverage(intervals: ArrayLike, targets: ArrayLike) -> float:
    """Return the share of targets (N,) or (N, K) within their closed intervals (N, 2) or (N, K, 2) (PICP)."""
    low, high, y = bounded(intervals, targets)
    return float(((low <= y) & (y <= high)).mean())


def interval_width(intervals: ArrayLike) -> float:
    """Return the mean width of intervals (..., 2), in the targets' unit (MPIW)."""
    bounds = finite("intervals", intervals)
    low, high, _ = bounded(bounds, np.zeros(bounds.shape[:-1]))
    return float((high - low).mean())


def interval_miscalibration_area(pit: ArrayLike) -> float:
    """Return the area between observed and nominal proportions of targets below their predicted quantiles.

    `pit`: the predictive distribution functions at the targets, any shape, in [0, 1] (`mixture_cdf`). The observed
    proportion at p is the share of `pit` <= p. Both are joined by straight lines over 100 levels of p, and where
    they cross the areas on either side both count. 0 is perfect, 1/2 the worst (Kuleshov et al. 2018, figure 1).
    """
    u = finite("pit", pit)
    if u.min() < 0 or u.max() > 1:
        raise InvalidArgument("pit", f"values in [{u.min():g}, {u.max():g}]", "values in [0, 1]")
    nominal = np.linspace(0, 1, LEVELS)
    gap = np.searchsorted(np.sort(u, axis=None), nominal, side="right") / u.size - nominal
    left, right = np.abs(gap[:-1]), np.abs(gap[1:])
    sums = left + right
    crossing = gap[:-1] * gap[1:] < 0
    heights = np.where(crossing, (left**2 + right**2) / np.where(crossing, sums, 1.0), sums)
    return float((np.diff(nominal) * heights).sum() / 2)


def sharpness(variance: ArrayLike) -> float:
    """Return the root of the mean predicted variance, any shape, in the targets' unit (Gneiting et al. 2007)."""
    return float(np.sqrt(spreads("variance", variance, zero=True).mean()))
