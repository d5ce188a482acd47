"""Ladders of shifts: rows moved step by step away from those that a network was trained on.

Images are turned, blurred and covered with noise; what is no image gets Gaussian noise on its numbers, while codes and
whole numbers are exchanged between rows. Noise is the same pattern on every step of a ladder, only stronger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dubito_models.answering import LEVELS, STANDARD, Answers, ClassAnswers, ask, row_by_row
from dubito_models.data import blur, rotate
from dubito_models.errors import InvalidArgument
from dubito_models.manifest import InputSignature
from dubito_models.metrics import (
    accuracy,
    expected_calibration_error,
    interval_coverage,
    negative_log_likelihood,
    root_mean_squared_error,
)
from dubito_models.package import ModelVersion
from dubito_models.rows import Labelled

Array = NDArray[Any]
Arrays = Mapping[str, Array]


class Shift(StrEnum):
    """How rows are moved."""

    ROTATION = "rotation"
    BLUR = "blur"
    NOISE = "noise"
    FEATURE_NOISE = "feature noise"


@dataclass(frozen=True, slots=True)
class Ladder:
    """A shift in six steps; `amounts` ascend and are in the `unit`."""

    shift: Shift
    unit: str
    amounts: tuple[float, ...]


IMAGES = (
    Ladder(Shift.ROTATION, "degrees", (15, 30, 45, 60, 75, 90)),
    Ladder(Shift.BLUR, "standard deviation in % of the smaller side", (1, 2, 4, 8, 12, 16)),
    Ladder(Shift.NOISE, "standard deviation in % of the pixels' range", (5, 10, 20, 30, 40, 50)),
)
FEATURES = (Ladder(Shift.FEATURE_NOISE, "standard deviations of each feature", (0.1, 0.25, 0.5, 1.0, 1.5, 2.0)),)


def is_image(entry: InputSignature) -> bool:
    """Tell whether an input is taken for images, (N, C, H, W)."""
    return len(entry.shape) == 4 and (entry.dtype.startswith("float") or entry.dtype == "uint8")


def ladders(signature: Sequence[InputSignature]) -> tuple[Ladder, ...]:
    """Return the ladders that suit a version's inputs."""
    return IMAGES if any(map(is_image, signature)) else FEATURES


def shifted(
    inputs: Arrays, signature: Sequence[InputSignature], shift: Shift, amount: float, seed: int = 0
) -> dict[str, Array]:
    """Return inputs (N, ...) by name, moved by an amount in the unit of the shift's ladder; 0 leaves them as they are.

    Pixels stay within the range of the given rows, whose lowest value is what comes into view. Missing values stay
    missing; shapes and types are kept. Beside images, other inputs are left alone.
    """
    if not (np.isfinite(amount) and amount >= 0):
        raise InvalidArgument("amount", amount, "at least 0")
    if amount == 0:
        return dict(inputs)
    random = np.random.default_rng(seed)
    if shift is Shift.FEATURE_NOISE:
        return {entry.name: _noisy_features(inputs[entry.name], entry, amount, random) for entry in signature}
    return {
        entry.name: _moved_images(inputs[entry.name], shift, amount, random) if is_image(entry) else inputs[entry.name]
        for entry in signature
    }


def _moved_images(images: Array, shift: Shift, amount: float, random: np.random.Generator) -> Array:
    """Move images whose pixels are brought into [0, 1] for it."""
    low, high = float(images.min()), float(images.max())
    span = high - low or 1.0
    scaled = ((images - low) / span).astype(np.float32)
    if shift is Shift.ROTATION:
        moved = rotate(scaled, amount)
    elif shift is Shift.BLUR:
        moved = blur(scaled, amount / 100 * min(images.shape[2:]))
    else:
        noise = random.standard_normal(scaled.shape, dtype=np.float32)
        moved = np.clip(scaled + np.float32(amount / 100) * noise, 0, 1)
    return _as(low + span * moved.astype(np.float64), images.dtype)


def _noisy_features(values: Array, entry: InputSignature, amount: float, random: np.random.Generator) -> Array:
    """Add noise to numbers, by the deviation of each number of a row over the rows; exchange codes between rows."""
    coded = np.zeros(values.shape[1:], np.bool_)
    if entry.columns is not None:
        coded[:] = [column.kind == "category" for column in entry.columns]
    elif not entry.dtype.startswith("float"):
        coded[...] = True
    flat, codes = values.reshape(len(values), -1), coded.ravel()
    moved = flat.astype(np.float64)
    noise = random.standard_normal(flat.shape)
    known = np.ma.masked_invalid(moved[:, ~codes])
    moved[:, ~codes] += amount * known.std(axis=0).filled(0.0) * noise[:, ~codes]
    share = shuffled_share(amount)
    for column in np.flatnonzero(codes):
        chosen = np.flatnonzero(random.random(len(flat)) < share)
        moved[chosen, column] = flat[random.permutation(chosen), column]
    return _as(moved, values.dtype).reshape(values.shape)


def shuffled_share(amount: float) -> float:
    """Return the share of codes that are exchanged beside noise of this many standard deviations.

    That is how far such noise takes a number, on the average: two rows exchanged differ by sqrt(2) deviations.
    """
    return min(1.0, amount / 2)


def _as(values: NDArray[np.float64], dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "f":
        return values.astype(dtype)
    return np.rint(values).astype(dtype)


# --- What a version makes of them ---

MOST_ROWS = 1000
COVERED = 0.9  # the level of the interval whose coverage is followed


@dataclass(frozen=True, slots=True)
class Series:
    """One figure of one path, step by step, with standard errors over rows; None where there is none."""

    figure: str
    path: str
    values: tuple[float, ...]
    errors: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class ShiftCurve:
    """What becomes of a version's answers along a ladder; `amounts` begin with 0, the rows as they are."""

    ladder: Ladder
    amounts: tuple[float, ...]
    rows: int
    series: tuple[Series, ...]

    def of(self, figure: str) -> tuple[Series, ...]:
        """Return the series of a figure, path by path."""
        return tuple(series for series in self.series if series.figure == figure)


def follow_shifts(
    version: ModelVersion, labelled: Labelled, *, seed: int = 0, advance: Callable[[int], None] | None = None
) -> tuple[ShiftCurve, ...]:
    """Move rows along every ladder that suits the version, and ask the standard path and the served one of them.

    Of more than `MOST_ROWS` rows, as many are taken, evenly spaced. `advance` is told how many rows more are done, of
    `len(ladders(...)) * 6 + 1` times the rows taken.
    """
    some = spaced(labelled, MOST_ROWS)
    signature = version.manifest.inputs
    still = _figures(ask(version, some, advance, crps=False), some)
    curves = []
    for ladder in ladders(signature):
        steps = [still]
        for amount in ladder.amounts:
            moved = Labelled(shifted(some.inputs, signature, ladder.shift, amount, seed), some.targets, some.overlap)
            steps.append(_figures(ask(version, moved, advance, crps=False), moved))
        series = tuple(
            Series(
                figure,
                path,
                tuple(step[figure, path][0] for step in steps),
                None if still[figure, path][1] is None else tuple(step[figure, path][1] or 0.0 for step in steps),
            )
            for figure, path in still
        )
        curves.append(ShiftCurve(ladder, (0.0, *ladder.amounts), len(some), series))
    return tuple(curves)


def spaced(labelled: Labelled, most: int) -> Labelled:
    """Return at most so many rows, evenly spaced: a file may be sorted."""
    rows = len(labelled)
    if rows <= most:
        return labelled
    picked = np.linspace(0, rows - 1, most).round().astype(np.int64)
    inputs = {name: array[picked] for name, array in labelled.inputs.items()}
    return Labelled(inputs, labelled.targets[picked], math.ceil(labelled.overlap * most / rows))


Figure = tuple[str, str]  # its name, and the path
Found = tuple[float, float | None]  # a value and its standard error


def _figures(answers: Mapping[str, Answers], labelled: Labelled) -> dict[Figure, Found]:
    """Return the figures of the standard path and of the last one, which is served."""
    served = list(answers)[-1]
    return {
        (figure, path): found
        for path in (STANDARD, served)
        for figure, found in _figures_of(answers[path], labelled.targets, labelled.overlap)
    }


def _figures_of(answers: Answers, targets: Array, overlap: int) -> Iterator[tuple[str, Found]]:
    if isinstance(answers, ClassAnswers):
        p = answers.probabilities
        yield "accuracy", mean_with_error(row_by_row(lambda i: accuracy(p[i], targets[i]), len(p)), overlap)
        losses = row_by_row(lambda i: negative_log_likelihood(p[i], targets[i]), len(p))
        yield "NLL", mean_with_error(losses, overlap)
        yield "ECE", (expected_calibration_error(p, targets), None)
        yield "confidence", mean_with_error(p.max(-1), overlap)
        if answers.mutual_information is not None and answers.expected_entropy is not None:
            yield "predictive entropy", mean_with_error(answers.predictive_entropy, overlap)
            yield "expected entropy", mean_with_error(answers.expected_entropy, overlap)
            yield "mutual information", mean_with_error(answers.mutual_information, overlap)
        return
    mean = answers.mean
    squares = row_by_row(lambda i: root_mean_squared_error(mean[i], targets[i]) ** 2, len(mean))
    square, error = mean_with_error(squares, overlap)
    root = math.sqrt(square)
    yield "RMSE", (root, error / (2 * root) if root else 0.0)
    if answers.negative_log_likelihood is not None:
        yield "NLL", mean_with_error(answers.negative_log_likelihood, overlap)
    if answers.intervals is not None:
        bounds = answers.intervals[..., LEVELS.index(COVERED)]
        covered = row_by_row(lambda i: interval_coverage(bounds[i], targets[i]), len(mean))
        yield "90% interval covers", mean_with_error(covered, overlap)
    if answers.total_variance is not None:
        yield "total deviation", mean_with_error(answers.doubt, overlap)
    if answers.epistemic is not None:
        yield "epistemic deviation", mean_with_error(answers.epistemic, overlap)


def mean_with_error(values: NDArray[np.float64], overlap: int = 1) -> tuple[float, float]:
    """Return the mean of values (N,) and its standard error; NaN for a single block of `overlap` consecutive rows."""
    blocks = -(-len(values) // overlap)
    if blocks < 2:
        return float(values.mean()), math.nan
    starts = np.arange(blocks) * overlap
    sums, counts = np.add.reduceat(values, starts), np.diff([*starts, len(values)])
    mean = float(values.mean())
    off = sums - mean * counts
    return mean, math.sqrt(float((off**2).sum()) * blocks / (blocks - 1)) / len(values)
