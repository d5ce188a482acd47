"""What a regression's maps are fitted to and judged by: every row's scores, and where its targets lie in its draws.

Draws are (S, N, K) means, and noise variances or None, which makes the draws' means alone the predictive distribution.
That has quantiles, but no density: its likelihood is that of a Gaussian with its mean and deviation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from dubito_models.calibration.fitting import HIGHEST, LOWEST
from dubito_models.errors import InvalidArgument
from dubito_models.metrics import ensemble_crps, gaussian_crps, mixture_crps
from dubito_models.mixtures import mixture_cdf, mixture_log_density

Array = NDArray[np.float64]

LEVELS = tuple(level / 100 for level in range(1, 100))  # of the quantiles that stand for a distribution
_EDGE = 1e-9  # a level nearer to 0 or 1 has no quantile that numbers could tell


@dataclass(frozen=True, slots=True)
class DrawnTargets:
    """What draws say of rows, and the targets."""

    means: Array  # (S, N, K)
    variances: Array | None  # (S, N, K)
    targets: Array  # (N, K)

    def take(self, rows: NDArray[np.int64]) -> DrawnTargets:
        """Return the rows of these numbers."""
        variances = None if self.variances is None else self.variances[:, rows]
        return DrawnTargets(self.means[:, rows], variances, self.targets[rows])

    def by_target(self) -> list[DrawnTargets]:
        """Return each target alone, as K = 1."""
        split = [slice(target, target + 1) for target in range(self.targets.shape[1])]
        own = [None if self.variances is None else self.variances[..., each] for each in split]
        return [
            DrawnTargets(self.means[..., each], noise, self.targets[:, each])
            for each, noise in zip(split, own, strict=True)
        ]

    def stretched(self, scales: Array) -> DrawnTargets:
        """Return draws whose deviations from their mean, and noise deviations, are `scales` (K,) times as large."""
        middle = self.means.mean(0)
        variances = None if self.variances is None else self.variances * scales**2
        return DrawnTargets(middle + scales * (self.means - middle), variances, self.targets)


def draw_targets(means: Array, variances: Array | None, targets: Array) -> DrawnTargets:
    """Put together draws and targets; `InvalidArgument` for shapes that do not fit, NaN, and draws without spread."""
    if means.ndim != 3 or targets.shape != means.shape[1:]:
        given = f"shape {targets.shape} for draws of shape {means.shape}"
        raise InvalidArgument("targets", given, "(rows, targets), for draws (draws, rows, targets)")
    if variances is not None and variances.shape != means.shape:
        raise InvalidArgument("variances", f"shape {variances.shape}", f"shape {means.shape}, as the means")
    if not (np.isfinite(means).all() and np.isfinite(targets).all()):
        raise InvalidArgument("means, targets", "NaN or infinity", "finite numbers")
    if variances is not None and not (np.isfinite(variances).all() and variances.min() > 0):
        raise InvalidArgument("variances", f"{variances.min():g}", "finite numbers above 0")
    if variances is None and not np.ptp(means, axis=0).all():
        raise InvalidArgument("means", "a row of which all draws say the same", "draws that differ, or noise variances")
    return DrawnTargets(means, variances, targets)


def mean_and_deviation(means: Array, variances: Array | None) -> tuple[Array, Array]:
    """Return mean and standard deviation of the mixture of draws (S, ...), (...) each."""
    spread = means.var(0) if variances is None else means.var(0) + variances.mean(0)
    return means.mean(0), np.sqrt(spread)


def standardized_errors(drawn: DrawnTargets) -> Array:
    """Return the targets' errors in deviations of the mixture, (N, K)."""
    middle, deviation = mean_and_deviation(drawn.means, drawn.variances)
    errors: Array = (drawn.targets - middle) / deviation
    return errors


def log_losses(drawn: DrawnTargets) -> Array:
    """Return minus the log density of the targets, (N, K) nats."""
    if drawn.variances is not None:
        losses: Array = -mixture_log_density(drawn.means, drawn.variances, drawn.targets)
        return losses
    _, deviation = mean_and_deviation(drawn.means, None)
    return 0.5 * standardized_errors(drawn) ** 2 + np.log(deviation) + 0.5 * math.log(2 * math.pi)


def quantile_losses(quantiles: Array, targets: Array) -> Array:
    """Return the continuous ranked probability scores (N, K) of quantiles (N, K, 99) at `LEVELS`, in the targets' unit.

    Twice the mean pinball loss over the levels (Gneiting & Ranjan 2011).
    """
    over = quantiles - targets[..., None]
    losses: Array = 2 * (over * ((over > 0) - np.asarray(LEVELS))).mean(-1)
    return losses


def place_targets(drawn: DrawnTargets) -> Array:
    """Return where targets lie in the predictive distribution, (N, K), within 1e-9 of 0 and 1: the PIT.

    F(y) of the mixture; of the draws alone, the level at which y would be their quantile.
    """
    if drawn.variances is not None:
        return np.clip(mixture_cdf(drawn.means, drawn.variances, drawn.targets), _EDGE, 1 - _EDGE)
    ordered = np.sort(drawn.means, axis=0)
    below = np.clip((ordered <= drawn.targets).sum(0), 1, len(ordered) - 1)  # (N, K)
    left, right = (np.take_along_axis(ordered, (below - step)[None], axis=0)[0] for step in (1, 0))
    gap = right - left
    part = np.divide(drawn.targets - left, gap, out=0.5 + 0.5 * np.sign(drawn.targets - left), where=gap > 0)
    places: Array = np.clip((below - 1 + np.clip(part, 0, 1)) / (len(ordered) - 1), _EDGE, 1 - _EDGE)
    return places


def best_crps_scale(drawn: DrawnTargets) -> float:
    """Return the stretch, in 0.02..50, of the lowest mean continuous ranked probability score; of one target (K = 1).

    The score is the mean of the draws' own less a multiple of the stretch, since the distance between two draws grows
    with it; so the pairs of draws need to be looked at but once.
    """
    count = len(drawn.means)
    targets = np.tile(drawn.targets[:, 0], (count, 1))  # (S, N)

    def alone(scale: float) -> float:
        there = drawn.stretched(np.array([scale]))
        own = np.zeros_like(targets) if there.variances is None else there.variances[..., 0]
        return gaussian_crps(there.means[..., 0], own, targets)

    if drawn.variances is None:
        whole = ensemble_crps(drawn.means, drawn.targets)
    else:
        whole = mixture_crps(drawn.means, drawn.variances, drawn.targets)
    shared = alone(1.0) - whole
    # Convex in the scale, as a mean of |error - scale x| less a multiple of it is: one minimum.
    found = optimize.minimize_scalar(
        lambda log_scale: alone(math.exp(log_scale)) - math.exp(log_scale) * shared,
        bounds=(math.log(LOWEST), math.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-7},
    )
    return float(np.exp(found.x))
