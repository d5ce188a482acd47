"""Data in four splits that share no row: what a recipe trains with, whatever it is of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dubito_models.columns import Column
from dubito_models.errors import InvalidArgument
from dubito_models.heads import Task

SHARES = {"train": 0.6, "validation": 0.1, "calibration": 0.1, "test": 0.2}

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Split:
    """Rows, both arrays read-only: `inputs` (N, ...) as a network takes them, `targets` what it is to say of them.

    Targets are class numbers (N,) int64, or numbers (N, K) float32.
    """

    inputs: Array
    targets: Array

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, slots=True)
class Splits:
    """Four splits that share no row: to fit weights, to stop, to calibrate, and to be judged by."""

    train: Split
    validation: Split
    calibration: Split
    test: Split
    task: Task
    class_names: tuple[str, ...] | None = None  # of a classification
    target_names: tuple[str, ...] | None = None  # of a regression
    columns: tuple[Column, ...] | None = None  # of a table
    overlap: int = 1  # so many consecutive rows share targets, as the windows of a series do
    notes: tuple[str, ...] = ()  # what was decided while reading, and might be wanted otherwise


def take(inputs: Array, targets: Array, rows: NDArray[np.int64]) -> Split:
    """Return the rows of these numbers as a split that nobody can write to."""
    split = Split(inputs[rows], targets[rows])
    split.inputs.flags.writeable = split.targets.flags.writeable = False
    return split


def share_out(rows: NDArray[np.int64], random: np.random.Generator) -> list[NDArray[np.int64]]:
    """Shuffle row numbers and cut them by `SHARES`, each part to one row."""
    cuts = np.cumsum(list(SHARES.values()))[:-1]
    return np.split(random.permutation(rows), np.rint(cuts * len(rows)).astype(int))


def check_features(inputs: Array, names: Sequence[str]) -> None:
    """Refuse training features (N, C) that hold NaN or infinity, or of which one never changes."""
    for name, values in zip(names, inputs.T, strict=True):
        if not np.isfinite(values).all():
            raise InvalidArgument(f"column {name!r}", "NaN or infinity", "finite numbers in every row")
        if (values == values[0]).all():
            given = f"{values[0]:g} in every training row"
            raise InvalidArgument(f"column {name!r}", given, "a column that varies; leave this one out")


def check_targets(targets: Array, names: Sequence[str]) -> None:
    """Refuse training targets (N, K) that hold NaN or infinity, or of which one never changes."""
    for name, values in zip(names, targets.T, strict=True):
        missing = int((~np.isfinite(values)).sum())
        if missing:
            given = f"NaN or infinity in {missing} of {len(values)} rows"
            raise InvalidArgument(f"target {name!r}", given, "finite numbers; leave those rows out")
        if (values == values[0]).all():
            raise InvalidArgument(f"target {name!r}", f"{values[0]:g} in every training row", "a target that varies")
