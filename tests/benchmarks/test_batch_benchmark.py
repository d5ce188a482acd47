"""The benchmark of scored tables: its document, and the parts of it that say something true on any machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import batch  # noqa: E402

from dubito_batch.answers import Asked  # noqa: E402


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    path = tmp_path_factory.mktemp("benchmark") / "batch.json"
    threads = torch.get_num_threads()
    try:
        batch.main(["--quick", "--out", str(path)])
    finally:
        torch.set_num_threads(threads)
    found: Mapping[str, Any] = json.loads(path.read_text())
    return found


def test_all_networks_have_their_ratios_to_the_best_loop(document: Mapping[str, Any]) -> None:
    assert set(document["speed"]) == set(batch.NETWORKS)
    for name, speed in document["speed"].items():
        rates = speed["rows per second"]
        assert {batch.LOOP, batch.SAME, batch.PACKED} <= set(rates)
        assert (batch.BFLOAT in rates) == (name in ("digits mlp", batch.CNN))  # before a head alone nothing is rounded
        assert {way["threads"] for way in speed["the loop, tried"]} == {1, 2}
        for way, ratio in speed["times the loop's rows per second"].items():
            assert ratio == pytest.approx(rates[way] / rates[batch.LOOP], rel=0.05)


def test_rules_say_how_many_draws_they_took_and_which_classes_changed(document: Mapping[str, Any]) -> None:
    answers = document["adaptive, digits cnn"]["answers"]
    assert answers[batch.PACKED]["mean draws"] == 40
    for name in ("decision", "tolerance 0.05"):
        assert 10 <= answers[name]["mean draws"] < 40
        assert answers[name]["classes as by 1024 draws"] > 0.9


def test_all_rows_of_the_large_table_are_scored_and_their_memory_is_told(document: Mapping[str, Any]) -> None:
    memory = document["memory"]
    assert memory["rows"] == memory["rows scored"] == 20_000
    assert memory["peak resident MiB"] > 0


def test_the_loop_and_the_job_come_to_the_same_means(tmp_path: Path) -> None:
    """32 draws each of 256 rows, fixed seeds: probabilities differ by what so few draws leave open, and no more."""
    threads = torch.get_num_threads()
    try:
        subject = batch.prepare(batch.NETWORKS["digits mlp"], 256, 3, tmp_path / "made")
        torch.manual_seed(0)
        batch.loop(subject, tmp_path / "loop.parquet", 128, 1)
        batch.job(subject, tmp_path / "job", Asked(draws=batch.DRAWS, design="independent"))
    finally:
        torch.set_num_threads(threads)
    by_hand = np.stack(parquet.read_table(tmp_path / "loop.parquet")["probabilities"].to_numpy())
    job = np.stack(batch.read(tmp_path / "job", "dubito_probabilities"))
    error = np.stack(batch.read(tmp_path / "job", "dubito_standard_error"))
    assert np.sqrt(((by_hand - job) ** 2).mean()) < 2 * np.sqrt(2 * (error**2).mean())
    assert np.abs(by_hand - job).max() < 0.5
