"""Nonconformity scores: how unusual a class or a target is for its row, the higher the more.

Each is a fixed function of the row and of what the network says of it. So conformal coverage needs no random numbers,
and answers repeat.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

PENALTY = 0.01  # of RAPS, for each rank beyond the regular one
FLOOR = 1e-12  # of a deviation, in the targets' unit

_REGULAR_SHARE = 0.9
_HIGHEST = float(np.finfo(np.float64).max)


# --- Of classes ---


def lac_scores(probabilities: Array) -> Array:
    """Return 1 - p of every class, (N, K) of (N, K): the smallest sets on average (Sadinle et al. 2019)."""
    return 1.0 - probabilities


def aps_scores(probabilities: Array, u: float | Array = 0.5) -> Array:
    """Return of every class the probability down to its rank, less `u` of its own (Romano, Sesia & Candes 2020).

    (N, K) of (N, K); of equally probable classes the lowest ranks first. The paper draws `u`, (N,), anew for each row.
    A fixed one keeps the score a function of the row: half of the class's own probability is what it is on average.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, 1)
    share = np.asarray(u, dtype=np.float64).reshape(-1, 1)
    scores = np.empty(probabilities.shape)
    np.put_along_axis(scores, order, ranked.cumsum(1) - share * ranked, 1)
    return scores


def raps_scores(probabilities: Array, penalty: float, regular_rank: int, u: float | Array = 0.5) -> Array:
    """Return the scores of `aps_scores`, plus `penalty` for each rank beyond `regular_rank` (Angelopoulos et al. 2021).

    Ranks count from 1. The penalty keeps the long tail of classes out of the sets.
    """
    return aps_scores(probabilities, u) + penalty * np.maximum(_ranks(probabilities) - regular_rank, 0)


def class_scores(method: str, probabilities: Array, penalty: float, regular_rank: int) -> Array:
    """Return the scores of every class by lac, aps or raps, (N, K) of (N, K)."""
    if method == "lac":
        return lac_scores(probabilities)
    return raps_scores(probabilities, penalty, regular_rank) if method == "raps" else aps_scores(probabilities)


def choose_regular_rank(probabilities: Array, labels: Integers) -> int:
    """Return the smallest rank at or above which lie 90 % of the labels (N,), by probabilities (N, K)."""
    ranks = np.sort(_ranks(probabilities)[np.arange(len(labels)), labels])
    return int(ranks[max(0, int(np.ceil(_REGULAR_SHARE * len(ranks) - 1e-9)) - 1)])


def _ranks(probabilities: Array) -> Integers:
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranks: Integers = np.argsort(order, axis=1) + 1
    return ranks


# --- Of targets ---


def absolute_scores(targets: Array, mean: Array) -> Array:
    """Return |target - mean|, all (N, K), in the targets' unit."""
    return np.abs(targets - mean)


def normalized_scores(targets: Array, mean: Array, deviation: Array, floor: float = FLOOR) -> Array:
    """Return |target - mean| over the deviation, at least `floor`; all (N, K) (Papadopoulos et al. 2008)."""
    with np.errstate(over="ignore"):
        return np.minimum(np.abs(targets - mean) / np.maximum(deviation, floor), _HIGHEST)


def cqr_scores(targets: Array, base_interval: Array) -> Array:
    """Return how far targets (N, K) lie outside intervals (N, K, 2), below 0 inside (Romano et al. 2019)."""
    return np.maximum(base_interval[..., 0] - targets, targets - base_interval[..., 1])


def target_scores(
    targets: Array, mean: Array, deviation: Array | None, base_interval: Array | None, floor: float
) -> Array:
    """Return the scores by the base interval, else by the deviation, else by the mean alone, (N, K)."""
    if base_interval is not None:
        return cqr_scores(targets, base_interval)
    return absolute_scores(targets, mean) if deviation is None else normalized_scores(targets, mean, deviation, floor)
