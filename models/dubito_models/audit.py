"""The laws that a program must keep before it is packed, and again before it is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dubito_models.errors import AuditFailed
from dubito_models.export import ROWS
from dubito_models.program import Boundary, StochasticProgram
from dubito_models.thinning import Design, Masks

TOLERANCE = 1e-5
_MOST_TOLERANCE = 1e-3  # of networks that make much of float32's rounding, which then is no sign of anything
_ROUNDINGS = 64  # by so much sums in another order may outweigh the rounding of what they add up
ROUNDING = 0.05  # of the draws' standard deviation: what bfloat16 may move them by
_ROUNDED_DRAWS = 32  # by which that is judged, ...
_PASS = 4  # ... so many in one pass
_LEAST_SPREAD = 0.1  # of the usual one: an output that hardly moves in some row is not held to less

Run = Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found of a program that keeps the laws."""

    parity: float  # largest difference of the bypassed program from the standard path, relative to its scale
    vmapped: bool  # whether many draws can be run by one vmapped pass


@dataclass(frozen=True, slots=True)
class Rounding:
    """What rounding does to draws, in their own standard deviations: the most of any output of any row."""

    draw: float  # the root mean square, over draws, of what a single one is off
    mean: float  # what the mean over draws is off
    vmapped: bool  # whether many rounded draws can be run by one vmapped pass


def difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, relative to the larger of 1 and the largest value; inf where shapes differ."""
    if one.shape != other.shape:
        return float("inf")
    one, other = one.double(), other.double()
    scale = max(1.0, float(other.abs().max())) if other.numel() else 1.0
    gap = float((one - other).abs().max()) / scale if one.numel() else 0.0
    return gap if np.isfinite(gap) else float("inf")


def audit(program: StochasticProgram, standard: Run, masks: Masks, samples: Sequence[Mapping[str, Tensor]]) -> Audit:
    """Check the program against its standard path on sample inputs of two rows or more; `AuditFailed` says where.

    With every site bypassed it equals the standard path; the standard path repeats to the bit; every site moves
    the prediction; a row alone is that row in a batch under the same masks; many draws at once are the loop.
    """
    try:
        with torch.inference_mode():
            reports = [_audit_sample(program, standard, masks, sample) for sample in samples]
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise AuditFailed(f"the rewritten program does not run for other rows or sizes: {first}") from error
    return Audit(max(r.parity for r in reports), all(r.vmapped for r in reports))


def _audit_sample(program: StochasticProgram, standard: Run, masks: Masks, inputs: Mapping[str, Tensor]) -> Audit:
    arrays = {name: value.cpu().numpy() for name, value in inputs.items()}
    reference, again = standard(arrays), standard(arrays)
    if reference.tobytes() != again.tobytes():
        raise AuditFailed("two runs of the standard path differ: something in it is random though dropout is off")
    boundary = program.prefix({name: value.to(program.device) for name, value in inputs.items()})
    bypass = program.bypass(boundary.symbols)
    calm = program.suffix(boundary, bypass)
    accepted = _tolerate(calm, program.suffix(boundary, _nudge(bypass)))
    parity = difference(calm.cpu(), torch.as_tensor(reference))
    if parity > accepted:
        raise AuditFailed(
            f"with every dropout bypassed the network is off the standard path by {parity:.2g} of its scale (accepted "
            f"{accepted:.2g}): something besides dropout behaves differently in training mode"
        )
    for number, site in enumerate(program.sites):
        without = [torch.zeros_like(mask) if i == number else mask for i, mask in enumerate(bypass)]
        if torch.equal(program.suffix(boundary, without), calm):
            raise AuditFailed(f"site {site.name} ({site.source}): dropping all of it does not move the prediction")
    several = masks.draws(boundary.symbols, 0, Design.INDEPENDENT, 0, 3)
    _audit_rows(program, boundary, [mask[0] for mask in several], inputs)
    return Audit(parity, _audit_many(program, boundary, several, accepted))


def _nudge(masks: Sequence[Tensor]) -> list[Tensor]:
    """Change every number by one rounding, up or down by chance."""
    chance = torch.Generator().manual_seed(0)
    nudged = []
    for mask in masks:
        sign = 1.0 - 2.0 * torch.randint(0, 2, mask.shape, generator=chance).to(mask)
        nudged.append(mask * (1.0 + sign * torch.finfo(torch.float32).eps))
    return nudged


def _tolerate(found: Tensor, nudged: Tensor) -> float:
    """Return what rounding may explain of a difference, given what it does to the prediction where it is nudged."""
    return min(max(TOLERANCE, _ROUNDINGS * difference(nudged, found)), _MOST_TOLERANCE)


def _audit_rows(
    program: StochasticProgram, boundary: Boundary, draw: Sequence[Tensor], inputs: Mapping[str, Tensor]
) -> None:
    together = program.suffix(boundary, draw)
    nudged = program.suffix(boundary, _nudge(draw))
    rows = boundary.symbols[ROWS]
    parts = program.split(boundary, [1] * rows)
    for row in range(rows):
        whole = program.prefix({name: value[row : row + 1].to(program.device) for name, value in inputs.items()})
        for what, alone in (("asked", whole), ("split from the batch", parts[row])):
            own = together[row : row + 1]
            gap, accepted = difference(program.suffix(alone, draw), own), _tolerate(own, nudged[row : row + 1])
            if gap > accepted:
                raise AuditFailed(
                    f"a row {what} alone and the same row in a batch differ by {gap:.2g} under the same masks "
                    f"(accepted {accepted:.2g}): rows influence each other, or an axis holds (other, rows)"
                )


def _audit_many(program: StochasticProgram, boundary: Boundary, several: Sequence[Tensor], accepted: float) -> bool:
    looped = torch.stack([program.suffix(boundary, [mask[i] for mask in several]) for i in range(3)])
    try:
        batched = program.many(boundary, several)
    except Exception:  # an operator without a batching rule; the loop serves
        return False
    return difference(batched, looped) <= accepted


def audit_fan(
    program: StochasticProgram, masks: Masks, samples: Sequence[Mapping[str, Tensor]], accepted: float
) -> bool:
    """Tell whether a program with a fan-out draws many at once as it does one by one, to `accepted` of the scale."""
    with torch.inference_mode():
        for sample in samples:
            boundary = program.prefix({name: value.to(program.device) for name, value in sample.items()})
            several = masks.draws(boundary.symbols, 0, Design.INDEPENDENT, 0, 3)
            looped = program.loop(boundary, several)
            try:
                batched = program.many(boundary, several)
            except Exception:  # an operator without a batching rule; the loop serves
                return False
            if difference(batched, looped) > accepted:
                return False
    return True


def audit_rounding(
    exact: StochasticProgram, rounded: StochasticProgram, masks: Masks, samples: Sequence[Mapping[str, Tensor]]
) -> Rounding:
    """Hold a program in bfloat16 to the same one in float32, under the same masks; `AuditFailed` has the figures.

    A draw's standard deviation is that of an output in a row, over independent draws; where it is less than a tenth of
    that output's usual one (root mean square over rows), a tenth of the usual one.
    """
    with torch.inference_mode():
        reports = [_audit_rounding(exact, rounded, masks, sample) for sample in samples]
    draw, mean = (float(np.max(errors)) for errors in zip(*((r.draw, r.mean) for r in reports), strict=True))
    if not draw <= ROUNDING:  # nor NaN; and the mean is off by no more than draws are
        raise AuditFailed(
            f"in bfloat16 a draw is off by {draw:.2g} of the draws' standard deviation, and the mean over draws by "
            f"{mean:.2g} (accepted {ROUNDING}); pack with precision float32"
        )
    return Rounding(draw, mean, all(r.vmapped for r in reports))


def _audit_rounding(
    exact: StochasticProgram, rounded: StochasticProgram, masks: Masks, inputs: Mapping[str, Tensor]
) -> Rounding:
    here = {name: value.to(exact.device) for name, value in inputs.items()}
    boundary, other = exact.prefix(here), rounded.prefix(here)
    several = masks.draws(boundary.symbols, 0, Design.INDEPENDENT, 0, _ROUNDED_DRAWS)
    one_by_one = [[mask[i] for mask in several] for i in range(_ROUNDED_DRAWS)]
    expected = torch.stack([exact.suffix(boundary, draw) for draw in one_by_one])
    try:
        passes = [[mask[i : i + _PASS] for mask in several] for i in range(0, _ROUNDED_DRAWS, _PASS)]
        errors = _measure_errors(expected, torch.cat([rounded.many(other, chunk) for chunk in passes]))
    except Exception:  # an operator without a batching rule; the loop serves
        errors = (float("inf"), float("inf"))
    if errors[0] <= ROUNDING:
        return Rounding(*errors, vmapped=True)
    looped = torch.stack([rounded.suffix(other, draw) for draw in one_by_one])
    return Rounding(*_measure_errors(expected, looped), vmapped=False)


def _measure_errors(expected: Tensor, found: Tensor) -> tuple[float, float]:
    """Return the errors of a draw and of the mean over draws, in standard deviations; draws (S, B) or (S, B, K)."""
    exact = expected.double().reshape(*expected.shape[:2], -1)  # (S, B, K)
    gap = found.double().reshape(exact.shape) - exact
    spread = exact.std(0)
    usual = spread.square().mean(0).sqrt()  # (K,)
    least = TOLERANCE * exact.abs().amax((0, 1)).clamp_min(1.0)  # less is rounding in float32 too
    unit = torch.maximum(spread, torch.maximum(_LEAST_SPREAD * usual, least))
    return float((gap.square().mean(0).sqrt() / unit).max()), float((gap.mean(0).abs() / unit).max())
