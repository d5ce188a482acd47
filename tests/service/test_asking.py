"""What may be asked: the memory that a request's draws take is known before they are made."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from calibrations import calibration
from dubito_models.package import load_version
from dubito_models.packing import pack
from dubito_models.sampling import SamplingSpec
from dubito_models.stopping import Stopping, StoppingRule
from dubito_service.asking import _working_bytes

ROWS, DRAWS, OUTPUTS = 150, 1000, 32  # 38 MB of draws: past what the C library keeps in its heap
CLEAR = Path("/proc/self/clear_refs")


def high_water() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


@pytest.mark.skipif(not CLEAR.exists(), reason="peaks of memory are read from Linux' /proc")
@pytest.mark.parametrize("case", ["noise", "quantiles", "control", "tolerance"])
def test_what_is_estimated_for_a_requests_draws_is_what_they_take(case: str, tmp_path: Path) -> None:
    """Not less, and no more than four times as much."""
    classes = case == "tolerance"
    width = OUTPUTS if classes else 2 * OUTPUTS
    network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, width)).eval()
    kind = {"task": "classification", "head": "logits"} if classes else {
        "task": "regression", "head": "mean_and_log_variance", "fan_out": 1,
    }  # fmt: skip
    folder = pack(network, torch.randn(2, 4), repository=tmp_path, name="m", **kind).folder
    version = load_version(folder, pass_bytes=1 << 20)
    found = replace(calibration(), control_variate=True) if case == "control" else None
    spec = SamplingSpec(
        DRAWS,
        stopping=Stopping(StoppingRule.TOLERANCE, target=1e-9) if classes else None,
        quantiles=tuple(np.linspace(0.1, 0.9, 4).tolist()) if case == "quantiles" else (),
    )
    inputs = {"input": torch.randn(ROWS, 4)}
    version.engine.predict(inputs, replace(spec, max_draws=20), found)
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    before = high_water()
    version.engine.predict(inputs, spec, found)
    taken = high_water() - before
    assert taken <= _working_bytes(version.engine.plan(spec, None, found), ROWS, version.manifest, found) <= 4 * taken
