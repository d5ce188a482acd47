"""The parameters of calibration maps: what is accepted of them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TypeAlias

from dubito_models.errors import InvalidArgument

Numbers: TypeAlias = tuple[float, ...]


def check_finite(field: str, values: Numbers) -> None:
    """Refuse no numbers at all, and NaN or infinity."""
    finite = sum(map(math.isfinite, values))
    if not values or finite < len(values):
        raise InvalidArgument(field, f"{len(values)} numbers, {finite} of them finite", "one finite number at least")


def check_positive(field: str, values: Numbers) -> None:
    """Refuse what is not finite and above 0."""
    check_finite(field, values)
    if min(values) <= 0:
        raise InvalidArgument(field, min(values), "finite numbers above 0")


def check_count(field: str, given: int, expected: int) -> None:
    """Refuse another count than the map's other parameters, or the map itself, have."""
    if given != expected:
        raise InvalidArgument(field, f"{given} of them", f"{expected}, as many as the rest of the map has")


def check_rising(field: str, values: Numbers, *, strictly: bool) -> None:
    """Refuse numbers that fall, or where `strictly` that stay."""
    if any(one > other or (strictly and one == other) for one, other in pairwise(values)):
        raise InvalidArgument(
            field, "numbers that do not rise", "each above the last" if strictly else "none that falls"
        )
