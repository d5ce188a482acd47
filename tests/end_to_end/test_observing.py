"""Labels come back to replicas in processes of their own, calibrate anew without a restart, and outlive one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dubito_client import Client, InvalidArgument
from dubito_models.package import ModelVersion
from observed import calibrated, labelled
from postgres import BINARIES, running_postgres

SECONDS = 60.0


@pytest.fixture(scope="module")
def version(packed: Callable[[str], ModelVersion], tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    return calibrated(packed("mlp"), tmp_path_factory.mktemp("served"), rows=200)


@contextmanager
def serving(version: ModelVersion, state: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`dubito serve`, and its address."""
    command = [
        sys.executable, "-c", "from dubito_service.command import serve; serve()", "--repository",
        str(version.folder.parent.parent), "--port", "0", "--state", state, *options,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().split(" on ")[1].strip()
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def dubito(*arguments: str) -> str:
    command = [sys.executable, "-c", "from dubito_client.command import main; main()", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=240).stdout


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path / "state")
        return
    if BINARIES is None:
        pytest.skip("PostgreSQL is not installed")
    with running_postgres() as server:
        yield server.empty()


def test_labels_go_to_any_replica_and_outlive_both(version: ModelVersion, state: str) -> None:
    inputs, labels = labelled(version, 40, seed=1)
    with serving(version, state) as (one, here), serving(version, state) as (_, there):
        with Client(here) as client, Client(there) as other:
            p = client.predict("mlp", inputs, coverage=0.9, stream="ward")
            first = other.observe(p, labels)
            assert (first.rows, first.duplicate) == (40, False)
            assert client.observe(p, labels).duplicate
            with pytest.raises(InvalidArgument, match="other labels"):
                client.observe(p, (labels + 1) % 4)
            assert first.stream is not None
            learned = first.stream
            until(lambda: client.predict("mlp", inputs, coverage=0.9, stream="ward").served_coverage != 0.9)
        one.send_signal(signal.SIGTERM)
        assert one.wait(SECONDS) == 0
    with serving(version, state) as (_, here), Client(here) as client:
        assert client.observe(p, labels).duplicate
        served = client.predict("mlp", inputs, coverage=0.9, stream="ward").served_coverage
        assert served == learned.served_coverage
        until(lambda: bool(client.model("mlp").observed))  # a slow look is not waited for
        [found] = client.model("mlp").observed
        assert (found.rows, found.streams) == (40, (learned,))


def test_a_calibration_from_labels_is_switched_in_without_a_restart_and_back(
    version: ModelVersion, tmp_path: Path
) -> None:
    """By the command line alone."""
    state, receipts = str(tmp_path / "state"), tmp_path / "receipts.jsonl"
    repository = str(version.folder.parent.parent)
    parts = [labelled(version, 30, seed=seed, shift=0.5) for seed in (2, 3)]
    assert version.calibration is not None
    before = version.calibration.id
    with ExitStack() as stack:
        _, address = stack.enter_context(serving(version, state))
        for number, (inputs, _) in enumerate(parts):
            np.save(tmp_path / f"{number}.npy", inputs)
            dubito(
                "predict", "mlp", "--input", str(tmp_path / f"{number}.npy"), "--server", address, "--coverage", "0.9",
                "--receipt", str(receipts),
            )  # fmt: skip
        np.save(tmp_path / "labels.npy", np.concatenate([labels for _, labels in parts]))
        observe = ["observe", str(receipts), "--labels", str(tmp_path / "labels.npy"), "--server", address]
        assert dubito(*observe).startswith("60 labels of 2 predictions\n")
        assert "2 of which had brought theirs before" in dubito(*observe)
        dubito("calibrate", "mlp", "--repository", repository, "--from-observations", "--state", state)
        client = stack.enter_context(Client(address))

        def in_use() -> Any:
            return client.model("mlp").calibration_id

        until(lambda: in_use() != before)
        p = client.predict("mlp", parts[0][0], coverage=0.9)
        assert (p.calibration_id, p.calibration_validity) == (in_use(), "exact")
        info = client.model("mlp").calibration
        assert info is not None
        assert info.score_rows == 60
        dubito("calibrate", "mlp", "--repository", repository, "--use", before)
        until(lambda: in_use() == before)
