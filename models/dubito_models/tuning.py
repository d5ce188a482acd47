"""How many draws ride one pass, chosen by the clock where a version is served: this changes rounding, and no answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from dubito_models.engine import Engine, Run
from dubito_models.recording import OFTEN
from dubito_models.sampling import SamplingSpec

ROWS = (1, 8, 32)  # at which passes are timed; other numbers of rows are run as the nearest lower one
_MOST_DRAWS, _LEAST_DRAWS = 64, 8  # of a timed run
_ROUNDS = 3
_WORTH = 0.95  # a choice has to take less than this of the time of the usual one


@dataclass(frozen=True, slots=True)
class Timing:
    """What was measured at one number of rows: seconds a draw, by how many draws rode a pass (1: the loop)."""

    rows: int
    seconds: Mapping[int, float]
    chosen: int  # draws a pass

    def expect(self, rows: int) -> float:
        """Return the seconds that a draw of more rows will take at most."""
        return self.seconds[self.chosen] * rows / self.rows


def tune(
    engine: Engine,
    make_rows: Callable[[int], Mapping[str, Tensor]],
    seconds: float = 0.3,
    others: Sequence[Engine] = (),
) -> tuple[Timing, ...]:
    """Time passes of several sizes at 1, 8 and 32 rows, and let the engine use the fastest from now on.

    `make_rows` gives inputs of so many rows; `seconds`: what each number of rows may take, but for recording its
    passes. Where a few draws take longer, nothing is timed and passes stay as they are. `others`: engines that make
    passes of the same sizes.
    """
    timings: list[Timing] = []
    passes: dict[int, int] = {}
    for rows in ROWS:
        if timings and timings[-1].expect(rows) * _LEAST_DRAWS > seconds:
            break
        [run] = engine.start([(make_rows(rows), engine.plan(SamplingSpec()))], None)
        timing = _time(engine, run, seconds)
        if timing is None:
            break
        timings.append(timing)
        passes[rows] = timing.chosen * engine.program.bytes_per_draw(run.boundary.symbols)
    for each in (engine, *others):
        each.use_pass_bytes(passes)
    return tuple(timings)


def _time(engine: Engine, run: Run, seconds: float) -> Timing | None:
    usual = engine.pass_size(run.boundary)
    sizes = sorted({1, usual, *(size for size in engine.possible_pass_sizes(run.boundary) if size <= _MOST_DRAWS)})

    def clock(size: int, draws: int) -> float:
        start = time.perf_counter()
        engine.run_passes(run, draws, size)
        return (time.perf_counter() - start) / draws

    slow = seconds / _LEAST_DRAWS
    if clock(1, 1) > slow and clock(1, 1) > slow:  # the first one loads what it needs, too
        return None
    once = clock(usual, _LEAST_DRAWS)
    draws = math.floor(seconds / (once * len(sizes) * _ROUNDS))
    if draws < _LEAST_DRAWS or len(sizes) == 1:
        return None
    draws = min(draws, _MOST_DRAWS)
    if engine.records:  # passes are, once they are served, so they are before they are timed
        for size in sizes * OFTEN:
            engine.run_passes(run, min(size, draws), size)
    rounds = [{size: clock(size, draws) for size in sizes} for _ in range(_ROUNDS)]
    best = {size: min(found[size] for found in rounds) for size in sizes}
    least = min(best.values())
    thrifty = min(size for size, seconds in best.items() if _WORTH * seconds <= least)  # less memory, all but as fast
    return Timing(run.rows, best, thrifty if least < _WORTH * best[usual] else usual)
