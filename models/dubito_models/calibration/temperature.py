"""Temperature scaling of Monte Carlo draws (Guo et al. 2017; per draw, Laves et al. 2019).

The temperature is the maximum a posteriori under log tau ~ N(0, 1). On rows that are all classified right the plain
likelihood has no optimum: it asks for ever sharper draws, and would take from strange inputs the doubt that they are
owed. The prior weighs as much as half a nat at a factor of e, over all rows together: a few dozen rows that say
otherwise outweigh it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from dubito_models.errors import InvalidArgument

Array = NDArray[np.float64]
LOWEST, HIGHEST = 0.02, 50.0
FOLDS = 5


@dataclass(frozen=True, slots=True)
class TemperatureFit:
    """The temperature on all rows, and what cross-validation says it is worth (nats per row)."""

    temperature: float
    nll_before: float
    nll_after: float

    @property
    def helps(self) -> bool:
        """Whether the cross-validated likelihood improves; where not, no temperature should be used."""
        return self.nll_after < self.nll_before


def fit_temperature(log_probabilities: Array, labels: NDArray[np.int64], seed: int = 0) -> TemperatureFit:
    """Fit tau to the likelihood of mean_s softmax(log p_s / tau) under its prior, and cross-validate it in 5 folds.

    `log_probabilities` (S, N, K), of every draw; `labels` (N,) in 0..K-1. `seed` shuffles the folds.
    Raises `InvalidArgument` for fewer than 10 rows or labels that are not classes.
    """
    _, rows, classes = log_probabilities.shape
    if rows < 2 * FOLDS:
        raise InvalidArgument("labels", f"{rows} rows", f"at least {2 * FOLDS} rows to calibrate on")
    if labels.shape != (rows,):
        raise InvalidArgument("labels", f"shape {labels.shape}", f"shape ({rows},), one class number per row")
    if labels.min() < 0 or labels.max() >= classes:
        raise InvalidArgument("labels", f"{labels.min()}..{labels.max()}", f"class numbers 0..{classes - 1}")
    folds = np.array_split(np.random.default_rng(seed).permutation(rows), FOLDS)
    after = 0.0
    for fold in folds:
        others = np.setdiff1d(np.arange(rows), fold)
        tau = _minimise(log_probabilities[:, others], labels[others])
        after += len(fold) * negative_log_likelihood(log_probabilities[:, fold], labels[fold], tau)
    before = negative_log_likelihood(log_probabilities, labels, 1.0)
    return TemperatureFit(_minimise(log_probabilities, labels), before, after / rows)


def negative_log_likelihood(log_probabilities: Array, labels: NDArray[np.int64], temperature: float) -> float:
    """Return the mean NLL in nats of the draws' mean at a temperature; (S, N, K) and (N,)."""
    tempered = special.log_softmax(log_probabilities / temperature, axis=-1)
    chosen = tempered[:, np.arange(len(labels)), labels]  # (S, N)
    return float(-(special.logsumexp(chosen, axis=0) - np.log(len(chosen))).mean())


def _minimise(log_probabilities: Array, labels: NDArray[np.int64]) -> float:
    """Search log tau on a grid, then by Brent: over draws the likelihood need not be convex."""

    def loss(log_tau: float) -> float:
        prior = log_tau**2 / (2 * len(labels))
        return negative_log_likelihood(log_probabilities, labels, float(np.exp(log_tau))) + prior

    grid = np.linspace(np.log(LOWEST), np.log(HIGHEST), 25)
    best = int(np.argmin([loss(point) for point in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-7})
    return float(np.exp(found.x))
