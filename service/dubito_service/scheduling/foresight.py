"""Foresight: whether a request that comes in will be answered by its deadline, from all that was seen lately.

What an answer takes at least is known from the fastest passes. How much longer it takes is not: passes are neither full
nor shared by all where seeds, shapes and networks are many (`Slowness`), and while a request waits others come that go
first (`Demand`). What these leave out is told by how many of those let in were answered too late (`Caution`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from dubito_models.engine import Engine
from dubito_service.errors import DeadlineMissed, QueueFull
from dubito_service.scheduling.admission import check_deadline
from dubito_service.scheduling.dispatching import Clock
from dubito_service.scheduling.drawing import DrawJob, Request, WorkLimits
from dubito_service.scheduling.pace import Caution, Demand
from dubito_service.scheduling.scheduler import Priority
from dubito_service.scheduling.stepping import Stepper


class Foresight:
    """What one worker has learned; belongs to its event loop. `waiting`: the jobs that it has in flight."""

    def __init__(self, stepper: Stepper, waiting: Collection[DrawJob], limits: WorkLimits, clock: Clock) -> None:
        self._stepper = stepper
        self._waiting = waiting
        self._limits = limits
        self._clock = clock
        self._queued = dict.fromkeys(Priority, 0.0)  # seconds that those in flight take at least
        self._demand = Demand()
        self._caution = {priority: Caution() for priority in Priority}

    @contextmanager
    def let_in(self, request: Request, job: DrawJob) -> Iterator[None]:
        """Let a request in and count it as waiting while inside; `job`: its first.

        Raises `DeadlineMissed` or `QueueFull` where it cannot be answered in time. Those that are refused for the
        queue count as load: nobody is to be refused for the sake of others' further draws. Each counts for a step at
        most, so that it takes many of them.
        """
        now, rank = self._clock(), request.priority
        own = self._stepper.at_least(job.engine, request.least_work)
        try:
            self._check(job, own, now)
        except QueueFull:
            seconds = self._stepper.seconds_of(job.engine, request.work)
            self._stepper.refused.add(min(seconds, self._limits.step_seconds), now)
            raise
        level = self._caution[rank].level(now)
        self._demand.note(rank, own, now)
        self._queued[rank] += own
        try:
            yield
        except (DeadlineMissed, QueueFull):
            self._learn(request, level, missed=True)
            raise
        except (asyncio.CancelledError, GeneratorExit):  # who leaves before the deadline tells nothing
            if request.deadline is not None and self._clock() >= request.deadline - self._limits.reply_seconds:
                self._learn(request, level, missed=True)
            raise
        else:
            self._learn(request, level, missed=False)
        finally:
            self._queued[rank] -= own

    def _learn(self, request: Request, level: float, *, missed: bool) -> None:
        """Note whether a request was answered by its deadline, that was let in at a level of caution."""
        if request.deadline is not None:
            self._caution[request.priority].note(missed, level, self._clock())

    def _check(self, job: DrawJob, own: float, now: float) -> None:
        """Refuse a newcomer that cannot be answered in time; `own`: seconds that it takes at least."""
        if job.deadline is None:
            return
        left, slowness = job.deadline - now, self._stepper.slowness.factor
        caution = max(each.level(now) for rank, each in self._caution.items() if rank <= job.priority)
        factor = math.exp(caution) * slowness / self._demand.share(job.priority, now, slowness)
        queued = sum(seconds for rank, seconds in self._queued.items() if rank <= job.priority)
        if own + factor * queued + self._stepper.pace.last > left:  # else there is no need to look at each
            check_deadline(left, own, lambda: self._seconds_before(job, factor))

    def _seconds_before(self, newcomer: DrawJob, factor: float) -> float:
        """Estimate how long it takes to answer whoever goes before a newcomer."""
        own, work = newcomer.turn(self._limits.patience_seconds), dict[Engine, int]()
        for job in self._waiting:
            if job.turn(self._limits.patience_seconds) < own:
                work[job.engine] = work.get(job.engine, 0) + job.least_left
        if not work:
            return 0.0
        least = sum(self._stepper.at_least(engine, left) for engine, left in work.items())
        return factor * least + self._stepper.pace.last  # which is under way
