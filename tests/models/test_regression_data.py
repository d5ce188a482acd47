"""Regression and forecasting data: splits that share nothing, and folders that are refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dubito_models.data import SHARES, Splits, check_features, co2, diabetes, split_series, uci
from dubito_models.errors import InvalidArgument

ROWS = 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of 40 rows, 3 columns of which the first is the target, and one split of 30 and 10."""
    random = np.random.default_rng(0)
    np.savetxt(tmp_path / "data.txt", random.normal(size=(ROWS, 3)))
    rows = random.permutation(ROWS)
    for name, numbers in {
        "features": [2, 1], "target": [0], "train_0": rows[:30], "test_0": rows[30:],
    }.items():  # fmt: skip
        np.savetxt(tmp_path / f"index_{name}.txt", numbers)
    return tmp_path


def rows_of(data: Splits) -> list[list[bytes]]:
    return [[row.tobytes() for row in getattr(data, name).inputs] for name in SHARES]


def test_a_folder_is_read_as_it_says(folder: Path) -> None:
    """Columns in the order of the index, test rows as given, the others shared out 6 : 1 : 1."""
    data, values = uci(folder), np.loadtxt(folder / "data.txt").astype(np.float32)
    test = np.loadtxt(folder / "index_test_0.txt").astype(int)
    np.testing.assert_array_equal(data.test.inputs, values[test][:, [2, 1]])
    np.testing.assert_array_equal(data.test.targets, values[test][:, [0]])
    assert [len(getattr(data, name)) for name in SHARES] == [22, 4, 4, 10]
    assert sorted(row for part in rows_of(data) for row in part) == sorted(row.tobytes() for row in values[:, [2, 1]])


def test_the_seed_shares_out_the_training_rows_alone(folder: Path) -> None:
    first, again, other = rows_of(uci(folder)), rows_of(uci(folder)), rows_of(uci(folder, seed=1))
    assert first == again
    assert first[0] != other[0]
    assert first[3] == other[3]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("data.txt", None, "a folder that has this file"),
        ("data.txt", "", "empty"),
        ("data.txt", "1 2 3\nx y z\n", "numbers apart by blanks"),
        ("data.txt", "1 2 3\n4 5\n", "numbers apart by blanks"),
        ("index_train_0.txt", None, "index_train_0.txt"),
        ("index_train_0.txt", "0.5\n", "whole numbers from 0"),
        ("index_train_0.txt", "0\n1\n400\n", "row numbers of split 0"),
        ("index_features.txt", "1\n3\n", "among 0..2"),
        ("index_target.txt", "0\n1\n", "one target"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(folder: Path, name: str, content: str | None, said: str) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(InvalidArgument, match=r"^data: ") as caught:
        uci(folder)
    assert said in str(caught.value)


def test_a_split_that_is_not_there_and_one_that_overlaps(folder: Path) -> None:
    with pytest.raises(InvalidArgument, match="index_train_7"):
        uci(folder, split=7)
    (folder / "index_test_0.txt").write_text((folder / "index_train_0.txt").read_text())
    with pytest.raises(InvalidArgument, match="overlap"):
        uci(folder)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        (0, np.nan, "target '0': got NaN or infinity in 40 of 40 rows"),
        (0, 2.0, "target '0': got 2 in every training row"),
        (1, 2.5, "column '1': got 2.5 in every training row; accepted: a column that varies"),
        (2, np.inf, "column '2': got NaN or infinity"),
    ],
)
def test_columns_that_cannot_be_learned_from_are_refused(folder: Path, column: int, value: float, said: str) -> None:
    values = np.loadtxt(folder / "data.txt")
    values[:, column] = value
    np.savetxt(folder / "data.txt", values)
    with pytest.raises(InvalidArgument) as caught:
        uci(folder)
    assert said in str(caught.value)


def test_diabetes_is_whole_and_seeded() -> None:
    data = diabetes(3)
    assert sum(len(getattr(data, name)) for name in SHARES) == 442
    assert data.train.inputs.shape[1:] == (10,)
    assert data.train.targets.dtype == np.float32
    assert rows_of(diabetes(3)) == rows_of(data) != rows_of(diabetes(4))
    assert len({row for part in rows_of(data) for row in part}) == 442  # no row twice
    check_features(data.train.inputs, [str(column) for column in range(10)])


def test_windows_end_where_their_horizons_begin() -> None:
    """Of the series 0, 1, 2, ... each row is consecutive; no split's horizon reaches into the next split's."""
    data = split_series(np.arange(400, dtype=np.float32), window=5, horizon=3)
    previous = -1.0
    for name in SHARES:
        split = getattr(data, name)
        assert split.inputs.shape[1:] == (5, 1)
        whole = np.concatenate([split.inputs[..., 0], split.targets], 1)
        np.testing.assert_array_equal(np.diff(whole, axis=1), 1)
        assert split.targets.min() > previous
        previous = split.targets.max()
    assert data.test.targets.max() == 399
    assert data.target_names == ("step 1", "step 2", "step 3")


def test_a_series_that_is_too_short_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="series: got 50 steps"):
        split_series(np.zeros(50, np.float32), 10, 5)
    with pytest.raises(InvalidArgument, match="window, horizon"):
        split_series(np.zeros(500, np.float32), 0, 5)


def test_co2_is_monthly_and_rises() -> None:
    data = co2()
    assert data.test.targets.shape[1] == 24
    assert np.isfinite(data.train.inputs).all()
    assert 310 < data.train.targets.mean() < data.test.targets.mean() < 375
