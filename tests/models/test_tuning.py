"""How many draws ride a pass: chosen by the clock, within the memory that is set, and no answer depends on it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dubito_models import package, tuning
from dubito_models.engine import PASS_BYTES, Engine, Run, choose_pass_bytes
from dubito_models.package import ModelVersion, load_version, make_rows
from dubito_models.packing import pack
from dubito_models.program import Boundary
from dubito_models.recording import Play, Recorder
from dubito_models.sampling import SamplingSpec
from dubito_models.thinning import Design, MaskScope
from networks import build, sample

Packed = Callable[[str], ModelVersion]
Cost = Callable[[int, int], float]  # seconds of a draw, by rows and draws a pass


@pytest.fixture
def version(packed: Packed) -> ModelVersion:
    found = copy.copy(packed("cnn"))
    found.engine = copy.copy(found.engine)
    return found


def tuned(version: ModelVersion, cost: Cost, monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Tune by a clock that goes as `cost` says; returns the chosen draws a pass by rows."""
    now = [0.0]

    def run_passes(run: Run, draws: int, size: int) -> None:
        now[0] += cost(run.rows, size) * draws

    with monkeypatch.context() as patched:
        patched.setattr(version.engine, "run_passes", run_passes)
        patched.setattr(tuning.time, "perf_counter", lambda: now[0])
        return {timing.rows: timing.chosen for timing in version.tune(seconds=1.0)}


def size_at(engine: Engine, rows: int) -> int:
    [run] = engine.start([(sample("cnn", rows), engine.plan(SamplingSpec()))], None)
    return engine.pass_size(run.boundary)


@pytest.mark.parametrize(
    ("cost", "most"),
    [
        (lambda rows, size: 1e-7 * rows * size, 1),  # the loop
        (lambda rows, size: 1e-4 * rows / size, 64),  # as many as there are
        (lambda rows, size: 1e-5 * (8 if rows * size == 32 else 9), None),  # the 32 rows x draws that fit a cache
    ],
)
def test_the_fastest_is_used_from_then_on(
    version: ModelVersion, cost: Cost, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {rows: version.engine.possible_pass_sizes(start(version.engine, rows).boundary) for rows in (1, 8, 32)}
    usual = {rows: size_at(version.engine, rows) for rows in (1, 8, 32)}
    chosen = tuned(version, cost, monkeypatch)
    for rows in (1, 8, 32):
        tried = sorted({usual[rows], *(size for size in sizes[rows] if size <= 64)})
        assert len(tried) >= 2
        least = min(cost(rows, size) for size in tried)
        thrifty = min(size for size in tried if 0.95 * cost(rows, size) <= least)
        expected = thrifty if least < 0.95 * cost(rows, usual[rows]) else usual[rows]
        assert chosen[rows] == expected == size_at(version.engine, rows)
    if most == 1:
        assert set(chosen.values()) == {1}


def start(engine: Engine, rows: int) -> Run:
    [run] = engine.start([(sample("cnn", rows), engine.plan(SamplingSpec()))], None)
    return run


def test_a_small_gain_changes_nothing(version: ModelVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = size_at(version.engine, 8)
    tuned(version, lambda rows, size: 1e-5 * (0.97 if size == 1 else 1.0), monkeypatch)
    assert size_at(version.engine, 8) == usual


def test_a_slow_network_is_not_timed(version: ModelVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuned(version, lambda rows, size: 1.0, monkeypatch) == {}
    assert list(tuned(version, lambda rows, size: 0.002 * rows, monkeypatch)) == [1]


class Lazy:
    """A device that works when it is waited for: launching takes next to nothing, and so it is for the clock.

    `cost`: the seconds of a pass of so many draws, `played`: of one that was recorded.
    """

    def __init__(self, cost: Callable[[int], float], played: Callable[[int], float]) -> None:
        self.cost, self.played = cost, played
        self.now, self.left, self.launched = 0.0, 0.0, 0

    def many(self, boundary: Boundary, masks: Sequence[Tensor]) -> Tensor:
        self.now, self.left, self.launched = self.now + 1e-6, self.left + self.cost(len(masks[0])), self.launched + 1
        return torch.zeros(len(masks[0]), boundary.rows, 4)

    def record(self, act: Callable[[], Tensor]) -> tuple[Tensor, Play]:
        result = act()

        def play() -> None:
            self.left += self.played(len(result))

        return result, play

    def wait(self) -> None:
        self.now, self.left = self.now + self.left, 0.0

    def tune(self, version: ModelVersion, monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
        """Tune the version as if it were on this device; returns the chosen draws a pass by rows."""
        program = version.engine.program
        version.engine._recorder = Recorder(self, program.select, lambda: self.now)
        with monkeypatch.context() as patched:
            patched.setattr(program, "many", self.many)
            patched.setattr(program, "loop", self.many)
            patched.setattr(tuning.time, "perf_counter", lambda: self.now)
            return {timing.rows: timing.chosen for timing in version.tune(seconds=1.0)}


def test_what_a_device_still_has_to_do_is_in_the_time(version: ModelVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is the fastest there, though it launches the most; no recording is faster."""
    device = Lazy(lambda draws: 1e-5 * draws**2, lambda draws: 1e-5 * draws**2)
    assert set(device.tune(version, monkeypatch).values()) == {1}


def test_a_network_that_a_device_is_slow_with_is_not_timed(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Lazy(lambda draws: float(draws), lambda draws: float(draws))
    assert device.tune(version, monkeypatch) == {}
    assert device.launched == 2


def test_a_first_pass_that_loads_what_it_needs_does_not_make_a_network_slow(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Lazy(lambda draws: 1e-4 if device.launched else 1.0, lambda draws: 1e-4)
    assert list(device.tune(version, monkeypatch)) == [1, 8, 32]


def test_passes_are_timed_as_they_are_served_recorded(version: ModelVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording takes a tenth of its pass, whatever the draws: so the largest passes are best."""
    device = Lazy(lambda draws: 1e-3, lambda draws: 1e-4)
    boundary = {rows: start(version.engine, rows).boundary for rows in (1, 8, 32)}
    sizes = {rows: version.engine.possible_pass_sizes(found) for rows, found in boundary.items()}
    usual = {rows: version.engine.pass_size(found) for rows, found in boundary.items()}
    chosen = device.tune(version, monkeypatch)
    for rows, size in chosen.items():
        assert size == max(usual[rows], *(each for each in sizes[rows] if each <= 64))


def test_a_loop_has_nothing_to_choose(version: ModelVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    version.engine.vmaps = False
    monkeypatch.setattr(version.engine, "_pass_bytes", 1)
    assert version.tune() == ()


def test_no_pass_outgrows_the_memory_that_is_set(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    source = packed("cnn").engine
    boundary = start(source, 8).boundary
    one = source.program.bytes_per_draw(boundary.symbols)
    engine = Engine(source.program, source.masks, source.head, source.defaults, pass_bytes=3 * one)
    passes: list[int] = []
    many = source.program.many

    def counted(boundary: object, masks: list[Tensor]) -> Tensor:
        passes.append(len(masks[0]))
        return many(boundary, masks)  # type: ignore[arg-type]

    monkeypatch.setattr(source.program, "many", counted)
    for limits in ({}, {1: 1 << 30}):
        engine.use_pass_bytes(limits)
        engine.predict(sample("cnn", 8), SamplingSpec(max_draws=400))
        assert passes
        assert max(passes) <= 3
        passes.clear()


def test_passes_may_take_a_share_of_what_a_gpu_has_free_unless_told(
    packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, free = torch.device("cuda", 1), {torch.device("cuda", 1): 80 << 30}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 141 << 30))
    assert choose_pass_bytes(gpu) == 80 << 24
    assert choose_pass_bytes(torch.device("cpu")) == PASS_BYTES
    monkeypatch.setattr(package, "choose_pass_bytes", lambda device: {"cpu": 1 << 22}[device.type])
    version = load_version(packed("cnn").folder)
    assert max(version.engine.possible_pass_sizes(start(version.engine, 8).boundary)) == (1 << 22) // one_draw(version)
    told = load_version(packed("cnn").folder, pass_bytes=1 << 21)
    assert max(told.engine.possible_pass_sizes(start(told.engine, 8).boundary)) == (1 << 21) // one_draw(version)


def one_draw(version: ModelVersion) -> int:
    return version.engine.program.bytes_per_draw(start(version.engine, 8).boundary.symbols)


@pytest.mark.parametrize("name", ["cnn", "fanned"])
@pytest.mark.parametrize("draws", [3, 24])  # of a row that ride a pass: fewer than a group, those of two rows
def test_no_pass_of_rows_apart_outgrows_it_either(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, draws: int
) -> None:
    """A draw of a row takes its largest value, with a fan-out that of the whole suffix as often as it fans."""
    if name == "fanned":
        kind = {"task": "classification", "head": "logits", "fan_out": 4}
        source = pack(build("cnn"), sample("cnn", 2), repository=tmp_path, name="m", **kind).engine
    else:
        source = packed("cnn").engine
    symbols = start(source, 1).boundary.symbols
    one = source.program.fan_out * source.program._suffix.largest_at(source.program._symbols, symbols)
    engine = Engine(source.program, source.masks, source.head, source.defaults, pass_bytes=draws * one)
    inputs = sample("cnn", 9)
    spec = SamplingSpec(max_draws=25, design=Design.INDEPENDENT, scope=MaskScope.ROW, raw_draws=True)
    expected = source.predict(inputs, spec).raw_draws
    passes: list[int] = []
    by_row = source.program.many_by_row

    def counted(boundary: Boundary, masks: Sequence[Tensor]) -> Tensor:
        passes.append(boundary.rows * len(masks[0]))
        return by_row(boundary, masks)

    monkeypatch.setattr(source.program, "many_by_row", counted)
    found = engine.predict(inputs, spec).raw_draws
    assert max(passes) <= draws
    assert sum(passes) == 9 * 25
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder", "lstm"])
def test_answers_stay_the_same_whatever_was_chosen(packed: Packed, name: str) -> None:
    source = packed(name).engine
    inputs, spec = sample(name, 4), SamplingSpec(max_draws=40, raw_draws=True)
    expected = source.predict(inputs, spec).raw_draws
    for limit in (1, 1 << 14, 1 << 30):
        engine = Engine(source.program, source.masks, source.head, source.defaults)
        engine.use_pass_bytes({1: limit})
        found = engine.predict(inputs, spec).raw_draws
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_tuning_runs_on_made_up_rows_of_the_signature(packed: Packed) -> None:
    version = packed("two-inputs")
    made: Mapping[str, Tensor] = make_rows(version.manifest.inputs, 5)
    assert {len(value) for value in made.values()} == {5}
    timings = version.tune(seconds=0.05)
    assert all(timing.seconds[timing.chosen] > 0 for timing in timings)
    version.engine.use_pass_bytes({})
