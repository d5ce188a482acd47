"""Shifts: rows that move as far as is said and no further, and what becomes of answers on the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from dubito_models.answering import CALIBRATED, DRAWN, STANDARD
from dubito_models.errors import InvalidArgument
from dubito_models.manifest import ColumnEntry, InputSignature
from dubito_models.metrics import accuracy, negative_log_likelihood
from dubito_models.package import ModelVersion
from dubito_models.rows import Labelled
from dubito_models.shifting import (
    FEATURES,
    IMAGES,
    Shift,
    follow_shifts,
    ladders,
    mean_with_error,
    shifted,
    spaced,
)
from judged import houses, labelled

Packed = Callable[[str], ModelVersion]


def entry(name: str, row: tuple[int | None, ...], dtype: str = "float32", **more: object) -> InputSignature:
    return InputSignature.model_validate(
        {"name": name, "dtype": dtype, "shape": (None, *row), "example_shape": (2, *(1 for _ in row)), "low": 0,
         "high": 1, **more}
    )  # fmt: skip


PICTURES = entry("pictures", (3, 8, 8))
TABLE = entry(
    "table",
    (3,),
    columns=(
        ColumnEntry(name="area", kind="number", allow_nan=True),
        ColumnEntry(name="city", kind="category", categories=("Bern", "Oslo", "Rome"), allow_nan=True),
        ColumnEntry(name="rooms", kind="number"),
    ),
)


def pictures(rows: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-3, 5, (rows, 3, 8, 8)).astype(np.float32)


def table(rows: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = np.stack(
        [random.normal(50, 20, rows), random.integers(0, 4, rows).astype(float), random.normal(3, 1, rows)], -1
    ).astype(np.float32)
    values[random.random(rows) < 0.1, 0] = np.nan
    values[random.random(rows) < 0.1, 1] = np.nan
    return values


# --- Rows that move ---


def test_images_have_three_ladders_and_all_else_one() -> None:
    assert ladders([entry("x", (3,)), PICTURES]) == IMAGES
    assert ladders([entry("x", (1, 8, 8), "uint8")]) == IMAGES
    assert ladders([entry("tokens", (None,), "int64"), entry("maps", (4, 3, 3, 3))]) == FEATURES
    for ladder in (*IMAGES, *FEATURES):
        assert len(ladder.amounts) == 6
        assert ladder.amounts == tuple(sorted(set(ladder.amounts)))
        assert ladder.amounts[0] > 0


@pytest.mark.parametrize("shift", list(Shift))
def test_no_shift_leaves_rows_as_they_are(shift: Shift) -> None:
    rows = {"pictures": pictures()}
    np.testing.assert_array_equal(shifted(rows, [PICTURES], shift, 0)["pictures"], rows["pictures"])


@pytest.mark.parametrize("shift", [Shift.ROTATION, Shift.BLUR, Shift.NOISE])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_pixels_keep_their_range_shape_and_type(shift: Shift, dtype: str) -> None:
    """What comes into view is the lowest value of all rows, and nothing passes the highest."""
    rows = np.rint(pictures() * 20 + 100).astype(dtype)
    found = shifted({"pictures": rows}, [entry("pictures", (3, 8, 8), dtype)], shift, 45)["pictures"]
    assert (found.shape, found.dtype) == (rows.shape, rows.dtype)
    assert not np.array_equal(found, rows)
    assert found.min() >= rows.min()
    assert found.max() <= rows.max()


@pytest.mark.parametrize("shift", [Shift.ROTATION, Shift.BLUR, Shift.NOISE])
def test_the_unit_of_pixels_does_not_matter(shift: Shift) -> None:
    """Images that are scaled and offset, as many networks want them, move as those in 0 to 1 do."""
    rows = pictures()
    plain = shifted({"pictures": rows}, [PICTURES], shift, 8)["pictures"]
    other = shifted({"pictures": 4 * rows - 7}, [PICTURES], shift, 8)["pictures"]
    np.testing.assert_allclose(other, 4 * plain - 7, atol=1e-4)


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    rows = pictures()
    found = shifted({"pictures": rows}, [PICTURES], Shift.ROTATION, 90)["pictures"]
    np.testing.assert_allclose(found, np.rot90(rows, axes=(2, 3)), atol=1e-4)


def test_blur_is_measured_by_the_smaller_side() -> None:
    """A point spreads as a Gaussian of that share of the side: its second moment is the variance, to the grid."""
    point = np.zeros((1, 1, 65, 129), np.float32)
    point[0, 0, 32, 64] = 1
    found = shifted({"x": point}, [entry("x", (1, 65, 129))], Shift.BLUR, 4)["x"][0, 0]
    offsets = np.arange(65) - 32
    variance = (found.sum(1) * offsets**2).sum() / found.sum()
    assert math.sqrt(variance) == pytest.approx(0.04 * 65, rel=0.01)


def test_noise_on_pixels_has_its_deviation() -> None:
    """8 % of the range, measured far from its ends on 48,000 pixels: off by more than 2 % once in a million runs."""
    rows = np.full((250, 3, 8, 8), 10.0, np.float32)
    rows[0, 0, 0, :2] = (0, 20)
    found = shifted({"pictures": rows}, [PICTURES], Shift.NOISE, 8)["pictures"]
    off = (found - rows)[1:]
    assert off.std() == pytest.approx(0.08 * 20, rel=0.02)
    assert abs(off.mean()) < 0.05


def test_other_inputs_beside_images_stay() -> None:
    rows = {"pictures": pictures(), "x": np.ones((20, 2), np.float32)}
    found = shifted(rows, [PICTURES, entry("x", (2,))], Shift.NOISE, 50)
    np.testing.assert_array_equal(found["x"], rows["x"])


def test_noise_on_features_is_measured_by_each_feature() -> None:
    """Deviations of 8,000 rows: within 4 % of half a deviation of the column but once in ten thousand runs."""
    rows = table(8000)
    found = shifted({"table": rows}, [TABLE], Shift.FEATURE_NOISE, 0.5)["table"]
    for column in (0, 2):
        off = (found - rows)[:, column]
        assert np.nanstd(off) == pytest.approx(0.5 * np.nanstd(rows[:, column]), rel=0.04)


def test_noise_grows_and_keeps_its_pattern() -> None:
    """Twice the amount is twice the way in the same direction, so that steps of a ladder can be compared."""
    rows = table(50)
    once, twice = (
        shifted({"table": rows}, [TABLE], Shift.FEATURE_NOISE, amount)["table"][:, [0, 2]] - rows[:, [0, 2]]
        for amount in (0.5, 1.0)
    )
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-3, atol=1e-4)
    other = shifted({"table": rows}, [TABLE], Shift.FEATURE_NOISE, 0.5, seed=1)["table"]
    assert not np.allclose(np.nan_to_num(other[:, 2] - rows[:, 2]), once[:, 1])


@given(some.integers(2, 40), some.sampled_from([0.1, 0.5, 1.0, 2.0, 9.0]), some.integers(0, 99))
def test_codes_only_change_rows(rows: int, amount: float, seed: int) -> None:
    """Every code is there as often as before, missing ones too; missing numbers stay where they were."""
    before = table(rows, seed)
    after = shifted({"table": before}, [TABLE], Shift.FEATURE_NOISE, amount, seed)["table"]
    np.testing.assert_array_equal(np.sort(after[:, 1]), np.sort(before[:, 1]))
    np.testing.assert_array_equal(np.isnan(after[:, 0]), np.isnan(before[:, 0]))
    assert after.dtype == before.dtype


def test_tokens_are_exchanged_within_their_place() -> None:
    """Half a deviation moves a quarter of them; the half of 0.5 is shuffled, 4 standard errors at most apart."""
    tokens = np.arange(4000)[:, None] * np.ones((1, 2), np.int64)
    found = shifted({"t": tokens}, [entry("t", (None,), "int64")], Shift.FEATURE_NOISE, 0.5)["t"]
    assert found.dtype == np.int64
    np.testing.assert_array_equal(np.sort(found, axis=0), tokens)
    moved = (found != tokens).mean()
    assert moved == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 8000))


@pytest.mark.parametrize("amount", [-1.0, math.nan, math.inf])
def test_an_amount_below_nothing_is_refused(amount: float) -> None:
    with pytest.raises(InvalidArgument, match="amount"):
        shifted({"pictures": pictures()}, [PICTURES], Shift.NOISE, amount)


# --- Answers on the way ---


def test_the_first_step_is_the_rows_themselves(packed: Packed) -> None:
    """Where nothing has moved yet, figures are the plain scores of both paths, and all ladders begin alike."""
    version = packed("cnn")
    rows = labelled(version, 30)
    told: list[int] = []
    curves = follow_shifts(version, rows, advance=told.append)
    assert [curve.ladder for curve in curves] == list(IMAGES)
    assert sum(told) == 30 * (1 + 3 * 6)
    probabilities = version.evaluate(rows.inputs).probabilities
    assert probabilities is not None
    for curve in curves:
        assert (len(curve.amounts), curve.amounts[0], curve.rows) == (7, 0, 30)
        standard, served = curve.of("accuracy")
        assert (standard.path, served.path) == (STANDARD, DRAWN)
        assert standard.values[0] == accuracy(probabilities, rows.targets)
        assert curve.of("NLL")[0].values[0] == pytest.approx(negative_log_likelihood(probabilities, rows.targets))
        assert len({len(series.values) for series in curve.series}) == 1
        [total], [aleatoric], [epistemic] = (
            curve.of(name) for name in ("predictive entropy", "expected entropy", "mutual information")
        )
        np.testing.assert_allclose(np.add(aleatoric.values, epistemic.values), total.values)
    assert curves[0].of("ECE")[0].errors is None
    assert follow_shifts(version, rows) == curves


def test_a_regression_is_followed_by_its_own_figures(tmp_path: Path) -> None:
    version, rows = houses(tmp_path)
    [curve] = follow_shifts(version, rows)
    figures = {series.figure for series in curve.series}
    assert figures == {"RMSE", "NLL", "90% interval covers", "total deviation", "epistemic deviation"}
    assert {series.path for series in curve.series} == {STANDARD, DRAWN}
    assert CALIBRATED not in {series.path for series in curve.series}


def test_many_rows_are_thinned_evenly() -> None:
    rows = Labelled({"x": np.arange(100)}, np.arange(100), overlap=12)
    found = spaced(rows, 25)
    assert (len(found), found.targets[0], found.targets[-1], found.overlap) == (25, 0, 99, 3)
    assert set(np.diff(found.targets).tolist()) <= {4, 5}
    assert spaced(rows, 100) is rows


def test_the_error_of_a_mean_is_that_of_independent_rows() -> None:
    """The textbook's for single rows; for rows that come in equal blocks, that of the blocks' means."""
    values = np.random.default_rng(0).normal(size=60)
    mean, error = mean_with_error(values)
    assert (mean, error) == (pytest.approx(values.mean()), pytest.approx(values.std(ddof=1) / math.sqrt(60)))
    blocks = values.reshape(12, 5).mean(1)
    assert mean_with_error(values, 5)[1] == pytest.approx(blocks.std(ddof=1) / math.sqrt(12))
    assert mean_with_error(np.repeat(values, 4), 4)[1] == pytest.approx(error)
    assert math.isnan(mean_with_error(values, 60)[1])
