"""Telemetry: what happens in a server, as metrics for Prometheus.

Units stand in the names. Labels are few: method, code, reason, model, version, path; no id and no caller ever is one.
The device thread and the event loop write, a thread of the HTTP server reads; what one answer costs is microseconds.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence
from wsgiref.simple_server import WSGIServer

import numpy as np
import torch
from prometheus_client import Counter, ProcessCollector, start_http_server
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dubito_models.predictive import Classification, Predictive, StopReason
from dubito_service.errors import CannotListen
from dubito_service.observing.observer import Observer
from dubito_service.reports import (
    AnswerReport,
    CallReport,
    LoadReport,
    PassReport,
    Report,
    StepReport,
    StreamedReport,
    WorkerReport,
)
from dubito_service.telemetry.distributions import Distribution
from dubito_service.telemetry.meters import RULES, SHED, DrawMeters, Meters
from dubito_service.telemetry.version_gauges import VersionGauges
from dubito_service.versions.registry import Entry

log = logging.getLogger(__name__)

REFRESH_SECONDS = 1.0  # between looks at which versions there are
ROLLING_EVERY = 30  # so many looks apart are those at observed labels, which take a bootstrap each


class DeviceMemory(Collector):
    """What torch holds of each GPU, where there is one and it is in use."""

    def describe(self) -> Iterator[Metric]:
        """Return the name and the text alone."""
        yield self._family()

    def collect(self) -> Iterator[Metric]:
        """Return the bytes that tensors take, those kept beside them, and those that are free."""
        family = self._family()
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            for number in range(torch.cuda.device_count()):
                taken, held = torch.cuda.memory_allocated(number), torch.cuda.memory_reserved(number)
                family.add_metric((f"cuda:{number}", "tensors"), taken)
                family.add_metric((f"cuda:{number}", "kept"), held - taken)
                family.add_metric((f"cuda:{number}", "free"), torch.cuda.mem_get_info(number)[0])
        yield family

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily("dubito_device_memory_bytes", "Of a GPU, by use.", labels=("device", "use"))


class Telemetry:
    """All metrics of one server; `watch` takes reports from any thread."""

    def __init__(self) -> None:
        self.meters = Meters()
        self.versions = VersionGauges()
        self._calls: dict[tuple[str, str], tuple[Counter, Distribution]] = {}
        self._serving: WSGIServer | None = None
        self._thread: threading.Thread | None = None
        for collector in (self.versions, DeviceMemory()):
            self.meters.registry.register(collector)
        ProcessCollector(registry=self.meters.registry)

    def watch(self, report: Report) -> None:
        """Count a report."""
        match report:
            case CallReport():
                self._count_call(report)
            case StreamedReport():
                self._count_streamed(report)
            case AnswerReport():
                self._count_answer(report)
            case PassReport():
                self._count_pass(report)
            case StepReport():
                self._count_step(report)
            case LoadReport():
                self._count_load(report)
            case WorkerReport():
                self.meters.worker_deaths.inc(not report.alive)

    def _count_call(self, report: CallReport) -> None:
        method = report.method.lstrip("/")
        found = self._calls.get((method, report.code))
        if found is None:
            found = self.meters.calls.labels(method, report.code), self.meters.call_seconds.labels(method)
            self._calls[method, report.code] = found
        calls, seconds = found
        calls.inc()
        seconds.observe(report.seconds)
        if report.reason:
            self.meters.refusals.labels(method, report.reason).inc()

    def _count_streamed(self, report: StreamedReport) -> None:
        method = report.method.lstrip("/")
        self.meters.streamed.labels(method, report.code).inc()
        if report.reason:
            self.meters.refusals.labels(method, report.reason).inc()

    def _count_load(self, report: LoadReport) -> None:
        if report.failed:
            self.meters.load_failures.labels(report.model).inc()
        else:
            self.meters.load_seconds.labels(report.model).observe(report.seconds)

    def _count_step(self, report: StepReport) -> None:
        self.meters.step_seconds.observe(report.seconds)
        self.meters.step_fill.observe(report.fill)
        self.meters.prefixes.inc(report.prefixes)

    def _count_pass(self, report: PassReport) -> None:
        meters = self.meters.of_path(report.model, report.version, report.monte_carlo)
        meters.pass_seconds.observe(report.seconds)
        meters.pass_rows.observe(report.rows)
        meters.pass_requests.observe(report.requests)

    def _count_answer(self, report: AnswerReport) -> None:
        name, number, answer = report.version.name, report.version.version, report.answer
        meters = self.meters.of_path(name, number, isinstance(answer, Predictive))
        meters.rows.inc(report.rows)
        meters.queue.observe(report.queue_seconds)
        meters.compute.observe(report.compute_seconds)
        meters.total.observe(report.total_seconds)
        if isinstance(answer, Predictive):
            drawn = self.meters.of_draws(name, number)
            _count_draws(drawn, answer, report.most_draws)
            _count_uncertainty(drawn, answer)

    # --- Scrapes ---

    def serve(self, host: str, port: int) -> int:
        """Serve /metrics over HTTP, in a thread of its own, and return the port; raises `CannotListen`."""
        try:
            self._serving, self._thread = start_http_server(port, host, self.meters.registry)
        except (OSError, OverflowError) as error:
            raise CannotListen(f"cannot serve metrics on {host}:{port} ({error}): is the port taken?") from error
        return self._serving.server_port

    def close(self) -> None:
        """Serve metrics no longer."""
        if self._serving is not None and self._thread is not None:
            self._serving.shutdown()
            self._serving.server_close()
            self._thread.join()

    async def refresh(self, entries: Callable[[], Sequence[Entry]], observer: Observer | None) -> None:
        """Keep what is said of versions up to date, until cancelled: the loads by `entries`, labels by the observer."""
        look = 0
        while True:
            try:
                await self.look(entries(), observer if look % ROLLING_EVERY == 0 else None)
            except Exception:  # whatever the store says, it looks again
                log.exception("metrics of versions not refreshed")
            look += 1
            await asyncio.sleep(REFRESH_SECONDS)

    async def look(self, entries: Sequence[Entry], observer: Observer | None) -> None:
        """Take up which versions there are, and what labels say of each where there is an observer."""
        self.meters.keep({(entry.model, entry.version) for entry in entries})
        self.versions.note(entries)
        for entry in entries:
            if observer is not None and entry.loaded is not None:
                self.versions.note_observed(entry.model, entry.version, await observer.rolling(entry.loaded))


def _count_draws(meters: DrawMeters, answer: Predictive, most: int) -> None:
    used = sum(answer.draws.tolist())
    tally = Tally(answer.stop_reason)
    meters.used.inc(used)
    meters.draws.observe_all(answer.draws)
    for reason, rows in tally.items():
        meters.stops[reason].inc(rows)
        if reason in RULES or reason in SHED:
            here = used if len(tally) == 1 else _used(answer, reason)
            left = max(0, rows * most - here)  # whole groups may be more than were asked
            (meters.saved if reason in RULES else meters.shed[reason]).inc(left)


def _used(answer: Predictive, reason: StopReason) -> int:
    """Return the draws of the rows that ended for a reason."""
    return int(answer.draws[[each is reason for each in answer.stop_reason]].sum())


def _count_uncertainty(meters: DrawMeters, answer: Predictive) -> None:
    meters.validity[answer.calibration_validity].inc(len(answer.draws))
    if answer.abstain is not None:
        meters.abstained.inc(int(answer.abstain.sum()))
    found = answer.answer
    if isinstance(found, Classification):
        meters.entropy.observe_all(found.predictive_entropy)
        if found.mutual_information is not None:
            meters.information.observe_all(found.mutual_information)
    elif found.epistemic_variance is not None and found.total_variance is not None:
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 is passed over
            meters.epistemic.observe_all(np.sqrt(found.epistemic_variance / found.total_variance))
