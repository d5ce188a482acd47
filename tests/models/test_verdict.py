"""The verdict: which path to use, by what the paired intervals say, for every way in which they may fall out."""

from __future__ import annotations

import pytest

from dubito_models.answering import CALIBRATED, DRAWN, STANDARD
from dubito_models.metrics import Interval
from dubito_models.scorecard import CLASS_MEASURES, TARGET_MEASURES, Difference, Measure, Scorecard
from dubito_models.verdict import Verdict, judge

Bounds = tuple[float, float]


def card(
    drawn: Bounds | None,
    calibrated: Bounds | None = None,
    served: Bounds | None = None,
    *,
    measure: str = "nll",
    standard: float = 1.0,
    accuracy: float = 0.9,
    measures: tuple[Measure, ...] = CLASS_MEASURES,
) -> Scorecard:
    """A card with intervals of: drawn less standard, calibrated less drawn, calibrated less standard."""
    pairs = ((DRAWN, STANDARD, drawn), (CALIBRATED, DRAWN, calibrated), (CALIBRATED, STANDARD, served))
    differences = tuple(
        Difference(measure, first, second, Interval((bounds[0] + bounds[1]) / 2, *bounds))
        for first, second, bounds in pairs
        if bounds is not None
    )
    scores = {measure: {STANDARD: Interval(standard, standard, standard)},
              "accuracy": {STANDARD: Interval(accuracy, accuracy, accuracy), DRAWN: None}}  # fmt: skip
    return Scorecard(measures, scores, differences, 0.95, 1000)


def test_a_calibrated_path_that_is_better_is_to_be_used() -> None:
    """By how much, with its interval, and what calibration has to do with it."""
    verdict = judge(card((-0.02, -0.01), (-0.04, -0.02), (-0.06, -0.03)), 500)
    assert verdict == Verdict(
        CALIBRATED,
        "Use the calibrated Monte Carlo path: its NLL is lower than the standard path's by 0.0450 (95% interval 0.0300 "
        "to 0.0600); calibration alone lowers it by 0.0300 (95% interval 0.0200 to 0.0400).",
        (),
    )


def test_a_calibration_that_may_not_help_is_said_to_be_open() -> None:
    verdict = judge(card((-0.04, -0.02), (-0.01, 0.02), (-0.04, -0.01)), 500)
    assert verdict.path == CALIBRATED
    assert "calibration changes it by 0.0050 (95% interval -0.0100 to 0.0200), which these rows do not settle" in (
        verdict.sentence
    )


def test_where_only_the_plain_draws_are_known_to_be_better_they_are_used() -> None:
    verdict = judge(card((-0.04, -0.02), (-0.09, 0.06), (-0.1, 0.03)), 500)
    assert verdict.path == DRAWN
    assert verdict.sentence.startswith("Use the Monte Carlo path: its NLL is lower than the standard path's by 0.0300")
    assert "which these rows do not settle" in verdict.sentence


def test_a_version_without_calibration_is_judged_by_its_draws() -> None:
    verdict = judge(card((-0.04, -0.02)), 500)
    assert verdict.path == DRAWN
    assert "calibration" not in verdict.sentence


def test_a_calibration_that_does_harm_is_left_out_and_warned_of() -> None:
    verdict = judge(card((-0.04, -0.02), (0.01, 0.03), (-0.02, -0.01)), 500)
    assert verdict.path == DRAWN
    [warning] = verdict.warnings
    assert (
        warning
        == "The calibration does harm on these rows: it raises the NLL by 0.0200 (95% interval 0.0100 to 0.0300)."
    )


def test_a_standard_path_that_is_better_is_to_be_used() -> None:
    verdict = judge(card((0.02, 0.04), (-0.01, 0.02), (0.01, 0.05)), 500)
    assert verdict.path == STANDARD
    assert verdict.sentence.startswith(
        "Use the standard path: the NLL of the calibrated Monte Carlo path is higher by 0.0300 (95% interval 0.0100 to "
    )


def test_a_standard_path_that_is_as_good_is_said_to_be() -> None:
    """Where a difference that matters is not within the interval."""
    verdict = judge(card((-0.004, 0.009)), 500)
    assert verdict.path == STANDARD
    assert verdict.sentence.startswith(
        "The standard path predicts as well: the NLL of the Monte Carlo path less its own"
    )


@pytest.mark.parametrize("bounds", [(-0.15, 0.02), (-0.01, 0.03)])
def test_rows_that_cannot_tell_are_said_to_be_too_few(bounds: Bounds) -> None:
    verdict = judge(card(bounds), 500)
    assert verdict.path == STANDARD
    assert verdict.sentence.startswith("These rows are too few to tell the paths apart")


def test_without_a_likelihood_the_next_proper_score_decides() -> None:
    """A version that knows no noise has none; what matters is then a share of the score."""
    some = {"measure": "crps", "standard": 40.0, "measures": TARGET_MEASURES}
    assert "its CRPS is lower than the standard path's by 1.5000" in judge(card((-2, -1), **some), 500).sentence
    assert "predicts as well" in judge(card((-1.9, 1), **some), 500).sentence
    assert "too few" in judge(card((-2.1, 1), **some), 500).sentence


def test_paths_without_a_score_in_common_are_not_compared() -> None:
    verdict = judge(card(None), 500)
    assert verdict.path == STANDARD
    assert "no proper score in common" in verdict.sentence


@pytest.mark.parametrize(
    ("rows", "overlap", "said"),
    [
        (99, 1, "99 rows are few"),
        (2, 1, "2 rows are few"),
        (480, 24, "480 rows, which count as 20 because they share targets, are few"),
    ],
)
def test_few_rows_are_warned_of(rows: int, overlap: int, said: str) -> None:
    [warning] = judge(card((-0.02, -0.01)), rows, overlap).warnings
    assert warning.startswith(said)
    assert judge(card((-0.02, -0.01)), 100 * overlap, overlap).warnings == ()


def test_rows_that_are_all_right_do_not_promise_others() -> None:
    """The exact bound: the error rate under which no wrong row among so many has a probability of 5 %."""
    [warning] = judge(card((-0.02, -0.01), accuracy=1.0), 359).warnings
    assert warning == "No row is wrong, yet of others up to 0.8% may be (at 95% confidence)."
    rate = 1 - 0.05 ** (1 / 359)
    assert (1 - rate) ** 359 == pytest.approx(0.05)
