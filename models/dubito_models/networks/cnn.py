"""A plain convolutional network with spatial dropout between its blocks (Tompson et al. 2015).

Where the dropout stands matters beside batch norm (Li et al. 2019, "variance shift"): dropout before a batch norm
changes the variance that its running statistics record. So inside a block there is none, the last block's is followed
by no batch norm at all, and the rates of earlier blocks are best kept small. What shift remains falls on the standard
path alone: on the Monte Carlo path masks are drawn as in training, so the running statistics are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from dubito_models.errors import InvalidArgument
from dubito_models.networks.concrete import behind_concrete
from dubito_models.networks.images import image_shape
from dubito_models.networks.rates import per_layer, site

Variant = Literal["standard", "concrete"]


class Block(nn.Module):
    """Convolution, batch norm, ReLU, a few times over; then 2x2 pooling and spatial dropout.

    `learned` is the first value of a learned rate (0: none) at which the maps are dropped that the block reads.
    """

    def __init__(self, channels: int, width: int, convolutions: int, rate: float, learned: float) -> None:
        super().__init__()
        inputs = [channels] + [width] * (convolutions - 1)
        # The shift of the batch norm that follows makes a bias superfluous.
        layers: list[nn.Module] = [nn.Conv2d(c, width, 3, padding=1, bias=False) for c in inputs]
        self.convolutions = nn.ModuleList([behind_concrete(layers[0], channels, learned, spatial=True), *layers[1:]])
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in inputs)
        self.dropout = site(nn.Dropout2d, rate)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, width, H // 2, W // 2) of features (B, channels, H, W)."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(convolution(x)))  # (B, width, H, W)
        x = F.max_pool2d(x, 2)  # (B, width, H // 2, W // 2)
        thinned: Tensor = self.dropout(x)  # by whole maps: masks (B, width, 1, 1)
        return thinned


class CNN(nn.Module):
    """Blocks of the given widths, each halving height and width; then one hidden layer and a linear head.

    `input_shape` is (C, H, W): (1, 8, 8), (3, 32, 32), ... with H and W of at least 2 to the number of blocks.
    `channel_dropout` are the rates of the maps that each block gives, `head_dropout` that of the hidden layer's units;
    in variant `concrete` both are the first values of rates that are learned (Gal et al. 2017).
    The `outputs` are raw: the logits of K classes, the means of K targets, or what else the head reads.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        widths: Sequence[int],
        outputs: int,
        *,
        convolutions: int = 2,
        channel_dropout: float | Sequence[float] = 0.1,
        head_width: int = 128,
        head_dropout: float = 0.3,
        variant: Variant = "standard",
    ) -> None:
        super().__init__()
        if not widths or min(outputs, convolutions, head_width, *widths) < 1:
            given = f"{list(widths)}, {convolutions} convolutions, head {head_width}, {outputs} outputs"
            raise InvalidArgument("widths", given, "at least one block, and sizes of at least 1")
        if variant not in get_args(Variant):
            raise InvalidArgument("variant", repr(variant), ", ".join(get_args(Variant)))
        channels, height, width = image_shape(input_shape, 2 ** len(widths), f"for {len(widths)} blocks")
        rates = per_layer("channel_dropout", channel_dropout, len(widths))
        [head_rate] = per_layer("head_dropout", head_dropout, 1)
        none = (0.0,) * len(rates)
        fixed, learned = (rates, (0.0, *none)) if variant == "standard" else (none, (0.0, *rates))
        sizes = (channels, *widths)
        self.blocks = nn.ModuleList(
            Block(sizes[i], sizes[i + 1], convolutions, fixed[i], learned[i]) for i in range(len(widths))
        )
        pixels = (height >> len(widths)) * (width >> len(widths))
        flat = nn.Sequential(nn.Flatten(), nn.Linear(widths[-1] * pixels, head_width))
        self.hidden = behind_concrete(flat, widths[-1], learned[-1], spatial=True)
        self.dropout = site(nn.Dropout, head_rate if variant == "standard" else 0.0)
        head = nn.Linear(head_width, outputs)
        self.head = behind_concrete(head, head_width, head_rate) if variant == "concrete" else head

    def forward(self, images: Tensor) -> Tensor:
        """Return the raw outputs (B, K) of images (B, C, H, W)."""
        x = images
        for block in self.blocks:
            x = block(x)  # (B, width, H / 2, W / 2)
        x = self.dropout(F.relu(self.hidden(x)))  # (B, head_width)
        raw: Tensor = self.head(x)  # (B, K)
        return raw
