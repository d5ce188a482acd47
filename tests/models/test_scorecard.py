"""Scorecards: the plain scores of the rows, intervals of rows that are independent, differences on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dubito_models import metrics
from dubito_models.answering import CALIBRATED, DRAWN, LEVELS, STANDARD, ClassAnswers, TargetAnswers, ask
from dubito_models.metrics import Interval
from dubito_models.package import ModelVersion
from dubito_models.predictive import entropy
from dubito_models.scoreboard import Cell, difference_lines, pairs_of, resamples_said, score_lines
from dubito_models.scorecard import (
    CLASS_MEASURES,
    TARGET_MEASURES,
    Difference,
    Measure,
    figure,
    improves,
    measures_of,
    score_rows,
    tell,
)
from judged import houses, labelled, line

Packed = Callable[[str], ModelVersion]


def classes(rows: int, seed: int = 0) -> tuple[ClassAnswers, np.ndarray]:
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.full(3, 0.7), rows)
    return ClassAnswers(p, entropy(p), 0.8 * entropy(p), 0.2 * entropy(p)), random.integers(3, size=rows)


def numbers(rows: int, seed: int = 0) -> tuple[TargetAnswers, np.ndarray]:
    random = np.random.default_rng(seed)
    mean, targets = random.normal(size=(2, rows, 2))
    reach = np.array([0.7, 1.3, 1.6, 2.0])
    return TargetAnswers(
        mean,
        total_variance=random.uniform(0.5, 2, (rows, 2)),
        intervals=np.stack([mean[..., None] - reach, mean[..., None] + reach], 2),
        negative_log_likelihood=random.normal(size=rows),
        crps=random.uniform(size=rows),
        pit=random.uniform(size=(rows, 2)),
    ), targets


def test_values_are_the_scores_of_all_rows(packed: Packed) -> None:
    version = packed("mlp")
    rows = labelled(version, 60)
    answers = ask(version, rows)
    told: list[int] = []
    card = score_rows(answers, rows.targets, resamples=20, advance=told.append)
    assert sum(told) == len(measures_of(answers)) * len(answers)
    p, y = answers[DRAWN].probabilities, rows.targets
    wrong = (p.argmax(-1) != y).astype(float)
    expected = {
        "accuracy": metrics.accuracy(p, y),
        "nll": metrics.negative_log_likelihood(p, y),
        "brier": metrics.brier_score(p, y),
        "ece": metrics.expected_calibration_error(p, y),
        "adaptive_ece": metrics.adaptive_expected_calibration_error(p, y),
        "classwise_ece": metrics.classwise_expected_calibration_error(p, y),
        "smooth_ece": metrics.smooth_calibration_error(p, y),
        "aurc": metrics.area_under_risk_coverage_curve(wrong, answers[DRAWN].predictive_entropy),
    }
    assert {key: cells[DRAWN].value for key, cells in card.scores.items()} == pytest.approx(expected)
    standard = answers[STANDARD].probabilities
    doubt = 1 - standard.max(-1)
    missed = (standard.argmax(-1) != y).astype(float)
    assert card.scores["aurc"][STANDARD].value == metrics.area_under_risk_coverage_curve(missed, doubt)


def test_a_regression_has_the_scores_of_its_intervals_too(tmp_path: Path) -> None:
    version, rows = houses(tmp_path)
    answers = ask(version, rows)
    card = score_rows(answers, rows.targets, resamples=20)
    assert card.measures == TARGET_MEASURES
    drawn = answers[DRAWN]
    found = {key: cells[DRAWN].value for key, cells in card.scores.items()}
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(drawn.mean, rows.targets))
    for place, level in enumerate(LEVELS):
        bounds = drawn.intervals[..., place]
        assert found[f"coverage_{100 * level:.0f}"] == pytest.approx(metrics.interval_coverage(bounds, rows.targets))
    judged = drawn.intervals[..., LEVELS.index(0.9)]
    assert found["interval_score"] == pytest.approx(metrics.interval_score(judged, rows.targets, 0.9))
    assert found["width"] == pytest.approx(metrics.interval_width(judged))
    assert found["miscalibration_area"] == metrics.interval_miscalibration_area(drawn.pit)
    assert found["sharpness"] == pytest.approx(metrics.sharpness(drawn.total_variance))
    assert found["crps"] == pytest.approx(drawn.crps.mean())


def test_what_a_path_does_not_know_is_left_out(tmp_path: Path) -> None:
    version, rows = line(tmp_path)
    card = score_rows(ask(version, rows), rows.targets, resamples=20)
    assert card.scores["nll"] == {STANDARD: None, DRAWN: None}
    assert card.scores["coverage_90"][STANDARD] is None
    assert card.scores["coverage_90"][DRAWN] is not None
    assert {each.measure for each in card.differences} == {"rmse", "mae", "crps"}
    assert [lines.cells[0] for lines in score_lines(card) if lines.heading == "NLL"] == [Cell()]


def test_an_interval_is_the_bootstrap_s_own() -> None:
    """Means of rows, resampled as the metrics do it, by the seed, level and number that are asked for."""
    answers, y = classes(80)
    card = score_rows({DRAWN: answers}, y, level=0.8, resamples=300, seed=5)
    losses = np.log(answers.probabilities[np.arange(80), y])
    expected = metrics.bootstrap_interval(lambda i: -losses[i].mean(), 80, level=0.8, resamples=300, seed=5)
    assert card.scores["nll"][DRAWN].low == pytest.approx(expected.low)
    assert card.scores["nll"][DRAWN].high == pytest.approx(expected.high)
    assert score_rows({DRAWN: answers}, y, level=0.8, resamples=300, seed=5) == card


def test_rows_that_come_in_blocks_count_as_one() -> None:
    """Every row written down three times says no more than once: the same intervals, of blocks of three."""
    (once, y), times = classes(40), 3
    copies = ClassAnswers(*(np.repeat(part, times, 0) for part in (once.probabilities, once.predictive_entropy)))
    single = ClassAnswers(once.probabilities, once.predictive_entropy)
    plain = score_rows({STANDARD: single}, y, resamples=100)
    blocks = score_rows({STANDARD: copies}, np.repeat(y, times), overlap=times, resamples=100)
    naive = score_rows({STANDARD: copies}, np.repeat(y, times), resamples=100)

    def width(card: object, key: str = "nll") -> float:
        interval = card.scores[key][STANDARD]
        return interval.high - interval.low

    for key in ("accuracy", "nll", "ece", "brier"):
        assert blocks.scores[key][STANDARD].low == pytest.approx(plain.scores[key][STANDARD].low)
        assert blocks.scores[key][STANDARD].high == pytest.approx(plain.scores[key][STANDARD].high)
    assert width(naive) < 0.8 * width(plain)


def test_a_last_block_may_be_shorter() -> None:
    answers, targets = numbers(10)
    card = score_rows({DRAWN: answers}, targets, overlap=4, resamples=30)
    assert card.scores["mae"][DRAWN].value == pytest.approx(np.abs(answers.mean - targets).mean())


def test_a_path_differs_from_itself_by_nothing() -> None:
    """On the same rows; and by rounding no more than that, however small the scores' own intervals would have it."""
    answers, targets = numbers(30)
    near = replace(answers, mean=answers.mean * (1 + 1e-9), crps=answers.crps + 1e-12)
    card = score_rows({STANDARD: answers, DRAWN: near}, targets, resamples=50)
    assert {each.interval for each in card.differences} == {Interval(0, 0, 0)}
    assert not any(each.decided for each in card.differences)


def test_differences_are_of_the_same_rows() -> None:
    """A path that is better by .1 on every row is better by .1 in every resample, wide as its own interval is."""
    answers, targets = numbers(40)
    better = replace(answers, negative_log_likelihood=answers.negative_log_likelihood - 0.1)
    card = score_rows({STANDARD: answers, DRAWN: better}, targets, resamples=50)
    found = card.difference("nll", DRAWN, STANDARD)
    assert found is not None
    assert found.interval == Interval(*[pytest.approx(-0.1)] * 3)
    assert found.decided
    own = card.scores["nll"][DRAWN]
    assert own.high - own.low > 0.2
    assert card.difference("nll", STANDARD, DRAWN) is None


def test_an_infinite_score_is_told_and_not_compared() -> None:
    """A class of probability 0 that is the truth: the likelihood is told as infinite; no difference is made of it."""
    answers, y = classes(20)
    p = answers.probabilities.copy()
    p[3] = np.eye(3)[(y[3] + 1) % 3]
    card = score_rows({STANDARD: answers, DRAWN: ClassAnswers(p, entropy(p))}, y, resamples=20)
    assert card.scores["nll"][DRAWN].value == np.inf
    assert card.difference("nll", DRAWN, STANDARD) is None
    assert card.difference("brier", DRAWN, STANDARD) is not None


@pytest.mark.parametrize(
    ("best", "bounds", "expected"),
    [(0.0, (-2, -1), True), (0.0, (1, 2), False), (1.0, (1, 2), True), (1.0, (-2, -1), False), (0.0, (-1, 1), None),
     (0.9, (1, 2), None), (None, (1, 2), None)],
)  # fmt: skip
def test_better_is_what_the_measure_says(
    best: float | None, bounds: tuple[float, float], expected: bool | None
) -> None:
    difference = Difference("x", DRAWN, STANDARD, Interval(sum(bounds) / 2, *bounds))
    assert improves(Measure("x", "X", best), difference) is expected


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0.0000"), (0.12345, "0.1235"), (-9.99, "-9.9900"), (10.0, "10.00"), (36.9, "36.90"), (1234.5, "1234"),
     (9999.0, "9999"), (12345.6, "1.235e+04"), (float("inf"), "inf")],
)  # fmt: skip
def test_figures_have_four_digits(value: float, said: str) -> None:
    assert figure(value) == said


def test_coverage_is_told_in_per_cent() -> None:
    coverage, plain = Measure("c", "covers", 0.9), Measure("x", "X")
    assert (tell(coverage, 0.8768), tell(coverage, 0.01, difference=True)) == ("87.7%", "+1.0 pp")
    assert (tell(plain, 0.5), tell(plain, 0.5, difference=True)) == ("0.5000", "+0.5000")


def test_tables_have_a_line_for_each_measure_and_a_cell_for_each_path() -> None:
    (answers, y), (other, _) = classes(30), classes(30, seed=1)
    card = score_rows({STANDARD: answers, DRAWN: other, CALIBRATED: answers}, y, resamples=50)
    assert pairs_of(card) == [(DRAWN, STANDARD), (CALIBRATED, DRAWN), (CALIBRATED, STANDARD)]
    lines, differences = score_lines(card), difference_lines(card)
    assert [each.heading for each in lines] == [measure.label for measure in CLASS_MEASURES]
    assert {len(each.cells) for each in (*lines, *differences)} == {3}
    first = card.scores["accuracy"][STANDARD]
    assert lines[0].cells[0] == Cell(figure(first.value), f"{figure(first.low)} to {figure(first.high)}")
    assert differences[1].cells[2] == Cell("+0.0000", "+0.0000 to +0.0000")
    assert resamples_said(card) == "50 resamples, smooth ECE: 10"
