"""Telemetry: what is reported is counted once, under few labels, and no scrape and no report harms a request."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import threading
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from dubito_models.package import ModelVersion
from dubito_models.predictive import Classification, Predictive, Regression, StopReason
from dubito_models.sampling import SamplingSpec
from dubito_service.errors import CannotListen
from dubito_service.observing.drift import Drift
from dubito_service.observing.observer import Observer
from dubito_service.observing.rolling import Banded, Rolling
from dubito_service.reports import (
    AnswerReport,
    CallReport,
    LoadReport,
    PassReport,
    Report,
    StepReport,
    StreamedReport,
    WorkerReport,
    tell,
)
from dubito_service.telemetry.distributions import Distribution, Distributions
from dubito_service.telemetry.prometheus import Telemetry
from dubito_service.versions.registry import Entry
from networks import sample

DASHBOARD = Path(__file__).parents[3] / "service" / "dashboards" / "dubito.json"
MODEL = {"model": "mlp", "version": "1"}


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture(scope="module")
def version(packed: Callable[[str], ModelVersion]) -> ModelVersion:
    return packed("mlp")


@pytest.fixture(scope="module")
def answer(version: ModelVersion) -> Predictive:
    return version.predict(sample("mlp", 4), SamplingSpec(max_draws=40))


def report(version: ModelVersion, answer: Any, most: int = 40) -> AnswerReport:
    return AnswerReport(version, 4, answer, most, queue_seconds=0.02, compute_seconds=0.3, total_seconds=0.5)


def read(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return telemetry.meters.registry.get_sample_value(name, labels)


def step(**changes: Any) -> StepReport:
    fields = {"prefixes": 1, "seconds": 0.01, "fill": 0.5, "waiting": 1, "queued_work": 40, **changes}
    return StepReport(**fields)


def test_a_call_is_counted_by_method_and_status_and_a_refusal_by_its_error(telemetry: Telemetry) -> None:
    telemetry.watch(CallReport("/a.B/C", "OK", 0.2))
    telemetry.watch(CallReport("/a.B/C", "OK", 0.4))
    telemetry.watch(CallReport("/a.B/C", "RESOURCE_EXHAUSTED", 0.0, "QueueFull"))
    assert read(telemetry, "dubito_calls_total", method="a.B/C", code="OK") == 2
    assert read(telemetry, "dubito_calls_total", method="a.B/C", code="RESOURCE_EXHAUSTED") == 1
    assert read(telemetry, "dubito_refusals_total", method="a.B/C", reason="QueueFull") == 1
    assert read(telemetry, "dubito_call_seconds_count", method="a.B/C") == 3
    assert read(telemetry, "dubito_call_seconds_sum", method="a.B/C") == pytest.approx(0.6)


def test_a_request_of_a_stream_is_counted_by_method_and_status_and_its_refusal_beside_those_of_calls(
    telemetry: Telemetry,
) -> None:
    telemetry.watch(CallReport("/a.B/C", "OK", 0.2))
    telemetry.watch(StreamedReport("/a.B/C", "OK"))
    telemetry.watch(StreamedReport("/a.B/C", "RESOURCE_EXHAUSTED", "QueueFull"))
    telemetry.watch(StreamedReport("/a.B/C", "RESOURCE_EXHAUSTED", "QueueFull"))
    assert read(telemetry, "dubito_calls_total", method="a.B/C", code="OK") == 1
    assert read(telemetry, "dubito_stream_requests_total", method="a.B/C", code="OK") == 1
    assert read(telemetry, "dubito_stream_requests_total", method="a.B/C", code="RESOURCE_EXHAUSTED") == 2
    assert read(telemetry, "dubito_refusals_total", method="a.B/C", reason="QueueFull") == 2
    assert read(telemetry, "dubito_call_seconds_count", method="a.B/C") == 1


def test_an_answer_is_counted_by_model_version_and_path(
    telemetry: Telemetry, version: ModelVersion, answer: Predictive
) -> None:
    telemetry.watch(report(version, answer))
    telemetry.watch(report(version, version.evaluate(sample("mlp", 4)), 1))
    for path in ("monte_carlo", "standard"):
        assert read(telemetry, "dubito_rows_total", **MODEL, path=path) == 4
        assert read(telemetry, "dubito_queue_seconds_sum", **MODEL, path=path) == 0.02
        assert read(telemetry, "dubito_compute_seconds_sum", **MODEL, path=path) == 0.3
        assert read(telemetry, "dubito_answer_seconds_sum", **MODEL, path=path) == 0.5
    assert read(telemetry, "dubito_draws_total", **MODEL) == 160
    assert read(telemetry, "dubito_draws_per_row_bucket", **MODEL, le="40.0") == 4
    assert read(telemetry, "dubito_draws_per_row_bucket", **MODEL, le="20.0") == 0
    assert read(telemetry, "dubito_stops_total", **MODEL, reason="max_draws") == 4
    assert read(telemetry, "dubito_calibrated_rows_total", **MODEL, validity="none") == 4
    assert read(telemetry, "dubito_predictive_entropy_nats_count", **MODEL) == 4
    assert read(telemetry, "dubito_mutual_information_nats_count", **MODEL) == 4


def test_draws_that_were_not_made_are_saved_by_a_rule_and_shed_by_load_row_by_row(
    telemetry: Telemetry, version: ModelVersion, answer: Predictive
) -> None:
    reasons = (StopReason.TOLERANCE, StopReason.LOAD, StopReason.DEADLINE, StopReason.MAX_DRAWS)
    mixed = dataclasses.replace(answer, stop_reason=reasons, draws=np.array([10, 20, 30, 104]))
    telemetry.watch(report(version, mixed, 100))
    assert read(telemetry, "dubito_draws_saved_total", **MODEL) == 90
    assert read(telemetry, "dubito_draws_shed_total", **MODEL, reason="load") == 80
    assert read(telemetry, "dubito_draws_shed_total", **MODEL, reason="deadline") == 70
    alike = dataclasses.replace(answer, stop_reason=(StopReason.DECISION,) * 4, draws=np.array([10, 20, 30, 104]))
    telemetry.watch(report(version, alike, 100))
    assert read(telemetry, "dubito_draws_saved_total", **MODEL) == 90 + 236


def test_rows_that_abstain_are_counted(telemetry: Telemetry, version: ModelVersion, answer: Predictive) -> None:
    telemetry.watch(report(version, dataclasses.replace(answer, abstain=np.array([True, False, True, False]))))
    assert read(telemetry, "dubito_abstentions_total", **MODEL) == 2


def test_of_a_regression_the_epistemic_share_is_counted_and_of_a_single_draw_nothing_that_it_cannot_tell(
    telemetry: Telemetry, version: ModelVersion, answer: Predictive
) -> None:
    variance = np.array([[0.25], [0.0], [0.0], [1.0]])
    total = np.array([[1.0], [1.0], [0.0], [1.0]])  # 0 / 0 tells nothing
    found = Regression(total, total, variance, None, None, 0.9, None)
    telemetry.watch(report(version, dataclasses.replace(answer, answer=found)))
    assert read(telemetry, "dubito_epistemic_deviation_ratio_count", **MODEL) == 3
    assert read(telemetry, "dubito_epistemic_deviation_ratio_sum", **MODEL) == 1.5
    alone = dataclasses.replace(cast(Classification, answer.answer), mutual_information=None)
    telemetry.watch(report(version, dataclasses.replace(answer, answer=alone), 1))
    assert read(telemetry, "dubito_mutual_information_nats_count", **MODEL) == 0
    assert read(telemetry, "dubito_predictive_entropy_nats_count", **MODEL) == 4


def test_a_step_and_its_passes_are_counted(telemetry: Telemetry) -> None:
    telemetry.watch(PassReport("mlp", 1, True, requests=3, rows=12, draws=10, seconds=0.004))
    telemetry.watch(step(prefixes=2))
    labels = {**MODEL, "path": "monte_carlo"}
    assert read(telemetry, "dubito_step_seconds_sum") == 0.01
    assert read(telemetry, "dubito_step_fill_ratio_sum") == 0.5
    assert read(telemetry, "dubito_prefix_passes_total") == 2
    assert read(telemetry, "dubito_pass_seconds_sum", **labels) == 0.004
    assert read(telemetry, "dubito_pass_rows_sum", **labels) == 12
    assert read(telemetry, "dubito_pass_requests_sum", **labels) == 3


def test_threads_that_died_are_counted_and_those_that_took_over_are_not(telemetry: Telemetry) -> None:
    for alive in (False, True, False):
        telemetry.watch(WorkerReport(alive))
    assert read(telemetry, "dubito_worker_deaths_total") == 2


def test_a_load_is_timed_and_a_failed_one_counted(telemetry: Telemetry) -> None:
    telemetry.watch(LoadReport("mlp", 1, 2.0, failed=False))
    telemetry.watch(LoadReport("mlp", 2, 0.1, failed=True))
    assert read(telemetry, "dubito_load_seconds_sum", model="mlp") == 2.0
    assert read(telemetry, "dubito_load_failures_total", model="mlp") == 1


def rolling(calibration: str, alarm: bool = False) -> Rolling:
    score = Banded(0.4, 0.3, 0.5)
    drift = Drift(0.01, 0)
    return Rolling(
        calibration, 120, 0.0, 1.0, score, score, score, score, None, score, 0.9, 40,
        {"label": drift, "epistemic": drift}, {},
    )  # fmt: skip


class Labels:
    """What an observer says of a version."""

    def __init__(self, *found: Rolling) -> None:
        self.found = found

    async def rolling(self, version: ModelVersion) -> tuple[Rolling, ...]:
        return self.found


def entries(version: ModelVersion) -> list[Entry]:
    return [Entry("mlp", 1, version), Entry("mlp", 2, None, "its checksum differs")]


async def test_versions_their_calibration_and_what_labels_say_are_as_last_noted(
    telemetry: Telemetry, version: ModelVersion
) -> None:
    observer = cast(Observer, Labels(rolling("in use"), rolling("earlier")))
    await telemetry.look(entries(version), observer)
    assert read(telemetry, "dubito_version_state", **MODEL, state="ready") == 1
    assert read(telemetry, "dubito_version_state", model="mlp", version="2", state="failed") == 1
    assert read(telemetry, "dubito_calibration_info", **MODEL, calibration="none", method="none") == 1
    assert read(telemetry, "dubito_observed_rows", **MODEL) == 120
    assert read(telemetry, "dubito_observed_score", **MODEL, score="accuracy") == 0.4
    assert read(telemetry, "dubito_observed_score", **MODEL, score="served_coverage") == 0.9
    assert read(telemetry, "dubito_observed_score", **MODEL, score="root_mean_squared_error") is None
    assert read(telemetry, "dubito_drift_alarm", **MODEL, of="label") == 0
    assert read(telemetry, "dubito_drift_evidence_log10", **MODEL, of="epistemic") == 0
    await telemetry.look(entries(version), cast(Observer, Labels()))
    assert read(telemetry, "dubito_observed_rows", **MODEL) is None


async def test_a_version_that_is_gone_leaves_no_series_behind_and_is_not_kept_in_memory(
    telemetry: Telemetry, version: ModelVersion, answer: Predictive
) -> None:
    await telemetry.look(entries(version), cast(Observer, Labels(rolling("in use"))))
    telemetry.watch(report(version, answer))
    telemetry.watch(PassReport("mlp", 1, True, 1, 1, 1, 0.1))
    assert series(telemetry, 'version="1"')
    await telemetry.look(entries(version)[1:], None)
    assert not series(telemetry, 'version="1"')
    telemetry.watch(report(version, answer))  # one that was under way
    assert read(telemetry, "dubito_rows_total", **MODEL, path="monte_carlo") == 4
    assert not [held for held in vars(telemetry.versions).values() if version in held]


async def test_a_look_that_fails_is_followed_by_another(
    telemetry: Telemetry, version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dubito_service.telemetry.prometheus.REFRESH_SECONDS", 0)
    looks, seen = iter([RuntimeError("lost"), entries(version)]), asyncio.Event()

    def found() -> Sequence[Entry]:
        here = next(looks, None)
        if here is None:
            seen.set()
            return entries(version)
        if isinstance(here, Exception):
            raise here
        return here

    task = asyncio.create_task(telemetry.refresh(found, None))
    await asyncio.wait_for(seen.wait(), 30)
    task.cancel()
    assert read(telemetry, "dubito_version_state", **MODEL, state="ready") == 1


def test_every_metric_says_its_unit_and_no_label_is_an_id(telemetry: Telemetry) -> None:
    for family in telemetry.meters.registry.collect():
        name = family.name if family.type != "counter" else f"{family.name}_total"
        assert re.fullmatch(r"(dubito|process)_[a-z0-9_]+", name)
        assert family.documentation
        for one in family.samples:
            allowed = {"le", "method", "code", "reason", "model", "version", "path", "validity", "release", "device"}
            assert set(one.labels) <= allowed | {"use", "of", "score", "calibration", "state"}


def series(telemetry: Telemetry, holding: str) -> list[str]:
    lines = scrape(telemetry).splitlines()
    return [line for line in lines if holding in line]


def scrape(telemetry: Telemetry) -> str:
    from prometheus_client import generate_latest

    return generate_latest(telemetry.meters.registry).decode()


def test_a_scrape_over_http_is_well_formed_and_the_port_is_free_again_afterwards(
    telemetry: Telemetry, version: ModelVersion, answer: Predictive
) -> None:
    telemetry.watch(report(version, answer))
    before = set(threading.enumerate())
    port = telemetry.serve("127.0.0.1", 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
            families = {family.name for family in text_string_to_metric_families(reply.read().decode())}
        assert {"dubito_draws", "dubito_queue_seconds", "process_resident_memory_bytes"} <= families
        other = Telemetry()
        with pytest.raises(CannotListen, match="cannot serve metrics on 127"):
            other.serve("127.0.0.1", port)
        other.close()
    finally:
        telemetry.close()
    assert set(threading.enumerate()) <= before
    again = Telemetry()
    assert again.serve("127.0.0.1", port) == port
    again.close()


def test_memory_of_a_gpu_is_told_where_one_is_in_use_and_no_scrape_starts_one(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "is_available": lambda: True,
        "is_initialized": lambda: False,
        "device_count": lambda: 1,
        "memory_allocated": lambda number: 300,
        "memory_reserved": lambda number: 500,
        "mem_get_info": lambda number: (1000, 2000),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    assert not series(telemetry, "dubito_device_memory_bytes{")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for use, expected in (("tensors", 300), ("kept", 200), ("free", 1000)):
        assert read(telemetry, "dubito_device_memory_bytes", device="cuda:0", use=use) == expected


def test_reports_from_many_threads_are_all_counted(
    telemetry: Telemetry, version: ModelVersion, answer: Predictive
) -> None:
    start = threading.Barrier(5)

    def work() -> None:
        start.wait(30)
        for _ in range(200):
            telemetry.watch(PassReport("mlp", 1, True, 1, 1, 1, 0.1))
            telemetry.watch(step())
            telemetry.watch(report(version, answer))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    start.wait(30)
    for _ in range(20):
        scrape(telemetry)
    for thread in threads:
        thread.join()
    assert read(telemetry, "dubito_step_seconds_count") == 800
    assert read(telemetry, "dubito_rows_total", **MODEL, path="monte_carlo") == 3200
    assert read(telemetry, "dubito_predictive_entropy_nats_count", **MODEL) == 3200


def test_a_watch_that_fails_harms_nobody_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Report] = []

    def broken(report: Report) -> None:
        raise RuntimeError("full")

    watch = tell(broken, seen.append)
    watch(CallReport("/a.B/C", "OK", 0.1))
    watch(CallReport("/a.B/C", "OK", 0.1))
    assert len(seen) == 2
    assert len(caplog.records) == 1


@pytest.mark.parametrize("count", [3, 50])
def test_a_distribution_counts_many_numbers_as_it_counts_each(count: int) -> None:
    values = np.random.default_rng(0).choice([0.0, 0.1, 0.2, 0.3, 1.0, 7.0], count)
    one, all_at_once = Distribution([0.1, 0.3, 1.0]), Distribution([0.1, 0.3, 1.0])
    for value in values:
        one.observe(float(value))
    all_at_once.observe_all(values.reshape(1, -1))
    (buckets, total), (others, other_total) = one.read(), all_at_once.read()
    assert buckets == others
    assert total == pytest.approx(other_total)
    assert buckets[-1] == ("+Inf", count)
    assert buckets[0] == ("0.1", (values <= 0.1).sum())


@pytest.mark.parametrize("count", [1, 20])
def test_a_number_that_is_not_finite_does_not_spoil_a_distribution(count: int) -> None:
    family = Distributions("x", "x", ["of"], [1.0], CollectorRegistry())
    family.labels("a").observe_all(np.array([np.nan, np.inf, 0.5] * count))
    assert family.labels("a").read() == ([("1.0", count), ("+Inf", count)], 0.5 * count)


# --- The dashboard ---


def panels(dashboard: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", ())


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(DASHBOARD.read_text()))


def test_every_metric_of_the_dashboard_is_one_that_a_server_has(
    dashboard: dict[str, Any], telemetry: Telemetry
) -> None:
    known = set()
    for family in telemetry.meters.registry.collect():
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
        known |= {family.name + end for end in ends}
    targets = [target["expr"] for panel in panels(dashboard) for target in panel.get("targets", ())]
    targets += [variable["query"]["query"] for variable in dashboard["templating"]["list"] if "definition" in variable]
    named = {name for target in targets for name in re.findall(r"\b(?:dubito|process)_\w+", target)}
    assert named <= known
    assert len(named) >= 25


def test_the_dashboard_has_the_structure_that_grafana_imports(dashboard: dict[str, Any]) -> None:
    assert (dashboard["id"], dashboard["uid"], dashboard["title"]) == (None, "dubito", "dubito")
    assert dashboard["schemaVersion"] >= 36
    source, model = dashboard["templating"]["list"][:2]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert (model["name"], model["type"], model["multi"], model["includeAll"]) == ("model", "query", True, True)
    numbers = [panel["id"] for panel in panels(dashboard)]
    assert len(numbers) == len(set(numbers))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        here = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert max(x for x, _ in here) < 24
        assert not here & taken
        taken |= here
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH")[: len(panel["targets"])]
            assert panel["fieldConfig"]["defaults"]["unit"]
