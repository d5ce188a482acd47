"""Recorded passes: played again they give what the pass gives, of any rows, and are kept only where that pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from dubito_models.engine import Engine
from dubito_models.package import ModelVersion
from dubito_models.program import Boundary
from dubito_models.recording import KEPT, Play, Recorder, fill_up
from dubito_models.sampling import SamplingSpec
from networks import sample

Packed = Callable[[str], ModelVersion]


class StandIn:
    """A device that records as a GPU does: a recording reads and writes the places that it was made with."""

    def __init__(self, gain: float = 0.5, off: float = 0.0) -> None:
        self.now, self.recorded, self.played = 0.0, 0, 0
        self._gain, self._off = gain, off
        self._playing = False

    def record(self, act: Callable[[], Tensor]) -> tuple[Tensor, Play]:
        self.recorded += 1
        result = act().clone()

        def play() -> None:
            self.played += 1
            self._playing = True
            result.copy_(act() + self._off)

        return result, play

    def wait(self) -> None:
        self.now += 0.0

    def clock(self) -> float:
        """Advance by what was done since: a pass takes one second, a recording `gain` of it."""
        self.now += self._gain if self._playing else 1.0
        self._playing = False
        return self.now


class Broken(StandIn):
    """A device that cannot record."""

    def record(self, act: Callable[[], Tensor]) -> tuple[Tensor, Play]:
        super().record(act)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


def recording(version: ModelVersion, device: StandIn) -> Engine:
    source = version.engine
    recorder = Recorder(device, source.program.select, device.clock)
    return Engine(source.program, source.masks, source.head, source.defaults, vmapped=source.vmaps, recorder=recorder)


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "encoder"])
def test_recorded_passes_answer_as_others_do_whatever_the_rows(packed: Packed, name: str) -> None:
    version, device = packed(name), StandIn()
    engine = recording(version, device)
    for _ in range(2):
        for rows in (1, 3, 5, 5, 6, 5, 11, 12, 10):
            inputs = sample(name, rows)
            given = engine.predict(inputs, SamplingSpec(max_draws=40))
            usual = version.engine.predict(inputs, SamplingSpec(max_draws=40))
            for mine, theirs in zip(values(given.answer), values(usual.answer), strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert device.played > device.recorded > 0


def values(answer: object) -> list[np.ndarray]:
    found = [getattr(answer, field) for field in answer.__dataclass_fields__]  # type: ignore[attr-defined]
    return [value for value in found if isinstance(value, np.ndarray)]


def ask(engine: Engine, times: int, rows: int = 4, **asked: int) -> None:
    for _ in range(times):
        engine.predict(sample("mlp", rows), SamplingSpec(max_draws=20, **asked))


def test_only_what_comes_often_is_recorded_and_each_of_its_sizes_once(packed: Packed) -> None:
    device = StandIn()
    engine = recording(packed("mlp"), device)
    ask(engine, 2)
    assert device.recorded == 0
    ask(engine, 10)
    assert device.recorded == 1
    ask(engine, 10, rows=3)
    assert device.recorded == 2
    before = device.played
    ask(engine, 1, seed=5)  # other masks, of the same sizes
    assert (device.recorded, device.played) == (2, before + 1)


def test_a_recording_that_is_hardly_faster_is_given_up(packed: Packed) -> None:
    device = StandIn(gain=0.95)
    engine = recording(packed("mlp"), device)
    ask(engine, 3)
    tried = device.played
    ask(engine, 10)
    assert (device.recorded, device.played) == (1, tried)


def test_a_pass_that_is_not_recorded_computes_no_rows_but_those_asked() -> None:
    """Before it comes often enough, and once its recording was given up; in between the recording is of 48 rows."""
    device, seen = StandIn(gain=0.95), []

    def act(boundary: Boundary, masks: Sequence[Tensor]) -> Tensor:
        seen.append(boundary.rows)
        return masks[0] + boundary.values[0]

    def select(boundary: Boundary, numbers: Tensor) -> Boundary:
        return Boundary((boundary.values[0][numbers],), {"rows": len(numbers)})

    recorder = Recorder(device, select, device.clock)

    def run(rows: int) -> list[int]:
        seen.clear()
        value = torch.arange(2.0 * rows).reshape(rows, 2)
        assert torch.equal(recorder.run(act, Boundary((value,), {"rows": rows}), [torch.zeros(4, 1, 2)])[3], value)
        return list(seen)

    assert run(33) == run(33) == [33]
    assert set(run(33)) == {33, 48}
    assert device.recorded == 1
    for rows in (33, 40, 48, 33):
        assert run(rows) == [rows]


@pytest.mark.parametrize("device", [StandIn(off=1e-3), Broken()], ids=["another result", "refused"])
def test_what_cannot_be_recorded_rightly_is_not_and_the_answer_is_right(
    packed: Packed, device: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    version = packed("mlp")
    engine = recording(version, device)
    ask(engine, 6)
    assert device.recorded == 1
    assert "pass not recorded rows=4" in caplog.text
    given, usual = (each.predict(sample("mlp", 4), SamplingSpec(max_draws=20)) for each in (engine, version.engine))
    np.testing.assert_array_equal(values(given.answer)[0], values(usual.answer)[0])


def test_no_more_than_so_many_are_kept_and_the_last_used_stay() -> None:
    device = StandIn()
    recorder = Recorder(device, lambda boundary, rows: boundary, device.clock)

    def act(boundary: Boundary, masks: Sequence[Tensor]) -> Tensor:
        return masks[0] + boundary.values[0]

    def run(draws: int) -> None:
        value = torch.full((1, 2), float(draws))
        found = recorder.run(act, Boundary((value,), {"rows": 1}), [torch.zeros(draws, 1, 2)])
        assert torch.equal(found, value.expand(draws, 1, 2))

    for draws in range(1, KEPT + 2):
        for _ in range(3):
            run(draws)
        run(2)
    assert device.recorded == KEPT + 1
    run(2)
    assert device.recorded == KEPT + 1
    for _ in range(3):
        run(1)  # the first one was dropped
    assert device.recorded == KEPT + 2


@pytest.mark.parametrize(("rows", "filled"), [(1, 1), (2, 2), (3, 3), (5, 6), (7, 8), (9, 12), (13, 16), (257, 257)])
def test_rows_are_filled_up_by_less_than_half(rows: int, filled: int) -> None:
    assert fill_up(rows) == filled
    assert all(each <= fill_up(each) < 1.5 * each for each in range(1, 1000))
