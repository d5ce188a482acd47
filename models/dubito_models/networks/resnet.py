"""A residual network for small images with stochastic depth (He et al. 2016; Huang et al. 2016).

He, Zhang, Ren & Sun 2016, "Deep Residual Learning for Image Recognition", section 4.2: a 3x3 stem without pooling,
stages of basic blocks, stride 2 between stages, the mean over all pixels, a linear head. `pre_activation` is their
"Identity Mappings in Deep Residual Networks" (2016): batch norm and ReLU before each convolution, nothing on the sum.

Huang et al. 2016, "Deep Networks with Stochastic Depth": a residual branch is dropped as a whole, the later the more
often (the linear decay rule). Beside batch norm (see the CNN) that is mild: a branch is dropped behind its own norms,
so only the norms of later blocks see the sum vary. The head's dropout is followed by no norm at all.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from dubito_models.errors import InvalidArgument
from dubito_models.layers import StochasticDepth
from dubito_models.networks.images import image_shape
from dubito_models.networks.rates import decayed, per_layer, site


def _convolution(channels: int, width: int, kernel: int, stride: int) -> nn.Conv2d:
    # The batch norms make a bias superfluous.
    layer = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")  # He et al. 2015
    return layer


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, the first of the given stride; their branch is dropped at `rate`.

    Where stride or width change, the shortcut is a 1x1 convolution (option B of He et al. 2016).
    """

    def __init__(self, channels: int, width: int, stride: int, rate: float, pre_activation: bool) -> None:
        super().__init__()
        self.pre_activation = pre_activation
        self.convolution1 = _convolution(channels, width, 3, stride)
        self.convolution2 = _convolution(width, width, 3, 1)
        self.norm1 = nn.BatchNorm2d(channels if pre_activation else width)
        self.norm2 = nn.BatchNorm2d(width)
        self.depth = site(StochasticDepth, rate)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            projection = _convolution(channels, width, 1, stride)
            self.shortcut = projection if pre_activation else nn.Sequential(projection, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, width, H', W') of features (B, channels, H, W)."""
        if self.pre_activation:
            active = F.relu(self.norm1(x))
            # A projection reads what the branch reads; an identity carries the sum on as it is.
            carried = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
            branch = self.convolution2(F.relu(self.norm2(self.convolution1(active))))
            total: Tensor = carried + self.depth(branch)
            return total
        branch = self.norm2(self.convolution2(F.relu(self.norm1(self.convolution1(x)))))
        return F.relu(self.shortcut(x) + self.depth(branch))


class ResNet(nn.Module):
    """Stages of the given widths, each of `blocks` basic blocks, from the second on at half the height and width.

    `input_shape` is (C, H, W) with H and W of at least 2 to the number of stages less one. `stochastic_depth` is the
    rate of the last branch, from which those before it decay linearly; `head_dropout` that of the pooled features.
    The `outputs` are raw: the logits of K classes, the means of K targets, or what else the head reads.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        widths: Sequence[int],
        outputs: int,
        *,
        blocks: int = 2,
        pre_activation: bool = False,
        stochastic_depth: float = 0.2,
        head_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not widths or min(outputs, blocks, *widths) < 1:
            given = f"{list(widths)}, {blocks} blocks each, {outputs} outputs"
            raise InvalidArgument("widths", given, "at least one stage, and sizes of at least 1")
        channels, _, _ = image_shape(input_shape, 2 ** (len(widths) - 1), f"for {len(widths)} stages")
        rates = decayed("stochastic_depth", stochastic_depth, blocks * len(widths))
        self.stem = nn.Sequential(_convolution(channels, widths[0], 3, 1))
        if not pre_activation:
            self.stem.extend([nn.BatchNorm2d(widths[0]), nn.ReLU()])
        self.blocks = nn.ModuleList()
        inputs = widths[0]
        for index, rate in enumerate(rates):
            stage, within = divmod(index, blocks)
            stride = 2 if stage > 0 and within == 0 else 1
            self.blocks.append(BasicBlock(inputs, widths[stage], stride, rate, pre_activation))
            inputs = widths[stage]
        self.last = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU()) if pre_activation else nn.Identity()
        self.dropout = site(nn.Dropout, *per_layer("head_dropout", head_dropout, 1))
        self.head = nn.Linear(inputs, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Return the raw outputs (B, K) of images (B, C, H, W)."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)  # (B, width, H', W')
        x = self.last(x).mean((2, 3))  # (B, width)
        raw: Tensor = self.head(self.dropout(x))  # (B, K)
        return raw
