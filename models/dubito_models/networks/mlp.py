"""A multilayer perceptron with a choice of dropout: of units, of weights, self-normalising, or of learned rate.

Where the dropout stands is the same in all: `input_dropout` on the inputs, the i-th rate of `dropout` on the units of
the i-th hidden layer. What it does there is the variant's:

* `standard`: ReLU; units are dropped (Srivastava et al. 2014; with the inputs as Gal & Ghahramani 2016 do).
* `alpha`: SELU, alpha dropout and LeCun's normal initialisation, which together keep the activations near mean 0 and
  variance 1 through any depth if the inputs are standardised (Klambauer et al. 2017, "Self-Normalizing Neural
  Networks").
* `dropconnect`: ReLU; not the units are dropped, but each weight that reads them (Wan et al. 2013).
* `concrete`: ReLU; units are dropped at rates that are learned, the given ones being the first (Gal et al. 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from dubito_models.errors import InvalidArgument
from dubito_models.layers import DropConnectLinear
from dubito_models.layers.rates import check_rate
from dubito_models.networks.concrete import behind_concrete
from dubito_models.networks.rates import per_layer, site

Variant = Literal["standard", "alpha", "dropconnect", "concrete"]


def _linear(variant: Variant, inputs: int, outputs: int, rate: float) -> nn.Module:
    """Return the layer that reads units which are dropped at this rate."""
    if variant == "dropconnect" and rate > 0:
        return DropConnectLinear(inputs, outputs, rate)
    linear = nn.Linear(inputs, outputs)
    if variant == "concrete":
        return behind_concrete(linear, inputs, rate)
    if variant == "alpha":
        nn.init.kaiming_normal_(linear.weight, nonlinearity="linear")  # LeCun's: variance 1 / inputs
        nn.init.zeros_(linear.bias)
    return linear


def _units(variant: Variant, rate: float) -> nn.Module:
    """Return what drops units, where it does not belong to the layer that reads them."""
    if variant in ("dropconnect", "concrete"):
        return nn.Identity()
    return site(nn.AlphaDropout if variant == "alpha" else nn.Dropout, rate)


class MLP(nn.Module):
    """Hidden layers of the given widths, each linear, activation, dropout; then a linear head.

    Rows of any shape with `features` numbers in all are flattened. The `outputs` are raw: the logits of K classes,
    the means of K targets, K means and K log-variances, or whatever else the head of a packed version reads.
    """

    def __init__(
        self,
        features: int,
        widths: Sequence[int],
        outputs: int,
        dropout: float | Sequence[float] = 0.1,
        *,
        input_dropout: float = 0.0,
        variant: Variant = "standard",
    ) -> None:
        super().__init__()
        if not widths or min(features, outputs, *widths) < 1:
            given = f"{features} features, {list(widths)}, {outputs} outputs"
            raise InvalidArgument("widths", given, "at least one hidden layer, and sizes of at least 1")
        if variant not in get_args(Variant):
            raise InvalidArgument("variant", repr(variant), ", ".join(get_args(Variant)))
        rates = (check_rate("input_dropout", input_dropout), *per_layer("dropout", dropout, len(widths)))
        sizes = (features, *widths)
        self.input_dropout = _units(variant, rates[0])
        self.hidden = nn.ModuleList(
            _linear(variant, inputs, width, rate) for inputs, width, rate in zip(sizes, widths, rates, strict=False)
        )
        self.activation = nn.SELU() if variant == "alpha" else nn.ReLU()
        self.dropout = nn.ModuleList(_units(variant, rate) for rate in rates[1:])
        self.head = _linear(variant, widths[-1], outputs, rates[-1])

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the raw outputs (B, K) of rows (B, ...)."""
        x = self.input_dropout(inputs.flatten(1))  # (B, features)
        for linear, dropout in zip(self.hidden, self.dropout, strict=True):
            x = dropout(self.activation(linear(x)))  # (B, width)
        raw: Tensor = self.head(x)  # (B, K)
        return raw
