"""Our own layers in a form that exports: in the copy that is packed, their forward is another, of the same law.

A concrete dropout has learned its rate: from then on it is plain dropout of that rate. A variational recurrent layer in
training runs step by step, because each row has a mask of its own; a draw's masks are shared by all rows, so here the
hidden state's mask is a mask on the columns of W_hh (see `layers.recurrent`) and the stock kernel runs. In eval nothing
changes. The layers stay what they are otherwise, for a network may ask them for their sizes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dubito_models.errors import UnsupportedNetwork
from dubito_models.layers import ConcreteDropout, VariationalGRU, VariationalLSTM

Recurrent = VariationalLSTM | VariationalGRU
States = tuple[Tensor, ...]


def replace_layers(network: nn.Module) -> nn.Module:
    """Return the network with the forward of every layer of ours that does not export replaced, in place.

    Raises `UnsupportedNetwork` for a subclass of such a layer with a forward of its own, which this cannot know.
    """
    for part in network.modules():
        ours: type[nn.Module]
        forward: Callable[..., Any]
        match part:
            case ConcreteDropout():  # the rate is read now: inside an export it would be a number that data decide
                ours, forward = ConcreteDropout, functools.partial(_drop_at_rate, part, part.rate)
            case VariationalLSTM():
                ours, forward = VariationalLSTM, functools.partial(_run_lstm, part)
            case VariationalGRU():
                ours, forward = VariationalGRU, functools.partial(_run_gru, part)
            case _:
                continue
        if type(part).forward is not ours.forward:
            raise UnsupportedNetwork(
                f"{type(part).__name__} is a {ours.__name__} with a forward of its own; give it another base, or wrap "
                f"a plain {ours.__name__}"
            )
        part.forward = forward  # type: ignore[method-assign]
    return network


def _drop_at_rate(layer: ConcreteDropout, rate: float, x: Tensor) -> Tensor:
    drop = torch.feature_dropout if layer.spatial else torch.dropout
    return drop(x, rate, layer.training)


def _run_lstm(
    rnn: VariationalLSTM, x: Tensor, hx: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    if hx is None:
        zeros = x.new_zeros(rnn.get_expected_hidden_size(x, None))
        hx = zeros, zeros
    output, (h, c) = _run(rnn, x, hx)
    return output, (h, c)


def _run_gru(rnn: VariationalGRU, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
    output, (h,) = _run(rnn, x, (x.new_zeros(rnn.get_expected_hidden_size(x, None)) if hx is None else hx,))
    return output, h


def _run(rnn: Recurrent, x: Tensor, states: States) -> tuple[Tensor, States]:
    """Run layer after layer: outputs, with the axes of x, and last states (layers * directions, B, H) each."""
    directions = 2 if rnn.bidirectional else 1
    last: list[States] = []
    for layer in range(rnn.num_layers):
        here = slice(layer * directions, (layer + 1) * directions)
        x = _lock(rnn, x, rnn.input_dropout)
        weights = [weight for direction in range(directions) for weight in _weights(rnn, layer, direction)]
        x, own = _call_kernel(rnn, x, tuple(state[here] for state in states), weights)
        last.append(own)
    return _lock(rnn, x, rnn.output_dropout), tuple(torch.cat(each) for each in zip(*last, strict=True))


def _call_kernel(rnn: Recurrent, x: Tensor, states: States, weights: list[Tensor]) -> tuple[Tensor, States]:
    settings = (rnn.bias, 1, 0.0, False, rnn.bidirectional, rnn.batch_first)
    if isinstance(rnn, VariationalLSTM):
        output, *own = torch.lstm(x, list(states), weights, *settings)
    else:
        output, *own = torch.gru(x, states[0], weights, *settings)
    return output, tuple(own)


def _lock(rnn: Recurrent, x: Tensor, rate: float) -> Tensor:
    """Drop features of x, (B, T, F) or (T, B, F), for all time steps alike."""
    if not rate:
        return x
    if rnn.batch_first:
        return torch.feature_dropout(x.transpose(1, 2), rate, rnn.training).transpose(1, 2)
    return torch.feature_dropout(x.permute(1, 2, 0), rate, rnn.training).permute(2, 0, 1)


def _weights(rnn: Recurrent, layer: int, direction: int) -> list[Tensor]:
    """Return W_ih, W_hh with its columns and entries dropped, and the biases where there are any."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if rnn.bias else ("weight_ih", "weight_hh")
    weights: list[Tensor] = [getattr(rnn, f"{name}_l{layer}{'_reverse' if direction else ''}") for name in names]
    if rnn.weight_dropout:
        weights[1] = F.dropout(weights[1], rnn.weight_dropout, rnn.training)
    if rnn.hidden_dropout:
        weights[1] = weights[1] * F.dropout(weights[1].new_ones(rnn.hidden_size), rnn.hidden_dropout, rnn.training)
    return weights
