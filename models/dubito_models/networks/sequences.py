"""Rows as sequences of numbers: series as they are, images read from top to bottom."""

from __future__ import annotations

from torch import Tensor

from dubito_models.errors import InvalidArgument


def sequence_shape(given: tuple[int, ...]) -> tuple[int, int]:
    """Return steps and numbers per step, (T, F), of rows (T, F), or of images (C, H, W): H steps of C * W numbers.

    Raises `InvalidArgument` for other ranks and for sizes below 1.
    """
    if len(given) not in (2, 3) or min(given) < 1:
        raise InvalidArgument("input_shape", tuple(given), "(T, F), or (C, H, W) for images; sizes of at least 1")
    return (given[0], given[1]) if len(given) == 2 else (given[1], given[0] * given[2])


def as_sequence(x: Tensor) -> Tensor:
    """Return (B, T, F) of series (B, T, F) as they are, or of images (B, C, H, W): T = H steps of F = C * W."""
    return x.transpose(1, 2).flatten(2) if x.dim() == 4 else x
