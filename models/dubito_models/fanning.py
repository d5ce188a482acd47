"""The last site apart: what comes before it once a draw, what comes after it under many masks, or in closed form.

Both average over the last mask what a draw says, and so take its chance out of the mean (Rao-Blackwellisation; Casella
& Robert 1996); what they average out is known, and added to the variance of a draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from scipy import special
from torch import Tensor, fx

from dubito_models.errors import UnsupportedNetwork
from dubito_models.leading import lead_with_draws
from dubito_models.parts import Part, extract, ordered
from dubito_models.rewriting import is_view, multiply_by_mask
from dubito_models.sites import Site, SymbolNames, Symbols, find_reached, mask_variance, mean_mask, read_argument

aten = torch.ops.aten
_AFFINE = {aten.add.Tensor, aten.sub.Tensor, aten.rsub.Scalar, aten.mul.Tensor, aten.div.Tensor}
POINTS = 8  # values that stand for a closed form


class _Trunk:
    """What the suffix computes before its last mask enters: it takes what the suffix takes, but that mask."""

    def __init__(self, suffix: fx.GraphModule, sites: int, has_sizes: bool) -> None:
        graph = suffix.graph
        taken = [node for node in graph.nodes if node.op == "placeholder"]
        self.given, self.masks = taken[:-sites], taken[-sites:]
        reached = find_reached(graph, self.masks[-1:])
        calls = [node for node in graph.nodes if node.op == "call_function"]
        early, self.later = ([node for node in calls if (node in reached) == late] for late in (False, True))
        if any(parent in self.masks[:-1] for node in self.later for parent in node.all_input_nodes):
            raise UnsupportedNetwork("other masks enter after the last one")
        self.crossing = ordered(parent for node in self.later for parent in node.all_input_nodes if parent in early)
        module = extract(suffix, early, (*self.given, *self.masks[:-1]), tuple(self.crossing))
        self.part = Part(module, ())
        self.leads = not has_sizes and set(self.crossing) <= find_reached(graph, self.masks[:-1])
        self._led = lead_with_draws(module) if self.leads else None

    def run(self, values: Sequence[Tensor], sizes: Sequence[int | float], masks: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the values that cross to what comes later, (S, ...) each, under masks (S, ...)."""
        if not self.crossing:
            return ()
        if self._led is not None:
            led: Sequence[Tensor] = self._led(*values, *(mask.unsqueeze(1) for mask in masks))
            return led

        def one(*draw: Tensor) -> Sequence[Tensor]:
            found: Sequence[Tensor] = self.part.module(*values, *sizes, *draw)
            return found

        batched: Sequence[Tensor] = torch.func.vmap(one, randomness="error")(*masks)
        return batched

    def loop(self, values: Sequence[Tensor], sizes: Sequence[int | float], masks: Sequence[Tensor]) -> Sequence[Tensor]:
        """Do the same one by one."""
        draws = [self.part.module(*values, *sizes, *draw) for draw in zip(*masks, strict=True)]
        return [torch.stack(value) for value in zip(*draws, strict=True)]


class Fan:
    """The suffix, its last site under F masks for each draw of the others.

    What comes after the last mask takes what the suffix takes but the masks, what the trunk gives, and its own mask.
    """

    def __init__(self, suffix: fx.GraphModule, sites: int, fan_out: int, has_sizes: bool) -> None:
        if sites < 2:
            raise UnsupportedNetwork("a fan-out needs a site before the last one, whose masks it spares")
        self._fan_out = fan_out
        self._trunk = trunk = _Trunk(suffix, sites, has_sizes)
        inputs = (*trunk.given, *trunk.crossing, trunk.masks[-1])
        self._tail = Part(extract(suffix, trunk.later, inputs, suffix.graph.output_node().args[0]), ())
        drawn = {node.name for node in trunk.crossing}
        self._led = lead_with_draws(self._tail.module, drawn) if trunk.leads else None

    def largest_at(self, names: SymbolNames, symbols: Symbols) -> int:
        """Return the bytes of the largest value that one draw makes, for these sizes of the free axes."""
        return max(self._trunk.part.largest_at(names, symbols), self._fan_out * self._tail.largest_at(names, symbols))

    def run(self, values: Sequence[Tensor], sizes: Sequence[int | float], masks: Sequence[Tensor]) -> Tensor:
        """Return (S F, N, ...) under masks (S, ...) and, of the last site, (S F, ...)."""
        *early, last = masks
        fan = last.reshape(-1, self._fan_out, *last.shape[1:])
        drawn = self._trunk.run(values, sizes, early)
        if self._led is not None:
            led: Tensor = self._led(*values, *(value.unsqueeze(1) for value in drawn), fan.unsqueeze(2))
            return led.flatten(0, 1)

        def end(drawn: Sequence[Tensor], mask: Tensor) -> Tensor:
            result: Tensor = self._tail.module(*values, *sizes, *drawn, mask)
            return result

        over_fan = torch.func.vmap(end, in_dims=(None, 0), randomness="error")
        found: Tensor = torch.func.vmap(over_fan, randomness="error")(tuple(drawn), fan)
        return found.flatten(0, 1)


class Integral:
    """A suffix that ends in dropout and a linear layer: mean and variance over the last mask are sums over its units.

    Views may follow, and constants that scale and shift, as where a target is standardised. Mean and variance come as
    `POINTS` values that have them, the quantiles of a Gaussian, which the sum of many units nearly is; so what follows
    treats them as a fan-out.
    """

    def __init__(self, suffix: fx.GraphModule, sites: Sequence[Site], has_sizes: bool) -> None:
        self._trunk = trunk = _Trunk(suffix, len(sites), has_sizes)
        end, after = _find_end(suffix.graph)
        hidden, mask, weight, bias = _read_end(end)
        if mask is not trunk.masks[-1] or trunk.crossing not in ([hidden], []):
            raise UnsupportedNetwork("the last site is not the one before the last layer")
        self._place = None if trunk.crossing else trunk.given.index(hidden)
        self._weight = getattr(suffix, str(weight.target))
        self._bias = None if bias is None else getattr(suffix, str(bias.target))
        self._after = extract(suffix, after, (end,), suffix.graph.output_node().args[0]) if after else None
        self._mean, self._variance = mean_mask(sites[-1]), mask_variance(sites[-1])
        self._points = _gaussian_points(self._weight)  # once: it comes from the CPU

    def largest_at(self, names: SymbolNames, symbols: Symbols) -> int:
        """Return the bytes of the largest value that one draw makes, for these sizes of the free axes."""
        return self._trunk.part.largest_at(names, symbols)

    def run(
        self,
        values: Sequence[Tensor],
        sizes: Sequence[int | float],
        masks: Sequence[Tensor],
        *,
        at_once: bool = True,
    ) -> Tensor:
        """Return (S POINTS, N, ...) under masks (S, ...), of which the last one is not looked at."""
        *early, last = masks
        if self._place is not None:
            hidden = values[self._place].expand(len(last), *values[self._place].shape)
        else:
            [hidden] = (self._trunk.run if at_once else self._trunk.loop)(values, sizes, early)
        mean = torch.nn.functional.linear(hidden * self._mean, self._weight, self._bias)  # (S, N, K)
        variance = hidden.square() @ (self._weight.square() * self._variance).T
        points = mean.unsqueeze(1) + variance.sqrt().unsqueeze(1) * self._points  # (S, F, N, K)
        found: Tensor = points.flatten(0, 1)
        return found if self._after is None else torch.func.vmap(self._after)(found)


def _gaussian_points(like: Tensor) -> Tensor:
    """Return `POINTS` quantiles (F, 1, 1) with mean 0 and variance 1."""
    points = torch.as_tensor(special.ndtri((torch.arange(POINTS).double().numpy() + 0.5) / POINTS))
    unit: Tensor = points / points.square().mean().sqrt()
    return unit.to(like).reshape(-1, 1, 1)


def _find_end(graph: fx.Graph) -> tuple[fx.Node, list[fx.Node]]:
    """Return the last node that is neither a view nor scales or shifts by constants, and those that follow it."""
    node: Any = graph.output_node().args[0]
    after: list[fx.Node] = []
    while True:
        if is_view(node):
            before = node.args[0]
        elif node.target in _AFFINE and len(node.all_input_nodes) < 3:
            drawn = [parent for parent in node.all_input_nodes if parent.op != "get_attr"]
            once = len(drawn) == 1 and sum(argument is drawn[0] for argument in node.args) == 1
            keeps = once and (node.target is not aten.div.Tensor or drawn[0] is node.args[0])
            if not keeps or drawn[0].meta["val"].shape != node.meta["val"].shape:
                return node, after
            before = drawn[0]
        else:
            return node, after
        after.insert(0, node)
        node = before


def _read_end(end: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node, fx.Node | None]:
    """Return what is dropped last (N, units), its mask, and the weight and bias of the linear layer that `end` is.

    Raises `UnsupportedNetwork` where it is none.
    """
    if end.target is aten.linear.default:
        dropped, weight, bias = (read_argument(end, name) for name in ("input", "weight", "bias"))
        own = all(part is None or part.op == "get_attr" for part in (weight, bias))
        if own and dropped.target is multiply_by_mask:
            hidden, mask, row_axis, trailing = dropped.args
            if hidden.meta["val"].dim() == 2 and row_axis == 0 and not trailing:
                return hidden, mask, weight, bias
    raise UnsupportedNetwork("the network does not end in dropout and one linear layer")
