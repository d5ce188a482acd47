"""The recurrent kernels with a batching rule over draws, which torch's own have not.

Where draws share the weights and only what a layer reads differs, they ride the row axis of one call. Where each draw
has weights of its own torch's kernel stays, and with it the loop over draws: a stack of small products by hand was
slower than one fused call after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
_KERNELS: dict[str, Any] = {
    "lstm": aten.lstm.input,
    "gru": aten.gru.input,
    "rnn_tanh": aten.rnn_tanh.input,
    "rnn_relu": aten.rnn_relu.input,
}


@torch.library.custom_op("dubito::recurrent", mutates_args=())
def recurrent(
    kind: str,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> list[Tensor]:
    """Return outputs (B, T, H) or (T, B, H) and last states (layers * directions, B, H) of the kernel of that kind."""
    first = list(states) if kind == "lstm" else states[0]
    found = _KERNELS[kind](x, first, list(weights), has_biases, layers, 0.0, False, bidirectional, batch_first)
    return list(found)


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
    _, x_dim, state_dims, *_ = in_dims
    draws: int = info.batch_size
    *_, batch_first = settings
    rows = [0 if batch_first else 1, *[1] * len(states)]
    folded = [
        _fold(value, dim, draws, axis)
        for value, dim, axis in zip([x, *states], [x_dim, *state_dims], rows, strict=True)
    ]
    found = recurrent(kind, folded[0], folded[1:], list(weights), *settings)
    return [value.unflatten(axis, (draws, -1)) for value, axis in zip(found, rows, strict=True)], rows


def _fold(value: Tensor, dim: int | None, draws: int, rows: int) -> Tensor:
    """Let draws ride the row axis: (..., S * B, ...)."""
    apart = value.unsqueeze(rows).expand(*value.shape[:rows], draws, *value.shape[rows:])
    if dim is not None:
        apart = value.movedim(dim, rows)
    return apart.flatten(rows, rows + 1)


def let_draws_batch(graph: fx.Graph, masks: Sequence[fx.Node]) -> None:
    """Put the kernel with a batching rule in the place of torch's wherever no mask reaches the weights."""
    kinds = {kernel: kind for kind, kernel in _KERNELS.items()}
    drawn = set(masks)
    for node in graph.nodes:
        if any(parent in drawn for parent in node.all_input_nodes):
            drawn.add(node)
        if node.op != "call_function" or node.target not in kinds:
            continue
        kind, arguments = kinds[node.target], node.args
        x, states, weights, has_biases, layers, _, _, bidirectional, batch_first = arguments
        if not drawn.isdisjoint(weights):
            continue
        first = states if kind == "lstm" else [states]
        node.target = torch.ops.dubito.recurrent.default
        node.args = (kind, x, first, weights, has_biases, layers, bidirectional, batch_first)
