"""One positive number fitted to a likelihood, under a weak prior, and cross-validated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from dubito_models.errors import InvalidArgument

LOWEST, HIGHEST = 0.02, 50.0
FOLDS = 5
LEAST = 2 * FOLDS  # rows

# The mean negative log-likelihood, in nats, of some rows at a value.
RowsLoss = Callable[[NDArray[np.int64], float], float]


@dataclass(frozen=True, slots=True)
class Fit:
    """The value on all rows, and what cross-validation says it is worth over 1 (nats per row and target)."""

    value: float
    nll_before: float
    nll_after: float

    @property
    def helps(self) -> bool:
        """Whether the cross-validated likelihood improves; where not, the value should not be used."""
        return self.nll_after < self.nll_before


def fit_value(loss: RowsLoss, rows: int, *, targets: int = 1, overlap: int = 1, seed: int = 0) -> Fit:
    """Fit a value in 0.02..50 to `rows` rows of `targets` numbers each, and cross-validate it in 5 folds.

    `overlap`: so many consecutive rows share targets, as the windows of a series do. They count as one, folds are then
    stretches of rows, and where fewer than 10 remain the value is 1. Else `seed` shuffles the folds.
    Raises `InvalidArgument` for fewer than 10 rows.
    """
    if rows < LEAST:
        raise InvalidArgument("labels", f"{rows} rows", f"at least {LEAST} rows to calibrate on")
    every = np.arange(rows)
    before = loss(every, 1.0)
    if rows // overlap < LEAST:
        return Fit(1.0, before, before)
    observations = targets if overlap == 1 else 1 / overlap  # that one row is worth
    order = np.random.default_rng(seed).permutation(rows) if overlap == 1 else every
    after = 0.0
    for fold in np.array_split(order, FOLDS):
        others = np.setdiff1d(every, fold)
        value = most_probable(functools.partial(loss, others), len(others) * observations)
        after += len(fold) * loss(fold, value)
    return Fit(most_probable(functools.partial(loss, every), rows * observations), before, after / rows)


def most_probable(loss: Callable[[float], float], count: float) -> float:
    """Return the maximum a posteriori under log value ~ N(0, 1), given the mean loss over `count` observations.

    Searched on a grid of log value, then by Brent: over draws a likelihood need not be unimodal.
    """

    def penalised(log_value: float) -> float:
        return loss(float(np.exp(log_value))) + log_value**2 / (2 * count)

    grid = np.linspace(np.log(LOWEST), np.log(HIGHEST), 25)
    best = int(np.argmin([penalised(point) for point in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = optimize.minimize_scalar(penalised, bounds=(low, high), method="bounded", options={"xatol": 1e-7})
    return float(np.exp(found.x))
