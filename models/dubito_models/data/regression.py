"""Regression data: scikit-learn's diabetes, and folders in the format of the UCI experiments of Gal & Ghahramani 2016.

Such a folder holds `data.txt` (a row a line, numbers apart by blanks), `index_features.txt` and `index_target.txt`
(column numbers from 0), and for each of its splits `index_train_<n>.txt` and `index_test_<n>.txt` (row numbers from 0).
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes

from dubito_models.data.splits import SHARES, Array, Splits, check_features, check_targets, share_out, take
from dubito_models.errors import InvalidArgument
from dubito_models.heads import Task


def diabetes(seed: int = 0) -> Splits:
    """Return the diabetes progression of 442 patients from 10 measurements (Efron et al. 2004), unscaled.

    Inputs are (N, 10), targets (N, 1), split 60 / 10 / 10 / 20 % by the seed.
    """
    source = load_diabetes(scaled=False)
    inputs, targets = source.data.astype(np.float32), source.target.astype(np.float32)[:, None]
    rows = share_out(np.arange(len(inputs)), np.random.default_rng(seed))
    return _checked(inputs, targets, rows, list(source.feature_names), "progression")


def uci(folder: Path, split: int = 0, seed: int = 0) -> Splits:
    """Return one of the splits of a folder: its test rows as they are, its training rows shared out by the seed.

    Inputs are (N, C), targets (N, 1). Raises `InvalidArgument` for files that are missing or do not fit each other.
    """
    values = _read(folder / "data.txt", np.float64)
    if values.ndim != 2:
        raise InvalidArgument("data", f"{folder / 'data.txt'} with {values.size} numbers", "rows of several numbers")
    features, [target, *more] = _read_numbers(folder, "index_features.txt"), _read_numbers(folder, "index_target.txt")
    if more or max(*features, target) >= values.shape[1]:
        given = f"columns {', '.join(map(str, [*features, target, *more]))} in {folder}"
        raise InvalidArgument("data", given, f"feature columns and one target among 0..{values.shape[1] - 1}")
    known, test = (_read_numbers(folder, f"index_{part}_{split}.txt") for part in ("train", "test"))
    if max(known.max(), test.max()) >= len(values) or np.intersect1d(known, test).size:
        given = f"row numbers of split {split} that overlap or pass {len(values) - 1}"
        raise InvalidArgument("data", given, "disjoint training and test rows of data.txt")
    parts = {name: share for name, share in SHARES.items() if name != "test"}
    cuts = np.cumsum(list(parts.values())) / sum(parts.values())
    random = np.random.default_rng(seed)
    rows = np.split(random.permutation(known), np.rint(cuts[:-1] * len(known)).astype(int))
    inputs, targets = values[:, features].astype(np.float32), values[:, [target]].astype(np.float32)
    return _checked(inputs, targets, [*rows, test], [str(column) for column in features], str(target))


def _checked(inputs: Array, targets: Array, rows: list[NDArray[np.int64]], features: list[str], target: str) -> Splits:
    train, validation, calibration, test = (take(inputs, targets, part) for part in rows)
    check_features(train.inputs, features)
    check_targets(targets, [target])
    return Splits(train, validation, calibration, test, task=Task.REGRESSION, target_names=(target,))


def _read(path: Path, dtype: type[np.generic]) -> Array:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an empty file
            values = np.loadtxt(path, dtype=np.float64, ndmin=1)
    except OSError as error:
        raise InvalidArgument(
            "data", f"{path} ({error.strerror or 'not found'})", "a folder that has this file"
        ) from None
    except ValueError as error:
        raise InvalidArgument("data", f"{path} ({str(error).split(';')[0]})", "numbers apart by blanks") from None
    if not values.size:
        raise InvalidArgument("data", f"{path}, which is empty", "numbers apart by blanks")
    return values.astype(dtype)


def _read_numbers(folder: Path, name: str) -> NDArray[np.int64]:
    numbers = _read(folder / name, np.float64)
    if numbers.ndim != 1 or (numbers != np.rint(numbers)).any() or numbers.min() < 0:
        raise InvalidArgument("data", f"{folder / name}", "whole numbers from 0, one a line")
    return numbers.astype(np.int64)
