"""What to make of a bench, in words: how many draws to take, what they cost, how to ask for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dubito_models.benching import Bench, Need, Speed
from dubito_models.heads import Task

GOAL: Mapping[Task, float] = {Task.CLASSIFICATION: 0.01, Task.REGRESSION: 0.1}  # what is recommended for
CHEAP = 1.5  # twice the draws take less than so many times as long: more draws cost little
UNEVEN = 4  # nine rows of ten need so many times the draws of the median row: let a rule decide row by row
DEAR_SEED = 1.5  # a seed of one's own takes so many times as long: worth a word


def time_at(speeds: Sequence[Speed], rows: int, draws: int) -> float | None:
    """Return the milliseconds of a request at a number of rows that was timed, and any number of draws.

    Linear between the draws timed and beyond the most; below the fewest, that of the fewest.
    """
    points = sorted((speed.draws, speed.milliseconds) for speed in speeds if speed.rows == rows and speed.milliseconds)
    if not points:
        return None
    (most, last), (before, previous) = points[-1], points[-2] if len(points) > 1 else (0, 0.0)
    if draws > most:
        return last + max(0.0, last - previous) * (draws - most) / (most - before)
    return float(np.interp(draws, [point[0] for point in points], [point[1] for point in points]))


def goal_of(bench: Bench) -> Need | None:
    """Return the need whose target is nearest to the usual one."""
    if bench.needs is None:
        return None
    return min(bench.needs.needs, key=lambda need: abs(math.log(need.target / GOAL[bench.task])))


def recommend(bench: Bench) -> tuple[str, ...]:
    """Say, point by point, how many draws to take, what they cost, and how to ask for them."""
    goal = goal_of(bench)
    draws = bench.default_draws if goal is None else max(bench.default_draws, goal.nine_tenths)
    timed = sorted({speed.rows for speed in bench.speeds if speed.milliseconds is not None})
    rows = timed[(len(timed) - 1) // 2]
    return (
        *([] if goal is None else _on_draws(bench, goal)),
        *_on_time(bench, rows, draws),
        *_on_rows(bench, timed, draws),
        *_on_seeds(bench, rows, draws),
    )


def _on_draws(bench: Bench, goal: Need) -> list[str]:
    assert bench.needs is not None
    regression = bench.task is Task.REGRESSION
    error = f"a standard error of {goal.target:g}{' median epistemic deviations' if regression else ''}"
    default, wanted = bench.default_draws, goal.nine_tenths
    if bench.drawing.stops:
        more = f", more than the {default} that it takes at most" if wanted > default else ""
        enough = f"{error} takes {goal.median} draws at the median row, {wanted} on nine rows of ten{more}"
        return [f"The calibration's rule ends each row by itself; {enough}."]
    if wanted > default:
        said = [f"Take {wanted} draws for {error} on nine rows of ten; the default {default} leave it at "
                f"{bench.needs.default_error[1]:.2g}."]  # fmt: skip
    else:
        fewer = f"; {wanted} would do" if 2 * wanted <= default else ""
        said = [f"The default {default} draws are enough for {error} on nine rows of ten{fewer}."]
    if wanted > default and wanted >= UNEVEN * goal.median:
        rules = "the stopping rule tolerance gives" if regression else "the stopping rules tolerance and decision give"
        said.append(f"The median row needs only {goal.median}: {rules} each row what it needs.")
    return said


def _on_time(bench: Bench, rows: int, draws: int) -> list[str]:
    once = time_at(bench.speeds, rows, draws)
    if once is None:
        return []
    said = [f"A request of {_rows(rows)} takes about {_about(once)} ms with {draws} draws."]
    twice = time_at(bench.speeds, rows, 2 * draws)
    if twice is None or sum(speed.rows == rows and speed.milliseconds is not None for speed in bench.speeds) < 2:
        return said  # one number of draws tells nothing of others
    share = next(prefix.share for prefix in bench.prefixes if prefix.rows == rows)
    more = "more draws cost little" if twice < CHEAP * once else "the draws are what takes the time"
    before = f"{share:.0%} of a single pass comes before the first dropout and runs once"
    return [*said, f"Twice the draws take {twice / once:.1f} times as long, so {more} ({before})."]


def _on_rows(bench: Bench, timed: Sequence[int], draws: int) -> list[str]:
    least, most = timed[0], timed[-1]
    few, many = (
        {speed.draws: speed.milliseconds for speed in bench.speeds if speed.rows == rows and speed.milliseconds}
        for rows in (least, most)
    )
    both = few.keys() & many.keys()
    if least == most or not both:
        return []
    nearest = min(both, key=lambda count: abs(count - draws))
    factor = many[nearest] / few[nearest]
    advice = "Send rows together" if 2 * factor <= most / least else "Sending rows together gains little"
    return [f"{advice}: {_rows(most)} take {factor:.1f} times as long as {_rows(least)} ({nearest} draws)."]


def _on_seeds(bench: Bench, rows: int, draws: int) -> list[str]:
    some = [speed for speed in bench.speeds if speed.rows == rows and speed.milliseconds is not None]
    nearest = min(some, key=lambda speed: abs(speed.draws - draws))
    if nearest.milliseconds is None or nearest.own_seed_milliseconds is None:
        return []
    factor = nearest.own_seed_milliseconds / nearest.milliseconds
    if factor < DEAR_SEED:
        return []
    return [f"Stay with the default seed, whose masks are kept: another takes {factor:.1f} times as long."]


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _about(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def document(bench: Bench) -> dict[str, Any]:
    """Return a bench as JSON has it, with its rows a second, prefix shares and recommendation."""
    speeds = [{**asdict(speed), "rows_per_second": speed.rows_per_second} for speed in bench.speeds]
    prefixes = [{**asdict(prefix), "share": prefix.share} for prefix in bench.prefixes]
    return {**asdict(bench), "speeds": speeds, "prefixes": prefixes, "recommendation": " ".join(recommend(bench))}
