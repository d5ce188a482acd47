"""The standard path: what running it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from dubito_models.package import ModelVersion

SCRIPT = """
import sys
from pathlib import Path
from dubito_models.standard import StandardPath
StandardPath(Path(sys.argv[1]).read_bytes(), ["input"], 0)
"""


def test_running_a_network_writes_nothing_to_the_home_of_its_user(
    packed: Callable[[str], ModelVersion], tmp_path: Path
) -> None:
    """onnxruntime reports on its sessions, and keeps what it could not send, unless it is told not to."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    command = [sys.executable, "-c", SCRIPT, str(packed("mlp").folder / "standard.onnx")]
    subprocess.run(command, env={**environment, "HOME": str(tmp_path)}, check=True, capture_output=True)
    assert list(tmp_path.rglob("*")) == []
