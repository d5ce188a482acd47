"""The standard path: what running it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dubito_models.errors import CorruptVersion
from dubito_models.package import ModelVersion
from dubito_models.standard import StandardPath

SCRIPT = """
import sys
from pathlib import Path
from dubito_models.standard import StandardPath
StandardPath(Path(sys.argv[1]).read_bytes(), ["input"], 0)
"""


def test_a_mutated_network_is_refused_or_runs_and_no_other_error_escapes(
    packed: Callable[[str], ModelVersion],
) -> None:
    """A changed weight is for the checksums to find."""
    good = (packed("mlp").folder / "standard.onnx").read_bytes()
    generator, refused = np.random.default_rng(0), 0
    for _ in range(300):
        data = bytearray(good)
        for place in generator.integers(0, len(data), generator.integers(1, 8)):
            data[place] = generator.integers(0, 256)
        try:
            path = StandardPath(bytes(data), ["input"], 0, threads=1)
        except CorruptVersion:
            refused += 1
        else:
            assert len(path.run({"input": np.zeros((2, 6), np.float32)})) == 2
    assert refused >= 50


def test_running_a_network_writes_nothing_to_the_home_of_its_user(
    packed: Callable[[str], ModelVersion], tmp_path: Path
) -> None:
    """onnxruntime reports on its sessions, and keeps what it could not send, unless it is told not to."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    command = [sys.executable, "-c", SCRIPT, str(packed("mlp").folder / "standard.onnx")]
    subprocess.run(command, env={**environment, "HOME": str(tmp_path)}, check=True, capture_output=True)
    assert list(tmp_path.rglob("*")) == []
