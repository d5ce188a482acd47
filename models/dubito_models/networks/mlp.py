"""A multilayer perceptron with standard dropout after every hidden activation (Srivastava et al. 2014)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from dubito_models.errors import InvalidArgument
from dubito_models.networks.rates import per_layer, site


class MLP(nn.Module):
    """Hidden layers of the given widths, each linear, ReLU, dropout; then a linear head.

    Rows of any shape with `features` numbers in all are flattened. The `outputs` are raw: the logits of K
    classes, the means of K targets, or whatever else the head of a packed version reads.
    """

    def __init__(
        self, features: int, widths: Sequence[int], outputs: int, dropout: float | Sequence[float] = 0.1
    ) -> None:
        super().__init__()
        if not widths or min(features, outputs, *widths) < 1:
            given = f"{features} features, {list(widths)}, {outputs} outputs"
            raise InvalidArgument("widths", given, "at least one hidden layer, and sizes of at least 1")
        sizes = (features, *widths)
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in zip(sizes, widths, strict=False))
        self.dropout = nn.ModuleList(site(nn.Dropout, rate) for rate in per_layer("dropout", dropout, len(widths)))
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the raw outputs (B, K) of rows (B, ...)."""
        x = inputs.flatten(1)  # (B, features)
        for linear, dropout in zip(self.hidden, self.dropout, strict=True):
            x = dropout(F.relu(linear(x)))  # (B, width)
        logits: Tensor = self.head(x)  # (B, K)
        return logits
