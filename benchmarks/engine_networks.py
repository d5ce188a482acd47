"""The networks of the engine's benchmark, trained for a moment on the digits.

Untrained networks would flatter: their logits hardly leave 0, where the softmax is all but linear, and there balanced
masks cancel nearly everything. The digits are brought to each network's shape by averaging or repeating pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dubito_models.data import digits
from dubito_models.networks import CNN, MLP, ResNet, Transformer

CLASSES = 10
BATCH, LEARNING_RATE = 64, 2e-3


class StackedLSTM(nn.Module):
    """Two layers of torch's own LSTM, with dropout in front and between them; a linear head on the last state."""

    def __init__(self, features: int, width: int, rate: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(rate)
        self.recurrent = nn.LSTM(features, width, num_layers=2, dropout=rate, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of sequences (B, T, F)."""
        states, _ = self.recurrent(self.dropout(x))  # (B, T, width)
        logits: Tensor = self.head(states[:, -1])
        return logits


class Patches(nn.Module):
    """Images (B, C, H, W) as sequences (B, T, F) of square patches, T = H W / side^2 and F = C side^2."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        """Return the patches, row by row."""
        rows, channels, height, width = images.shape
        high, wide = height // self.side, width // self.side
        tiles = images.reshape(rows, channels, high, self.side, wide, self.side)
        return tiles.permute(0, 2, 4, 1, 3, 5).reshape(rows, high * wide, channels * self.side**2)


@dataclass(frozen=True, slots=True)
class Case:
    """A network of the benchmark: how to build it, and the shape of one row of what it reads."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


IMAGE, SEQUENCE = (3, 32, 32), (16, 32)
CASES = {
    "mlp-.2": Case(lambda: MLP(16, (512, 512), CLASSES, 0.2), (16,)),
    "mlp-.5": Case(lambda: MLP(16, (512, 512), CLASSES, 0.5), (16,)),
    "cnn-head": Case(lambda: CNN(IMAGE, (32, 64), CLASSES, channel_dropout=0.0, head_dropout=0.3), IMAGE),
    "cnn-spatial": Case(lambda: CNN(IMAGE, (32, 64), CLASSES, channel_dropout=0.1, head_dropout=0.3), IMAGE),
    "resnet-depth": Case(lambda: ResNet(IMAGE, (16, 32, 64), CLASSES, blocks=2, stochastic_depth=0.2), IMAGE),
    "lstm": Case(lambda: StackedLSTM(SEQUENCE[1], 64, 0.2), SEQUENCE),
    "transformer": Case(lambda: Transformer(SEQUENCE, 64, CLASSES, layers=2), SEQUENCE),
    "vit": Case(
        lambda: nn.Sequential(Patches(4), Transformer((64, 48), 64, CLASSES, layers=4, pooling="class")), IMAGE
    ),
}


def resize(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return images (N, 1, 8, 8) as rows (N, *shape): (F,) with F a square, (T, F), or (C, H, W)."""
    size = (math.isqrt(shape[0]),) * 2 if len(shape) == 1 else shape[-2:]
    resized = F.adaptive_avg_pool2d(images, size)
    channels = shape[0] if len(shape) == 3 else 1
    return resized.expand(-1, channels, -1, -1).reshape(-1, *shape)


def train(case: Case, steps: int) -> nn.Module:
    """Return the network of a case after so many steps of Adam, in eval; always the same one."""
    torch.manual_seed(0)
    network = case.build().train()
    split = digits().train
    images, labels = torch.tensor(split.inputs), torch.tensor(split.targets)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (BATCH,))
        optimizer.zero_grad()
        F.cross_entropy(network(resize(images[chosen], case.shape)), labels[chosen]).backward()
        optimizer.step()
    return network.eval()


@torch.inference_mode()
def choose_rows(case: Case, network: nn.Module, count: int) -> Tensor:
    """Return test rows (count, ...): in turn one at random, and the most uncertain one of those that are left.

    On most digits a trained network is sure, and they would tell little of the error of its probabilities.
    """
    inputs = resize(torch.tensor(digits().test.inputs), case.shape)
    entropy = torch.special.entr(network(inputs).softmax(-1)).sum(-1)
    uncertain = entropy.argsort(descending=True).numpy()
    in_turn = np.stack([np.arange(len(inputs)), uncertain], 1).flatten()  # the splits come shuffled
    return inputs[torch.tensor(list(dict.fromkeys(in_turn.tolist()))[:count])]
