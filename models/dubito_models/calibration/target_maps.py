"""Calibration maps of a regression: what they are, and their application.

A noise scale acts on the noise of every draw. All others act on the mixture of the draws' Gaussians, target by target:
they stretch it about its mean, or say which of its quantiles to take. Deviations are those of the mixture itself: its
variance is the mean noise variance plus that of the draws' means, the sum of squares divided by the number of draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from dubito_models.calibration.choosing import ChosenMap, best_of, check_methods, check_rows, cross_validate
from dubito_models.calibration.fitting import HIGHEST, LEAST, LOWEST, most_probable
from dubito_models.calibration.parameters import (
    Numbers,
    check_count,
    check_finite,
    check_positive,
    check_rising,
)
from dubito_models.calibration.target_scores import (
    LEVELS,
    DrawnTargets,
    best_crps_scale,
    draw_targets,
    log_losses,
    mean_and_deviation,
    place_targets,
    quantile_losses,
    standardized_errors,
)
from dubito_models.errors import InvalidArgument
from dubito_models.metrics import mixture_negative_log_likelihood
from dubito_models.predictive import Regression, mixture_quantiles

Array = NDArray[np.float64]
Rows = NDArray[np.int64]

MOST_KNOTS = 2000  # numbers of a target that a map of its whole distribution keeps
WITHOUT_DENSITY = ("pit_isotonic", "crude")  # maps of quantiles alone
_BLOCK = 2**21  # numbers held at a time


def _check_targets(field: str, given: int) -> None:
    if not given:
        raise InvalidArgument(field, "no target's", "a list for each target")


@dataclass(frozen=True, slots=True)
class NoiseScale:
    """The noise variance of every draw times a factor (Gal & Ghahramani 2016 choose it, from a grid)."""

    factor: float
    kind: Literal["noise_scale"] = "noise_scale"
    per_draw: ClassVar[Literal[True]] = True

    def __post_init__(self) -> None:
        check_positive("factor", (self.factor,))

    def quantiles(self, means: Array, variances: Array | None, levels: Sequence[float]) -> Array:
        """Return calibrated quantiles (N, K, Q) of draws (S, N, K); `InvalidArgument` where they know no noise."""
        if variances is None:
            raise InvalidArgument("variances", None, "the noise variance of every draw, which this map scales")
        return mixture_quantiles(means, self.factor * variances, levels)


@dataclass(frozen=True, slots=True)
class DeviationScale:
    """The mixture stretched about its mean, by one factor per target: all deviations times it.

    "variance_scale" makes the mean of z^2 1, z the error in deviations, which is the likelihood's optimum for one
    Gaussian (Laves et al. 2020); "crps_scale" has the lowest continuous ranked probability score.
    """

    scales: Numbers  # K
    kind: Literal["variance_scale", "crps_scale"]
    per_draw: ClassVar[Literal[False]] = False

    def __post_init__(self) -> None:
        check_positive("scales", self.scales)

    @property
    def variance_factor(self) -> Numbers:
        """The factors (K,) on epistemic, aleatoric and total variance."""
        return tuple(scale**2 for scale in self.scales)

    def quantiles(self, means: Array, variances: Array | None, levels: Sequence[float]) -> Array:
        """Return calibrated quantiles (N, K, Q) of draws (S, N, K)."""
        check_count("targets", means.shape[-1], len(self.scales))
        middle = means.mean(0)[..., None]
        stretched: Array = middle + np.reshape(self.scales, (-1, 1)) * (
            mixture_quantiles(means, variances, levels) - middle
        )
        return stretched

    def stretch(self, answer: Regression) -> Regression:
        """Return an answer, whose quantiles are calibrated already, with its variances calibrated too."""
        check_count("targets", answer.mean.shape[-1], len(self.scales))
        factor = np.asarray(self.variance_factor)
        return replace(
            answer,
            total_variance=None if answer.total_variance is None else answer.total_variance * factor,
            epistemic_variance=None if answer.epistemic_variance is None else answer.epistemic_variance * factor,
            aleatoric_variance=None if answer.aleatoric_variance is None else answer.aleatoric_variance * factor,
        )


@dataclass(frozen=True, slots=True)
class PitMap:
    """Calibrated levels of the mixture's distribution function, per target (Kuleshov et al. 2018).

    R(F(y)) in place of F(y), with R linear between `levels` at `pits`, both from 0 to 1 and rising strictly, so that
    the quantile at a level p is the mixture's at R^-1(p). Of draws without noise, no quantile lies beyond them all. One
    list of each per target.
    """

    pits: tuple[Numbers, ...]
    levels: tuple[Numbers, ...]
    kind: Literal["pit_isotonic"] = "pit_isotonic"
    per_draw: ClassVar[Literal[False]] = False

    def __post_init__(self) -> None:
        _check_targets("pits", len(self.pits))
        check_count("levels", len(self.levels), len(self.pits))
        for pits, levels in zip(self.pits, self.levels, strict=True):
            check_count("levels", len(levels), len(pits))
            for name, values in (("pits", pits), ("levels", levels)):
                check_finite(name, values)
                check_rising(name, values, strictly=True)
                if (values[0], values[-1]) != (0.0, 1.0):
                    raise InvalidArgument(name, f"{values[0]:g}..{values[-1]:g}", "0..1")

    def quantiles(self, means: Array, variances: Array | None, levels: Sequence[float]) -> Array:
        """Return calibrated quantiles (N, K, Q) of draws (S, N, K)."""
        check_count("targets", means.shape[-1], len(self.pits))
        found = [
            mixture_quantiles(
                means[..., target],
                None if variances is None else variances[..., target],
                np.interp(levels, self.levels[target], self.pits[target]).tolist(),
            )
            for target in range(len(self.pits))
        ]
        return np.stack(found, axis=-2)

    def stretch(self, answer: Regression) -> Regression:
        """Return the answer: this map knows quantiles alone, variances stay the draws'."""
        return answer


@dataclass(frozen=True, slots=True)
class StandardizedResiduals:
    """Quantiles mean + deviation Q_z(p), Q_z those of the errors in deviations (CRUDE; Zelikman et al. 2020).

    Of n errors, Q_z(k / (n + 1)) is the k-th smallest, and linear between: below it lies a new error with exactly that
    probability, whatever the mixture's form. Beyond the extremes it stays. One list per target.
    """

    residuals: tuple[Numbers, ...]  # sorted
    kind: Literal["crude"] = "crude"
    per_draw: ClassVar[Literal[False]] = False

    def __post_init__(self) -> None:
        _check_targets("residuals", len(self.residuals))
        for residuals in self.residuals:
            check_finite("residuals", residuals)
            check_rising("residuals", residuals, strictly=False)

    def quantiles(self, means: Array, variances: Array | None, levels: Sequence[float]) -> Array:
        """Return calibrated quantiles (N, K, Q) of draws (S, N, K)."""
        check_count("targets", means.shape[-1], len(self.residuals))
        middle, deviation = mean_and_deviation(means, variances)
        standard = np.stack([np.quantile(each, levels, method="weibull") for each in self.residuals])  # (K, Q)
        found: Array = middle[..., None] + deviation[..., None] * standard
        return found

    def stretch(self, answer: Regression) -> Regression:
        """Return the answer: this map knows quantiles alone, variances stay the draws'."""
        return answer


TargetMap: TypeAlias = NoiseScale | DeviationScale | PitMap | StandardizedResiduals
TargetMapKind: TypeAlias = Literal["noise_scale", "variance_scale", "crps_scale", "pit_isotonic", "crude"]


# --- Fitting ---


def fit_target_map(kind: TargetMapKind, drawn: DrawnTargets, overlap: int = 1) -> TargetMap:
    """Fit a map of that kind to draws and targets; `overlap`: so many consecutive rows share targets."""
    match kind:
        case "noise_scale":
            return _fit_noise(drawn, overlap)
        case "variance_scale":
            scales = np.sqrt((standardized_errors(drawn) ** 2).mean(0))
            return DeviationScale(tuple(np.clip(scales, LOWEST, HIGHEST).tolist()), kind)
        case "crps_scale":
            return DeviationScale(tuple(best_crps_scale(each) for each in drawn.by_target()), kind)
        case "pit_isotonic":
            levels, pits = zip(*(_fit_pits(each) for each in place_targets(drawn).T), strict=True)
            return PitMap(pits, levels)
        case "crude":
            return StandardizedResiduals(tuple(_thinned(np.sort(each)) for each in standardized_errors(drawn).T))


def _fit_noise(drawn: DrawnTargets, overlap: int) -> NoiseScale:
    """As `fit_noise_scale` does."""
    means, variances, targets = drawn.means, drawn.variances, drawn.targets
    assert variances is not None
    count = targets.size if overlap == 1 else len(targets) / overlap
    return NoiseScale(
        most_probable(lambda factor: mixture_negative_log_likelihood(means, factor * variances, targets), count)
    )


def _fit_pits(pits: Array) -> tuple[Numbers, Numbers]:
    """Return levels and PITs of one target's PITs (N,), equal ones pooled: the k-th of n lies at level k / (n + 1)."""
    places, counts = np.unique(pits, return_counts=True)
    levels = (counts.cumsum() - (counts - 1) / 2) / (len(pits) + 1)
    kept = np.unique(np.linspace(0, len(places) - 1, MOST_KNOTS).round().astype(int))
    return (0.0, *levels[kept].tolist(), 1.0), (0.0, *places[kept].tolist(), 1.0)


def _thinned(ordered: Array) -> Numbers:
    """Return sorted numbers, or as many of their quantiles as are kept."""
    if len(ordered) <= MOST_KNOTS:
        return tuple(ordered.tolist())
    levels = np.arange(1, MOST_KNOTS + 1) / (MOST_KNOTS + 1)
    return tuple(np.quantile(ordered, levels, method="weibull").tolist())


# --- Choosing ---


def choose_target_map(
    means: Array,
    variances: Array | None,
    targets: Array,
    *,
    methods: Sequence[str] | None = None,
    overlap: int = 1,
    seed: int = 0,
) -> ChosenMap[TargetMap]:
    """Fit maps to draws and choose one of them, or none, by what 5-fold cross-validation says they are worth.

    `means` (S, N, K) of every draw, its noise `variances` (S, N, K) or None, `targets` (N, K). Without `methods`, all
    that have a density: "noise_scale" where there is noise, "variance_scale", "crps_scale"; the likelihood decides.
    With "pit_isotonic" or "crude", the continuous ranked probability score of all decides, in the targets' deviations.
    Either way the best is taken where it gains more than half a standard error (see `choose_class_map`).
    `overlap` and `seed`: see `fit_value`; where fewer than 10 rows remain of those that overlap, none is chosen.
    Raises `InvalidArgument` for fewer than 10 rows, shapes that do not fit, numbers that are not finite, and draws
    without any spread.
    """
    drawn = draw_targets(means, variances, targets)
    check_rows(len(targets))
    kinds = _kinds(methods, noise=variances is not None)
    without_density = any(kind in WITHOUT_DENSITY for kind in kinds)
    unit = np.where(np.ptp(targets, axis=0) > 0, targets.std(0), 1.0)

    def fit(rows: Rows) -> list[TargetMap]:
        there = drawn.take(rows)
        return [fit_target_map(kind, there, overlap) for kind in kinds]

    def losses(found: TargetMap | None, rows: Rows) -> Array:
        """Return likelihood and score, (n, 2); NaN for the one that a map has not, or that is not wanted."""
        there = drawn.take(rows)
        likelihood = _log_losses(found, there).mean(1)
        score = (_scores(found, there) / unit).mean(1) if without_density else np.full(len(rows), np.nan)
        return np.stack([likelihood, score], axis=-1)

    before = losses(None, np.arange(len(targets)))
    if len(targets) // overlap < LEAST:
        return ChosenMap(None, float(before[:, 0].mean()), float(before[:, 0].mean()), ())
    held = cross_validate(len(targets), fit, losses, overlap=overlap, seed=seed)  # (maps, N, 2)
    best = best_of(before[:, int(without_density)], held[..., int(without_density)], overlap)
    likelihoods, scores = np.concatenate([before[None], held]).mean(1).T.tolist()
    after = likelihoods[0 if best is None else best + 1]
    return ChosenMap(
        map=None if best is None else fit_target_map(kinds[best], drawn, overlap),
        nll_before=likelihoods[0],
        nll_after=None if math.isnan(after) else after,
        tried=tuple((kind, nll) for kind, nll in zip(kinds, likelihoods[1:], strict=True) if not math.isnan(nll)),
        crps=tuple(zip(("identity", *kinds), scores, strict=True)) if without_density else (),
    )


def _kinds(methods: Sequence[str] | None, *, noise: bool) -> tuple[TargetMapKind, ...]:
    possible: tuple[TargetMapKind, ...] = tuple(
        kind for kind in get_args(TargetMapKind) if noise or kind != "noise_scale"
    )
    if methods is None:
        return tuple(kind for kind in possible if kind not in WITHOUT_DENSITY)
    check_methods(methods, possible)
    return tuple(kind for kind in possible if kind in methods)


def _log_losses(found: TargetMap | None, drawn: DrawnTargets) -> Array:
    """Return minus the log density of the targets under a map, (N, K) nats; NaN for a map that has none."""
    if isinstance(found, NoiseScale):
        assert drawn.variances is not None
        return log_losses(replace(drawn, variances=found.factor * drawn.variances))
    if isinstance(found, DeviationScale):
        return log_losses(drawn.stretched(np.asarray(found.scales)))
    return log_losses(drawn) if found is None else np.full_like(drawn.targets, np.nan)


def _scores(found: TargetMap | None, drawn: DrawnTargets) -> Array:
    """Return the continuous ranked probability scores of the targets under a map, (N, K)."""
    quantiles = mixture_quantiles if found is None else found.quantiles
    rows = np.arange(len(drawn.targets))
    some = max(1, _BLOCK // (drawn.means[:, 0].size * len(LEVELS)))
    parts = [drawn.take(rows[start : start + some]) for start in range(0, len(rows), some)]
    return np.concatenate(
        [quantile_losses(quantiles(part.means, part.variances, LEVELS), part.targets) for part in parts]
    )
