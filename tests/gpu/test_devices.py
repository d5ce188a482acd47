"""Law 7: what a pass makes, it makes on its program's device, and nothing in it waits for a number.

Torch's meta device stands for a GPU here, so that this is known where there is none: its tensors hold no data, so
whatever reads one, or mixes one with a tensor of the CPU, fails.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpu_cases import ALL, calibrate, make_masks, open_engine, open_program, rows
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dubito_models.engine import wants
from dubito_models.heads import Task, decode
from dubito_models.precision import Precision
from dubito_models.predictive import StopReason, Validity, gather
from dubito_models.sampling import Estimator, SamplingSpec
from dubito_models.stopping import Stopping, StoppingRule
from dubito_models.thinning import Design, MaskScope

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


@pytest.fixture
def numbers_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is fetched from the device be numbers by chance, so that what the CPU makes of them runs too."""
    chance, fetch = torch.Generator().manual_seed(0), Tensor.cpu

    def cpu(values: Tensor) -> Tensor:
        if values.device.type != "meta":
            return fetch(values)
        return torch.rand(values.shape, generator=chance).to(values.dtype)

    monkeypatch.setattr(Tensor, "cpu", cpu)


@pytest.mark.parametrize("name", ["perceptron", "regression", "fanned", "integrated"])
@pytest.mark.usefixtures("numbers_come_back")
def test_calibrating_and_refining_mix_no_devices(name: str) -> None:
    """Linear logits and control variates, stopping, rows together, rows apart, and answers before the last."""
    engine = open_engine(name, META)
    fitted = calibrate(engine, name)
    logits = engine.head.task is Task.CLASSIFICATION and engine.program.fan_out == 1
    calibration = replace(fitted, linearized=logits, control_variate=engine.head.task is Task.REGRESSION)
    estimator = Estimator.LINEARIZED if logits else Estimator.PLAIN
    inputs = dict.fromkeys(engine.program.inputs, rows(name, ROWS))
    for spec in (
        SamplingSpec(estimator=estimator, coverage=0.9, quantiles=(0.1,), joint=True, raw_draws=True),
        SamplingSpec(estimator=estimator, uncalibrated=True, stopping=Stopping(StoppingRule.TOLERANCE, target=0.05)),
        SamplingSpec(scope=MaskScope.ROW, max_draws=20),
    ):
        answer = engine.predict(inputs, spec, calibration)
        assert answer.calibration_validity is not Validity.NONE
    plan = engine.plan(SamplingSpec(estimator=estimator), calibration=calibration)
    [run] = engine.start([(inputs, plan)], calibration)
    [run] = engine.advance([run], wants(run, watched=True))
    [early] = engine.finish([run], StopReason.UNFINISHED)
    assert early.stop_reason == (StopReason.UNFINISHED,) * ROWS
