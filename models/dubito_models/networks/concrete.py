"""A layer and the concrete dropout of what it reads, with the term that keeps the learned rate up.

Gal, Hron & Kendall 2017, "Concrete Dropout": the rate of a site is learned together with the weights that read it, so
the two, and the term in the loss that ties them, belong in one module.
"""

from __future__ import annotations

from torch import Tensor, nn

from dubito_models.layers import ConcreteDropout, Penalized


class ConcreteLayer(nn.Module, Penalized):
    """A layer that reads x (B, ...) through a dropout whose rate is learned, starting from `rate`.

    `layer` reads `features` units, or with `spatial` that many channels of (B, C, ...). Its weights (the parameters of
    two axes or more; not its biases) are those whose size the rate is weighed against.
    """

    def __init__(self, layer: nn.Module, features: int, rate: float, *, spatial: bool = False) -> None:
        super().__init__()
        self.dropout = ConcreteDropout(rate, spatial=spatial)
        self.layer, self.features = layer, features

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer makes of x."""
        read: Tensor = self.layer(self.dropout(x))
        return read

    def penalty(self, rows: int) -> Tensor:
        """Return `ConcreteDropout.regularizer` of the layer's weights: nats per row of a training set of `rows`."""
        weights = [parameter for parameter in self.layer.parameters() if parameter.dim() > 1]
        return self.dropout.regularizer(*weights, features=self.features, rows=rows)


def behind_concrete(layer: nn.Module, features: int, rate: float, *, spatial: bool = False) -> nn.Module:
    """Return the layer behind concrete dropout of what it reads; at rate 0 the layer itself."""
    return ConcreteLayer(layer, features, rate, spatial=spatial) if rate > 0 else layer
