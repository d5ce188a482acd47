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

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from dubito_models.errors import UnsupportedNetwork
from dubito_models.heads import Decoded
from dubito_models.predictive import Array, Moments, Spread, gather, spread, to_numpy, weighted_mean
from dubito_models.program import Boundary, StochasticProgram
from dubito_models.rewriting import alpha_masked, masked_attention, multiply_by_mask, spread_over_rows
from dubito_models.sites import Site, mask_variance, mean_mask

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
            raw = expansion.graph(*values, *sizes, *masks)
            raw = raw if raw.dim() == 2 else raw.unsqueeze(1)
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
        gradient.unsqueeze(-1).flatten(2).square().sum(-1, dtype=torch.float64) * mask_variance(site)
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
        flat, off = gradient.unsqueeze(-1).flatten(2), mask.unsqueeze(-1) - mean_mask(site)  # (B, K, units)
        if mask.dim() < gradient.dim():
            product = off.flatten(1) @ flat.flatten(0, 1).T
            parts.append(product.reshape(len(mask), *flat.shape[:2]).double())
        else:
            parts.append(torch.einsum("sbu,bku->sbk", off.flatten(2), flat).double())
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
        return Spread(mean, None, None, None)
    plain, linear, _ = np.split(found.variance, 3, -1)
    variance = plain - linear + to_numpy(known)
    between = np.where(variance > 0.0, variance, plain)
    whole = between if moments.within is None else between + weighted_mean(moments.within, moments)
    return Spread(mean, whole, between, np.split(found.standard_error, 3, -1)[2])


def measure_gain(draws: Array, controls: Array, within: Array | None = None) -> float:
    """Return by what controls (S, B, K) divide the mean squared error of the variance of draws (S, B, K).

    `within`: the variance that is known within each draw, where a last layer is integrated. All estimates are
    unbiased, so it is the ratio of the variances over draws of what they average: squared deviations, and what is
    within. Pooled over rows, and over outputs each in its own scale.
    """
    before = (draws - draws.mean(0)) ** 2 + (0.0 if within is None else within)
    after = before - (controls - controls.mean(0)) ** 2
    scale = before.mean((0, 1)) ** 2 + np.finfo(np.float64).tiny
    error, left = (float((values.var(0) / scale).sum()) for values in (before, after))
    return error / left if left > 0.0 else math.inf
