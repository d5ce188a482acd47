"""A dropout rate, as a layer takes it."""

from __future__ import annotations

from dubito_models.errors import InvalidArgument


def check_rate(field: str, rate: float) -> float:
    """Return the rate; raises `InvalidArgument` outside [0, 1), for NaN too."""
    if not 0 <= rate < 1:
        raise InvalidArgument(field, rate, "a rate of at least 0 and below 1")
    return float(rate)
