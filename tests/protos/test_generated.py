"""The committed code is what the .proto files say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dubito_protos

FOLDER = Path(dubito_protos.__file__).parent


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    bin_folder = Path(sys.executable).parent
    command = [
        sys.executable, "-m", "grpc_tools.protoc", f"-I{FOLDER.parent}", f"--python_out={tmp_path}",
        f"--pyi_out={tmp_path}", f"--grpc_python_out={tmp_path}", f"--mypy_grpc_out={tmp_path}",
        *map(str, sorted(FOLDER.glob("*.proto"))),
    ]  # fmt: skip
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, check=True, env={**os.environ, "PATH": path})
    made = {file.name: file.read_text() for file in (tmp_path / "dubito_protos").iterdir()}
    committed = {file.name: file.read_text() for file in FOLDER.glob("*_pb2*")}
    assert made == committed, "run `make protos` and commit what it writes"
