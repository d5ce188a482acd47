"""Parts of a graph that run by themselves, with sizes evaluated once per shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, fx, nn

from dubito_models.sites import SymbolNames, Symbols, evaluate_size


class Part:
    """A graph of its own: it takes tensors, then the values of `sizes`, then (the suffix) masks.

    What depends on sizes alone is evaluated once per shape.
    """

    def __init__(self, module: fx.GraphModule, sizes: tuple[Any, ...]) -> None:
        self.module = module
        self._sizes = sizes
        self._values: dict[tuple[tuple[str, int], ...], tuple[int | float, ...]] = {}
        self._largest: dict[tuple[tuple[str, int], ...], int] = {}

    @property
    def has_sizes(self) -> bool:
        """Whether the graph takes sizes as numbers."""
        return bool(self._sizes)

    def sizes_at(self, names: SymbolNames, symbols: Symbols) -> tuple[int | float, ...]:
        """Evaluate the sizes that the graph takes, for these sizes of the free axes."""
        if not self._sizes:
            return ()
        key = tuple(symbols.items())
        if key not in self._values:
            named = names.values(symbols)
            _remember(self._values, key, tuple(evaluate_size(size, named) for size in self._sizes))
        return self._values[key]

    def largest_at(self, names: SymbolNames, symbols: Symbols) -> int:
        """Return the bytes of the largest value that the graph makes, for these sizes of the free axes."""
        key = tuple(symbols.items())
        if key not in self._largest:
            named = names.values(symbols)
            values = [node.meta["val"] for node in self.module.graph.nodes if node.op == "call_function"]
            sizes = [
                int(evaluate_size(value.numel(), named)) * value.element_size()
                for value in values
                if isinstance(value, Tensor)
            ]
            _remember(self._largest, key, max(sizes, default=0))
        return self._largest[key]


def _remember(cache: dict[Any, Any], key: object, value: object, most: int = 4096) -> None:
    if len(cache) >= most:
        cache.pop(next(iter(cache)))
    cache[key] = value


def ordered(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """Return each node once, in the order of their first mention."""
    return list(dict.fromkeys(nodes))


def extract(
    module: fx.GraphModule, nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Any
) -> fx.GraphModule:
    """Build a graph of these calls that takes `inputs` and returns `outputs`; weights come along."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        values[node] = graph.placeholder(node.name)
        values[node].meta.update(node.meta)

    def take(old: fx.Node) -> fx.Node:
        if old not in values and old.op == "get_attr":
            values[old] = graph.get_attr(str(old.target))
            values[old].meta.update(old.meta)
        return values[old]

    for node in nodes:
        values[node] = graph.node_copy(node, take)
    graph.output(fx.map_arg(outputs, take))
    root = nn.Module()
    for node in graph.nodes:
        if node.op == "get_attr":
            root.register_buffer(node.target, getattr(module, node.target))
    return fx.GraphModule(root, graph)
