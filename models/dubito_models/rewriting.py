"""What dropout nodes become, and in-place operators made functional so that a graph can be cut anywhere."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._higher_order_ops.wrap import wrap_with_autocast, wrap_with_set_grad_enabled
from torch._ops import HigherOrderOperator
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature

from dubito_models.errors import UnsupportedNetwork


def _act_on_rows(
    act: Callable[..., Tensor], value: Tensor, masks: Sequence[Tensor], row_axis: int | None, trailing: int
) -> Tensor:
    """Apply `act(value, *masks)` with masks that all rows share.

    The masks have the value's shape without `row_axis`; where that axis of the value holds c x rows (heads or
    windows folded in), the masks keep an axis of c there. `trailing` axes after the masks' are broadcast.
    """
    if trailing:
        masks = [mask.reshape(*mask.shape, *(1,) * trailing) for mask in masks]
    if row_axis is None:
        return act(value, *masks)
    spread = [mask.unsqueeze(row_axis) for mask in masks]
    if masks[0].dim() == value.dim():  # the masks are (.., c, ..) where the value is (.., rows * c, ..)
        unfolded = value.reshape(*value.shape[:row_axis], -1, *masks[0].shape[row_axis:])
        return act(unfolded, *spread).flatten(row_axis, row_axis + 1)
    return act(value, *spread)


def multiply_by_mask(value: Tensor, mask: Tensor, row_axis: int | None, trailing: int) -> Tensor:
    """Multiply `value` by a mask that all rows share; the shapes are those of `_act_on_rows`."""
    return _act_on_rows(torch.mul, value, [mask], row_axis, trailing)


ALPHA_BYPASS = 2.0  # a mask value that neither keeps nor drops
_SELU_FLOOR = 1.7580993408473766  # scale x alpha of SELU: minus what it tends to on the left


def alpha_masked(value: Tensor, mask: Tensor, row_axis: int | None, trailing: int, rate: float) -> Tensor:
    """Alpha dropout (Klambauer et al. 2017) with a given mask: 1 keeps, 0 drops, `ALPHA_BYPASS` does nothing.

    What is dropped takes SELU's lower limit; then an affine map restores mean 0 and variance 1. Scale and shift are
    worked out on the mask alone, before it is spread over rows.
    """
    a = 1.0 / ((_SELU_FLOOR**2 * rate + 1.0) * (1.0 - rate)) ** 0.5
    passes = mask > 1.5
    scale = torch.where(passes, 1.0, mask * a)
    shift = torch.where(passes, 0.0, (mask - 1.0) * (_SELU_FLOOR * a) + _SELU_FLOOR * a * rate)
    return _act_on_rows(lambda v, by, plus: v * by + plus, value, [scale, shift], row_axis, trailing)


def spread_over_rows(mask: Tensor, row_axis: int | None) -> Tensor:
    """Return a branch's decision for all rows: one for all of them, so that broadcasting spreads it."""
    return mask if row_axis is None else mask.unsqueeze(row_axis)


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    row_axis: int | None,
    *,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """Scaled dot-product attention whose weights are multiplied by a mask that all rows share.

    `query` (..., L, E), `key` (..., S, E), `value` (..., S, V): as torch's operator defines them; `attn_mask` is
    added, or where boolean keeps what is True. The mask is the weights' shape without the rows.
    """
    weights, value = _attend(query, key, value, attn_mask, is_causal, scale, enable_gqa)
    return multiply_by_mask(weights, mask, row_axis, 0) @ value


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> tuple[Tensor, Tensor]:
    """Return attention's weights (..., L, S), and the values that they weigh, for every head of the query."""
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key = key.repeat_interleave(repeats, -3)
        value = value.repeat_interleave(repeats, -3)
    length, source = query.shape[-2], key.shape[-2]
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if is_causal:
        seen = torch.ones(length, source, dtype=torch.bool, device=query.device).tril()
        scores = scores.masked_fill(~seen, float("-inf"))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = torch.softmax(scores, -1)
    if attn_mask is not None:  # as torch has it, a query that sees nothing gives 0
        weights = weights.masked_fill((scores == float("-inf")).all(-1, keepdim=True), 0.0)
    return weights, value


def write_out_attention(exported: ExportedProgram) -> ExportedProgram:
    """Write attention without an axis of heads, or with more than one, in single steps: ONNX knows (B, H, L, E) alone.

    The dropout of such a graph is off.
    """

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        weights, value = _attend(query, key, value, attn_mask, is_causal, scale, enable_gqa)
        return weights @ value

    operator = torch.ops.aten.scaled_dot_product_attention.default
    ranks = {node.args[0].meta["val"].dim() for node in exported.graph.nodes if node.target is operator}
    if not ranks - {4}:
        return exported
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written: ExportedProgram = exported.run_decompositions({operator: attention})
    return written


_BLOCKS = {wrap_with_set_grad_enabled: 1, wrap_with_autocast: 4}  # by how many arguments stand before the body


def inline_blocks(exported: ExportedProgram) -> None:
    """Put the inside of a block in its place where the block changes nothing: switched gradients, autocast off.

    Raises `UnsupportedNetwork` for any other part of a network that is a graph of its own.
    """
    _inline_blocks(exported.graph_module, exported.graph_signature)
    exported.graph_module.delete_all_unused_submodules()
    exported.graph_module.recompile()


def _inline_blocks(module: fx.GraphModule, signature: ExportGraphSignature | None) -> None:
    graph = module.graph
    for node in list(graph.nodes):
        if not isinstance(node.target, HigherOrderOperator):
            continue
        place = _BLOCKS.get(node.target)
        is_autocast = node.target is wrap_with_autocast
        if place is None or (is_autocast and node.args[0] == "cpu" and node.args[2]):
            what = "torch.autocast" if is_autocast else str(node.target)
            near = [node, *node.all_input_nodes, *node.users, *(after for user in node.users for after in user.users)]
            places = [find_source(other) for other in near if other.meta.get("stack_trace")]
            raise UnsupportedNetwork(
                f"the network runs a part of itself as a graph of its own ({what}, near "
                f"{next(iter(places), 'an unknown line')}); write it without, or move it out of forward"
            )
        arguments: Any = node.args
        name, operands = arguments[place], arguments[place + 1 :]
        body: Any = getattr(module, name.target)
        _inline_blocks(body, None)
        inputs = [inner for inner in body.graph.nodes if inner.op == "placeholder"]
        with graph.inserting_before(node):
            values: Any = graph.graph_copy(body.graph, dict(zip(inputs, operands, strict=True)))
        for user in list(node.users):
            value = values[user.args[1]]
            user.replace_all_uses_with(value)
            if signature is not None:
                signature.replace_all_uses(user.name, value.name)
            graph.erase_node(user)
        graph.erase_node(node)
        if not name.users:
            graph.erase_node(name)


def find_source(node: fx.Node) -> str:
    """Return `file:line` of the user's code that made a node; `an unknown line` where it is not recorded."""
    places = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [place for place in places if "/torch/" not in place[0] and place[0][0] != "<"] or places
    return f"{own[-1][0].rsplit('/', 1)[-1]}:{own[-1][1]}" if own else "an unknown line"


def _functional(node: fx.Node) -> torch._ops.OpOverload | None:
    """Return the operator that computes what an in-place operator writes; None where there is none."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return None
    packet = node.target.overloadpacket
    name = packet._qualified_op_name.split("::")[-1]
    if not name.endswith("_") or packet._qualified_op_name.split("::")[0] != "aten":
        return None
    twin = getattr(torch.ops.aten, name[:-1], None)
    overload = getattr(twin, node.target._overloadname, None) if twin is not None else None
    if overload is None or [str(a.type) for a in overload._schema.arguments] != [
        str(a.type) for a in node.target._schema.arguments
    ]:
        return None
    return overload if isinstance(overload, torch._ops.OpOverload) else None


def is_view(node: fx.Node) -> bool:
    """Tell whether a node's value shares the memory of its first argument."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    returns = node.target._schema.returns
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def find_written(node: fx.Node) -> fx.Node | None:
    """Return the argument that an in-place operator writes; None for any other node."""
    is_mutable = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    return node.args[0] if is_mutable and node.args and isinstance(node.args[0], fx.Node) else None


def functionalise(graph: fx.Graph) -> None:
    """Replace in-place operators by functional ones where no view shares the memory that they write."""
    for node in list(graph.nodes):
        overload = _functional(node)
        target = node.args[0] if node.args else None
        if overload is None or not isinstance(target, fx.Node):
            continue
        if is_view(target) or any(is_view(user) for user in target.users):
            continue
        node.target = overload
        order = {other: index for index, other in enumerate(graph.nodes)}
        for user in [user for user in target.users if order[user] > order[node]]:
            user.replace_input_with(target, node)


def refuse_shared_writes(graph: fx.Graph, random: set[fx.Node]) -> None:
    """Refuse a graph in which an in-place operator writes memory that prefix and suffix share.

    What the prefix writes may be read by the suffix, but only after the last write: the prefix runs first.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        written = find_written(node)
        if written is None:
            continue
        family = share_memory(written)
        readers = {user for member in family for user in member.users}
        if node in random:
            shared = any(member not in random for member in family | readers)
        else:
            shared = any(member in random for member in family)
            shared |= any(reader in random and order[reader] < order[node] for reader in readers)
        if shared:
            raise UnsupportedNetwork(
                f"{node.target} (node {node.name}, {find_source(node)}) writes in place into memory that dropout "
                "reaches and does not reach; write it out of place (x = x + y, torch.where, torch.cat)"
            )


def share_memory(node: fx.Node) -> set[fx.Node]:
    """Return the nodes that may share memory with this one, itself among them: its bases, and all views of them."""
    base = node
    while is_view(base) and isinstance(base.args[0], fx.Node):
        base = base.args[0]
    family, todo = {base}, [base]
    while todo:
        for user in todo.pop().users:
            if is_view(user) and user not in family:
                family.add(user)
                todo.append(user)
    return family
