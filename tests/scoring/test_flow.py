"""Laws of the flow of blocks: stages overlap, few blocks are alive, and a failure loses nothing before it."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from dubito_batch import flow as flow_module
from dubito_batch.flow import flow


@dataclass(eq=False)
class Block:
    number: int


@dataclass
class Alive:
    """Counts the blocks that exist."""

    now: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def make(self, number: int) -> Block:
        block = Block(number)
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        weakref.finalize(block, self._gone)
        return block

    def _gone(self) -> None:
        with self.lock:
            self.now -= 1


def numbers(count: int, alive: Alive | None = None, broken: int | None = None) -> Iterator[Block]:
    alive = alive or Alive()
    for number in range(count):
        if number == broken:
            raise OSError(f"block {number} cannot be read")
        yield alive.make(number)


def run(
    blocks: Iterator[Block],
    score: Callable[[Block], int] = lambda block: block.number,
    write: Callable[[int], int] = lambda number: number,
    *,
    done: list[int] | None = None,
    workers: int = 2,
    window: Callable[[], int] = lambda: 4,
    stopped: Callable[[], bool] = lambda: False,
) -> list[int]:
    done = [] if done is None else done
    flow(blocks, score, write, done.append, workers=workers, window=window, stopped=stopped)
    return sorted(done)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_block_is_done_with_once(workers: int) -> None:
    assert run(numbers(50), workers=workers) == list(range(50))
    assert run(numbers(0)) == []


@pytest.mark.parametrize("window", [1, 2, 5])
def test_no_more_blocks_are_alive_than_the_window_holds(window: int) -> None:
    alive = Alive()
    assert run(numbers(60, alive), workers=3, window=lambda: window) == list(range(60))
    assert alive.most <= window


def test_reading_scoring_and_writing_overlap() -> None:
    meeting = threading.Barrier(3, timeout=30)

    def blocks() -> Iterator[Block]:
        for number in range(3):
            if number == 2:
                meeting.wait()
            yield Block(number)

    def score(block: Block) -> int:
        if block.number == 1:
            meeting.wait()
        return block.number

    def write(number: int) -> int:
        if number == 0:
            meeting.wait()
        return number

    assert run(blocks(), score, write, workers=1) == [0, 1, 2]


def test_as_many_blocks_are_scored_at_once_as_there_are_workers() -> None:
    meeting = threading.Barrier(3, timeout=30)

    def score(block: Block) -> int:
        meeting.wait()
        return block.number

    assert run(numbers(9), score, workers=3, window=lambda: 5) == list(range(9))


def test_a_block_that_cannot_be_read_ends_the_flow_after_all_before_it() -> None:
    done: list[int] = []
    with pytest.raises(OSError, match="block 7 cannot be read"):
        run(numbers(20, broken=7), done=done)
    assert sorted(done) == list(range(7))


@pytest.mark.parametrize("stage", ["score", "write"])
def test_all_blocks_before_a_failure_are_done_with_and_the_first_failure_is_told(stage: str) -> None:
    late, done = threading.Event(), list[int]()

    def act(number: int) -> int:
        if number == 6:
            late.set()
            raise ValueError("the second")
        if number == 5:
            if stage == "score":
                late.wait(30)
            raise ValueError("the first")
        return number

    scoring = stage == "score"
    score = (lambda block: act(block.number)) if scoring else (lambda block: block.number)
    write = (lambda number: number) if scoring else act
    with pytest.raises(ValueError, match="the first"):
        run(numbers(20), score, write, workers=2 if scoring else 1, done=done)
    assert set(range(5)) <= set(done)
    assert len(done) < 20


@pytest.mark.parametrize("stage", ["score", "write"])
def test_no_block_begins_to_be_scored_after_one_before_it_failed(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    read, second, broken = threading.Event(), threading.Event(), threading.Event()

    def blocks() -> Iterator[Block]:
        for number in range(6):
            yield Block(number)
        read.set()

    def fail(number: int) -> int:
        if number == 0:
            assert read.wait(30)  # till all others wait for the thread that this one has
            assert stage == "score" or second.wait(30)
            broken.set()
            raise OSError("lost")
        return number

    def score(block: Block) -> int:
        begun.append(block.number)
        if block.number == 1:
            second.set()
            broken.wait(30)
            time.sleep(0.05)  # until the failure has left its thread
        return fail(block.number) if stage == "score" else block.number

    real = flow_module.wait

    def slow(*given: Any, **options: Any) -> Any:
        """Learn of what is done long after the threads do."""
        found = real(*given, **options)
        if broken.is_set():
            time.sleep(0.2)
        return found

    monkeypatch.setattr(flow_module, "wait", slow)
    with pytest.raises(OSError, match="lost"):
        run(blocks(), score, fail if stage == "write" else lambda number: number, workers=1, window=lambda: 9)
    assert begun == ([0] if stage == "score" else [0, 1])


def test_once_stopped_nothing_is_begun_and_what_is_scored_is_written() -> None:
    scored: list[int] = []
    stop = threading.Event()

    def score(block: Block) -> int:
        scored.append(block.number)
        if block.number == 4:
            stop.set()
        return block.number

    found = run(numbers(50), score, workers=1, stopped=stop.is_set)
    assert found == scored
    assert 4 in found
    assert len(found) < 10


def test_the_window_may_widen_on_the_way() -> None:
    alive, room = Alive(), [1]

    def score(block: Block) -> int:
        room[0] = 4
        return block.number

    assert run(numbers(20, alive), score, window=lambda: room[0]) == list(range(20))


def test_no_thread_outlives_the_flow() -> None:
    before = threading.active_count()
    run(numbers(5))
    with pytest.raises(OSError, match="block 2"):
        run(numbers(5, broken=2))
    assert threading.active_count() == before
