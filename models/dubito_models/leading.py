"""Draws as a leading axis: a suffix whose operators all treat leading axes as batch needs no vmap.

So it is for the layers of a perceptron and for the heads of most networks: what draws have touched is (S, N, ...), the
rest stays (N, ...), and each operator is called once, as it stands. Anything else is left to vmap.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, fx

from dubito_models.precision import is_matrix_product
from dubito_models.rewriting import multiply_by_mask

aten = torch.ops.aten
_ELEMENTWISE = {
    "abs", "celu", "clamp", "clamp_min", "elu", "erf", "exp", "gelu", "hardsigmoid", "hardswish", "hardtanh",
    "leaky_relu", "log_sigmoid", "mish", "neg", "relu", "relu6", "selu", "sigmoid", "silu", "softplus", "sqrt",
    "square", "tanh",
}  # fmt: skip
_IN_PLACE = {
    aten.relu.default: aten.relu_.default,
    aten.sigmoid.default: aten.sigmoid_.default,
    aten.tanh.default: aten.tanh_.default,
}
_BINARY = {"add", "div", "mul", "sub"}


def multiply_by_masks(value: Tensor, masks: Tensor, trailing: int) -> Tensor:
    """Multiply `value` (N, ...) or (S, N, ...) by masks (S, 1, ...), which all rows share, or (S, N, ...)."""
    return value * masks.reshape(*masks.shape, *(1,) * trailing)


def multiply_in_place(value: Tensor, masks: Tensor, trailing: int) -> Tensor:
    """Do the same to a value (S, N, ...) that nobody reads again."""
    return value.mul_(masks.reshape(*masks.shape, *(1,) * trailing))


def lead_with_draws(suffix: fx.GraphModule, drawn_inputs: Collection[str] = ()) -> fx.GraphModule | None:
    """Return the suffix for masks with leading axes of draws and rows, or None where some operator would mistake it.

    `drawn_inputs`: the names of those that have an axis of draws too.
    """
    drawn = {node for node in suffix.graph.nodes if node.op == "placeholder" and node.name in drawn_inputs}
    for node in suffix.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is multiply_by_mask:
            value, mask, row_axis, trailing = node.args
            if row_axis != 0 or _rank(mask) + trailing != _rank(value) - 1:
                return None  # the rows stand elsewhere, or heads are folded into them
        elif not _keeps_leading_axes(node, drawn):
            return None
        drawn.add(node)
    led = fx.Graph()
    output = led.graph_copy(suffix.graph, {})
    led.output(output)
    for node in led.nodes:
        if node.target is multiply_by_mask:
            value, mask, _, trailing = node.args
            node.target = multiply_in_place if _is_spent(value) else multiply_by_masks
            node.args = (value, mask, trailing)
        elif node.target in _IN_PLACE and _is_spent(node.args[0]):
            node.target = _IN_PLACE[node.target]
    return fx.GraphModule(suffix, led)


def _is_spent(value: fx.Node) -> bool:
    """Tell whether a value's memory is its own and nobody reads it again: none of these operators makes a view."""
    return value.op == "call_function" and len(value.users) == 1


def _rank(node: fx.Node) -> int:
    """Return the number of axes of a node's value without draws; a mask says its own."""
    value = node.meta.get("val")
    rank: int = value.dim() if isinstance(value, Tensor) else node.meta.get("rank", 0)
    return rank


def _keeps_leading_axes(node: fx.Node, drawn: set[fx.Node]) -> bool:
    if is_matrix_product(node):
        value = node.args[1]
        return isinstance(value, fx.Node) and _rank(value) >= 2
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        return False
    name = node.target._schema.name.removeprefix("aten::")
    first = node.args[0]
    if not isinstance(first, fx.Node):
        return False
    others = [argument for argument in node.all_input_nodes if argument is not first]
    if name in _ELEMENTWISE:
        return not others
    if name in _BINARY:  # broadcasting aligns last axes, so what draws have touched must have the most of them
        ranks = [_rank(argument) for argument in node.all_input_nodes if argument in drawn]
        return min(ranks) == max(ranks) >= max(_rank(argument) for argument in node.all_input_nodes)
    if name == "linear":
        return first in drawn and _rank(first) >= 2 and not any(argument in drawn for argument in others)
    if name == "layer_norm":
        return first in drawn and not any(argument in drawn for argument in others)
    if name in {"softmax", "log_softmax"}:
        axis = node.args[1]
        return isinstance(axis, int) and axis < 0
    return False
