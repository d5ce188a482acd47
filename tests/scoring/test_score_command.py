"""Laws of `dubito score`: a table in and out, one line and a telling code on failure, an end in good order."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import duckdb
import numpy as np
import pandas
import polars
import pyarrow as arrow
import pytest
from click.testing import CliRunner, Result
from pyarrow import parquet
from rich.console import Console

from dubito_batch.command import Size
from dubito_batch.page import PAGE
from dubito_batch.parts import encode_part
from dubito_batch.progress import shown, tell
from dubito_batch.running import Progress
from dubito_client.command import main
from dubito_models.package import ModelVersion
from dubito_models.sampling import SamplingSpec
from served import DUBITO, served

from .conftest import CLASSES, WIDTH, rows
from .standing import contents

COUNT = 1000
COLUMNS = [f"x{place}" for place in range(WIDTH)]


def write(path: Path, count: int = COUNT) -> Path:
    values = rows(count)
    table = {"id": [f"{row:05d}" for row in range(count)], **dict(zip(COLUMNS, values.T, strict=True))}
    if path.suffix == ".csv":
        pandas.DataFrame(table).to_csv(path, index=False)
    else:
        parquet.write_table(arrow.table(table), path)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.parquet")


def arguments(source: Path, output: Path, *options: str, model: str = "judge") -> list[str]:
    return ["score", model, "--input", str(source), "--output", str(output), "--columns", "x=x*", *options]


def run(*given: str) -> Result:
    return CliRunner(env={"DUBITO_SERVER": ""}).invoke(main, given)


def one_line(result: Result, code: int, text: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert text in result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)


@pytest.fixture
def here(models: Path, judge: ModelVersion) -> tuple[str, ...]:
    return ("--repository", str(models), "--batch-rows", "128")


# --- What comes out ---


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_table_comes_out_with_what_the_model_says_of_each_row(
    judge: ModelVersion, here: tuple[str, ...], tmp_path: Path, kind: str
) -> None:
    result = run(*arguments(write(tmp_path / f"rows.{kind}"), tmp_path / "out", *here, "--draws", "32"))
    assert result.exit_code == 0, result.output
    found = pandas.read_parquet(tmp_path / "out")
    assert found["id"].tolist() == [f"{row:05d}" for row in range(COUNT)]
    labels = judge.predict(rows(COUNT), SamplingSpec(32)).answer.label
    np.testing.assert_array_equal(found["dubito_label"], labels)
    assert found["dubito_class_name"].tolist() == [CLASSES[label] for label in labels]
    assert f"judge version {judge.version}" in result.stdout
    assert str(tmp_path / "out" / PAGE) in result.stdout.replace("\n", "")


def test_pandas_polars_and_duckdb_read_what_comes_out_as_one_table(
    source: Path, here: tuple[str, ...], tmp_path: Path
) -> None:
    assert run(*arguments(source, tmp_path / "out", *here, "--draws", "16")).exit_code == 0
    assert (tmp_path / "out" / PAGE).exists()  # which lies beside the parts
    parts = f"{tmp_path / 'out'}/*.parquet"
    expected = parquet.read_table(tmp_path / "out").to_pylist()
    assert len(expected) == COUNT
    by_pandas = pandas.read_parquet(tmp_path / "out")
    by_polars = polars.read_parquet(parts)
    with duckdb.connect() as connection:
        by_duckdb = connection.sql(f"select * from '{parts}'").to_arrow_table()
    assert by_polars.to_dicts() == expected
    assert by_duckdb.to_pylist() == expected
    for name in ("id", "dubito_class_name", "dubito_mutual_information"):
        assert by_pandas[name].tolist() == [row[name] for row in expected]


def test_the_summary_is_one_document_on_standard_output_and_progress_is_not(
    source: Path, here: tuple[str, ...], tmp_path: Path
) -> None:
    given = arguments(source, tmp_path / "out", *here, "--json", "--abstain-above", "0.001", "--draws", "16")
    result = run(*given)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert result.stderr == ""
    assert (said["rows"], said["invalid"], said["parts"]) == (COUNT, 0, 8)
    assert said["output"] == str(tmp_path / "out")
    assert said["page"] == PAGE
    assert 0 < said["above"]["share"] < 1
    again = json.loads(run(*given, "--resume").stdout)
    assert said == again


def test_a_job_that_is_complete_says_so(source: Path, here: tuple[str, ...], tmp_path: Path) -> None:
    given = arguments(source, tmp_path / "out", *here, "--draws", "16")
    assert run(*given).exit_code == 0
    assert "This job was complete before; nothing was done." in run(*given, "--resume").stdout


def test_rows_that_cannot_be_scored_are_told(here: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,x0,x1,x2,x3,x4,x5\n007,1,2,3,4,5,6\n008,1,two,3,4,5,6\n")
    result = run(*arguments(tmp_path / "rows.csv", tmp_path / "out", *here))
    assert result.exit_code == 0
    assert "Rows that could not be scored" in result.stdout
    assert "(row 1 of rows.csv: 'two')" in result.stdout
    assert pandas.read_parquet(tmp_path / "out")["id"].tolist() == ["007", "008"]
    strict = run(*arguments(tmp_path / "rows.csv", tmp_path / "strict", *here, "--strict"))
    one_line(strict, 2, "input: got row 1 (from 0) of ")
    assert "0 finished parts are kept, and --resume goes on" in strict.stderr


def test_only_a_job_that_can_go_on_is_said_to(
    judge: ModelVersion, here: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "days"
    source.mkdir()
    content = write(source / "day-0.parquet").read_bytes()
    (source / "day-1.parquet").write_bytes(content[:-300])
    stopped = run(*arguments(source, tmp_path / "out", *here, "--draws", "16"))
    one_line(stopped, 2, "day-1.parquet")
    assert stopped.stderr.endswith("; 8 finished parts are kept, and --resume goes on\n")
    (source / "day-1.parquet").write_bytes(content)

    def change(*given: object) -> bytes:
        os.utime(source / "day-1.parquet", ns=(1, 1))
        return encode_part(*given)

    monkeypatch.setattr("dubito_batch.work.encode_part", change)
    changed = run(*arguments(source, tmp_path / "out", *here, "--draws", "16", "--resume"))
    one_line(changed, 2, "day-1.parquet, which changed while the job ran")
    assert "are kept" not in changed.stderr


def test_a_server_answers_as_the_model_does_here(
    models: Path, source: Path, here: tuple[str, ...], tmp_path: Path
) -> None:
    assert run(*arguments(source, tmp_path / "here", *here, "--draws", "32")).exit_code == 0
    with served(models.parent) as address:
        there = arguments(source, tmp_path / "there", "--server", address, "--batch-rows", "128", "--draws", "32")
        result = run(*there)
        assert result.exit_code == 0, result.output
        one_line(run(*there), 2, "--resume to go on with that job")
    one, other = (pandas.read_parquet(tmp_path / name) for name in ("here", "there"))
    assert list(one.columns) == list(other.columns)
    np.testing.assert_array_equal(one["dubito_label"], other["dubito_label"])
    np.testing.assert_allclose(one["dubito_mutual_information"], other["dubito_mutual_information"], atol=1e-6)


# --- One line and a telling code ---


def test_bad_input_ends_with_one_line_and_code_2(
    source: Path, models: Path, here: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    one_line(run(*arguments(source, out)), 2, "--repository DIR to score here, or --server HOST:PORT")
    both = ("--repository", str(models), "--server", "localhost:1")
    one_line(run(*arguments(source, out, *both)), 2, "got both --repository and --server; accepted: one of them")
    one_line(run(*arguments(tmp_path / "absent.parquet", out, *here)), 2, "absent.parquet")
    one_line(run(*arguments(source, out, *here, model="nobody")), 2, "no nobody in")
    one_line(run(*arguments(source, out, *here, "--version", "9")), 2, "no judge version 9 in")
    one_line(run(*arguments(source, out, "--repository", str(tmp_path / "absent"))), 2, "repository")
    one_line(
        run(*arguments(source, out, *here, "--level", "0.9")), 2, "level: got 0.9; accepted: this only with --stop"
    )
    one_line(run(*arguments(source, out, *here, "--draws", "-1")), 2, "draws")
    one_line(run(*arguments(source, out, *here, "--coverage", "7")), 2, "coverage")
    one_line(run(*arguments(source, out, *here, "--columns", "y=x0")), 2, "columns: got an input 'y'")
    one_line(run(*arguments(source, out, *here, "--limit-memory", "1MiB")), 2, "1 finished part is kept")
    one_line(run(*arguments(source, source, *here)), 2, "output: got the file ")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    one_line(run(*arguments(source, tmp_path / "other", *here)), 2, "which holds mine.txt; accepted: an empty folder")


def test_scoring_here_without_torch_says_what_to_install(
    source: Path, here: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "dubito_batch.local", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    one_line(run(*arguments(source, tmp_path / "out", *here)), 2, "without torch; accepted: --server, or what scoring")


def test_a_server_that_nobody_reaches_ends_with_one_line_and_code_1(source: Path, tmp_path: Path) -> None:
    result = run(*arguments(source, tmp_path / "out", "--server", "127.0.0.1:1", "--timeout", "5"))
    one_line(result, 1, "127.0.0.1:1")
    assert not (tmp_path / "out").exists()


def test_the_environments_server_gives_way_to_a_repository(source: Path, here: tuple[str, ...], tmp_path: Path) -> None:
    given = arguments(source, tmp_path / "out", *here, "--draws", "16")
    result = CliRunner(env={"DUBITO_SERVER": "127.0.0.1:1"}).invoke(main, given)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GiB", 2**31), ("500 MB", 500_000_000), ("1.5g", 1_500_000_000), ("64kib", 65536), ("1048576", 2**20)],
)
def test_a_size_is_read_as_people_write_it(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "two", "-1GiB", "1 PiB", "GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no size such as 2GiB"):
        Size().convert(text, None, None)


def test_scoring_by_a_server_imports_no_torch() -> None:
    check = "import sys, dubito_batch.command; sys.exit('torch' in sys.modules or 'dubito_models' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


# --- The end, before the end ---


@pytest.fixture
def long(models: Path, judge: ModelVersion, tmp_path: Path) -> list[str]:
    """A job of some seconds."""
    source = write(tmp_path / "long.parquet", 12_000)
    options = ("--repository", str(models), "--batch-rows", "128", "--workers", "1", "--draws", "128", "--stop", "none")
    return [DUBITO, *arguments(source, tmp_path / "out", *options)]


def started(command: list[str], out: Path, parts: int) -> Iterator[subprocess.Popen[str]]:
    """Start a job, and yield it once it has finished so many parts."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and sum(1 for _ in out.glob("part-*")) < parts:
            time.sleep(0.002)
        yield process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_job_that_is_told_to_end_keeps_its_parts_and_says_how_to_go_on(
    long: list[str], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    for process in started(long, tmp_path / "out", 3):
        process.send_signal(number)
        said, told = process.communicate(timeout=60)
        assert process.returncode == code, told
    assert said == ""
    kept = len(contents(tmp_path / "out"))
    assert "ending with the blocks under way; once more to end at once" in told.splitlines()
    assert told.splitlines()[-1] == f"Interrupted; {kept} finished parts are kept, and --resume goes on."
    assert "Traceback" not in told
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_a_job_that_is_killed_goes_on_to_the_bytes_of_an_unbroken_one(long: list[str], tmp_path: Path) -> None:
    for process in started(long, tmp_path / "out", 10):
        process.kill()
        process.communicate(timeout=60)
    kept = contents(tmp_path / "out")
    assert 10 <= len(kept) < 94
    assert run(*long[1:], "--resume").exit_code == 0
    long[long.index(str(tmp_path / "out"))] = str(tmp_path / "whole")
    long[long.index("--workers") + 1] = "2"
    assert run(*long[1:]).exit_code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert {name: contents(tmp_path / "whole")[name] for name in kept} == kept


# --- What a person sees meanwhile ---


def far(scored: int, **changes: object) -> Progress:
    fields = {
        "total": 10_000,
        "rows": 2000 + scored,
        "parts": 3,
        "scored": scored,
        "draws": 24 * scored,
        "seconds": 4.0,
    }
    return Progress(**{**fields, **changes})  # type: ignore[arg-type]


def test_progress_tells_rows_speed_what_is_left_and_draws() -> None:
    assert tell(far(2000)) == "4,000 of 10,000 rows (40.0%), 500 rows/s, 0:12 left, 24.0 draws a row"
    assert tell(far(0, seconds=0.0)) == "2,000 of 10,000 rows (20.0%)"
    assert tell(far(10, total=None, invalid=2, draws=80)) == "2,010 rows, 2 rows/s, 10.0 draws a row, 2 not scored"
    assert tell(far(1, total=40_000)).split(", ")[1:] == ["0 rows/s", "42:13:16 left", "24.0 draws a row"]


def test_a_terminal_gets_a_bar_and_anything_else_a_line_now_and_then() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    with shown(terminal) as show:
        show(far(2000))
    assert "4,000 of 10,000 rows (40.0%)" in terminal.file.getvalue()  # type: ignore[attr-defined]
    now = [0.0]
    log = Console(file=io.StringIO(), width=100)
    with shown(log, lambda: now[0]) as show:
        for second in range(25):
            now[0] = float(second)
            show(far(second))
    lines = log.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split(" ")[0] for line in lines] == ["2,010", "2,020"]
