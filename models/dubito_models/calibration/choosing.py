"""What a map of the predictive distribution is worth, by cross-validation, and which of some is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from dubito_models.calibration.fitting import FOLDS, LEAST
from dubito_models.errors import InvalidArgument

Array = NDArray[np.float64]
RowNumbers = NDArray[np.int64]
Map = TypeVar("Map")

CAUTION = 0.5  # standard errors


@dataclass(frozen=True, slots=True)
class ChosenMap(Generic[Map]):
    """The map that was chosen, fitted to all rows, or None where none is worth it; and what each is worth.

    Negative log-likelihoods are cross-validated, but for that before, in nats per row and target.
    """

    map: Map | None
    nll_before: float  # without a map
    nll_after: float | None  # with the one chosen; None for a map that has no density
    tried: tuple[tuple[str, float], ...]  # kinds that have a density, and the likelihood of each
    crps: tuple[tuple[str, float], ...] = ()  # where a kind without was tried: the score of all, and "identity"


def check_rows(rows: int) -> None:
    """Raise `InvalidArgument` for fewer than 10 rows."""
    if rows < LEAST:
        raise InvalidArgument("labels", f"{rows} rows", f"at least {LEAST} rows to calibrate on")


def check_methods(methods: Sequence[str], accepted: Sequence[str]) -> None:
    """Raise `InvalidArgument` for no method, or one that is not accepted."""
    if not methods or set(methods) - set(accepted):
        raise InvalidArgument("methods", list(methods), f"some of {', '.join(accepted)}")


def cross_validate(
    rows: int,
    fit: Callable[[RowNumbers], Sequence[Map]],
    losses: Callable[[Map, RowNumbers], Array],
    *,
    overlap: int = 1,
    seed: int = 0,
) -> Array:
    """Return the loss of every row under each map that was fitted without the row's fold, (maps, N, ...).

    Five folds: shuffled by `seed`, or stretches of rows where consecutive ones overlap (see `fit_value`).
    """
    order = np.random.default_rng(seed).permutation(rows) if overlap == 1 else np.arange(rows)
    found = []
    for fold in np.array_split(order, FOLDS):
        maps = fit(np.setdiff1d(order, fold))
        found.append(np.stack([losses(each, fold) for each in maps]))
    held = np.concatenate(found, axis=1)
    ordered: Array = np.empty_like(held)
    ordered[:, order] = held
    return ordered


def best_of(before: Array, held: Array, overlap: int = 1) -> int | None:
    """Return which map to use, if any, by the rows' losses with each, (maps, N), and without, `before` (N,)."""
    worth = held.mean(1)
    best = int(worth.argmin())
    if not np.isfinite(worth[best]):
        return None
    if not np.isfinite(before).all():
        return best
    gains = before - held[best]
    error = np.sqrt(gains.var(ddof=1) * overlap / len(gains))
    return best if gains.mean() > CAUTION * error else None
