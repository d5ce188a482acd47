"""Dropout variants that torch has not: plain modules that train normally and become sites when packed.

Element, channel and alpha dropout are torch's own (`nn.Dropout`, `nn.Dropout1d/2d/3d`, `nn.AlphaDropout`,
`nn.FeatureAlphaDropout`): they keep their laws and export as they are.
"""

from __future__ import annotations

from dubito_models.layers.concrete import ConcreteDropout
from dubito_models.layers.dropconnect import DropConnectConv1d, DropConnectConv2d, DropConnectLinear
from dubito_models.layers.penalized import Penalized
from dubito_models.layers.recurrent import VariationalGRU, VariationalLSTM
from dubito_models.layers.stochastic_depth import StochasticDepth, linear_decay

__all__ = [
    "ConcreteDropout",
    "DropConnectConv1d",
    "DropConnectConv2d",
    "DropConnectLinear",
    "Penalized",
    "StochasticDepth",
    "VariationalGRU",
    "VariationalLSTM",
    "linear_decay",
]
