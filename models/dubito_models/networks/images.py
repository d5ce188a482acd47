"""The shape of images, as the convolutional networks take it."""

from __future__ import annotations

from dubito_models.errors import InvalidArgument


def image_shape(given: tuple[int, ...], smallest: int, reason: str) -> tuple[int, int, int]:
    """Return (C, H, W); raises `InvalidArgument` unless H and W are at least `smallest`, which has a `reason`."""
    if len(given) != 3 or given[0] < 1 or min(given[1:]) < smallest:
        raise InvalidArgument("input_shape", tuple(given), f"(C, H, W) with H and W of at least {smallest} {reason}")
    return given[0], given[1], given[2]
