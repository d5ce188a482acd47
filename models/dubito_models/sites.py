"""The dropout sites of a graph: found among its nodes, and rewritten to products with masks that are inputs.

Sizes are expressions of the graph's symbols; every free axis has a name of ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sympy
import torch
from torch import fx

from dubito_models.errors import NoDropout, UnknownRandomness, UnsupportedNetwork
from dubito_models.export import ROWS
from dubito_models.rewriting import (
    ALPHA_BYPASS,
    alpha_masked,
    find_source,
    masked_attention,
    multiply_by_mask,
    spread_over_rows,
)

aten = torch.ops.aten
Symbols = Mapping[str, int]  # sizes of the free axes by label, the rows among them


class SiteKind(StrEnum):
    """What one element of a site's mask switches off."""

    ELEMENT = "element"
    CHANNEL = "channel"
    ATTENTION = "attention"
    WEIGHT = "weight"
    ALPHA = "alpha"
    CHANNEL_ALPHA = "channel_alpha"
    BRANCH = "branch"


@dataclass(frozen=True, slots=True)
class Site:
    """One dropout operation of a network.

    `shape` is the mask's, per draw and without the row axis: numbers, or expressions of free axes. A mask holds `kept`
    where a unit is kept, else 0; `bypass` is the mask value at which the site does nothing.
    """

    name: str
    kind: SiteKind
    rate: float
    shape: tuple[str, ...]
    source: str
    kept: float
    bypass: float = 1.0


def mean_mask(site: Site) -> float:
    """Return the mean of a mask's element: 1 for a scaled mask, the keep probability for a 0 or 1."""
    return site.kept * (1.0 - site.rate)


def mask_variance(site: Site) -> float:
    """Return the variance of a mask's element: p / (1 - p) for a scaled mask."""
    return site.kept**2 * site.rate * (1.0 - site.rate)


@dataclass(frozen=True, slots=True)
class SymbolNames:
    """The graph's symbols: which input's which axis each one is, and what we call it."""

    origins: tuple[tuple[str, int, str], ...]  # input, axis, label
    of_label: Mapping[str, sympy.Symbol]

    def values(self, symbols: Symbols) -> dict[sympy.Symbol, int]:
        """Return the sizes keyed by the graph's symbols."""
        return {self.of_label[label]: size for label, size in symbols.items()}

    def label(self, expression: Any) -> str:
        """Write an expression of symbols with our labels."""
        names = {symbol: sympy.Symbol(label) for label, symbol in self.of_label.items()}
        return str(sympy.sympify(expression_of(expression)).xreplace(names))


def expression_of(size: Any) -> Any:
    """Return the expression of a symbolic size; a number as it is."""
    return size.node.expr if isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)) else size


def evaluate_size(size: Any, named: Mapping[sympy.Symbol, int]) -> int | float:
    """Return the value of a size or its expression, where its symbols have these values."""
    expression = expression_of(size)
    if isinstance(expression, (int, float)):
        return expression
    value = expression.xreplace({symbol: sympy.Integer(number) for symbol, number in named.items()})
    return int(value) if value.is_integer else float(value)


def is_size(node: fx.Node) -> bool:
    """Tell whether a node's value is a symbolic number, not a tensor."""
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool))


def name_symbols(graph: fx.Graph, inputs: Mapping[str, Mapping[int, str]]) -> SymbolNames:
    """Find the graph's symbols among the sizes of its inputs; `inputs` names them in order, and their free axes."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    if len(placeholders) != len(inputs):
        raise UnsupportedNetwork(f"the graph takes {len(placeholders)} inputs, the signature names {len(inputs)}")
    origins: list[tuple[str, int, str]] = []
    of_label: dict[str, sympy.Symbol] = {}
    for node, (name, free) in zip(placeholders, inputs.items(), strict=True):
        for axis, size in enumerate(node.meta["val"].shape):
            symbol = expression_of(size)
            if isinstance(symbol, int) or symbol in of_label.values():
                continue
            if not isinstance(symbol, sympy.Symbol):
                raise UnsupportedNetwork(f"input {name}: axis {axis} is tied to others by {symbol}")
            label = ROWS if axis == 0 else free.get(axis, f"{name}_{axis}")
            of_label[label] = symbol
            origins.append((name, axis, label))
    if ROWS not in of_label:
        raise UnsupportedNetwork("the number of rows is fixed in the graph; it must stay free")
    return SymbolNames(tuple(origins), of_label)


def find_reached(graph: fx.Graph, masks: Iterable[fx.Node]) -> set[fx.Node]:
    """Return the masks and the tensors that depend on them."""
    reached = set(masks)
    for node in graph.nodes:
        if not is_size(node) and any(parent in reached for parent in node.all_input_nodes):
            reached.add(node)
    return reached


def _is_random(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and (torch.Tag.nondeterministic_seeded in node.target.tags)


def read_argument(node: fx.Node, name: str) -> Any:
    """Return an argument of an ATen call by its name in the operator's schema."""
    schema = node.target._schema  # type: ignore[union-attr]
    for index, argument in enumerate(schema.arguments):
        if argument.name == name:
            if index < len(node.args):
                return node.args[index]
            return node.kwargs.get(name, argument.default_value)
    raise UnsupportedNetwork(f"{node.target} takes no argument {name}")


def _set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Set an argument of an ATen call by its name in the operator's schema."""
    for index, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name == name and index < len(node.args):
            node.update_arg(index, value)
        elif argument.name == name:
            node.update_kwarg(name, value)


@dataclass(frozen=True, slots=True)
class _Dropout:
    """What a random node is: its kind and rate, and the node that the mask takes the place of."""

    kind: SiteKind
    rate: float
    replaced: fx.Node
    decides: bool = False  # the network's own 0 or 1, which it multiplies with as it likes
    divided: bool = False  # ... and divides by the keep probability

    @property
    def kept(self) -> float:
        return 1.0 if self.decides or self.kind in _UNSCALED else 1.0 / (1.0 - self.rate)

    @property
    def bypass(self) -> float:
        if self.kind in (SiteKind.ALPHA, SiteKind.CHANNEL_ALPHA):
            return ALPHA_BYPASS
        return 1.0 - self.rate if self.divided else 1.0


_MODULES = {
    aten.dropout.default: SiteKind.ELEMENT,
    aten.feature_dropout.default: SiteKind.CHANNEL,
    aten.alpha_dropout.default: SiteKind.ALPHA,
    aten.feature_alpha_dropout.default: SiteKind.CHANNEL_ALPHA,
}
_ATTENTION = aten.scaled_dot_product_attention.default
_BERNOULLI = {aten.bernoulli_.float, aten.bernoulli.p}
_DIVISIONS = {aten.div.Tensor, aten.div_.Tensor, aten.true_divide.Tensor}
_IN_PLACE = ("dropout_", "feature_dropout_", "alpha_dropout_", "feature_alpha_dropout_")
_PRODUCTS = {aten.mul.Tensor, aten.mul_.Tensor}
_UNSCALED = {SiteKind.ALPHA, SiteKind.CHANNEL_ALPHA}
_BY_CHANNEL = {SiteKind.CHANNEL, SiteKind.CHANNEL_ALPHA}


def rewrite_sites(graph: fx.Graph, symbols: SymbolNames) -> tuple[tuple[Site, ...], tuple[fx.Node, ...]]:
    """Replace every active dropout node; returns the sites and their mask inputs."""
    sites: list[Site] = []
    masks: list[fx.Node] = []
    names: dict[str, int] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not _is_random(node):
            continue
        found = _recognise(node)
        if found is None:
            continue
        kind = found.kind
        shape, axis = _mask_shape(found, symbols)
        if kind is SiteKind.ELEMENT and set(shape) <= {"1"}:
            kind = SiteKind.BRANCH  # one decision for all that it is multiplied with
        elif axis is None and kind is SiteKind.ELEMENT:
            kind = SiteKind.WEIGHT
        if found.decides and axis is not None and len(shape) == found.replaced.meta["val"].dim():
            raise UnsupportedNetwork(
                f"{node.name} ({find_source(node)}): heads or windows are folded into the rows of a decision that the "
                "network makes itself; use F.dropout there"
            )
        name = _site_name(node, kind, names)
        sites.append(Site(name, kind, found.rate, shape, find_source(node), found.kept, found.bypass))
        old = found.replaced
        with graph.inserting_before(old):
            mask = graph.create_node("placeholder", f"mask_{len(masks)}", name=f"mask_{len(masks)}")
            mask.meta["rank"] = len(shape)
            new = _replacement(graph, found, mask, axis)
        new.meta.update({key: value for key, value in old.meta.items() if key != "eager_input_vals"})
        old.replace_all_uses_with(new)
        graph.erase_node(old)
        masks.append(mask)
    if not sites:
        raise NoDropout(
            "no active dropout reaches the prediction: every draw would be the same, so there is no uncertainty to "
            "serve. Add nn.Dropout (rate between 0 and 1) before training, or check that its rate is not 0"
        )
    return tuple(sites), tuple(masks)


def _recognise(node: fx.Node) -> _Dropout | None:
    """Tell what dropout a random node is, or None where it is switched off; refuse everything else."""
    target = node.target
    if target in _MODULES:
        kind, rate, active = _MODULES[target], read_argument(node, "p"), read_argument(node, "train")
        found = (kind, rate, node, False, False)
    elif target is _ATTENTION:
        active, found = True, (SiteKind.ATTENTION, read_argument(node, "dropout_p"), node, False, False)
    elif (decision := _find_decision(node)) is not None:
        keep, replaced = decision
        whole = not any(isinstance(size, int) and size > 1 for size in replaced.meta["val"].shape)
        kind = SiteKind.BRANCH if whole else SiteKind.ELEMENT
        active, found = True, (kind, round(1.0 - keep, 12), replaced, True, _is_divided(replaced, keep))
    else:
        if _is_switched_off(node):
            return None
        if str(target).removeprefix("aten.").startswith(_IN_PLACE):
            raise UnsupportedNetwork(
                f"{target} (node {node.name}, {find_source(node)}) drops in place in a part of a tensor that is read "
                "as a whole; leave inplace=True out there"
            )
        raise UnknownRandomness(
            f"{target} (node {node.name}, {find_source(node)}) draws random numbers and is not a dropout that can be "
            "served; served are element, channel, attention and alpha dropout, and dropped residual branches: use one "
            "of these (for a mask of any shape, F.dropout(torch.ones(shape), rate, self.training)), or leave it out"
        )
    rate = found[1]
    if not isinstance(rate, (int, float)):
        raise UnknownRandomness(f"{target} (node {node.name}, {find_source(node)}) has a rate that is not a constant")
    if not active or rate == 0.0:
        return None
    if not 0.0 < rate < 1.0:
        name = _site_name(node, found[0], {})
        raise UnsupportedNetwork(f"{name} ({find_source(node)}): dropout rate {rate}; accepted: 0 <= rate < 1")
    return _Dropout(found[0], float(rate), *found[2:])


def _find_decision(node: fx.Node) -> tuple[float, fx.Node] | None:
    """Find a decision that the network makes itself: its keep probability, and the node that is 1 or 0 for it.

    Known are `bernoulli_(keep)` and `floor(keep + rand)`: of dropped residual branches, locked dropout and the like.
    """
    if node.target in _BERNOULLI:
        keep = read_argument(node, "p")
        return (keep, node) if isinstance(keep, float) else None
    if node.target is not aten.rand.default or len(node.users) != 1:
        return None
    [sum_] = node.users
    keep = sum_.args[1] if len(sum_.args) > 1 else None
    if sum_.target is not aten.add.Tensor or not isinstance(keep, float) or len(sum_.users) != 1:
        return None
    [floor] = sum_.users
    return (keep, floor) if floor.target in {aten.floor.default, aten.floor_.default} else None


def _is_divided(node: fx.Node, keep: float) -> bool:
    """Tell whether a decision, what it is multiplied with, or their product is divided by its probability."""

    def divides(other: object) -> bool:
        if not isinstance(other, fx.Node) or len(other.args) < 2:
            return False
        by = other.args[1]
        return bool((other.target in _DIVISIONS and by == keep) or (other.target in _PRODUCTS and by == 1.0 / keep))

    near = [*node.users, *(argument for user in node.users for argument in user.args)]
    return any(divides(other) for other in [*near, *(after for user in node.users for after in user.users)])


def switch_off(graph: fx.Graph) -> tuple[str, ...]:
    """Switch off the dropout that a network keeps on in evaluation mode; returns where in its code that stands."""
    places: list[str] = []
    for node in graph.nodes:
        flag = "train" if node.target in _MODULES else "dropout_p" if node.target is _ATTENTION else None
        if flag is None or not read_argument(node, flag):
            continue
        if read_argument(node, "p" if flag == "train" else flag) == 0.0:
            continue
        places.append(find_source(node))
        _set_argument(node, flag, False if flag == "train" else 0.0)
    return tuple(dict.fromkeys(places))


def _is_switched_off(node: fx.Node) -> bool:
    """Tell whether a random operator's own arguments keep it from drawing (train=False, rate 0)."""
    schema = {argument.name for argument in node.target._schema.arguments}  # type: ignore[union-attr]
    for flag in ("train", "training"):
        if flag in schema and read_argument(node, flag) is False:
            return True
    return any(rate in schema and read_argument(node, rate) == 0.0 for rate in ("dropout", "dropout_p"))


def _mask_shape(found: _Dropout, symbols: SymbolNames) -> tuple[tuple[str, ...], int | None]:
    """Return the mask's shape without rows, and the axis at which the rows stood (None: a row-free site)."""
    node = found.replaced
    if found.kind is SiteKind.ATTENTION:
        query, key = node.args[0].meta["val"], node.args[1].meta["val"]  # type: ignore[union-attr]
        sizes = (*query.shape[:-1], key.shape[-2])
    else:
        sizes = tuple(node.meta["val"].shape)
        if found.kind in _BY_CHANNEL:
            sizes = sizes[:2]
    rows = symbols.of_label[ROWS]
    shape: list[str] = []
    row_axis: int | None = None
    for axis, size in enumerate(sizes):
        expression = expression_of(size)
        if isinstance(expression, int) or rows not in expression.free_symbols:
            shape.append(symbols.label(size))
            continue
        fold = sympy.simplify(expression / rows)
        if row_axis is not None or rows in fold.free_symbols:
            raise UnsupportedNetwork(
                f"{node.name} ({find_source(node)}): the rows stand in more than one axis of its shape "
                f"[{', '.join(symbols.label(s) for s in sizes)}], so a mask cannot be shared by rows"
            )
        row_axis = axis
        if fold != 1:  # heads or windows folded into the rows: the mask has that axis, tiled over rows
            shape.append(symbols.label(fold))
    return tuple(shape), row_axis


def _site_name(node: fx.Node, kind: SiteKind, names: dict[str, int]) -> str:
    stack = [entry for key, entry in (node.meta.get("nn_module_stack") or {}).items() if "empty_nn" not in key]
    path, owner = stack[-1] if stack else ("", "")
    owner = owner if isinstance(owner, str) else owner.__name__
    is_module = "Dropout" in owner.rsplit(".", 1)[-1]
    name = path if is_module else f"{path}.{kind.value}_dropout".lstrip(".")
    names[name] = names.get(name, 0) + 1
    return name if names[name] == 1 else f"{name}#{names[name]}"


def _replacement(graph: fx.Graph, found: _Dropout, mask: fx.Node, axis: int | None) -> fx.Node:
    node, kind = found.replaced, found.kind
    if found.decides:
        return graph.call_function(spread_over_rows, (mask, axis))
    if kind is SiteKind.ATTENTION:
        arguments = {name: read_argument(node, name) for name in ("attn_mask", "is_causal", "scale", "enable_gqa")}
        return graph.call_function(masked_attention, (*node.args[:3], mask, axis), arguments)
    trailing = node.meta["val"].dim() - 2 if kind in _BY_CHANNEL else 0
    if kind in (SiteKind.ALPHA, SiteKind.CHANNEL_ALPHA):
        return graph.call_function(alpha_masked, (node.args[0], mask, axis, trailing, found.rate))
    return graph.call_function(multiply_by_mask, (node.args[0], mask, axis, trailing))
