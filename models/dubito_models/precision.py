"""Products of the suffix in bfloat16, for a version that was packed so; everything else stays float32.

A product is most of what a draw costs, and bfloat16 halves it or better. Its operands are rounded once, its sums are
float32, its result is rounded once more; masks, biases, activations, norms and attention never are. So a kept unit's
1 / (1 - p) is multiplied in float32 and does not itself become 1.109 where it is 1.111. A product that no other
follows stays float32 too: what it gives is the prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, fx

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


def round_products(module: fx.GraphModule, masks: Sequence[fx.Node]) -> int:
    """Let the products that masks reach be bfloat16 where it pays; returns how many are.

    The weight has to be the network's own. Not rounded are products too small to gain, and the last ones.
    """
    graph = module.graph
    reached = find_reached(graph, masks)
    products = {node: found for node in graph.nodes if node in reached and (found := _recognise(node)) is not None}
    last = _find_last(graph, products)
    weights: dict[object, str] = {}
    chosen = {node: product for node, product in products.items() if node not in last and _pays(product)}
    for node, product in chosen.items():
        name = weights.setdefault(product.weight.target, f"{_ROUNDED}{len(weights)}")
        if not hasattr(module, name):
            module.register_buffer(name, getattr(module, str(product.weight.target)).to(torch.bfloat16))
        with graph.inserting_before(node):
            weight = graph.get_attr(name)
            weight.meta.update(product.weight.meta)
            arguments = (product.operator, product.value, weight, product.bias, product.settings)
            new = graph.call_function(rounded_product, arguments)
        new.meta.update({key: value for key, value in node.meta.items() if key != "eager_input_vals"})
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    return len(chosen)


def _recognise(node: fx.Node) -> _Product | None:
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


def _pays(product: _Product) -> bool:
    """Tell whether a product has enough to multiply that rounding what goes in and comes out is the lesser cost."""
    weight = product.weight.meta["val"]
    groups = product.settings[-1] if product.operator in _CONVOLUTIONS else 1
    return bool(weight.numel() >= _WORK * (weight.shape[0] + weight.shape[1] * groups))


def _find_last(graph: fx.Graph, products: Mapping[fx.Node, _Product]) -> set[fx.Node]:
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
