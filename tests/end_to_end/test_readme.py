"""The README's examples run when pasted, in order, in an empty folder."""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet

README = Path(__file__).parents[2] / "README.md"
DUBITO = str(Path(sys.executable).with_name("dubito"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


@contextlib.contextmanager
def serving(folder: Path, port: int) -> Iterator[None]:
    port_file = folder / "port"
    command = [DUBITO, "serve", "--repository", "repository", "--port", str(port), "--port-file", str(port_file)]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not port_file.exists():
            assert process.poll() is None, "the server ended"
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_the_examples_pack_serve_and_ask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packing, *asking = blocks("python")
    assert len(asking) == 4
    subprocess.run([sys.executable, "-c", packing], cwd=tmp_path, check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    table = {"id": np.arange(3), **{f"x{place}": np.ones(3, np.float32) for place in range(4)}}
    parquet.write_table(arrow.table(table), tmp_path / "flowers.parquet")
    with serving(tmp_path, port):
        for each in asking:
            command = [sys.executable, "-c", each.replace("50051", str(port))]
            subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        np.savetxt(tmp_path / "rows.csv", np.ones((3, 4)), delimiter=",")
        lines = [
            line
            for block in blocks("sh")
            for line in block.splitlines()
            if re.match(r"dubito (models|predict|score)", line)
        ]
        assert len(lines) == 5
        for line in lines:
            words = shlex.split(line.replace("50051", str(port)))
            done = subprocess.run([DUBITO, *words[1:]], cwd=tmp_path, check=True, capture_output=True, text=True)
            assert done.stdout.strip()
        for output in ("scored", "served"):
            assert parquet.read_table(tmp_path / output).column_names[:6] == [*table, "dubito_status"]


def test_the_reflection_example_holds_a_request_that_the_server_reads() -> None:
    from google.protobuf import json_format

    from dubito_protos import tensors
    from dubito_protos import uncertainty_pb2 as pb

    [document] = re.findall(r"-d '(\{.*?\})' \\", README.read_text(), flags=re.DOTALL)
    request = json_format.Parse(document, pb.PredictRequest())
    assert tensors.decode(request.inputs[0]).tolist() == [[1.0, 2.0, 3.0, 4.0]]
