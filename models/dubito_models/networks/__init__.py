"""Reference architectures: plain modules that train normally and export with a dynamic batch."""

from __future__ import annotations

from dubito_models.networks.cnn import CNN
from dubito_models.networks.mlp import MLP

__all__ = ["CNN", "MLP"]
