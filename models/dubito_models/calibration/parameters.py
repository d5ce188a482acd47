"""The parameters of calibration maps: what is accepted of them, and how they are read back from JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from itertools import pairwise
from typing import Any, TypeAlias, TypeVar

from dubito_models.errors import InvalidArgument

Numbers: TypeAlias = tuple[float, ...]

_DEPTHS = {"float": 0, "Numbers": 1, "tuple[Numbers, ...]": 2}  # how deep a field's lists are, by its annotation

Map = TypeVar("Map")


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


def map_from(document: Mapping[str, object], kinds: Mapping[str, type[Map]]) -> Map:
    """Return the map, of the `kinds` by name, that a JSON document describes as `asdict` wrote it.

    Raises `InvalidArgument` for a kind that is unknown, fields that are not the kind's, and values that are not its.
    """
    kind = document.get("kind")
    found = kinds.get(kind) if isinstance(kind, str) else None
    if found is None:
        raise InvalidArgument("kind", kind, f"one of {', '.join(kinds)}")
    annotations: dict[str, Any] = {field.name: field.type for field in fields(found)}  # type: ignore[arg-type]
    if set(document) != set(annotations):
        raise InvalidArgument(f"fields of a map {kind!r}", sorted(document), f"exactly {sorted(annotations)}")
    values = {
        name: value if name == "kind" else _numbers(name, value, _DEPTHS[annotations[name]])
        for name, value in document.items()
    }
    return found(**values)


def _numbers(field: str, value: object, depth: int) -> object:
    if depth and isinstance(value, list | tuple):
        return tuple(_numbers(field, item, depth - 1) for item in value)
    if depth or isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgument(field, type(value).__name__, "a list of " * depth + "numbers")
    return float(value)
