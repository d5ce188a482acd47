"""A network as pure functions of tensors: a deterministic prefix, and a suffix whose dropout masks are inputs.

`torch.export` gives a graph in which every dropout is a node. Those nodes are rewritten to "multiply by this
mask"; what no mask reaches is the prefix (the same for every draw), the rest is the suffix.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from dubito_models.errors import UnsupportedNetwork
from dubito_models.export import ROWS
from dubito_models.fanning import POINTS, Fan, Integral
from dubito_models.leading import lead_with_draws
from dubito_models.parts import Part, extract, ordered
from dubito_models.pooling import replace_pools
from dubito_models.precision import Precision, hold_weights, round_products
from dubito_models.rewriting import (
    alpha_masked,
    find_source,
    find_written,
    functionalise,
    is_view,
    multiply_by_mask,
    refuse_shared_writes,
    share_memory,
)
from dubito_models.sites import (
    Site,
    SymbolNames,
    Symbols,
    expression_of,
    find_reached,
    is_size,
    name_symbols,
    rewrite_sites,
)


@dataclass(frozen=True, slots=True)
class Boundary:
    """What crosses from prefix to suffix, for some rows: tensors, and the sizes of the free axes."""

    values: tuple[Tensor, ...]
    symbols: Symbols

    @property
    def sizes(self) -> tuple[tuple[str, int], ...]:
        """The sizes of all free axes but the rows'; boundaries where these are equal can be joined."""
        return tuple(sorted((name, size) for name, size in self.symbols.items() if name != ROWS))

    @property
    def rows(self) -> int:
        """The number of rows, N."""
        return self.symbols[ROWS]


aten = torch.ops.aten
_BATCH_NORMS = {aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default}


class StochasticProgram:
    """A network cut into `prefix` and `suffix`; no state of training or evaluation, no randomness of its own."""

    def __init__(
        self,
        exported: ExportedProgram,
        inputs: Mapping[str, Mapping[int, str]],
        output: int = 0,
        precision: Precision = Precision.FLOAT32,
        fan_out: int = 1,
        *,
        integrated: bool = False,
    ) -> None:
        """Rewrite and cut; `inputs` names the inputs in order and their free axes, `output` is a flat index.

        `fan_out`: masks of the last site for each draw of the others (see `many`); `integrated`: all of them at once,
        in closed form. Raises `NoDropout`, `UnknownRandomness` or `UnsupportedNetwork` for what cannot be served.
        """
        module = _lift(exported)
        functionalise(module.graph)
        replace_pools(module.graph)
        _keep_output(module.graph, output)
        _prune(module.graph)
        _refuse_sizes_of_data(module.graph)
        self._symbols = name_symbols(module.graph, inputs)
        self.inputs = tuple(inputs)
        self.sites, masks = rewrite_sites(module.graph, self._symbols)
        self.precision = precision
        self.rounded_products = round_products(module, masks) if precision is Precision.BFLOAT16 else 0
        self._prefix, self._suffix, self._crossing = _cut(module, masks, self._symbols)
        self.fan_out = POINTS if integrated else fan_out
        self.integrated = integrated
        self.device = torch.device("cpu")
        self._prepare()

    def _prepare(self) -> None:
        """Derive the forms of the suffix that run many draws; they share its weights, so anew where these move."""
        hold_weights(self._suffix.module, self.device)
        self._led = None if self._suffix.has_sizes else lead_with_draws(self._suffix.module)
        has_sizes = self._suffix.has_sizes
        self._fan: Fan | Integral | None = None
        if self.integrated:
            self._fan = Integral(self._suffix.module, self.sites, has_sizes)
        elif self.fan_out > 1:
            self._fan = Fan(self._suffix.module, len(self.sites), self.fan_out, has_sizes)

    def to(self, device: torch.device) -> StochasticProgram:
        """Move the weights to a device, in place; returns self."""
        for module in (self._prefix.module, self._suffix.module):
            module.to(device)
            _make_on(module, device)
        self.device = device
        self._prepare()
        return self

    @property
    def way(self) -> str:
        """How many draws are run at once: as a leading axis of plain operators, or vmapped."""
        return "vmapped" if self._led is None else "leading axis"

    def remarks(self) -> tuple[str, ...]:
        """Say what about the places of the dropout its owner should know; none of it keeps the network from serving."""
        graph = self._suffix.module.graph
        found = [
            f"batch norm after dropout ({find_source(node)}): its statistics were taken with dropout on, so on the "
            "standard path it meets another variance (Li et al. 2019); Monte Carlo draws meet the one it knows"
            for node in graph.nodes
            if node.target in _BATCH_NORMS
        ]
        last = graph.output_node().args[0]
        while isinstance(last, fx.Node) and is_view(last):
            last = last.args[0]
        if isinstance(last, fx.Node) and last.target in (multiply_by_mask, alpha_masked):
            found.append(
                f"dropout at the output ({find_source(last)}): it drops predictions themselves, so most of the "
                "disagreement says nothing of the input"
            )
        return tuple(dict.fromkeys(found))

    def mask_shapes(self, symbols: Symbols) -> tuple[tuple[int, ...], ...]:
        """Return the shape of each site's mask, without the row axis, for these sizes of the free axes."""
        named = tuple(sorted((name, size) for name, size in symbols.items() if name != ROWS))
        return _mask_shapes(self.sites, named)

    def symbols_of(self, inputs: Mapping[str, Tensor]) -> Symbols:
        """Return the sizes of the free axes that inputs have, each (B, ...)."""
        return {label: int(inputs[name].shape[axis]) for name, axis, label in self._symbols.origins}

    def prefix(self, inputs: Mapping[str, Tensor]) -> Boundary:
        """Run what every draw shares, once. `inputs`: each (B, ...), in the declared dtype, on the device."""
        symbols = self.symbols_of(inputs)
        sizes = self._prefix.sizes_at(self._symbols, symbols)
        values = self._prefix.module(*(inputs[name] for name in self.inputs), *sizes)
        return Boundary(tuple(values), symbols)

    def suffix(self, boundary: Boundary, masks: Sequence[Tensor]) -> Tensor:
        """Run one draw: masks as `mask_shapes` says; returns the network's raw prediction (N, ...)."""
        sizes = self._suffix.sizes_at(self._symbols, boundary.symbols)
        result: Tensor = self._suffix.module(*boundary.values, *sizes, *masks)
        return result

    def many(self, boundary: Boundary, masks: Sequence[Tensor]) -> Tensor:
        """Run S draws at once, over the leading axis of the masks; returns (S, N, ...).

        With a fan-out F the last site's masks are (S F, ...): each draw of the other sites goes on under F of them in
        turn, and (S F, N, ...) returns. Where the last site is integrated its masks (S, ...) are not looked at, and
        F values return that stand for all masks.
        """
        if self._fan is not None:
            sizes = self._suffix.sizes_at(self._symbols, boundary.symbols)
            return self._fan.run(boundary.values, sizes, masks)
        if self._led is not None:
            led: Tensor = self._led(*boundary.values, *(mask.unsqueeze(1) for mask in masks))
            return led
        fixed = (*boundary.values, *self._suffix.sizes_at(self._symbols, boundary.symbols))

        def one(*masks_of_a_draw: Tensor) -> Tensor:
            result: Tensor = self._suffix.module(*fixed, *masks_of_a_draw)
            return result

        batched: Tensor = torch.func.vmap(one, randomness="error")(*masks)
        return batched

    def loop(self, boundary: Boundary, masks: Sequence[Tensor]) -> Tensor:
        """Do the same one by one."""
        if isinstance(self._fan, Integral):
            sizes = self._suffix.sizes_at(self._symbols, boundary.symbols)
            return self._fan.run(boundary.values, sizes, masks, at_once=False)
        several = self._spread_fan(masks)
        return torch.stack([self.suffix(boundary, draw) for draw in zip(*several, strict=True)])

    def loop_by_row(self, boundary: Boundary, masks: Sequence[Tensor]) -> Tensor:
        """Do what `many_by_row` does one by one."""
        rows, several = self.split(boundary, [1] * boundary.rows), self._spread_fan(masks)
        draws = [
            torch.cat([self.suffix(row, own) for row, *own in zip(rows, *draw, strict=True)])
            for draw in zip(*several, strict=True)
        ]
        return torch.stack(draws)

    def _spread_fan(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """Repeat masks (S, ...) before a fan as often as the last site has its own."""
        *early, last = masks
        return [*(mask.repeat_interleave(self.fan_out, 0) for mask in early), last]

    def many_by_row(self, boundary: Boundary, masks: Sequence[Tensor]) -> Tensor:
        """Run S draws at once of rows that share no mask: masks (S, N, ...); returns what `many` does."""
        masks = self._spread_fan(masks)
        if self._led is not None:
            led: Tensor = self._led(*boundary.values, *masks)
            return led
        crossing = zip(boundary.values, self._crossing, strict=True)  # each row becomes a boundary of its own
        values = [value if axis is None else _lead_with_rows(value, axis, boundary.rows) for value, axis in crossing]
        axes = [None if axis is None else 0 for axis in self._crossing]
        sizes = self._suffix.sizes_at(self._symbols, {**boundary.symbols, ROWS: 1})

        def one(values_of_a_row: Sequence[Tensor], masks_of_a_row: Sequence[Tensor]) -> Tensor:
            result: Tensor = self._suffix.module(*values_of_a_row, *sizes, *masks_of_a_row)
            return result.squeeze(0)

        over_rows = torch.func.vmap(one, in_dims=(axes, 0), randomness="error")
        batched: Tensor = torch.func.vmap(over_rows, in_dims=(None, 0), randomness="error")(values, list(masks))
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

    def select(self, boundary: Boundary, rows: Tensor) -> Boundary:
        """Return the boundary of the rows of these numbers (int64)."""
        at = rows.to(self.device)
        values = []
        for value, axis in zip(boundary.values, self._crossing, strict=True):
            if axis is None:
                values.append(value)
            else:
                fold = value.shape[axis] // boundary.rows
                places = at if fold == 1 else (at[:, None] * fold + torch.arange(fold, device=self.device)).flatten()
                values.append(value.index_select(axis, places))
        return Boundary(tuple(values), {**boundary.symbols, ROWS: len(rows)})

    def bytes_per_draw(self, symbols: Symbols, *, by_row: bool = False) -> int:
        """Return the bytes of the largest value that one draw of the suffix makes, for these sizes.

        `by_row`: of rows that share no mask, which a fan-out takes through the whole suffix.
        """
        if by_row:
            return self.fan_out * self._suffix.largest_at(self._symbols, symbols)
        if self._fan is not None:
            return self._fan.largest_at(self._symbols, symbols)
        return self._suffix.largest_at(self._symbols, symbols)


def _lead_with_rows(value: Tensor, axis: int, rows: int) -> Tensor:
    """Turn (.., rows * c, ..) into (rows, .., c, ..): what each row has of it."""
    return value.reshape(*value.shape[:axis], rows, -1, *value.shape[axis + 1 :]).movedim(axis, 0)


def _make_on(module: fx.GraphModule, device: torch.device) -> None:
    """Let a graph make its own tensors, zeros and numbers of places, on a device: export wrote down where it ran."""

    def moved(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    for node in module.graph.nodes:
        if node.op == "call_function":
            node.args = fx.node.map_aggregate(node.args, moved)
            node.kwargs = fx.node.map_aggregate(node.kwargs, moved)
    module.recompile()


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


def _cut(
    module: fx.GraphModule, masks: tuple[fx.Node, ...], symbols: SymbolNames
) -> tuple[Part, Part, tuple[int | None, ...]]:
    """Split into prefix and suffix; also the row axis of each tensor that crosses (None: it has no rows)."""
    graph = module.graph
    random = find_reached(graph, masks)
    refuse_shared_writes(graph, random)
    later = [node for node in graph.nodes if node in random and node.op == "call_function"]
    later = _with_row_numbers(graph, later)
    crossing = ordered(
        parent
        for node in later
        for parent in node.all_input_nodes
        if parent not in random and parent not in later and not is_size(parent) and parent.op != "get_attr"
    )
    early = _upstream(graph, crossing)
    inputs = [node for node in graph.nodes if node.op == "placeholder" and node not in masks]
    prefix_sizes, suffix_sizes = _sizes_for(early), _sizes_for(later)
    prefix = extract(module, early, (*inputs, *prefix_sizes), tuple(crossing))
    suffix = extract(module, later, (*crossing, *suffix_sizes, *masks), graph.output_node().args[0])
    return (
        Part(prefix, tuple(size.meta["val"] for size in prefix_sizes)),
        Part(suffix, tuple(size.meta["val"] for size in suffix_sizes)),
        tuple(_row_axis(node, symbols) for node in crossing),
    )


def _with_row_numbers(graph: fx.Graph, calls: list[fx.Node]) -> list[fx.Node]:
    """Add what these calls take that follows from sizes alone, such as the rows' own numbers.

    It must be made anew for the rows of each pass: cut out of another batch it would number them wrongly.
    """
    written = {find_written(node) for node in graph.nodes} - {None}
    changed = {member for node in written if node is not None for member in share_memory(node)}
    of_sizes: set[fx.Node] = set()
    for node in graph.nodes:
        makes = node.op == "call_function" and not is_size(node) and node not in changed
        if makes and all(is_size(parent) or parent in of_sizes for parent in node.all_input_nodes):
            of_sizes.add(node)
    wanted = _reach(graph, {parent for node in calls for parent in node.all_input_nodes if parent in of_sizes})
    return [node for node in graph.nodes if node in calls or (node in wanted and node in of_sizes)]


def _sizes_for(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the sizes that these nodes take."""
    return ordered(parent for node in nodes for parent in node.all_input_nodes if is_size(parent))


def _refuse_sizes_of_data(graph: fx.Graph) -> None:
    """Refuse selecting by values: each row must take the same way through the network, whatever it holds."""
    for node in graph.nodes:
        if free_unbacked_symbols(node.meta.get("val")):
            raise UnsupportedNetwork(
                f"{node.name} ({find_source(node)}): a size that depends on the data; write it with torch.where, "
                "a product with a mask, or torch.gather"
            )


def _prune(graph: fx.Graph) -> None:
    """Erase what the prediction does not depend on: assertions, and branches that end elsewhere, random or not."""
    needed = _reach(graph, {graph.output_node()}, through_sizes=True)
    for node in reversed(list(graph.nodes)):
        if node not in needed and node.op != "placeholder":
            graph.erase_node(node)


def _upstream(graph: fx.Graph, ends: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the calls that these nodes depend on, in order, stopping at sizes."""
    reached = _reach(graph, set(ends))
    return [node for node in graph.nodes if node in reached and node.op == "call_function" and not is_size(node)]


def _reach(graph: fx.Graph, ends: set[fx.Node], *, through_sizes: bool = False) -> set[fx.Node]:
    """Return what some nodes depend on, in-place writes to their memory among it."""
    reached = set(ends)
    for node in reversed(graph.nodes):
        written = find_written(node)
        if node in reached or (written is not None and share_memory(written) & reached):
            reached.add(node)
            if through_sizes or not is_size(node):
                reached.update(node.all_input_nodes)
    return reached


def _row_axis(node: fx.Node, symbols: SymbolNames) -> int | None:
    rows = symbols.of_label[ROWS]
    axes = [
        axis
        for axis, size in enumerate(node.meta["val"].shape)
        if rows in getattr(expression_of(size), "free_symbols", ())
    ]
    if len(axes) > 1:
        raise UnsupportedNetwork(f"{node.name} ({find_source(node)}): rows stand in more than one axis")
    return axes[0] if axes else None
