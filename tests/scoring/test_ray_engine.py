"""Laws of the job on Ray: the parts of the local engine, whatever becomes of a worker (make ray-check)."""

from __future__ import annotations

import importlib.util
import os
import pickle
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pandas
import psutil
import pyarrow as arrow
import pytest
from click.testing import CliRunner
from pyarrow import feather, parquet

from dubito_batch.answers import Asked
from dubito_batch.job import Job, run_job
from dubito_batch.local import open_local
from dubito_batch.parts import Place
from dubito_batch.ray_engine import Actor, Opening, RayModel, connected, cut, open_on_ray
from dubito_batch.running import Interrupted, Progress
from dubito_batch.summary import Summary
from dubito_batch.work import Stretch
from dubito_client.command import main
from dubito_client.errors import InvalidArgument, NotFound, Unavailable
from dubito_models.package import ModelVersion
from served import DUBITO

from .conftest import WIDTH, rows
from .standing import CLASSIFIER, contents

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray (make ray-check)")
COLUMNS = [f"x{place}" for place in range(WIDTH)]
ROWS = (700, 300, 40)  # of the files of the input: with blocks of 32 rows, 22, 10 and 2 parts
PARTS = 34


def write(folder: Path) -> Path:
    """Write three files, the last one of another format; row 5 of the first is bad, and 290 of the second."""
    folder.mkdir()
    for number, count in enumerate(ROWS):
        table = {"id": list(range(count)), **dict(zip(COLUMNS, rows(count, number).T.copy(), strict=True))}
        if number == 2:
            feather.write_feather(arrow.table(table), folder / "day-2.feather")
            continue
        table["x1"][5 if number == 0 else 290] = float("nan")
        parquet.write_table(arrow.table(table), folder / f"day-{number}.parquet", row_group_size=100)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "days")


@pytest.fixture
def opening(models: Path, judge: ModelVersion) -> Opening:
    return Opening(repository=str(models), model="judge", version=None, asked=Asked(draws=16))


@pytest.fixture(scope="module")
def quiet_ray() -> Iterator[dict[str, str]]:
    """What keeps Ray from calling home, and from leaving a token in the home folder."""
    told = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in told.items():
            patch.setenv(name, value)
        yield told


@pytest.fixture(scope="module")
def cluster(quiet_ray: dict[str, str]) -> Iterator[None]:
    """A cluster of this machine, with room for two actors; its files lie where paths are short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        try:
            yield
        finally:
            ray.shutdown()


def on_a_cluster(test: Callable[..., None]) -> Callable[..., None]:
    own_warnings = pytest.mark.filterwarnings("default")  # of Ray
    return needs_ray(own_warnings(pytest.mark.usefixtures("cluster")(test)))


def on_ray(
    source: Path,
    output: Path,
    opening: Opening,
    report: Callable[[Progress], None] = lambda progress: None,
    stopped: Callable[[], bool] = lambda: False,
    **options: object,
) -> Summary:
    job = Job(source=str(source), output=str(output), **{"batch_rows": 32, "columns": {"x": ("x*",)}, **options})  # type: ignore[arg-type]
    return run_job(job, lambda passes: open_on_ray(opening, passes), report, stopped=stopped).summary


def here(source: Path, output: Path, opening: Opening, stop_at: int = PARTS + 1, **options: object) -> Summary:
    finished = 0

    def report(progress: Progress) -> None:
        nonlocal finished
        finished = progress.parts

    job = Job(source=str(source), output=str(output), batch_rows=32, columns={"x": ("x*",)}, **options)  # type: ignore[arg-type]
    outcome = run_job(
        job,
        lambda passes: open_local(opening.repository, opening.model, opening.asked, passes=passes),
        report,
        stopped=lambda: finished >= stop_at,
    )
    return outcome.summary


def same(one: Summary, other: Summary) -> bool:
    """Whether two summaries are of jobs that came to the same, in whatever time."""
    return replace(one, seconds=0.0, scored=0) == replace(other, seconds=0.0, scored=0)


# --- On a cluster ---


@on_a_cluster
def test_parts_and_summary_are_those_of_the_local_engine(source: Path, tmp_path: Path, opening: Opening) -> None:
    told: list[Progress] = []
    there = on_ray(source, tmp_path / "ray", opening, told.append)
    local = here(source, tmp_path / "here", opening)
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")
    assert same(there, local)
    assert (there.rows, there.invalid, there.parts) == (sum(ROWS), 2, PARTS)
    assert [each.parts for each in told] == list(range(PARTS + 1))
    assert (told[-1].total, told[-1].rows) == (sum(ROWS), sum(ROWS))


@on_a_cluster
def test_a_killed_workers_blocks_are_scored_by_another(source: Path, tmp_path: Path, opening: Opening) -> None:
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if progress.parts >= 3 and not killed:
            actors = [each for each in psutil.process_iter() if is_actor(each)]
            killed.append(actors[0].pid)
            actors[0].send_signal(signal.SIGKILL)

    summary = on_ray(source, tmp_path / "ray", opening, kill)
    assert killed
    here(source, tmp_path / "here", opening)
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")
    assert summary.rows == sum(ROWS)


@on_a_cluster
def test_a_strict_job_stops_at_the_first_bad_row_and_goes_on_when_it_is_not(
    source: Path, tmp_path: Path, opening: Opening
) -> None:
    said = r"input: got row 5 \(from 0\) of .*day-0\.parquet, which cannot be scored"
    with pytest.raises(InvalidArgument, match=said):
        on_ray(source, tmp_path / "ray", opening, strict=True)
    assert Place(0, 0).name not in contents(tmp_path / "ray")
    summary = on_ray(source, tmp_path / "ray", opening, resume=True)
    assert same(summary, here(source, tmp_path / "here", opening))
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")


@on_a_cluster
def test_either_engine_goes_on_with_a_job_of_the_other(source: Path, tmp_path: Path, opening: Opening) -> None:
    here(source, tmp_path / "whole", opening)
    with pytest.raises(Interrupted):
        here(source, tmp_path / "first", opening, stop_at=5)
    told: list[Progress] = []
    on_ray(source, tmp_path / "first", opening, told.append, resume=True)
    assert contents(tmp_path / "first") == contents(tmp_path / "whole")
    assert 5 <= told[0].parts < PARTS
    assert told[-1].scored == sum(ROWS) - told[0].rows

    with pytest.raises(Interrupted):
        on_ray(source, tmp_path / "second", opening, stopped=lambda: any((tmp_path / "second").glob("part-*")))
    assert len(contents(tmp_path / "second")) < PARTS
    here(source, tmp_path / "second", opening, resume=True)
    assert contents(tmp_path / "second") == contents(tmp_path / "whole")


@on_a_cluster
def test_what_a_worker_refuses_is_refused_here(source: Path, tmp_path: Path, opening: Opening) -> None:
    with pytest.raises(NotFound, match="no nobody in"):
        on_ray(source, tmp_path / "ray", replace(opening, model="nobody"))
    with pytest.raises(InvalidArgument, match=r"interval_level: got 0\.5; accepted: none"):
        on_ray(source, tmp_path / "ray", replace(opening, asked=Asked(interval_level=0.5)))
    with pytest.raises(InvalidArgument, match="limit_memory"):
        on_ray(source, tmp_path / "ray", opening, limit_memory=2**40)
    assert not (tmp_path / "ray").exists()


def is_actor(process: psutil.Process) -> bool:
    try:
        return "MapWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


@needs_ray
def test_the_command_starts_a_cluster_of_its_own_and_ray_stays_silent(
    source: Path, tmp_path: Path, models: Path, judge: ModelVersion, quiet_ray: dict[str, str]
) -> None:
    given = ["score", "judge", "--input", str(source), "--output", str(tmp_path / "out"), "--columns", "x=x*"]
    command = [DUBITO, *given, "--repository", models.name, "--engine", "ray", "--json"]
    environment = {**os.environ, **quiet_ray, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=models.parent, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if " rows/s, " not in line] == []
    assert len(pandas.read_parquet(tmp_path / "out")) == sum(ROWS)


DYING = """
import os, signal, sys
from dubito_batch import ray_engine
from dubito_client.command import main

class Dying(ray_engine.Actor):
    def __call__(self, batch):
        if batch.to_pylist()[0]["file"] == 1:
            with open({deaths!r}, "a") as told:
                told.write(".")
            os.kill(os.getpid(), signal.SIGKILL)
        yield from super().__call__(batch)

ray_engine.Actor = Dying
main(sys.argv[1:])
"""


@needs_ray
def test_rows_that_workers_die_over_end_the_job_in_one_line_and_it_goes_on_once_they_do_not(
    source: Path, tmp_path: Path, opening: Opening, models: Path, quiet_ray: dict[str, str]
) -> None:
    deaths = tmp_path / "deaths"
    given = ["score", "judge", "--input", str(source), "--output", str(tmp_path / "ray"), "--columns", "x=x*"]
    given += ["--repository", str(models), "--engine", "ray", "--batch-rows", "32", "--draws", "16"]
    command = [sys.executable, "-c", DYING.format(deaths=str(deaths)), *given]
    environment = {**os.environ, **quiet_ray, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 1, done.stderr
    [said] = [line for line in done.stderr.splitlines() if " rows/s, " not in line]
    assert "workers of the Ray cluster died, 4 times over the same rows (is there memory for them?)" in said
    assert len(deaths.read_text()) >= 4
    assert 0 < len(contents(tmp_path / "ray")) < PARTS
    here(source, tmp_path / "ray", opening, resume=True)
    here(source, tmp_path / "here", opening)
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")


@needs_ray
def test_a_cluster_that_nobody_reaches_is_one_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(Unavailable, match=r"no Ray cluster at 127\.0\.0\.1:1: .*refused"), connected("127.0.0.1:1"):
        pytest.fail("connected")


# --- Without one ---


def test_the_command_says_what_is_missing_in_one_line(
    source: Path, tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["score", "judge", "--input", str(source), "--output", str(tmp_path / "out")]
    local, ray = ("--repository", str(models)), ("--engine", "ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    for options, said in (
        ((*local, *ray), "engine: got ray, which is not installed; accepted: local, or pip install 'dubito[batch,ray]"),
        ((*ray, "--server", "localhost:1"), "engine: got ray without --repository"),
        ((*local, "--ray-address", "localhost:1"), "ray_address: got localhost:1; accepted: this only with --engine"),
    ):
        result = CliRunner(env={"DUBITO_SERVER": ""}).invoke(main, [*given, *options])
        assert result.exit_code == 2, result.output
        assert len(result.stderr.splitlines()) == 1
        assert said in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("actors", [1, 2, 100])
def test_stretches_are_every_missing_block_once_in_several_pieces_for_each_actor(actors: int) -> None:
    counts: list[int | None] = [100_000, None, 0, 50]
    missing = [
        Stretch(Place(0, 3), 7), Stretch(Place(0, 20), None), Stretch(Place(1, 2), 5), Stretch(Place(1, 9), None),
        Stretch(Place(2, 0), None), Stretch(Place(3, 0), None),
    ]  # fmt: skip
    found = cut(missing, counts, 100, actors)
    assert [each for each in found if each.blocks is None] == [Stretch(Place(1, 9), None)]
    blocks = [
        (each.first.file, each.first.block + place)
        for each in found
        if each.blocks is not None
        for place in range(each.blocks)
    ]
    wanted = [(0, range(3, 10)), (0, range(20, 1000)), (1, range(2, 7)), (3, range(1))]
    assert blocks == list(chain.from_iterable([(file, block) for block in numbers] for file, numbers in wanted))
    assert len(found) >= min(8 * actors, len(blocks))
    assert max(each.blocks or 0 for each in found) <= 16


def test_an_actor_scores_by_no_other_files_than_the_first_was_asked_about(opening: Opening) -> None:
    model = RayModel(opening=opening, described=CLASSIFIER, passes={}, gpus=False, threads=1)
    model = replace(model, described=replace(CLASSIFIER, model="judge", version=1))
    batch = arrow.table({"file": [0], "block": [0], "blocks": [1]})
    [told] = Actor(None, model)(batch)  # type: ignore[arg-type]
    assert str(pickle.loads(told["told"][0])).startswith("version: got judge version 1, which is not alike everywhere")


def test_an_actor_may_have_another_processor_and_no_other_torch(opening: Opening) -> None:
    here = opening.open(None, None)
    model = RayModel(
        opening=opening,
        described=here.described,
        passes={**here.passes, "processor": "abacus"},
        gpus=False,
        threads=1,
    )
    assert Actor(None, model)._open().described == here.described  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="the same files, torch, numpy and kind of device on every machine"):
        Actor(None, replace(model, passes={**model.passes, "torch": "0.1"}))._open()  # type: ignore[arg-type]


@on_a_cluster
def test_a_job_begun_on_one_processor_goes_on_on_a_cluster_of_others(opening: Opening) -> None:
    assert open_on_ray(opening, {"processor": "abacus"}).passes["processor"] == "abacus"
