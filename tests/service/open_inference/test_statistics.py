"""Statistics: every answer, pass and failure counts once, under the path that it was of."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dubito_models.package import ModelVersion
from dubito_models.standard import Evaluation
from dubito_service.open_inference.statistics import Counts, Duration, Path, Statistics
from dubito_service.reports import AnswerReport, CallReport, PassReport, StepReport

PATH, STANDARD = Path("mlp", 1, False), Path("mlp", 1, True)


def answered(version: ModelVersion, rows: int, *, standard: bool = False) -> AnswerReport:
    inputs = np.zeros((rows, 6), np.float32)
    answer = version.evaluate(inputs) if standard else version.predict(inputs)
    return AnswerReport(version, rows, answer, 20, 0.25, 0.5, 1.0, 0.125)


def passed(rows: int, seconds: float, *, monte_carlo: bool = True) -> PassReport:
    return PassReport("mlp", 1, monte_carlo, 2, rows, 10, seconds)


def test_rows_answers_and_their_times_add_up_each_on_its_own_path(packed: Callable[[str], ModelVersion]) -> None:
    statistics = Statistics(lambda: 1000.5)
    for rows in (3, 5):
        statistics.watch(answered(packed("mlp"), rows))
    statistics.watch(answered(packed("mlp"), 2, standard=True))
    assert statistics.of(PATH) == Counts(
        last=1000.5,
        rows=8,
        success=Duration(2, 2 * 10**9),
        queue=Duration(2, 5 * 10**8),
        reading=Duration(2, 25 * 10**7),
        compute=Duration(2, 10**9),
        rest=Duration(2, 25 * 10**7),
    )
    assert statistics.of(STANDARD).rows == 2
    assert statistics.of(Path("mlp", 2, False)) == Counts()


def test_passes_count_by_their_rows_and_not_by_the_requests_that_shared_them() -> None:
    statistics = Statistics(lambda: 0.0)
    for report in (passed(3, 0.25), passed(8, 0.5), passed(3, 0.25), passed(1, 0.125, monte_carlo=False)):
        statistics.watch(report)
    counts = statistics.of(PATH)
    assert counts.passes == 3
    assert dict(counts.batches) == {3: Duration(2, 5 * 10**8), 8: Duration(1, 5 * 10**8)}
    assert dict(statistics.of(STANDARD).batches) == {1: Duration(1, 125 * 10**6)}


def test_a_failure_counts_beside_the_answers_and_other_reports_not_at_all() -> None:
    statistics = Statistics(lambda: 0.0)
    statistics.fail(PATH, 0.5)
    statistics.watch(StepReport(1, 1.0, 1.0, 0, 0))
    statistics.watch(CallReport("/inference.GRPCInferenceService/ModelInfer", "OK", 1.0))
    assert statistics.of(PATH) == Counts(failure=Duration(1, 5 * 10**8))


def test_no_count_is_lost_where_several_threads_report() -> None:
    statistics = Statistics(lambda: 0.0)
    with ThreadPoolExecutor(4) as threads:
        for _ in range(4):
            threads.submit(lambda: [statistics.watch(passed(1, 0.0)) for _ in range(500)])
    assert statistics.of(PATH).passes == 2000


def test_an_evaluation_is_of_the_standard_path(packed: Callable[[str], ModelVersion]) -> None:
    report = answered(packed("mlp"), 1, standard=True)
    assert isinstance(report.answer, Evaluation)
    statistics = Statistics(lambda: 0.0)
    statistics.watch(report)
    assert statistics.of(PATH) == Counts()
