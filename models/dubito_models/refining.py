"""What draws say, refined by what the gradients with respect to their masks tell: of regressions, and of classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dubito_models.calibration import Calibration
from dubito_models.heads import Head, decode
from dubito_models.linearized import Levels, correct
from dubito_models.predictive import (
    Array,
    Classification,
    Moments,
    Spread,
    concatenate,
    gather,
    split_rows,
    to_numpy,
)
from dubito_models.program import Boundary, StochasticProgram
from dubito_models.sites import SiteKind, Symbols, mean_mask
from dubito_models.thinning import Design, Masks
from dubito_models.variates import (
    GRADIENT_LIMIT,
    Expansion,
    adjusted_spread,
    controls,
    expand,
    known_variance,
    mask_gradients,
)

_MASKS = 1 << 22  # elements of masks at a time
_FAR_DRAWS = 2048  # of linear logits, which stand for all of them
_FAR_NUMBERS = 1 << 22  # of them at a time


class Refiner:
    """Refines the answers of one program, under masks of a seed and a design that all rows share."""

    def __init__(self, program: StochasticProgram, masks: Masks, head: Head) -> None:
        self._program = program
        self._masks = masks
        self._head = head
        self._expansion: Expansion | None = None

    def control(
        self, boundary: Boundary, moments: Moments, scatter: Spread, seed: int, design: Design
    ) -> tuple[Moments, Spread]:
        """Take what is known of a regression's draws out of their chance; draws are moved and stretched alike."""
        assert moments.draws is not None
        if moments.total < 2:
            return moments, scatter
        found = self.controls(boundary, moments.total, moments.draws.shape[-1], seed, design)
        if found is None:
            return moments, scatter
        better = adjusted_spread(moments, *found, self._masks.balances(design))
        assert better.between_draws is not None
        deviations = moments.draws - moments.draws.mean(0)
        own = to_numpy(deviations.square().mean(0))
        stretch = np.sqrt(np.divide(better.between_draws, own, out=np.ones_like(own), where=own > 0.0))
        draws = torch.from_numpy(better.mean) + deviations.cpu() * torch.from_numpy(stretch)
        return replace(moments, draws=draws), replace(better, standard_error=scatter.standard_error)

    def controls(
        self, boundary: Boundary, draws: int, outputs: int, seed: int, design: Design
    ) -> tuple[Tensor, Tensor] | None:
        """Return the control variates (S, B, K) of a run's first draws, and their known variance (B, K), on the device.

        None where the network has none: no site before the last one of a fan-out, or no gradient.
        """
        gradients = self._gradients(boundary, outputs)
        if gradients is None:
            return None
        sites = self._program.sites
        chosen = [*gradients[:-1], None] if self._program.fan_out > 1 else gradients  # a fan averages that chance out
        if all(gradient is None for gradient in chosen):
            return None
        values = []
        with torch.inference_mode():
            for start, count in self._blocks(boundary, 0, draws):
                masks = self._masks.draws(boundary.symbols, seed, design, start, count)
                values.append(controls(chosen, masks, sites))
            return torch.cat(values), known_variance(chosen, sites)

    def can_linearize(self, symbols: Symbols, classes: int) -> bool:
        """Tell whether the gradients of a row's logits are few enough, at these sizes of the free axes."""
        return self._gradient_size(symbols, self._logits(classes)) <= GRADIENT_LIMIT

    def linearize(
        self, boundary: Boundary, moments: Moments, seed: int, design: Design, calibration: Calibration
    ) -> tuple[Classification, Array]:
        """Correct draws by linear logits, rows in blocks; returns the answer, and its standard error (B, K)."""
        balanced, found, classes = self._masks.balances(design), [], moments.mean.shape[-1]
        most = GRADIENT_LIMIT // self._gradient_size(boundary.symbols, self._logits(classes))
        block = max(1, min(most, _FAR_NUMBERS // (max(_FAR_DRAWS, moments.total) * classes)))
        sizes = [min(block, boundary.rows - start) for start in range(0, boundary.rows, block)]
        for part, own in zip(self._program.split(boundary, sizes), split_rows(moments, sizes), strict=True):
            levels = self.levels(part, own, seed, design, calibration)
            assert levels is not None  # or the calibration would not say that it pays
            found.append(correct(levels, balanced))
        answers, errors = zip(*found, strict=True)
        return concatenate(answers), np.concatenate(errors)

    def levels(
        self, boundary: Boundary, draws: Moments, seed: int, design: Design, calibration: Calibration
    ) -> Levels | None:
        """Put linear logits beside draws, which keep themselves; None where there are none to be had."""
        gradients = self._gradients(boundary, self._logits(draws.mean.shape[-1]))
        if gradients is None or self._program.fan_out > 1 or self._head not in (Head.LOGITS, Head.LOGIT):
            return None
        sites, g = self._program.sites, self._masks.group_size
        shapes = self._program.mask_shapes(boundary.symbols)
        with torch.inference_mode():
            means = [torch.full(shape, mean_mask(site)) for shape, site in zip(shapes, sites, strict=True)]
            middle = self._program.suffix(boundary, [mask.to(self._program.device) for mask in means])

            def linear(first: int, count: int, *, keep: bool) -> Moments:
                values = []
                for start, some in self._blocks(boundary, first, count):
                    masks = self._masks.draws(boundary.symbols, seed, design, start, some)
                    values.append(controls(gradients, masks, sites).reshape(some, *middle.shape))
                raw = middle + torch.cat(values)
                counts = [g] * (count // g) + [count % g] * (count % g > 0)
                return gather(calibration.apply(decode(self._head, raw)), counts, keep)

            near = linear(0, draws.total, keep=True)
            beyond = -(-draws.total // g) * g
            return Levels(draws, near, linear(beyond, _FAR_DRAWS // g * g, keep=False))

    def _gradients(self, boundary: Boundary, outputs: int) -> list[Tensor | None] | None:
        """Return the gradients of `mask_gradients`, rows in blocks; None where the network has none."""
        if self._expansion is None:
            self._expansion = expand(self._program)
        if self._expansion is None:
            return None
        block = max(1, GRADIENT_LIMIT // self._gradient_size(boundary.symbols, outputs))
        rows = [min(block, boundary.rows - start) for start in range(0, boundary.rows, block)]
        found = [mask_gradients(self._expansion, part, outputs) for part in self._program.split(boundary, rows)]
        if any(gradients is None for gradients in found):
            return None
        return [None if parts[0] is None else torch.cat(parts) for parts in zip(*found, strict=True)]

    def _logits(self, classes: int) -> int:
        return 1 if self._head is Head.LOGIT else classes

    def _gradient_size(self, symbols: Symbols, outputs: int) -> int:
        """Return how many numbers the gradients of a row are, at most."""
        sites = zip(self._program.sites, self._program.mask_shapes(symbols), strict=True)
        units = sum(math.prod(shape) for site, shape in sites if site.kind is not SiteKind.WEIGHT)
        return max(1, outputs * units)

    def _blocks(self, boundary: Boundary, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Cut draws into whole groups whose masks fit: the first draw and how many."""
        units = max(1, sum(math.prod(shape) for shape in self._program.mask_shapes(boundary.symbols)))
        g = self._masks.group_size
        step = max(1, _MASKS // units // g) * g
        for start in range(first, first + count, step):
            yield start, min(step, first + count - start)
