"""Arrays as callers give them: finite numbers in float64, and the Gaussians of draws."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dubito_models.errors import InvalidArgument

Array = NDArray[np.float64]


def finite(field: str, values: ArrayLike) -> Array:
    """Return values as float64; `InvalidArgument` where they are no numbers, none at all, NaN or infinite."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidArgument(field, type(values).__name__, "an array of numbers") from None
    if array.size == 0:
        raise InvalidArgument(field, f"shape {array.shape}", "at least one row")
    if not np.isfinite(array).all():
        raise InvalidArgument(field, "NaN or infinity", "finite numbers")
    return array


def share(field: str, value: float) -> float:
    """Return a number that lies between 0 and 1, both excluded; `InvalidArgument` where it does not."""
    if not 0 < value < 1:
        raise InvalidArgument(field, value, "above 0 and below 1")
    return float(value)


def spreads(field: str, values: ArrayLike, *, zero: bool = False) -> Array:
    """Return variances above 0, or of at least 0 where `zero` is accepted."""
    sigma2 = finite(field, values)
    if sigma2.min() < 0 or not (zero or sigma2.min() > 0):
        raise InvalidArgument(field, f"{sigma2.min():g}", "values of at least 0" if zero else "values above 0")
    return sigma2


def gaussians(means: ArrayLike, variances: ArrayLike, *, zero: bool = False) -> tuple[Array, Array]:
    """Return the means and variances (S, ...) of the draws' Gaussians; `zero`: a variance may be 0."""
    mu, sigma2 = finite("means", means), finite("variances", variances)
    if mu.shape != sigma2.shape or mu.ndim < 1:
        raise InvalidArgument("means, variances", f"shapes {mu.shape} and {sigma2.shape}", "both (S, ...)")
    return mu, spreads("variances", sigma2, zero=zero)


def fitting(fields: str, draws: Array, targets: ArrayLike) -> Array:
    """Return targets (...) for draws (S, ...); `InvalidArgument` names the draws' `fields` where shapes do not fit."""
    y = finite("targets", targets)
    if draws.shape[1:] != y.shape or draws.ndim < 1:
        given = f"shape {draws.shape} for targets of shape {y.shape}"
        raise InvalidArgument(fields, given, "(S, N) for (N,), or (S, N, K) for (N, K)")
    return y
