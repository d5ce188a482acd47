"""Laws of the output folder and its ledger: whole files only, one job at a time, and none but the one begun."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as arrow
import pytest
from fsspec.implementations.memory import MemoryFile
from pyarrow import parquet

from dubito_batch import parts
from dubito_batch.ledger import LEDGER, SUMMARY, Ledger, check_output, check_same, describe_job, read_ledger
from dubito_batch.parts import LOCK, NotWritten, Place, encode_part, open_folder
from dubito_batch.sources import InputFile
from dubito_client.errors import InvalidArgument

from .standing import CLASSIFIER, table

FILES = (InputFile("/data/a.csv", "csv", 10, "1"), InputFile("/data/b.csv", "csv", 20, "2"))
ASKED = {
    "draws": 32,
    "seed": None,
    "stopping": {"rule": "tolerance", "target": 0.01, "level": None},
    "quantiles": [0.5],
}
TABLE = {"f0": "double", "f1": "double"}
PLACE = Place(0, 0)
SOFTWARE = {"dubito": "0.1.0", "pyarrow": "26.0.1"}


def ledger(**changes: Any) -> Ledger:
    begun = describe_job(CLASSIFIER, ASKED, {"x": ("f0", "f1")}, 64, FILES, {"slice_rows": 256}, SOFTWARE, TABLE)
    return replace(begun, **changes)


# --- Parts ---


def test_a_part_is_the_same_bytes_for_the_same_rows_and_is_one_row_group() -> None:
    rows = table(1000).to_batches()[0]
    content = encode_part(rows, PLACE)
    assert content == encode_part(arrow.RecordBatch.from_pylist(rows.to_pylist(), schema=rows.schema), PLACE)
    file = parquet.ParquetFile(arrow.BufferReader(content))
    assert file.num_row_groups == 1
    assert file.read().equals(arrow.Table.from_batches([rows]))
    assert parquet.read_table(arrow.BufferReader(encode_part(rows.slice(0, 0), PLACE))).schema == rows.schema


def test_the_names_of_parts_sort_as_their_rows_do_and_tell_their_places(tmp_path: Path) -> None:
    places = [Place(0, 0), Place(0, 9), Place(0, 10), Place(3, 0), Place(123_456, 12_345_678)]
    folder = open_folder(str(tmp_path))
    for place in places:
        folder.put(place.name, b"")
    (tmp_path / "part-00000-0000001.parquet.bak").touch()
    assert folder.parts() == frozenset(places)
    assert sorted(place.name for place in places[:-1]) == [place.name for place in places[:-1]]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_file_that_cannot_be_written_whole_is_not_there_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = open_folder(str(tmp_path))
    if step == "fsync":
        monkeypatch.setattr(parts.os, "fsync", fail)
    elif step == "replace":
        monkeypatch.setattr(parts.Path, "replace", fail)
    else:
        folder = open_folder(str(tmp_path / "absent"))
    with pytest.raises(NotWritten, match=r"output: part-00000-0000000\.parquet in .* cannot be written: No s"):
        folder.put(Place(0, 0).name, b"rows")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_a_store_holds_what_a_folder_here_does() -> None:
    store = fsspec.filesystem("memory")
    folder = open_folder("memory://scored/today")
    try:
        assert folder.names() == frozenset()
        folder.make()
        with folder.locked():
            folder.put(Place(0, 1).name, encode_part(table(5).to_batches()[0], Place(0, 1)))
            folder.put(LEDGER, ledger().encode())
        assert folder.parts() == {Place(0, 1)}
        assert read_ledger(folder) == ledger()
        assert folder.read_part(Place(0, 1), ["id"])["id"].to_pylist() == [0, 1, 2, 3, 4]
    finally:
        store.rm("/scored", recursive=True)


def test_a_part_is_read_in_no_thread_that_could_outlive_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    read, threads = MemoryFile.read, set[int]()

    def note(self: MemoryFile, *arguments: int) -> bytes:
        threads.add(threading.get_ident())
        return read(self, *arguments)

    folder = open_folder("memory://scored")
    try:
        folder.put(PLACE.name, encode_part(table(5).to_batches()[0], PLACE))
        monkeypatch.setattr(MemoryFile, "read", note)
        folder.read_part(PLACE, ["id", "note"])
        assert threads == {threading.get_ident()}
    finally:
        folder.system.rm("/scored", recursive=True)


def test_two_jobs_cannot_hold_one_folder_not_even_in_two_processes(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    hold = "import sys; from dubito_batch.parts import open_folder\n"
    hold += "with open_folder(sys.argv[1]).locked(): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InvalidArgument, match="a folder that no other job is writing now"), folder.locked():
            pass
        other.kill()
    with folder.locked():
        assert (tmp_path / LOCK).exists()


def test_what_a_killed_job_had_begun_to_write_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    names = [".part-00000-0000001.parquet.0a1b2c3d.tmp", "._dubito_job.json.99999999.tmp"]
    for name in (*names, ".hidden.tmp", "mine.tmp"):
        (tmp_path / name).touch()
    folder = open_folder(str(tmp_path))
    folder.clear_left_overs()
    assert folder.names() == {".hidden.tmp", "mine.tmp"}


def test_a_part_that_was_damaged_is_named(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    folder.put(Place(0, 0).name, b"PAR1 no more")
    with pytest.raises(InvalidArgument, match=r"part-00000-0000000\.parquet in .*without the file, --resume makes it"):
        folder.read_part(Place(0, 0), ["id"])


def test_a_part_tells_its_rows_if_it_is_whole_and_in_its_place(tmp_path: Path) -> None:
    folder, content = open_folder(str(tmp_path)), encode_part(table(5).to_batches()[0], PLACE)
    folder.put(PLACE.name, content)
    assert folder.count_rows(PLACE) == 5
    for size in (0, 3, len(content) // 2, len(content) - 1):
        folder.put(PLACE.name, content[:size])
        assert folder.count_rows(PLACE) is None
    other = Place(0, 1)
    with pytest.raises(
        InvalidArgument, match=r"part-00000-0000001\.parquet in .*; accepted: the part that the job wrote"
    ):
        folder.count_rows(other)
    folder.put(other.name, content)
    with pytest.raises(
        InvalidArgument, match=r"0001\.parquet in .*, which holds part-00000-0000000\.parquet; accepted"
    ):
        folder.count_rows(other)
    parquet.write_table(table(5), tmp_path / other.name)
    with pytest.raises(InvalidArgument, match="which holds what no job wrote; accepted"):
        folder.count_rows(other)


def test_an_output_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match="accepted: a folder"):
        open_folder(str(tmp_path / "file"))
    with pytest.raises(InvalidArgument, match="a URL that fsspec opens"):
        open_folder("nowhere://bucket")


# --- The ledger ---


def test_a_ledger_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    assert read_ledger(folder) is None
    folder.put(LEDGER, ledger().encode())
    assert read_ledger(folder) == ledger()
    check_same(ledger(), ledger(), {0, 1})


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "model": "m"}', "\x00"])
def test_a_ledger_that_cannot_be_understood_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / LEDGER).write_text(content)
    with pytest.raises(InvalidArgument, match=f"with a {LEDGER} that this release cannot read"):
        check_output(open_folder(str(tmp_path)), resume=True)


def test_a_folder_with_a_job_wants_resume_and_one_with_anything_else_is_refused(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    for resume in (False, True):
        assert check_output(folder, resume) is None
    for name in (LOCK, ".part-00000-0000000.parquet.0a1b2c3d.tmp"):
        folder.put(name, b"")
        assert check_output(folder, resume=False) is None
    folder.put(LEDGER, ledger().encode())
    assert check_output(folder, resume=True) == ledger()
    with pytest.raises(InvalidArgument, match="where a job of stand-in version 3 was begun; accepted: another folder"):
        check_output(folder, resume=False)
    (tmp_path / LEDGER).unlink()
    for name in ("b.txt", "a.txt", "c.txt", "d.txt", SUMMARY):
        folder.put(name, b"")
    for resume in (False, True):
        with pytest.raises(InvalidArgument, match=r"which holds _dubito_summary\.json, a\.txt, b\.txt and 2 more"):
            check_output(folder, resume)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "other"}, "model: got other; accepted: stand-in, with which"),
        ({"version": 4}, "version: got 4; accepted: 3, with which"),
        ({"checksums": {"program.pt2": "b" * 64}}, "version: got stand-in version 3 with another program.pt2"),
        ({"calibration": "c2"}, "calibration: got c2; accepted: c1, with which"),
        ({"asked": {**ASKED, "draws": None}}, "draws: got the model's own; accepted: 32, with which"),
        ({"asked": {**ASKED, "seed": 7}}, "seed: got 7; accepted: the model's own, with which"),
        (
            {"asked": {**ASKED, "stopping": {"rule": "decision", "level": 0.9}}},
            "stopping: got rule decision level 0.9; accepted: rule tolerance target 0.01, with which",
        ),
        ({"asked": {**ASKED, "quantiles": []}}, "quantiles: got none; accepted: 0.5, with which"),
        ({"columns": {"x": ("f1", "f0")}}, "columns of x: got f1, f0; accepted: f0, f1, with which"),
        ({"batch_rows": 128}, "batch_rows: got 128; accepted: 64, with which"),
        ({"passes": {"slice_rows": 128}}, "slice_rows: got 128; accepted: 256, with which"),
        ({"software": {**SOFTWARE, "dubito": "0.2.0"}}, "dubito: got 0.2.0; accepted: 0.1.0, with which"),
        ({"passes": {}}, "model: got that of --server; accepted: that of --repository, by which the job in this"),
        ({"table": {**TABLE, "f1": "string"}}, "column f1: got string; accepted: double, with which"),
        ({"table": {**TABLE, "id": "int64"}}, "column id: got int64; accepted: none, with which"),
        ({"files": FILES[:1]}, "input: got /data/b.csv no more; accepted: the input as it was when"),
        ({"files": FILES[::-1]}, "input: got its files in another order; accepted: the input as it was when"),
        ({"files": (*FILES, replace(FILES[0], url="/c.csv"))}, "input: got /c.csv, which is new; accepted"),
        ({"files": (replace(FILES[0], mark="9"), FILES[1])}, "input: got /data/a.csv changed; accepted"),
        (
            {"files": (replace(FILES[0], size=11), FILES[1])},
            "input: got /data/a.csv changed, 10 bytes then and 11 now; accepted",
        ),
    ],
)
def test_another_job_is_refused_by_the_name_of_what_differs(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        check_same(ledger(), ledger(**changes), {0, 1})
    assert str(refusal.value).startswith(said)


def test_a_file_without_a_part_may_have_changed() -> None:
    now = ledger(files=(FILES[0], replace(FILES[1], size=11)))
    check_same(ledger(), now, {0})
    with pytest.raises(
        InvalidArgument, match=r"without its parts \(part-00001-\*\.parquet\), --resume scores the file"
    ):
        check_same(ledger(), now, {1})


def test_a_server_s_job_is_not_gone_on_with_here() -> None:
    with pytest.raises(InvalidArgument, match="model: got that of --repository; accepted: that of --server, by which"):
        check_same(ledger(passes={}), ledger(), {0, 1})


def test_what_decides_rounding_is_refused_with_what_to_do() -> None:
    told = "torch: got 2.9; accepted: 2.8, with which the job in this output was begun; go on where it is so, or anew"
    with pytest.raises(InvalidArgument, match=told):
        check_same(ledger(passes={"torch": "2.8"}), ledger(passes={"torch": "2.9"}), {0, 1})
