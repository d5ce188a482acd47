"""Drawing: what is asked of a device worker, what it answers, and a request on its way through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from dubito_models.calibration import Calibration
from dubito_models.engine import Engine, Run, wants
from dubito_models.predictive import Predictive, join_answers
from dubito_models.sampling import Plan
from dubito_service.errors import DeadlineMissed
from dubito_service.scheduling.admission import Bounds
from dubito_service.scheduling.dispatching import Job, blocks
from dubito_service.scheduling.scheduler import Priority, Ticket


@dataclass(frozen=True, slots=True)
class WorkLimits:
    """What a device worker may take on: queue and steps in rows x draws, shares of the queue, the rest in seconds."""

    queue_work: int
    step_work: int
    step_seconds: float
    patience_seconds: float
    reply_seconds: float
    overload_seconds: float = float("inf")  # of work that may wait before draws are shed
    gather_seconds: float = 0.0  # that a step may wait for callers to come back, where that pays
    model_share: float = 1.0
    caller_share: float = 1.0

    @property
    def bounds(self) -> Bounds:
        """The bounds of the queue."""
        return Bounds(self.queue_work, self.model_share, self.caller_share)


@dataclass(frozen=True, slots=True)
class Request:
    """Draws that a caller wants. `inputs`: each (B, ...), validated; `deadline`: seconds on the worker's clock.

    `engines`: the same network, one for each device; a worker takes its own. `first_row`: the number of its first row
    in what the caller asked, where it is a part of that.
    """

    engines: tuple[Engine, ...]
    calibration: Calibration | None
    inputs: Mapping[str, Tensor]
    plan: Plan
    rows: int
    deadline: float | None = None
    model: str = ""
    version: int = 0
    caller: str = ""
    priority: Priority = Priority.NORMAL
    first_row: int = 0

    def cut(self, rows: int) -> list[Request]:
        """Return parts of at most so many rows, in order; the whole where rows are asked about together."""
        if self.rows <= rows or self.plan.spec.joint:
            return [self]
        return [
            replace(self, inputs=part, rows=count, first_row=start)
            for start, count, part in blocks(self.inputs, self.rows, rows)
        ]

    @property
    def work(self) -> int:
        """Rows x draws, all told."""
        return self.rows * self.plan.max_draws

    @property
    def least_work(self) -> int:
        """Rows x draws, as few as give an answer."""
        return self.rows * min(self.plan.max_draws, max(self.plan.min_draws, self.plan.group_size))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The sizes of all inputs but the rows: requests with equal ones can share the prefix."""
        return tuple(tuple(value.shape[1:]) for value in self.inputs.values())


@dataclass(frozen=True, slots=True)
class Drawn:
    """An answer, and where its time went."""

    predictive: Predictive
    queue_seconds: float
    compute_seconds: float


def join(parts: Sequence[Drawn]) -> Drawn:
    """Put the answers to the parts of a request together, in their order."""
    if len(parts) == 1:
        return parts[0]
    ends = np.cumsum([len(part.predictive.draws) for part in parts])
    rows = [np.arange(end - len(part.predictive.draws), end) for part, end in zip(parts, ends, strict=True)]
    return Drawn(
        join_answers([part.predictive for part in parts], rows),
        min(part.queue_seconds for part in parts),
        sum(part.compute_seconds for part in parts),
    )


@dataclass(slots=True, eq=False, kw_only=True)
class DrawJob(Job[Drawn]):
    """A request on its way through the worker, or a part of a large one; `whole`: the number of its first part."""

    whole: int
    request: Request
    engine: Engine
    watcher: Callable[[Drawn], None] | None = None  # is told of answers on the way, on the event loop
    run: Run | None = None
    allowed: int  # draws, as the load is now
    first_pass: float | None = None
    compute_seconds: float = 0.0

    @property
    def key(self) -> tuple[object, ...]:
        """Jobs with equal keys can share a pass."""
        if self.run is not None:
            return (id(self.engine), self.run.tile_key)
        plan = self.request.plan
        tail = min(plan.max_draws, plan.group_size)
        return (id(self.engine), *plan.thinning, tail, self.request.shapes)

    @property
    def rows(self) -> int:
        """The rows that still draw."""
        return self.request.rows if self.run is None else self.run.rows

    @property
    def drawn(self) -> int:
        """The draws made so far."""
        return 0 if self.run is None else self.run.next_draw

    @property
    def wanted(self) -> int:
        """The draws that are wanted until somebody looks, or there are enough."""
        watched = self.watcher is not None
        if self.run is not None:
            return wants(self.run, watched=watched)
        plan = self.request.plan
        return plan.look_after(0, watched=watched) if watched or plan.spec.stops else plan.max_draws

    @property
    def ready(self) -> bool:
        """Whether there are enough draws for an answer, if need be."""
        return 0 < self.drawn >= self.request.plan.min_draws

    @property
    def missed(self) -> DeadlineMissed:
        """Say that its deadline came too early."""
        least = self.request.plan.min_draws
        return DeadlineMissed(f"the deadline comes after {self.drawn} draws; an answer takes at least {least}")

    def answer(self, predictive: Predictive) -> Drawn:
        """Return an answer with where its time went."""
        first = self.arrived if self.first_pass is None else self.first_pass
        return Drawn(predictive, first - self.arrived, self.compute_seconds)

    @property
    def least_left(self) -> int:
        """Rows x draws that are wanted for an answer, if need be."""
        return max(0, self.request.least_work - self.request.rows * self.drawn)

    def ticket(self, cost: float, entry: float, needs: float) -> Ticket:
        """Return the job as the scheduler sees it; `needs`: the seconds that `least_left` takes at least."""
        return Ticket(
            number=self.number,
            key=self.key,
            rows=self.rows,
            wanted=max(1, min(self.wanted, self.allowed - self.drawn)),
            group_size=self.request.plan.group_size,
            since=self.since,
            cost=cost,
            entry=entry if self.run is None else 0.0,
            deadline=self.deadline,
            priority=self.priority,
            ready=self.ready,
            needs=needs,
            cancelled=self.abandoned,
            whole=self.whole,
        )
