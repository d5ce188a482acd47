"""What a person sees of a job under way: a bar in a terminal, a line now and then elsewhere; on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from dubito_batch.running import Progress

EVERY = 10.0  # seconds between lines


@contextmanager
def shown(console: Console, clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[Progress], None]]:
    """Show what the yielded function is told."""
    yield from _bar(console) if console.is_terminal else _lines(console, clock)


def tell(progress: Progress) -> str:
    """Say how far a job is, how fast it goes, and how long it will take."""
    said = [f"{progress.rows:,} rows"]
    if progress.total:
        share = min(1.0, progress.rows / progress.total)
        said = [f"{progress.rows:,} of {progress.total:,} rows ({share:.1%})"]
    speed = progress.rows_per_second
    if speed > 0.0:
        said.append(f"{speed:,.0f} rows/s")
        if progress.total is not None:
            said.append(f"{_duration(max(0, progress.total - progress.rows) / speed)} left")
    if progress.mean_draws is not None:
        said.append(f"{progress.mean_draws:.1f} draws a row")
    if progress.invalid:
        said.append(f"{progress.invalid:,} not scored")
    return ", ".join(said)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _bar(console: Console) -> Iterator[Callable[[Progress], None]]:
    columns = (BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task("getting ready", total=None)

        def show(progress: Progress) -> None:
            bars.update(task, description=tell(progress), completed=progress.rows, total=progress.total)

        yield show


def _lines(console: Console, clock: Callable[[], float]) -> Iterator[Callable[[Progress], None]]:
    last: float | None = None

    def show(progress: Progress) -> None:
        nonlocal last
        now = clock()
        if last is None:
            last = now  # when the job begins, which may be long after the command did
        elif now - last >= EVERY:
            last = now
            console.print(tell(progress), soft_wrap=True, markup=False, highlight=False)

    yield show
