"""Devices: several device workers as one: one for each GPU, or on a CPU several that share its networks and cores.

A request goes to the worker that has the least to do, and stays there: one scheduler decides for each device.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from dubito_service.reports import Watch, ignore
from dubito_service.scheduling.admission import Admission
from dubito_service.scheduling.dispatching import Clock
from dubito_service.scheduling.drawing import Drawn, Request, WorkLimits
from dubito_service.scheduling.stepping import Counters
from dubito_service.scheduling.worker import DeviceWorker


class Devices:
    """Answers requests as a device worker does; `places`: for each worker, which of a request's engines is its own."""

    def __init__(self, limits: WorkLimits, clock: Clock, watch: Watch = ignore, places: Sequence[int] = (0,)) -> None:
        self.admission = Admission(limits.bounds)  # one queue, whoever works it off
        self._workers = tuple(
            DeviceWorker(limits, clock, watch, admission=self.admission, place=place) for place in places
        )

    def start(self) -> None:
        """Start the threads; the running event loop is the one that they answer to."""
        for worker in self._workers:
            worker.start()

    @property
    def alive(self) -> bool:
        """Whether every thread lives."""
        return all(worker.alive for worker in self._workers)

    @property
    def lost(self) -> bool:
        """Whether a thread has died time and again with no step between."""
        return any(worker.lost for worker in self._workers)

    @property
    def queued_work(self) -> int:
        """Rows x draws of all requests in flight."""
        return self.admission.work

    @property
    def counters(self) -> Counters:
        """What all of them have done so far."""
        done = [worker.counters for worker in self._workers]
        return Counters(
            steps=sum(each.steps for each in done),
            prefixes=sum(each.prefixes for each in done),
            passes=sum(each.passes for each in done),
            work=sum(each.work for each in done),
            shed=sum(each.shed for each in done),
        )

    def close(self) -> None:
        """Give `Draining` to whoever waits, and let the threads end after their current steps."""
        for worker in self._workers:
            worker.close()

    def join(self, timeout: float) -> bool:
        """Wait for each thread to end; False where one takes longer."""
        ended = [worker.join(timeout) for worker in self._workers]
        return all(ended)

    async def draw(self, request: Request) -> Drawn:
        """Answer a request, as `DeviceWorker.draw` does."""
        return await self._choose().draw(request)

    def watch(self, request: Request) -> AsyncGenerator[Drawn]:
        """Answer a request better and better, as `DeviceWorker.watch` does."""
        return self._choose().watch(request)

    def _choose(self) -> DeviceWorker:
        """Return the worker with the least to do: of those that live, if any does."""
        return min(self._workers, key=lambda worker: (not worker.alive, worker.load))
