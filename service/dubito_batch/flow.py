"""The flow of blocks: while some are scored, the next is read and the last ones are written, few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from enum import Enum
from typing import Any, TypeVar

R = TypeVar("R")
S = TypeVar("S")
W = TypeVar("W")


class _Stage(Enum):
    READ = 0
    SCORE = 1
    WRITE = 2


def flow(
    blocks: Iterator[R],
    score: Callable[[R], S],
    write: Callable[[S], W],
    written: Callable[[W], None],
    *,
    workers: int,
    window: Callable[[], int],
    stopped: Callable[[], bool],
) -> None:
    """Take every block through `score`, in one of `workers` threads, and `write`, in one thread.

    `written` is told in this thread what `write` returned, in the order in which blocks are done with. At most
    `window` blocks, which is asked each time, are under way at once. A failure ends the reading, and no later
    block begins to be scored; all blocks before it are still done with, and then the first failure in the order of
    blocks is raised. Where `stopped`, nothing new is
    begun, and what is being scored or written comes to its end.
    """
    under_way: dict[Future[Any], tuple[int, _Stage]] = {}
    failure: tuple[int, Exception] | None = None
    read, ended = 0, False
    failed: list[int] = []  # numbers, known to the threads at once: each takes what waits before this one can cancel it

    def attempt(act: Callable[[Any], Any], number: int, block: Any) -> Any:
        try:
            return act(block)
        except Exception:
            failed.append(number)
            raise

    def begin(number: int, block: R) -> Any:
        if any(other < number for other in failed):
            raise CancelledError
        return attempt(score, number, block)

    with ExitStack() as stack:
        reading, scoring, writing = (stack.enter_context(ThreadPoolExecutor(count)) for count in (1, workers, 1))
        stack.callback(lambda: [future.cancel() for future in under_way])
        while True:
            idle = all(stage is not _Stage.READ for _, stage in under_way.values())
            if idle and not ended and failure is None and len(under_way) < max(1, window()) and not stopped():
                under_way[reading.submit(next, blocks, None)] = read, _Stage.READ
                read += 1
            if stopped():
                _cancel_after(-1, under_way)
            if not under_way:
                break
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            while done:
                future = done.pop()
                number, stage = under_way.pop(future)
                if future.cancelled():
                    continue
                error = future.exception()
                if isinstance(error, Exception):
                    if failure is None or number < failure[0]:
                        failure = number, error
                    _cancel_after(failure[0], under_way)
                elif error is not None:
                    raise error
                elif stage is _Stage.WRITE:
                    written(future.result())
                elif stage is _Stage.SCORE:
                    under_way[writing.submit(attempt, write, number, future.result())] = number, _Stage.WRITE
                elif (block := future.result()) is None:
                    ended = True
                else:
                    under_way[scoring.submit(begin, number, block)] = number, _Stage.SCORE
                    del block
                del future  # with the block in it
    if failure is not None:
        raise failure[1]


def _cancel_after(number: int, under_way: Mapping[Future[Any], tuple[int, _Stage]]) -> None:
    """Give up what has not begun to be scored; what is scored is written."""
    for future, (other, stage) in under_way.items():
        if other > number and stage is not _Stage.WRITE:
            future.cancel()
