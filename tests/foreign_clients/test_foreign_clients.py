"""Clients of other servers against this one, unchanged, each in a virtual environment of its own.

Our stubs and theirs cannot live in one process. `make foreign-clients` installs them and runs this; where they are not
installed, these tests are skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dubito_models.package import ModelVersion
from houses import pack_houses, write_houses
from served import served

HERE = Path(__file__).parent
REQUIRED = os.environ.get("DUBITO_FOREIGN_CLIENTS") == "required"
SECONDS = 240
CLIENTS = {
    "triton-2.41": "triton_client.py",
    "triton-2.73": "triton_client.py",
    "mlserver": "mlserver_client.py",
    "kserve": "kserve_client.py",
}


@pytest.fixture(scope="module")
def address(packed: Callable[[str], ModelVersion], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("foreign")
    for name in ("mlp", "two-inputs"):
        version = packed(name)
        shutil.copytree(version.folder, folder / "repository" / name / str(version.version))
    pack_houses(folder / "repository", write_houses(folder / "houses.csv"))
    with served(folder) as target:
        yield target


def installed(name: str) -> Path:
    """The virtual environment of a client; skips the test where there is none."""
    environment = HERE / ".venvs" / name
    if not (environment / ".installed").exists():
        assert not REQUIRED, f"{name} is not installed"
        pytest.skip(f"{name} is not installed: make foreign-clients")
    return environment


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("client", CLIENTS)
def test_a_foreign_client_needs_no_work_around(client: str, address: str) -> None:
    print(run(installed(client) / "bin" / "python", HERE / "scripts" / CLIENTS[client], address))


def test_the_readmes_example_runs(tmp_path: Path) -> None:
    python = installed("triton-2.73") / "bin" / "python"
    readme = (HERE.parents[1] / "README.md").read_text()
    packing = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)[0]
    [example] = [block for block in re.findall(r"```py\n(.*?)```", readme, flags=re.DOTALL) if "tritonclient" in block]
    subprocess.run([sys.executable, "-c", packing], cwd=tmp_path, check=True, capture_output=True)
    with served(tmp_path) as target:
        print(run(python, "-c", example.replace("localhost:50051", target)))


@pytest.mark.parametrize("model", ["mlp", "mlp.standard"])
@pytest.mark.parametrize("streaming", [False, True])
def test_perf_analyzer_measures_and_breaks_the_time_down(model: str, streaming: bool, address: str) -> None:
    environment = installed("perf-analyzer")
    libraries = [
        *environment.glob("lib/python*/site-packages/nvidia/cuda_runtime/lib"),
        environment / "usr" / "lib" / "x86_64-linux-gnu",
    ]
    path = {"LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}
    analyzer = environment / "bin" / "perf_analyzer"
    probe = subprocess.run(
        [analyzer, "--help"], env={**os.environ, **path}, capture_output=True, text=True, check=False
    )
    if "error while loading shared libraries" in probe.stderr:
        assert not REQUIRED, probe.stderr
        pytest.skip(probe.stderr)
    asked = ["-m", model, "-u", address, "-i", "grpc", "-b", "4", "--concurrency-range", "2"]
    windows = ["--measurement-mode", "count_windows", "--measurement-request-count", "50", "-s", "1000", "-r", "3"]
    said = run(analyzer, *asked, *windows, *(["--async", "--streaming"] if streaming else []), **path)
    print(said)
    assert re.search(r"Inference count: [1-9]", said)
    assert re.search(r"Avg request latency: \d+ usec \(overhead \d+ usec \+ queue \d+ usec \+ compute input", said)
