"""Health: the states of the server and of each service, for probes and watchers (grpc.health.v1)."""

# ruff: noqa: N802 - methods bear the names of the wire
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dubito_service.errors import NotServed

Response = health_pb2.HealthCheckResponse
Context = grpc.aio.ServicerContext[Any, Any]
SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class Health(health_pb2_grpc.HealthServicer):
    """Serves, then serves no longer; the empty name is the whole server.

    (The servicer that grpcio-health-checking brings forgets the other watchers of a name when one leaves.)
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(("", *services))
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Report NOT_SERVING from now on."""
        self._stopping.set()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> Response:
        """Answer with the state of a service; NOT_FOUND for one that is not here."""
        if request.service not in self._services:
            raise NotServed("service", repr(request.service), ", ".join(sorted(self._services - {""})))
        return Response(status=self._status(request.service))

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> AsyncIterator[Response]:
        """Send the state of a service, and send it again when it changes."""
        yield Response(status=self._status(request.service))
        if not self._stopping.is_set():
            await self._stopping.wait()
            yield Response(status=self._status(request.service))
        await asyncio.Event().wait()  # the contract: the watcher ends the call

    def _status(self, service: str) -> int:
        if service not in self._services:
            return Response.SERVICE_UNKNOWN
        return Response.NOT_SERVING if self._stopping.is_set() else Response.SERVING
