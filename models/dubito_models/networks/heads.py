"""What stands behind a network's raw outputs, where a head's numbers need keeping within bounds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dubito_models.errors import InvalidArgument


class BoundedLogVariance(nn.Module):
    """Raw outputs (B, 2 K), K means and K log-variances, the latter bent smoothly into (low, high).

    Far from the training rows a raw log-variance may be anything, and its exponential infinite. Bent by softplus at
    either end (Chua et al. 2018, appendix A) it is nearly itself in between, and can be trained back from beyond.
    The bounds are meant for targets of variance 1, where log-variance 0, at which training starts, is that variance.
    """

    def __init__(self, low: float = -14.0, high: float = 8.0) -> None:
        super().__init__()
        if not low < high:
            raise InvalidArgument("low, high", f"{low}, {high}", "a lower bound below the upper one")
        self.low, self.high = float(low), float(high)

    def forward(self, raw: Tensor) -> Tensor:
        """Return means as they are and log-variances within the bounds, (B, 2 K)."""
        means, logs = raw.chunk(2, -1)
        logs = self.high - F.softplus(self.high - logs)
        return torch.cat([means, self.low + F.softplus(logs - self.low)], -1)

    def extra_repr(self) -> str:
        """Return the bounds."""
        return f"low={self.low}, high={self.high}"
