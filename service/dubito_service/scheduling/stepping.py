"""Stepping: what the device thread does with the jobs in flight, step by step (scheduler.py says with which).

No request can fail or hang another: a pass that fails is taken again for each of its requests alone, one that takes too
much memory by halves, and whoever has left takes part in no further pass. Near its deadline a request gets what has
been drawn; under overload requests get fewer draws.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dubito_models.engine import Engine
from dubito_models.predictive import StopReason
from dubito_service.reports import PassReport, StepReport, Watch
from dubito_service.scheduling.admission import crowded_out
from dubito_service.scheduling.dispatching import Clock
from dubito_service.scheduling.drawing import DrawJob, WorkLimits
from dubito_service.scheduling.pace import Fading, Pace, Slowness
from dubito_service.scheduling.retrying import attempt, is_out_of_memory
from dubito_service.scheduling.scheduler import Ticket, Tile, schedule, shed

log = logging.getLogger(__name__)

_FIRST_STEP_WORK = 256  # of a network whose speed is not known yet
_REFUSED_SECONDS = 1.0  # that a refused request counts as load
_HAND_OVER_SECONDS = 0.002  # outcomes wait for those of the step's other passes no longer than that


@dataclass(slots=True)
class Counters:
    """What a device worker has done since it started."""

    steps: int = 0
    prefixes: int = 0  # prefix passes
    passes: int = 0  # suffix passes
    work: int = 0  # rows x draws
    shed: int = 0  # rows x draws that overload took


class Stepper:
    """Steps over the jobs of one device; one thread drives it, others may read its pace, the loop adds to `refused`.

    `hand_over`: takes jobs that may have outcomes by now, `tell`: calls something on the event loop, `queued_work`: of
    all requests in flight, for reports.
    """

    def __init__(
        self,
        limits: WorkLimits,
        clock: Clock,
        watch: Watch,
        hand_over: Callable[[Sequence[DrawJob]], None],
        tell: Callable[..., None],
        queued_work: Callable[[], int],
    ) -> None:
        self.counters = Counters()
        self.pace = Pace()
        self.slowness = Slowness()  # of the draws that give answers, against their bounds
        self.paces: weakref.WeakKeyDictionary[Engine, Pace] = weakref.WeakKeyDictionary()
        self.refused = Fading(_REFUSED_SECONDS)  # seconds of full answers for which there was no time
        self._entries: weakref.WeakKeyDictionary[Engine, Pace] = weakref.WeakKeyDictionary()  # of prefixes, by rows
        self._limits = limits
        self._clock = clock
        self._watch = watch
        self._hand_over = hand_over
        self._tell_loop = tell
        self._queued_work = queued_work
        self._work, self._least_work, self._least_bound = 0, 0, 0.0  # in this step

    def at_least(self, engine: Engine, work: float) -> float:
        """Return a bound from below on the seconds that rows x draws take; 0 of a network that has not run."""
        pace = self.paces.get(engine)
        return 0.0 if pace is None else pace.at_least(work, self._limits.step_work / self.cost(engine))

    def step(self, jobs: Sequence[DrawJob]) -> None:
        """Take one step: whoever is due leaves, and the rest draw as the scheduler says."""
        began = self._clock()
        prefixes = self.counters.prefixes
        self._work, self._least_work, self._least_bound = 0, 0, 0.0
        self._shed(jobs)
        left = [job for job in jobs if job.outcome is None]
        by_number = {job.number: job for job in left}
        step = schedule(
            [self._ticket(job) for job in left],
            self._limits.step_work,
            began,
            patience=self._limits.patience_seconds,
            margin=self.pace.last + self._limits.reply_seconds,
            slowness=self.slowness.factor,
        )
        for ticket in step.due:
            self._leave(by_number[ticket.number])
        for ticket, late in step.crowded_out:
            by_number[ticket.number].outcome = crowded_out(late)
        self._start([by_number[ticket.number] for tile in step.tiles for ticket in tile.tickets])
        handed = began
        for tile in step.tiles:
            self._pass(tile, [by_number[ticket.number] for ticket in tile.tickets])
            if (now := self._clock()) - handed >= _HAND_OVER_SECONDS:
                self._hand_over(jobs)
                handed = now
        seconds = self._clock() - began
        if self._work:
            self.pace.note(seconds, self._work)
            self.slowness.note(seconds * self._least_work / self._work, self._least_bound)
            self._tell_of(jobs, step.work, self.counters.prefixes - prefixes, seconds)
        self.counters.steps += 1

    def _tell_of(self, jobs: Sequence[DrawJob], work: float, prefixes: int, seconds: float) -> None:
        """Tell whoever counts of the step; before its last outcomes cross to the loop."""
        self._watch(
            StepReport(
                prefixes=prefixes,
                seconds=seconds,
                fill=min(1.0, work / self._limits.step_work),
                waiting=len({job.whole for job in jobs if job.outcome is None and not job.abandoned}),
                queued_work=self._queued_work(),
            )
        )

    def cost(self, engine: Engine) -> float:
        """Return the work units of a row and draw: more than 1 where a full step would last too long."""
        pace = self.paces.get(engine)
        rate = pace.seconds_per_unit if pace is not None else None
        if rate is None:
            return max(1.0, self._limits.step_work / _FIRST_STEP_WORK)
        return max(1.0, rate * self._limits.step_work / self._limits.step_seconds)

    def entry(self, engine: Engine) -> float:
        """Return the work units of a row before its first draw, by the seconds that prefixes have taken."""
        pace = self._entries.get(engine)
        rate = pace.seconds_per_unit if pace is not None else None
        return (rate or 0.0) * self._limits.step_work / self._limits.step_seconds

    def most_rows(self, engine: Engine, group_size: int) -> int:
        """Return how many rows a step has room for, with a group of draws each: at least 1."""
        return max(1, int(self._limits.step_work / (group_size * self.cost(engine) + self.entry(engine))))

    def _ticket(self, job: DrawJob) -> Ticket:
        engine = job.engine
        return job.ticket(self.cost(engine), self.entry(engine), self.at_least(engine, job.least_left))

    def _shed(self, jobs: Sequence[DrawJob]) -> None:
        """Allow each job as many draws as the load leaves, and end those that have them.

        Requests that were refused lately for want of time count: nobody is to be refused for others' further draws.
        """
        present = [job for job in jobs if not job.abandoned]
        seconds = dict[int, float]()
        for job in present:
            seconds[job.whole] = seconds.get(job.whole, 0.0) + self._seconds_left(job)
        whole, full = sum(seconds.values()) + self.refused.at(self._clock()), []
        for job in present:
            plan = job.request.plan
            others = whole - seconds[job.whole]
            job.allowed = shed(plan.max_draws, plan.min_draws, plan.group_size, others, self._limits.overload_seconds)
            if job.drawn >= job.allowed and job.wanted:
                full.append(job)
        self._finish(full, StopReason.LOAD)
        self.counters.shed += sum(job.rows * (job.request.plan.max_draws - job.drawn) for job in full)

    def _seconds_left(self, job: DrawJob) -> float:
        """Estimate how long a job takes that gets all its draws, or those to the next look of its rule."""
        return self.seconds_of(job.engine, job.rows * job.wanted)

    def seconds_of(self, engine: Engine, work: int) -> float:
        """Estimate what so many rows x draws take at the pace so far; 0 of a network that has not run."""
        pace = self.paces.get(engine)
        return 0.0 if pace is None else work * (pace.seconds_per_unit or 0.0)

    def _leave(self, job: DrawJob) -> None:
        """End a job at its deadline: with what has been drawn, where that will do."""
        if job.ready:
            self._finish([job], StopReason.DEADLINE)
        else:
            job.outcome = job.missed

    def _start(self, jobs: Sequence[DrawJob]) -> None:
        """Run the prefix for newcomers, once for all those of one version and shape."""
        alike: dict[tuple[object, ...], list[DrawJob]] = {}
        for job in jobs:
            if job.run is None and not job.abandoned:
                key = (id(job.engine), id(job.request.calibration), job.request.shapes)
                alike.setdefault(key, []).append(job)
        for group in alike.values():
            attempt(group, self._prefix)

    def _prefix(self, jobs: Sequence[DrawJob]) -> None:
        began, engine = self._clock(), jobs[0].engine
        runs = engine.start(
            [(job.request.inputs, job.request.plan) for job in jobs],
            jobs[0].request.calibration,
            [job.request.first_row for job in jobs],
        )
        self.counters.prefixes += 1
        self._entries.setdefault(engine, Pace()).note(self._clock() - began, sum(job.rows for job in jobs))
        for job, run in zip(jobs, runs, strict=True):
            job.run = run

    def _pass(self, tile: Tile, jobs: Sequence[DrawJob]) -> None:
        """Take a tile's draws, and finish who has enough."""
        present = [job for job in jobs if job.outcome is None and not job.abandoned]
        if not present:
            return
        began = self._clock()
        until = present[0].drawn + tile.draws
        attempt(present, lambda some: self._advance(some, until))
        ended = self._clock()
        moved = [job for job in present if job.outcome is None]
        for job in moved:
            job.first_pass = began if job.first_pass is None else job.first_pass
            job.compute_seconds += ended - began
            job.since = ended
        self._finish([job for job in moved if not job.wanted], StopReason.MAX_DRAWS)
        self._tell([job for job in moved if job.watcher is not None and job.outcome is None])

    def _advance(self, jobs: Sequence[DrawJob], until: int) -> None:
        """Take jobs to so many draws in one pass; a single one by halves of whole groups, where memory is short."""
        engine, draws = jobs[0].engine, until - jobs[0].drawn
        began, rows = self._clock(), sum(job.rows for job in jobs)
        try:
            runs = engine.advance([job.run for job in jobs if job.run is not None], draws)
        except Exception as error:
            groups = -(-draws // jobs[0].request.plan.group_size)
            if len(jobs) > 1 or groups == 1 or not is_out_of_memory(error):
                raise
        else:
            self._note(jobs, draws, rows, self._clock() - began)
            for job, run in zip(jobs, runs, strict=True):
                job.run = run
            return
        self._advance(jobs, jobs[0].drawn + groups // 2 * jobs[0].request.plan.group_size)
        self._advance(jobs, until)

    def _note(self, jobs: Sequence[DrawJob], draws: int, rows: int, seconds: float) -> None:
        request = jobs[0].request
        self.counters.passes += 1
        self.counters.work += rows * draws
        self._work += rows * draws
        pace = self.paces.setdefault(jobs[0].engine, Pace())
        pace.note(seconds, rows * draws)
        least = sum(min(job.least_left, job.rows * draws) for job in jobs)
        self._least_work += least
        self._least_bound += least * pace.fastest
        self._watch(
            PassReport(request.model, request.version, True, len({job.whole for job in jobs}), rows, draws, seconds)
        )

    def _tell(self, jobs: Sequence[DrawJob]) -> None:
        """Tell watchers what their draws say so far, where somebody looks now."""
        for job in jobs:
            run, watcher = job.run, job.watcher
            if run is None or watcher is None:
                continue
            if run.plan.look_after(run.next_draw - 1, watched=True) != run.next_draw:
                continue
            try:
                [predictive] = job.engine.finish([run], StopReason.UNFINISHED)
            except Exception:  # the last answer is tried all the same, and says what is wrong
                log.warning("refinement failed", exc_info=True)
            else:
                self._tell_loop(watcher, job.answer(predictive))

    def _finish(self, jobs: Sequence[DrawJob], reason: StopReason) -> None:
        alike: dict[int, list[DrawJob]] = {}
        for job in jobs:
            alike.setdefault(id(job.engine), []).append(job)
        for group in alike.values():
            attempt(group, lambda some: self._answer(some, reason))

    def _answer(self, jobs: Sequence[DrawJob], reason: StopReason) -> None:
        answers = jobs[0].engine.finish([job.run for job in jobs if job.run is not None], reason)
        for job, predictive in zip(jobs, answers, strict=True):
            job.outcome = job.answer(predictive)
