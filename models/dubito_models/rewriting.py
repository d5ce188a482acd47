"""What dropout nodes become, and in-place operators made functional so that a graph can be cut anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

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
    length, source = query.shape[-2], key.shape[-2]
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key = key.repeat_interleave(repeats, -3)
        value = value.repeat_interleave(repeats, -3)
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
    return multiply_by_mask(weights, mask, row_axis, 0) @ value


def find_source(node: fx.Node) -> str:
    """Return `file:line` of the user's code that made a node; `an unknown line` where it is not recorded."""
    places = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [place for place in places if "/torch/" not in place[0]] or places
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
