"""Stacked recurrent layers taken apart, so that the dropout between them is a node like any other."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
_STACKED = {aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input}


def split_stacks(graph: fx.Graph) -> None:
    """Replace each stack of recurrent layers with active dropout by single layers with `aten.dropout` between them.

    One mask per draw covers a layer's whole output (T, H): the elements of `nn.LSTM(dropout=)` and its kind.
    """
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _STACKED:
            arguments: Any = node.args
            _, _, _, _, layers, rate, train, *_ = arguments
            if layers > 1 and rate > 0 and train:
                _split(graph, node)


def _split(graph: fx.Graph, node: fx.Node) -> None:
    arguments: Any = node.args
    current, states, weights, has_biases, layers, rate, _, bidirectional, batch_first = arguments
    is_lstm = node.target is aten.lstm.input
    directions = 2 if bidirectional else 1
    per_layer = len(weights) // layers
    values = node.meta["val"]
    finals: list[list[fx.Node]] = [[] for _ in values[1:]]
    target: Any = node.target
    with graph.inserting_before(node):
        for layer in range(layers):
            own = _narrow(graph, states if is_lstm else [states], layer * directions, directions)
            chosen = weights[layer * per_layer : (layer + 1) * per_layer]
            rest = (has_biases, 1, 0.0, False, bidirectional, batch_first)
            call = graph.call_function(target, (current, own if is_lstm else own[0], chosen, *rest))
            _describe(call, node, (values[0], *(state.meta["val"] for state in own)))
            current = _pick(graph, call, 0, node)
            for place, final in enumerate(finals):
                final.append(_pick(graph, call, place + 1, node))
            if layer < layers - 1:
                current = graph.call_function(aten.dropout.default, (current, rate, True))
                _describe(current, node, values[0])
        outputs = [current]
        for place, final in enumerate(finals):
            joined = graph.call_function(aten.cat.default, (final, 0))
            outputs.append(_describe(joined, node, values[place + 1]))
    for user in list(node.users):
        which: Any = user.args[1]
        user.replace_all_uses_with(outputs[which])
        graph.erase_node(user)
    graph.erase_node(node)
    for output in outputs[1:]:
        if not output.users:
            graph.erase_node(output)


def _narrow(graph: fx.Graph, states: Sequence[fx.Node], first: int, count: int) -> list[fx.Node]:
    """Take the initial states of one layer out of those of all."""
    own = []
    for state in states:
        part = graph.call_function(aten.narrow.default, (state, 0, first, count))
        part.meta["val"] = state.meta["val"].narrow(0, first, count)
        own.append(part)
    return own


def _pick(graph: fx.Graph, call: fx.Node, place: int, source: fx.Node) -> fx.Node:
    picked = graph.call_function(operator.getitem, (call, place))
    return _describe(picked, source, call.meta["val"][place])


def _describe(made: fx.Node, source: fx.Node, value: Any) -> fx.Node:
    """Let a node that stands for a part of another say where it comes from and what its value looks like."""
    made.meta.update({key: source.meta[key] for key in ("stack_trace", "nn_module_stack") if key in source.meta})
    made.meta["val"] = value
    return made
