"""The networks of the GPU's benchmark: usual shapes, random weights, nothing but torch.

A perceptron, a residual network of bottlenecks (ResNet-50's: He et al. 2016), with dropout before its head alone or
with whole branches dropped, and a vision transformer (ViT-B's: Dosovitskiy et al. 2021) with dropout everywhere.
Weights cost the same time whatever they are; they are scaled so that predictions stay in a usual range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EXPANSION = 4  # of a bottleneck: its output channels by its width
BRANCH_SCALE = 0.25  # of a residual branch, so that a sum of sixteen does not run away


class DropBranch(nn.Module):
    """Drop a residual branch of a row as a whole (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return branch
        keep = 1.0 - self.rate
        decision = branch.new_empty((branch.shape[0], 1, 1, 1)).bernoulli_(keep)
        return branch * decision.div_(keep)


class Bottleneck(nn.Module):
    """Three convolutions, 1x1, 3x3, 1x1, around which the input goes, too."""

    def __init__(self, channels: int, width: int, stride: int, drop_branch: float) -> None:
        super().__init__()
        out = width * EXPANSION
        self.branch = nn.Sequential(
            *_convolve(channels, width, 1), nn.ReLU(), *_convolve(width, width, 3, stride), nn.ReLU(),
            *_convolve(width, out, 1),
        )  # fmt: skip
        nn.init.constant_(self.branch[-1].weight, BRANCH_SCALE)
        self.drop = DropBranch(drop_branch)
        same = channels == out and stride == 1
        self.around = nn.Identity() if same else nn.Sequential(*_convolve(channels, out, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.around(x) + self.drop(self.branch(x)))


def _convolve(channels: int, out: int, size: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, out, size, stride, size // 2, bias=False), nn.BatchNorm2d(out)


class Residual(nn.Module):
    """Stages of bottlenecks, each of half the resolution and twice the width; logits (B, K) of images (B, 3, H, W)."""

    def __init__(
        self, blocks: Sequence[int], width: int, classes: int, *, head_dropout: float, drop_branch: float
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolve(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        stages, channels, done = [], width, 0
        for stage, count in enumerate(blocks):
            for block in range(count):
                done += 1
                rate = drop_branch * done / sum(blocks)  # the later, the likelier
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(Bottleneck(channels, width << stage, stride, rate))
                channels = (width << stage) * EXPANSION
        self.stages = nn.Sequential(*stages)
        self.dropout = nn.Dropout(head_dropout)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.stages(self.stem(images)).mean((2, 3))))


class Block(nn.Module):
    """A transformer block, norms first: attention with its own dropout, then two linear layers."""

    def __init__(self, width: int, heads: int, rate: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, rate
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(rate), nn.Linear(4 * width, width), nn.Dropout(rate)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = self.project(self.first(x)).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, heads, E)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # (B, heads, T, E) each
        rate = self.rate if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=rate)
        x = x + F.dropout(self.out(attended.transpose(1, 2).flatten(2)), self.rate, self.training)
        return x + self.layers(self.second(x))


class VisionTransformer(nn.Module):
    """Square patches and a class token as a sequence; logits (B, K) of images (B, 3, side, side)."""

    def __init__(self, side: int, patch: int, width: int, layers: int, heads: int, classes: int, rate: float) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, (side // patch) ** 2 + 1, width))
        self.dropout = nn.Dropout(rate)
        self.blocks = nn.Sequential(*(Block(width, heads, rate) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)  # (B, T - 1, width)
        sequence = torch.cat([self.token.expand(images.shape[0], -1, -1), patches], 1)
        return self.head(self.norm(self.blocks(self.dropout(sequence + self.places)))[:, 0])


def build_perceptron(features: int, widths: Sequence[int], classes: int, rate: float) -> nn.Module:
    """Return linear layers, each hidden one followed by ReLU and dropout."""
    layers: list[nn.Module] = []
    for inner, outer in zip((features, *widths[:-1]), widths, strict=True):
        layers += [nn.Linear(inner, outer), nn.ReLU(), nn.Dropout(rate)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


@dataclass(frozen=True, slots=True)
class Case:
    """A network of the benchmark: how to build it, the shape of one row, and at how many rows it is measured."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rows: tuple[int, ...]


def _residual(head_dropout: float, drop_branch: float) -> Callable[[], nn.Module]:
    return lambda: Residual((3, 4, 6, 3), 64, 1000, head_dropout=head_dropout, drop_branch=drop_branch)


def _small_residual(head_dropout: float, drop_branch: float) -> Callable[[], nn.Module]:
    return lambda: Residual((1, 1), 8, 10, head_dropout=head_dropout, drop_branch=drop_branch)


CASES = {
    "mlp": Case(lambda: build_perceptron(16, (512, 512), 10, 0.2), (16,), (1, 8, 32, 33)),
    "resnet-50, dropout before the head": Case(_residual(0.2, 0.0), (3, 224, 224), (32,)),
    "vit-b": Case(lambda: VisionTransformer(224, 16, 768, 12, 12, 1000, 0.1), (3, 224, 224), (32,)),
    "resnet-50, stochastic depth": Case(_residual(0.0, 0.2), (3, 224, 224), (32,)),
}
SMALL = {
    "mlp": Case(lambda: build_perceptron(16, (96, 96), 10, 0.2), (16,), (1, 4)),
    "resnet-50, dropout before the head": Case(_small_residual(0.2, 0.0), (3, 32, 32), (2,)),
    "vit-b": Case(lambda: VisionTransformer(32, 8, 64, 2, 2, 10, 0.1), (3, 32, 32), (2,)),
    "resnet-50, stochastic depth": Case(_small_residual(0.0, 0.2), (3, 32, 32), (2,)),
}


def build(case: Case) -> nn.Module:
    """Return the network of a case, in eval; always the same one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return case.build().eval()


def make_rows(case: Case, count: int) -> Tensor:
    """Return rows (count, ...) of standard normal numbers, always the same."""
    return torch.randn(count, *case.shape, generator=torch.Generator().manual_seed(1))
