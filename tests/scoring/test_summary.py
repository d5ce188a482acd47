"""Laws of the summary: it is what a person with the whole output in memory would count."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pytest
from PIL import Image
from pyarrow import dataset, parquet

from dubito_batch.job import Job, run_job
from dubito_batch.ledger import SUMMARY
from dubito_batch.page import CHART, PAGE, compose_page, describe, put_page, share
from dubito_batch.parts import open_folder
from dubito_batch.summary import BARS, Summary, read_summary
from dubito_client.errors import InvalidArgument

from .standing import CLASSIFIER, StandIn, table, write_input

REGRESSION = replace(CLASSIFIER, task="regression", outputs=2, class_names=(), abstains=False, calibration_id=None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two files, with rows in the second that cannot be scored."""
    folder = write_input(tmp_path / "days", 700, 300)
    rows = table(300, 1).to_pydict()
    for row in (3, 5, 7, 11, 13):
        rows["f1"][row] = None
    rows["f2"][100] = math.inf
    parquet.write_table(arrow.table(rows), folder / "day-1.parquet")
    return folder


def summed(source: Path, output: Path, scorer: StandIn, threshold: float | None = None) -> tuple[Summary, arrow.Table]:
    job = Job(source=str(source), output=str(output), batch_rows=128, abstain_above=threshold)
    summary = run_job(job, lambda passes: scorer).summary
    return summary, dataset.dataset(output, format="parquet").to_table()


@pytest.fixture
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dubito_batch.job.put_page", lambda folder, summary: "")


@pytest.mark.usefixtures("_no_page")
def test_counts_are_those_of_the_output(source: Path, tmp_path: Path) -> None:
    summary, found = summed(source, tmp_path / "out", StandIn(), 0.05)
    doubt = found["dubito_mutual_information"].drop_null().to_numpy()
    assert (summary.rows, summary.invalid, summary.answered, summary.files, summary.parts) == (1000, 6, 994, 2, 9)
    assert summary.draws == sum(found["dubito_draws"].drop_null().to_pylist())
    assert summary.mean_draws == summary.draws / 994
    assert summary.stop_reasons == {
        reason: found["dubito_stop_reason"].to_pylist().count(reason) for reason in ("max_draws", "tolerance")
    }
    assert summary.abstained == found["dubito_abstain"].to_pylist().count(True)
    assert summary.above is not None
    assert (summary.above.threshold, summary.above.rows) == (0.05, (doubt > 0.05).sum())


@pytest.mark.usefixtures("_no_page")
@pytest.mark.parametrize("described", [CLASSIFIER, REGRESSION, replace(REGRESSION, outputs=1)])
def test_the_spread_of_epistemic_uncertainty_is_that_of_the_output(source: Path, tmp_path: Path, described) -> None:
    summary, found = summed(source, tmp_path / "out", StandIn(described))
    if described.classifies:
        doubt = found["dubito_mutual_information"].drop_null().to_numpy()
    else:
        variance = found["dubito_epistemic_variance"].drop_null().to_pylist()
        doubt = np.sqrt(np.asarray(variance).reshape(len(variance), -1)).max(1)
    spread = summary.epistemic
    assert spread is not None
    assert (spread.quantity, spread.unit) == (
        ("mutual information", "nats") if described.classifies else ("epistemic deviation", "")
    )
    assert (spread.rows, spread.most) == (994, doubt.max())
    assert spread.mean == pytest.approx(doubt.mean())
    shares = [(doubt <= quantile).mean() for quantile in (spread.median, spread.ninety, spread.ninety_nine)]
    np.testing.assert_allclose(shares, [0.5, 0.9, 0.99], atol=2 / 994)
    counts, edges = np.histogram(doubt, BARS)
    assert spread.counts == tuple(counts)
    np.testing.assert_allclose(spread.edges, edges)


@pytest.mark.usefixtures("_no_page")
def test_problems_are_told_apart_by_column_and_by_what_is_accepted(source: Path, tmp_path: Path) -> None:
    summary, _ = summed(source, tmp_path / "out", StandIn())
    first, second = summary.problems
    assert (first.rows, second.rows) == (5, 1)
    assert first.what.startswith("f1: not a")
    assert second.what.startswith("f2: not a")
    assert [(Path(each.file).name, each.row) for each in first.examples] == [
        ("day-1.parquet", row) for row in (3, 5, 7)
    ]
    assert [(each.row, each.given) for each in second.examples] == [(100, "inf")]


@pytest.mark.usefixtures("_no_page")
def test_many_kinds_of_problems_are_not_all_kept_apart(tmp_path: Path) -> None:
    names = [f"f{place}" for place in range(80)]
    signature = replace(CLASSIFIER.inputs[0], shape=(None, 80), columns=())
    described = replace(CLASSIFIER, inputs=(signature,))
    rows = np.zeros((80, 80))
    rows[np.arange(80), np.arange(80)] = np.nan
    parquet.write_table(arrow.table(dict(zip(names, rows.T, strict=True))), tmp_path / "in.parquet")
    job = Job(source=str(tmp_path / "in.parquet"), output=str(tmp_path / "out"), columns={"x": ("f*",)})
    summary = run_job(job, lambda passes: StandIn(described)).summary
    assert summary.problems[0].what == "other problems"
    assert (summary.problems[0].rows, len(summary.problems), summary.answered) == (30, 51, 0)
    assert summary.epistemic is None


@pytest.mark.usefixtures("_no_page")
def test_a_summary_is_read_as_it_was_written_and_holds_what_follows_from_it(source: Path, tmp_path: Path) -> None:
    summary, _ = summed(source, tmp_path / "out", StandIn(), 0.02)
    folder = open_folder(str(tmp_path / "out"))
    assert read_summary(folder) == summary
    said = json.loads(folder.read(SUMMARY))
    assert said["mean_draws"] == summary.mean_draws
    assert said["share_abstained"] == summary.share(summary.abstained)
    assert said["above"]["share"] == said["above"]["rows"] / summary.answered
    (tmp_path / "out" / SUMMARY).write_text("{}")
    with pytest.raises(InvalidArgument, match="without the file, --resume makes it again"):
        read_summary(folder)


SEVERAL = pytest.mark.parametrize("described", [CLASSIFIER, replace(REGRESSION, outputs=1), REGRESSION])


@pytest.mark.usefixtures("_no_page")
@SEVERAL
def test_one_draw_tells_no_epistemic_uncertainty_and_the_summary_does_not_either(tmp_path: Path, described) -> None:
    class OneDraw(StandIn):
        def score(self, inputs):
            found = super().score(inputs)
            if self.described.classifies:
                del found["mutual_information"]
            else:
                found["epistemic_variance"] = np.full_like(found["mean"], np.nan)
            return found

    summary, _ = summed(write_input(tmp_path / "in", 50), tmp_path / "out", OneDraw(described), 0.1)
    assert summary.epistemic is None
    chart, page = compose_page(summary)
    assert chart is None
    assert "<img" not in page


@pytest.mark.usefixtures("_no_page")
@SEVERAL
def test_a_part_without_an_answered_row_adds_none_to_the_spread(tmp_path: Path, described) -> None:
    source = write_input(tmp_path / "in", 256)
    rows = table(256, 0).to_pydict()
    rows["f1"][128:] = [math.nan] * 128
    parquet.write_table(arrow.table(rows), source / "day-0.parquet")
    summary, _ = summed(source, tmp_path / "out", StandIn(described), 0.1)
    assert (summary.rows, summary.invalid, summary.parts) == (256, 128, 2)
    assert summary.epistemic is not None
    assert summary.epistemic.rows == 128


@pytest.mark.usefixtures("_no_page")
@SEVERAL
@pytest.mark.parametrize("count", [0, 50])
def test_a_job_without_an_answered_row_has_a_summary(tmp_path: Path, described, count: int) -> None:
    rows = {**table(count).to_pydict(), "f1": [math.nan] * count}
    source = tmp_path / "in.parquet"
    parquet.write_table(arrow.table(rows, table(0).schema), source)
    summary, _ = summed(source, tmp_path / "out", StandIn(described), 0.1)
    assert (summary.rows, summary.invalid, summary.epistemic) == (count, count, None)
    assert describe(summary)


def test_the_page_stands_alone_and_says_what_the_terminal_does(source: Path, tmp_path: Path) -> None:
    evil = replace(CLASSIFIER, model="<script>alert(1)</script>")
    summary, _ = summed(source, tmp_path / "out", StandIn(evil), 0.05)
    page = (tmp_path / "out" / PAGE).read_text()
    assert "<script>" not in page
    assert re.findall(r'(?:src|href|srcset)="(?!data:image/png;base64,|#)', page) == []
    for said in describe(summary).values():
        assert said.replace("<", "&lt;").replace(">", "&gt;") in page
    assert "row 100 of day-1.parquet: inf" in page
    with Image.open(tmp_path / "out" / CHART) as chart:
        assert chart.size == (798, 627)
    assert compose_page(summary) == compose_page(summary)


def test_rows_that_are_all_as_uncertain_make_a_chart_too(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    parquet.write_table(table(1), source)
    summary, _ = summed(source, tmp_path / "out", StandIn())
    assert summary.epistemic is not None
    assert sum(summary.epistemic.counts) == 1
    assert (tmp_path / "out" / CHART).exists()


def test_without_what_draws_charts_the_summary_says_so(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    summary, _ = summed(source, tmp_path / "out", StandIn())
    said = put_page(open_folder(str(tmp_path / "out")), summary)
    assert said == "no chart and no page: jinja2 is not installed (pip install 'dubito[train]')"
    assert not (tmp_path / "out" / PAGE).exists()


def test_a_share_that_is_not_nothing_does_not_look_so() -> None:
    assert [share(part) for part in (0.0, 1e-6, 0.1234, 0.99999, 1.0)] == [
        "0.0%", "under 0.1%", "12.3%", "over 99.9%", "100.0%"
    ]  # fmt: skip
