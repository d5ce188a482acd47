"""Reference architectures: plain modules that train normally and export with a dynamic batch."""

from __future__ import annotations

from dubito_models.networks.cnn import CNN
from dubito_models.networks.concrete import ConcreteLayer
from dubito_models.networks.heads import BoundedLogVariance
from dubito_models.networks.mlp import MLP
from dubito_models.networks.pipeline import Forecaster, Pipeline
from dubito_models.networks.recurrent import RNN
from dubito_models.networks.resnet import ResNet
from dubito_models.networks.scaling import Rescale, Standardize
from dubito_models.networks.transformer import Transformer

__all__ = [
    "CNN",
    "MLP",
    "RNN",
    "BoundedLogVariance",
    "ConcreteLayer",
    "Forecaster",
    "Pipeline",
    "ResNet",
    "Rescale",
    "Standardize",
    "Transformer",
]
