"""Laws of the input files: each format gives the numbers that are in it, or says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet

from dubito_client.errors import InvalidArgument
from dubito_client.files import read_arrays, read_table

ROWS = [[1.5, 2.0], [3.0, -4.0]]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def columns(folder: Path, **values: Any) -> Path:
    path = folder / "rows.parquet"
    parquet.write_table(arrow.table(values), path)
    return path


def test_npy_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.array(ROWS))
    np.testing.assert_array_equal(read_arrays(tmp_path / "rows.npy"), ROWS)


def test_npz_of_one_array_is_unnamed_and_of_several_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", np.array(ROWS))
    np.savez(tmp_path / "two.npz", a=np.array(ROWS), b=np.arange(2))
    np.testing.assert_array_equal(read_arrays(tmp_path / "one.npz"), ROWS)
    both = read_arrays(tmp_path / "two.npz")
    assert isinstance(both, dict)
    assert set(both) == {"a", "b"}


@pytest.mark.parametrize(
    "text", ["x,y\n1.5,2\n3,-4\n", "1.5,2\r\n3,-4\r\n", "\ufeffx,y\n1.5,2\n\n3,-4", '"1.5","2"\n3,-4']
)
def test_csv_is_read_with_or_without_a_header(tmp_path: Path, text: str) -> None:
    np.testing.assert_array_equal(read_arrays(write(tmp_path, "rows.csv", text)), ROWS)


def test_an_empty_csv_cell_is_nan(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_arrays(write(tmp_path, "rows.csv", "x,y\n1,\n3,4")), [[1, np.nan], [3, 4]])


def test_whole_numbers_of_csv_stay_whole(tmp_path: Path) -> None:
    rows = read_arrays(write(tmp_path, "rows.csv", f"{2**62 + 1}\n3"))
    assert isinstance(rows, np.ndarray)
    assert rows.tolist() == [[2**62 + 1], [3]]


def test_parquet_of_number_columns_is_read_in_their_order(tmp_path: Path) -> None:
    path = columns(tmp_path, y=[1.5, 3.0], x=[2, -4])
    np.testing.assert_array_equal(read_arrays(path), ROWS)


def test_a_parquet_null_is_nan(tmp_path: Path) -> None:
    path = columns(tmp_path, y=[1.5, None], x=[2, None])
    np.testing.assert_array_equal(read_arrays(path), [[1.5, 2.0], [np.nan, np.nan]])


def test_parquet_of_list_columns_is_one_input_or_several(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_arrays(columns(tmp_path, rows=ROWS)), ROWS)
    assert set(read_arrays(columns(tmp_path, a=ROWS, b=[[1], [2]]))) == {"a", "b"}


def test_a_parquet_column_is_not_read_off_the_folders_name(tmp_path: Path) -> None:
    folder = tmp_path / "day=7"
    folder.mkdir()
    np.testing.assert_array_equal(read_arrays(columns(folder, y=[1.5, 3.0], x=[2, -4])), ROWS)


def test_json_is_one_input_or_several(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_arrays(write(tmp_path, "rows.json", json.dumps(ROWS))), ROWS)
    named = read_arrays(write(tmp_path, "rows.json", json.dumps({"image": ROWS})))
    assert isinstance(named, dict)
    np.testing.assert_array_equal(named["image"], ROWS)
    np.testing.assert_array_equal(read_arrays(write(tmp_path, "rows.json", "[[1, null]]")), [[1, np.nan]])


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("rows.txt", "1", r"\.npy, \.npz, \.csv, \.parquet, \.json"),
        ("rows.csv", "", "without a row"),
        ("rows.csv", "x,y\n", "without a row"),
        ("rows.csv", "1,2\n3\n", "1 values in line 2"),
        ("rows.csv", "x,y\n1,2\n3,abc\n", "'abc' in line 3"),
        ("rows.json", "{", "accepted: JSON"),
        ("rows.json", "[[1], [2, 3]]", "rectangular"),
        ("rows.json", '[["a"]]', "numbers"),
        ("rows.npy", "no array", "numpy.save"),
        ("rows.npz", "no archive", "numpy.savez"),
        ("rows.parquet", "no table", "Parquet"),
    ],
)
def test_a_file_that_holds_no_rows_says_what_is_wrong(tmp_path: Path, name: str, text: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        read_arrays(write(tmp_path, name, text))


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="No such file"):
        read_arrays(tmp_path / "rows.npy")


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.array([{}], dtype=object))
    with pytest.raises(InvalidArgument):
        read_arrays(tmp_path / "rows.npy")


def test_parquet_of_texts_or_of_mixed_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="object values"):
        read_arrays(columns(tmp_path, x=["a", "b"]))
    with pytest.raises(InvalidArgument, match="all numbers or all lists"):
        read_arrays(columns(tmp_path, x=[1, 2], y=ROWS))


# --- Tables ---


@pytest.mark.parametrize(
    "text", ["x, y\n1.5,a\n,\n", "\ufeffx;y\r\n1.5;a\r\n\r\n;\r\n", "x\ty\n1.5\ta\n\t\n", ",x,y\n7,1.5,a\n8,,\n"]
)
def test_a_csv_table_is_texts_by_the_names_of_its_first_line(tmp_path: Path, text: str) -> None:
    table = read_table(write(tmp_path, "rows.csv", text))
    assert isinstance(table, dict)
    assert {name: list(table[name]) for name in ("x", "y")} == {"x": ["1.5", ""], "y": ["a", ""]}


def test_a_parquet_table_is_columns_by_name(tmp_path: Path) -> None:
    table = read_table(columns(tmp_path, x=[1.5, None], y=["a", "b"], lists=ROWS))
    assert isinstance(table, dict)
    assert {name: table[name].to_pylist() for name in ("x", "y")} == {"x": [1.5, None], "y": ["a", "b"]}


def test_a_json_table_is_rows_or_columns_by_name_and_else_numbers(tmp_path: Path) -> None:
    for document in ([{"x": 1, "y": "a"}, {"x": None}], {"x": [1, None], "y": ["a", None]}):
        assert read_table(write(tmp_path, "rows.json", json.dumps(document))) == document
    np.testing.assert_array_equal(read_table(write(tmp_path, "rows.json", "[[1, null]]")), [[1, np.nan]])


def test_numbers_of_other_files_are_read_for_a_table_too(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.array(ROWS))
    np.testing.assert_array_equal(read_table(tmp_path / "rows.npy"), ROWS)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("rows.txt", "1", r"\.npy, \.npz, \.csv, \.parquet, \.json"),
        ("rows.csv", "", "without a row"),
        ("rows.csv", "x,y\n", "without a row"),
        ("rows.csv", "x,y\n1,2\n3\n", "1 values in line 3"),
        ("rows.csv", "x, x\n1,2\n", "two columns 'x'"),
        ("rows.json", "{", "accepted: JSON"),
        ("rows.parquet", "no table", "Parquet"),
    ],
)
def test_a_file_that_holds_no_table_says_what_is_wrong(tmp_path: Path, name: str, text: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        read_table(write(tmp_path, name, text))
