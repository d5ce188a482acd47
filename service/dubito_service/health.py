"""Health: the states of the server, of its services and of each model, for probes and watchers (grpc.health.v1).

The empty name and the services' are SERVING from when the first versions are loaded until the server stops, while the
threads of all workers live; a model's name while moreover a version of it is ready. This service's own name is the one
to ask whether the process lives, which it does through a long load: SERVING whenever it answers at all, until a worker
is lost (dispatching.py), which a new process may help against.
"""

# ruff: noqa: N802 - methods bear the names of the wire
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dubito_service.errors import NotServed
from dubito_service.reports import Report, WorkerReport
from dubito_service.versions.registry import Registry, State

Response = health_pb2.HealthCheckResponse
Context = grpc.aio.ServicerContext[Any, Any]
SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Health(health_pb2_grpc.HealthServicer):
    """Answers with what the registry and the workers say; the empty name is the whole server.

    `answering`: whether what is loaded is answered for now; `live`: whether there is hope that it will be.

    (The servicer that grpcio-health-checking brings forgets the other watchers of a name when one leaves.)
    """

    def __init__(
        self, services: Iterable[str], registry: Registry, answering: Callable[[], bool], live: Callable[[], bool]
    ) -> None:
        self._services = frozenset(("", *services))
        self._registry = registry
        self._answering, self._live = answering, live
        self._changed = asyncio.Event()
        registry.on_change(self.wake)

    def watch(self, report: Report) -> None:
        """Take note of workers that die and are there again."""
        if isinstance(report, WorkerReport):
            self.wake()

    def wake(self) -> None:
        """Let every watcher look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> Response:
        """Answer with the state of a service or model; NOT_FOUND for one that is not here."""
        status = self._status(request.service)
        if status == Response.SERVICE_UNKNOWN:
            names = sorted({*self._services - {""}, SERVICE, *(entry.model for entry in self._registry.index())})
            raise NotServed("service", repr(request.service), ", ".join(names))
        return Response(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> AsyncIterator[Response]:
        """Send the state of a service or model, and send it again when it changes; the watcher ends the call."""
        told = None
        while True:
            changed, status = self._changed, self._status(request.service)
            if status != told:
                yield Response(status=status)
                told = status
            await changed.wait()

    def _status(self, name: str) -> int:
        if name == SERVICE:
            return Response.SERVING if self._live() else Response.NOT_SERVING
        if name in self._services:
            serves = self._registry.opened
        else:
            states = self._registry.states(name)
            if not states:
                return Response.SERVICE_UNKNOWN
            serves = State.READY in states
        return Response.SERVING if serves and self._answering() else Response.NOT_SERVING
