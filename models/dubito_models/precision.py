"""Products of the suffix in bfloat16, for a version that was packed so; everything else stays float32.

A product is most of what a draw costs, and bfloat16 halves it or better. Its operands are rounded once, its sums are
float32, its result is rounded once more; masks, biases, activations, norms and attention never are. So a kept unit's
1 / (1 - p) is multiplied in float32 and does not itself become 1.109 where it is 1.111. A product that no other
follows stays float32 too: what it gives is the prediction. A recurrent layer is rounded whole, with its biases and what
goes from step to step: torch has it as one kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, fx

from dubito_models.kernels import recurrent
from dubito_models.sites import find_reached, read_argument

aten = torch.ops.aten
_CONVOLUTIONS = {
    aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding, aten.conv3d.default,
    aten.conv3d.padding,
}  # fmt: skip
_MATRIX_PRODUCTS: Mapping[object, Sequence[str]] = {  # value, weight, bias
    aten.addmm.default: ("mat1", "mat2", "self"),
    aten.linear.default: ("input", "weight", "bias"),
    aten.matmul.default: ("self", "other"),
    aten.mm.default: ("self", "mat2"),
}
_FACTORS = ("alpha", "beta")  # of addmm
_WORK = 32  # multiplications for each number of the operand and the result, below which rounding them costs more
_ROUNDED = "rounded_"  # how the names of rounded weights begin


class Precision(StrEnum):
    """In what the draws of a version are computed. It is chosen at packing, so that every server answers alike."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def rounded_product(
    operator: torch._ops.OpOverload,
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    settings: Sequence[Any],
) -> Tensor:
    """Multiply, or convolve, `value` with a weight that is rounded already; takes and returns float32.

    The weight is held in bfloat16, or, where the processor has no such products, in float32. The numbers multiplied are
    the same, and only the order in which float32 sums are taken differs.
    """
    if operator in _CONVOLUTIONS:
        found: Tensor = operator(value.to(torch.bfloat16).to(weight.dtype), weight, None, *settings)
        bias = None if bias is None else bias.reshape(-1, *(1,) * (weight.dim() - 2))
    else:  # flat and in order, or torch may take a way through its kernels that is a hundred times slower
        operand = value.to(torch.bfloat16, memory_format=torch.contiguous_format).flatten(0, -2)
        found = operator(operand.to(weight.dtype), weight).unflatten(0, value.shape[:-1])
    product = found.to(torch.bfloat16).float()
    return product if bias is None else product.add_(bias)


def rounded_recurrent(
    kind: str, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], *settings: bool
) -> list[Tensor]:
    """Run a recurrent layer (see `kernels.recurrent`) whose weights are rounded already; takes and returns float32.

    Where the processor has no such products, what goes from step to step is not rounded.
    """
    form = weights[0].dtype
    first, *others = (value.to(torch.bfloat16).to(form) for value in (x, *states))
    return [value.float() for value in recurrent(kind, first, others, list(weights), *settings)]


def is_matrix_product(node: fx.Node) -> bool:
    """Tell whether a node is a rounded product over its value's last axis, not a convolution."""
    return node.target is rounded_product and node.args[0] not in _CONVOLUTIONS


@dataclass(frozen=True, slots=True)
class _Product:
    """What a product multiplies: a value that masks reach, a weight, a bias; `settings` of a convolution."""

    operator: torch._ops.OpOverload
    value: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    settings: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class _Layer:
    """A recurrent layer whose weights are the network's own; `weights`: for the inputs, the states, and biases."""

    kind: str
    values: tuple[fx.Node, list[fx.Node]]  # inputs and first states
    weights: tuple[fx.Node, ...]
    settings: tuple[bool, ...]


def round_products(module: fx.GraphModule, masks: Sequence[fx.Node]) -> int:
    """Let the products and recurrent layers that masks reach be bfloat16 where it pays; returns how many are.

    The weights have to be the network's own. Not rounded are products too small to gain, and the last ones.
    """
    graph = module.graph
    reached = find_reached(graph, masks)
    products = {node: found for node in graph.nodes if node in reached and (found := _recognise(node)) is not None}
    last = _find_last(graph, products)
    chosen = {node: product for node, product in products.items() if node not in last and _pays(product)}
    names: dict[object, str] = {}

    def rounded(weight: fx.Node) -> fx.Node:
        name = names.setdefault(weight.target, f"{_ROUNDED}{len(names)}")
        if not hasattr(module, name):
            module.register_buffer(name, getattr(module, str(weight.target)).to(torch.bfloat16))
        held = graph.get_attr(name)
        held.meta.update(weight.meta)
        return held

    for node, found in chosen.items():
        with graph.inserting_before(node):
            if isinstance(found, _Layer):
                weights = [rounded(weight) for weight in found.weights]
                new = graph.call_function(rounded_recurrent, (found.kind, *found.values, weights, *found.settings))
            else:
                arguments = (found.operator, found.value, rounded(found.weight), found.bias, found.settings)
                new = graph.call_function(rounded_product, arguments)
        new.meta.update({key: value for key, value in node.meta.items() if key != "eager_input_vals"})
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    return len(chosen)


def _recognise(node: fx.Node) -> _Product | _Layer | None:
    """Read a product or recurrent layer whose weights are the network's own, in float32; None for anything else."""
    return _recognise_layer(node) if node.target is recurrent._opoverload else _recognise_product(node)


def _recognise_layer(node: fx.Node) -> _Layer | None:
    arguments: tuple[Any, ...] = node.args
    kind, x, states, weights, *settings = arguments
    own = all(weight.op == "get_attr" and weight.meta["val"].dtype == torch.float32 for weight in weights)
    return _Layer(kind, (x, list(states)), tuple(weights), tuple(settings)) if own else None


def _recognise_product(node: fx.Node) -> _Product | None:
    """Read a product whose weight and bias are the network's own, in float32; None for anything else."""
    names = _MATRIX_PRODUCTS.get(node.target)
    if node.target in _CONVOLUTIONS:
        names = [argument.name for argument in node.target._schema.arguments]
    if names is None or (node.target is aten.addmm.default and any(read_argument(node, f) != 1 for f in _FACTORS)):
        return None
    value, weight, *rest = (read_argument(node, name) for name in names)
    bias, settings = (rest[0], tuple(rest[1:])) if rest else (None, ())
    operator: Any = node.target if "weight" in names else aten.matmul.default
    own = all(part is None or part.op == "get_attr" for part in (weight, bias))
    single = own and all(part.meta["val"].dtype == torch.float32 for part in (node, value, weight))
    flat = single and weight.meta["val"].dim() == 2
    fits = flat and value.meta["val"].dim() >= 2 if node.target in _MATRIX_PRODUCTS else single and not flat
    return _Product(operator, value, weight, bias, settings) if fits else None


def _pays(product: _Product | _Layer) -> bool:
    """Tell whether a product has enough to multiply that rounding what goes in and comes out is the lesser cost."""
    if isinstance(product, _Layer):
        rows, columns = product.weights[1].meta["val"].shape
        return bool(rows * columns >= _WORK * (rows + columns))
    weight = product.weight.meta["val"]
    groups = product.settings[-1] if product.operator in _CONVOLUTIONS else 1
    return bool(weight.numel() >= _WORK * (weight.shape[0] + weight.shape[1] * groups))


def _find_last(graph: fx.Graph, products: Mapping[fx.Node, _Product | _Layer]) -> set[fx.Node]:
    """Return the products whose result comes to the prediction by a way without another product."""
    last: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    todo = [graph.output_node()]
    while todo:
        for parent in todo.pop().all_input_nodes:
            if parent in products:
                last.add(parent)
            elif parent not in seen:
                seen.add(parent)
                todo.append(parent)
    return last


def hold_weights(module: torch.nn.Module, device: torch.device) -> None:
    """Hold rounded weights in the form that the device multiplies fastest; their numbers stay the same."""
    form = torch.bfloat16 if device.type != "cpu" or has_bfloat16_products() else torch.float32
    for name, weight in list(module.named_buffers()):
        if name.startswith(_ROUNDED):
            setattr(module, name, weight.to(form))


def has_bfloat16_products() -> bool:
    """Tell whether the processor multiplies in bfloat16 by itself: AVX-512 BF16, AMX, or Arm's."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
