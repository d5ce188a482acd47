"""A network as pure functions of tensors: a deterministic prefix, and a suffix whose dropout masks are inputs.

`torch.export` gives a graph in which every dropout is a node. Those nodes are rewritten to "multiply by this
mask"; what no mask reaches is the prefix (the same for every draw), the rest is the suffix.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from dubito_models.errors import NoDropout, UnknownRandomness, UnsupportedNetwork
from dubito_models.export import ROWS
from dubito_models.rewriting import (
    find_source,
    find_written,
    functionalise,
    masked_attention,
    multiply_by_mask,
    refuse_shared_writes,
    share_memory,
)

aten = torch.ops.aten
Symbols = Mapping[str, int]


class SiteKind(StrEnum):
    """What one element of a site's mask switches off."""

    ELEMENT = "element"
    CHANNEL = "channel"
    ATTENTION = "attention"
    WEIGHT = "weight"


@dataclass(frozen=True, slots=True)
class Site:
    """One dropout operation of a network.

    `shape` is the mask's, per draw and without the row axis: numbers, or expressions of free axes.
    `bypass` is the mask value at which the site does nothing.
    """

    name: str
    kind: SiteKind
    rate: float
    shape: tuple[str, ...]
    source: str
    bypass: float = 1.0


@dataclass(frozen=True, slots=True)
class Boundary:
    """What crosses from prefix to suffix, for some rows: tensors, and the sizes of the free axes."""

    values: tuple[Tensor, ...]
    symbols: Symbols

    @property
    def rows(self) -> int:
        """The number of rows, N."""
        return self.symbols[ROWS]


class StochasticProgram:
    """A network cut into `prefix` and `suffix`; no state of training or evaluation, no randomness of its own."""

    def __init__(self, exported: ExportedProgram, inputs: Mapping[str, Mapping[int, str]], output: int = 0) -> None:
        """Rewrite and cut; `inputs` names the inputs in order and their free axes, `output` is a flat index.

        Raises `NoDropout`, `UnknownRandomness` or `UnsupportedNetwork` for what cannot be served.
        """
        module = _lift(exported)
        functionalise(module.graph)
        _keep_output(module.graph, output)
        self._symbols = _name_symbols(module.graph, inputs)
        self.inputs = tuple(inputs)
        self.sites, masks = _rewrite(module.graph, self._symbols)
        self._prefix, self._suffix, self._crossing = _cut(module, masks, self._symbols)
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> StochasticProgram:
        """Move the weights to a device, in place; returns self."""
        self._prefix.module.to(device)
        self._suffix.module.to(device)
        self.device = device
        return self

    def mask_shapes(self, symbols: Symbols) -> tuple[tuple[int, ...], ...]:
        """Return the shape of each site's mask, without the row axis, for these sizes of the free axes."""
        named = tuple(sorted((name, size) for name, size in symbols.items() if name != ROWS))
        return _mask_shapes(self.sites, named)

    def prefix(self, inputs: Mapping[str, Tensor]) -> Boundary:
        """Run what every draw shares, once. `inputs`: each (B, ...), in the declared dtype, on the device."""
        symbols = {label: int(inputs[name].shape[axis]) for name, axis, label in self._symbols.origins}
        sizes = self._prefix.sizes_at(self._symbols, symbols)
        values = self._prefix.module(*(inputs[name] for name in self.inputs), *sizes)
        return Boundary(tuple(values), symbols)

    def suffix(self, boundary: Boundary, masks: Sequence[Tensor]) -> Tensor:
        """Run one draw: masks as `mask_shapes` says; returns the network's raw prediction (N, ...)."""
        sizes = self._suffix.sizes_at(self._symbols, boundary.symbols)
        result: Tensor = self._suffix.module(*boundary.values, *sizes, *masks)
        return result

    def many(self, boundary: Boundary, masks: Sequence[Tensor]) -> Tensor:
        """Run S draws at once, vmapped over the leading axis of the masks; returns (S, N, ...)."""
        fixed = (*boundary.values, *self._suffix.sizes_at(self._symbols, boundary.symbols))

        def one(*masks_of_a_draw: Tensor) -> Tensor:
            result: Tensor = self._suffix.module(*fixed, *masks_of_a_draw)
            return result

        batched: Tensor = torch.func.vmap(one, randomness="error")(*masks)
        return batched

    def bypass(self, symbols: Symbols) -> list[Tensor]:
        """Return the masks under which no site does anything."""
        return [
            torch.full(shape, site.bypass, device=self.device)
            for site, shape in zip(self.sites, self.mask_shapes(symbols), strict=True)
        ]

    def join(self, boundaries: Sequence[Boundary]) -> Boundary:
        """Stack the rows of several boundaries whose other sizes are equal."""
        if len(boundaries) == 1:
            return boundaries[0]
        values = tuple(
            torch.cat([boundary.values[i] for boundary in boundaries], axis) if axis is not None else value
            for i, (value, axis) in enumerate(zip(boundaries[0].values, self._crossing, strict=True))
        )
        rows = sum(boundary.rows for boundary in boundaries)
        return Boundary(values, {**boundaries[0].symbols, ROWS: rows})

    def split(self, boundary: Boundary, rows: Sequence[int]) -> list[Boundary]:
        """Undo `join`: boundaries of so many rows each."""
        if len(rows) == 1:
            return [boundary]
        pieces: list[list[Tensor]] = [[] for _ in rows]
        for value, axis in zip(boundary.values, self._crossing, strict=True):
            if axis is None:
                parts: Sequence[Tensor] = [value] * len(rows)
            else:
                fold = value.shape[axis] // boundary.rows
                parts = torch.split(value, [fold * count for count in rows], axis)
            for piece, part in zip(pieces, parts, strict=True):
                piece.append(part)
        return [
            Boundary(tuple(piece), {**boundary.symbols, ROWS: count}) for piece, count in zip(pieces, rows, strict=True)
        ]

    def bytes_per_draw(self, symbols: Symbols) -> int:
        """Return the bytes of the largest value that one draw of the suffix makes, for these sizes."""
        return self._suffix.largest_at(self._symbols, symbols)


@dataclass(frozen=True, slots=True)
class _SymbolNames:
    """The graph's symbols: which input's which axis each one is, and what we call it."""

    origins: tuple[tuple[str, int, str], ...]  # input, axis, label
    of_label: Mapping[str, sympy.Symbol]

    def values(self, symbols: Symbols) -> dict[sympy.Symbol, int]:
        """Return the sizes keyed by the graph's symbols."""
        return {self.of_label[label]: size for label, size in symbols.items()}

    def label(self, expression: Any) -> str:
        """Write an expression of symbols with our labels."""
        names = {symbol: sympy.Symbol(label) for label, symbol in self.of_label.items()}
        return str(sympy.sympify(_expression(expression)).xreplace(names))


class _Part:
    """A graph of its own: it takes tensors, then the values of `sizes`, then (the suffix) masks.

    What depends on sizes alone is evaluated once per shape.
    """

    def __init__(self, module: fx.GraphModule, sizes: tuple[Any, ...]) -> None:
        self.module = module
        self._sizes = sizes
        self._values: dict[tuple[tuple[str, int], ...], tuple[int | float, ...]] = {}
        self._largest: dict[tuple[tuple[str, int], ...], int] = {}

    def sizes_at(self, names: _SymbolNames, symbols: Symbols) -> tuple[int | float, ...]:
        """Evaluate the sizes that the graph takes, for these sizes of the free axes."""
        if not self._sizes:
            return ()
        key = tuple(symbols.items())
        if key not in self._values:
            named = names.values(symbols)
            _remember(self._values, key, tuple(_evaluate(size, named) for size in self._sizes))
        return self._values[key]

    def largest_at(self, names: _SymbolNames, symbols: Symbols) -> int:
        """Return the bytes of the largest value that the graph makes, for these sizes of the free axes."""
        key = tuple(symbols.items())
        if key not in self._largest:
            named = names.values(symbols)
            values = [node.meta["val"] for node in self.module.graph.nodes if node.op == "call_function"]
            sizes = [
                int(_evaluate(value.numel(), named)) * value.element_size()
                for value in values
                if isinstance(value, Tensor)
            ]
            _remember(self._largest, key, max(sizes))
        return self._largest[key]


def _remember(cache: dict[Any, Any], key: object, value: object, most: int = 4096) -> None:
    if len(cache) >= most:
        cache.pop(next(iter(cache)))
    cache[key] = value


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)) else size


def _evaluate(size: Any, named: Mapping[sympy.Symbol, int]) -> int | float:
    expression = _expression(size)
    if isinstance(expression, (int, float)):
        return expression
    value = expression.xreplace({symbol: sympy.Integer(number) for symbol, number in named.items()})
    return int(value) if value.is_integer else float(value)


@functools.lru_cache(maxsize=4096)
def _mask_shapes(sites: tuple[Site, ...], named: tuple[tuple[str, int], ...]) -> tuple[tuple[int, ...], ...]:
    sizes = {sympy.Symbol(name): sympy.Integer(size) for name, size in named}
    names = {name: sympy.Symbol(name) for name, _ in named}
    return tuple(
        tuple(int(size) if size.isdigit() else int(sympy.sympify(size, names).xreplace(sizes)) for size in site.shape)
        for site in sites
    )


def _lift(exported: ExportedProgram) -> fx.GraphModule:
    """Copy the exported graph; weights become attributes, so that only the user's inputs stay inputs."""
    root = nn.Module()
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    constants = {**exported.constants, **exported.state_dict}
    for node in exported.graph.nodes:
        if node.op == "get_attr":
            raise UnsupportedNetwork(
                "the network runs a part of itself as a subgraph (torch.no_grad, torch.cond or autocast inside "
                f"forward, {find_source(node)}); move it out of forward"
            )
        if node.op != "placeholder":
            values[node] = graph.node_copy(node, lambda old: values[old])
            continue
        spec = specs[node.name]
        if spec.kind == InputKind.USER_INPUT:
            if not isinstance(node.meta.get("val"), Tensor):
                continue  # a constant of the signature, already in the graph
            values[node] = graph.node_copy(node, lambda old: values[old])
        elif spec.kind in {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}:
            name = f"weight_{len(values)}"
            tensor = constants[spec.target].detach()
            root.register_buffer(name, tensor)
            values[node] = graph.get_attr(name)
            values[node].meta.update(node.meta)
        else:
            raise UnsupportedNetwork(f"the graph takes an input of kind {spec.kind.name} ({node.name})")
    return fx.GraphModule(root, graph)


def _keep_output(graph: fx.Graph, output: int) -> None:
    node = graph.output_node()
    prediction = node.args[0][output]  # type: ignore[index]
    if not isinstance(prediction, fx.Node) or not isinstance(prediction.meta.get("val"), Tensor):
        raise UnsupportedNetwork("the prediction is not a tensor that the network computes")
    node.args = (prediction,)


def _name_symbols(graph: fx.Graph, inputs: Mapping[str, Mapping[int, str]]) -> _SymbolNames:
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    if len(placeholders) != len(inputs):
        raise UnsupportedNetwork(f"the graph takes {len(placeholders)} inputs, the signature names {len(inputs)}")
    origins: list[tuple[str, int, str]] = []
    of_label: dict[str, sympy.Symbol] = {}
    for node, (name, free) in zip(placeholders, inputs.items(), strict=True):
        for axis, size in enumerate(node.meta["val"].shape):
            symbol = _expression(size)
            if isinstance(symbol, int) or symbol in of_label.values():
                continue
            if not isinstance(symbol, sympy.Symbol):
                raise UnsupportedNetwork(f"input {name}: axis {axis} is tied to others by {symbol}")
            label = ROWS if axis == 0 else free.get(axis, f"{name}_{axis}")
            of_label[label] = symbol
            origins.append((name, axis, label))
    if ROWS not in of_label:
        raise UnsupportedNetwork("the number of rows is fixed in the graph; it must stay free")
    return _SymbolNames(tuple(origins), of_label)


def _is_random(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and (torch.Tag.nondeterministic_seeded in node.target.tags)


def _argument(node: fx.Node, name: str) -> Any:
    """Return an argument of an ATen call by its name in the operator's schema."""
    schema = node.target._schema  # type: ignore[union-attr]
    for index, argument in enumerate(schema.arguments):
        if argument.name == name:
            if index < len(node.args):
                return node.args[index]
            return node.kwargs.get(name, argument.default_value)
    raise UnsupportedNetwork(f"{node.target} takes no argument {name}")


_ELEMENT = {aten.dropout.default, aten.native_dropout.default}
_CHANNEL = {aten.feature_dropout.default}
_ATTENTION = {aten.scaled_dot_product_attention.default}


def _rewrite(graph: fx.Graph, symbols: _SymbolNames) -> tuple[tuple[Site, ...], tuple[fx.Node, ...]]:
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
        kind, rate = found
        shape, axis = _mask_shape(node, kind, symbols)
        if axis is None and kind is SiteKind.ELEMENT:
            kind = SiteKind.WEIGHT
        name = _site_name(node, kind, names)
        sites.append(Site(name, kind, rate, shape, find_source(node)))
        with graph.inserting_before(node):
            mask = graph.create_node("placeholder", f"mask_{len(masks)}", name=f"mask_{len(masks)}")
            new = _replacement(graph, node, kind, mask, axis)
        new.meta.update({key: value for key, value in node.meta.items() if key != "eager_input_vals"})
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        masks.append(mask)
    if not sites:
        raise NoDropout(
            "the network holds no active dropout: every draw would be the same, so there is no uncertainty to serve. "
            "Add nn.Dropout (rate between 0 and 1) before training, or check that its rate is not 0"
        )
    return tuple(sites), tuple(masks)


def _recognise(node: fx.Node) -> tuple[SiteKind, float] | None:
    """Tell what dropout a random node is, or None where it is switched off; refuse everything else."""
    target = node.target
    if target in _ELEMENT | _CHANNEL:
        rate, active = _argument(node, "p"), _argument(node, "train")
        kind = SiteKind.ELEMENT if target in _ELEMENT else SiteKind.CHANNEL
    elif target in _ATTENTION:
        rate, active, kind = _argument(node, "dropout_p"), True, SiteKind.ATTENTION
    else:
        if _is_switched_off(node):
            return None
        raise UnknownRandomness(
            f"{target} (node {node.name}, {find_source(node)}) draws random numbers and is not a dropout that can be "
            "served; served are element, channel and attention dropout, as modules or functions"
        )
    if not isinstance(rate, (int, float)):
        raise UnknownRandomness(f"{target} (node {node.name}, {find_source(node)}) has a rate that is not a constant")
    if not active or rate == 0.0:
        return None
    if not 0.0 < rate < 1.0:
        raise UnsupportedNetwork(f"{node.name} ({find_source(node)}): dropout rate {rate}; accepted: 0 <= rate < 1")
    return kind, float(rate)


def _is_switched_off(node: fx.Node) -> bool:
    """Tell whether a random operator's own arguments keep it from drawing (train=False, rate 0)."""
    schema = {argument.name for argument in node.target._schema.arguments}  # type: ignore[union-attr]
    for flag in ("train", "training"):
        if flag in schema and _argument(node, flag) is False:
            return True
    return any(rate in schema and _argument(node, rate) == 0.0 for rate in ("dropout", "dropout_p"))


def _mask_shape(node: fx.Node, kind: SiteKind, symbols: _SymbolNames) -> tuple[tuple[str, ...], int | None]:
    """Return the mask's shape without rows, and the axis at which the rows stood (None: a row-free site)."""
    if kind is SiteKind.ATTENTION:
        query, key = node.args[0].meta["val"], node.args[1].meta["val"]  # type: ignore[union-attr]
        sizes = (*query.shape[:-1], key.shape[-2])
    else:
        sizes = tuple(node.args[0].meta["val"].shape)  # type: ignore[union-attr]
        if kind is SiteKind.CHANNEL:
            sizes = sizes[:2]
    rows = symbols.of_label[ROWS]
    shape: list[str] = []
    row_axis: int | None = None
    for axis, size in enumerate(sizes):
        expression = _expression(size)
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


def _replacement(graph: fx.Graph, node: fx.Node, kind: SiteKind, mask: fx.Node, axis: int | None) -> fx.Node:
    if kind is SiteKind.ATTENTION:
        arguments = {name: _argument(node, name) for name in ("attn_mask", "is_causal", "scale", "enable_gqa")}
        return graph.call_function(masked_attention, (*node.args[:3], mask, axis), arguments)
    value = node.args[0].meta["val"]  # type: ignore[union-attr]
    trailing = value.dim() - 2 if kind is SiteKind.CHANNEL else 0
    return graph.call_function(multiply_by_mask, (node.args[0], mask, axis, trailing))


def _cut(
    module: fx.GraphModule, masks: tuple[fx.Node, ...], symbols: _SymbolNames
) -> tuple[_Part, _Part, tuple[int | None, ...]]:
    """Split into prefix and suffix; also the row axis of each tensor that crosses (None: it has no rows)."""
    graph = module.graph
    needed = _needed(graph, masks)
    random = set(masks)
    for node in graph.nodes:
        if node in needed and not _is_size(node) and any(parent in random for parent in node.all_input_nodes):
            random.add(node)
    refuse_shared_writes(graph, random, needed)
    if graph.output_node().args[0] not in random:
        raise NoDropout("no dropout reaches the prediction: every draw would be the same")
    later = [node for node in graph.nodes if node in random and node in needed and node.op == "call_function"]
    crossing = _ordered(
        parent
        for node in later
        for parent in node.all_input_nodes
        if parent not in random and not _is_size(parent) and parent.op != "get_attr"
    )
    early = _upstream(graph, crossing)
    inputs = [node for node in graph.nodes if node.op == "placeholder" and node not in masks]
    prefix_sizes, suffix_sizes = _sizes_for(early, symbols), _sizes_for(later, symbols)
    prefix = _extract(module, early, (*inputs, *prefix_sizes), tuple(crossing))
    suffix = _extract(module, later, (*crossing, *suffix_sizes, *masks), graph.output_node().args[0])
    return (
        _Part(prefix, tuple(size.meta["val"] for size in prefix_sizes)),
        _Part(suffix, tuple(size.meta["val"] for size in suffix_sizes)),
        tuple(_row_axis(node, symbols) for node in crossing),
    )


def _ordered(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    return list(dict.fromkeys(nodes))


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool))


def _sizes_for(nodes: Sequence[fx.Node], symbols: _SymbolNames) -> list[fx.Node]:
    """Return the sizes that these nodes take; each must follow from the sizes of the inputs."""
    sizes = _ordered(parent for node in nodes for parent in node.all_input_nodes if _is_size(parent))
    for size in sizes:
        free: set[sympy.Symbol] = getattr(_expression(size.meta["val"]), "free_symbols", set())
        if not free <= set(symbols.of_label.values()):
            raise UnsupportedNetwork(f"{size.name} ({find_source(size)}): a size that depends on the data")
    return sizes


def _needed(graph: fx.Graph, masks: tuple[fx.Node, ...]) -> set[fx.Node]:
    """Return what the prediction depends on; assertions and other loose ends fall away."""
    return {*_reach(graph, {graph.output_node()}), *masks}


def _upstream(graph: fx.Graph, ends: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the calls that these nodes depend on, in order, stopping at sizes."""
    reached = _reach(graph, set(ends))
    return [node for node in graph.nodes if node in reached and node.op == "call_function" and not _is_size(node)]


def _reach(graph: fx.Graph, ends: set[fx.Node]) -> set[fx.Node]:
    reached = set(ends)
    for node in reversed(graph.nodes):
        written = find_written(node)
        if node in reached or (written is not None and share_memory(written) & reached):
            reached.add(node)
            if not _is_size(node):
                reached.update(node.all_input_nodes)
    return reached


def _extract(
    module: fx.GraphModule, nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Any
) -> fx.GraphModule:
    """Build a graph of these calls that takes `inputs` and returns `outputs`; weights come along."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {node: graph.placeholder(node.name) for node in inputs}

    def take(old: fx.Node) -> fx.Node:
        if old not in values and old.op == "get_attr":
            values[old] = graph.get_attr(str(old.target))
        return values[old]

    for node in nodes:
        values[node] = graph.node_copy(node, take)
    graph.output(fx.map_arg(outputs, take))
    root = nn.Module()
    for node in graph.nodes:
        if node.op == "get_attr":
            root.register_buffer(node.target, getattr(module, node.target))
    return fx.GraphModule(root, graph)


def _row_axis(node: fx.Node, symbols: _SymbolNames) -> int | None:
    rows = symbols.of_label[ROWS]
    axes = [
        axis
        for axis, size in enumerate(node.meta["val"].shape)
        if rows in getattr(_expression(size), "free_symbols", ())
    ]
    if len(axes) > 1:
        raise UnsupportedNetwork(f"{node.name} ({find_source(node)}): rows stand in more than one axis")
    return axes[0] if axes else None
