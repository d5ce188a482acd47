"""The networks of the serving benchmark, as all servers in it run them: the same modules with the same weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from dubito_models.networks import CNN, MLP

# Those of the digits recipes; `echo` computes next to nothing, and so shows what a request costs.
NETWORKS = {
    "mlp": lambda: MLP(64, [256, 256], 10, 0.3),
    "cnn": lambda: CNN((1, 8, 8), [32, 64], 10, convolutions=2, channel_dropout=[0.1, 0.2], head_width=128,
                       head_dropout=0.4),
    "echo": lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 10)),
}  # fmt: skip


def build(name: str) -> nn.Module:
    """Return a network with weights drawn from a fixed seed, in eval; what they are does not matter for time."""
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def weights(folder: Path, name: str) -> Path:
    """Return where the weights of a network are kept."""
    return folder / f"{name}.pt"


def load(folder: Path, name: str) -> nn.Module:
    """Return a network with the weights that `build` gave it elsewhere."""
    network = NETWORKS[name]()
    network.load_state_dict(torch.load(weights(folder, name), weights_only=True))
    return network.eval()
