"""Calibration maps of a regression: against closed forms, searches, and what new rows say of them."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import stats

from calibrations import read_back
from dubito_models.calibration.noise import fit_noise_scale
from dubito_models.calibration.target_maps import (
    MOST_KNOTS,
    DeviationScale,
    NoiseScale,
    PitMap,
    StandardizedResiduals,
    TargetMap,
    TargetMapKind,
    choose_target_map,
    fit_target_map,
)
from dubito_models.calibration.target_scores import (
    LEVELS,
    DrawnTargets,
    log_losses,
    mean_and_deviation,
    place_targets,
    quantile_losses,
    standardized_errors,
)
from dubito_models.errors import InvalidArgument
from dubito_models.metrics import (
    ensemble_crps,
    gaussian_negative_log_likelihood,
    mixture_crps,
    mixture_negative_log_likelihood,
)
from dubito_models.predictive import Regression, mixture_quantiles

Array = NDArray[np.float64]

MAPS: list[TargetMap] = [
    NoiseScale(1.3),
    DeviationScale((0.5, 1 / 3), "variance_scale"),
    DeviationScale((2.0, 1.0), "crps_scale"),
    PitMap(((0.0, 0.1, 0.7, 1.0), (0.0, 0.5, 1.0)), ((0.0, 0.3, 0.6, 1.0), (0.0, 0.25, 1.0))),
    StandardizedResiduals(((-1.0, 0.1, 2.0), (-0.5, -0.5, 1.5))),
]
KINDS: list[TargetMapKind] = ["noise_scale", "variance_scale", "crps_scale", "pit_isotonic", "crude"]


def drawn(rows: int = 1000, count: int = 20, seed: int = 0, *, skew: bool = False) -> DrawnTargets:
    """Make draws of two targets, the second in a unit 100 times as small, whose targets follow their mixture.

    The mixture is that of the draws and a noise that differs between draws; or with `skew` the noise is exponential.
    """
    generator = np.random.default_rng(seed)
    center = generator.normal(size=(1, rows, 2))
    means = center + 0.4 * generator.normal(size=(count, rows, 2))
    variances = generator.uniform(0.2, 1.0, size=(count, rows, 2))
    which = generator.integers(0, count, (1, rows, 2))
    noise = generator.exponential(size=(rows, 2)) - 1 if skew else generator.normal(size=(rows, 2))
    own, spread = (np.take_along_axis(values, which, axis=0)[0] for values in (means, variances))
    unit = np.array([1.0, 100.0])
    return DrawnTargets(means * unit, variances * unit**2, (own + np.sqrt(spread) * noise) * unit)


def alone(draws: DrawnTargets) -> DrawnTargets:
    """Return the draws without what they know of their noise, which is drawn into them instead."""
    assert draws.variances is not None
    noise = np.random.default_rng(7).normal(size=draws.means.shape) * np.sqrt(draws.variances)
    return DrawnTargets(draws.means + noise, None, draws.targets)


def spoilt(draws: DrawnTargets, factor: float) -> DrawnTargets:
    """Return draws that claim deviations so many times as large."""
    return draws.stretched(np.array([factor, factor]))


# --- What is found ---


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("kind", ["variance_scale", "crps_scale"])
@pytest.mark.parametrize("factor", [1.0, 0.4, 3.0])
def test_deviations_that_are_off_by_a_factor_are_put_right(kind: TargetMapKind, factor: float, noise: bool) -> None:
    """The factor's own deviation is about 1 / sqrt(2 rows) = 2 %, four of which are allowed.

    Of draws alone it takes many: of 20, the variance is so uncertain that errors in deviations are 9 % larger.
    """
    draws = spoilt(drawn() if noise else alone(drawn(count=200)), factor)
    found = fit_target_map(kind, draws)
    assert isinstance(found, DeviationScale)
    np.testing.assert_allclose(found.scales, 1 / factor, rtol=0.09)


def test_the_variance_scale_is_the_closed_form_and_a_gaussians_likeliest() -> None:
    draws = alone(drawn(rows=200))
    found = fit_target_map("variance_scale", draws)
    assert isinstance(found, DeviationScale)
    middle, variance = draws.means.mean(0), draws.means.var(0)
    for target, scale in enumerate(found.scales):
        z = (draws.targets[:, target] - middle[:, target]) / np.sqrt(variance[:, target])
        assert scale == pytest.approx(np.sqrt((z**2).mean()), rel=1e-12)
        worth = [
            gaussian_negative_log_likelihood(middle[:, target], each**2 * variance[:, target], draws.targets[:, target])
            for each in (scale, 0.99 * scale, 1.01 * scale)
        ]
        assert worth[0] == min(worth)
    # After it, errors in deviations have the mean square 1.
    np.testing.assert_allclose((standardized_errors(draws.stretched(np.array(found.scales))) ** 2).mean(0), 1)


@pytest.mark.parametrize("noise", [True, False])
def test_the_crps_scale_is_where_a_search_on_the_score_itself_ends(noise: bool) -> None:
    draws = spoilt(drawn(rows=100), 0.6)
    draws = draws if noise else alone(draws)
    found = fit_target_map("crps_scale", draws)
    assert isinstance(found, DeviationScale)

    def score(target: int, scale: float) -> float:
        each = draws.by_target()[target].stretched(np.array([scale]))
        if each.variances is None:
            return ensemble_crps(each.means, each.targets)
        return mixture_crps(each.means, each.variances, each.targets)

    for target, scale in enumerate(found.scales):
        assert 0.5 < scale < 5
        step = 1e-3 * scale
        low, here, high = (score(target, scale + offset) for offset in (-step, 0.0, step))
        assert here <= min(low, high)
        if noise:  # else it has kinks; the parabola through the three has its lowest point there
            assert abs(low - high) / (2 * (low - 2 * here + high)) < 0.02  # steps


def test_the_noise_scale_is_the_one_that_is_fitted_without_maps() -> None:
    draws = spoilt(drawn(rows=200), 0.7)
    assert draws.variances is not None
    for overlap in (1, 10):
        peer = fit_noise_scale(draws.means, draws.variances, draws.targets, overlap=overlap)
        chosen = choose_target_map(
            draws.means, draws.variances, draws.targets, methods=["noise_scale"], overlap=overlap
        )
        assert chosen.map == NoiseScale(peer.value)
        assert chosen.nll_before == pytest.approx(peer.nll_before, rel=1e-12)
        assert chosen.nll_after == pytest.approx(peer.nll_after, rel=1e-12)


def test_crude_quantiles_hold_their_share_of_its_own_data_exactly() -> None:
    """Below the quantile at k / (n + 1) lie k - 1 of n targets, and the k-th on it."""
    draws = drawn(rows=99, skew=True)
    found = fit_target_map("crude", draws)
    levels = [0.1, 0.25, 0.5, 0.9]
    quantiles = found.quantiles(draws.means, draws.variances, levels)  # (N, K, Q)
    off = (draws.targets[..., None] - quantiles) / np.abs(quantiles).max((0, 2))[:, None]
    for place, level in enumerate(levels):
        assert (off[..., place] < -1e-12).sum(0).tolist() == [round(100 * level) - 1] * 2
        assert (off[..., place] < 1e-12).sum(0).tolist() == [round(100 * level)] * 2


def test_pit_quantiles_hold_their_share_of_its_own_data_exactly() -> None:
    """As crude ones do; the mixture's quantile is found to 1e-11 of probability."""
    draws = spoilt(drawn(rows=99), 0.5)
    found = fit_target_map("pit_isotonic", draws)
    levels = [0.1, 0.25, 0.5, 0.9]
    quantiles = found.quantiles(draws.means, draws.variances, levels)
    for place, level in enumerate(levels):
        deviation = quantiles[..., place] - draws.targets
        assert (deviation > 1e-6 * np.array([1, 100])).sum(0).tolist() == [round(100 * level) - 1] * 2
        assert (deviation > -1e-6 * np.array([1, 100])).sum(0).tolist() == [round(100 * level)] * 2


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("kind", ["pit_isotonic", "crude"])
def test_calibrated_levels_of_new_targets_are_uniform(kind: TargetMapKind, noise: bool) -> None:
    """Kolmogorov and Smirnov's test of new rows at level .001, against p < 1e-6 before calibration.

    The map's own error adds to the new rows', so both have 1000 and the statistic is that of two samples. Draws alone
    are spread too far: no level of theirs is beyond them all.
    """
    both = drawn(rows=2000, skew=True)
    both = spoilt(both, 0.5) if noise else spoilt(alone(both), 2.0)
    draws, new = both.take(np.arange(1000)), both.take(np.arange(1000, 2000))
    levels = np.arange(1, 200) / 200
    found = fit_target_map(kind, draws)
    before = mixture_quantiles(new.means, new.variances, levels.tolist())
    after = found.quantiles(new.means, new.variances, levels.tolist())
    uniform = np.arange(1, 1001) / 1001
    for target in range(2):
        ranks = [(quantiles[:, target] < new.targets[:, target, None]).mean(-1) for quantiles in (before, after)]
        assert stats.ks_2samp(ranks[0], uniform).pvalue < 1e-6
        assert stats.ks_2samp(ranks[1], uniform).pvalue > 1e-3


# --- What they do ---


def test_a_stretched_mixtures_quantiles_are_those_of_stretched_draws() -> None:
    for draws in (drawn(rows=20), alone(drawn(rows=20))):
        there = draws.stretched(np.array([0.5, 2.0]))
        found = DeviationScale((0.5, 2.0), "crps_scale").quantiles(draws.means, draws.variances, LEVELS)
        np.testing.assert_allclose(found, mixture_quantiles(there.means, there.variances, LEVELS), rtol=1e-6, atol=1e-7)
        middle, deviation = mean_and_deviation(draws.means, draws.variances)
        np.testing.assert_allclose(mean_and_deviation(there.means, there.variances)[0], middle, atol=1e-12)
        np.testing.assert_allclose(mean_and_deviation(there.means, there.variances)[1], deviation * [0.5, 2.0])


def test_a_noise_scales_quantiles_are_those_of_scaled_noise() -> None:
    draws = drawn(rows=20)
    assert draws.variances is not None
    found = NoiseScale(2.0).quantiles(draws.means, draws.variances, LEVELS)
    np.testing.assert_array_equal(found, mixture_quantiles(draws.means, 2 * draws.variances, LEVELS))
    with pytest.raises(InvalidArgument, match="variances: got None"):
        NoiseScale(2.0).quantiles(draws.means, None, LEVELS)


@pytest.mark.parametrize("found", MAPS, ids=lambda found: found.kind)
@settings(max_examples=20, deadline=None)
@given(levels=st.lists(st.floats(0.001, 0.999), min_size=2, max_size=5))
def test_quantiles_rise_with_their_levels(found: TargetMap, levels: list[float]) -> None:
    draws = drawn(rows=3, count=4)
    quantiles = found.quantiles(draws.means, draws.variances, sorted(levels))
    assert quantiles.shape == (3, 2, len(levels))
    assert (np.diff(quantiles, axis=-1) >= -1e-7).all()


def test_maps_that_say_nothing_leave_quantiles_as_they_are() -> None:
    draws = drawn(rows=10)
    own = mixture_quantiles(draws.means, draws.variances, LEVELS)
    identities = (
        NoiseScale(1.0),
        DeviationScale((1.0, 1.0), "crps_scale"),
        PitMap(((0.0, 1.0),) * 2, ((0.0, 1.0),) * 2),
    )
    for found in identities:
        np.testing.assert_allclose(found.quantiles(draws.means, draws.variances, LEVELS), own, rtol=1e-9)


def test_a_stretch_is_one_of_all_variances_of_an_answer() -> None:
    ones = np.ones((3, 2))
    answer = Regression(ones, 3 * ones, ones, 2 * ones, None, 0.9, None)
    found = DeviationScale((0.5, 2.0), "variance_scale")
    assert found.variance_factor == (0.25, 4.0)
    stretched = found.stretch(answer)
    np.testing.assert_array_equal(stretched.mean, ones)
    for name, size in (("total_variance", 3), ("epistemic_variance", 1), ("aleatoric_variance", 2)):
        np.testing.assert_array_equal(getattr(stretched, name), np.tile([0.25 * size, 4.0 * size], (3, 1)))
    single = found.stretch(Regression(ones, None, None, None, None, 0.9, None))
    assert single.total_variance is single.epistemic_variance is single.aleatoric_variance is None
    for other in MAPS[3:]:
        assert isinstance(other, PitMap | StandardizedResiduals)
        assert other.stretch(answer) is answer


def test_the_place_of_a_target_is_the_level_of_which_it_is_the_quantile() -> None:
    levels = [0.013, 0.2, 0.5, 0.77, 0.99]
    for draws in (drawn(rows=5), alone(drawn(rows=5))):
        quantiles = mixture_quantiles(draws.means, draws.variances, levels)
        for place, level in enumerate(levels):
            there = DrawnTargets(draws.means, draws.variances, quantiles[..., place])
            np.testing.assert_allclose(place_targets(there), level, rtol=1e-7)
        below = DrawnTargets(draws.means, draws.variances, draws.targets - 1e6)
        np.testing.assert_allclose(place_targets(below), 0, atol=1e-9)


def test_draws_that_agree_place_what_lies_beyond_them_at_the_ends() -> None:
    means = np.array([1.0, 2.0, 2.0])[:, None, None] * np.ones((3, 4, 1))
    places = place_targets(DrawnTargets(means, None, np.array([[0.0], [1.5], [2.0], [3.0]])))
    np.testing.assert_allclose(places[:, 0], [1e-9, 0.25, 0.75, 1 - 1e-9])


def test_scores_by_quantiles_are_the_mixtures_score() -> None:
    """99 levels leave out the tails: to 2 %. And the likelihood of rows is that of the metrics."""
    draws = drawn(rows=200)
    assert draws.variances is not None
    losses = quantile_losses(mixture_quantiles(draws.means, draws.variances, LEVELS), draws.targets)
    for target, each in enumerate(draws.by_target()):
        assert each.variances is not None
        exact = mixture_crps(each.means, each.variances, each.targets)
        assert losses[:, target].mean() == pytest.approx(exact, rel=0.02)
    peer = mixture_negative_log_likelihood(draws.means, draws.variances, draws.targets)
    assert log_losses(draws).mean() == pytest.approx(peer, rel=1e-12)
    bare = alone(draws)
    peer = gaussian_negative_log_likelihood(bare.means.mean(0), bare.means.var(0), bare.targets)
    assert log_losses(bare).mean() == pytest.approx(peer, rel=1e-12)


def test_a_map_of_a_whole_distribution_keeps_some_thousand_numbers() -> None:
    many = drawn(rows=5000, count=3)
    crude, pit = fit_target_map("crude", many), fit_target_map("pit_isotonic", many)
    assert isinstance(crude, StandardizedResiduals)
    assert isinstance(pit, PitMap)
    assert {len(each) for each in crude.residuals} == {MOST_KNOTS}
    assert {len(each) for each in pit.pits} == {MOST_KNOTS + 2}
    z = standardized_errors(many)[:, 0]
    for level in (0.01, 0.5, 0.99):
        share = (z < np.quantile(crude.residuals[0], level, method="weibull")).mean()
        assert share == pytest.approx(level, abs=1e-3)


# --- Documents ---


@pytest.mark.parametrize("found", MAPS, ids=lambda found: found.kind)
def test_a_map_and_its_document_are_the_same(found: TargetMap) -> None:
    assert read_back(TargetMap, asdict(found)) == found


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_fitted_is_read_back_to_the_last_digit(kind: TargetMapKind) -> None:
    found = fit_target_map(kind, drawn(rows=50))
    assert read_back(TargetMap, asdict(found)) == found


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"kind": "noise_scale", "factor": -1.0}, "factor: got -1.0"),
        ({"kind": "variance_scale", "scales": []}, "scales: got 0 numbers"),
        ({"kind": "crps_scale", "scales": [1.0, 0.0]}, "scales: got 0.0"),
        ({"kind": "pit_isotonic", "pits": [[0.0, 1.0]], "levels": []}, "levels: got 0 of them"),
        ({"kind": "pit_isotonic", "pits": [], "levels": []}, "pits: got no target's"),
        ({"kind": "pit_isotonic", "pits": [[0.0, 0.5]], "levels": [[0.0, 1.0]]}, "pits: got 0..0.5"),
        ({"kind": "pit_isotonic", "pits": [[0.0, 0.0, 1.0]], "levels": [[0.0, 0.5, 1.0]]}, "pits: got numbers that do"),
        ({"kind": "pit_isotonic", "pits": [[0.0, 1.0]], "levels": [[0.0, 0.5, 1.0]]}, "levels: got 3 of them"),
        ({"kind": "crude", "residuals": [[1.0, 0.0]]}, "residuals: got numbers that do not rise"),
        ({"kind": "crude", "residuals": [[]]}, "residuals: got 0 numbers"),
        ({"kind": "crude", "residuals": []}, "residuals: got no target's"),
    ],
)
def test_a_document_that_is_no_map_is_refused(document: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        read_back(TargetMap, document)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    "document",
    [
        {"kind": "temperature", "temperature": 1.0},
        {"kind": "noise_scale"},
        {"kind": "noise_scale", "factor": "much"},
        {"kind": "crps_scale", "scales": 1.0},
    ],
)
def test_a_document_of_another_shape_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        read_back(TargetMap, document)


@pytest.mark.parametrize("found", MAPS[1:], ids=lambda found: found.kind)
def test_a_map_of_other_targets_is_refused(found: TargetMap) -> None:
    with pytest.raises(InvalidArgument, match="targets: got 1 of them; accepted: 2"):
        found.quantiles(np.zeros((3, 5, 1)), np.ones((3, 5, 1)), [0.5])


# --- Choosing ---


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("factor", [0.4, 3.0])
def test_what_is_chosen_helps_new_rows_by_about_what_is_said(factor: float, noise: bool) -> None:
    """Deviations of both likelihoods are below .08 nats here (300 and 1000 rows of two targets)."""
    both = spoilt(drawn(rows=1300), factor)
    both = both if noise else alone(both)
    draws, new = both.take(np.arange(300)), both.take(np.arange(300, 1300))
    chosen = choose_target_map(draws.means, draws.variances, draws.targets)
    assert [kind for kind, _ in chosen.tried] == [*(["noise_scale"] if noise else []), "variance_scale", "crps_scale"]
    assert isinstance(chosen.map, DeviationScale)
    assert chosen.nll_after is not None
    assert chosen.nll_after == min(nll for _, nll in chosen.tried)
    assert chosen.crps == ()
    gain = (log_losses(new) - log_losses(new.stretched(np.array(chosen.map.scales)))).mean()
    assert gain > 0.2
    assert chosen.nll_before - chosen.nll_after == pytest.approx(gain, rel=0.25)


def test_calibrated_draws_are_mostly_left_alone_and_never_harmed_far() -> None:
    """Thirty seeds, 40 rows: a map is taken in less than half, and costs at most .1 nats, .01 on the average."""
    new = drawn(rows=2000, seed=99)
    assert new.variances is not None
    costs, kept = [], 0
    for seed in range(30):
        draws = drawn(rows=40, seed=seed)
        chosen = choose_target_map(draws.means, draws.variances, draws.targets)
        kept += chosen.map is None
        if isinstance(chosen.map, NoiseScale):
            there = DrawnTargets(new.means, chosen.map.factor * new.variances, new.targets)
        else:
            there = new if chosen.map is None else new.stretched(np.array(getattr(chosen.map, "scales", ())))
        costs.append((log_losses(there) - log_losses(new)).mean())
    assert kept > 15
    assert max(costs) < 0.1
    assert np.mean(costs) < 0.01


def test_noise_alone_that_is_off_gets_a_noise_scale() -> None:
    draws = drawn(rows=1000)
    assert draws.variances is not None
    chosen = choose_target_map(draws.means, draws.variances / 9, draws.targets)
    assert isinstance(chosen.map, NoiseScale)
    assert chosen.map.factor == pytest.approx(9, rel=0.15)


def test_a_skewed_error_is_told_by_maps_of_quantiles_where_they_are_asked_for() -> None:
    """Their score decides then, and all scores are given, in deviations of the targets: the units do not matter."""
    both = drawn(rows=1500, skew=True)
    draws, new = both.take(np.arange(500)), both.take(np.arange(500, 1500))
    chosen = choose_target_map(
        draws.means, draws.variances, draws.targets, methods=["crude", "pit_isotonic", "crps_scale"]
    )
    assert isinstance(chosen.map, PitMap | StandardizedResiduals)
    assert [kind for kind, _ in chosen.tried] == ["crps_scale"]
    assert [kind for kind, _ in chosen.crps] == ["identity", "crps_scale", "pit_isotonic", "crude"]
    worth = dict(chosen.crps)
    assert worth[chosen.map.kind] == min(worth.values())
    assert chosen.nll_after is None
    own = quantile_losses(mixture_quantiles(new.means, new.variances, LEVELS), new.targets)
    better = quantile_losses(chosen.map.quantiles(new.means, new.variances, LEVELS), new.targets)
    assert (better.mean(0) < own.mean(0)).all()
    assert draws.variances is not None
    kelvin = DrawnTargets(draws.means * [1, 0.01], draws.variances * [1, 1e-4], draws.targets * [1, 0.01])
    again = choose_target_map(kelvin.means, kelvin.variances, kelvin.targets, methods=["crude"])
    assert dict(again.crps)["identity"] == pytest.approx(worth["identity"], rel=1e-6)


def test_windows_that_overlap_count_as_one() -> None:
    """Twenty-four windows in each of which one error is seen: five such tell nothing, five hundred do."""
    generator = np.random.default_rng(0)
    for stretches, helps in ((5, False), (500, True)):
        errors = np.repeat(2 * generator.normal(size=(stretches, 1)), 24, 0)  # deviation 2 where 1 is claimed
        means, variances = np.zeros((1, len(errors), 1)), np.ones((1, len(errors), 1))
        chosen = choose_target_map(means, variances, errors, overlap=24)
        assert (chosen.map is not None) == helps
        assert (chosen.nll_after != chosen.nll_before) == helps


def test_what_cannot_be_calibrated_is_refused() -> None:
    draws = drawn(rows=20)
    means, variances, targets = draws.means, draws.variances, draws.targets
    assert variances is not None
    with pytest.raises(InvalidArgument, match="at least 10 rows"):
        choose_target_map(means[:, :9], variances[:, :9], targets[:9])
    with pytest.raises(InvalidArgument, match="targets: got shape"):
        choose_target_map(means, variances, targets[:, 0])
    with pytest.raises(InvalidArgument, match="variances: got shape"):
        choose_target_map(means, variances[:1], targets)
    with pytest.raises(InvalidArgument, match="means, targets: got NaN"):
        choose_target_map(means, variances, np.full_like(targets, np.nan))
    with pytest.raises(InvalidArgument, match="variances: got 0"):
        choose_target_map(means, 0 * variances, targets)
    with pytest.raises(InvalidArgument, match="means: got a row of which all draws say the same"):
        choose_target_map(means[:1], None, targets)
    with pytest.raises(InvalidArgument, match="methods: got \\['noise_scale'\\]"):
        choose_target_map(means, None, targets, methods=["noise_scale"])
    with pytest.raises(InvalidArgument, match="methods: got \\['temperature'\\]"):
        choose_target_map(means, variances, targets, methods=["temperature"])
