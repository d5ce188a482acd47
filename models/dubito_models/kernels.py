"""The recurrent kernels as one operator of ours, in the place of torch's LSTM, GRU and RNN.

Torch's own fix the number of time steps when they are exported, hide the dropout between stacked layers, and have no
batching rule. Ours is one layer; it leaves time free, dropout between layers is a node like any other, and draws that
share its weights ride the row axis of one call. Where each draw has weights of its own there is no such rule: a stack
of small products by hand was slower than one fused call after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dubito_models.errors import UnsupportedNetwork

_FUNCTIONS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "lstm": torch.lstm,
    "gru": torch.gru,
    "rnn_tanh": torch.rnn_tanh,
    "rnn_relu": torch.rnn_relu,
}


@torch.library.custom_op("dubito::recurrent", mutates_args=())
def recurrent(
    kind: str,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    bidirectional: bool,
    batch_first: bool,
) -> list[Tensor]:
    """Return outputs (B, T, D H), or (T, B, D H) unless `batch_first`, and last states (D, B, H): D directions.

    `states` are the first ones, (D, B, H) each: h, and c of an LSTM. `weights` are torch's, of one layer.
    """
    first: Any = list(states) if kind == "lstm" else states[0]
    found = _FUNCTIONS[kind](x, first, list(weights), has_biases, 1, 0.0, False, bidirectional, batch_first)
    return [_own(value) for value in found]


def _own(value: Tensor) -> Tensor:
    """Return a value as the graph knows it: no view, its elements in order."""
    if value._base is None and value.is_contiguous():
        return value
    return value.clone(memory_format=torch.contiguous_format)


@recurrent.register_fake
def _shapes(
    kind: str,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    bidirectional: bool,
    batch_first: bool,
) -> list[Tensor]:
    width = states[0].shape[-1] * (2 if bidirectional else 1)
    return [x.new_empty((*x.shape[:-1], width)), *(state.new_empty(state.shape) for state in states)]


@recurrent.register_vmap
def _over_draws(
    info: Any,
    in_dims: tuple[Any, ...],
    kind: str,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    *settings: Any,
) -> tuple[list[Tensor], list[int]]:
    _, x_dim, state_dims, weight_dims, *_ = in_dims
    if any(dim is not None for dim in weight_dims):
        raise RuntimeError("draws with recurrent weights of their own are run one after another")
    *_, batch_first = settings
    rows = [0 if batch_first else 1, *[1] * len(states)]
    folded = [
        _fold(value, dim, info.batch_size, axis)
        for value, dim, axis in zip([x, *states], [x_dim, *state_dims], rows, strict=True)
    ]
    found = recurrent(kind, folded[0], folded[1:], list(weights), *settings)
    apart = [value.unflatten(axis, (info.batch_size, -1)) for value, axis in zip(found, rows, strict=True)]
    return [value.movedim(axis, 0).contiguous() for value, axis in zip(apart, rows, strict=True)], [0] * len(rows)


def _fold(value: Tensor, dim: int | None, draws: int, rows: int) -> Tensor:
    """Let draws ride the row axis: (..., S * B, ...)."""
    apart = value.unsqueeze(rows).expand(*value.shape[:rows], draws, *value.shape[rows:])
    if dim is not None:
        apart = value.movedim(dim, rows)
    return apart.flatten(rows, rows + 1)


# --- On the way into a graph ---


class OurKernels(TorchFunctionMode):
    """While it lasts, torch's LSTM, GRU and RNN of padded sequences are layers of ours with dropout between them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kind = _KINDS.get(func)
        # A packed sequence has its weights one place later.
        if kind is None or kwargs or isinstance(args[2], Tensor) or (kind == "lstm" and isinstance(args[1], Tensor)):
            return func(*args, **(kwargs or {}))
        return _run_stack(kind, *args)


_KINDS = {function: kind for kind, function in _FUNCTIONS.items()}


def _refuse_unknown_to_onnx(x: Tensor, states: Sequence[Tensor]) -> None:
    if x.dtype != torch.float32:
        raise UnsupportedNetwork(
            f"a recurrent layer of {str(x.dtype).removeprefix('torch.')}, which onnxruntime cannot run; pack "
            "copy.deepcopy(module).float(), with example inputs to match"
        )
    if len({state.shape[-1] for state in states}) > 1:
        raise UnsupportedNetwork("nn.LSTM(proj_size=...) has no ONNX form; let a Linear read its outputs instead")


def _run_stack(
    kind: str,
    x: Tensor,
    states: Any,
    weights: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    rate: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """Run layer after layer; one mask covers a layer's whole output, as in torch's own stacks."""
    directions = 2 if bidirectional else 1
    first = list(states) if kind == "lstm" else [states]
    _refuse_unknown_to_onnx(x, first)
    per_layer = len(weights) // layers
    last: list[list[Tensor]] = []
    for layer in range(layers):
        if layer:
            x = F.dropout(x, rate, train)
        own = [state.narrow(0, layer * directions, directions) for state in first]
        chosen = list(weights[layer * per_layer : (layer + 1) * per_layer])
        x, *ends = recurrent(kind, x, own, chosen, has_biases, bidirectional, batch_first)
        last.append(ends)
    joined = (each[0] if layers == 1 else torch.cat(each) for each in zip(*last, strict=True))
    return x, *joined
