"""A recurrent network with dropout that is locked in time (Gal & Ghahramani 2016; weights: Merity et al. 2018)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dubito_models.errors import InvalidArgument
from dubito_models.layers import VariationalGRU, VariationalLSTM
from dubito_models.networks.sequences import as_sequence, sequence_shape

Cell = Literal["lstm", "gru"]
Pooling = Literal["last", "mean"]


class RNN(nn.Module):
    """LSTM or GRU layers over a sequence; their last state, or the mean of their states over time; a linear head.

    `input_shape` is (T, F), or (C, H, W) for images, which are read row by row: T = H steps of F = C * W numbers.
    `width` is that of a state (of each direction). What the rates drop, `layers.VariationalLSTM` says. With
    `pooling` "last" a bidirectional network reads each direction's own last state. T may be any, and stays free
    when the network is packed with its axis named in `dynamic`.
    The `outputs` are raw: the logits of K classes, the means of K targets, or what else the head reads.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        width: int,
        outputs: int,
        *,
        cell: Cell = "lstm",
        layers: int = 1,
        bidirectional: bool = False,
        pooling: Pooling = "last",
        input_dropout: float = 0.1,
        hidden_dropout: float = 0.1,
        output_dropout: float = 0.1,
        weight_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(width, outputs, layers) < 1:
            given = f"{width}, {layers} layers, {outputs} outputs"
            raise InvalidArgument("width", given, "sizes of at least 1")
        if cell not in get_args(Cell):
            raise InvalidArgument("cell", repr(cell), ", ".join(get_args(Cell)))
        if pooling not in get_args(Pooling):
            raise InvalidArgument("pooling", repr(pooling), ", ".join(get_args(Pooling)))
        _, features = sequence_shape(input_shape)
        self.bidirectional, self.pooling = bidirectional, pooling
        self.recurrent = (VariationalLSTM if cell == "lstm" else VariationalGRU)(
            features,
            width,
            layers,
            batch_first=True,
            bidirectional=bidirectional,
            input_dropout=input_dropout,
            hidden_dropout=hidden_dropout,
            output_dropout=output_dropout,
            weight_dropout=weight_dropout,
        )
        self.head = nn.Linear(width * (2 if bidirectional else 1), outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the raw outputs (B, K) of sequences (B, T, F) or images (B, C, H, W)."""
        states, _ = self.recurrent(as_sequence(inputs))  # (B, T, directions * width)
        raw: Tensor = self.head(self._pool(states))  # (B, K)
        return raw

    def _pool(self, states: Tensor) -> Tensor:
        if self.pooling == "mean":
            return states.mean(1)
        if not self.bidirectional:
            return states[:, -1]
        # Not the returned last states, which the output's mask does not reach.
        forward, backward = states.chunk(2, -1)  # (B, T, width) each
        return torch.cat([forward[:, -1], backward[:, 0]], -1)  # backward in time ends at the first step
