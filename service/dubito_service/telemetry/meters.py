"""Meters: every number that a server counts, its name, unit and labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import version as release

from prometheus_client import CollectorRegistry, Counter, Gauge

from dubito_models.predictive import StopReason, Validity
from dubito_service.telemetry.distributions import Distribution, Distributions

RULES = frozenset((StopReason.TOLERANCE, StopReason.DECISION, StopReason.THRESHOLD))
SHED = frozenset((StopReason.LOAD, StopReason.DEADLINE))
_ENDS = tuple(reason for reason in StopReason if reason is not StopReason.UNFINISHED)

_SECONDS = (.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30)  # fmt: skip
_LOAD_SECONDS = (.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)  # fmt: skip
_DRAWS = (1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128)
_SHARES = (.05, .1, .2, .3, .4, .5, .6, .7, .8, .9, .95, 1)  # fmt: skip
_NATS = (.001, .002, .005, .01, .02, .05, .1, .2, .35, .5, .7, 1, 1.4, 2, 3, 5)  # fmt: skip
_MODEL = ("model", "version")
_PATH = ("model", "version", "path")


@dataclass(frozen=True, slots=True)
class PathMeters:
    """The meters of one path of a version, looked up once."""

    rows: Counter
    queue: Distribution
    compute: Distribution
    total: Distribution
    pass_seconds: Distribution
    pass_rows: Distribution
    pass_requests: Distribution


@dataclass(frozen=True, slots=True)
class DrawMeters:
    """The meters of a version's Monte Carlo answers, looked up once."""

    used: Counter
    saved: Counter
    shed: dict[StopReason, Counter]
    stops: dict[StopReason, Counter]
    validity: dict[Validity, Counter]
    abstained: Counter
    draws: Distribution
    entropy: Distribution
    information: Distribution
    epistemic: Distribution


class Meters:
    """All meters of one server, in a registry of their own. Those of a version are looked up once and kept."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._paths: dict[tuple[str, int, bool], PathMeters] = {}
        self._draws: dict[tuple[str, int], DrawMeters] = {}
        self._of_versions: list[Counter | Distributions] = []
        self._make_call_meters()
        self._make_work_meters()
        self._make_draw_meters()
        self._make_load_meters()

    def _gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        made = Counter(name, text, labels, registry=self.registry)
        if "version" in labels:
            self._of_versions.append(made)
        return made

    def _distributions(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> Distributions:
        made = Distributions(name, text, labels, bounds, self.registry)
        if "version" in labels:
            self._of_versions.append(made)
        return made

    def _make_call_meters(self) -> None:
        self.build = self._gauge("dubito_build_info", "The release that runs.", ["release"])
        self.build.labels(release("dubito")).set(1)
        self.calls = self._counter("dubito_calls_total", "Calls that have ended, by status.", ["method", "code"])
        self.refusals = self._counter(
            "dubito_refusals_total", "Calls, and requests of streams, that ended with an error.", ["method", "reason"]
        )
        self.streamed = self._counter(
            "dubito_stream_requests_total", "Requests of streams that have ended, by status.", ["method", "code"]
        )
        self.call_seconds = self._distributions(
            "dubito_call_seconds", "From a call's arrival to its end.", ["method"], _SECONDS
        )
        self.in_flight = self._gauge("dubito_calls_in_flight", "Calls that are being answered.")
        self.queue_work = self._gauge("dubito_queue_work", "Rows x draws of all Monte Carlo requests in flight.")
        self.queue_rows = self._gauge("dubito_queue_rows", "Rows of all requests in flight on the standard path.")

    def _make_work_meters(self) -> None:
        made = self._distributions
        self.rows = self._counter("dubito_rows_total", "Rows that were answered.", _PATH)
        self.queue_seconds = made("dubito_queue_seconds", "From arrival to the first pass.", _PATH, _SECONDS)
        self.compute_seconds = made("dubito_compute_seconds", "Of the passes an answer was in.", _PATH, _SECONDS)
        self.answer_seconds = made("dubito_answer_seconds", "From arrival to the answer.", _PATH, _SECONDS)
        self.pass_seconds = made("dubito_pass_seconds", "Of one pass.", _PATH, _SECONDS)
        self.pass_rows = made("dubito_pass_rows", "Rows that shared a pass.", _PATH, _ROWS)
        self.pass_requests = made("dubito_pass_requests", "Requests that shared a pass.", _PATH, _REQUESTS)
        self.step_seconds = made("dubito_step_seconds", "Of one step of a worker.", (), _SECONDS).labels()
        self.step_fill = made("dubito_step_fill_ratio", "Share of a step's budget used.", (), _SHARES).labels()
        self.prefixes = self._counter("dubito_prefix_passes_total", "Passes of what no mask reaches.")
        self.worker_deaths = self._counter("dubito_worker_deaths_total", "Threads that died; another took over.")

    def _make_draw_meters(self) -> None:
        made = self._distributions
        self.draws = made("dubito_draws_per_row", "Draws that a row was answered with.", _MODEL, _DRAWS)
        self.draws_used = self._counter("dubito_draws_total", "Draws of all rows.", _MODEL)
        self.draws_saved = self._counter("dubito_draws_saved_total", "Not drawn: a rule was met.", _MODEL)
        self.draws_shed = self._counter(
            "dubito_draws_shed_total", "Not drawn: the load, or the deadline.", [*_MODEL, "reason"]
        )
        self.stops = self._counter("dubito_stops_total", "Rows, by why their drawing ended.", [*_MODEL, "reason"])
        self.validity = self._counter(
            "dubito_calibrated_rows_total", "Rows, by how far the calibration holds for them.", [*_MODEL, "validity"]
        )
        self.abstentions = self._counter("dubito_abstentions_total", "Rows too uncertain for the risk.", _MODEL)
        self.entropy = made("dubito_predictive_entropy_nats", "Total uncertainty of a class.", _MODEL, _NATS)
        self.information = made("dubito_mutual_information_nats", "Epistemic part of the entropy.", _MODEL, _NATS)
        self.epistemic = made(
            "dubito_epistemic_deviation_ratio", "Epistemic to total standard deviation of a target.", _MODEL, _SHARES
        )

    def _make_load_meters(self) -> None:
        self.load_seconds = self._distributions(
            "dubito_load_seconds", "To load, check and time a version.", ["model"], _LOAD_SECONDS
        )
        self.load_failures = self._counter("dubito_load_failures_total", "Versions that did not load.", ["model"])

    def of_path(self, model: str, version: int, monte_carlo: bool) -> PathMeters:
        """Return the meters of a path of a version."""
        found = self._paths.get((model, version, monte_carlo))
        if found is None:
            labels = (model, str(version), "monte_carlo" if monte_carlo else "standard")
            found = self._paths[model, version, monte_carlo] = PathMeters(
                self.rows.labels(*labels),
                self.queue_seconds.labels(*labels),
                self.compute_seconds.labels(*labels),
                self.answer_seconds.labels(*labels),
                self.pass_seconds.labels(*labels),
                self.pass_rows.labels(*labels),
                self.pass_requests.labels(*labels),
            )
        return found

    def of_draws(self, model: str, version: int) -> DrawMeters:
        """Return the meters of a version's Monte Carlo answers."""
        found = self._draws.get((model, version))
        if found is None:
            labels = (model, str(version))
            found = self._draws[model, version] = DrawMeters(
                self.draws_used.labels(*labels),
                self.draws_saved.labels(*labels),
                {reason: self.draws_shed.labels(*labels, reason.value) for reason in SHED},
                {reason: self.stops.labels(*labels, reason.value) for reason in _ENDS},
                {validity: self.validity.labels(*labels, validity.value) for validity in Validity},
                self.abstentions.labels(*labels),
                self.draws.labels(*labels),
                self.entropy.labels(*labels),
                self.information.labels(*labels),
                self.epistemic.labels(*labels),
            )
        return found

    def keep(self, versions: Collection[tuple[str, int]]) -> None:
        """Forget all versions but these, each (model, version)."""
        paths = tuple(self._paths)  # at once: the device thread may add to them
        known = {(model, version) for model, version, _ in paths} | set(self._draws)
        for model, version in known - set(versions):
            self._draws.pop((model, version), None)
            for monte_carlo in (True, False):
                self._paths.pop((model, version, monte_carlo), None)
            for family in self._of_versions:
                if isinstance(family, Distributions):
                    family.remove(model, version)
                else:
                    family.remove_by_labels({"model": model, "version": str(version)})
