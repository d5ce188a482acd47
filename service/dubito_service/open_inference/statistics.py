"""Statistics: what each model has answered since the server started, counted from the reports of whoever did it.

Every number is cumulative. Rows, answers and where their time went are of all calls, whatever protocol they came by;
passes are the network's own, however many requests shared one; failures are of this protocol's calls alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from dubito_models.standard import Evaluation
from dubito_service.reports import AnswerReport, PassReport, Report, StepReport


@dataclass(frozen=True, slots=True)
class Path:
    """Which counts: those of a version's Monte Carlo path, or of its standard path."""

    model: str
    version: int
    standard: bool


@dataclass(frozen=True, slots=True)
class Duration:
    """How often something happened, and how long it took in all."""

    count: int = 0
    nanoseconds: int = 0

    def plus(self, seconds: float) -> Duration:
        """Return this with one more."""
        return Duration(self.count + 1, self.nanoseconds + max(0, round(seconds * 1e9)))


@dataclass(frozen=True, slots=True)
class Counts:
    """What one path of a version has done; times of answers are from arrival on."""

    last: float = 0.0  # seconds since 1970, of the last answer
    rows: int = 0
    passes: int = 0
    success: Duration = Duration()
    failure: Duration = Duration()
    queue: Duration = Duration()  # until the first pass
    reading: Duration = Duration()  # and checking, before it was queued
    compute: Duration = Duration()
    rest: Duration = Duration()  # waiting between passes, and being handed over
    batches: Mapping[int, Duration] = field(default_factory=dict)  # passes by rows

    def answered(self, report: AnswerReport, now: float) -> Counts:
        """Return these with one more answer."""
        rest = report.total_seconds - report.reading_seconds - report.queue_seconds - report.compute_seconds
        return replace(
            self,
            last=now,
            rows=self.rows + report.rows,
            success=self.success.plus(report.total_seconds),
            queue=self.queue.plus(report.queue_seconds),
            reading=self.reading.plus(report.reading_seconds),
            compute=self.compute.plus(report.compute_seconds),
            rest=self.rest.plus(rest),
        )

    def failed(self, seconds: float) -> Counts:
        """Return these with one more request that got no answer."""
        return replace(self, failure=self.failure.plus(seconds))


class Statistics:
    """The counts of every version that was asked; told from any thread. `clock`: seconds since 1970."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[Path, Counts] = {}
        self._batches: dict[Path, dict[int, Duration]] = {}  # apart, as there may be thousands of sizes

    def watch(self, report: Report) -> None:
        """Count what a report says."""
        if isinstance(report, AnswerReport):
            standard = isinstance(report.answer, Evaluation)
            path, now = Path(report.version.name, report.version.version, standard), self._clock()
            self._change(path, lambda counts: counts.answered(report, now))
        elif isinstance(report, StepReport):
            for each in report.passes:
                self._pass(each)

    def fail(self, path: Path, seconds: float) -> None:
        """Count a request that got no answer."""
        self._change(path, lambda counts: counts.failed(seconds))

    def of(self, path: Path) -> Counts:
        """Return what a path has done so far."""
        with self._lock:
            batches = dict(self._batches.get(path, {}))
            passes = sum(each.count for each in batches.values())
            return replace(self._counts.get(path, Counts()), passes=passes, batches=batches)

    def _pass(self, report: PassReport) -> None:
        path = Path(report.model, report.version, not report.monte_carlo)
        with self._lock:
            sizes = self._batches.setdefault(path, {})
            sizes[report.rows] = sizes.get(report.rows, Duration()).plus(report.seconds)

    def _change(self, path: Path, change: Callable[[Counts], Counts]) -> None:
        with self._lock:
            self._counts[path] = change(self._counts.get(path, Counts()))
