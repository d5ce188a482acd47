"""The engine's benchmark: its document, and the parts of it that say something true on any machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import engine  # noqa: E402
import engine_networks  # noqa: E402


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    path = tmp_path_factory.mktemp("benchmark") / "engine.json"
    threads = torch.get_num_threads()
    try:
        engine.main(["--quick", "--only", "mlp-.2", "--out", str(path)])
    finally:
        torch.set_num_threads(threads)
    found: Mapping[str, Any] = json.loads(path.read_text())
    return found


def test_the_document_says_on_what_and_beside_whom(document: Mapping[str, Any]) -> None:
    assert document["threads"] == 1
    assert set(document["peers"]) == {"baal", "torch-uncertainty"}
    assert [network["network"] for network in document["networks"]] == ["mlp-.2"]


def test_every_cell_has_times_and_ratios_of_the_same_draws(document: Mapping[str, Any]) -> None:
    [network] = document["networks"]
    assert [(cell["rows"], cell["draws asked"], cell["draws"]) for cell in network["speed"]] == [
        (1, 16, 20), (1, 64, 70), (8, 16, 20), (8, 64, 70),
    ]  # fmt: skip
    for cell in network["speed"]:
        times = cell["milliseconds"]
        assert {engine.LOOP, engine.REPEAT, engine.OURS, engine.OWN_SEED, engine.FANNED} <= set(times)
        others = min(value for way, value in times.items() if way not in engine.ALL_OURS)
        assert times[cell["fastest other"]] == others
        for way, gain in cell["times faster at equal draws"].items():
            assert gain == pytest.approx(others / times[way], rel=0.02)


def test_errors_fall_from_the_others_to_balance_to_a_fan_out(document: Mapping[str, Any]) -> None:
    """At 70 draws, 8 seeds: the gains are 4 and 8 in the mean's square, so its root falls well beyond chance."""
    [network] = document["networks"]
    errors = network["errors"][1]
    roots = [errors[way]["mean"]["rms"] for way in (engine.REPEAT, engine.OURS, engine.FANNED)]
    assert roots[0] > 1.3 * roots[1] > 1.3 * roots[2]


def test_decisions_are_settled_with_fewer_draws(document: Mapping[str, Any]) -> None:
    settled = document["networks"][0]["settled decisions"]
    assert settled["rows"] == 100
    assert 10 <= settled["draws, mean over rows"] < settled["draws of the others"]
    assert settled["labels that differ from 4,096 draws"] < 0.02


def test_memory_is_given_for_each_way(document: Mapping[str, Any]) -> None:
    [memory] = document["networks"][0]["memory"]
    assert set(memory["peak megabytes"]) == {engine.REPEAT, engine.OURS}
    assert memory["share of the repeated batch's"][engine.OURS] < 1.0


def test_the_truth_of_our_draws_is_that_of_the_loop(tmp_path: Path) -> None:
    """2,048 draws each: |z| < 4.5 for 80 probabilities, with twice the variance of a mean of so many."""
    case = engine_networks.CASES["mlp-.5"]
    network = engine_networks.train(case, 20)
    x = engine_networks.choose_rows(case, network, 8)
    subject = engine.gather_ways(network, *engine.pack_versions(network, x[:2], tmp_path))
    truth = engine.find_truth(subject.version, x, 2048)
    loop = subject.ways[engine.LOOP](x, 2048, 1)
    noise = np.sqrt(2 * truth.noise["mean"] + 1e-12)
    assert np.sqrt(((loop.mean - truth.answer.mean) ** 2).mean()) < 1.5 * noise
    assert np.abs(loop.mean - truth.answer.mean).max() < 8 * noise


def test_an_unknown_network_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        engine.main(["--only", "mlp"])
    assert caught.value.code == 2
    assert "--only: got mlp; accepted: mlp-.2" in capsys.readouterr().err
