"""Conformal prediction: the quantile's rank, coverage by leaving each row out in turn, classes and groups.

Of n + 1 exchangeable rows each is equally likely to be the new one. So coverage is checked without any simulation: the
share of rows that are covered when each in turn is left out and the others calibrate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from calibrations import read_back
from dubito_models.calibration.conformal import (
    KEPT,
    Conformal,
    GroupScores,
    conformal_quantile,
    fit_classes,
    fit_targets,
    refit_scores,
    thin_scores,
)
from dubito_models.calibration.nonconformity import choose_regular_rank
from dubito_models.errors import InvalidArgument

Array = NDArray[np.float64]
P = np.array([[0.5, 0.2, 0.3], [0.25, 0.5, 0.25]])
Y = np.array([0, 2])

few_numbers = st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=40)  # with many ties
levels = st.sampled_from([0.01, 0.1, 0.25, 0.5, 0.68, 0.8, 0.9, 0.95, 0.99])


def predicted(rows: int, seed: int, *, steps: int = 0) -> tuple[Array, Array, Array, Array]:
    """Return targets, means, deviations (rows, 2) and intervals; rounded to so many steps a unit, where not 0."""
    random = np.random.default_rng(seed)
    mean = random.normal(size=(rows, 2))
    deviation = random.gamma(2.0, 0.5, (rows, 2))
    targets = mean + deviation * random.standard_t(4, (rows, 2))
    if steps:
        mean, deviation, targets = (np.round(values * steps) / steps for values in (mean, deviation, targets))
    return targets, mean, deviation, np.stack([mean - deviation, mean + 0.5 * deviation], -1)


def classified(rows: int, classes: int, seed: int) -> tuple[Array, NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.full(classes, 0.4), rows)
    labels = np.array([random.choice(classes, p=p) for p in probabilities])
    return probabilities, labels


def fit_intervals(method: Any, rows: slice, data: tuple[Array, Array, Array, Array], **options: Any) -> Conformal:
    base = 0.5 if method == "cqr" else None
    return fit_targets(*(values[rows] for values in data), method=method, base_level=base, **options)


def holds(found: Conformal, data: tuple[Array, Array, Array, Array], coverage: float) -> NDArray[np.bool_]:
    targets, *rest = data
    intervals = found.prediction_interval(*rest, coverage)
    inside: NDArray[np.bool_] = (intervals[..., 0] <= targets) & (targets <= intervals[..., 1])
    return inside


# --- The quantile ---


@pytest.mark.parametrize(
    ("rows", "coverage", "rank"),
    [
        (9, 0.9, 9),
        (19, 0.95, 19),
        (99, 0.99, 99),
        (29, 0.7, 21),
        (9, 0.1, 1),
        (99, 0.29, 29),
        (99, 0.55, 55),
        (20, 0.9, 19),
        (5, 0.5, 3),
    ],
)
def test_the_rank_is_that_of_exact_arithmetic(rows: int, coverage: float, rank: int) -> None:
    """A coverage of .55 means 55 hundredths: of 99 rows the threshold is the 55th, though in floats 100 * .55 > 55."""
    assert rank == math.ceil((rows + 1) * Fraction(str(coverage)))
    assert conformal_quantile(list(range(1, rows + 1)), coverage) == rank


@given(st.integers(0, 3000), st.integers(1, 999))
def test_every_rank_is_that_of_exact_arithmetic(rows: int, thousandths: int) -> None:
    """For each coverage in thousandths, also one that comes as 1 less another: the rank of rational arithmetic."""
    rank = math.ceil((rows + 1) * Fraction(thousandths, 1000))
    expected = rank if rank <= rows else math.inf
    scores = np.arange(1.0, rows + 1)
    assert conformal_quantile(scores, thousandths / 1000) == expected
    assert conformal_quantile(scores, 1 - (1 - thousandths / 1000)) == expected


def test_too_few_rows_have_an_infinite_threshold_never_the_largest_score() -> None:
    """At 90 %, 8 scores are too few and 9 are enough; none are too few for any coverage."""
    assert conformal_quantile([1.0] * 8, 0.9) == math.inf
    assert conformal_quantile([1.0] * 9, 0.9) == 1.0
    assert conformal_quantile([], 0.01) == math.inf


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf])
def test_a_coverage_that_is_none_is_refused(coverage: float) -> None:
    for ask in (
        lambda: conformal_quantile([0.0], coverage),
        lambda: fit_classes(P, Y).prediction_set(P, coverage),
        lambda: fit_targets([[1.0]], [[0.0]], method="absolute").prediction_interval([[0.0]], None, None, coverage),
    ):
        with pytest.raises(InvalidArgument, match=r"^coverage: "):
            ask()


@given(few_numbers, levels)
def test_each_score_left_out_in_turn_is_covered_often_enough(scores: list[float], coverage: float) -> None:
    """Ties or not, at least the coverage asked; without ties, at most a rank more, which is 1 / (n + 1)."""
    inside = [
        score <= conformal_quantile(sorted(scores[:place] + scores[place + 1 :]), coverage)
        for place, score in enumerate(scores)
    ]
    assert np.mean(inside) >= coverage - 1e-9
    if len(set(scores)) == len(scores):
        assert np.mean(inside) <= coverage + 1 / len(scores)


@given(st.integers(1, 400), st.integers(1, 60), st.sampled_from([0.05, 0.3, 0.5, 0.9, 0.95]))
def test_thinned_scores_cover_no_less_and_hardly_more(rows: int, most: int, coverage: float) -> None:
    """Their rank among all n is at least that of all, and less than 1 / (most + 1) + 1 / (n + 1) of them above."""
    every = np.arange(1.0, rows + 1)
    kept = thin_scores(every, most)
    assert len(kept) == min(rows, most)
    assert set(kept) <= set(every)
    found, wanted = conformal_quantile(kept, coverage), conformal_quantile(every, coverage)
    assert found >= wanted
    if math.isfinite(found) and len(kept) < rows:
        assert found / (rows + 1) < coverage + 1 / (most + 1) + 1 / (rows + 1) + 1e-9


def test_no_group_keeps_more_scores_than_it_may() -> None:
    random = np.random.default_rng(0)
    targets = random.normal(size=(3 * KEPT, 1))
    groups = np.arange(3 * KEPT) % 2
    found = fit_targets(targets, np.zeros_like(targets), method="absolute", groups=groups)
    assert [len(group.scores[0]) for group in found.groups] == [KEPT] * 3
    [pooled] = found.groups[0].scores
    assert 0 <= conformal_quantile(pooled, 0.9) - np.quantile(np.abs(targets), 0.9) < 0.002


# --- Sets and intervals ---


@pytest.mark.parametrize("method", ["lac", "aps", "raps"])
@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
def test_each_row_left_out_in_turn_has_its_label_in_the_set(method: Any, coverage: float) -> None:
    """Between the coverage and one rank more, for 61 rows without ties."""
    p, y = classified(61, 5, seed=3)
    inside = []
    for row in range(len(y)):
        others = np.arange(len(y)) != row
        found = fit_classes(p[others], y[others], method=method, regular_rank=2)
        inside.append(found.prediction_set(p[[row]], coverage)[0, y[row]])
    assert coverage <= np.mean(inside) <= coverage + 1 / len(y)


@pytest.mark.parametrize("method", ["absolute", "normalized", "cqr"])
@pytest.mark.parametrize("steps", [0, 7])
def test_each_row_left_out_in_turn_has_its_targets_within_the_interval(method: Any, steps: int) -> None:
    """At any coverage from the same scores, of each target; rounded to sevenths there are ties, without, one rank."""
    data = predicted(60, seed=1, steps=steps)
    for coverage in (0.2, 0.5, 0.9):
        inside = []
        for row in range(60):
            others = np.arange(60) != row
            found = fit_intervals(method, others, data)  # type: ignore[arg-type]
            inside.append(holds(found, tuple(values[[row]] for values in data), coverage)[0])  # type: ignore[arg-type]
        share = np.mean(inside, 0)
        assert (share >= coverage - 1e-12).all()
        if not steps and method != "cqr":  # whose intervals may be nothing but a point
            assert (share <= coverage + 1 / 60 + 1e-12).all()


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["absolute", "normalized", "cqr"]), st.integers(0, 10_000), levels)
def test_a_target_is_within_the_interval_where_its_score_is_at_most_the_threshold(
    method: Any, seed: int, coverage: float
) -> None:
    """Also the calibration row whose score is the threshold itself, whatever its subtraction has rounded."""
    data = predicted(30, seed)
    found = fit_intervals(method, slice(None), data)
    scores = found.target_scores(*data)
    let_in = scores <= found.thresholds(coverage, 30)
    assert (holds(found, data, coverage) >= let_in).all()
    if method != "cqr":
        assert (holds(found, data, coverage) == let_in).all()


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["lac", "aps", "raps"]), st.sampled_from(["none", "class"]), st.integers(0, 10_000), levels)
def test_a_class_is_let_in_where_its_p_value_is_above_the_miscoverage(
    method: Any, condition: Any, seed: int, coverage: float
) -> None:
    """Where its class has rows enough for a threshold; and sets grow with the coverage."""
    p, y = classified(40, 3, seed)
    found = fit_classes(p, y, method=method, condition=condition)
    unusual = found.p_values(found.label_scores(p))
    own = np.isfinite([conformal_quantile(group.scores[0], coverage) for group in found.groups])
    enough = np.full(3, own[0])
    if condition == "class":
        enough = np.array(
            [own[[group.key for group in found.groups].index(k)] if (y == k).any() else own[0] for k in range(3)]
        )
    inside = found.prediction_set(p, coverage)
    assert (inside == (unusual > 1 - coverage + 1e-12))[:, enough].all()
    assert (inside <= found.prediction_set(p, min(0.999, coverage + 0.05))).all()


def test_p_values_by_hand() -> None:
    """One more than the scores at least as high, of one more than all; ties count."""
    found = Conformal("absolute", "none", 2, (GroupScores(None, ((1.0, 2.0, 2.0, 3.0), (0.0, 0.0, 5.0, 5.0))),))
    assert found.p_values([[2.0, 5.0], [0.5, 6.0], [3.5, -1.0]]).tolist() == [[0.8, 0.6], [1.0, 0.2], [0.2, 1.0]]
    assert found.p_values([[math.nan, math.inf]]).tolist() == [[1.0, 0.2]]


@given(few_numbers)
def test_small_p_values_are_as_rare_as_they_say(scores: list[float]) -> None:
    """Of each score left out in turn, at most a share a has a p-value of at most a, for every a."""
    found = []
    for place, score in enumerate(scores):
        others = tuple(sorted(scores[:place] + scores[place + 1 :]))
        found.append(Conformal("absolute", "none", 1, (GroupScores(None, (others,)),)).p_values([[score]]).item())
    for value in found:
        assert np.mean(np.array(found) <= value) <= value + 1e-12


def test_too_few_rows_let_everything_in() -> None:
    """Every class and the whole line, where the threshold is infinite."""
    found = fit_classes(P, Y)
    assert found.prediction_set(P, 0.9).all()
    assert not found.prediction_set(P, 0.5).all()
    for method in ("absolute", "normalized", "cqr"):
        data = predicted(5, seed=0)
        wide = fit_intervals(method, slice(None), data).prediction_interval(*data[1:], 0.9)
        assert (wide[..., 0] == -math.inf).all()
        assert (wide[..., 1] == math.inf).all()


def test_what_is_not_a_number_lets_everything_in() -> None:
    """A row that the network does not know is answered by every class or the whole line, not by nothing."""
    p, y = classified(50, 3, seed=0)
    for method in ("lac", "aps", "raps"):
        assert fit_classes(p, y, method=method).prediction_set(np.full((2, 3), math.nan), 0.5).all()  # type: ignore[arg-type]
    data = predicted(50, seed=0)
    nowhere = np.full((1, 2), math.nan)
    for method in ("absolute", "normalized", "cqr"):
        found = fit_intervals(method, slice(None), data)
        interval = found.prediction_interval(nowhere, nowhere, np.full((1, 2, 2), math.nan), 0.5)
        assert interval.tolist() == [[[-math.inf, math.inf]] * 2]


def test_a_set_may_be_empty_and_an_interval_collapses_to_its_midpoint() -> None:
    """Sure calibration rows make an unsure new one unusual in every class; far too wide base intervals shrink."""
    sure = fit_classes(np.tile([0.9, 0.1], (20, 1)), np.zeros(20, np.int64))
    assert sure.prediction_set([[0.6, 0.4]], 0.5).tolist() == [[False, False]]
    base = np.tile([-10.0, 10.0], (20, 1, 1))
    wide = fit_targets(np.zeros((20, 1)), np.zeros((20, 1)), None, base, method="cqr", base_level=0.9)
    [[[low, high]]] = wide.prediction_interval([[3.0]], None, [[[1.0, 6.0]]], 0.5).tolist()
    assert low == high == pytest.approx(3.5)
    crossed = wide.prediction_interval([[3.0]], None, [[[6.0, 1.0]]], 0.5)
    np.testing.assert_allclose(crossed, 3.5)


def test_deviations_of_zero_give_no_interval_that_is_nan() -> None:
    """They count as the floor, which is stored; the reach that overflows is infinite."""
    targets = np.linspace(-1, 1, 21)[:, None]
    found = fit_targets(targets, np.zeros_like(targets), np.zeros_like(targets))
    interval = found.prediction_interval([[0.0], [0.0]], [[0.0], [1.0]], None, 0.9)
    np.testing.assert_allclose(interval[0], [[-1.0, 1.0]])
    assert np.isfinite(interval).all()
    huge = fit_targets(1e300 * targets, np.zeros_like(targets), np.zeros_like(targets))
    wide = huge.prediction_interval([[0.0]], [[1e300]], None, 0.9)
    assert wide.tolist() == [[[-math.inf, math.inf]]]


# --- Classes and groups ---


def test_each_class_has_its_own_threshold_and_groups_theirs() -> None:
    """By hand, with nine rows each: the ninth score of its own."""
    random = np.random.default_rng(0)
    p = random.dirichlet(np.ones(2), 18)
    y = np.repeat([0, 1], 9)
    own = [np.sort(1 - p[y == k, k]) for k in (0, 1)]
    by_class = fit_classes(p, y, condition="class")
    assert by_class.thresholds(0.9, 3).tolist() == [[own[0][-1], own[1][-1]]] * 3
    groups = np.tile([7, -2], 9)
    by_group = fit_classes(p, y, condition="group", groups=groups)
    assert [group.key for group in by_group.groups] == [None, -2, 7]
    true = 1 - p[np.arange(18), y]
    found = by_group.thresholds(0.9, 3, [7, -2, 7])
    assert found.tolist() == [[true[groups == key].max()] * 2 for key in (7, -2, 7)]


def test_a_class_with_too_few_rows_and_a_group_never_met_get_the_threshold_of_all() -> None:
    """Fewer than 9 at 90 %, and 4 at 80 %, or their highest score; a p-value is of a class's own rows, however few."""
    p, _ = classified(60, 3, seed=1)
    y = np.array([0] * 40 + [1] * 15 + [2] * 5)
    p[-5:] = [0.2, 0.2, 0.6]
    found = fit_classes(p, y, condition="class")
    pooled = conformal_quantile(found.groups[0].scores[0], 0.9)
    thresholds = found.thresholds(0.9, 1)[0]
    assert thresholds[2] == pooled
    assert thresholds[1] != pooled
    assert found.thresholds(0.8, 1)[0, 2] == found.groups[3].scores[0][-1] == pytest.approx(0.4)
    assert found.p_values([[9.0, 9.0, 9.0]]).tolist() == [[1 / 41, 1 / 16, 1 / 6]]
    p[-1] = [0.6, 0.4 - 1e-6, 1e-6]
    worse = fit_classes(p, y, condition="class")
    assert worse.thresholds(0.9, 1)[0, 2] == worse.groups[3].scores[0][-1] > pooled
    never = fit_classes(p, np.where(y == 2, 0, y), condition="class")
    assert never.thresholds(0.9, 1)[0, 2] == conformal_quantile(never.groups[0].scores[0], 0.9)
    assert never.p_values([[9.0, 9.0, 9.0]])[0, 2] == 1 / 61
    targets = np.arange(20.0)[:, None]
    by_group = fit_targets(targets, np.zeros((20, 1)), method="absolute", groups=np.repeat([3, 5], 10))
    assert by_group.thresholds(0.9, 3, [3, 4, 5]).ravel().tolist() == [9.0, 18.0, 19.0]
    assert by_group.thresholds(0.95, 3, [3, 4, 5]).ravel().tolist() == [19.0, 19.0, 19.0]
    assert by_group.p_values([[12.0]] * 3, [3, 4, 5]).ravel().tolist() == [1 / 11, 9 / 21, 9 / 11]


@pytest.mark.parametrize("method", ["absolute", "normalized", "cqr"])
def test_groups_of_targets_are_calibrated_apart(method: Any) -> None:
    """The intervals of a group are those of a calibration on its rows alone, and every target is by itself."""
    data = predicted(80, seed=5)
    groups = np.arange(80) % 3
    found = fit_intervals(method, slice(None), data, groups=groups)
    for key in range(3):
        rows = groups == key
        alone = fit_intervals(method, rows, data)  # type: ignore[arg-type]
        of_group = tuple(values[rows] for values in data[1:])
        expected = alone.prediction_interval(*of_group, 0.8)
        assert np.array_equal(found.prediction_interval(*of_group, 0.8, groups[rows]), expected)
    for target in (0, 1):
        one = fit_intervals(method, slice(None), tuple(values[:, [target]] for values in data))  # type: ignore[arg-type]
        assert one.groups[0].scores[0] == found.groups[0].scores[target]


def test_raps_chooses_its_rank_on_rows_that_it_does_not_score() -> None:
    """Every tenth row; the others' labels do not move the rank, nor do theirs move the scores but by it."""
    p, y = classified(100, 6, seed=2)
    found = fit_classes(p, y, method="raps")
    assert found.regular_rank == choose_regular_rank(p[::10], y[::10])
    assert len(found.groups[0].scores[0]) == 90
    others = y.copy()
    others[np.arange(100) % 10 > 0] = 0
    assert fit_classes(p, others, method="raps").regular_rank == found.regular_rank
    given = fit_classes(p, y, method="raps", regular_rank=3, penalty=0.2)
    assert (given.regular_rank, given.penalty, len(given.groups[0].scores[0])) == (3, 0.2, 100)


def test_scores_that_were_kept_calibrate_as_their_rows_do() -> None:
    """Of labels by class, and of targets by group."""
    p, y = classified(60, 4, seed=3)
    found = fit_classes(p, y, method="raps", condition="class", regular_rank=2)
    again = refit_scores(found, found.label_scores(p)[np.arange(60), y][:, None], y)
    assert again == found
    data, groups = predicted(60, seed=3), np.arange(60) % 3
    of_targets = fit_intervals("normalized", slice(None), data, groups=groups)
    assert refit_scores(of_targets, of_targets.target_scores(*data), groups) == of_targets
    with pytest.raises(InvalidArgument, match=r"^keys: "):
        refit_scores(of_targets, of_targets.target_scores(*data))


# --- On disk, and what is refused ---

FITTED: dict[str, Callable[[], Conformal]] = {
    "classes": lambda: fit_classes(*classified(50, 4, seed=0), method="raps", condition="class"),
    "groups": lambda: fit_classes(*classified(50, 4, seed=0), condition="group", groups=np.arange(50) % 2),
    "targets": lambda: fit_intervals("normalized", slice(None), predicted(50, seed=0), floor=0.1),
    "quantiles": lambda: fit_intervals("cqr", slice(None), predicted(50, seed=0), groups=np.arange(50) % 3 - 1),
}


@pytest.mark.parametrize("fit", FITTED.values(), ids=FITTED)
def test_json_gives_back_the_same_calibration(fit: Callable[[], Conformal]) -> None:
    """To the last bit."""
    found = fit()
    assert read_back(Conformal, asdict(found)) == found


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("condition", {"method": "absolute", "condition": "class", "groups": [{"key": None, "scores": [[0.0]] * 4}]}),
        ("outputs", {"outputs": 1}),
        ("penalty", {"penalty": -1.0}),
        ("penalty", {"penalty": math.inf}),
        ("regular_rank", {"regular_rank": -1}),
        ("base_level", {"base_level": 0.9}),
        ("base_level", {"method": "cqr", "base_level": 1.0}),
        ("base_level", {"method": "cqr"}),
        ("floor", {"floor": 0.0}),
        ("groups", {"groups": []}),
        ("groups", {"groups": [{"key": 0, "scores": [[0.0]]}]}),
        ("groups", {"groups": [{"key": None, "scores": [[0.0]]}, {"key": 1, "scores": [[0.0]]}]}),
        ("groups", {"condition": "class", "groups": [{"key": None, "scores": [[]]}, {"key": 4, "scores": [[]]}]}),
        ("groups", {"condition": "group", "groups": [{"key": k, "scores": [[]]} for k in (None, 2, 2)]}),
        ("groups", {"condition": "group", "groups": [{"key": k, "scores": [[]]} for k in (None, 2, None)]}),
        ("scores", {"groups": [{"key": None, "scores": [[0.0], [0.0]]}]}),
        ("scores", {"groups": [{"key": None, "scores": [[1.0, 0.0]]}]}),
        ("scores", {"groups": [{"key": None, "scores": [[math.nan]]}]}),
        ("scores", {"groups": [{"key": None, "scores": [[math.inf]]}]}),
        ("scores", {"groups": [{"key": None, "scores": [[0.0] * (KEPT + 1)]}]}),
    ],
)
def test_a_document_that_is_no_calibration_is_refused(field: str, change: dict[str, Any]) -> None:
    """Unknown words, numbers out of range, keys and scores out of order: by the field's name, in one line."""
    document = asdict(fit_classes(*classified(20, 4, seed=0)))
    with pytest.raises(InvalidArgument) as caught:
        read_back(Conformal, document | change)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "guess"},
        {"condition": "row"},
        {"groups": [{"key": None}]},
        {"groups": 3},
        {"outputs": "many"},
    ],
)
def test_a_document_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        read_back(Conformal, asdict(fit_classes(*classified(20, 4, seed=0))) | change)


SETS, INTERVALS = fit_classes(P, Y), fit_targets([[0.0]], [[0.0]], [[1.0]])


@pytest.mark.parametrize(
    ("field", "ask"),
    [
        ("probabilities", lambda: fit_classes([0.5, 0.5], [0])),
        ("probabilities", lambda: fit_classes(np.empty((0, 3)), np.empty(0, int))),
        ("probabilities", lambda: fit_classes([[0.5, math.nan]], [0])),
        ("probabilities", lambda: fit_classes("likely", [0])),
        ("outputs", lambda: fit_classes([[1.0]], [0])),
        ("labels", lambda: fit_classes(P, [0])),
        ("labels", lambda: fit_classes(P, [0.0, 1.0])),
        ("labels", lambda: fit_classes(P, [0, 3])),
        ("labels", lambda: fit_classes(P, [-1, 0])),
        ("method", lambda: fit_classes(P, Y, method="saps")),  # type: ignore[arg-type]
        ("penalty", lambda: fit_classes(P, Y, method="raps", penalty=math.nan)),
        ("groups", lambda: fit_classes(P, Y, condition="group")),
        ("groups", lambda: fit_classes(P, Y, groups=[0, 1])),
        ("groups", lambda: fit_classes(P, Y, condition="group", groups=[0.5, 1.0])),
        ("targets", lambda: fit_targets([1.0], [1.0], method="absolute")),
        ("targets", lambda: fit_targets([[math.inf]], [[1.0]], method="absolute")),
        ("targets", lambda: fit_targets(np.empty((0, 1)), np.empty((0, 1)), method="absolute")),
        ("mean", lambda: fit_targets([[1.0]], [[1.0], [1.0]], method="absolute")),
        ("deviation", lambda: fit_targets([[1.0]], [[1.0]])),
        ("deviation", lambda: fit_targets([[1.0]], [[1.0]], [[-1.0]])),
        ("base_interval", lambda: fit_targets([[1.0]], [[1.0]], method="cqr", base_level=0.9)),
        ("base_level", lambda: fit_targets([[1.0]], [[1.0]], None, [[[0.0, 1.0]]], method="cqr")),
        ("floor", lambda: fit_targets([[1.0]], [[1.0]], [[1.0]], floor=0.0)),
        ("method", lambda: SETS.prediction_interval([[0.0]], None, None, 0.9)),
        ("method", lambda: SETS.target_scores([[0.0]], [[0.0]], None, None)),
        ("method", lambda: INTERVALS.prediction_set(P, 0.9)),
        ("probabilities", lambda: SETS.prediction_set([[0.5, 0.5]], 0.9)),
        ("groups", lambda: SETS.prediction_set(P, 0.9, [0, 0])),
        ("deviation", lambda: INTERVALS.prediction_interval([[0.0]], None, None, 0.9)),
        ("mean", lambda: INTERVALS.prediction_interval([[0.0, 1.0]], [[1.0, 1.0]], None, 0.9)),
        ("scores", lambda: SETS.p_values([0.5])),
        ("targets", lambda: INTERVALS.target_scores([[0.0], [1.0]], [[0.0]], [[1.0]], None)),
    ],
)
def test_what_cannot_be_calibrated_or_answered_is_refused(field: str, ask: Callable[[], object]) -> None:
    """Shapes that do not fit, values that are no numbers, and what the method needs and did not get: by name."""
    with pytest.raises(InvalidArgument) as caught:
        ask()
    assert caught.value.field == field


def test_unequal_calibrations_differ() -> None:
    assert replace(SETS, penalty=0.5) != SETS
