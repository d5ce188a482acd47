"""One run of a job in this process: what is missing is read, scored and written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

from dubito_batch.flow import flow
from dubito_batch.memory import Room
from dubito_batch.scoring import Scorer
from dubito_batch.work import Block, Work, Written, total
from dubito_client.errors import DubitoClientError

AHEAD = 2  # blocks under way beside those that are scored: one is read, one is written


class Interrupted(DubitoClientError):
    """The job was told to stop before its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is."""

    total: int | None  # rows; None where the input does not say
    rows: int  # finished, by all runs together
    parts: int  # finished, by all runs together
    scored: int = 0  # rows, by this run
    invalid: int = 0  # of these
    draws: int = 0  # of these
    seconds: float = 0.0  # of this run

    @property
    def mean_draws(self) -> float | None:
        """Draws of a row that this run answered; None before the first."""
        answered = self.scored - self.invalid
        return self.draws / answered if answered else None

    @property
    def rows_per_second(self) -> float:
        """Of this run."""
        return self.scored / self.seconds if self.seconds > 0.0 else 0.0

    def after(self, part: Written, seconds: float) -> Progress:
        """Return how far it is with one more part."""
        return Progress(
            total=self.total,
            rows=self.rows + part.rows,
            parts=self.parts + 1,
            scored=self.scored + part.rows,
            invalid=self.invalid + part.invalid,
            draws=self.draws + part.draws,
            seconds=seconds,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """How a run is looked after."""

    report: Callable[[Progress], None]  # told when it begins, and after every part
    stopped: Callable[[], bool]  # whether it is to end early
    clock: Callable[[], float]  # seconds
    peak: Callable[[], int]  # most bytes that this process has taken so far

    def check(self) -> None:
        """Raise `Interrupted` where the run is to end."""
        if self.stopped():
            raise Interrupted("the job was told to stop")


def score_missing(work: Work, scorer: Scorer, watch: Watch, *, workers: int, limit_memory: int | None) -> Progress:
    """Make every part that is not there, scoring `workers` blocks at once; returns how far the job is then.

    `limit_memory`: bytes of this process. Raises `InvalidArgument` once it has taken more.
    """
    done, rows = work.done()
    start, most = watch.clock(), workers + AHEAD
    room = None if limit_memory is None else Room(limit_memory, most, watch.peak())
    progress = Progress(total=total(work.counts()), rows=rows, parts=len(done))
    watch.report(progress)

    def blocks() -> Iterator[Block]:
        for block in chain.from_iterable(map(work.read, work.missing(done))):
            if room is not None:
                room.begin(block.size)
            yield block
            del block

    def written(part: Written) -> None:
        nonlocal progress
        progress = progress.after(part, watch.clock() - start)
        watch.report(progress)
        if room is not None:
            room.end(part.block, part.size, watch.peak())

    flow(
        blocks(),
        partial(work.score, scorer=scorer),
        work.write,
        written,
        workers=workers,
        window=lambda: most if room is None else room.window,
        stopped=watch.stopped,
    )
    watch.check()
    return progress
