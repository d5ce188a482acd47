"""A network that has learned something, in about a second."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from dubito_models.data import digits


def train_on_digits() -> nn.Module:
    """Train on the digits for a moment."""
    rows = digits().train
    images, labels = torch.tensor(rows.inputs), torch.tensor(rows.targets)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Flatten()]
        for width in (64, 128):
            layers += [nn.Linear(width, 128), nn.ReLU(), nn.Dropout(0.3)]
        network = nn.Sequential(*layers, nn.Linear(128, 10)).train()
        optimizer = torch.optim.Adam(network.parameters(), 2e-3)
        for _ in range(600):
            batch = torch.randint(len(labels), (64,))
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return network.eval()
