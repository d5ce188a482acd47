"""The workers: the one thread that drives the engines of a device, and the one of the standard path.

The event loop validates and submits; the device thread takes steps (scheduler.py) and hands all results of a step to
the loop at once. No request can fail or hang another: each has its own future, a pass that fails is taken again for
each of its requests alone, and whoever has left takes part in no further pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import queue
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from dubito_models.calibration import Calibration
from dubito_models.engine import Engine, Run, wants
from dubito_models.package import ModelVersion
from dubito_models.predictive import Predictive, StopReason
from dubito_models.sampling import Plan
from dubito_models.standard import Evaluation
from dubito_service.errors import DeadlineMissed, Draining, QueueFull
from dubito_service.scheduler import Ticket, Tile, schedule

log = logging.getLogger(__name__)

Clock = Callable[[], float]  # seconds, monotonic
_FIRST_STEP_WORK = 256  # of a network whose speed is not known yet
_DECAY = 0.8  # of what earlier steps say of the speed


@dataclass(frozen=True, slots=True)
class WorkLimits:
    """What a device worker may take on: queue and steps in rows x draws, the rest in seconds."""

    queue_work: int
    step_work: int
    step_seconds: float
    patience_seconds: float
    reply_seconds: float


@dataclass(frozen=True, slots=True)
class Request:
    """Draws that a caller wants. `inputs`: each (B, ...), validated; `deadline`: seconds on the worker's clock."""

    engine: Engine
    calibration: Calibration | None
    inputs: Mapping[str, Tensor]
    plan: Plan
    rows: int
    deadline: float | None = None

    @property
    def work(self) -> int:
        """Rows x draws, all told."""
        return self.rows * self.plan.max_draws

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


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An answer of the standard path, and where its time went."""

    evaluation: Evaluation
    queue_seconds: float
    compute_seconds: float


@dataclass(slots=True)
class Pace:
    """How fast work has been done lately: decayed sums over steps."""

    seconds: float = 0.0
    work: float = 0.0
    last: float = 0.0  # seconds of the last step

    def note(self, seconds: float, work: float) -> None:
        """Add a step."""
        self.seconds = _DECAY * self.seconds + seconds
        self.work = _DECAY * self.work + work
        self.last = seconds

    @property
    def seconds_per_unit(self) -> float | None:
        """Seconds per row and draw; None before the first step."""
        return self.seconds / self.work if self.work else None


@dataclass(slots=True)
class Counters:
    """What a device worker has done since it started."""

    steps: int = 0
    prefixes: int = 0  # prefix passes
    passes: int = 0  # suffix passes
    work: int = 0  # rows x draws


@dataclass(slots=True, eq=False)
class _Job:
    """A request on its way through the worker. The device thread alone changes it, but for `abandoned`."""

    number: int
    request: Request
    future: asyncio.Future[Drawn]
    arrived: float
    since: float  # when it arrived, or last had a turn
    run: Run | None = None
    first_pass: float | None = None
    compute_seconds: float = 0.0
    watcher: Callable[[Drawn], None] | None = None  # is told of answers on the way, on the event loop
    abandoned: bool = False  # set on the event loop: nobody waits any more
    outcome: Drawn | Exception | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """Jobs with equal keys can share a pass."""
        if self.run is not None:
            return (id(self.request.engine), self.run.tile_key)
        plan = self.request.plan
        tail = min(plan.max_draws, plan.group_size)
        return (id(self.request.engine), *plan.thinning, tail, self.request.shapes)

    @property
    def rows(self) -> int:
        """The rows that still draw."""
        return self.request.rows if self.run is None else self.run.rows

    @property
    def wanted(self) -> int:
        """The draws that are wanted until somebody looks, or there are enough."""
        watched = self.watcher is not None
        if self.run is not None:
            return wants(self.run, watched=watched)
        plan = self.request.plan
        return plan.look_after(0) if watched or plan.spec.stops else plan.max_draws

    def drawn(self, predictive: Predictive) -> Drawn:
        """Return an answer with where its time went."""
        first = self.arrived if self.first_pass is None else self.first_pass
        return Drawn(predictive, first - self.arrived, self.compute_seconds)

    def ticket(self, cost: float) -> Ticket:
        """Return the job as the scheduler sees it."""
        plan, run = self.request.plan, self.run
        drawn = 0 if run is None else run.next_draw
        return Ticket(
            number=self.number,
            key=self.key,
            rows=self.rows,
            wanted=self.wanted,
            group_size=plan.group_size,
            since=self.since,
            cost=cost,
            deadline=self.request.deadline,
            ready=0 < drawn >= plan.min_draws,
            cancelled=self.abandoned,
        )


class DeviceWorker:
    """Drives all engines of one device from one thread; `draw` belongs to one event loop."""

    def __init__(self, limits: WorkLimits, clock: Clock) -> None:
        self.counters = Counters()
        self.queued_work = 0
        self._limits = limits
        self._clock = clock
        self._numbers = itertools.count()
        self._waiting: set[_Job] = set()  # the event loop's
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._pace = Pace()
        self._paces: weakref.WeakKeyDictionary[Engine, Pace] = weakref.WeakKeyDictionary()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Give `Draining` to whoever waits, and let the thread end after its current step."""
        self._closed = True
        self._inbox.put(None)
        for job in self._waiting:
            job.abandoned = True
            if not job.future.done():
                job.future.set_exception(Draining("the server stopped before the answer was ready"))

    def join(self, timeout: float) -> bool:
        """Wait for the thread to end; False where it takes longer."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    async def draw(self, request: Request) -> Drawn:
        """Answer a request, at the latest by its deadline with the draws made so far.

        Raises `QueueFull`, `DeadlineMissed`, `Draining`, or what a pass of this request alone raises. Cancelling it
        takes the request out before the next pass.
        """
        with self._submit(request) as job:
            return await job.future

    async def watch(self, request: Request) -> AsyncGenerator[Drawn]:
        """Answer a request as `draw` does, and before that whenever there are clearly more draws than before.

        Who reads slowly misses what is out of date.
        """
        news: asyncio.Queue[Drawn | asyncio.Future[Drawn]] = asyncio.Queue()
        with self._submit(request, news.put_nowait) as job:
            job.future.add_done_callback(news.put_nowait)
            while True:
                latest = await news.get()
                while not news.empty():
                    latest = news.get_nowait()
                if isinstance(latest, asyncio.Future):
                    yield latest.result()
                    return
                yield latest

    @contextlib.contextmanager
    def _submit(self, request: Request, watcher: Callable[[Drawn], None] | None = None) -> Iterator[_Job]:
        """Queue a job for as long as somebody waits for it."""
        self._admit(request)
        now = self._clock()
        future: asyncio.Future[Drawn] = asyncio.get_running_loop().create_future()
        job = _Job(next(self._numbers), request, future, arrived=now, since=now, watcher=watcher)
        self.queued_work += request.work
        self._waiting.add(job)
        try:
            self._inbox.put(job)
            yield job
        finally:
            job.abandoned = True
            self._waiting.remove(job)
            self.queued_work -= request.work

    def _admit(self, request: Request) -> None:
        if self._closed:
            raise Draining("the server is stopping")
        if self.queued_work + request.work > self._limits.queue_work:
            wait = self.queued_work * (self._pace.seconds_per_unit or 0.0)
            what = f"{self.queued_work} of {self._limits.queue_work} rows x draws, and {request.work} more were asked"
            raise QueueFull(what, min(max(wait, 0.05), 30.0))

    # From here on everything runs in the device thread.

    def _work(self) -> None:
        jobs: list[_Job] = []
        while self._take(jobs):
            try:
                self._step(jobs)
            except Exception as error:  # the thread outlives whatever a step does
                log.exception("step failed requests=%d", len(jobs))
                for job in jobs:
                    job.outcome = job.outcome or error
            self._hand_over([job for job in jobs if job.outcome is not None])
            jobs = [job for job in jobs if job.outcome is None and not job.abandoned]

    def _take(self, jobs: list[_Job]) -> bool:
        """Take in what was submitted, waiting only where there is nothing to do; False to end."""
        try:
            job = self._inbox.get(block=not jobs)
            while job is not None:
                jobs.append(job)
                job = self._inbox.get_nowait()
        except queue.Empty:
            return True
        return False

    def _hand_over(self, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        try:
            jobs[0].future.get_loop().call_soon_threadsafe(_resolve, jobs)
        except RuntimeError:
            log.debug("the event loop is gone")

    def _step(self, jobs: Sequence[_Job]) -> None:
        now = self._clock()
        by_number = {job.number: job for job in jobs}
        step = schedule(
            [job.ticket(self._cost(job.request.engine)) for job in jobs],
            self._limits.step_work,
            now,
            patience=self._limits.patience_seconds,
            margin=self._pace.last + self._limits.reply_seconds,
        )
        for ticket in step.due:
            self._leave(by_number[ticket.number], ready=ticket.ready)
        self._start([by_number[ticket.number] for tile in step.tiles for ticket in tile.tickets])
        work = 0
        for tile in step.tiles:
            work += self._pass(tile, [by_number[ticket.number] for ticket in tile.tickets])
        self.counters.steps += 1
        if work:
            self._pace.note(self._clock() - now, work)

    def _cost(self, engine: Engine) -> float:
        """Return the work units of a row and draw: more than 1 where a full step would last too long."""
        pace = self._paces.get(engine)
        rate = pace.seconds_per_unit if pace is not None else None
        if rate is None:
            return max(1.0, self._limits.step_work / _FIRST_STEP_WORK)
        return max(1.0, rate * self._limits.step_work / self._limits.step_seconds)

    def _leave(self, job: _Job, *, ready: bool) -> None:
        """End a job at its deadline: with what has been drawn, where that will do."""
        if ready:
            self._finish([job], StopReason.DEADLINE)
        else:
            drawn = 0 if job.run is None else job.run.next_draw
            job.outcome = DeadlineMissed(
                f"the deadline came after {drawn} draws; an answer takes at least {job.request.plan.min_draws}"
            )

    def _start(self, jobs: Sequence[_Job]) -> None:
        """Run the prefix for newcomers, once for all those of one version and shape."""
        alike: dict[tuple[object, ...], list[_Job]] = {}
        for job in jobs:
            if job.run is None and not job.abandoned:
                key = (id(job.request.engine), id(job.request.calibration), job.request.shapes)
                alike.setdefault(key, []).append(job)
        for group in alike.values():
            self._together(group, self._prefix)

    def _prefix(self, jobs: Sequence[_Job]) -> None:
        request = jobs[0].request
        self.counters.prefixes += 1
        runs = request.engine.start([(job.request.inputs, job.request.plan) for job in jobs], request.calibration)
        for job, run in zip(jobs, runs, strict=True):
            job.run = run

    def _pass(self, tile: Tile, jobs: Sequence[_Job]) -> int:
        """Take a tile's draws, finish who has enough; returns the work done."""
        present = [job for job in jobs if job.outcome is None and not job.abandoned]
        if not present:
            return 0
        began = self._clock()
        rows = {job.number: job.rows for job in present}
        self._together(present, lambda some: self._advance(some, tile.draws))
        ended = self._clock()
        moved = [job for job in present if job.outcome is None]
        work = sum(rows[job.number] for job in moved) * tile.draws
        if work:
            engine = moved[0].request.engine
            self._paces.setdefault(engine, Pace()).note(ended - began, work)
        for job in moved:
            job.first_pass = began if job.first_pass is None else job.first_pass
            job.compute_seconds += ended - began
            job.since = ended
        self._finish([job for job in moved if not job.wanted], StopReason.MAX_DRAWS)
        self._tell([job for job in moved if job.watcher is not None and job.outcome is None])
        return work

    def _tell(self, jobs: Sequence[_Job]) -> None:
        """Tell watchers what their draws say so far, where somebody looks now."""
        for job in jobs:
            run, watcher = job.run, job.watcher
            if run is None or watcher is None or run.plan.look_after(run.next_draw - 1) != run.next_draw:
                continue
            try:
                [predictive] = job.request.engine.finish([run], StopReason.UNFINISHED)
                job.future.get_loop().call_soon_threadsafe(watcher, job.drawn(predictive))
            except RuntimeError:
                log.debug("the event loop is gone")

    def _advance(self, jobs: Sequence[_Job], draws: int) -> None:
        engine = jobs[0].request.engine
        self.counters.passes += 1
        self.counters.work += sum(job.rows for job in jobs) * draws
        runs = engine.advance([job.run for job in jobs if job.run is not None], draws)
        for job, run in zip(jobs, runs, strict=True):
            job.run = run

    def _together(self, jobs: Sequence[_Job], act: Callable[[Sequence[_Job]], None]) -> None:
        """Act on jobs at once; where that fails, once more on each alone, so that only who is at fault fails."""
        try:
            act(jobs)
            return
        except Exception:
            log.warning("pass failed requests=%d, each is tried alone", len(jobs), exc_info=True)
        for job in jobs:
            try:
                act([job])
            except Exception as error:
                job.outcome = error

    def _finish(self, jobs: Sequence[_Job], reason: StopReason) -> None:
        if jobs:
            self._together(jobs, lambda some: self._answer(some, reason))

    def _answer(self, jobs: Sequence[_Job], reason: StopReason) -> None:
        engine = jobs[0].request.engine
        answers = engine.finish([job.run for job in jobs if job.run is not None], reason)
        for job, predictive in zip(jobs, answers, strict=True):
            job.outcome = job.drawn(predictive)


def _resolve(jobs: Sequence[_Job]) -> None:
    """Give each waiting caller its own outcome; runs on the event loop."""
    for job in jobs:
        if job.future.done():
            continue
        if isinstance(job.outcome, Exception):
            job.future.set_exception(job.outcome)
        elif job.outcome is not None:
            job.future.set_result(job.outcome)


class StandardWorker:
    """Evaluates standard networks, one call after the other, in a thread of its own; belongs to one event loop."""

    def __init__(self, queue_rows: int, clock: Clock) -> None:
        self.queued_rows = 0
        self._most = queue_rows
        self._clock = clock
        self._pace = Pace()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="standard")

    def close(self) -> None:
        """End the thread after its current call."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def evaluate(self, version: ModelVersion, inputs: Mapping[str, Tensor], rows: int) -> Evaluated:
        """Answer a request of so many rows; `QueueFull` where too many wait."""
        if self.queued_rows + rows > self._most:
            wait = self.queued_rows * (self._pace.seconds_per_unit or 0.0)
            what = f"{self.queued_rows} of {self._most} rows, and {rows} more were asked"
            raise QueueFull(what, min(max(wait, 0.05), 30.0))
        self.queued_rows += rows
        loop = asyncio.get_running_loop()
        try:
            done = await loop.run_in_executor(self._thread, self._evaluate, version, inputs, self._clock())
        finally:
            self.queued_rows -= rows
        self._pace.note(done.compute_seconds, rows)
        return done

    def _evaluate(self, version: ModelVersion, inputs: Mapping[str, Tensor], arrived: float) -> Evaluated:
        began = self._clock()
        evaluation = version.evaluate(inputs)
        return Evaluated(evaluation, began - arrived, self._clock() - began)
