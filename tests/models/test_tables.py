"""Laws of the tables to train on: kinds are inferred as documented, and what cannot teach is refused by its name."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet

from dubito_models.columns import Column, number_of, text_of
from dubito_models.errors import InvalidArgument
from dubito_models.heads import Task
from dubito_models.tables import LEAST_ROWS, MOST_CLASSES, RARE, Table, read_table, split_table
from houses import write_houses

N = 200
Y = [f"{math.sin(row):.6f}" for row in range(N)]  # a target that is a regression's


def write(folder: Path, columns: dict[str, list[Any]], separator: str = ",") -> Path:
    """Write columns as a .csv file, None as an empty cell."""
    lines = [separator.join(columns)]
    lines += [separator.join("" if v is None else str(v) for v in row) for row in zip(*columns.values(), strict=True)]
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_parquet(folder: Path, columns: dict[str, Any]) -> Path:
    path = folder / "table.parquet"
    parquet.write_table(arrow.table(columns), path)
    return path


def cycle(*values: Any, count: int = N) -> list[Any]:
    return [values[row % len(values)] for row in range(count)]


def read(folder: Path, x: list[Any], **options: Any) -> Table:
    return read_table(write(folder, {"x": x, "y": Y}), target="y", **options)


def refusal(folder: Path, columns: dict[str, list[Any]], target: str = "y", **options: Any) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        read_table(write(folder, columns), target=target, **options)
    assert "\n" not in str(caught.value)
    return caught.value


# --- Kinds of columns ---


@pytest.mark.parametrize(
    ("cells", "column", "numbers"),
    [
        ([1, 2], Column("x", "number"), [1, 2]),
        (["-1.5e1", " +.5 "], Column("x", "number"), [-15, 0.5]),
        (["True", "false"], Column("x", "number"), [1, 0]),
        ([1, None, 2, "NA"], Column("x", "number", allow_nan=True), [1, math.nan, 2, math.nan]),
        ([7, None], Column("x", "number", allow_nan=True), [7, math.nan]),
        ([0.1, "?"], Column("x", "number", allow_nan=True), [0.1, math.nan]),
        (["b", " a "], Column("x", "category", ("a", "b")), [2, 1]),
        (["b", None], Column("x", "category", ("b",), allow_nan=True), [1, math.nan]),
        (["NA", "b"], Column("x", "category", ("NA", "b")), [1, 2]),
        (["0", "1", "2", "3+"], Column("x", "category", ("0", "1", "2", "3+")), [1, 2, 3, 4]),
    ],
)
def test_the_kind_of_a_column_is_inferred_from_its_cells(
    tmp_path: Path, cells: list[Any], column: Column, numbers: list[float]
) -> None:
    table = read(tmp_path, cycle(*cells))
    assert table.columns == (column,)
    np.testing.assert_array_equal(table.inputs[:, 0], np.float32(cycle(*numbers)))


def test_parquet_says_the_same_as_csv(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "whole": cycle(3, 1, 2),
        "real": cycle(0.5, None, 2.5),
        "truth": cycle(True, False, None),
        "text": cycle("b", "a", None),
        "said": cycle("1.5", "2", ""),
        "y": [float(value) for value in Y],
    }
    one = read_table(write(tmp_path, columns), target="y")
    other = read_table(write_parquet(tmp_path, columns), target="y")
    assert one.columns == other.columns
    np.testing.assert_array_equal(one.inputs, other.inputs)
    np.testing.assert_array_equal(one.targets, other.targets)


def test_parquets_own_types_are_read(tmp_path: Path) -> None:
    columns = {
        "a categorical": arrow.array(cycle("10", "9", None)).dictionary_encode(),
        "half": arrow.array(np.array(cycle(0.5, 1.5), np.float16)),
        "decimal": arrow.array(cycle(Decimal("1.25"), Decimal("2.50"))),
        "large": arrow.array(cycle("a", "b"), arrow.large_string()),
        "__index_level_0__": list(range(N)),
        "y": [float(value) for value in Y],
    }
    table = read_table(write_parquet(tmp_path, columns), target="y")
    kinds = {column.name: (column.kind, column.categories, column.allow_nan) for column in table.columns}
    assert kinds == {
        "a categorical": ("category", ("9", "10"), True),
        "half": ("number", (), False),
        "decimal": ("number", (), False),
        "large": ("category", ("a", "b"), False),
    }
    np.testing.assert_array_equal(table.inputs[:2, 1:], [[0.5, 1.25, 1], [1.5, 2.5, 2]])
    assert any("without a name of their own" in note for note in table.notes)


def test_rare_categories_share_code_0_and_are_told_of(tmp_path: Path) -> None:
    texts = ["often"] * (N - 2 * RARE + 1) + ["enough"] * RARE + ["seldom"] * (RARE - 1)
    table = read(tmp_path, texts)
    assert table.columns[0].categories == ("enough", "often")
    assert Counter(table.inputs[:, 0].tolist()) == {2: N - 2 * RARE + 1, 1: RARE, 0: RARE - 1}
    assert table.notes == (f"column 'x': 1 rare categories, {RARE - 1} rows, are taken as one",)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_and_a_byte_order_mark_are_read(tmp_path: Path, separator: str) -> None:
    path = write(tmp_path, {"x": cycle("1,5", "2"), "z": cycle(1, 2), "y": Y}, separator)
    path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    table = read_table(path, target="y")
    assert [column.name for column in table.columns] == ["x", "z"]
    assert table.columns[0].categories == ("1,5", "2")


def test_a_column_is_left_out_where_asked_and_where_it_has_no_name(tmp_path: Path) -> None:
    table = read_table(write_houses(tmp_path / "houses.csv"), target="price", drop=["style"])
    assert [column.name for column in table.columns] == ["area", "rooms", "city", "garden"]
    assert table.notes == ("columns without a name of their own were left out",)


# --- Targets ---


@pytest.mark.parametrize(
    ("target", "task", "names", "numbers"),
    [
        (["b", "a"], None, ("a", "b"), [1, 0]),
        (["True", "False"], None, ("False", "True"), [1, 0]),
        ([10, 9], None, ("9", "10"), [1, 0]),
        ([0.5, 1.5], "classification", ("0.5", "1.5"), [0, 1]),
        ([10, 9], "regression", None, [10, 9]),
        ([0.5, 1.5], None, None, [0.5, 1.5]),
        (list(range(MOST_CLASSES + 1)), None, None, range(MOST_CLASSES + 1)),
    ],
)
def test_texts_and_few_whole_numbers_are_classes_and_other_numbers_a_regression(
    tmp_path: Path, target: list[Any], task: str | None, names: tuple[str, ...] | None, numbers: Any
) -> None:
    count = 30 * len(target)
    path = write(tmp_path, {"x": list(range(count)), "y": cycle(*target, count=count)})
    table = read_table(path, target="y", task=task)
    assert table.class_names == names
    assert table.task is (Task.REGRESSION if names is None else Task.CLASSIFICATION)
    expected = np.array(cycle(*numbers, count=count))
    if names is None:
        assert table.targets.dtype == np.float32
        np.testing.assert_array_equal(table.targets, expected[:, None].astype(np.float32))
    else:
        assert table.targets.dtype == np.int64
        np.testing.assert_array_equal(table.targets, expected)


def test_whole_numbers_that_seldom_come_back_are_a_regression(tmp_path: Path) -> None:
    path = write(tmp_path, {"x": list(range(60)), "y": cycle(*range(10), count=60)})
    assert read_table(path, target="y").task is Task.REGRESSION


def test_a_choice_between_classes_and_numbers_is_told_of(tmp_path: Path) -> None:
    path = write(tmp_path, {"x": list(range(N)), "y": cycle(3, 4)})
    assert any("--task regression" in note for note in read_table(path, target="y").notes)
    assert not read_table(path, target="y", task="classification").notes


# --- Refusals ---


@pytest.mark.parametrize(
    ("cells", "given", "accepted"),
    [
        (cycle(7), "7 in every row", "--drop x"),
        (cycle("a"), "a in every row", "--drop x"),
        (cycle(None), "no value in any row", "--drop x"),
        (cycle("NA", "?"), "no value in any row", "--drop x"),
        ([f"name {row}" for row in range(N)], "200 different texts in 200 rows, such as 'name 0'", "--drop x"),
        ([*map(str, range(N - 1)), "n.a."], "'n.a.' among numbers", "empty where one is missing"),
        ([*range(N - 1), "1e999"], "inf", "finite"),
        ([*range(N - 1), "1e39"], "1e+39", "3.4e38"),
        ([1_700_000_000 + row for row in range(N)], "32 bits", "offset near 1.7e+09"),
    ],
)
def test_a_column_that_cannot_teach_is_refused_with_what_to_change(
    tmp_path: Path, cells: list[Any], given: str, accepted: str
) -> None:
    error = refusal(tmp_path, {"x": cells, "z": cycle(1, 2, 3), "y": Y})
    assert error.field == "column 'x'"
    assert given in error.given
    assert accepted in error.accepted
    assert len(read_table(tmp_path / "table.csv", target="y", drop=["x"]).columns) == 1


@pytest.mark.parametrize(
    ("cells", "task", "given", "accepted"),
    [
        ([*Y[:-3], None, "NA", "nan"], None, "no value in 3 of 200 rows", "leave those rows out"),
        ([*cycle("a", "b")[:-1], None], None, "no value in 1 of 200 rows", "leave those rows out"),
        (cycle("a"), None, "one class only, 'a'", "at least two classes"),
        (cycle(1), None, "one class only, '1'", "at least two classes"),
        (cycle(1), "regression", "1 in every row", "varies"),
        (cycle(0.5), None, "0.5 in every row", "varies"),
        ([*cycle("a", "b")[:-9], *["c"] * 9], None, "9 rows of class 'c'", "at least 10 rows of every class"),
        ([f"name {row}" for row in range(N)], None, "1 rows of class 'name 0', and 199 more", "merge classes"),
        (cycle("a", "b"), "regression", "texts such as 'a'", "--task classification"),
        ([*Y[:-1], "1e999"], None, "inf", "finite numbers"),
    ],
)
def test_a_target_that_cannot_be_learnt_is_refused_with_what_to_change(
    tmp_path: Path, cells: list[Any], task: str | None, given: str, accepted: str
) -> None:
    error = refusal(tmp_path, {"x": list(range(N)), "y": cells}, task=task)
    assert error.field == "target 'y'"
    assert given in error.given
    assert accepted in error.accepted


def test_arguments_that_the_file_does_not_bear_out_are_refused(tmp_path: Path) -> None:
    columns = {"x": list(range(N)), "y": Y}
    error = refusal(tmp_path, columns, target="price")
    assert (error.field, error.given) == ("target", "'price'")
    assert error.accepted == "a column of table.csv: x, y"
    assert refusal(tmp_path, columns, drop=["z"]).field == "drop"
    assert refusal(tmp_path, columns, drop=["y"]).accepted == "columns other than the target"
    assert refusal(tmp_path, columns, task="ranking").field == "task"
    assert "without a column beside the target" in refusal(tmp_path, columns, drop=["x"]).given
    short = {name: cells[: LEAST_ROWS - 1] for name, cells in columns.items()}
    assert f"{LEAST_ROWS - 1} rows" in refusal(tmp_path, short).given
    many = {f"c{number}": list(range(N)) for number in range(40)} | columns
    assert refusal(tmp_path, many, target="price").accepted.endswith("and 30 more")


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("table.txt", "x,y\n", r"\.csv or \.parquet"),
        ("table.csv", "", "empty"),
        ("table.csv", "x,y\n1,2\n3\n", "1 cells in line 3"),
        ("table.csv", "x,x,y\n1,2,3\n", "two columns 'x'"),
        ("table.csv", f"x,y\n1,{'2' * 200_000}\n", "field larger than field limit"),
        ("table.parquet", "x,y\n", "a Parquet file"),
    ],
)
def test_a_file_that_is_no_table_says_what_is_wrong(tmp_path: Path, name: str, text: str, why: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidArgument, match=why):
        read_table(tmp_path / name, target="y")


def test_a_missing_file_and_one_that_is_no_text_say_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="No such file"):
        read_table(tmp_path / "absent.csv", target="y")
    with pytest.raises(InvalidArgument, match="No such file"):
        read_table(tmp_path / "absent.parquet", target="y")
    (tmp_path / "table.csv").write_bytes(b"x,y\n\xff,1\n")
    with pytest.raises(InvalidArgument, match="UTF-8"):
        read_table(tmp_path / "table.csv", target="y")


def test_dates_and_nested_values_of_parquet_are_refused_unless_left_out(tmp_path: Path) -> None:
    day = datetime.date(2024, 1, 1)
    columns = {
        "x": list(range(N)),
        "day": [day + datetime.timedelta(row) for row in range(N)],
        "list": [[1.0, 2.0]] * N,
        "y": [float(value) for value in Y],
    }
    path = write_parquet(tmp_path, columns)
    with pytest.raises(InvalidArgument, match=r"column 'day': .* --drop day"):
        read_table(path, target="y")
    with pytest.raises(InvalidArgument, match=r"column 'list': .* --drop list"):
        read_table(path, target="y", drop=["day"])
    assert len(read_table(path, target="y", drop=["day", "list"]).columns) == 1


# --- Splits ---


def test_a_classification_is_split_within_every_class_by_the_seed(tmp_path: Path) -> None:
    classes = ["a"] * 100 + ["b"] * 90 + ["c"] * 10
    table = read_table(write(tmp_path, {"x": list(range(N)), "y": classes}), target="y")
    splits = split_table(table, 1)
    parts = [splits.train, splits.validation, splits.calibration, splits.test]
    assert [len(part) for part in parts] == [120, 20, 20, 40]
    assert sorted(np.concatenate([part.inputs[:, 0] for part in parts]).tolist()) == list(range(N))
    for part, share in zip(parts, (0.6, 0.1, 0.1, 0.2), strict=True):
        assert np.bincount(part.targets).tolist() == [100 * share, 90 * share, 10 * share]
        assert [classes[int(row)] for row in part.inputs[:, 0]] == ["abc"[code] for code in part.targets]
    assert (splits.task, splits.class_names, splits.target_names) == (Task.CLASSIFICATION, ("a", "b", "c"), None)
    np.testing.assert_array_equal(split_table(table, 1).test.inputs, splits.test.inputs)
    assert not np.array_equal(split_table(table, 2).test.inputs, splits.test.inputs)


def test_a_regression_is_split_by_the_seed(tmp_path: Path) -> None:
    table = read(tmp_path, list(range(N)))
    splits = split_table(table)
    assert [len(part) for part in (splits.train, splits.validation, splits.calibration, splits.test)] == [
        120,
        20,
        20,
        40,
    ]
    assert (splits.task, splits.class_names, splits.target_names) == (Task.REGRESSION, None, ("y",))
    np.testing.assert_array_equal(splits.train.targets[:, 0], np.float32(Y)[splits.train.inputs[:, 0].astype(int)])
    with pytest.raises(InvalidArgument, match="seed"):
        split_table(table, -1)


# --- Columns ---


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"name": "", "kind": "number"}, "a name"),
        ({"name": "x", "kind": "date"}, "kind 'date'"),
        ({"name": "x", "kind": "category"}, "0 categories"),
        ({"name": "x", "kind": "number", "categories": ("a",)}, "1 categories"),
        ({"name": "x", "kind": "category", "categories": ("a", "a")}, "equal or blank"),
        ({"name": "x", "kind": "category", "categories": ("a", " ")}, "equal or blank"),
    ],
)
def test_a_column_that_contradicts_itself_is_refused(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        Column(**arguments)


def test_what_is_no_plain_number_is_none() -> None:
    assert [number_of(text) for text in ("1_000", "1,5", "1e", "0x1", "inf", "\u0661", "1 2", ".")] == [None] * 8
    assert [number_of(text) for text in ("1", "-1.", "+.5e-1", "TRUE", "false")] == [1, -1, 0.05, 1, 0]
    assert all(math.isnan(number_of(text) or 0) for text in ("", "?", "NA", "nan", "None"))
    assert [text_of(value) for value in (1.0, 1, "1 ", True, 1.5, None, math.nan, " ")] == [
        "1", "1", "1", "True", "1.5", None, None, None,
    ]  # fmt: skip
