"""Stochastic depth: residual branches that are dropped as a whole (Huang et al. 2016)."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from dubito_models.errors import InvalidArgument
from dubito_models.layers.rates import check_rate

Mode = Literal["row", "batch"]


def linear_decay(depth_index: int, depth: int, last_rate: float) -> float:
    """Return the drop rate of block `depth_index` (1, ..., depth): last_rate * depth_index / depth.

    Its survival probability is p_l = 1 - l / L (1 - p_L) (Huang et al. 2016): early blocks, on whose features
    all others build, are kept more often.
    Raises `InvalidArgument` for an index outside 1..depth and a rate outside [0, 1).
    """
    if not 1 <= depth_index <= depth:
        raise InvalidArgument("depth_index", depth_index, f"1..{depth}: the first block is 1, the last the depth")
    return check_rate("last_rate", last_rate) * depth_index / depth


class StochasticDepth(nn.Module):
    """Drops the residual branch that it is given, of shape (B, ...): write `x + depth(branch(x))`.

    In training the branch is 0 with probability `rate`, else divided by 1 - rate, so that eval is the identity
    (Huang et al. 2016 scale by the survival probability at test time instead). Mode "row" decides for each row apart;
    "batch", the paper's, once for all rows, also when packed: one decision per draw either way.
    The decision is torch's dropout of ones, so it exports as one dropout of shape (B, 1, ...) or (1, ...), rows free.
    """

    def __init__(self, rate: float, mode: Mode = "row") -> None:
        super().__init__()
        if mode not in get_args(Mode):
            raise InvalidArgument("mode", repr(mode), "'row' or 'batch'")
        self.rate, self.mode = check_rate("rate", rate), mode

    def forward(self, branch: Tensor) -> Tensor:
        """Return the branch (B, ...), dropped or scaled in training."""
        if not self.training or self.rate == 0:
            return branch
        rows = branch.shape[0] if self.mode == "row" else 1
        kept = F.dropout(branch.new_ones((rows,) + (1,) * (branch.dim() - 1)), self.rate, True)  # (B or 1, 1, ..., 1)
        return branch * kept

    def extra_repr(self) -> str:
        """Return the rate and the mode."""
        return f"rate={self.rate}, mode={self.mode!r}"
