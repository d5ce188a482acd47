"""The device worker: takes requests in, and has them answered by the one thread that drives a device's engines.

Each request has its own future and its own timer, so none can hang or delay another: whoever leaves, or whose time is
up, is let go at once, whatever the thread is at (dispatching.py, stepping.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from dubito_models.engine import Engine, Run
from dubito_models.predictive import StopReason
from dubito_service.reports import Watch, WorkerReport, ignore
from dubito_service.scheduling.admission import Admission
from dubito_service.scheduling.dispatching import MOST_PARTS, Clock, Dispatcher, outcomes
from dubito_service.scheduling.drawing import DrawJob, Drawn, Request, WorkLimits, join
from dubito_service.scheduling.foresight import Foresight
from dubito_service.scheduling.stepping import Counters, Stepper


class DeviceWorker:
    """Drives all engines of one device from one thread; `draw` belongs to one event loop.

    `place`: which of a request's engines is of this device; `admission`: shared where there are several workers.
    """

    def __init__(
        self,
        limits: WorkLimits,
        clock: Clock,
        watch: Watch = ignore,
        *,
        admission: Admission | None = None,
        place: int = 0,
    ) -> None:
        self.admission = admission or Admission(limits.bounds)
        self._limits = limits
        self._clock = clock
        self._place = place
        self._dispatcher: Dispatcher[DrawJob] = Dispatcher(
            "device",
            self._step,
            self._expire,
            clock,
            limits.gather_seconds,
            changed=lambda: watch(WorkerReport(self.alive)),
        )
        dispatcher, held = self._dispatcher, self.admission
        self._stepper = Stepper(limits, clock, watch, dispatcher.hand_over, dispatcher.tell, lambda: held.work)
        self._foresight = Foresight(self._stepper, dispatcher.waiting, limits, clock)
        self._rescues: set[asyncio.Task[None]] = set()
        self._least_queued = 0  # rows x draws, as few as answer all that is in flight

    def start(self) -> None:
        """Start the thread; the running event loop is the one that it answers to."""
        self._dispatcher.start()

    @property
    def counters(self) -> Counters:
        """What it has done so far."""
        return self._stepper.counters

    @property
    def alive(self) -> bool:
        """Whether its thread lives; one that has died is replaced in a second."""
        return self._dispatcher.alive

    @property
    def lost(self) -> bool:
        """Whether its thread has died time and again with no step between."""
        return self._dispatcher.lost

    @property
    def queued_work(self) -> int:
        """Rows x draws of all requests in flight, of all workers that share the queue."""
        return self.admission.work

    @property
    def load(self) -> int:
        """Rows x draws, as few as answer all that this worker has in flight."""
        return self._least_queued

    def close(self) -> None:
        """Give `Draining` to whoever waits, and let the thread end after its current step."""
        self._dispatcher.close()

    def join(self, timeout: float) -> bool:
        """Wait for the thread to end; False where it takes longer."""
        return self._dispatcher.join(timeout)

    async def draw(self, request: Request) -> Drawn:
        """Answer a request, at the latest by its deadline with the draws made so far.

        Raises `QueueFull`, `DeadlineMissed`, `Draining`, `OutOfMemory`, `WorkerLost`, or what a pass of this request
        alone raises. Cancelling it takes the request out before the next pass.
        """
        with self._submit(request) as jobs:
            return join(await outcomes(jobs))

    async def watch(self, request: Request) -> AsyncGenerator[Drawn]:
        """Answer a request as `draw` does, and before that whenever there are clearly more draws than before.

        Who reads slowly misses what is out of date.
        """
        news: asyncio.Queue[tuple[int, Drawn | asyncio.Future[Drawn]]] = asyncio.Queue()

        def note(part: int, said: Drawn | asyncio.Future[Drawn]) -> None:
            news.put_nowait((part, said))

        with self._submit(request, note) as jobs:
            for part, job in enumerate(jobs):
                job.future.add_done_callback(partial(note, part))
            latest, done = dict[int, Drawn](), set[int]()
            fresh = set[int]()  # parts that have more to say than when somebody was last told
            while len(done) < len(jobs):
                part, said = await news.get()
                if isinstance(said, asyncio.Future):
                    done.add(part)
                    said = said.result()
                latest[part] = said
                fresh.add(part)
                if news.empty() and len(done | fresh) == len(jobs):
                    fresh.clear()
                    yield join([latest[each] for each in range(len(jobs))])

    @contextmanager
    def _submit(self, request: Request, watcher: Callable[[int, Drawn], None] | None = None) -> Iterator[list[DrawJob]]:
        """Queue the jobs of a request for as long as somebody waits for them; `watcher`: is told of each by its place.

        A request of more rows than a step has room for is cut, so that others have their turn between its parts.
        """
        now, deadline = self._clock(), request.deadline
        engine = request.engines[min(self._place, len(request.engines) - 1)]
        pace = self._stepper.pace.seconds_per_unit
        with self.admission.hold(request.model, request.caller, request.work, pace):
            jobs = self._jobs(request, engine, now, watcher)
            with self._foresight.let_in(request, jobs[0]), self._dispatcher.carry(jobs, self._due(deadline)):
                self._least_queued += request.least_work
                try:
                    yield jobs
                finally:
                    self._least_queued -= request.least_work

    def _jobs(
        self, request: Request, engine: Engine, now: float, watcher: Callable[[int, Drawn], None] | None
    ) -> list[DrawJob]:
        loop, numbers = asyncio.get_running_loop(), self._dispatcher.numbers
        most = self._stepper.most_rows(engine, min(request.plan.max_draws, request.plan.group_size))
        whole, jobs = next(numbers), list[DrawJob]()
        for part in request.cut(max(most, -(-request.rows // MOST_PARTS))):
            jobs.append(
                DrawJob(
                    number=next(numbers) if jobs else whole,
                    whole=whole,
                    future=loop.create_future(),
                    arrived=now,
                    since=now,
                    deadline=request.deadline,
                    priority=request.priority,
                    request=part,
                    engine=engine,
                    watcher=None if watcher is None else partial(watcher, len(jobs)),
                    allowed=request.plan.max_draws,
                )
            )
        return jobs

    def _expire(self, job: DrawJob) -> None:
        """Let go of a caller whose time is up while a pass lasts: with what has been drawn, where that will do."""
        run, now, deadline = job.run, self._clock(), job.deadline
        due = self._due(deadline)
        if deadline is None or due is None:
            return
        if run is not None and job.ready and now >= due:
            job.abandoned = True  # the thread need not go on
            rescue = asyncio.get_running_loop().create_task(self._rescue(job, run))
            self._rescues.add(rescue)
            rescue.add_done_callback(self._rescues.discard)
        elif now < deadline:
            self._dispatcher.call_at(due if now < due else deadline, job)
        else:
            job.future.set_exception(job.missed)

    def _due(self, deadline: float | None) -> float | None:
        """Return when an answer has to be on its way."""
        return None if deadline is None else deadline - self._limits.reply_seconds

    async def _rescue(self, job: DrawJob, run: Run) -> None:
        """Make an answer of a run beside the thread: runs never change, and engines may finish several at once."""
        try:
            [predictive] = await asyncio.to_thread(job.engine.finish, [run], StopReason.DEADLINE)
        except Exception as error:
            if not job.future.done():
                job.future.set_exception(error)
        else:
            if not job.future.done():
                job.future.set_result(job.answer(predictive))

    def _step(self, jobs: Sequence[DrawJob]) -> None:
        self._stepper.step(jobs)
