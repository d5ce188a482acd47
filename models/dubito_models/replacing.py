"""Our own layers as what exports: in the copy that is packed, one layer takes the place of each that does not.

A concrete dropout has learned its rate: from then on it is plain dropout of that rate. A variational recurrent layer in
training runs step by step, because each row has a mask of its own; a draw's masks are shared by all rows, so here the
hidden state's mask is a mask on the columns of W_hh (see `layers.recurrent`) and the stock kernel runs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dubito_models.errors import UnsupportedNetwork
from dubito_models.layers import ConcreteDropout, VariationalGRU, VariationalLSTM

Recurrent = VariationalLSTM | VariationalGRU


def replace_layers(network: nn.Module) -> nn.Module:
    """Return the network, changed in place, with every layer of ours that does not export replaced.

    Raises `UnsupportedNetwork` for a subclass of such a layer with a forward of its own, which this cannot know.
    """
    made: dict[nn.Module, nn.Module] = {}  # a layer that stands in several places stays one
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child not in made and (replacement := _replacement(child)) is not None:
                made[child] = replacement
            if child in made:
                setattr(parent, name, made[child])
    return _replacement(network) or network


def _replacement(layer: nn.Module) -> nn.Module | None:
    match layer:
        case ConcreteDropout():
            _check_own(layer, ConcreteDropout)
            return LearnedDropout(layer)
        case VariationalLSTM():
            _check_own(layer, VariationalLSTM)
            return ThinnedLSTM(layer)
        case VariationalGRU():
            _check_own(layer, VariationalGRU)
            return ThinnedGRU(layer)
    return None


def _check_own(layer: nn.Module, ours: type[nn.Module]) -> None:
    if type(layer).forward is not ours.forward:
        raise UnsupportedNetwork(
            f"{type(layer).__name__} is a {ours.__name__} with a forward of its own; give it another base, or wrap a "
            f"plain {ours.__name__}"
        )


class LearnedDropout(nn.Module):
    """Dropout of the rate that a concrete dropout has learned, by elements or by channels."""

    def __init__(self, layer: ConcreteDropout) -> None:
        super().__init__()
        self.rate, self.spatial = layer.rate, layer.spatial

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, ...), thinned in training."""
        drop = torch.feature_dropout if self.spatial else torch.dropout
        return drop(x, self.rate, self.training)


class _Thinned(nn.Module):
    """One layer after another of a variational recurrent network, its masks on inputs, outputs and weights."""

    def __init__(self, layer: Recurrent) -> None:
        super().__init__()
        self.layer = layer

    def run(self, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return outputs, as x has its axes, and last states (layers * directions, B, H) each."""
        rnn = self.layer
        directions = 2 if rnn.bidirectional else 1
        last: list[tuple[Tensor, ...]] = []
        for number in range(rnn.num_layers):
            here = slice(number * directions, (number + 1) * directions)
            x = self._lock(x, rnn.input_dropout)
            weights = [weight for direction in range(directions) for weight in self._weights(number, direction)]
            x, own = self.kernel(x, tuple(state[here] for state in states), weights)
            last.append(own)
        return self._lock(x, rnn.output_dropout), tuple(torch.cat(each) for each in zip(*last, strict=True))

    def kernel(self, x: Tensor, states: tuple[Tensor, ...], weights: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        raise NotImplementedError

    def _lock(self, x: Tensor, rate: float) -> Tensor:
        """Drop features of x, (B, T, F) or (T, B, F), for all time steps alike."""
        if not rate:
            return x
        if self.layer.batch_first:
            return torch.feature_dropout(x.transpose(1, 2), rate, self.training).transpose(1, 2)
        return torch.feature_dropout(x.permute(1, 2, 0), rate, self.training).permute(2, 0, 1)

    def _weights(self, number: int, direction: int) -> list[Tensor]:
        """Return W_ih, W_hh with its columns and entries dropped, and the biases where there are any."""
        rnn = self.layer
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if rnn.bias else ("weight_ih", "weight_hh")
        weights: list[Tensor] = [getattr(rnn, f"{name}_l{number}{'_reverse' if direction else ''}") for name in names]
        if rnn.weight_dropout:
            weights[1] = F.dropout(weights[1], rnn.weight_dropout, self.training)
        if rnn.hidden_dropout:
            columns = torch.ones(weights[1].shape[1], dtype=weights[1].dtype, device=weights[1].device)  # (H,)
            weights[1] = weights[1] * F.dropout(columns, rnn.hidden_dropout, self.training)
        return weights


class ThinnedLSTM(_Thinned):
    """A variational LSTM that calls the stock kernel; in eval, and in what it takes and gives, the same."""

    def forward(self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return outputs and the last (h, c), as `VariationalLSTM` does."""
        if hx is None:
            zeros = x.new_zeros(self.layer.get_expected_hidden_size(x, None))
            hx = zeros, zeros
        output, (h, c) = self.run(x, hx)
        return output, (h, c)

    def kernel(self, x: Tensor, states: tuple[Tensor, ...], weights: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run one layer."""
        rnn = self.layer
        output, h, c = torch.lstm(x, list(states), weights, rnn.bias, 1, 0.0, False, rnn.bidirectional, rnn.batch_first)
        return output, (h, c)


class ThinnedGRU(_Thinned):
    """A variational GRU that calls the stock kernel; in eval, and in what it takes and gives, the same."""

    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return outputs and the last h, as `VariationalGRU` does."""
        if hx is None:
            hx = x.new_zeros(self.layer.get_expected_hidden_size(x, None))
        output, (h,) = self.run(x, (hx,))
        return output, h

    def kernel(self, x: Tensor, states: tuple[Tensor, ...], weights: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run one layer."""
        rnn = self.layer
        output, h = torch.gru(x, states[0], weights, rnn.bias, 1, 0.0, False, rnn.bidirectional, rnn.batch_first)
        return output, (h,)
