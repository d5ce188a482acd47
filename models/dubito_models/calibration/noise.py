"""The noise of a regression's targets, fitted to the likelihood of the mixture of the draws' Gaussians.

Gal & Ghahramani 2016 choose the model precision tau = 1 / noise variance from a grid by this likelihood (their
equation 8); where the best one lies beyond the grid's edge the likelihood is capped by the grid. It costs no training
to fit it as a continuous number, here under log(scale) ~ N(0, 1), which steadies it on small sets.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dubito_models.calibration.fitting import Fit, fit_value, most_probable
from dubito_models.errors import InvalidArgument
from dubito_models.metrics import mixture_negative_log_likelihood

Array = NDArray[np.float64]


def fit_noise_variance(means: Array, targets: Array) -> tuple[float, ...]:
    """Return the noise variance 1 / tau of each target, in its unit squared, for a network that knows none.

    `means` (S, N, K), of every draw; `targets` (N, K). The prior's centre is the squared error of the draws' mean.
    Raises `InvalidArgument` where a target is met without any error: no precision is finite then.
    """
    _check(means, targets)
    found = []
    for draws, target in zip(np.moveaxis(means, -1, 0), targets.T, strict=True):  # (S, N), (N,)
        squared = float(((draws.mean(0) - target) ** 2).mean())
        if not squared > 0:
            raise InvalidArgument("targets", "no error at all", "targets that the network does not meet exactly")

        def loss(scale: float, draws: Array = draws, target: Array = target, squared: float = squared) -> float:
            return mixture_negative_log_likelihood(draws, np.full_like(draws, scale * squared), target)

        found.append(squared * most_probable(loss, len(target)))
    return tuple(found)


def fit_noise_scale(means: Array, variances: Array, targets: Array, *, overlap: int = 1, seed: int = 0) -> Fit:
    """Fit one factor on the noise variance of all draws and targets, and cross-validate it in 5 folds.

    `means` and `variances` (S, N, K), of every draw; `targets` (N, K). `overlap` and `seed`: see `fit_value`.
    """
    _check(means, targets)

    def loss(rows: NDArray[np.int64], scale: float) -> float:
        return mixture_negative_log_likelihood(means[:, rows], scale * variances[:, rows], targets[rows])

    return fit_value(loss, targets.shape[0], targets=targets.shape[1], overlap=overlap, seed=seed)


def _check(means: Array, targets: Array) -> None:
    if targets.shape != means.shape[1:]:
        raise InvalidArgument("targets", f"shape {targets.shape}", f"shape {means.shape[1:]}, (rows, targets)")
    if not np.isfinite(targets).all():
        raise InvalidArgument("targets", "NaN or infinity", "finite numbers")
