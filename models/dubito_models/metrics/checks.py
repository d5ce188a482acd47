"""What the scores accept; anything else is refused by its field's name."""

from __future__ import annotations

import operator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dubito_models.arrays import Array, finite
from dubito_models.errors import InvalidArgument

SUM_TOLERANCE = 1e-3  # what float16 leaves of a sum of 1


def classified(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Array, NDArray[np.int64]]:
    """Return probabilities (N, K), each row of which sums to 1, and labels (N,) from 0 to K - 1."""
    p = finite("probabilities", probabilities)
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


def paired(field: str, values: ArrayLike, targets: ArrayLike) -> tuple[Array, Array]:
    """Return values and targets, (N,) or (N, K) both."""
    v, y = finite(field, values), finite("targets", targets)
    if v.shape != y.shape or v.ndim not in (1, 2):
        raise InvalidArgument(field, f"shape {v.shape} for targets of shape {y.shape}", "(N,) or (N, K) both")
    return v, y


def bounded(intervals: ArrayLike, targets: ArrayLike) -> tuple[Array, Array, Array]:
    """Return lower bounds, upper bounds and targets of one shape, from intervals (..., 2)."""
    bounds, y = finite("intervals", intervals), finite("targets", targets)
    if bounds.shape != (*y.shape, 2):
        raise InvalidArgument("intervals", f"shape {bounds.shape} for targets of shape {y.shape}", "targets' and (2,)")
    low, high = bounds[..., 0], bounds[..., 1]
    if (low > high).any():
        raise InvalidArgument("intervals", "a lower bound above the upper", "lower bounds first")
    return low, high, y


def listed(field: str, values: ArrayLike) -> Array:
    """Return values (N,)."""
    v = finite(field, values)
    if v.ndim != 1:
        raise InvalidArgument(field, f"shape {v.shape}", "shape (N,)")
    return v


def counted(field: str, value: int, least: int = 1) -> int:
    """Return a whole number of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidArgument(field, value, "a whole number") from None
    if number < least:
        raise InvalidArgument(field, value, f"at least {least}")
    return number
