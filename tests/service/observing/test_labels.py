"""Labels that came back: scored row by row as the metrics score them, and refused by name where they do not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dubito_models.calibration.conformal import fit_classes, fit_targets
from dubito_models.errors import InvalidArgument
from dubito_models.metrics import brier_score, gaussian_negative_log_likelihood, negative_log_likelihood
from dubito_service.observing.labels import read_label, score
from dubito_service.observing.receipts import Classified, Receipt, Regressed, Scoring
from observed import CLASSES, class_probabilities, classified, labels_of, regressed, scored

RANDOM = np.random.default_rng(0)
P = class_probabilities(RANDOM, 50)
Y = labels_of(RANDOM, P)


def test_a_classifications_scores_are_the_metrics_row_by_row() -> None:
    found = scored(classified(P), Y)
    assert found.negative_log_likelihood is not None
    assert found.brier_score is not None
    for row in range(len(P)):
        here = slice(row, row + 1)
        assert found.negative_log_likelihood[row] == pytest.approx(negative_log_likelihood(P[here], Y[here]))
        assert found.brier_score[row] == pytest.approx(brier_score(P[here], Y[here]))
    np.testing.assert_array_equal(found.correct, P.argmax(-1) == Y)
    np.testing.assert_array_equal(found.confidence, P.max(-1))


@pytest.mark.parametrize("method", ["lac", "aps", "raps"])
def test_a_label_has_the_score_that_its_calibration_gives_it(method: Any) -> None:
    conformal = fit_classes(P, Y, method=method, regular_rank=1, penalty=0.05)
    scoring = Scoring(method, conformal.penalty, conformal.regular_rank, conformal.floor)
    found = scored(classified(P, scoring=scoring), Y).scores
    np.testing.assert_array_equal(found, conformal.label_scores(P)[np.arange(len(Y)), Y][:, None])


@pytest.mark.parametrize("method", ["absolute", "normalized", "cqr"])
def test_a_target_has_the_score_that_its_calibration_gives_it(method: Any) -> None:
    mean, targets = RANDOM.normal(size=(2, 30, 2))
    base = np.stack([mean - 0.5, mean + 0.7], -1)
    variance = RANDOM.random((30, 2)) + 0.1
    conformal = fit_targets(
        targets, mean, np.sqrt(variance), base, method=method, base_level=0.9 if method == "cqr" else None
    )
    receipt = regressed(
        mean, answer=Regressed(mean, variance, base, None), scoring=Scoring(method, 0.0, 0, conformal.floor)
    )
    expected = conformal.target_scores(targets, mean, np.sqrt(variance), base)
    np.testing.assert_array_equal(scored(receipt, targets).scores, expected)


def test_a_regressions_likelihood_is_that_of_a_gaussian() -> None:
    mean, targets = RANDOM.normal(size=(2, 20, 3))
    variance = RANDOM.random((20, 3)) + 0.1
    found = scored(regressed(mean, answer=Regressed(mean, variance, None, None)), targets)
    assert found.negative_log_likelihood is not None
    expected = -stats.norm(mean, np.sqrt(variance)).logpdf(targets).mean(-1)
    np.testing.assert_allclose(found.negative_log_likelihood, expected, rtol=1e-12)
    whole = gaussian_negative_log_likelihood(mean, variance, targets)
    assert found.negative_log_likelihood.mean() == pytest.approx(whole)
    np.testing.assert_allclose(found.squared_error, ((mean - targets) ** 2).mean(-1))
    unknown = scored(regressed(mean, answer=Regressed(mean, None, None, None), coverage=None), targets)
    assert unknown.negative_log_likelihood is unknown.covered is unknown.scores is None


def test_what_cannot_happen_costs_much_and_not_everything() -> None:
    assert scored(classified(np.eye(CLASSES)), [1, 1, 1]).negative_log_likelihood == pytest.approx(
        [708.4, 0, 708.4], abs=0.1
    )
    mean = np.zeros((1, 1))
    exact = regressed(mean, answer=Regressed(mean, mean, None, None))
    found = scored(exact, [[1e300]])
    assert np.isfinite(found.negative_log_likelihood).all()  # type: ignore[arg-type]
    assert np.isfinite(found.squared_error).all()  # type: ignore[arg-type]


def test_covered_is_what_the_answer_held() -> None:
    held = RANDOM.random(P.shape) > 0.5
    receipt = classified(P, answer=Classified(P, held), coverage=0.9, served_coverage=0.8)
    np.testing.assert_array_equal(scored(receipt, Y).covered, held[np.arange(len(Y)), Y][:, None])
    mean = RANDOM.normal(size=(20, 2))
    np.testing.assert_array_equal(
        scored(regressed(mean), mean + np.array([0.9, 1.1])).covered, np.tile([True, False], (20, 1))
    )
    np.testing.assert_array_equal(scored(regressed(mean), mean + 1).covered, mean + 1 <= mean + 1)  # closed


@pytest.mark.parametrize(("served", "expected"), [(0.0, False), (1.0, True)])
def test_nothing_holds_no_label_and_everything_each(served: float, expected: bool) -> None:
    mean = np.zeros((3, 2))
    point = Regressed(mean, None, None, np.repeat(mean[..., None], 2, -1))
    covered = scored(regressed(mean, answer=point, served_coverage=served, scoring=None), mean).covered
    np.testing.assert_array_equal(covered, np.full((3, 2), expected))


CLASSIFIED, ONE, TWO = classified(P[:4]), regressed(np.zeros((4, 1))), regressed(np.zeros((4, 2)))


@pytest.mark.parametrize(
    ("receipt", "label", "field", "words"),
    [
        (CLASSIFIED, np.zeros(3, int), "label.shape", r"shape \(3,\); accepted: \(4,\)"),
        (CLASSIFIED, np.zeros((4, 1), int), "label.shape", r"\(4, 1\)"),
        (CLASSIFIED, np.zeros((), int), "label.shape", r"shape \(\)"),
        (CLASSIFIED, np.zeros(4), "label.dtype", "float64; accepted: integers"),
        (CLASSIFIED, np.zeros(4, bool), "label.dtype", "bool"),
        (CLASSIFIED, np.full(4, 3), "label", r"3\.\.3; accepted: class numbers 0\.\.2"),
        (CLASSIFIED, np.array([0, -1, 2, 0]), "label", r"-1\.\.2"),
        (ONE, np.zeros((4, 2)), "label.shape", r"accepted: \(4,\) or \(4, 1\)"),
        (TWO, np.zeros(4), "label.shape", r"shape \(4,\); accepted: \(4, 2\)"),
        (TWO, np.zeros((4, 2), bool), "label.dtype", "bool; accepted: numbers"),
        (TWO, np.full((4, 2), np.nan), "label", "NaN or infinity"),
        (TWO, np.full((4, 2), -np.inf), "label", "NaN or infinity"),
    ],
)
def test_labels_that_do_not_fit_are_refused_by_name(receipt: Receipt, label: Any, field: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as caught:
        read_label(label, receipt)
    assert caught.value.field == field


def test_labels_of_any_size_of_number_are_taken() -> None:
    for dtype in (np.int8, np.uint8, np.int16, np.int64):
        assert read_label(np.array([0, 1, 2, 0], dtype), CLASSIFIED).dtype == np.int64
    for label in (np.zeros(4, np.float32), np.zeros((4, 1), np.int16), np.zeros((4, 1), np.float16)):
        assert read_label(label, ONE).shape == (4, 1)


def test_a_digest_tells_labels_apart_and_their_types_not() -> None:
    base = scored(CLASSIFIED, np.array([0, 1, 2, 0])).digest
    assert scored(CLASSIFIED, np.array([0, 1, 2, 0], np.uint8)).digest == base
    assert scored(CLASSIFIED, np.array([0, 1, 2, 1])).digest != base
    assert (
        scored(ONE, np.zeros(4)).digest == scored(ONE, np.zeros((4, 1), int)).digest != scored(ONE, np.ones(4)).digest
    )


def test_a_score_that_cannot_be_made_is_absent() -> None:
    """Of a calibration whose method wants what the answer, with one draw, does not know."""
    receipt = replace(ONE, answer=replace(ONE.answer, total_variance=None))
    assert score(receipt, np.zeros((4, 1))).scores is None
