"""The dispatcher: one thread that takes steps over the jobs in flight, and the way between it and the event loop.

The loop submits, the thread works, and outcomes cross back together: once for a pass, not once for a request. Each
job has its own future, so that no outcome can hang another; a caller that leaves takes its job out before the next
pass, and a timer lets go of a caller whose time is up, however long the thread's pass may last. A thread that dies
loses the jobs that it had, which are told so, and another one is started; one death after the other, with no step
between them, and the worker counts as lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from torch import Tensor

from dubito_service.errors import Draining, WorkerLost
from dubito_service.scheduling.gathering import Gathering
from dubito_service.scheduling.scheduler import Priority, turn

log = logging.getLogger(__name__)

Clock = Callable[[], float]  # seconds, monotonic
T = TypeVar("T")
MOST_PARTS = 1024  # of a request: each costs the scheduler some time in every step
_RESTART_SECONDS = 1.0  # from the death of a thread to the next one
MOST_DEATHS = 5  # in a row, before a worker counts as lost


@dataclass(slots=True, eq=False)
class Job(Generic[T]):
    """A request on its way; times in seconds. The thread alone changes it, but for `abandoned`."""

    number: int
    future: asyncio.Future[T]
    arrived: float
    since: float  # when it arrived, or last had a turn
    deadline: float | None
    priority: Priority
    abandoned: bool = False  # set on the event loop: nobody waits any more
    outcome: T | Exception | None = None
    handed: bool = False  # the outcome is on its way to the loop

    def turn(self, patience: float) -> tuple[Priority, float, float, int]:
        """Return what the scheduler sorts it by."""
        return turn(self.priority, self.deadline, self.since, self.number, patience)


J = TypeVar("J", bound=Job[Any])


def blocks(inputs: Mapping[str, Tensor], rows: int, most: int) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    """Yield inputs, each (B, ...), in blocks of at most so many rows: number of the first one, how many, and those."""
    for start in range(0, rows, most):
        end = min(start + most, rows)
        yield start, end - start, {name: value[start:end] for name, value in inputs.items()}


async def outcomes(jobs: Sequence[Job[T]]) -> list[T]:
    """Wait for the jobs of one caller, and return what came of each; raises what the first one raises that fails."""
    if len(jobs) == 1:
        return [await jobs[0].future]
    return await asyncio.gather(*(job.future for job in jobs))


Inbox: TypeAlias = "queue.SimpleQueue[list[J] | None]"  # None: the end


class Dispatcher(Generic[J]):
    """Takes steps from one thread; everything else belongs to one event loop.

    `step` sets outcomes, and is called with all jobs in flight whenever there are any; what it raises is the outcome
    of all that have none. `expire` is called on the loop when a job's time is up and it has no outcome yet, `changed`
    when the thread has died, is there again, or is lost no longer.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[Sequence[J]], None],
        expire: Callable[[J], None],
        clock: Clock,
        gather_seconds: float = 0.0,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.numbers = itertools.count()
        self.waiting: set[J] = set()  # the event loop's
        self._name = name
        self._step = step
        self._expire = expire
        self._clock = clock
        self._gathering = Gathering(gather_seconds)
        self._changed = changed
        self._outgoing: list[J] = []  # submitted since the loop last handed jobs to the thread
        self._inbox: Inbox[J] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._dead = False
        self._deaths = 0  # since the last step that ended

    def start(self) -> None:
        """Start the thread; the running event loop is the one that it answers to."""
        self._loop, self._inbox, self._dead = asyncio.get_running_loop(), queue.SimpleQueue(), False
        thread = threading.Thread(target=self._work, args=(self._inbox,), name=self._name, daemon=True)
        thread.start()
        self._thread = thread  # one that did not start leaves the dead one in its place

    @property
    def alive(self) -> bool:
        """Whether there is a thread to work."""
        return self._thread is not None and self._thread.is_alive() and not self._dead

    @property
    def lost(self) -> bool:
        """Whether the thread has died `MOST_DEATHS` times in a row."""
        return self._deaths >= MOST_DEATHS

    def close(self) -> None:
        """Give `Draining` to whoever waits, and let the thread end after its current step."""
        self._closed = True
        self._inbox.put(None)
        self._fail(Draining("the server stopped before the answer was ready"))

    def join(self, timeout: float) -> bool:
        """Wait for the thread to end; False where it takes longer."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    @contextlib.contextmanager
    def carry(self, jobs: Sequence[J], expires: float | None) -> Iterator[None]:
        """Have jobs worked on for as long as somebody waits for them, and expire at a time, if any.

        Raises `Draining` or `WorkerLost`.
        """
        if self._closed:
            raise Draining("the server is stopping")
        if not self.alive:
            raise WorkerLost(_RESTART_SECONDS)
        timers = [] if expires is None else [self.call_at(expires, job) for job in jobs]
        self.waiting.update(jobs)
        try:
            self._send(jobs)
            yield
        finally:
            for job in jobs:
                job.abandoned = True
                self.waiting.remove(job)
                if job.future.done() and not job.future.cancelled():
                    job.future.exception()  # a caller that left at that moment never saw it: asyncio would complain
            for timer in timers:
                timer.cancel()

    def _send(self, jobs: Sequence[J]) -> None:
        """Have the thread get jobs together with all that come while the loop is at what has arrived.

        One by one the first of them would wake the thread, which then would draw for it alone, and hold the loop up.
        """
        if not self._outgoing:
            jobs[0].future.get_loop().call_soon(self._flush)
        self._outgoing += jobs

    def _flush(self) -> None:
        self._inbox.put(self._outgoing)
        self._outgoing = []

    def call_at(self, when: float, job: J) -> asyncio.TimerHandle:
        """Have `expire` called then, if the job has no outcome by that time."""
        loop = job.future.get_loop()
        return loop.call_later(max(0.0, when - self._clock()), self._expire_late, job)

    def _expire_late(self, job: J) -> None:
        if not (job.future.done() or job.abandoned):
            self._expire(job)

    def _fail(self, error: Exception) -> None:
        for job in self.waiting:
            job.abandoned = True
            if not job.future.done():
                job.future.set_exception(error)

    def _bury(self) -> None:
        """Tell whoever waited for a thread that has died, and start another one in a while."""
        self._fail(WorkerLost(_RESTART_SECONDS))
        self._changed()
        self._revive_soon()

    def _revive(self) -> None:
        if self._closed:
            return
        try:
            self.start()
        except RuntimeError as error:  # the machine has no thread to give
            log.error("thread not restarted name=%s reason=%s", self._name, error)
            self._revive_soon()
        else:
            log.warning("thread restarted name=%s", self._name)
            self._changed()

    def _revive_soon(self) -> None:
        if self._loop is not None and not self._closed:
            self._loop.call_later(_RESTART_SECONDS, self._revive)

    # From here on everything runs in the thread.

    def hand_over(self, jobs: Sequence[J]) -> None:
        """Let the loop know the outcomes that it does not know yet, all at once."""
        ready = [job for job in jobs if job.outcome is not None and not job.handed]
        if not ready:
            return
        for job in ready:
            job.handed = True
        self.tell(_resolve, ready)

    def tell(self, news: Callable[..., None], *about: object) -> None:
        """Call something on the loop, if that is still there."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(news, *about)
        except RuntimeError:
            log.debug("the event loop is gone")

    def _work(self, inbox: Inbox[J]) -> None:
        try:
            self._take_steps(inbox)
        except BaseException:  # whatever it was, it must not leave callers waiting
            self._dead = True
            self._deaths += 1
            log.critical("thread died name=%s", self._name, exc_info=True)
            self.tell(self._bury)

    def _take_steps(self, inbox: Inbox[J]) -> None:
        jobs: list[J] = []
        expected, seconds, open_ = 0, 0.0, True
        while open_ and _take(inbox, jobs, wait=not jobs) and self._gather(inbox, jobs, expected, seconds):
            began = self._clock()
            try:
                self._step(jobs)
            except Exception as error:  # the thread outlives whatever a step does
                log.exception("step failed requests=%d", len(jobs))
                for job in jobs:
                    job.outcome = job.outcome or error
            if self._deaths:
                self._deaths = 0
                self.tell(self._changed)
            newcomers: list[J] = []
            open_ = _take(inbox, newcomers, wait=False)  # before whoever is answered now can come back
            self.hand_over(jobs)
            answered, ended = sum(job.outcome is not None for job in jobs), self._clock()
            seconds = ended - began
            self._gathering.note(ended, answered)
            jobs = [*(job for job in jobs if job.outcome is None and not job.abandoned), *newcomers]
            expected = len(jobs) + answered

    def _gather(self, inbox: Inbox[J], jobs: list[J], expected: int, last_step: float) -> bool:
        """Wait a little for so many jobs, where that pays; False to end."""
        end = self._clock() + self._gathering.seconds(last_step)
        while len(jobs) < expected and (left := end - self._clock()) > 0:
            try:
                more = inbox.get(timeout=left)
            except queue.Empty:
                break
            if more is None:
                return False
            jobs += more
        return True


def _take(inbox: Inbox[J], jobs: list[J], *, wait: bool) -> bool:
    """Take in what was submitted, and wait for some where that is wanted; False to end."""
    try:
        more = inbox.get(block=wait)
        while more is not None:
            jobs += more
            more = inbox.get_nowait()
    except queue.Empty:
        return True
    return False


def _resolve(jobs: Sequence[Job[Any]]) -> None:
    """Give each waiting caller its own outcome; runs on the event loop."""
    for job in jobs:
        if job.future.done() or job.abandoned:
            continue
        if isinstance(job.outcome, Exception):
            job.future.set_exception(job.outcome)
        elif job.outcome is not None:
            job.future.set_result(job.outcome)
