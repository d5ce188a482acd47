"""Law 5: merging is associative; one draw gives a mean and nothing it cannot know; edges give right numbers.

And of law 4: the variance between groups is unbiased. Fixed seeds; z-tests at |z| < 4.5 (7e-6 each).
"""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from dubito_models.heads import Decoded, Head, decode
from dubito_models.predictive import (
    Classification,
    Moments,
    Regression,
    classify,
    gather,
    merge,
    mixture_quantiles,
    regress,
    spread,
    totals,
)


def logits(draws: int, rows: int = 3, classes: int = 4, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(draws, rows, classes, generator=generator, dtype=torch.float64)


def classes_of(raw: torch.Tensor, counts: list[int]) -> Moments:
    return gather(decode(Head.LOGITS, raw), counts, keep_draws=False)


def classify_all(moments: Moments, balanced: bool) -> Classification:
    return classify(moments, spread(moments, balanced))


def regress_all(moments: Moments, *options: Any) -> Regression:
    return regress(moments, spread(moments, balanced=False), *options)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=3, max_size=8), st.integers(0, 1000))
def test_merge_is_associative_and_equal_to_all_at_once(counts: list[int], seed: int) -> None:
    raw = logits(sum(counts), seed=seed)
    parts = [classes_of(part, [len(part)]) for part in torch.split(raw, counts)]
    left = parts[0]
    for part in parts[1:]:
        left = merge(left, part)
    right = parts[-1]
    for part in reversed(parts[:-1]):
        right = merge(part, right)
    whole = classes_of(raw, counts)
    for moments in (left, right):
        assert moments.count == whole.count
        for one, other in zip(totals(moments), totals(whole), strict=True):
            assert np.array_equal(one, other)


def test_totals_are_those_of_all_draws_even_far_from_zero() -> None:
    generator = torch.Generator().manual_seed(3)
    values = 1e6 + torch.randn(30, 2, 1, generator=generator, dtype=torch.float64)
    mean, m2 = totals(gather(Decoded(mean=values), [10, 10, 7, 3], keep_draws=False))
    np.testing.assert_allclose(mean, values.mean(0).numpy(), rtol=1e-14)
    np.testing.assert_allclose(m2, ((values - values.mean(0)) ** 2).sum(0).numpy(), rtol=1e-7)


def test_one_draw_gives_a_finite_mean_and_no_more() -> None:
    answer = classify_all(classes_of(logits(1), [1]), False)
    assert np.isfinite(answer.probabilities).all()
    assert answer.mutual_information is None
    assert answer.plain_mutual_information is None
    assert answer.standard_deviation is None
    assert spread(classes_of(logits(1), [1]), balanced=False).standard_error is None
    values = Decoded(mean=torch.ones(1, 2, 1, dtype=torch.float64))
    regression = regress_all(gather(values, [1], True), None, 0.9, [])
    assert regression.mean.tolist() == [[1.0], [1.0]]
    assert regression.total_variance is None
    assert regression.interval is None


@pytest.mark.parametrize("classes", [2, 7])
def test_probabilities_of_exactly_zero_and_one_give_finite_uncertainties(classes: int) -> None:
    raw = torch.zeros(8, 2, classes, dtype=torch.float64)
    raw[:, 0, 0] = 2000.0  # certain, and the same in every draw
    raw[::2, 1, 0] = 2000.0  # certain in every draw, but they disagree
    raw[1::2, 1, 1] = 2000.0
    answer = classify_all(classes_of(raw, [4, 4]), True)
    assert answer.predictive_entropy[0] == 0.0
    assert answer.mutual_information is not None
    assert answer.mutual_information[0] == 0.0
    assert answer.expected_entropy.tolist() == [0.0, 0.0]
    assert answer.mutual_information[1] == pytest.approx(np.log(2))
    assert np.isfinite(answer.standard_deviation).all()  # type: ignore[arg-type]


def test_identical_draws_have_no_mutual_information_and_no_spread() -> None:
    answer = classify_all(classes_of(logits(1).repeat(12, 1, 1), [4, 4, 4]), True)
    assert answer.mutual_information == pytest.approx(0.0, abs=1e-12)
    assert (answer.mutual_information >= 0).all()  # type: ignore[operator]
    assert answer.standard_deviation == pytest.approx(0.0, abs=1e-12)


def test_a_single_logit_is_two_classes() -> None:
    raw = torch.tensor([[0.3, -4.0], [800.0, -800.0]], dtype=torch.float64)
    decoded = decode(Head.LOGIT, raw)
    assert decoded.log_probabilities is not None
    expected = decode(Head.LOGITS, torch.stack([torch.zeros_like(raw), raw], -1)).log_probabilities
    torch.testing.assert_close(decoded.log_probabilities, expected)


def test_entropies_add_up_and_mutual_information_is_bounded() -> None:
    answer = classify_all(classes_of(logits(40, scale=6.0), [10] * 4), True)
    assert answer.mutual_information is not None
    np.testing.assert_allclose(
        answer.predictive_entropy, answer.expected_entropy + answer.mutual_information, rtol=1e-14
    )
    assert (answer.predictive_entropy <= np.log(4) + 1e-12).all()


def test_the_jackknife_takes_the_bias_off_mutual_information() -> None:
    raw = logits(40_000, rows=1, scale=2.0, seed=8)
    truth = classify_all(classes_of(raw, [8] * 5000), False).plain_mutual_information
    batches = [classify_all(classes_of(part, [8] * 4), False) for part in torch.split(raw, 32)]
    plain = np.array([batch.plain_mutual_information for batch in batches])
    corrected = np.array([batch.mutual_information for batch in batches])
    error = corrected.std(ddof=1) / len(batches) ** 0.5
    assert abs(corrected.mean() - truth) < 4.5 * error + 0.002 * truth  # what is left is O(1 / S^2)
    assert plain.mean() - truth < -10 * error  # the plain estimate is far too low


def test_the_variance_between_groups_is_unbiased_where_the_pooled_one_is_not() -> None:
    # Draws of a group are balanced: they sum to the group's own small remainder.
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(20_000, 4, 8, generator=generator, dtype=torch.float64)
    balanced = noise - 0.95 * noise.mean(-1, keepdim=True)  # variance per draw known in closed form
    true = 1 - 2 * 0.95 / 8 + 0.95**2 / 8
    ours, pooled = [], []
    for repeat in balanced:
        values = repeat.reshape(32, 1, 1)
        moments = gather(Decoded(mean=values), [8] * 4, keep_draws=False)
        found = spread(moments, balanced=True)
        naive = spread(moments, balanced=False)
        assert found.variance is not None
        assert naive.variance is not None
        ours.append(found.variance.item())
        pooled.append(naive.variance.item())
    error = np.std(ours, ddof=1) / len(ours) ** 0.5
    assert abs(np.mean(ours) - true) < 4.5 * error
    assert np.mean(pooled) - true > 10 * error


def test_the_law_of_total_variance_keeps_the_epistemic_part() -> None:
    generator = torch.Generator().manual_seed(2)
    means = 8 * torch.randn(64, 3, 2, generator=generator, dtype=torch.float64)
    decoded = decode(Head.MEAN_AND_LOG_VARIANCE, torch.cat([means, torch.zeros_like(means)], -1))
    answer = regress_all(gather(decoded, [16] * 4, True), None, 0.9, [])
    np.testing.assert_allclose(answer.aleatoric_variance, 1.0)
    np.testing.assert_allclose(answer.epistemic_variance, means.var(0).numpy(), rtol=1e-12)
    np.testing.assert_allclose(answer.total_variance, 1.0 + means.var(0).numpy(), rtol=1e-12)


def test_mixture_quantiles_invert_the_mixtures_distribution_function() -> None:
    from scipy.stats import norm

    generator = np.random.default_rng(0)
    means, variances = generator.normal(size=(5, 4, 1)) * 3, generator.uniform(0.01, 2, size=(5, 4, 1))
    levels = [0.05, 0.5, 0.975]
    found = mixture_quantiles(means, variances, levels)
    for index, level in enumerate(levels):
        below = norm.cdf(found[..., index], means, np.sqrt(variances)).mean(0)
        np.testing.assert_allclose(below, level, atol=1e-8)
    one = mixture_quantiles(means[:1], variances[:1], levels)
    np.testing.assert_allclose(one[:, 0], norm.ppf(levels, means[0], np.sqrt(variances[0])), rtol=1e-7)


def test_many_quantiles_of_many_draws_need_little_memory() -> None:
    """2,000 draws of 50 numbers, 40 levels each: once for each level the draws alone take 32 MB."""
    generator = np.random.default_rng(0)
    means, variances = generator.normal(size=(2000, 25, 2)), generator.uniform(0.01, 2, size=(2000, 25, 2))
    levels = np.linspace(0.01, 0.99, 40)
    tracemalloc.start()
    try:
        found = mixture_quantiles(means, variances, levels.tolist())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 25e6
    assert found.shape == (25, 2, 40)
    for place in (0, 17, 39):
        one = mixture_quantiles(means[:, 3], variances[:, 3], [levels[place]])
        np.testing.assert_allclose(found[3, :, place], one[:, 0], rtol=1e-12)


def test_no_quantile_of_a_mixture_is_missed() -> None:
    """Random mixtures of few, far-off Gaussians, on some of which Newton's method alone goes in circles."""
    worst = 0.0
    for seed in range(300):
        chance = np.random.default_rng(seed)
        count = int(chance.integers(1, 31))
        means, variances = 3 * chance.normal(size=(count, 2)), chance.gamma(1, size=(count, 2)) + 1e-3
        levels = chance.uniform(0.001, 0.999, 40)
        found = mixture_quantiles(means, variances, levels)  # (2, 40)
        mass = special.ndtr((found - means[..., None]) / np.sqrt(variances)[..., None]).mean(0)
        worst = max(worst, float(np.abs(mass - levels).max()))
    known = np.random.default_rng(16)
    count = int(known.integers(1, 31))
    means, variances = 3 * known.normal(size=(count, 2)), known.gamma(1, size=(count, 2)) + 1e-3
    [found] = mixture_quantiles(means[:, :1], variances[:, :1], [0.8366583541147132])[0]
    assert special.ndtr((found - means[:, 0]) / np.sqrt(variances[:, 0])).mean() == pytest.approx(0.8366583541147132)
    assert worst < 1e-9
