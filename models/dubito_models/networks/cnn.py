"""A plain convolutional network with spatial dropout between its blocks (Tompson et al. 2015).

Where the dropout stands matters beside batch norm (Li et al. 2019, "variance shift"): dropout before a batch norm
changes the variance that its running statistics record. So inside a block there is none, the last block's is followed
by no batch norm at all, and the rates of earlier blocks are best kept small. What shift remains falls on the standard
path alone: on the Monte Carlo path masks are drawn as in training, so the running statistics are its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from dubito_models.errors import InvalidArgument
from dubito_models.networks.rates import per_layer, site


class Block(nn.Module):
    """Convolution, batch norm, ReLU, a few times over; then 2x2 pooling and spatial dropout."""

    def __init__(self, channels: int, width: int, convolutions: int, rate: float) -> None:
        super().__init__()
        inputs = [channels] + [width] * (convolutions - 1)
        # The shift of the batch norm that follows makes a bias superfluous.
        self.convolutions = nn.ModuleList(nn.Conv2d(c, width, 3, padding=1, bias=False) for c in inputs)
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
    ) -> None:
        super().__init__()
        if not widths or min(outputs, convolutions, head_width, *widths) < 1:
            given = f"{list(widths)}, {convolutions} convolutions, head {head_width}, {outputs} outputs"
            raise InvalidArgument("widths", given, "at least one block, and sizes of at least 1")
        channels, height, width = input_shape
        if channels < 1 or min(height, width) < 2 ** len(widths):
            accepted = f"(C, H, W) with H and W of at least {2 ** len(widths)} for {len(widths)} blocks"
            raise InvalidArgument("input_shape", input_shape, accepted)
        rates = per_layer("channel_dropout", channel_dropout, len(widths))
        sizes = (channels, *widths)
        self.blocks = nn.ModuleList(
            Block(inputs, outputs_, convolutions, rate)
            for inputs, outputs_, rate in zip(sizes, widths, rates, strict=False)
        )
        pixels = (height >> len(widths)) * (width >> len(widths))
        self.hidden = nn.Linear(widths[-1] * pixels, head_width)
        self.dropout = site(nn.Dropout, *per_layer("head_dropout", head_dropout, 1))
        self.head = nn.Linear(head_width, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Return the raw outputs (B, K) of images (B, C, H, W)."""
        x = images
        for block in self.blocks:
            x = block(x)  # (B, width, H / 2, W / 2)
        x = x.flatten(1)  # (B, width * pixels)
        x = self.dropout(F.relu(self.hidden(x)))  # (B, head_width)
        logits: Tensor = self.head(x)  # (B, K)
        return logits
