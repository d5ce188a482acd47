"""Dropout rates, as the reference architectures take them: one for all layers, or one per layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from dubito_models.errors import InvalidArgument
from dubito_models.layers import linear_decay
from dubito_models.layers.rates import check_rate


def per_layer(field: str, rates: float | Sequence[float], layers: int) -> tuple[float, ...]:
    """Return one rate per layer from a single rate, a sequence of one, or one per layer.

    Raises `InvalidArgument` for a rate outside [0, 1) and for another number of rates.
    """
    given = tuple(rates) if isinstance(rates, Sequence) else (rates,)
    if len(given) not in (1, layers):
        raise InvalidArgument(field, f"{len(given)} rates", f"one rate, or {layers}: one per layer")
    for rate in given:
        check_rate(field, rate)
    return given * layers if len(given) == 1 else given


def decayed(field: str, last_rate: float, depth: int) -> tuple[float, ...]:
    """Return the rates of `depth` residual branches by the linear decay rule (Huang et al. 2016)."""
    check_rate(field, last_rate)
    return tuple(linear_decay(index, depth, last_rate) for index in range(1, depth + 1))


def site(kind: Callable[[float], nn.Module], rate: float) -> nn.Module:
    """Return a dropout of that kind; at rate 0 nothing, so that no site is packed that never draws."""
    return kind(rate) if rate > 0 else nn.Identity()
