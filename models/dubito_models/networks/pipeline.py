"""What stands around a reference architecture, so that a packaged program takes raw numbers and gives raw ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Pipeline(nn.Module):
    """A network between what its inputs go through first and its outputs last."""

    def __init__(self, before: nn.Module, network: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.before, self.network, self.after = before, network, after

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs of rows (B, ...)."""
        outputs: Tensor = self.after(self.network(self.before(inputs)))
        return outputs


class Forecaster(nn.Module):
    """A network that sees a window relative to its last value, and whose outputs are added to that value.

    So the level of a series, and with it a trend beyond the range of the training rows, passes by the network.
    `scale` is that of the window's differences from its last value; `after` maps raw outputs to the differences of the
    steps ahead: means (B, K), which come first, then whatever else the head has.
    """

    def __init__(self, network: nn.Module, scale: float, after: nn.Module, steps: int) -> None:
        super().__init__()
        self.network, self.after, self.steps = network, after, steps
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, window: Tensor) -> Tensor:
        """Return the outputs (B, K) or (B, 2 K) of windows (B, T, 1)."""
        last = window[:, -1:]  # (B, 1, 1)
        outputs = self.after(self.network((window - last) / self.scale))
        means = outputs[:, : self.steps] + last[:, 0]
        return torch.cat([means, outputs[:, self.steps :]], 1)
