"""Scoring in this process: the engine's answers, whatever the slices and the threads."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
import torch
from pyarrow import parquet

from dubito_batch.answers import Asked
from dubito_batch.job import Job, run_job
from dubito_batch.local import LocalScorer, open_local
from dubito_client.errors import InvalidArgument, NotFound, ServerError
from dubito_client.stopping import Stopping
from dubito_models.engine import Engine
from dubito_models.package import ModelVersion, load_version
from dubito_models.predictive import Predictive
from dubito_models.sampling import Estimator, SamplingSpec
from dubito_models.stopping import Stopping as Rule
from dubito_models.stopping import StoppingRule
from dubito_models.thinning import Design
from networks import sample

from .conftest import rows

Answers = dict[str, np.ndarray]
FEW = {"device": "cpu", "slice_bytes": 1}  # the fewest rows at a time


@pytest.fixture(params=["judge", "gauge", "gauges"])
def version(request: pytest.FixtureRequest) -> ModelVersion:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def same(found: Answers, expected: Predictive, tolerance: float = 1e-6) -> None:
    """Every array is what the predictive says, and what that does not say is not there."""
    own = {name: getattr(expected.answer, name) for name in type(expected.answer).__dataclass_fields__}
    own |= {name: getattr(expected, name) for name in ("draws", "standard_error", "abstain")}
    for name, values in own.items():
        if name in found:
            np.testing.assert_allclose(found[name], values, rtol=tolerance, atol=tolerance, err_msg=name)
    told = {name for name, values in own.items() if isinstance(values, np.ndarray)}
    unused = {"plain_mutual_information", "variation_ratio", "disagreement", "base_interval"}
    assert set(found) - {"stop_reason"} == told - unused
    assert found["stop_reason"].tolist() == [reason.value for reason in expected.stop_reason]


def alike(one: Answers, other: Answers) -> None:
    """Equal to the bit."""
    assert set(one) == set(other)
    for name, values in one.items():
        assert values.tobytes() == other[name].tobytes() or values.dtype == object, name
        assert values.tolist() == other[name].tolist() or values.dtype != object, name


def test_answers_are_those_of_the_version_whatever_the_slices(version: ModelVersion) -> None:
    x = rows(101)
    expected = version.predict(x)
    for passes in (None, FEW, {"slice_bytes": 24 * 4 * 40}):
        same(LocalScorer(version, passes=passes).score({"x": x}), expected)


@pytest.mark.parametrize("case", ["cnn", "encoder", "two-inputs", "dropped-weights"])
def test_networks_of_many_kinds_are_answered_as_by_their_version(
    packed: Callable[[str], ModelVersion], case: str
) -> None:
    version = packed(case)
    inputs = {name: values.numpy() for name, values in sample(case, 40).items()}
    scorer = LocalScorer(version, passes=FEW)
    same(scorer.score(inputs), version.predict(inputs))


def test_what_is_asked_of_the_draws_reaches_the_engine(judge: ModelVersion, gauges: ModelVersion) -> None:
    x = rows(40)
    asked = Asked(
        draws=80, min_draws=20, seed=5, coverage=0.8, design="independent", stopping=Stopping.tolerance(0.006)
    )
    spec = SamplingSpec(
        max_draws=80,
        min_draws=20,
        seed=5,
        coverage=0.8,
        design=Design.INDEPENDENT,
        stopping=Rule(StoppingRule.TOLERANCE, target=0.006),
    )
    expected = judge.predict(x, spec)
    assert len(set(expected.draws.tolist())) > 1
    same(LocalScorer(judge, asked, passes=FEW).score({"x": x}), expected)
    asked = Asked(coverage=0.8, interval_level=0.5, quantiles=(0.2, 0.7), estimator="plain", tolerance=0.2)
    spec = SamplingSpec(
        coverage=0.8,
        interval_level=0.5,
        quantiles=(0.2, 0.7),
        estimator=Estimator.PLAIN,
        stopping=Rule(StoppingRule.TOLERANCE, target=0.2),
    )
    same(LocalScorer(gauges, asked, passes=FEW).score({"x": x}), gauges.predict(x, spec))


def test_one_draw_leaves_out_what_it_cannot_tell(judge: ModelVersion) -> None:
    found = LocalScorer(judge, Asked(draws=1, design="independent")).score({"x": rows(3)})
    assert found["draws"].tolist() == [1, 1, 1]
    assert not {"mutual_information", "standard_deviation", "standard_error"} & set(found)


def test_the_same_rows_get_the_same_bytes_whoever_asks_and_whatever_torch_is_set_to(version: ModelVersion) -> None:
    x = rows(200)
    first = LocalScorer(version, threads=1).score({"x": x})
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        scorer = LocalScorer(version)
        assert scorer.threads == 2
        alike(first, scorer.score({"x": x}))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    shifted = np.empty((201, x.shape[1]), np.float32)  # rows that lie elsewhere in memory
    shifted[1:] = x
    alike(first, LocalScorer(version, threads=3).score({"x": shifted[1:]}))


def test_what_a_clock_chose_for_a_version_changes_no_bit(judge: ModelVersion) -> None:
    x = rows(64)
    plain = LocalScorer(judge).score({"x": x})
    judge.engine.use_pass_bytes({1: 1})
    try:
        alike(plain, LocalScorer(judge).score({"x": x}))
    finally:
        judge.engine.use_pass_bytes({})


def test_threads_that_score_at_once_get_the_bytes_of_one_after_another(judge: ModelVersion) -> None:
    blocks = [rows(150, seed) for seed in range(12)]
    asked = Asked(coverage=0.9, stopping=Stopping.decision())
    alone = [LocalScorer(judge, asked, threads=1, passes=FEW).score({"x": x}) for x in blocks]
    scorer = LocalScorer(judge, asked, threads=4, passes=FEW)
    start = threading.Barrier(4)

    def score(x: np.ndarray) -> Answers:
        return scorer.score({"x": x})

    with ThreadPoolExecutor(4, initializer=start.wait, initargs=(60,)) as pool:
        for one, other in zip(alone, pool.map(score, blocks), strict=True):
            alike(one, other)


def test_no_more_threads_are_in_the_engine_than_were_asked(
    judge: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = LocalScorer(judge, threads=2)
    inside, most, lock = 0, 0, threading.Lock()
    predict = Engine.predict

    def counted(self: Engine, *args: Any) -> Predictive:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        try:
            return predict(self, *args)
        finally:
            with lock:
                inside -= 1

    monkeypatch.setattr(Engine, "predict", counted)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda seed: scorer.score({"x": rows(30, seed)}), range(12)))
    assert 1 <= most <= 2


def test_slices_hang_on_the_network_the_draws_and_the_lengths_alone(
    judge: ModelVersion, packed: Callable[[str], ModelVersion]
) -> None:
    x = {"x": torch.from_numpy(rows(4))}
    usual = LocalScorer(judge)
    assert usual.slice_rows(x, judge.engine) == (2 << 20) // (24 * 4)
    assert LocalScorer(judge, Asked(draws=10_000), threads=1).slice_rows(x, judge.engine) < usual.slice_rows(
        x, judge.engine
    )
    assert LocalScorer(judge, passes=usual.passes).passes == usual.passes
    assert LocalScorer(judge, passes=FEW).slice_rows(x, judge.engine) == 8
    version = packed("encoder")
    scorer = LocalScorer(version)
    shorter, longer = ({"series": torch.zeros(2, length, 16)} for length in (5, 50))
    assert scorer.slice_rows(longer, version.engine) < scorer.slice_rows(shorter, version.engine)


def test_the_threads_of_torch_are_as_before_after_an_error_too(judge: ModelVersion) -> None:
    scorer = LocalScorer(judge)
    before = torch.get_num_threads()
    with pytest.raises(InvalidArgument, match=r"inputs\['x'\]\.shape"):
        scorer.score({"x": np.zeros((2, 5), np.float32)})
    with pytest.raises(InvalidArgument, match="finite"):
        scorer.score({"x": np.full((2, 6), np.nan, np.float32)})
    assert torch.get_num_threads() == before
    scorer.score({"x": rows(2)})


def test_too_little_memory_is_said_and_the_engine_is_there_for_the_next(
    judge: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = LocalScorer(judge, threads=1)

    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("2 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "predict", full)
        with pytest.raises(ServerError, match="too little memory"):
            scorer.score({"x": rows(2)})
    scorer.score({"x": rows(2)})


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (Asked(draws=0), "draws"),
        (Asked(min_draws=0), "min_draws"),
        (Asked(seed=-1), "seed"),
        (Asked(coverage=1.5), "coverage"),
        (Asked(tolerance=-1.0), "stopping.target"),
        (Asked(design="odd"), "design"),  # type: ignore[arg-type]
        (Asked(stopping=Stopping("soon")), "stopping.rule"),  # type: ignore[arg-type]
    ],
)
def test_what_no_engine_takes_is_refused_in_the_callers_words(judge: ModelVersion, asked: Asked, field: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        LocalScorer(judge, asked)
    assert refusal.value.field == field
    assert refusal.value.accepted


def test_a_version_says_what_its_calibration_can(
    judge: ModelVersion, gauge: ModelVersion, gauges: ModelVersion
) -> None:
    told = [LocalScorer(each).described for each in (judge, gauge, gauges)]
    assert [each.covers for each in told] == [True, False, True]
    assert [each.abstains for each in told] == [True, False, False]
    assert [each.classifies for each in told] == [True, False, False]
    assert [each.outputs for each in told] == [3, 1, 2]
    assert told[1].calibration_id is None
    with pytest.raises(InvalidArgument, match="gauge version 1 has no calibration"):
        LocalScorer(gauge, Asked(coverage=0.9))


def test_a_version_is_opened_by_its_name(judge: ModelVersion, models: Path) -> None:
    scorer = open_local(str(models), "judge", Asked(draws=20), threads=1)
    assert (scorer.described.version, scorer.asked.draws, scorer.threads) == (1, 20, 1)
    alike(scorer.score({"x": rows(9)}), LocalScorer(judge, Asked(draws=20)).score({"x": rows(9)}))


def test_what_cannot_be_opened_is_told_by_name(judge: ModelVersion, models: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no nobody in"):
        open_local(str(models), "nobody")
    with pytest.raises(NotFound, match="judge version 7"):
        open_local(str(models), "judge", version=7)
    with pytest.raises(InvalidArgument, match="an existing folder"):
        open_local(str(tmp_path / "nothing"), "judge")
    shutil.copytree(judge.folder, tmp_path / "judge" / "1")
    (tmp_path / "judge" / "1" / "program.pt2").write_bytes(b"cut off")
    with pytest.raises(InvalidArgument, match=r"judge.*program\.pt2.*checksum"):
        open_local(str(tmp_path), "judge")


def test_a_calibration_that_is_switched_meanwhile_changes_nothing(judge: ModelVersion, tmp_path: Path) -> None:
    version = load_version(Path(shutil.copytree(judge.folder, tmp_path / "judge" / "1")))
    scorer = LocalScorer(version)
    before = scorer.score({"x": rows(5)})
    version.use_calibration(None)
    alike(before, scorer.score({"x": rows(5)}))


def test_what_rounding_hangs_on_names_the_software_and_the_processor(judge: ModelVersion) -> None:
    passes = LocalScorer(judge, threads=1, passes={**FEW, "torch": "0.1", "processor": "abacus"}).passes
    assert (passes["torch"], passes["numpy"]) == (torch.__version__, np.__version__)
    assert str(passes["processor"]).endswith(torch.backends.cpu.get_cpu_capability())


def test_a_job_begun_on_another_processor_is_not_gone_on_with(
    judge: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {f"x{place}": values for place, values in enumerate(rows(20).T)}
    parquet.write_table(arrow.table(table), tmp_path / "rows.parquet")
    job = Job(source=str(tmp_path / "rows.parquet"), output=str(tmp_path / "out"), columns={"x": ("x*",)}, resume=True)
    monkeypatch.setattr("dubito_batch.job.put_page", lambda folder, summary: "")
    assert run_job(job, lambda passes: LocalScorer(judge, passes=passes)).fresh
    assert not run_job(job, lambda passes: LocalScorer(judge, passes=passes)).fresh
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")
    with pytest.raises(InvalidArgument, match=r"processor: got .* ABACUS; accepted: .*, with which.*; go on where"):
        run_job(job, lambda passes: LocalScorer(judge, passes=passes))
