"""Moments of draws, and the predictive distribution that they end as.

Moments are kept per group of draws, so that merging is putting groups side by side: exactly associative, and the
same to the bit whatever passes the draws came in. Totals follow Chan et al. (1979). Between groups of a balanced
design the draws are independent, within a group they are not; the variances and standard errors below respect that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from dubito_models.heads import Decoded

Array = NDArray[np.float64]

ENOUGH_GROUPS = 4  # from which on the scatter between groups tells the standard error
_BLOCK = 1 << 18  # numbers, each of a draw and a quantile, at a time
_PRIOR_FREEDOM = 2  # degrees of freedom that a ratio of standard errors counts for


@dataclass(frozen=True, slots=True)
class Moments:
    """Per group of draws: how many, and the mean and squared deviations of what each draw says.

    With a fan-out, what a draw says is its mean over the masks of the last site, and `within` their variance.
    """

    count: tuple[int, ...]  # G numbers of draws
    mean: Tensor  # (G, B, K) float64: probabilities, or regression means
    m2: Tensor  # (G, B, K): sum of squared deviations from the group's mean
    expected_entropy: Tensor | None = None  # (G, B) nats: classification
    aleatoric: Tensor | None = None  # (G, B, K): mean noise variance: regression that knows its noise
    within: Tensor | None = None  # (G, B, K): mean variance of a draw over the last site's masks
    votes: Tensor | None = None  # (G, B, K): how many draws have this class first (the lowest of equals)
    draws: Tensor | None = None  # (S, B, K): every draw, where quantiles or the draws themselves are wanted
    entropies: Tensor | None = None  # (S, B) nats: every draw's, likewise
    variances: Tensor | None = None  # (S, B, K): every draw's noise variance, and that within it, likewise
    fans: Tensor | None = None  # (S F, B, K): every draw under every mask of its last site, for a joint covariance

    @property
    def total(self) -> int:
        """S, the number of draws."""
        return sum(self.count)


_TENSORS = [field.name for field in fields(Moments) if field.name != "count"]


def gather(decoded: Decoded, counts: Sequence[int], keep_draws: bool, *, joint: bool = False) -> Moments:
    """Sum up draws that come as consecutive groups of `counts` draws, each F times where there is a fan-out of F."""
    if decoded.log_probabilities is not None:
        values = decoded.log_probabilities.exp()
        entropies: Tensor | None = torch.special.entr(values).sum(-1)
    else:
        assert decoded.mean is not None
        values, entropies = decoded.mean, None
    variances = decoded.variance
    within = fans = None
    fan_out = len(values) // sum(counts)
    if fan_out > 1:
        fans, fanned = values if joint else None, _by_draw(values, fan_out)
        values, within = fanned.mean(1), fanned.var(1, correction=0)
        entropies = None if entropies is None else _by_draw(entropies, fan_out).mean(1)
        variances = None if variances is None else _by_draw(variances, fan_out).mean(1)
    mean = _group_means(values, counts)
    if len(set(counts)) == 1:
        m2 = ((values.reshape(len(counts), counts[0], *values.shape[1:]) - mean.unsqueeze(1)) ** 2).sum(1)
    else:
        groups = torch.split(values, list(counts))
        m2 = torch.stack([((group - middle) ** 2).sum(0) for group, middle in zip(groups, mean, strict=True)])
    return Moments(
        count=tuple(counts),
        mean=mean,
        m2=m2,
        expected_entropy=None if entropies is None else _group_means(entropies, counts),
        votes=None if entropies is None else _count_votes(values, counts),
        aleatoric=None if variances is None else _group_means(variances, counts),
        within=None if within is None else _group_means(within, counts),
        draws=values if keep_draws else None,
        entropies=entropies if keep_draws else None,
        variances=_sum(variances, within) if keep_draws else None,
        fans=fans,
    )


def _count_votes(values: Tensor, counts: Sequence[int]) -> Tensor:
    """Return how many draws of each group have a class first, (G, B, K), of probabilities (S, B, K)."""
    first = values.argmax(-1, keepdim=True)  # (S, B, 1)
    numbers = [torch.full((count,), number, device=values.device) for number, count in enumerate(counts)]
    groups = torch.cat(numbers).view(-1, 1, 1).expand_as(first)
    rows = torch.arange(values.shape[1], device=values.device).view(1, -1, 1).expand_as(first)
    votes = torch.zeros(len(counts), *values.shape[1:], dtype=torch.float64, device=values.device)
    return votes.index_put_((groups, rows, first), votes.new_ones(()), accumulate=True)


def _by_draw(values: Tensor, fan_out: int) -> Tensor:
    return values.reshape(-1, fan_out, *values.shape[1:])


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return one if other is None else other if one is None else one + other


def _group_means(values: Tensor, counts: Sequence[int]) -> Tensor:
    if len(set(counts)) == 1:
        return values.reshape(len(counts), counts[0], *values.shape[1:]).mean(1)
    return torch.stack([group.mean(0) for group in torch.split(values, list(counts))])


def _join(parts: Sequence[Moments], axis: int) -> dict[str, Any]:
    """Put what all of them have side by side."""
    found: dict[str, Any] = {}
    for name in _TENSORS:
        present = [value for part in parts if (value := getattr(part, name)) is not None]
        found[name] = torch.cat(present, axis) if len(present) == len(parts) else None
    return found


def merge(first: Moments, second: Moments) -> Moments:
    """Put the groups of `second` after those of `first`."""
    return replace(first, count=first.count + second.count, **_join([first, second], 0))


def split_rows(moments: Moments, rows: Sequence[int]) -> list[Moments]:
    """Split moments of all rows into those of so many rows each."""
    if len(rows) == 1:
        return [moments]
    columns: list[Sequence[Tensor | None]] = [
        [None] * len(rows) if (values := getattr(moments, name)) is None else torch.split(values, list(rows), 1)
        for name in _TENSORS
    ]
    return [replace(moments, **dict(zip(_TENSORS, part, strict=True))) for part in zip(*columns, strict=True)]


def take_rows(moments: Moments, rows: Tensor) -> Moments:
    """Return the moments of the rows of these numbers."""
    found = {name: value for name in _TENSORS if (value := getattr(moments, name)) is not None}
    taken: dict[str, Any] = {name: value.index_select(1, rows.to(value.device)) for name, value in found.items()}
    return replace(moments, **taken)


def join_rows(parts: Sequence[Moments]) -> Moments:
    """Undo `split_rows`; all parts have the same groups."""
    return parts[0] if len(parts) == 1 else replace(parts[0], **_join(parts, 1))


@dataclass(frozen=True, slots=True)
class Spread:
    """What the draws' scatter says: (B, K) each."""

    mean: Array  # over draws
    variance: Array | None  # of a draw, unbiased, >= 0; None for a single draw
    between_draws: Array | None  # the part of it that is not within a draw's fan-out
    standard_error: Array | None  # of the mean over draws; None for a single draw


def totals(moments: Moments) -> tuple[Array, Array]:
    """Return mean and sum of squared deviations over all draws, (B, K) each (Chan et al. 1979)."""
    weights = np.asarray(moments.count, dtype=np.float64).reshape(-1, 1, 1)
    means, m2 = to_numpy(moments.mean), to_numpy(moments.m2)
    mean = (weights * means).sum(0) / weights.sum()
    return mean, m2.sum(0) + (weights * (means - mean) ** 2).sum(0)


def spread(moments: Moments, balanced: bool, ratio: float | None = None) -> Spread:
    """Estimate mean, a draw's variance and the mean's standard error (`ratio`: see `balanced_error`).

    Balanced draws of one group repel each other, so the pooled variance is biased upwards. With two groups or more
    the variance is mean(y^2) less the mean over pairs of groups of the product of their means, which is unbiased
    and equals M2 / S + s_b^2 / G, s_b^2 being the variance between group means. What a fan-out averages out is added.
    """
    draws, groups = moments.total, len(moments.count)
    mean, m2 = totals(moments)
    if draws < 2:
        return Spread(mean, None, None, None)
    variance, between = m2 / (draws - 1), None
    if balanced and groups >= 2:
        between = to_numpy(moments.mean).var(axis=0, ddof=1) / groups
        variance = m2 / draws + between
    error = np.sqrt(variance / draws)
    if balanced:
        error = balanced_error(error, None if between is None else np.sqrt(between), groups, ratio)
    whole = variance if moments.within is None else variance + weighted_mean(moments.within, moments)
    return Spread(mean, whole, variance, error)


def expected_entropy(moments: Moments) -> Array:
    """Return the mean over draws of their entropy, (B,) nats."""
    assert moments.expected_entropy is not None
    return weighted_mean(moments.expected_entropy, moments)


def weighted_mean(values: Tensor, moments: Moments) -> Array:
    """Return the mean over all draws of a mean per group, (G, B, ...)."""
    weights = np.asarray(moments.count, dtype=np.float64).reshape(-1, *(1,) * (values.dim() - 1))
    mean: Array = (weights * to_numpy(values)).sum(0) / weights.sum()
    return mean


def balanced_error(independent: Array, between: Array | None, groups: int, ratio: float | None) -> Array:
    """Return the standard error of a mean over balanced draws, from two that are off in different ways.

    `independent` is the formula for independent draws, which is conservative under balance; times `ratio`, where the
    version's is known, it is right on the average over rows. `between` comes from the scatter between groups, which is
    right for each row, but rough: it counts from four groups on. With both, their squares are pooled by degrees of
    freedom.
    """
    expected = independent if ratio is None else ratio * independent
    if between is None or groups < ENOUGH_GROUPS:
        return expected
    if ratio is None:
        return between
    freedom = groups - 1
    pooled: Array = np.sqrt((_PRIOR_FREEDOM * expected**2 + freedom * between**2) / (_PRIOR_FREEDOM + freedom))
    return pooled


def joint_covariance(moments: Moments, balanced: bool) -> Array | None:
    """Return the covariance (B, B, K) of the rows' predictions over draws; None for a single draw.

    A draw is one thinned network for all rows, so rows move together. Estimated as `spread` estimates the variance,
    which is its diagonal. Needs `moments.draws`, and `fans` where there is a fan-out.
    """
    draws, groups = to_numpy(moments.draws), len(moments.count)
    if len(draws) < 2:
        return None
    if balanced and groups >= 2:
        found = _products(draws) / len(draws) + _products(to_numpy(moments.mean)) / (groups * (groups - 1))
    else:
        found = _products(draws) / (len(draws) - 1)
    if moments.fans is not None:
        every = to_numpy(moments.fans)
        found = found + _products(every) / len(every) - _products(draws) / len(draws)  # what is within a draw
    return found


def _products(values: Array) -> Array:
    """Return the sums of products of deviations over the first axis of values (S, B, K), (B, B, K)."""
    off = values - values.mean(0)
    products: Array = np.einsum("sik,sjk->ijk", off, off, optimize=True)
    return products


class StopReason(StrEnum):
    """Why drawing ended; `UNFINISHED`: it has not, a better answer follows."""

    UNFINISHED = "unfinished"
    MAX_DRAWS = "max_draws"
    TOLERANCE = "tolerance"
    DECISION = "decision"
    THRESHOLD = "threshold"
    DEADLINE = "deadline"
    LOAD = "load"


class Validity(StrEnum):
    """How far the calibration of an answer holds."""

    NONE = "none"
    APPROXIMATE = "approximate"
    EXACT = "exact"


@dataclass(frozen=True, slots=True)
class Classification:
    """A predictive distribution over K classes; None where one draw cannot tell."""

    probabilities: Array  # (B, K)
    label: NDArray[np.int64]  # (B,): argmax
    predictive_entropy: Array  # (B,) nats: total uncertainty
    expected_entropy: Array  # (B,) nats: aleatoric part
    mutual_information: Array | None  # (B,) nats: epistemic part, its bias corrected
    plain_mutual_information: Array | None  # (B,) nats: entropy of the mean less mean entropy
    standard_deviation: Array | None  # (B, K): of the probabilities over draws
    variation_ratio: Array | None  # (B,): share of the draws whose first class is not the most frequent one
    disagreement: Array | None  # (B,): probability that two draws have different first classes, unbiased
    margin: Array  # (B,): the highest probability less the second highest
    prediction_set: NDArray[np.bool_] | None = None  # (B, K): the classes at the coverage asked


@dataclass(frozen=True, slots=True)
class Regression:
    """A predictive distribution of K targets; None where one draw, or the network, cannot tell."""

    mean: Array  # (B, K)
    total_variance: Array | None  # (B, K): epistemic + aleatoric, the latter where known
    epistemic_variance: Array | None  # (B, K): over draws
    aleatoric_variance: Array | None  # (B, K): of the noise
    interval: Array | None  # (B, K, 2): central
    interval_level: float
    quantiles: Array | None  # (B, K, Q)
    prediction_interval: Array | None = None  # (B, K, 2): at the coverage asked
    base_interval: Array | None = None  # (B, K, 2): central, which a conformalised quantile widens


@dataclass(frozen=True, slots=True)
class Predictive:
    """The answer to one request: what is predicted, how it was drawn, and how far to trust it."""

    answer: Classification | Regression
    uncalibrated: Classification | Regression | None
    draws: NDArray[np.int64]  # (B,)
    standard_error: Array | None  # (B, K): of the mean, over seeds
    stop_reason: tuple[StopReason, ...]  # B of them
    seed: int
    design: str
    group_size: int
    estimator: str  # "plain", or "linearized"
    scope: str  # who shares a mask: the rows of a "draw", or none but the "row" itself
    calibration_id: str
    calibration_validity: Validity
    raw_draws: Array | None  # (S, B, K); NaN after a row's own draws
    joint_covariance: Array | None  # (B, B, K): of the predictions between rows, over draws
    coverage: float | None = None  # of prediction sets or intervals, as asked
    abstain: NDArray[np.bool_] | None = None  # (B,): too uncertain for the calibrated risk; None where there is none

    def rows(self, start: int, end: int) -> Predictive:
        """Return the answer for some of the rows."""
        here = slice(start, end)
        return replace(
            self,
            answer=_rows_of(self.answer, here),
            uncalibrated=None if self.uncalibrated is None else _rows_of(self.uncalibrated, here),
            draws=self.draws[here],
            standard_error=None if self.standard_error is None else self.standard_error[here],
            stop_reason=self.stop_reason[here],
            raw_draws=None if self.raw_draws is None else self.raw_draws[:, here],
            abstain=None if self.abstain is None else self.abstain[here],
        )


def join_answers(parts: Sequence[Predictive], rows: Sequence[NDArray[np.int64]]) -> Predictive:
    """Put answers for some rows each together; `rows`: which, in the request."""
    if len(parts) == 1:
        return parts[0]
    order = np.argsort(np.concatenate(rows))

    def joined(values: Sequence[NDArray[Any] | None], axis: int = 0) -> NDArray[Any] | None:
        present = [value for value in values if value is not None]
        return np.concatenate(present, axis).take(order, axis) if len(present) == len(values) else None

    def answers(some: Sequence[Classification | Regression]) -> Classification | Regression:
        changes: dict[str, Any] = {
            field.name: joined([getattr(answer, field.name) for answer in some])
            for field in fields(some[0])
            if isinstance(getattr(some[0], field.name), np.ndarray | None)
        }
        return replace(some[0], **changes)

    exact = all(part.calibration_validity is parts[0].calibration_validity for part in parts)
    uncalibrated = [part.uncalibrated for part in parts if part.uncalibrated is not None]
    reasons = [reason for part in parts for reason in part.stop_reason]
    return replace(
        parts[0],
        answer=answers([part.answer for part in parts]),
        uncalibrated=answers(uncalibrated) if uncalibrated else None,
        draws=np.concatenate([part.draws for part in parts])[order],
        standard_error=joined([part.standard_error for part in parts]),
        stop_reason=tuple(reasons[place] for place in order),
        calibration_validity=parts[0].calibration_validity if exact else Validity.APPROXIMATE,
        raw_draws=joined(_pad([part.raw_draws for part in parts]), axis=1),
        abstain=joined([part.abstain for part in parts]),
    )


def match_diagonal(joint: Array, answer: Classification | Regression) -> Array:
    """Stretch a joint covariance (B, B, K) so that its diagonal is the variance that the answer says.

    That differs from the draws' own where more is known than they tell; correlations stay.
    """
    if isinstance(answer, Regression):
        variance = answer.epistemic_variance
    else:
        variance = None if answer.standard_deviation is None else answer.standard_deviation**2
    if variance is None:
        return joint
    own = np.einsum("iik->ik", joint)
    stretch = np.sqrt(np.divide(variance, own, out=np.ones_like(own), where=own > 0.0))
    matched: Array = joint * stretch[:, None] * stretch[None]
    return matched


def concatenate(answers: Sequence[Classification]) -> Classification:
    """Put answers for some rows each one after the other."""
    changes: dict[str, Any] = {
        field.name: np.concatenate(values) if all(value is not None for value in values) else None
        for field in fields(Classification)
        if (values := [getattr(answer, field.name) for answer in answers]) or True
    }
    return replace(answers[0], **changes)


def _pad(draws: Sequence[Array | None]) -> list[Array | None]:
    """Fill (S, B, K) of different S up with NaN."""
    most = max((len(values) for values in draws if values is not None), default=0)
    return [
        None if values is None else np.pad(values, ((0, most - len(values)), (0, 0), (0, 0)), constant_values=np.nan)
        for values in draws
    ]


def _rows_of(answer: Classification | Regression, rows: slice) -> Classification | Regression:
    changes: dict[str, Any] = {
        field.name: value[rows]
        for field in fields(answer)
        if isinstance(value := getattr(answer, field.name), np.ndarray)
    }
    return replace(answer, **changes)


def entropy(probabilities: Array) -> Array:
    """Return the entropy in nats over the last axis; 0 log 0 = 0."""
    result: Array = special.entr(probabilities).sum(-1)
    return result


def classify(moments: Moments, scatter: Spread) -> Classification:
    """End moments as a classification.

    Mutual information is H(mean p) - mean H(p) (Houlsby et al. 2011). The plain estimate is too low by about
    sum_k Var(p_k) / (2 S mean p_k); with two groups or more that is taken off by a jackknife over groups, with one
    by the formula. Predictive entropy is expected entropy + mutual information, so that the parts add up.
    """
    mean = scatter.mean
    expected = expected_entropy(moments)
    plain_entropy = entropy(mean)
    plain = corrected = None
    if scatter.between_draws is not None:
        most = np.log(mean.shape[-1])
        plain = np.maximum(plain_entropy - expected, 0.0)
        unbounded = _entropy_corrected(moments, mean, scatter.between_draws) - expected
        corrected = np.clip(unbounded, 0.0, np.maximum(most - expected, 0.0))
    ratio, disagreement = ballot(moments)
    return Classification(
        probabilities=mean,
        label=mean.argmax(-1),
        predictive_entropy=plain_entropy if corrected is None else expected + corrected,
        expected_entropy=expected,
        mutual_information=corrected,
        plain_mutual_information=plain,
        standard_deviation=None if scatter.variance is None else np.sqrt(scatter.variance),
        variation_ratio=ratio,
        disagreement=disagreement,
        margin=margin_of(mean),
    )


def ballot(moments: Moments) -> tuple[Array | None, Array | None]:
    """Return what the draws' first classes say: variation ratio and disagreement, (B,) each; None for a single draw.

    1 - f / S, f the votes of the most frequent class (Freeman 1965); and the share of pairs of draws that differ, of
    those of different groups where there are two, since draws of one balanced group repel each other.
    """
    assert moments.votes is not None
    votes, draws = to_numpy(moments.votes), moments.total  # (G, B, K)
    if draws < 2:
        return None, None
    whole = votes.sum(0)
    alike, pairs = (whole * (whole - 1)).sum(-1), draws * (draws - 1)
    if len(votes) > 1:
        alike = (whole**2 - (votes**2).sum(0)).sum(-1)
        pairs = draws**2 - sum(count**2 for count in moments.count)
    return 1.0 - whole.max(-1) / draws, 1.0 - alike / pairs


def margin_of(probabilities: Array) -> Array:
    """Return the highest of probabilities (B, K) less the second highest, (B,)."""
    two = np.partition(probabilities, -2, axis=-1)
    margin: Array = two[..., -1] - two[..., -2]
    return margin


def _entropy_corrected(moments: Moments, mean: Array, variance: Array) -> Array:
    groups = len(moments.count)
    if groups < 2 or len(set(moments.count)) > 1:
        ratio = np.divide(variance, mean, out=np.zeros_like(mean), where=mean > 0)
        corrected: Array = entropy(mean) + ratio.sum(-1) / (2 * moments.total)
        return corrected
    left_out = np.clip((groups * mean - to_numpy(moments.mean)) / (groups - 1), 0.0, 1.0)  # (G, B, K)
    jackknifed: Array = groups * entropy(mean) - (groups - 1) * entropy(left_out).mean(0)
    return jackknifed


def _invert(middle: Array, variances: Array, wanted: Array) -> Array:
    """Return the quantiles (n,) at levels `wanted` (n,) of mixtures of means and variances (S, n)."""
    deviation = np.maximum(np.sqrt(variances), np.finfo(np.float64).tiny)
    low, high = (middle - 40.0 * deviation).min(0), (middle + 40.0 * deviation).max(0)
    whole = np.sqrt((deviation**2).mean(0) + middle.var(0))
    found: Array = np.clip(middle.mean(0) + special.ndtri(wanted) * whole, low, high)
    left = np.arange(len(wanted))  # those that still move
    moved = high - low  # how far each went last
    for _ in range(200):
        with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
            off = (found[left] - middle[:, left]) / deviation[:, left]
            excess = special.ndtr(off).mean(0) - wanted[left]
            density = (np.exp(-0.5 * off**2) / deviation[:, left]).mean(0) / math.sqrt(2 * math.pi)
            step = found[left] - excess / density
        low[left], high[left] = (
            np.where(excess < 0, found[left], low[left]),
            np.where(excess < 0, high[left], found[left]),
        )
        inside = (step > low[left]) & (step < high[left])  # nor where it is not a number
        sure = inside & (np.abs(step - found[left]) <= moved[left] / 2)  # or it might go in circles
        step = np.where(sure, step, (low[left] + high[left]) / 2)
        moved[left] = np.abs(step - found[left])
        still = (np.abs(excess) > 1e-11) & (high[left] - low[left] > 1e-12 * whole[left] + 1e-15 * np.abs(step))
        found[left] = np.where(np.abs(excess) > 1e-11, step, found[left])
        left = left[still]
        if not len(left):
            break
    return found


def mixture_quantiles(means: Array, variances: Array | None, levels: Sequence[float]) -> Array:
    """Return quantiles (..., Q) of the equal-weight Gaussian mixture over the first axis of `means` (S, ...).

    Inverts the mixture's distribution function to 1e-11, or where it jumps to 1e-12 of its spread: by Newton's method
    from the quantile of one Gaussian, within a bracket that is halved where a step would leave it, or be more than half
    the last one. Without variances, the type-7 quantiles of the means.
    """
    at = np.asarray(levels, dtype=np.float64)
    if variances is None:
        return np.moveaxis(np.quantile(means, at, axis=0), 0, -1)
    count = len(means)
    middle, noise = means.reshape(count, -1), variances.reshape(count, -1)  # (S, N)
    numbers = np.repeat(np.arange(middle.shape[1]), len(at))  # (N Q,): every level of each
    wanted = np.tile(at, middle.shape[1])
    found, some = np.empty(len(wanted)), max(1, _BLOCK // count)
    for start in range(0, len(wanted), some):
        here = slice(start, start + some)
        found[here] = _invert(middle.take(numbers[here], 1), noise.take(numbers[here], 1), wanted[here])
    quantiles: Array = found.reshape(*means.shape[1:], len(at))
    return quantiles


Quantiles = Callable[[Array, Array | None, Sequence[float]], Array]  # as `mixture_quantiles`


def regress(
    moments: Moments,
    scatter: Spread,
    noise_variance: Array | None,
    interval_level: float,
    quantile_levels: Sequence[float],
    invert: Quantiles = mixture_quantiles,
) -> Regression:
    """End moments as a regression, by the law of total variance (Kendall & Gal 2017).

    `noise_variance` (K,): a constant noise, for a network that does not predict its own. Interval and quantiles
    are those of the mixture of the draws' Gaussians; without noise, of the draws' means alone. `invert` finds them.
    """
    mean, epistemic = scatter.mean, scatter.variance
    aleatoric = None
    if moments.aleatoric is not None:
        aleatoric = weighted_mean(moments.aleatoric, moments)
    elif noise_variance is not None:
        aleatoric = np.broadcast_to(noise_variance, mean.shape).copy()
    total = None if epistemic is None else epistemic + (0.0 if aleatoric is None else aleatoric)
    interval = quantiles = None
    if moments.draws is not None and (epistemic is not None or aleatoric is not None):
        tail = (1 - interval_level) / 2
        found = invert(to_numpy(moments.draws), _draw_variances(moments, aleatoric), [tail, 1 - tail, *quantile_levels])
        interval, quantiles = found[..., :2], found[..., 2:] if quantile_levels else None
    return Regression(mean, total, epistemic, aleatoric, interval, interval_level, quantiles)


def _draw_variances(moments: Moments, aleatoric: Array | None) -> Array | None:
    own = None if moments.variances is None else to_numpy(moments.variances)
    if moments.aleatoric is not None or aleatoric is None:
        return own
    constant: Array = np.broadcast_to(aleatoric, tuple(to_numpy(moments.draws).shape))
    return constant if own is None else own + constant


def to_numpy(values: Any) -> Array:
    """Return a tensor, or numbers, as a float64 array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)
