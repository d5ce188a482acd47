"""The GPU's benchmark, as far as a CPU can tell: the document it writes, its floor, and what it does when short."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_networks  # noqa: E402

import gpu  # noqa: E402

CPU = torch.device("cpu")
ROWS, CLASSES, WIDTH = (1, 4), 10, 96  # of the small perceptron


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    arguments = ["--device", "cpu", "--small", "--out", str(out)]
    for name in ("mlp", "vit-b"):
        arguments += ["--only", name]
    assert gpu.main(arguments) == 0
    return json.loads(out.read_text())


def test_every_cell_says_times_floor_and_launches_of_every_way(document: dict[str, Any]) -> None:
    assert document["left out"] == {}
    assert [network["network"] for network in document["networks"]] == ["mlp", "vit-b"]
    ways = {gpu.LOOP, gpu.REPEAT, gpu.OURS, gpu.OWN_SEED}
    for network in document["networks"]:
        assert set(network["precisions"]) == {"float32", "bfloat16"}
        assert all(found["many draws at once"] for found in network["precisions"].values())
        for cell in network["cells"]:
            assert cell["left out"] == {}
            assert set(cell["milliseconds"]) == set(cell["share of the floor"]) == ways
            floor = max(cell["milliseconds at least"].values())
            for way, taken in cell["milliseconds"].items():
                assert cell["share of the floor"][way] == pytest.approx(floor / taken, rel=0.01)
            if "one call" in cell:
                assert all(found["operators"] > 0 for found in cell["one call"].values())
    cells = [
        (cell["rows"], cell["precision"], cell["draws asked"], "one call" in cell)
        for cell in document["networks"][0]["cells"]
    ]
    assert cells == [(n, how, s, s == 16) for how in ("float32", "bfloat16") for n in ROWS for s in (16, 32)]


def test_the_floor_is_the_arithmetic_of_prefix_once_and_suffix_each_time(document: dict[str, Any]) -> None:
    for cell in document["networks"][0]["cells"]:
        once, each = (2 * cell["rows"] * products for products in (16 * WIDTH, WIDTH * WIDTH + WIDTH * CLASSES))
        assert cell["GFLOP once"] == pytest.approx(once / 1e9, rel=1e-3)
        assert cell["GFLOP a draw"] == pytest.approx(each / 1e9, rel=1e-3)
        rate = max(document["floor"]["TFLOP/s of a product"][cell["precision"]].values()) * 1e12
        expected = (once + cell["draws"] * each) / rate * 1e3
        assert cell["milliseconds at least"]["arithmetic"] == pytest.approx(expected, rel=0.01)


def test_without_time_networks_are_left_out_and_named(tmp_path: Path) -> None:
    out = tmp_path / "results" / "gpu.json"
    assert gpu.main(["--device", "cpu", "--small", "--minutes", "0", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["left out"] == dict.fromkeys(gpu_networks.SMALL, "no time")


def test_without_a_gpu_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "gpu.json"
    assert gpu.main(["--tests", "--out", str(out)]) == gpu.NO_GPU == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert not out.exists()


def test_failed_tests_fail_the_run_and_the_document_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "run_tests", lambda: {"passed": False, "summary": "1 failed"})
    out = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--small", "--minutes", "0", "--tests", "--out", str(out)]
    assert gpu.main(arguments) == 1
    assert json.loads(out.read_text())["tests"]["summary"] == "1 failed"


def test_a_network_in_trouble_costs_none_of_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measure_case(name: str, *rest: object) -> Any:
        if name == "mlp":
            raise RuntimeError("CUDA error\nmore of it")
        yield {"network": name, "cells": []}

    monkeypatch.setattr(gpu, "measure_case", measure_case)
    out = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--small", "--only", "mlp", "--only", "vit-b", "--out", str(out)]
    assert gpu.main(arguments) == 1
    document = json.loads(out.read_text())
    assert document["left out"] == {"mlp": "RuntimeError: CUDA error"}
    assert [network["network"] for network in document["networks"]] == ["vit-b"]


class Narrow(nn.Module):
    """Holds so many rows and no more."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError(f"{len(x)} rows")
        return x


def test_the_repeated_batch_goes_in_passes_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    wide, narrow = (gpu.RepeatedBatch(Narrow(most), gpu.Precision.FLOAT32, CPU) for most in (100, 20))
    assert wide.draws_a_pass(4, 25) == narrow.draws_a_pass(4, 25) == 25
    np.testing.assert_array_equal(wide(x, 25, 1).mean, narrow(x, 25, 1).mean)
    assert narrow.draws_a_pass(4, 25) == 3  # 25, 12, 6, 3 draws of 4 rows
    with pytest.raises(torch.OutOfMemoryError):
        gpu.RepeatedBatch(Narrow(3), gpu.Precision.FLOAT32, CPU)(x, 2, 1)


def test_the_networks_are_those_they_are_named_after() -> None:
    """Parameters: ResNet-50's are 25.6 million (He et al. 2016), ViT-B/16's 86.6 million (Dosovitskiy et al. 2021)."""
    with torch.device("meta"):
        sizes = {name: sum(w.numel() for w in case.build().parameters()) for name, case in gpu_networks.CASES.items()}
    assert sizes["resnet-50, stochastic depth"] == sizes["resnet-50, dropout before the head"] == 25_557_032
    assert sizes["vit-b"] == 86_567_656
