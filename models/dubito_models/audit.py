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

Run = Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found of a program that keeps the laws."""

    parity: float  # largest difference of the bypassed program from the standard path, relative to its scale
    vmapped: bool  # whether many draws can be run by one vmapped pass


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
    parity = difference(calm.cpu(), torch.as_tensor(reference))
    if parity > TOLERANCE:
        raise AuditFailed(
            f"with every dropout bypassed the network is off the standard path by {parity:.2g} of its scale (accepted "
            f"{TOLERANCE}): something besides dropout behaves differently in training mode"
        )
    for number, site in enumerate(program.sites):
        without = [torch.zeros_like(mask) if i == number else mask for i, mask in enumerate(bypass)]
        if torch.equal(program.suffix(boundary, without), calm):
            raise AuditFailed(f"site {site.name} ({site.source}): dropping all of it does not move the prediction")
    several = masks.draws(boundary.symbols, 0, Design.INDEPENDENT, 0, 3)
    _audit_rows(program, boundary, [mask[0] for mask in several], inputs)
    return Audit(parity, _audit_many(program, boundary, several))


def _audit_rows(
    program: StochasticProgram, boundary: Boundary, draw: Sequence[Tensor], inputs: Mapping[str, Tensor]
) -> None:
    together = program.suffix(boundary, draw)
    rows = boundary.symbols[ROWS]
    parts = program.split(boundary, [1] * rows)
    for row in range(rows):
        whole = program.prefix({name: value[row : row + 1].to(program.device) for name, value in inputs.items()})
        for what, alone in (("asked", whole), ("split from the batch", parts[row])):
            gap = difference(program.suffix(alone, draw), together[row : row + 1])
            if gap > TOLERANCE:
                raise AuditFailed(
                    f"a row {what} alone and the same row in a batch differ by {gap:.2g} under the same masks "
                    f"(accepted {TOLERANCE}): rows influence each other, or an axis holds (other, rows)"
                )


def _audit_many(program: StochasticProgram, boundary: Boundary, several: Sequence[Tensor]) -> bool:
    looped = torch.stack([program.suffix(boundary, [mask[i] for mask in several]) for i in range(3)])
    try:
        batched = program.many(boundary, several)
    except Exception:  # an operator without a batching rule; the loop serves
        return False
    return difference(batched, looped) <= TOLERANCE
