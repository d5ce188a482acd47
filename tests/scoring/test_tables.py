"""Laws of the table: files that go together become one, those that do not are refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from pyarrow import csv, parquet

from dubito_batch import score
from dubito_batch.job import Job, run_job
from dubito_client.errors import InvalidArgument

from .standing import StandIn, table, write_input

ROWS = 70


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dubito_batch.job.put_page", lambda folder, summary: "")


def write(folder: Path, number: int, **columns: Any) -> Path:
    """Write a file of the features and of other columns in place of the id and the note."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = table(ROWS, number).drop_columns(["id", "note"])
    for name, values in columns.items():
        rows = rows.append_column(name, values)
    parquet.write_table(rows, folder / f"day-{number}.parquet")
    return folder


def run(source: Path, output: Path, **options: Any) -> None:
    run_job(Job(source=str(source), output=str(output), batch_rows=32, **options), lambda passes: StandIn())


def schemas(output: Path) -> list[arrow.Schema]:
    return [parquet.read_schema(part) for part in sorted(output.glob("part-*.parquet"))]


INTEGERS = arrow.array(range(ROWS), arrow.int32())
WORDS = arrow.array([f"w{row}" for row in range(ROWS)])


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        (arrow.nulls(ROWS), WORDS, arrow.string()),
        (WORDS, arrow.nulls(ROWS), arrow.string()),
        (None, WORDS, arrow.string()),
        (WORDS, None, arrow.string()),
        (INTEGERS, INTEGERS.cast(arrow.int64()), arrow.int64()),
        (INTEGERS, INTEGERS.cast(arrow.float64()), arrow.float64()),
        (INTEGERS.cast(arrow.float32()), INTEGERS, arrow.float64()),
        (WORDS, WORDS.cast(arrow.large_string()), arrow.large_string()),
    ],
)
def test_columns_that_go_together_come_out_as_one_table(
    tmp_path: Path, first: arrow.Array | None, second: arrow.Array | None, kind: arrow.DataType
) -> None:
    given = [{} if column is None else {"id": column} for column in (first, second)]
    for number, columns in enumerate(given):
        write(tmp_path / "days", number, **columns)
    run(tmp_path / "days", tmp_path / "out")
    found = schemas(tmp_path / "out")
    assert len(found) == 6
    assert all(schema.equals(found[0]) for schema in found)
    assert found[0].field("id").type == kind
    rows = parquet.read_table(tmp_path / "out")
    said = [[None] * ROWS if column is None else column.to_pylist() for column in (first, second)]
    assert rows["id"].to_pylist() == said[0] + said[1]
    assert set(rows["dubito_status"].to_pylist()) == {"OK"}
    batches = list(score(str(tmp_path / "days"), StandIn(), batch_rows=32))
    assert arrow.Table.from_batches(batches).select(["id"]).equals(rows.select(["id"]))


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ({"id": WORDS}, r"input: got .*day-1\.parquet with the column 'id' of type string; accepted: int32"),
        ({"id": INTEGERS.cast(arrow.bool_())}, r"day-1\.parquet with the column 'id' of type bool"),
        ({"dubito_label": INTEGERS}, r"input: got a column 'dubito_label' in .*day-1\.parquet; accepted: names that"),
    ],
)
def test_columns_that_do_not_go_together_are_refused_before_anything_is_written(
    tmp_path: Path, column: dict[str, arrow.Array], said: str
) -> None:
    write(tmp_path / "days", 0, id=INTEGERS)
    write(tmp_path / "days", 1, **column)
    with pytest.raises(InvalidArgument, match=said):
        run(tmp_path / "days", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_texts_of_a_csv_do_not_go_with_numbers(tmp_path: Path) -> None:
    write(tmp_path / "days", 0)
    csv.write_csv(table(ROWS), tmp_path / "days" / "day-1.csv")
    with pytest.raises(InvalidArgument, match=r"'f0' of type \w+; accepted: .* \(a CSV's columns are texts\)"):
        run(tmp_path / "days", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_without_a_feature_is_refused_by_name_before_anything_is_written(tmp_path: Path) -> None:
    write_input(tmp_path / "days", ROWS)
    parquet.write_table(table(ROWS).drop_columns(["f3"]), tmp_path / "days" / "day-1.parquet")
    with pytest.raises(InvalidArgument, match=r"columns: got .* in .*day-1\.parquet; accepted: one column 'f3'"):
        run(tmp_path / "days", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_value_that_would_not_be_the_same_is_refused_by_file_and_column(tmp_path: Path) -> None:
    large = arrow.array([2**53 + 1] * ROWS)
    write(tmp_path / "days", 0, id=INTEGERS.cast(arrow.float64()))
    write(tmp_path / "days", 1, id=large)
    with pytest.raises(
        InvalidArgument, match=r"day-1\.parquet with the column 'id' of type int64 .*; accepted: values"
    ):
        run(tmp_path / "days", tmp_path / "out")
