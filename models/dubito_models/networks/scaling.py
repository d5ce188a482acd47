"""Scaling as modules, so that a packaged program takes and gives numbers in their own units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dubito_models.heads import Head


def _positive(scale: Tensor) -> Tensor:
    """Return the scale with 1 where nothing varies, for there is nothing to divide by."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))


class Standardize(nn.Module):
    """(x - mean) / scale of rows (B, ...); `mean` and `scale` are those of the training rows, (...)."""

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", mean.float())
        self.register_buffer("scale", _positive(scale).float())

    def forward(self, x: Tensor) -> Tensor:
        """Return standardised rows (B, ...)."""
        return (x - self.mean) / self.scale


class Rescale(nn.Module):
    """The inverse for a regression's raw outputs (B, K) or, of head `mean_and_log_variance`, (B, 2 K).

    Means are multiplied by `scale` (K,) and moved by `mean` (K,); log-variances are moved by 2 log scale.
    """

    def __init__(self, mean: Tensor, scale: Tensor, head: Head) -> None:
        super().__init__()
        factor = _positive(scale).float()
        move = mean.float()
        if head is Head.MEAN_AND_LOG_VARIANCE:
            move = torch.cat([move, 2 * factor.log()])
            factor = torch.cat([factor, torch.ones_like(factor)])
        self.factor: Tensor
        self.move: Tensor
        self.register_buffer("factor", factor)
        self.register_buffer("move", move)

    def forward(self, raw: Tensor) -> Tensor:
        """Return the outputs in the targets' units."""
        return raw * self.factor + self.move
