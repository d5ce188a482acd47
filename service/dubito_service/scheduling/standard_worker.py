"""The worker of the standard path: a thread of its own, so that it is never behind Monte Carlo work.

Calls for one version with equal shapes share a run of the network; the same scheduler as for draws decides which are
next, and the same rules keep callers from each other (dispatching.py, retrying.py).
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dubito_models.package import ModelVersion
from dubito_models.standard import Evaluation
from dubito_service.errors import DeadlineMissed
from dubito_service.reports import PassReport, StepReport, Watch, WorkerReport, ignore
from dubito_service.scheduling.admission import Admission, Bounds, check_deadline
from dubito_service.scheduling.dispatching import MOST_PARTS, Clock, Dispatcher, Job, blocks, outcomes
from dubito_service.scheduling.pace import Pace
from dubito_service.scheduling.retrying import attempt
from dubito_service.scheduling.scheduler import Priority, Ticket, Tile, schedule

_FIRST_STEP_ROWS = 256  # of a network whose speed is not known yet


@dataclass(frozen=True, slots=True)
class StandardLimits:
    """What the standard worker may take on, in rows; shares of the queue, and seconds."""

    queue_rows: int
    step_rows: int = 4096
    step_seconds: float = 0.05
    patience_seconds: float = 5.0
    gather_seconds: float = 0.0  # that a run may wait for callers to come back, where that pays
    model_share: float = 1.0
    caller_share: float = 1.0

    @property
    def bounds(self) -> Bounds:
        """The bounds of the queue."""
        return Bounds(self.queue_rows, self.model_share, self.caller_share, "rows")


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """Rows that a caller wants evaluated. `inputs`: each (B, ...), validated; `deadline`: on the worker's clock."""

    version: ModelVersion
    inputs: Mapping[str, Tensor]
    rows: int
    deadline: float | None = None
    caller: str = ""
    priority: Priority = Priority.NORMAL

    def cut(self, rows: int) -> list[EvaluationRequest]:
        """Return parts of at most so many rows, in order."""
        if self.rows <= rows:
            return [self]
        return [replace(self, inputs=part, rows=count) for _, count, part in blocks(self.inputs, self.rows, rows)]

    @property
    def key(self) -> tuple[object, ...]:
        """Requests with equal keys can share a run."""
        return (id(self.version), *(tuple(value.shape[1:]) for value in self.inputs.values()))


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An answer of the standard path, and where its time went."""

    evaluation: Evaluation
    queue_seconds: float
    compute_seconds: float


@dataclass(slots=True, eq=False, kw_only=True)
class _Job(Job[Evaluated]):
    request: EvaluationRequest

    def ticket(self, cost: float) -> Ticket:
        """Return the job as the scheduler sees it: one draw."""
        return Ticket(
            number=self.number,
            key=self.request.key,
            rows=self.request.rows,
            wanted=1,
            group_size=1,
            since=self.since,
            cost=cost,
            deadline=self.deadline,
            priority=self.priority,
            cancelled=self.abandoned,
        )


class StandardWorker:
    """Evaluates standard networks in one thread; `evaluate` belongs to one event loop."""

    def __init__(self, limits: StandardLimits, clock: Clock, watch: Watch = ignore) -> None:
        self.admission = Admission(limits.bounds)
        self._limits = limits
        self._clock = clock
        self._watch = watch
        self._dispatcher: Dispatcher[_Job] = Dispatcher(
            "standard",
            self._step,
            _expire,
            clock,
            limits.gather_seconds,
            changed=lambda: watch(WorkerReport(self.alive)),
        )
        self._pace = Pace()
        self._paces: weakref.WeakKeyDictionary[ModelVersion, Pace] = weakref.WeakKeyDictionary()
        self._slowest = 0.0  # seconds of a row of the slowest network, at its fastest
        self._rows_run = 0  # in this step

    def start(self) -> None:
        """Start the thread; the running event loop is the one that it answers to."""
        self._dispatcher.start()

    @property
    def alive(self) -> bool:
        """Whether its thread lives; one that has died is replaced in a second."""
        return self._dispatcher.alive

    @property
    def lost(self) -> bool:
        """Whether its thread has died time and again with no step between."""
        return self._dispatcher.lost

    @property
    def queued_rows(self) -> int:
        """The rows of all requests in flight."""
        return self.admission.work

    def close(self) -> None:
        """Give `Draining` to whoever waits, and let the thread end after its current run."""
        self._dispatcher.close()

    def join(self, timeout: float) -> bool:
        """Wait for the thread to end; False where it takes longer."""
        return self._dispatcher.join(timeout)

    async def evaluate(self, request: EvaluationRequest) -> Evaluated:
        """Answer a request; raises what `DeviceWorker.draw` does. Cancelling it takes it out before the next run."""
        now, deadline, loop = self._clock(), request.deadline, asyncio.get_running_loop()
        pace = self._pace.seconds_per_unit
        with self.admission.hold(request.version.name, request.caller, request.rows, pace):
            most = max(1, int(self._limits.step_rows / self._cost(request.version)), -(-request.rows // MOST_PARTS))
            jobs = [
                _Job(
                    number=next(self._dispatcher.numbers),
                    future=loop.create_future(),
                    arrived=now,
                    since=now,
                    deadline=deadline,
                    priority=request.priority,
                    request=part,
                )
                for part in request.cut(most)
            ]
            if deadline is not None and self.queued_rows * self._slowest > deadline - now:
                own = self._at_least(request.version, request.rows)
                check_deadline(deadline - now, own, lambda: self._seconds_before(jobs[0]))
            with self._dispatcher.carry(jobs, deadline):
                return _join(await outcomes(jobs))

    def _at_least(self, version: ModelVersion, rows: int) -> float:
        pace = self._paces.get(version)
        return 0.0 if pace is None else pace.at_least(rows, self._limits.step_rows / self._cost(version))

    def _seconds_before(self, newcomer: _Job) -> float:
        """Return how long it takes at least to answer whoever goes before a newcomer."""
        own, rows = newcomer.turn(self._limits.patience_seconds), dict[ModelVersion, int]()
        for job in self._dispatcher.waiting:
            if job.turn(self._limits.patience_seconds) < own:
                version = job.request.version
                rows[version] = rows.get(version, 0) + job.request.rows
        return sum(self._at_least(version, count) for version, count in rows.items())

    # From here on everything runs in the thread.

    def _step(self, jobs: Sequence[_Job]) -> None:
        began, self._rows_run = self._clock(), 0
        by_number = {job.number: job for job in jobs}
        step = schedule(
            [job.ticket(self._cost(job.request.version)) for job in jobs],
            self._limits.step_rows,
            began,
            patience=self._limits.patience_seconds,
        )
        for ticket in step.due:
            by_number[ticket.number].outcome = _missed()
        for tile in step.tiles:
            self._run(tile, [by_number[ticket.number] for ticket in tile.tickets])
            self._dispatcher.hand_over(jobs)
        seconds = self._clock() - began
        if self._rows_run:
            self._pace.note(seconds, self._rows_run)
            self._watch(
                StepReport(
                    prefixes=0,
                    seconds=seconds,
                    fill=min(1.0, step.work / self._limits.step_rows),
                    waiting=sum(job.outcome is None and not job.abandoned for job in jobs),
                    queued_work=self.admission.work,
                )
            )

    def _cost(self, version: ModelVersion) -> float:
        """Return the work units of a row: more than 1 where a full step would last too long."""
        pace = self._paces.get(version)
        rate = pace.seconds_per_unit if pace is not None else None
        if rate is None:
            return max(1.0, self._limits.step_rows / _FIRST_STEP_ROWS)
        return max(1.0, rate * self._limits.step_rows / self._limits.step_seconds)

    def _run(self, tile: Tile, jobs: Sequence[_Job]) -> None:
        attempt([job for job in jobs if not job.abandoned], self._evaluate)

    def _evaluate(self, jobs: Sequence[_Job]) -> None:
        """Run the network once for all rows of these jobs, and give each its own."""
        began, version = self._clock(), jobs[0].request.version
        names = list(jobs[0].request.inputs)
        joined = jobs[0].request.inputs
        if len(jobs) > 1:
            joined = {name: torch.cat([job.request.inputs[name] for job in jobs]) for name in names}
        whole = version.evaluate_tensors(joined)
        seconds, rows, start = self._clock() - began, sum(job.request.rows for job in jobs), 0
        for job in jobs:
            end = start + job.request.rows
            own = whole if len(jobs) == 1 else _rows(whole, start, end)
            job.outcome = Evaluated(own, began - job.arrived, seconds)
            start = end
        pace = self._paces.setdefault(version, Pace())
        pace.note(seconds, rows)
        self._slowest = max(self._slowest, pace.fastest)
        self._rows_run += rows
        self._watch(PassReport(version.name, version.version, False, len(jobs), rows, 1, seconds))


def _rows(whole: Evaluation, start: int, end: int) -> Evaluation:
    found = {field.name: getattr(whole, field.name) for field in fields(whole)}
    own: dict[str, Any] = {name: None if value is None else value[start:end] for name, value in found.items()}
    return Evaluation(**own)


def _join(parts: Sequence[Evaluated]) -> Evaluated:
    """Put the answers to the parts of a request together, in their order."""
    if len(parts) == 1:
        return parts[0]
    own: dict[str, Any] = {}
    for field in fields(Evaluation):
        values = [getattr(part.evaluation, field.name) for part in parts]
        own[field.name] = None if values[0] is None else np.concatenate(values)
    queued, computed = min(part.queue_seconds for part in parts), sum(part.compute_seconds for part in parts)
    return Evaluated(Evaluation(**own), queued, computed)


def _expire(job: _Job) -> None:
    job.future.set_exception(_missed())


def _missed() -> DeadlineMissed:
    return DeadlineMissed("the deadline came before the network was run")
