"""Laws of sources: which files are found, and that their rows come in the same blocks wherever reading begins."""

from __future__ import annotations

import gzip
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as arrow
import pytest
from fsspec.implementations.memory import MemoryFile
from pyarrow import csv, feather, ipc, parquet

from dubito_batch import sources
from dubito_batch.sources import InputFile, count_rows, find_files, measure_row, read_blocks, read_schema
from dubito_client.errors import InvalidArgument

TABLE = arrow.table({"number": list(range(100)), "text": [f"t{row % 7}" for row in range(100)]})


def write_parquet(path: Path, table: arrow.Table = TABLE, group: int = 7) -> Path:
    parquet.write_table(table, path, row_group_size=group)
    return path


def write_arrow(path: Path) -> Path:
    with ipc.new_file(str(path), TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=9)
    return path


def write_stream(path: Path) -> Path:
    with ipc.new_stream(str(path), TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=9)
    return path


def write_feather(path: Path) -> Path:
    feather.write_feather(TABLE, str(path), compression="zstd", chunksize=30)
    return path


def write_csv(path: Path) -> Path:
    with arrow.output_stream(str(path), compression="detect") as stream:
        csv.write_csv(TABLE, stream)
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "a.parquet": write_parquet,
    "b.arrow": write_arrow,
    "c.arrow": write_stream,
    "d.feather": write_feather,
    "e.csv": write_csv,
    "f.csv.gz": write_csv,
    "g.csv.zst": write_csv,
}


def found(source: object) -> list[str]:
    return [file.url for file in find_files(str(source))]


def only(source: object) -> InputFile:
    [file] = find_files(str(source))
    return file


def texts(path: Path, content: str | bytes) -> list[dict[str, str]]:
    """What a CSV of this content says, row by row."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [row for block in read_blocks(only(path), 2) for row in block.to_pylist()]


# --- Finding ---


def test_a_folder_is_searched_to_any_depth_without_what_is_hidden(tmp_path: Path) -> None:
    for name in ["b.parquet", "a.csv", "deep/er/c.arrow", "_job.json", ".part", "_old/d.parquet", "deep/.e.parquet"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    names = [str(tmp_path / name) for name in ("a.csv", "b.parquet", "deep/er/c.arrow")]
    assert found(tmp_path) == found(f"{tmp_path}/") == found(f"file://{tmp_path}") == names


def test_a_glob_names_files_and_folders_of_them(tmp_path: Path) -> None:
    for name in ["x/1.parquet", "x/2.parquet", "x/notes.txt", "_y/3.parquet", "t.parquet/part-0.parquet"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    inside = [str(tmp_path / "x/1.parquet"), str(tmp_path / "x/2.parquet")]
    assert found(tmp_path / "x/*.parquet") == found(tmp_path / "x/[12].parquet") == inside
    assert found(tmp_path / "**/*.parquet") == [str(tmp_path / "t.parquet/part-0.parquet"), *inside]
    assert found(tmp_path / "_y/*") == [str(tmp_path / "_y/3.parquet")]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    assert found(write_parquet(tmp_path / "a[1].parquet")) == [str(tmp_path / "a[1].parquet")]


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    write_parquet(tmp_path / "_real.parquet")
    (tmp_path / "link.parquet").symlink_to(tmp_path / "_real.parquet")
    before = only(tmp_path)
    assert count_rows(before) == 100
    os.utime(tmp_path / "_real.parquet", ns=(1, 1))
    assert only(tmp_path).mark != before.mark
    (tmp_path / "_real.parquet").unlink()
    with pytest.raises(InvalidArgument, match="No such file"):
        find_files(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "given"),
    [
        ("missing.parquet", "does not exist"),
        ("*.csv", "where no file is"),
        ("empty", "where no file is"),
        ("notes.txt", "the file"),
        ("mixed", "notes.md"),
        ("nosuch://bucket/a.parquet", "nosuch://bucket/a.parquet"),
    ],
)
def test_what_is_no_table_is_refused_by_name(
    source: str, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "mixed"):
        (tmp_path / folder).mkdir()
    for name in ("notes.txt", "mixed/notes.md", "mixed/a.parquet"):
        (tmp_path / name).write_text("x")
    with pytest.raises(InvalidArgument) as caught:
        find_files(source)
    assert caught.value.field == "input"
    assert given in caught.value.given
    assert "\n" not in str(caught.value)


def test_the_mark_of_a_file_changes_when_the_file_does_and_stays_while_it_does_not(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet")
    before = only(path)
    path.chmod(0o600)
    assert only(path) == before
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1_000_000))
    assert only(path).mark != before.mark
    assert only(path).size == before.size


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_in_a_store_is_read_as_a_local_one_is(
    name: str, tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    local = WRITERS[name](tmp_path / name)
    memory.pipe(f"/folder/{name}", local.read_bytes())
    stored = only("memory://folder")
    assert stored.url == f"memory://folder/{name}"
    assert only(f"memory://folder/{name}") == only("memory://folder/*") == stored
    assert count_rows(stored) == count_rows(only(local))
    for first in (0, 3):
        assert list(read_blocks(stored, 16, first)) == list(read_blocks(only(local), 16, first))


def test_a_file_in_an_archive_is_read_by_a_chained_url(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(write_parquet(tmp_path / "a.parquet"), "in/a.parquet")
    file = only(f"zip://in/*.parquet::{tmp_path}/all.zip")
    assert file.url == f"zip://in/a.parquet::{tmp_path}/all.zip"
    assert [block.num_rows for block in read_blocks(file, 60)] == [60, 40]


# --- Blocks ---


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("rows", [1, 7, 16, 100, 101])
def test_blocks_are_the_same_wherever_reading_begins(name: str, rows: int, tmp_path: Path) -> None:
    file = only(WRITERS[name](tmp_path / name))
    blocks = list(read_blocks(file, rows))
    sizes = [block.num_rows for block in blocks]
    assert sizes[:-1] == [rows] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= rows
    table = arrow.Table.from_batches(blocks)
    wanted = TABLE.cast(table.schema) if file.format == "csv" else TABLE
    assert table.equals(wanted)
    for first in range(len(blocks) + 2):
        assert list(read_blocks(file, rows, first)) == blocks[first:]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_says_its_columns_and_where_it_can_its_rows(name: str, tmp_path: Path) -> None:
    file = only(WRITERS[name](tmp_path / name))
    schema = read_schema(file)
    assert schema.names == TABLE.column_names
    assert set(schema.types) == {arrow.string()} if file.format == "csv" else schema.types == TABLE.schema.types
    assert count_rows(file) == (100 if name in ("a.parquet", "b.arrow", "d.feather") else None)
    assert file.size == Path(file.url).stat().st_size


def test_dictionaries_are_the_same_wherever_reading_begins(tmp_path: Path) -> None:
    words = [f"w{row // 5}" for row in range(100)]
    column = arrow.chunked_array([arrow.array(words[at : at + 10]).dictionary_encode() for at in range(0, 100, 10)])
    nested = arrow.ListArray.from_arrays(np.arange(101), column.unify_dictionaries().combine_chunks())
    for columns in ({"word": column}, {"words": nested}):
        file = only(write_parquet(tmp_path / "a.parquet", arrow.table(columns), 15))
        blocks = list(read_blocks(file, 8))
        for first in range(len(blocks)):
            for block, other in zip(read_blocks(file, 8, first), blocks[first:], strict=True):
                assert block.serialize() == other.serialize()
        assert arrow.Table.from_batches(blocks)[0].to_pylist() == arrow.table(columns)[0].to_pylist()


def test_a_file_without_rows_has_no_block(tmp_path: Path) -> None:
    assert list(read_blocks(only(write_parquet(tmp_path / "a.parquet", TABLE.slice(0, 0))), 8)) == []
    assert texts(tmp_path / "b.csv", "a,b\n") == []


def test_of_a_large_row_group_little_is_held_at_a_time(tmp_path: Path) -> None:
    rows = 4_000_000
    table = arrow.table({"a": np.random.default_rng(0).normal(size=rows)})  # 30 MiB
    file = only(write_parquet(tmp_path / "a.parquet", table, rows))
    del table
    before = arrow.total_allocated_bytes()
    held = [arrow.total_allocated_bytes() - before for _ in read_blocks(file, 50_000)]
    assert len(held) == 80
    assert max(held) < 12 << 20  # some pages, of a MiB each


def test_of_a_large_row_group_in_a_store_little_is_read_at_a_time(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 1_000_000
    table = arrow.table({name: np.random.default_rng(0).normal(size=rows) for name in "ab"})  # 15 MiB
    memory.pipe("/a.parquet", write_parquet(tmp_path / "a.parquet", table, rows).read_bytes())
    stored, local = only("memory://a.parquet"), only(tmp_path / "a.parquet")
    read = MemoryFile.read
    sizes: list[int] = []

    def count(self: MemoryFile, *arguments: int) -> bytes:
        content = read(self, *arguments)
        sizes.append(len(content))
        return content

    monkeypatch.setattr(MemoryFile, "read", count)
    next(read_blocks(stored, 10_000))
    assert sum(sizes) > stored.size // 2  # a small one is read whole
    monkeypatch.setattr(sources, "_GROUP_BYTES", 1 << 21)
    sizes.clear()
    blocks = read_blocks(stored, 10_000)
    first = next(blocks)
    assert 0 < sum(sizes) < stored.size // 2
    assert [first, *blocks] == list(read_blocks(local, 10_000))


@pytest.mark.parametrize("name", WRITERS)
def test_a_row_is_measured_by_all_columns_of_the_largest_file(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    (tmp_path / "z.csv").write_text("number,text\n")
    [large, _] = files = find_files(str(tmp_path))
    assert measure_row(files) == -(-next(iter(read_blocks(large, 100))).nbytes // 100)
    assert measure_row(files[1:]) == 0
    assert measure_row([replace(large, url="/nowhere.parquet")]) == 0  # told of when its turn comes


def test_blocks_of_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="at least 1"):
        next(read_blocks(only(write_parquet(tmp_path / "a.parquet")), 0))


# --- CSV ---


def test_a_csv_passes_through_as_it_stands(tmp_path: Path) -> None:
    rows = texts(tmp_path / "a.csv", '\ufeffid, name ,when\r\n007,"x, ""y""\nz",\r\n\r\n 1e3 ,NA,2024-01-01\r\n')
    assert rows == [
        {"id": "007", "name": 'x, "y"\nz', "when": ""},
        {"id": " 1e3 ", "name": "NA", "when": "2024-01-01"},
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_delimiter_is_what_the_first_line_has_most_of(delimiter: str, tmp_path: Path) -> None:
    content = "\n".join(delimiter.join(cells) for cells in (["a", "b", "c"], ["1.5", "x", ""]))
    assert texts(tmp_path / "a.csv", content) == [{"a": "1.5", "b": "x", "c": ""}]


def test_names_may_be_quoted_over_lines_and_one_may_be_missing(tmp_path: Path) -> None:
    assert texts(tmp_path / "a.csv", ',"two\nlines, one name"\n0,1\n') == [{"": "0", "two\nlines, one name": "1"}]
    assert texts(tmp_path / "b.csv", "0,1\n5,6\n") == [{"0": "5", "1": "6"}]


def test_long_lines_are_read(tmp_path: Path) -> None:
    count = 20_000
    content = ",".join(f"c{at}" for at in range(count)) + "\n" + ",".join(["0." + "1" * 54] * count) + "\n"
    [row] = texts(tmp_path / "a.csv", content)
    assert len(row) == count


def uneven(cells: int) -> str:
    return f"line: got {cells} {'cell' if cells == 1 else 'cells'}; accepted: 3 cells, one for each column"


@pytest.mark.parametrize("long", [1, 3_000])  # of a cell: 10,000 rows are parsed at once, or some hundred
def test_lines_of_another_length_are_rows_of_nothing_in_their_place(tmp_path: Path, long: int) -> None:
    chance = np.random.default_rng(long)
    lengths = chance.choice([1, 2, 3, 4], 2_000, p=[0.02, 0.02, 0.94, 0.02]).tolist()
    lengths[0], lengths[-3:] = 2, [4, 3, 4]
    lines = [",".join(["x" * long if place else f'"{row}\n"' for place in range(n)]) for row, n in enumerate(lengths)]
    (tmp_path / "a.csv").write_text('"a\nname",b,c\n' + "\n\n".join(lines))
    file = only(tmp_path / "a.csv")
    blocks = list(read_blocks(file, 64))
    assert [block.num_rows for block in blocks] == [64] * 31 + [16]
    found = [row for block in blocks for row in block.to_pylist()]
    for row, length in enumerate(lengths):
        nothing = length != 3
        assert found[row]["a\nname"] == (None if nothing else f"{row}\n")
        assert found[row].get("dubito_problem") == (uneven(length) if nothing else None)
    for block in blocks:
        assert ("dubito_problem" in block.schema.names) == any(row.get("dubito_problem") for row in block.to_pylist())
    assert list(read_blocks(file, 64, 7)) == blocks[7:]


def test_of_a_csv_whose_lines_are_all_uneven_every_row_says_so(tmp_path: Path) -> None:
    problems = [row["dubito_problem"] for row in texts(tmp_path / "a.csv", "a,b,c\n1\n1,2\n1,2,3,4\n")]
    assert problems == [uneven(length) for length in (1, 2, 4)]


def test_a_cell_may_be_longer_than_what_is_parsed_at_a_time(tmp_path: Path) -> None:
    long = "y" * (3 << 20)
    before = "".join(f"{row},short\n" for row in range(100_000)) + "1\n"
    rows = texts(tmp_path / "a.csv", f"id,text\n{before}long,{long}\nlast,short\n")
    assert [row["id"] for row in rows] == [*map(str, range(100_000)), None, "long", "last"]
    assert rows[-2]["text"] == long


def test_a_line_that_is_too_long_to_be_held_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dubito_batch.lines._LINE_BYTES", 2 << 20)
    with pytest.raises(InvalidArgument, match=r"a\.csv \(a line of more than 2 MiB, or a quote that nothing closes\)"):
        texts(tmp_path / "a.csv", f"id,text\nlong,{'y' * (5 << 20)}\n")


# --- What cannot be read ---

CSV = "a,b\n" + "1,2\n" * 100


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.parquet", b"", "0 bytes"),
        ("a.parquet", b"PAR1 and then nothing that is Parquet", "Parquet"),
        ("a.arrow", b"ARROW1\0\0 and no more", "Arrow"),
        ("a.arrow", b"a text", "Arrow"),
        ("a.feather", b"", "Arrow"),
        ("a.csv", b"", "without a column"),
        ("a.csv", b"\n\n", "without a column"),
        ("a.csv", b'a,b\n1,2\n"3,4\n5,6\n7,8\n', "Row #3: Expected 2 columns, got 1"),
        ("a.csv", b"a,b\n1,\xff\n", "utf-8"),
        ("a.csv", b"\xff\xfea\0,\0b\0", "utf-8"),
        ("a.csv", b"a,b,a\n1,2,3\n", "two columns 'a'"),
        ("a.csv", b"0.5,1.25\n1,2\n", "first line is of numbers"),
        ("a.csv.gz", gzip.compress(CSV.encode() * 1000)[:-20], "runcated"),
        ("a.csv.gz", CSV.encode(), "a.csv.gz"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_name(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidArgument) as caught:
        list(read_blocks(only(tmp_path), 10))
    assert caught.value.field == "input"
    assert str(tmp_path / name) in caught.value.given
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    for write, name in ((write_parquet, "a.parquet"), (write_arrow, "b.arrow"), (write_stream, "c.arrow")):
        path = write(tmp_path / name)
        path.write_bytes(path.read_bytes()[:-300])
        with pytest.raises(InvalidArgument, match=name):
            list(read_blocks(only(path), 10))


def test_blocks_before_a_damaged_page_are_read_and_the_damage_is_told(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", TABLE, 50)
    file = only(path)
    with parquet.ParquetFile(path) as source:
        start = source.metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    read = []
    with pytest.raises(InvalidArgument, match=r"a\.parquet"):
        read.extend(read_blocks(file, 10))
    blocks = read_blocks(file, 10)
    assert [next(blocks)["number"][0].as_py() for _ in range(4)] == [0, 10, 20, 30]
    blocks.close()


def test_a_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    for name, write in WRITERS.items():
        file = only(write(tmp_path / name))
        Path(file.url).unlink()
        for read in (read_schema, lambda gone: list(read_blocks(gone, 10))):
            with pytest.raises(InvalidArgument, match="No such file"):
                read(file)


def test_two_columns_of_one_name_in_parquet_are_refused(tmp_path: Path) -> None:
    table = arrow.Table.from_arrays([arrow.array([1]), arrow.array([2])], names=["a", "a"])
    with pytest.raises(InvalidArgument, match="two columns 'a'"):
        list(read_blocks(only(write_parquet(tmp_path / "a.parquet", table)), 10))


EMPTY = arrow.list_(arrow.string(), 0)


@pytest.mark.parametrize("kind", [EMPTY, arrow.list_(EMPTY), arrow.struct([("inner", EMPTY)])])
def test_lists_of_a_fixed_size_of_0_are_refused_for_parquet_cannot_be_read_with_them(
    kind: arrow.DataType, tmp_path: Path
) -> None:
    feather.write_feather(arrow.table({"a": [1], "e": arrow.array([None], kind)}), str(tmp_path / "a.feather"))
    with pytest.raises(InvalidArgument, match=r"a\.feather whose column 'e' has lists of a fixed size of 0; accepted"):
        read_schema(only(tmp_path))
