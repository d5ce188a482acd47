"""Version gauges: which versions are served, how they are calibrated, and what labels that came back say of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from dubito_service.observing.rolling import Banded, Rolling
from dubito_service.versions.registry import Entry

_SCORES = (
    "negative_log_likelihood", "accuracy", "brier_score", "expected_calibration_error", "root_mean_squared_error",
    "coverage", "served_coverage",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Load:
    """What is said of an entry, without holding on to the version."""

    name: tuple[str, str]  # model and version
    state: str
    calibration: tuple[str, str] | None = None  # id and method, where it is loaded


class VersionGauges(Collector):
    """What was last noted of versions; the event loop notes, a scrape reads."""

    def __init__(self) -> None:
        self._loads: tuple[_Load, ...] = ()
        self._observed: dict[tuple[str, int], Rolling] = {}

    def note(self, entries: Sequence[Entry]) -> None:
        """Take up which versions there are; what was observed of others is forgotten."""
        there = {(entry.model, entry.version) for entry in entries}
        self._loads = tuple(_read(entry) for entry in entries)
        self._observed = {key: found for key, found in self._observed.items() if key in there}

    def note_observed(self, model: str, version: int, rolling: Sequence[Rolling]) -> None:
        """Take up what labels say of a version under the calibration in use, which comes first."""
        others = {key: found for key, found in self._observed.items() if key != (model, version)}
        self._observed = {**others, **({(model, version): rolling[0]} if rolling else {})}

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Return the names and texts alone."""
        yield from (*_loads(()), *_scores({}), *_drifts({}))

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Return what was noted."""
        yield from (*_loads(self._loads), *_scores(self._observed), *_drifts(self._observed))


def _read(entry: Entry) -> _Load:
    name = (entry.model, str(entry.version))
    if entry.loaded is None:
        return _Load(name, entry.state.value)
    used = entry.loaded.calibration
    return _Load(name, entry.state.value, ("none", "none") if used is None else (used.id, used.method))


def _loads(loads: Sequence[_Load]) -> Iterator[GaugeMetricFamily]:
    text = "1: the version is in this state; those that are ready are served."
    states = GaugeMetricFamily("dubito_version_state", text, labels=("model", "version", "state"))
    labels = ("model", "version", "calibration", "method")
    calibration = GaugeMetricFamily("dubito_calibration_info", "The calibration in use, or none.", labels=labels)
    for load in loads:
        states.add_metric((*load.name, load.state), 1)
        if load.calibration is not None:
            calibration.add_metric((*load.name, *load.calibration), 1)
    yield from (states, calibration)


def _scores(observed: dict[tuple[str, int], Rolling]) -> Iterator[GaugeMetricFamily]:
    rows = GaugeMetricFamily("dubito_observed_rows", "Labelled rows of the scores.", labels=("model", "version"))
    labels = ("model", "version", "score")
    scores = GaugeMetricFamily("dubito_observed_score", "Of the newest labelled rows.", labels=labels)
    for (model, version), newest in observed.items():
        rows.add_metric((model, str(version)), newest.rows)
        for score in _SCORES:
            found: Banded | float | None = getattr(newest, score)
            if found is not None:
                value = found.value if isinstance(found, Banded) else found
                scores.add_metric((model, str(version), score), value)
    yield from (rows, scores)


def _drifts(observed: dict[tuple[str, int], Rolling]) -> Iterator[GaugeMetricFamily]:
    labels = ("model", "version", "of")
    alarm = GaugeMetricFamily("dubito_drift_alarm", "1: an alarm of drift was raised, and stays.", labels=labels)
    text = "Decimal logarithm of the evidence of drift: 2 is 100 to 1."
    evidence = GaugeMetricFamily("dubito_drift_evidence_log10", text, labels=labels)
    for (model, version), newest in observed.items():
        for kind, drift in newest.drift.items():
            alarm.add_metric((model, str(version), kind), drift.alarm)
            evidence.add_metric((model, str(version), kind), 0.0 if drift.test is None else drift.test.evidence)
    yield from (alarm, evidence)
