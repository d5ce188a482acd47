"""The composition root: settings, workers, servicers and gRPC, put together, started and stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable

import grpc
import torch
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from dubito_models.files import write_atomically
from dubito_models.package import Repository, choose_device
from dubito_protos import uncertainty_pb2_grpc as pb_grpc
from dubito_service.asking import RequestLimits
from dubito_service.errors import CannotListen
from dubito_service.guard import Guard
from dubito_service.health import SERVICE as HEALTH
from dubito_service.health import Health
from dubito_service.model_servicer import ModelServicer
from dubito_service.observations import Rules
from dubito_service.observing import Observer, ObservingRules, open_observer
from dubito_service.predicting import Predictor
from dubito_service.registry import load_registry
from dubito_service.servicers import SERVICES, UncertaintyServicer
from dubito_service.settings import Settings
from dubito_service.worker import DeviceWorker, StandardWorker, WorkLimits

log = logging.getLogger(__name__)

_FAREWELL_SECONDS = 1.0  # for last replies to leave, and for watchers of the health
_LAST_STEP_SECONDS = 5.0
_LAST_WRITE_SECONDS = 5.0


class Server:
    """One server: a repository, the workers, and a gRPC port. Belongs to one event loop."""

    def __init__(self, settings: Settings) -> None:
        """Load the repository and bind the port; raises `InvalidArgument` or `CannotListen`."""
        self._settings = settings
        # One core is left to the event loop: a thread that torch waits for in vain costs more than it gives.
        torch.set_num_threads(settings.torch_threads or max(1, (os.cpu_count() or 2) - 1))
        choose_device(settings.device)  # says so where it is not there, before anything is loaded
        self.registry = load_registry(
            Repository(settings.repository), settings.newest_versions, settings.pass_bytes, settings.device
        )
        self.device = DeviceWorker(
            WorkLimits(
                queue_work=settings.queue_work,
                step_work=settings.step_work,
                step_seconds=settings.step_seconds,
                patience_seconds=settings.patience_seconds,
                reply_seconds=settings.reply_seconds,
            ),
            time.monotonic,
        )
        self.standard = StandardWorker(settings.queue_rows, time.monotonic)
        self.observer = None if settings.state is None else _observer(settings, settings.state)
        self._guard = Guard(SERVICES)
        self._health = Health(SERVICES)
        self._grpc = self._compose()
        self.port = _bind(self._grpc, settings)
        self._watching: asyncio.Task[None] | None = None

    def _compose(self) -> grpc.aio.Server:
        settings = self._settings
        limits = RequestLimits(settings.max_rows, settings.max_draws, settings.max_work, settings.max_message_bytes)
        server = grpc.aio.server(
            interceptors=[self._guard],
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a lottery
            ],
        )
        predictor = Predictor(self.device, self.standard, time.monotonic, self.observer)
        uncertainty = UncertaintyServicer(self.registry, predictor, limits, self.observer)
        pb_grpc.add_UncertaintyServiceServicer_to_server(uncertainty, server)
        pb_grpc.add_ModelServiceServicer_to_server(ModelServicer(self.registry, limits, self.observer), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*SERVICES, HEALTH, reflection.SERVICE_NAME), server)
        return server

    @property
    def address(self) -> str:
        """Where it listens, HOST:PORT."""
        return _address(self._settings.host, self.port)

    @property
    def summary(self) -> str:
        """One line: the address, what is served and what failed."""
        names = {True: [], False: []}  # type: dict[bool, list[str]]
        for entry in self.registry.entries():
            names[entry.loaded is not None].append(f"{entry.model}/{entry.version}")
        failed = f"; failed: {', '.join(names[False])}" if names[False] else ""
        return f"dubito serves {', '.join(names[True]) or 'nothing'} on {self.address}{failed}"

    async def start(self) -> None:
        """Answer calls from now on."""
        self.device.start()
        if self.observer is not None:
            self.observer.start()
        await self._grpc.start()
        if self._settings.calibration_seconds:
            self._watching = asyncio.create_task(self._watch_calibrations(self._settings.calibration_seconds))
        log.info("started address=%s", self.address)

    async def _watch_calibrations(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await asyncio.to_thread(self.registry.refresh_calibrations)
            except Exception:  # whatever lies on the disk, it looks again
                log.exception("calibrations could not be looked for")

    async def stop(self, grace: float | None = None) -> bool:
        """Refuse new calls, finish those in flight within the grace, and end; False where a pass will not end."""
        log.info("draining calls=%d", self._guard.in_flight)
        if self._watching is not None:
            self._watching.cancel()
        self._health.stop()
        drained = await self._guard.drain(self._settings.grace_seconds if grace is None else grace)
        self.device.close()
        await self._grpc.stop(_FAREWELL_SECONDS)
        self.standard.close()
        written = self.observer is None or await self.observer.close(_LAST_WRITE_SECONDS)
        ended = self.device.join(_LAST_STEP_SECONDS) and written
        log.info("stopped drained=%s", drained)
        return ended


def _observer(settings: Settings, state: str) -> Observer:
    rules = ObservingRules(
        settings.receipt_days, settings.keep_inputs, settings.observed_rows, settings.max_message_bytes // 2
    )
    kept = Rules(settings.state_rows, settings.adaptation, settings.false_alarm)
    return open_observer(state, settings.receipt_key_file, kept, rules, time.time)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind(server: grpc.aio.Server, settings: Settings) -> int:
    address = _address(settings.host, settings.port)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise CannotListen(f"cannot listen on {address}: is the port taken, the host one of this machine?") from error
    if not port:
        raise CannotListen(f"cannot listen on {address}")
    return port


async def serve(settings: Settings, announce: Callable[[str], None]) -> bool:
    """Serve until SIGTERM or SIGINT, then drain; a second signal exits at once.

    `announce` gets one line when the server is ready. Returns what `Server.stop` does.
    """
    server = Server(settings)
    stopping = asyncio.Event()

    def on_signal(number: int) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    await server.start()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    if settings.port_file is not None:
        write_atomically(settings.port_file, f"{server.port}\n".encode())
    announce(server.summary)
    await stopping.wait()
    return await server.stop()
