"""Law 7: what a pass makes, it makes on its program's device, and nothing in it waits for a number.

Torch's meta device stands for a GPU here, so that this is known where there is none: its tensors hold no data, so
whatever reads one, or mixes one with a tensor of the CPU, fails.
"""

from __future__ import annotations

import pytest
import torch
from gpu_cases import ALL, make_masks, open_program, rows
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dubito_models.heads import decode
from dubito_models.precision import Precision
from dubito_models.predictive import gather
from dubito_models.thinning import Design

META = torch.device("meta")
ROWS = 3


class OnTheDevice(TorchDispatchMode):
    """Fails where an operator gives a tensor of the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, (tuple, list)) else (found,):
            assert not isinstance(value, Tensor) or value.device.type == "meta", f"{func} gives {value.device}"
        return found


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("precision", list(Precision))
@torch.inference_mode()
def test_a_pass_stays_on_the_device(name: str, precision: Precision) -> None:
    program = open_program(name, META, precision)
    masks, here = make_masks(program, name), rows(name, ROWS).to(META)
    with OnTheDevice():
        boundary = program.prefix(dict.fromkeys(program.inputs, here))
        drawn = masks.draws(boundary.symbols, 0, Design.BALANCED, 0, 8)
        alone = program.suffix(boundary, [mask[0] for mask in drawn])
        together = program.many(boundary, drawn)
        moments = gather(decode(ALL[name].head, together), [8], keep_draws=True)
    assert together.shape[1:2] == alone.shape[:1] == (ROWS,)
    assert moments.mean.device.type == "meta"


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("design", [Design.BALANCED, Design.INDEPENDENT])
@torch.inference_mode()
def test_masks_are_made_on_the_device(name: str, design: Design) -> None:
    program = open_program(name, META)
    masks, symbols = make_masks(program, name), {"rows": ROWS, "length": ALL[name].shape[0]}
    numbers = torch.arange(ROWS, device=META)
    with OnTheDevice():
        for own in (None, numbers):
            drawn = masks.draws(symbols, 0, design, 3, 5, own)
            rows_too = () if own is None else (ROWS,)
            for mask, shape in zip(drawn, program.mask_shapes(symbols), strict=True):
                assert mask.shape[1:] == (*rows_too, *shape)
