"""Laws of the job: every row once, whatever happens on the way; the same bytes as if nothing had happened."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as arrow
import pytest
from pyarrow import dataset, parquet

from dubito_batch import parts
from dubito_batch.answers import Asked
from dubito_batch.job import Job, Outcome, run_job
from dubito_batch.ledger import SUMMARY, read_ledger
from dubito_batch.memory import Room, peak_memory
from dubito_batch.parts import NotWritten, open_folder
from dubito_batch.running import Interrupted, Progress
from dubito_batch.scoring import Scorer
from dubito_batch.work import gaps
from dubito_client.errors import InvalidArgument, Unavailable

from .standing import CLASSIFIER, FEATURES, StandIn, classify, contents, table, write_input

ROWS = (330, 64, 0, 200)  # of the files of the input: with blocks of 64 rows, 6, 1, 0 and 4 parts
PARTS = 11


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts take longer than all else here."""
    monkeypatch.setattr("dubito_batch.job.put_page", lambda folder, summary: "")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_input(tmp_path / "days", *ROWS)


def job(source: Path, output: Path, **options: Any) -> Job:
    return Job(source=str(source), output=str(output), **{"batch_rows": 64, **options})


def score(source: Path, output: Path, scorer: Scorer | None = None, **options: Any) -> Outcome:
    return run_job(job(source, output, **options), lambda passes: scorer or StandIn())


def begin(source: Path, output: Path, parts: int = 4) -> None:
    """Leave a job with at least so many parts."""
    finished = 0

    def report(progress: Progress) -> None:
        nonlocal finished
        finished = progress.parts

    with pytest.raises(Interrupted):
        run_job(job(source, output), lambda passes: StandIn(), report, stopped=lambda: finished >= parts)


# --- What comes out ---


def test_every_row_comes_out_once_in_its_order_with_what_it_had(source: Path, tmp_path: Path) -> None:
    outcome = score(source, tmp_path / "out")
    assert len(contents(tmp_path / "out")) == PARTS
    found = dataset.dataset(tmp_path / "out", format="parquet").to_table()
    given = arrow.concat_tables(parquet.read_table(file) for file in sorted(source.iterdir()))
    assert found.select(given.column_names).equals(given)
    rows = np.stack([given[f"f{place}"].to_numpy() for place in range(FEATURES)], axis=1)
    np.testing.assert_array_equal(found["dubito_label"].to_numpy(), classify(rows)["label"])
    assert outcome.summary.rows == sum(ROWS)
    assert outcome.summary.parts == PARTS
    assert outcome.fresh


def test_the_parts_are_blocks_of_one_file_each_and_one_row_group(source: Path, tmp_path: Path) -> None:
    score(source, tmp_path / "out")
    found = {}
    for name in contents(tmp_path / "out"):
        with parquet.ParquetFile(tmp_path / "out" / name) as part:
            found[name] = part.metadata.num_rows
            assert part.num_row_groups == 1
    first = {f"part-00000-{block:07d}.parquet": 64 for block in range(5)}
    last = {f"part-00003-{block:07d}.parquet": 64 for block in range(3)}
    assert found == {
        **first, "part-00000-0000005.parquet": 10, "part-00001-0000000.parquet": 64, **last,
        "part-00003-0000003.parquet": 8,
    }  # fmt: skip


def test_pandas_reads_the_folder_and_sees_the_parts_alone(source: Path, tmp_path: Path) -> None:
    score(source, tmp_path / "out")
    found = pandas.read_parquet(tmp_path / "out")
    assert len(found) == sum(ROWS)
    assert found["dubito_status"].eq("OK").all()
    assert found["dubito_probabilities"].map(sum).sub(1.0).abs().max() < 1e-9


def test_a_table_of_no_rows_becomes_one_part_of_no_rows(tmp_path: Path) -> None:
    outcome = score(write_input(tmp_path / "days", 0, 0), tmp_path / "out")
    assert list(contents(tmp_path / "out")) == ["part-00000-0000000.parquet"]
    found = pandas.read_parquet(tmp_path / "out")
    assert len(found) == 0
    assert "dubito_label" in found.columns
    assert (outcome.summary.rows, outcome.summary.mean_draws, outcome.summary.epistemic) == (0, None, None)


@pytest.mark.parametrize("workers", [1, 3])
def test_neither_workers_nor_memory_change_a_byte(source: Path, tmp_path: Path, workers: int) -> None:
    score(source, tmp_path / "plain")
    score(source, tmp_path / "other", workers=workers, limit_memory=peak_memory() + 2**30)
    assert contents(tmp_path / "plain") == contents(tmp_path / "other")


def test_an_output_may_be_of_any_store(source: Path, tmp_path: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    try:
        with pytest.raises(Interrupted):
            run_job(
                replace(job(source, tmp_path), output="memory://out"), lambda passes: StandIn(), stopped=lambda: True
            )
        for resume in (True, True):
            url = replace(job(source, tmp_path, resume=resume), output="memory://out")
            outcome = run_job(url, lambda passes: StandIn())
        assert not outcome.fresh
        score(source, tmp_path / "here")
        there = {path.rsplit("/", 1)[-1]: store.cat_file(path) for path in store.glob("/out/*.parquet")}
        assert there == contents(tmp_path / "here")
    finally:
        store.rm("/out", recursive=True)


# --- Taking a job up again ---


def test_a_job_that_is_taken_up_scores_what_is_missing_and_nothing_again(source: Path, tmp_path: Path) -> None:
    score(source, tmp_path / "whole")
    begin(source, tmp_path / "out")
    kept = contents(tmp_path / "out")
    (tmp_path / "out" / "part-00000-0000001.parquet").unlink()  # a hole
    scored: list[int] = []
    outcome = score(source, tmp_path / "out", StandIn(before=scored.append), resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    missing = sum(ROWS) - sum(arrow_rows(content) for content in kept.values()) + 64
    assert sum(scored) == outcome.summary.scored == missing
    assert outcome.summary.rows == sum(ROWS)


def arrow_rows(content: bytes) -> int:
    return int(parquet.read_metadata(arrow.BufferReader(content)).num_rows)


def test_a_job_that_is_complete_says_so_and_does_nothing(source: Path, tmp_path: Path) -> None:
    first = score(source, tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    second = score(source, tmp_path / "out", StandIn(before=lambda rows: pytest.fail("scored again")), resume=True)
    assert not second.fresh
    assert second.summary == first.summary
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_another_threshold_of_a_complete_job_is_counted_without_scoring(source: Path, tmp_path: Path) -> None:
    score(source, tmp_path / "out")
    never = StandIn(before=lambda rows: pytest.fail("scored again"))
    outcome = score(source, tmp_path / "out", never, resume=True, abstain_above=0.05)
    assert outcome.fresh
    assert outcome.summary.above is not None
    doubt = dataset.dataset(tmp_path / "out", format="parquet").to_table()["dubito_mutual_information"].to_numpy()
    assert outcome.summary.above.rows == (doubt > 0.05).sum()


def test_a_part_that_was_cut_is_made_again(source: Path, tmp_path: Path) -> None:
    score(source, tmp_path / "whole")
    begin(source, tmp_path / "out")
    part = tmp_path / "out" / "part-00000-0000001.parquet"
    part.write_bytes(part.read_bytes()[:-9])  # as a store beyond this machine may leave it
    score(source, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_parts_that_are_not_of_the_job_are_refused_by_name(source: Path, tmp_path: Path) -> None:
    begin(source, tmp_path / "out")
    first, second, stray = (
        tmp_path / "out" / f"part-{number}.parquet" for number in ("00000-0000000", "00000-0000001", "00007-0000000")
    )
    own = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(InvalidArgument, match=f"output: got {second.name} in .*, which holds {first.name}; accepted"):
        score(source, tmp_path / "out", resume=True)
    second.write_bytes(own)
    stray.write_bytes(own)
    with pytest.raises(InvalidArgument, match=f"output: got {stray.name} in .*, which is of no file of the input"):
        score(source, tmp_path / "out", resume=True)
    stray.unlink()
    assert score(source, tmp_path / "out", resume=True).summary.rows == sum(ROWS)


def test_blocks_of_a_wide_table_have_fewer_rows_and_as_many_when_the_job_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = write_input(tmp_path / "days", 20), open_folder(str(tmp_path / "out"))
    wide = table(300, 1).set_column(5, "note", arrow.array(["x" * 20_000] * 300))
    parquet.write_table(wide, source / "day-1.parquet")
    score(source, tmp_path / "out", batch_rows=None)
    begun = read_ledger(folder)
    assert begun is not None
    assert begun.batch_rows == 1024
    monkeypatch.setattr("dubito_batch.job.measure_row", lambda files: 1)
    assert not score(source, tmp_path / "out", resume=True, batch_rows=None).fresh


def test_resuming_where_nothing_was_begun_begins(source: Path, tmp_path: Path) -> None:
    assert score(source, tmp_path / "out", resume=True).summary.rows == sum(ROWS)


def test_a_job_is_not_overwritten_without_being_asked_for(source: Path, tmp_path: Path) -> None:
    begin(source, tmp_path / "out")
    with pytest.raises(InvalidArgument, match="accepted: another folder, or --resume to go on with that job"):
        score(source, tmp_path / "out")


def test_a_scorer_gets_back_what_its_rounding_hung_on(source: Path, tmp_path: Path) -> None:
    begin(source, tmp_path / "out")
    told: list[Mapping[str, Any] | None] = []

    def again(passes: Mapping[str, Any] | None) -> StandIn:
        told.append(passes)
        return StandIn(passes=dict(passes or {"rows": 1}))

    run_job(job(source, tmp_path / "out", resume=True), again)
    assert told == [{"rows": 64}]


@pytest.mark.parametrize(
    ("scorer", "options", "said"),
    [
        (StandIn(asked=Asked(draws=8)), {}, "draws: got 8; accepted: the model's own, with which"),
        (
            StandIn(asked=Asked(tolerance=0.1)),
            {},
            "stopping: got rule tolerance quantity mean target 0.1; accepted: the model's own",
        ),
        (StandIn(replace(CLASSIFIER, version=4)), {}, "version: got 4; accepted: 3, with which"),
        (StandIn(replace(CLASSIFIER, calibration_id=None)), {}, "calibration: got none; accepted: c1, with which"),
        (StandIn(), {"batch_rows": 32}, "batch_rows: got 32; accepted: 64, with which"),
    ],
)
def test_another_job_is_refused_by_name_and_changes_nothing(
    source: Path, tmp_path: Path, scorer: StandIn, options: dict[str, Any], said: str
) -> None:
    begin(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(InvalidArgument) as refusal:
        score(source, tmp_path / "out", scorer, resume=True, **options)
    assert str(refusal.value).startswith(said)
    assert contents(tmp_path / "out") == before


def test_other_columns_are_refused_by_name(source: Path, tmp_path: Path) -> None:
    nameless = StandIn(replace(CLASSIFIER, inputs=(replace(CLASSIFIER.inputs[0], columns=()),)))
    score(source, tmp_path / "out", nameless, columns={"x": ("f*",)})
    with pytest.raises(InvalidArgument, match="columns of x: got id, f0, f1, f2; accepted: f0, f1, f2, f3, with which"):
        score(source, tmp_path / "out", nameless, resume=True, columns={"x": ("id", "f0", "f1", "f2")})


def test_an_input_that_changed_is_refused_by_name(source: Path, tmp_path: Path) -> None:
    begin(source, tmp_path / "out")
    parquet.write_table(table(331, 0), source / "day-0.parquet")
    with pytest.raises(InvalidArgument, match=r"input: got .*day-0\.parquet changed, \d+ bytes then and \d+ now"):
        score(source, tmp_path / "out", resume=True)


def test_an_input_that_changes_while_the_job_runs_is_told(source: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def change(rows: int) -> None:
        calls.append(rows)
        if len(calls) == 9:  # by when it was read
            parquet.write_table(table(64, 9), source / "day-1.parquet")

    with pytest.raises(InvalidArgument, match=r"day-1\.parquet, which changed while the job ran.*; without its parts"):
        score(source, tmp_path / "out", StandIn(before=change))
    assert not (tmp_path / "out" / SUMMARY).exists()


def test_an_input_that_is_gone_once_it_was_read_is_not_missed(source: Path, tmp_path: Path) -> None:
    def remove(rows: int) -> None:
        (source / "day-0.parquet").unlink(missing_ok=True)

    for other in ("day-1.parquet", "day-2.parquet", "day-3.parquet"):
        (source / other).unlink()
    assert score(source, tmp_path / "out", StandIn(before=remove)).summary.rows == ROWS[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_rows": 0}, "batch_rows: got 0; accepted: at least 1"),
        ({"workers": 0}, "workers: got 0; accepted: at least 1"),
        ({"abstain_above": float("nan")}, "abstain_above: got nan; accepted: a finite number"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused(source: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        score(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_output_inside_the_input_is_refused(source: Path) -> None:
    with pytest.raises(InvalidArgument, match="inside the input; accepted: a folder beside the input"):
        score(source, source / "scored")
    assert not (source / "scored").exists()


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ("days/**/*.parquet", "days/out"),
        ("days/**/*.parquet", "days/deep/er"),
        ("day[s]/**", "days/out"),
        ("days/*", "days/out"),
        ("link", "days/out"),
        ("days", "link/out"),
        ("link/**/*.parquet", "days/out"),
    ],
)
def test_an_output_that_the_input_would_find_is_refused(source: Path, tmp_path: Path, given: str, output: str) -> None:
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(InvalidArgument, match="inside the input; accepted: a folder beside the input"):
        score(tmp_path / given, tmp_path / output)
    assert not (tmp_path / output).exists()


@pytest.mark.parametrize(
    ("given", "output"), [("days/*.parquet", "days/out"), ("days/**/*.parquet", "days/_out"), ("days/*", "days-out")]
)
def test_an_output_that_the_input_would_not_find_may_be_beside_it(
    source: Path, tmp_path: Path, given: str, output: str
) -> None:
    begin(tmp_path / given, tmp_path / output)
    assert score(tmp_path / given, tmp_path / output, resume=True).summary.rows == sum(ROWS)


def test_an_output_in_a_store_that_the_input_would_find_is_refused(source: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe("/days/day-1.parquet", (source / "day-1.parquet").read_bytes())
    try:
        with pytest.raises(InvalidArgument, match="inside the input"):
            run_job(Job(source="memory://days/**/*.parquet", output="memory://days/out"), lambda passes: StandIn())
    finally:
        store.rm("/days", recursive=True)


def test_the_missing_blocks_of_a_file_are_the_gaps_and_the_rest() -> None:
    assert list(gaps(set())) == [(0, None)]
    assert list(gaps({0, 1})) == [(2, None)]
    assert list(gaps({1, 2, 5})) == [(0, 1), (3, 2), (6, None)]


# --- Rows that cannot be scored ---


def spoil(source: Path) -> None:
    """Put rows in the second file that no model takes."""
    rows = table(64, 1).to_pydict()
    rows["f1"][7], rows["f2"][7], rows["f0"][30] = None, float("nan"), float("inf")
    parquet.write_table(arrow.table(rows), source / "day-1.parquet")


def test_rows_that_cannot_be_scored_are_told_and_counted_and_harm_no_other(source: Path, tmp_path: Path) -> None:
    score(source, tmp_path / "good")
    spoil(source)
    summary = score(source, tmp_path / "out").summary
    assert summary.invalid == 2
    assert sum(kind.rows for kind in summary.problems) == 2
    assert {(Path(e.file).name, e.row) for kind in summary.problems for e in kind.examples} == {
        ("day-1.parquet", 7), ("day-1.parquet", 30)
    }  # fmt: skip
    good, found = (parquet.read_table(tmp_path / name / "part-00001-0000000.parquet") for name in ("good", "out"))
    assert found["dubito_status"].to_pylist() == ["INVALID" if row in (7, 30) else "OK" for row in range(64)]
    assert [row for row, label in enumerate(found["dubito_label"].to_pylist()) if label is None] == [7, 30]
    others = [row for row in range(64) if row not in (7, 30)]
    assert found.take(others).equals(good.take(others))


def test_lines_of_another_length_are_bad_rows_like_others(tmp_path: Path) -> None:
    rows = table(150)
    lines = [",".join(map(str, row.values())) for row in rows.to_pylist()]
    lines[3], lines[100] = "3,0.5", f"{lines[100]},more"
    source = tmp_path / "rows.csv"
    source.write_text("\n".join([",".join(rows.column_names), *lines]))
    lenient = replace(CLASSIFIER.inputs[0], columns=(), allow_nan=True)  # a row of nulls is one that it takes
    scorer, columns = StandIn(replace(CLASSIFIER, inputs=(lenient,))), {"x": ("f*",)}
    summary = score(source, tmp_path / "out", scorer, columns=columns).summary
    assert (summary.rows, summary.invalid) == (150, 2)
    assert summary.problems[0].what == "line: not 6 cells, one for each column"
    assert [(each.row, each.given) for each in summary.problems[0].examples] == [(3, "2 cells"), (100, "7 cells")]
    found = dataset.dataset(tmp_path / "out", format="parquet").to_table()
    assert found["id"].to_pylist() == [None if row in (3, 100) else str(row) for row in range(150)]
    assert [row for row, label in enumerate(found["dubito_label"].to_pylist()) if label is None] == [3, 100]
    numbers = np.stack([rows[f"f{place}"].to_numpy() for place in range(FEATURES)], axis=1)
    good = [row for row in range(150) if row not in (3, 100)]
    np.testing.assert_array_equal(found["dubito_label"].take(good).to_numpy(), classify(numbers)["label"][good])
    with pytest.raises(InvalidArgument, match=r"row 3 \(from 0\) of .* \(line: got 2 cells; accepted: 6 cells"):
        score(source, tmp_path / "strict", scorer, columns=columns, strict=True)


def test_a_strict_job_stops_at_the_first_bad_row_and_keeps_the_parts_before(source: Path, tmp_path: Path) -> None:
    spoil(source)
    said = (
        r"input: got row 7 \(from 0\) of .*day-1\.parquet, which cannot be scored \(.*f[12].*\); accepted: with --str"
    )
    with pytest.raises(InvalidArgument, match=said):
        score(source, tmp_path / "out", strict=True, workers=3)
    assert {f"part-00000-{block:07d}.parquet" for block in range(6)} <= set(contents(tmp_path / "out"))
    assert score(source, tmp_path / "out", resume=True).summary.invalid == 2
    with pytest.raises(InvalidArgument, match=said):
        score(source, tmp_path / "out", resume=True, strict=True)


# --- What breaks on the way ---


def test_a_full_disk_is_one_clear_error_and_the_job_goes_on_when_there_is_room(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(source, tmp_path / "whole")
    fsync, room = os.fsync, [4]

    def write(file: int) -> None:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= 1
        fsync(file)

    with monkeypatch.context() as full:
        full.setattr(parts.os, "fsync", write)
        with pytest.raises(NotWritten, match=r"output: part-.* cannot be written: No space left on device$"):
            score(source, tmp_path / "out")
    assert len(contents(tmp_path / "out")) == 3  # beside the ledger
    assert not list((tmp_path / "out").glob(".*.tmp"))
    score(source, tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_file_that_cannot_be_read_keeps_what_is_before_it_and_once_mended_the_job_goes_on(
    source: Path, tmp_path: Path
) -> None:
    score(source, tmp_path / "whole")
    last = source / "day-3.parquet"
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidArgument, match=r"input: .*day-3\.parquet"):
        score(source, tmp_path / "out")
    assert len(contents(tmp_path / "out")) == 7
    last.write_bytes(content)
    scored: list[int] = []
    assert score(source, tmp_path / "out", StandIn(before=scored.append), resume=True).summary.rows == sum(ROWS)
    assert sum(scored) == ROWS[3]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not score(source, tmp_path / "out", resume=True).fresh


def test_a_file_that_becomes_unreadable_on_the_way_keeps_what_is_before_it(source: Path, tmp_path: Path) -> None:
    last = source / "day-3.parquet"
    content = last.read_bytes()

    def damage(rows: int) -> None:
        last.write_bytes(b"\0" * len(content))

    with pytest.raises(InvalidArgument, match=r"input: .*day-3\.parquet"):
        score(source, tmp_path / "out", StandIn(before=damage))
    assert len(contents(tmp_path / "out")) == 7
    last.write_bytes(content)
    assert score(source, tmp_path / "out", resume=True).summary.rows == sum(ROWS)


def test_a_file_that_changed_is_scored_as_it_is_now_once_its_parts_are_removed(source: Path, tmp_path: Path) -> None:
    score(source, tmp_path / "out")
    parquet.write_table(table(65, 1), source / "day-1.parquet")
    with pytest.raises(
        InvalidArgument, match=r"without its parts \(part-00001-\*\.parquet\), --resume scores the file"
    ):
        score(source, tmp_path / "out", resume=True)
    (tmp_path / "out" / "part-00001-0000000.parquet").unlink()
    outcome = score(source, tmp_path / "out", resume=True)
    assert (outcome.summary.rows, outcome.summary.scored) == (sum(ROWS) + 1, 65)


def test_a_complete_job_goes_on_where_a_file_without_rows_got_some(source: Path, tmp_path: Path) -> None:
    score(source, tmp_path / "out")
    parquet.write_table(table(5, 2), source / "day-2.parquet")
    outcome = score(source, tmp_path / "out", resume=True)
    assert (outcome.summary.rows, outcome.summary.scored) == (sum(ROWS) + 5, 5)


def test_a_server_that_is_lost_keeps_what_was_answered(source: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def lose(rows: int) -> None:
        calls.append(rows)
        if len(calls) > 5:
            raise Unavailable("nobody answers at 10.0.0.1:50051")

    with pytest.raises(Unavailable, match="nobody answers"):
        score(source, tmp_path / "out", StandIn(before=lose))
    assert len(contents(tmp_path / "out")) == 5
    assert score(source, tmp_path / "out", resume=True).summary.rows == sum(ROWS)


def test_two_jobs_cannot_write_one_folder(source: Path, tmp_path: Path) -> None:
    inside, free = threading.Event(), threading.Event()

    def hold(rows: int) -> None:
        if rows:
            inside.set()
            assert free.wait(60)

    first = threading.Thread(target=score, args=(source, tmp_path / "out", StandIn(before=hold)))
    first.start()
    try:
        assert inside.wait(60)
        with pytest.raises(InvalidArgument, match="a folder that no other job is writing now"):
            score(source, tmp_path / "out", resume=True)
    finally:
        free.set()
        first.join()
    assert (tmp_path / "out" / SUMMARY).exists()


def test_a_job_that_is_told_to_stop_writes_what_is_scored(source: Path, tmp_path: Path) -> None:
    scored: list[int] = []
    with pytest.raises(Interrupted):
        run_job(
            job(source, tmp_path / "out"),
            lambda passes: StandIn(before=scored.append),
            stopped=lambda: len(scored) >= 4,
        )
    assert sum(arrow_rows(content) for content in contents(tmp_path / "out").values()) == sum(scored)
    assert not (tmp_path / "out" / SUMMARY).exists()


# --- SIGKILL ---

WORK = """
import sys, time
from scoring.standing import StandIn
from dubito_batch.job import Job, run_job
source, output = sys.argv[1:]
scorer = StandIn(threads=2, before=lambda rows: time.sleep(0.002))
run_job(Job(source=source, output=output, batch_rows=64, resume=True), lambda passes: scorer)
"""


@pytest.mark.parametrize("seed", range(6))
def test_a_job_that_is_killed_and_taken_up_ends_with_the_bytes_of_an_unbroken_one(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    source, out = write_input(tmp_path / "days", 2000, 1111, 3000), tmp_path / "out"
    score(source, tmp_path / "whole")
    total = len(contents(tmp_path / "whole"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for end in sorted(chance.sample(range(1, total), 2)):
        with subprocess.Popen([sys.executable, "-c", WORK, str(source), str(out)], env=environment) as process:
            while process.poll() is None and sum(1 for _ in out.glob("part-*.parquet")) < end:
                time.sleep(0.001)
            time.sleep(chance.random() * 0.01)
            process.send_signal(signal.SIGKILL)
            assert process.wait(60) in (-signal.SIGKILL, 0)
        for name, content in contents(out).items():
            assert content == (tmp_path / "whole" / name).read_bytes()
    score(source, out, resume=True)
    assert contents(out) == contents(tmp_path / "whole")
    assert not list(out.glob(".*"))
    said, whole = (json.loads((folder / SUMMARY).read_text()) for folder in (out, tmp_path / "whole"))
    for name in ("seconds", "scored", "rows_per_second"):
        del said[name], whole[name]
    assert said == whole


# --- Progress and memory ---


def test_progress_counts_the_rows_of_all_runs_and_times_those_of_this_one(source: Path, tmp_path: Path) -> None:
    begin(source, tmp_path / "out")
    kept = sum(arrow_rows(content) for content in contents(tmp_path / "out").values())
    told: list[Progress] = []
    ticks = iter(range(1000))
    run_job(
        job(source, tmp_path / "out", resume=True), lambda passes: StandIn(), told.append, clock=lambda: next(ticks)
    )
    assert (told[0].rows, told[0].scored, told[0].total, told[0].seconds) == (kept, 0, sum(ROWS), 0)
    assert told[0].mean_draws is None
    last = told[-1]
    assert (last.rows, last.scored, last.parts) == (sum(ROWS), sum(ROWS) - kept, PARTS)
    assert last.rows_per_second == last.scored / last.seconds
    assert last.mean_draws is not None
    assert 16 < last.mean_draws < 32
    assert [each.parts for each in told] == list(range(told[0].parts, PARTS + 1))


def test_a_limit_lets_one_block_alone_first_and_then_as_many_as_fit(source: Path, tmp_path: Path) -> None:
    most = blocks_at_once(source, tmp_path / "wide", peak=lambda: 100, limit=10**9)
    assert most == 4
    assert blocks_at_once(source, tmp_path / "narrow", peak=lambda: 100, limit=101) == 1


def blocks_at_once(source: Path, output: Path, peak: Callable[[], int], limit: int) -> int:
    """Return how many blocks were scored at once, at most: of four workers, each waits a while for the others."""
    lock, now, most = threading.Lock(), 0, 0
    together = threading.Event()

    def count(rows: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            if now == 4:
                together.set()
        if limit > 101 and first_is_done():
            together.wait(30)
        with lock:
            now -= 1

    def first_is_done() -> bool:
        return any(output.glob("part-*"))

    asked = job(source, output, workers=4, limit_memory=limit)
    run_job(asked, lambda passes: StandIn(before=count), peak=peak)
    return most


def test_a_limit_that_one_block_is_too_much_for_is_refused_and_says_how_much_it_takes(
    source: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        InvalidArgument, match="limit_memory: got 10 MiB; accepted: at least 51 MiB, which the model and"
    ):
        run_job(
            job(source, tmp_path / "out", limit_memory=10 * 2**20),
            lambda passes: StandIn(),
            peak=lambda: 50 * 2**20 + 1,
        )


def test_the_window_is_what_is_left_of_the_limit() -> None:
    def after(cost: int, peak: int, most: int) -> int:
        room = Room(1000, most, peak - 100)
        room.begin(50)
        assert room.window == 1
        room.end(50, cost, peak)
        return room.window

    assert after(200, 400, 10) == 4
    assert after(200, 400, 3) == 3
    assert after(200, 1000, 3) == 1
    assert after(0, 400, 20) == 7  # by the growth of the peak
    assert 2**20 < peak_memory() < 2**40


def test_the_window_narrows_once_blocks_take_more_than_the_first_did() -> None:
    room = Room(1000, 9, 300)
    for size in (50, 60):
        room.begin(size)
    room.end(50, 100, 400)
    assert room.window == 7
    room.end(60, 250, 500)
    assert room.window == 3
    room.end(50, 100, 1000)  # 300 for each of the two beside the first
    assert room.window == 2 + 1
    room.end(50, 301, 1000)
    assert room.window == 2
    with pytest.raises(InvalidArgument, match="which the model and 2 blocks at once took; blocks of fewer rows"):
        room.end(50, 100, 1001)


def test_a_block_larger_than_all_before_it_is_alone_until_it_is_done() -> None:
    room = Room(1000, 9, 300)
    room.begin(10)
    room.end(10, 10, 310)
    assert room.window == 9
    room.begin(200)
    assert room.window == 1
    room.end(10, 10, 320)
    assert room.window == 1
    room.end(200, 200, 600)
    assert room.window == 2


def test_a_small_first_file_does_not_open_the_window_to_large_blocks(tmp_path: Path) -> None:
    source, lock = write_input(tmp_path / "days", 3, 10 * 2048), threading.Lock()
    now, most = 0, 0

    def count(rows: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)  # in which others would come
        with lock:
            now -= 1

    asked = job(source, tmp_path / "out", batch_rows=2048, workers=4, limit_memory=500_000)
    run_job(asked, lambda passes: StandIn(before=count), peak=lambda: 100)
    assert most == 1


def test_a_job_that_takes_more_than_its_limit_on_the_way_is_ended_and_keeps_its_parts(
    source: Path, tmp_path: Path
) -> None:
    peaks = iter([100, 200, 300, *[2000] * 99])
    asked = job(source, tmp_path / "out", workers=4, limit_memory=1500)
    with pytest.raises(InvalidArgument, match="limit_memory: got 0 MiB; accepted: at least 1 MiB, which the model and"):
        run_job(asked, lambda passes: StandIn(), peak=lambda: next(peaks))
    assert 3 <= len(contents(tmp_path / "out")) < PARTS


GROWTH = """
import sys, time
from dubito_batch import job
from dubito_batch.memory import peak_memory
from scoring.standing import StandIn
job.put_page = lambda folder, summary: ""
source, output = sys.argv[1:]
scorer = StandIn(threads=2, before=lambda rows: time.sleep(0.004))
first = 0
def report(progress):
    global first
    if progress.parts == 1:
        first = peak_memory()
job.run_job(job.Job(source=source, output=output, batch_rows=256), lambda passes: scorer, report)
print(peak_memory() - first)
"""


def test_memory_grows_by_a_few_blocks_and_not_by_the_table(tmp_path: Path) -> None:
    blocks, block_rows = 120, 256  # of 2 MiB each
    rows = table(block_rows).drop_columns("note")
    notes = np.random.default_rng(0).bytes(8192 * block_rows)
    rows = rows.append_column("note", arrow.array([notes[at : at + 8192] for at in range(0, len(notes), 8192)]))
    (tmp_path / "days").mkdir()
    with parquet.ParquetWriter(tmp_path / "days" / "a.parquet", rows.schema, use_dictionary=False) as writer:
        for _ in range(blocks):
            writer.write_table(rows)
    command = [sys.executable, "-c", GROWTH, str(tmp_path / "days"), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert len(contents(tmp_path / "out")) == blocks
    assert int(done.stdout) < 96 << 20
