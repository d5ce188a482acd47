"""DropConnect: linear and convolution layers whose weights are dropped, not their inputs (Wan et al. 2013).

A forward pass in training draws one Bernoulli mask over the weight, for all rows, and divides what is kept by
1 - rate, so that the plain weight of eval is the mean. The paper draws a mask per row, keeps the weight unscaled and
approximates inference by a normal law of the pre-activations; here inference averages over draws instead, each of
them one mask. The bias stays unless `drop_bias`. The state is that of the plain layer, which can be loaded into it.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from dubito_models.layers.rates import check_rate

Padding = Literal["zeros", "reflect", "replicate", "circular"]


def _thin(layer: DropConnectLinear | DropConnectConv1d | DropConnectConv2d) -> tuple[Tensor, Tensor | None]:
    bias: Tensor | None = layer.bias
    if layer.drop_bias and bias is not None:
        bias = F.dropout(bias, layer.rate, layer.training)
    return F.dropout(layer.weight, layer.rate, layer.training), bias


class DropConnectLinear(nn.Linear):
    """A linear layer (B, ..., in_features) -> (B, ..., out_features) with masks on its weight (Wan et al. 2013)."""

    def __init__(
        self, in_features: int, out_features: int, rate: float = 0.5, *, bias: bool = True, drop_bias: bool = False
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.rate, self.drop_bias = check_rate("rate", rate), drop_bias

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, ..., out_features) of (B, ..., in_features)."""
        return F.linear(x, *_thin(self))

    def extra_repr(self) -> str:
        """Return the plain layer's arguments and the rate."""
        return f"{super().extra_repr()}, rate={self.rate}, drop_bias={self.drop_bias}"


class DropConnectConv1d(nn.Conv1d):
    """A convolution (B, in_channels, T) -> (B, out_channels, T') with masks on its kernels (Wan et al. 2013)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        rate: float = 0.5,
        *,
        stride: int = 1,
        padding: int | str = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Padding = "zeros",
        drop_bias: bool = False,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        )  # fmt: skip
        self.rate, self.drop_bias = check_rate("rate", rate), drop_bias

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, T') of (B, in_channels, T)."""
        features: Tensor = self._conv_forward(x, *_thin(self))
        return features

    def extra_repr(self) -> str:
        """Return the plain layer's arguments and the rate."""
        return f"{super().extra_repr()}, rate={self.rate}, drop_bias={self.drop_bias}"  # type: ignore[no-untyped-call]


class DropConnectConv2d(nn.Conv2d):
    """A convolution (B, in_channels, H, W) -> (B, out_channels, H', W') with masks on its kernels (Wan et al. 2013)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        rate: float = 0.5,
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Padding = "zeros",
        drop_bias: bool = False,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        )  # fmt: skip
        self.rate, self.drop_bias = check_rate("rate", rate), drop_bias

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H', W') of (B, in_channels, H, W)."""
        features: Tensor = self._conv_forward(x, *_thin(self))
        return features

    def extra_repr(self) -> str:
        """Return the plain layer's arguments and the rate."""
        return f"{super().extra_repr()}, rate={self.rate}, drop_bias={self.drop_bias}"  # type: ignore[no-untyped-call]
