"""Statistics: what each model has answered since the server started, counted from the reports of whoever did it.

Every number is cumulative. Rows, answers and where their time went are of all calls, whatever protocol they came by;
passes are the network's own, however many requests shared one; failures are of this protocol's calls alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field

from dubito_models.standard import Evaluation
from dubito_service.reports import AnswerReport, PassReport, Report


@dataclass(frozen=True, slots=True)
class Path:
    """Which counts: those of a version's Monte Carlo path, or of its standard path."""

    model: str
    version: int
    standard: bool


@dataclass(slots=True)
class Duration:
    """How often something happened, and how long it took in all."""

    count: int = 0
    nanoseconds: int = 0

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.count += 1
        self.nanoseconds += max(0, round(seconds * 1e9))


@dataclass(slots=True)
class Counts:
    """What one path of a version has done; times of answers are from arrival on."""

    last: float = 0.0  # seconds since 1970, of the last answer
    rows: int = 0
    passes: int = 0
    success: Duration = field(default_factory=Duration)
    failure: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)  # until the first pass
    reading: Duration = field(default_factory=Duration)  # and checking, before it was queued
    compute: Duration = field(default_factory=Duration)
    rest: Duration = field(default_factory=Duration)  # waiting between passes, and being handed over
    batches: dict[int, Duration] = field(default_factory=dict)  # passes by rows

    def answered(self, report: AnswerReport, now: float) -> None:
        """Count one more answer."""
        rest = report.total_seconds - report.reading_seconds - report.queue_seconds - report.compute_seconds
        self.last = now
        self.rows += report.rows
        self.success.add(report.total_seconds)
        self.queue.add(report.queue_seconds)
        self.reading.add(report.reading_seconds)
        self.compute.add(report.compute_seconds)
        self.rest.add(rest)

    def passed(self, report: PassReport) -> None:
        """Count one more pass."""
        self.passes += 1
        self.batches.setdefault(report.rows, Duration()).add(report.seconds)


class Statistics:
    """The counts of every version that was asked; told from any thread. `clock`: seconds since 1970."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[Path, Counts] = {}

    def watch(self, report: Report) -> None:
        """Count what a report says."""
        if isinstance(report, AnswerReport):
            standard, now = isinstance(report.answer, Evaluation), self._clock()
            with self._lock:
                self._at(report.version.name, report.version.version, standard).answered(report, now)
        elif isinstance(report, PassReport):
            with self._lock:
                self._at(report.model, report.version, not report.monte_carlo).passed(report)

    def fail(self, path: Path, seconds: float) -> None:
        """Count a request that got no answer."""
        with self._lock:
            self._at(path.model, path.version, path.standard).failure.add(seconds)

    def of(self, path: Path) -> Counts:
        """Return what a path has done so far."""
        with self._lock:
            return deepcopy(self._counts.get(path, Counts()))

    def _at(self, model: str, version: int, standard: bool) -> Counts:
        path = Path(model, version, standard)
        found = self._counts.get(path)
        if found is None:
            found = self._counts[path] = Counts()
        return found
