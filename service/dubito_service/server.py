"""The composition root: settings, workers, servicers and gRPC, put together, started and stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from importlib import metadata

import grpc
import torch
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from dubito_models.errors import InvalidArgument
from dubito_models.files import write_atomically
from dubito_models.memory import keep_imports, keep_pages
from dubito_models.package import choose_devices
from dubito_models.repository import Repository
from dubito_protos import open_inference_pb2_grpc as open_grpc
from dubito_protos import uncertainty_pb2_grpc as pb_grpc
from dubito_service.asking import RequestLimits
from dubito_service.dubito_v1.model_servicer import ModelServicer
from dubito_service.dubito_v1.servicer import SERVICES, UncertaintyServicer
from dubito_service.errors import CannotListen
from dubito_service.guard import Guard
from dubito_service.health import SERVICE as HEALTH
from dubito_service.health import Health
from dubito_service.observing.observations import Rules
from dubito_service.observing.observer import Observer, ObservingRules, open_observer
from dubito_service.open_inference.servicer import SERVICE as OPEN_INFERENCE
from dubito_service.open_inference.servicer import OpenInferenceServicer, Profile, Unserved
from dubito_service.open_inference.statistics import Statistics
from dubito_service.predicting import Predictor
from dubito_service.reports import Report, tell
from dubito_service.scheduling.devices import Devices
from dubito_service.scheduling.drawing import WorkLimits
from dubito_service.scheduling.standard_worker import StandardLimits, StandardWorker
from dubito_service.security.access import Access, admin_allowed, check_plaintext, is_loopback
from dubito_service.security.certificates import Certificates, tls_files
from dubito_service.security.concurrency import CallLimits
from dubito_service.security.connections import ConnectionLimits, channel_options
from dubito_service.security.tokens import Tokens
from dubito_service.settings import Settings
from dubito_service.telemetry.journal import Journal
from dubito_service.telemetry.prometheus import Telemetry
from dubito_service.telemetry.tracing import open_tracer
from dubito_service.versions.loading import Loader
from dubito_service.versions.policy import ModelControl, Policy
from dubito_service.versions.registry import Registry
from dubito_service.versions.watching import watch

log = logging.getLogger(__name__)

_SERVED = (*SERVICES, OPEN_INFERENCE)
_FAREWELL_SECONDS = 1.0  # for last replies to leave, and for watchers of the health
_LAST_STEP_SECONDS = 5.0
_LAST_WRITE_SECONDS = 5.0
_LAST_SPANS_SECONDS = 2.0
_LAST_LOAD_SECONDS = 5.0


class Server:
    """One server: a repository, the workers, and a gRPC port. Belongs to one event loop."""

    def __init__(self, settings: Settings) -> None:
        """Open the repository and bind the port; raises `InvalidArgument` or `CannotListen`."""
        self._settings = settings
        self._certificates, access = _secure(settings)
        gpus = choose_devices(settings.device)  # says so where there is none, before anything is loaded
        places = range(len(gpus)) if gpus[0].type == "cuda" else (0,) * settings.replicas
        # One core is left to the event loop: a thread that torch waits for in vain costs more than it gives.
        torch.set_num_threads(settings.torch_threads or max(1, ((os.cpu_count() or 2) - 1) // len(places)))
        loader = Loader(Repository(settings.repository, settings.cache), settings.pass_bytes, settings.device)
        self.registry = Registry((), loader, _policy(settings), self._report)
        self._health = Health(_SERVED, self.registry, self._is_answering, self._is_live)
        self.device = Devices(
            WorkLimits(
                queue_work=settings.queue_work,
                step_work=settings.step_work,
                step_seconds=settings.step_seconds,
                patience_seconds=settings.patience_seconds,
                reply_seconds=settings.reply_seconds,
                overload_seconds=settings.overload_seconds,
                gather_seconds=settings.gather_seconds,
                model_share=settings.model_work,
                caller_share=settings.caller_work,
            ),
            time.monotonic,
            self._report,
            places,
        )
        self.standard = StandardWorker(
            StandardLimits(
                queue_rows=settings.queue_rows,
                gather_seconds=settings.gather_seconds,
                step_seconds=settings.step_seconds,
                patience_seconds=settings.patience_seconds,
                model_share=settings.model_work,
                caller_share=settings.caller_work,
            ),
            time.monotonic,
            self._report,
        )
        self.observer = None if settings.state is None else _observer(settings, settings.state)
        self.telemetry = None if settings.metrics_port is None else Telemetry()
        counting = [] if self.telemetry is None else [self.telemetry.watch]
        self._tracer = open_tracer(os.environ)
        journal = Journal(tell(*counting), time.monotonic, self._tracer, (HEALTH, reflection.SERVICE_NAME))
        self.statistics = Statistics(time.time)
        self.watch = tell(journal.note, self.statistics.watch, self._health.watch, *counting)
        self._guard = Guard(_SERVED, access, _call_limits(settings), journal=journal)
        self._grpc = self._compose()
        self.port = _bind(self._grpc, settings, self._certificates)
        self.metrics_port: int | None = None
        self._watching: asyncio.Task[None] | None = None
        self._stopping = False
        self._measuring: asyncio.Task[None] | None = None

    def _report(self, report: Report) -> None:
        self.watch(report)

    def _compose(self) -> grpc.aio.Server:
        settings = self._settings
        limits = RequestLimits(settings.max_rows, settings.max_draws, settings.max_work, settings.max_message_bytes)
        server = grpc.aio.server(interceptors=[self._guard], options=channel_options(_connection_limits(settings)))
        predictor = Predictor(self.device, self.standard, time.monotonic, self.observer, self.watch)
        uncertainty = UncertaintyServicer(
            self.registry, predictor, limits, self.observer, settings.stream_requests, self.watch
        )
        pb_grpc.add_UncertaintyServiceServicer_to_server(uncertainty, server)
        pb_grpc.add_ModelServiceServicer_to_server(ModelServicer(self.registry, limits, self.observer), server)
        release = metadata.version("dubito")
        profile = Profile(settings.server_name, release, _policy(settings), settings.stream_requests, settings.replicas)
        open_inference = OpenInferenceServicer(
            self.registry,
            predictor,
            limits,
            self.statistics,
            profile,
            time.monotonic,
            self._is_ready,
            self._is_live,
            self.watch,
        )
        open_grpc.add_GRPCInferenceServiceServicer_to_server(open_inference, server)
        server.add_generic_rpc_handlers((Unserved(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*_SERVED, HEALTH, reflection.SERVICE_NAME), server)
        return server

    def _is_ready(self) -> bool:
        """Tell whether inferences are answered now."""
        return self.registry.opened and self._is_answering()

    def _is_answering(self) -> bool:
        return self.device.alive and self.standard.alive and not self._stopping

    def _is_live(self) -> bool:
        return not (self.device.lost or self.standard.lost)

    @property
    def address(self) -> str:
        """Where it listens, HOST:PORT."""
        return _address(self._settings.host, self.port)

    @property
    def summary(self) -> str:
        """One line: the address, what is served and what failed."""
        names: dict[bool, list[str]] = {True: [], False: []}
        for entry in self.registry.entries():
            names[entry.loaded is not None].append(f"{entry.model}/{entry.version}")
        failed = f"; failed: {', '.join(names[False])}" if names[False] else ""
        return f"dubito serves {', '.join(names[True]) or 'nothing'} on {self.address}{failed}"

    async def start(self) -> None:
        """Answer calls from now on; raises `CannotListen` where metrics cannot be served."""
        self._serve_metrics()
        self.device.start()
        self.standard.start()
        if self.observer is not None:
            self.observer.start()
        await self._grpc.start()
        log.info("listening address=%s", self.address)
        await self.registry.open(self._settings.load)
        self._watching = asyncio.create_task(
            watch(self.registry, self._settings.repository_seconds, self._settings.calibration_seconds)
        )
        log.info("started address=%s", self.address)

    def _serve_metrics(self) -> None:
        settings, telemetry = self._settings, self.telemetry
        if telemetry is None or settings.metrics_port is None:
            return
        telemetry.meters.in_flight.set_function(lambda: self._guard.in_flight)
        telemetry.meters.queue_work.set_function(lambda: self.device.queued_work)
        telemetry.meters.queue_rows.set_function(lambda: self.standard.queued_rows)
        host = settings.metrics_host or settings.host
        self.metrics_port = telemetry.serve(host, settings.metrics_port)
        self._measuring = asyncio.create_task(telemetry.refresh(self.registry.entries, self.observer))
        log.info("metrics address=%s", f"http://{_address(host, self.metrics_port)}/metrics")

    async def stop(self, grace: float | None = None) -> bool:
        """Refuse new calls, finish those in flight within the grace, and end; False where a pass will not end."""
        log.info("draining calls=%d", self._guard.in_flight)
        self._stopping = True
        if self._watching is not None:
            self._watching.cancel()
        self._health.wake()
        drained = await self._guard.drain(self._settings.grace_seconds if grace is None else grace)
        self.device.close()
        await self._grpc.stop(_FAREWELL_SECONDS)
        self.standard.close()
        written = self.observer is None or await self.observer.close(_LAST_WRITE_SECONDS)
        loaded = await self.registry.close(_LAST_LOAD_SECONDS)
        ended = self.device.join(_LAST_STEP_SECONDS) and written and loaded
        await self._stop_measuring()
        log.info("stopped drained=%s", drained)
        return ended

    async def _stop_measuring(self) -> None:
        if self._measuring is not None:
            self._measuring.cancel()
        if self.telemetry is not None:
            await asyncio.to_thread(self.telemetry.close)
        if self._tracer is not None:
            await self._tracer.close(_LAST_SPANS_SECONDS)


def _policy(settings: Settings) -> Policy:
    control = ModelControl(settings.model_control)
    if settings.load and control is not ModelControl.EXPLICIT:
        raise InvalidArgument("load", ", ".join(settings.load), "models to load, with --model-control explicit")
    return Policy(settings.newest_versions, settings.pins, control)


def _observer(settings: Settings, state: str) -> Observer:
    rules = ObservingRules(
        settings.receipt_days, settings.keep_inputs, settings.observed_rows, settings.max_message_bytes // 2
    )
    kept = Rules(settings.state_rows, settings.adaptation, settings.false_alarm)
    return open_observer(state, settings.receipt_key_file, kept, rules, time.time)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _secure(settings: Settings) -> tuple[Certificates | None, Access]:
    """Read certificates and tokens; raises `InvalidArgument` for what would be no protection."""
    files = tls_files(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    certificates = None if files is None else Certificates(files, time.time)
    loopback = is_loopback(settings.host)
    check_plaintext(
        tokens=settings.tokens is not None,
        encrypted=certificates is not None,
        loopback=loopback,
        allowed=settings.plaintext_tokens,
    )
    tokens = None if settings.tokens is None else Tokens(settings.tokens, time.monotonic, time.time)
    known = tokens is not None or settings.tls_client_ca is not None
    if not (loopback or known):
        log.warning("open to all host=%s: whoever reaches it is answered; see tokens and tls_client_ca", settings.host)
    return certificates, Access(tokens, admin_allowed(settings.admin, loopback=loopback, tokens=tokens is not None))


def _call_limits(settings: Settings) -> CallLimits:
    return CallLimits(settings.max_calls, settings.caller_calls, settings.idle_seconds, settings.message_seconds)


def _connection_limits(settings: Settings) -> ConnectionLimits:
    return ConnectionLimits(
        connections=settings.max_connections,
        streams=settings.max_streams,
        message_bytes=settings.max_message_bytes,
        metadata_bytes=settings.max_metadata_bytes,
        ping_seconds=settings.ping_seconds,
        idle_seconds=settings.connection_idle_seconds,
        age_seconds=settings.connection_age_seconds,
        grace_seconds=settings.grace_seconds,
    )


def _bind(server: grpc.aio.Server, settings: Settings, certificates: Certificates | None) -> int:
    address = _address(settings.host, settings.port)
    try:
        if certificates is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, certificates.credentials())
    except RuntimeError as error:
        raise CannotListen(f"cannot listen on {address}: is the port taken, the host one of this machine?") from error
    if not port:
        raise CannotListen(f"cannot listen on {address}")
    return port


async def serve(settings: Settings, announce: Callable[[str], None]) -> bool:
    """Serve until SIGTERM or SIGINT, then drain; a second signal exits at once.

    `announce` gets one line when the server is ready. Returns what `Server.stop` does.
    """
    if settings.port_file is not None:
        settings.port_file.unlink(missing_ok=True)  # what an earlier run left there says nothing of this one
    keep_pages()
    server = Server(settings)
    stopping = asyncio.Event()

    def on_signal(number: int) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    keep_imports()
    starting, asked = asyncio.create_task(server.start()), asyncio.create_task(stopping.wait())
    await asyncio.wait((starting, asked), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done() or starting.exception() is not None:  # told to stop while it loads, or it cannot start
        starting.cancel()
        asked.cancel()
        ended = await server.stop()
        if starting.done() and not starting.cancelled():
            starting.result()
        return ended
    if settings.port_file is not None:
        write_atomically(settings.port_file, f"{server.port}\n".encode())
    announce(server.summary)
    await asked
    return await server.stop()
