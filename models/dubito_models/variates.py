"""Less variance from the same draws of a regression: what of a draw is known without drawing it.

*Control variate.* To first order around the mean masks mu a prediction is y(m) = y(mu) + c(m), where c = sum_i g_i
(m_i - mu_i). Whatever the gradients g, if they do not hang on the draws, c has mean 0 and variance sum_i g_i^2 Var m_i.
So y - c has the mean of y, and Var y is what is estimated of it, less what is estimated of Var c, plus Var c: both stay
unbiased, and only what is not linear is left to chance (control variates with the known coefficient 1; Glasserman 2003,
"Monte Carlo Methods in Financial Engineering", section 4.1). So a gradient may be left out, or be 0, or be rough.
Where balanced groups drop each unit equally often, c adds up to 0 in each: it helps the variance, not the mean.

*Rao-Blackwell.* Where a network ends in dropout and a linear layer, a draw's mean and variance over that last mask are
sums, and the mask need not be drawn (Casella & Robert 1996, "Rao-Blackwellisation of sampling schemes").
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from dubito_models.errors import UnsupportedNetwork
from dubito_models.heads import Decoded
from dubito_models.predictive import Array, Moments, Spread, gather, spread, to_numpy
from dubito_models.program import Boundary, StochasticProgram, _Part
from dubito_models.rewriting import alpha_masked, is_view, masked_attention, multiply_by_mask, spread_over_rows
from dubito_models.sites import Site, read_argument

aten = torch.ops.aten
GRADIENT_LIMIT = 1 << 24  # numbers, over rows, outputs and units
_MASKED = {multiply_by_mask: (1, 2), alpha_masked: (1, 2), masked_attention: (3, 4), spread_over_rows: (0, 1)}
# ... where among the arguments the mask stands, and the row axis


@dataclass(frozen=True, slots=True)
class Expansion:
    """A program's suffix whose masks hold a value for each row, so that one backward pass gives every row's gradient.

    Sites without rows (weights, a decision for a whole network) are left out: `by_row` says which are in.
    """

    program: StochasticProgram
    graph: fx.GraphModule
    by_row: tuple[bool, ...]


def expand(program: StochasticProgram) -> Expansion | None:
    """Prepare a program, on the device where it stays, for `mask_gradients`; None where no site has rows."""
    suffix = program._suffix.module
    graph = fx.Graph()
    graph.output(graph.graph_copy(suffix.graph, {}))
    masks = [node for node in graph.nodes if node.op == "placeholder"][-len(program.sites) :]
    by_row = set()
    for node in list(graph.nodes):
        if node.target is torch.ops.dubito.recurrent.default:
            node.target = _run_recurrent
        if node.target not in _MASKED:
            continue
        mask_place, axis_place = _MASKED[node.target]
        mask, row_axis = node.args[mask_place], node.args[axis_place]
        if row_axis is None:
            continue
        by_row.add(mask)
        with graph.inserting_before(node):
            placed = graph.call_function(_place_rows, (mask, row_axis, _folds_rows(node, mask)))
        node.update_arg(mask_place, placed)
        node.update_arg(axis_place, None)
    found = tuple(mask in by_row for mask in masks)
    return Expansion(program, fx.GraphModule(suffix, graph), found) if any(found) else None


def _folds_rows(node: fx.Node, mask: fx.Node) -> bool:
    """Tell whether heads or windows are folded into the rows of what a mask multiplies."""
    if node.target is spread_over_rows:
        return False
    value: Any = node.args[0]
    trailing: Any = 0 if node.target is masked_attention else node.args[3]
    return bool(mask.meta["rank"] + trailing == value.meta["val"].dim())


def _place_rows(mask: Tensor, row_axis: int, folded: bool) -> Tensor:
    """Lay a mask (B, ...) out as the value that it multiplies: rows at `row_axis`, or folded with the axis after it."""
    placed = mask.movedim(0, row_axis)
    return placed.flatten(row_axis, row_axis + 1) if folded else placed


def _run_recurrent(
    kind: str, x: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], has_biases: bool, *settings: bool
) -> tuple[Tensor, ...]:
    """Run a recurrent layer by torch's own operator, which has a gradient; else as `kernels.recurrent` does.

    In training mode, or cuDNN gives none; its dropout is 0.
    """
    first: Any = list(states) if kind == "lstm" else states[0]
    found: tuple[Tensor, ...] = getattr(torch, kind)(x, first, list(weights), has_biases, 1, 0.0, True, *settings)
    return found


def mean_mask(site: Site) -> float:
    """Return the mean of a mask's element: 1 for a scaled mask, the keep probability for a 0 or 1."""
    return site.kept * (1.0 - site.rate)


def mask_variance(site: Site) -> float:
    """Return the variance of a mask's element: p / (1 - p) for a scaled mask."""
    return site.kept**2 * site.rate * (1.0 - site.rate)


def mask_gradients(
    expansion: Expansion, boundary: Boundary, outputs: int, limit: int = GRADIENT_LIMIT
) -> tuple[Tensor | None, ...] | None:
    """Return per site the gradients (B, K, *mask shape) of each row's first K `outputs` at the mean masks.

    None for a site that is left out, and in the place of all where they were more than `limit` numbers. A gradient that
    is not finite (a root at 0) counts as 0. Raises `UnsupportedNetwork` where the suffix cannot be differentiated.
    """
    program, rows = expansion.program, boundary.rows
    shapes = program.mask_shapes(boundary.symbols)
    units = sum(math.prod(shape) for shape, has_rows in zip(shapes, expansion.by_row, strict=True) if has_rows)
    if rows * outputs * units > limit:
        return None
    sizes = program._suffix.sizes_at(program._symbols, boundary.symbols)
    with torch.inference_mode(False), torch.enable_grad():
        values = [value.clone() if value.is_inference() else value for value in boundary.values]
        masks = [
            torch.full((rows, *shape) if has_rows else shape, mean_mask(site), device=program.device)
            for site, shape, has_rows in zip(program.sites, shapes, expansion.by_row, strict=True)
        ]
        wanted = [mask.requires_grad_() for mask, has_rows in zip(masks, expansion.by_row, strict=True) if has_rows]
        try:
            raw = expansion.graph(*values, *sizes, *masks).reshape(rows, -1)
            found = [
                torch.autograd.grad(raw[:, k].sum(), wanted, retain_graph=True, materialize_grads=True)
                for k in range(outputs)
            ]
        except RuntimeError as error:
            raise UnsupportedNetwork(f"the suffix has no gradient: {str(error).splitlines()[0]}") from error
    each = iter([torch.stack(of_site, 1).nan_to_num(0.0, 0.0, 0.0) for of_site in zip(*found, strict=True)])
    return tuple(next(each) if has_rows else None for has_rows in expansion.by_row)


def known_variance(gradients: Sequence[Tensor | None], sites: Sequence[Site]) -> Tensor:
    """Return the variance (B, K) float64 of the controls of these gradients."""
    parts = [
        gradient.flatten(2).square().sum(-1, dtype=torch.float64) * mask_variance(site)
        for gradient, site in zip(gradients, sites, strict=True)
        if gradient is not None
    ]
    return torch.stack(parts).sum(0)


def controls(gradients: Sequence[Tensor | None], masks: Sequence[Tensor], sites: Sequence[Site]) -> Tensor:
    """Return c (S, B, K) float64 of S draws; masks (S, *mask shape) that rows share, or (S, B, *mask shape)."""
    parts = []
    for gradient, mask, site in zip(gradients, masks, sites, strict=True):
        if gradient is None:
            continue
        flat = gradient.flatten(2)  # (B, K, units)
        if mask.dim() < gradient.dim():
            product = (mask.flatten(1) - mean_mask(site)) @ flat.flatten(0, 1).T
            parts.append(product.reshape(-1, *flat.shape[:2]).double())
        else:
            parts.append(torch.einsum("sbu,bku->sbk", mask.flatten(2) - mean_mask(site), flat).double())
    return torch.stack(parts).sum(0)


def adjusted_spread(
    moments: Moments, controls: Tensor, known: Tensor, balanced: bool, ratio: float | None = None
) -> Spread:
    """Return what `spread` says of `moments`, which keep their draws, once these controls (S, B, K) are taken off.

    `ratio`, where known, is that of the draws less their controls. Where few draws leave a variance at 0 or below, it
    is that without controls.
    """
    assert moments.draws is not None
    beside = torch.cat([moments.draws, controls, moments.draws - controls], -1)  # (S, B, 3 K)
    found = spread(gather(Decoded(mean=beside), moments.count, False), balanced, ratio)
    mean = np.split(found.mean, 3, -1)[2]
    if found.variance is None or found.standard_error is None:
        return Spread(mean, None, None)
    plain, linear, _ = np.split(found.variance, 3, -1)
    variance = plain - linear + to_numpy(known)
    return Spread(mean, np.where(variance > 0.0, variance, plain), np.split(found.standard_error, 3, -1)[2])


def measure_gain(draws: Array, controls: Array) -> float:
    """Return by what these controls divide the mean squared error of a variance: draws, controls (S, B, K).

    Both are unbiased, so it is the ratio of the variances over draws of what they average, the squared deviations.
    Pooled over rows, and over outputs each in its own scale.
    """
    squares = (draws - draws.mean(0)) ** 2
    scale = squares.mean((0, 1)) ** 2 + np.finfo(np.float64).tiny
    left = squares - (controls - controls.mean(0)) ** 2
    before, after = ((values.var(0) / scale).sum() for values in (squares, left))
    return float(before / after) if after > 0.0 else math.inf


@dataclass(frozen=True, slots=True)
class LastLayer:
    """The dropout and the linear layer that a network ends in."""

    body: StochasticProgram  # predicts what is dropped last, (N, units); takes all masks, and leaves the last unused
    site: int  # the number of that dropout
    weight: Tensor  # (width, units)
    bias: Tensor | None  # (width,)


def find_last_layer(program: StochasticProgram) -> LastLayer | None:
    """Find them, where nothing but views follow that make (N, 1) to (N,); None where a network ends otherwise."""
    suffix = program._suffix.module
    prediction: Any = suffix.graph.output_node().args[0]
    last = prediction
    while is_view(last):
        last = last.args[0]
    if last.target is not aten.linear.default:
        return None
    dropped, weight, bias = (read_argument(last, name) for name in ("input", "weight", "bias"))
    follows_nothing = last is prediction or (prediction.meta["val"].dim() == 1 and last.meta["val"].shape[1] == 1)
    own = all(part is None or part.op == "get_attr" for part in (weight, bias))
    if not (follows_nothing and own and dropped.target is multiply_by_mask and len(dropped.users) == 1):
        return None
    hidden, mask, row_axis, trailing = dropped.args
    if hidden.meta["val"].dim() != 2 or row_axis != 0 or trailing:
        return None
    masks = [node for node in suffix.graph.nodes if node.op == "placeholder"][-len(program.sites) :]
    own_bias = None if bias is None else getattr(suffix, bias.target)
    return LastLayer(_up_to(program, hidden), masks.index(mask), getattr(suffix, weight.target), own_bias)


def _up_to(program: StochasticProgram, end: fx.Node) -> StochasticProgram:
    """Return the program that predicts the value of a node of the suffix."""
    suffix = program._suffix
    graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.graph_copy(suffix.module.graph, copied)
    graph.output(copied[end])
    graph.eliminate_dead_code()
    body = copy.copy(program)
    body._suffix = _Part(fx.GraphModule(suffix.module, graph), suffix._sizes)
    body._led = body._lead()
    return body


def run_body(last: LastLayer, boundary: Boundary, masks: Sequence[Tensor]) -> Tensor:
    """Return what is dropped last, (S, B, units), in draws of these masks (S, ...)."""
    hidden = last.body.many(boundary, masks)
    return hidden if hidden.dim() == 3 else hidden.expand(len(masks[0]), *hidden.shape)  # no other mask: one for all


def integrate(last: LastLayer, hidden: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """Return a draw's mean and variance over the last mask, (S, B, K) float64 each; `hidden` (S, B, units)."""
    weight = last.weight[:outputs]
    mean = hidden @ weight.T
    if last.bias is not None:
        mean = mean + last.bias[:outputs]
    squares = weight.square() * mask_variance(last.body.sites[last.site])
    return mean.double(), (hidden.square() @ squares.T).double()
