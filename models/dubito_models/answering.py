"""What the paths of a version say of rows whose truth is known, row by row: the ground of every score and chart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import special

from dubito_models.calibration.target_maps import DeviationScale, PitMap, StandardizedResiduals
from dubito_models.heads import Decoded, Task
from dubito_models.metrics import (
    ensemble_crps,
    gaussian_crps,
    mean_absolute_error,
    mixture_crps,
)
from dubito_models.mixtures import mixture_cdf, mixture_log_density
from dubito_models.package import ModelVersion
from dubito_models.predictive import Classification, Predictive, Regression, entropy
from dubito_models.rows import Labelled
from dubito_models.sampling import SamplingSpec
from dubito_models.standard import Evaluation

STANDARD, DRAWN, CALIBRATED = "standard", "Monte Carlo", "Monte Carlo, calibrated"  # the paths
LEVELS = (0.5, 0.8, 0.9, 0.95)  # of central intervals
PROMISED = 0.9  # coverage that is asked of a calibration
ROWS = 256  # that are asked about at a time
STAND_INS = 199  # quantiles that stand for a distribution without a density

Array = NDArray[np.float64]
Advance = Callable[[int], None]  # is told of how many rows more are done


@dataclass(frozen=True, slots=True)
class ClassAnswers:
    """What a path says of N rows of K classes; uncertainties in nats, None where it knows none."""

    probabilities: Array  # (N, K)
    predictive_entropy: Array  # (N,)
    expected_entropy: Array | None = None  # (N,): the aleatoric part
    mutual_information: Array | None = None  # (N,): the epistemic part
    promised: NDArray[np.bool_] | None = None  # (N, K): the prediction sets

    @property
    def doubt(self) -> Array:
        """By what rows are ordered, (N,): predictive entropy; 1 - max p where there are no draws."""
        return 1.0 - self.probabilities.max(-1) if self.mutual_information is None else self.predictive_entropy

    @property
    def epistemic(self) -> Array | None:
        """The epistemic part, (N,)."""
        return self.mutual_information


@dataclass(frozen=True, slots=True)
class TargetAnswers:
    """What a path says of N rows of K numbers, and how far it is off; None where it does not know its noise."""

    mean: Array  # (N, K)
    total_variance: Array | None = None  # (N, K)
    epistemic_variance: Array | None = None  # (N, K)
    aleatoric_variance: Array | None = None  # (N, K)
    intervals: Array | None = None  # (N, K, 2, L): central, at LEVELS
    negative_log_likelihood: Array | None = None  # (N,) nats: mean over targets
    crps: Array | None = None  # (N,): mean over targets
    pit: Array | None = None  # (N, K): the distribution function at the truth
    promised: Array | None = None  # (N, K, 2): the prediction intervals

    @property
    def doubt(self) -> Array:
        """By what rows are ordered, (N,): the root of the mean total variance; 0 where none is known."""
        return np.zeros(len(self.mean)) if self.total_variance is None else np.sqrt(self.total_variance.mean(-1))

    @property
    def epistemic(self) -> Array | None:
        """The epistemic part of it, (N,)."""
        return None if self.epistemic_variance is None else np.sqrt(self.epistemic_variance.mean(-1))


Answers = ClassAnswers | TargetAnswers
One = TypeVar("One", ClassAnswers, TargetAnswers)


def ask(
    version: ModelVersion, labelled: Labelled, advance: Advance | None = None, *, crps: bool = True
) -> dict[str, Answers]:
    """Return the answers of the standard path, the Monte Carlo path and, where it changes anything, its calibration.

    All Monte Carlo answers are of the same draws: those that are served by default. `crps`: whether that score, which
    takes the longest, is wanted.
    """
    parts: dict[str, list[Any]] = {}
    for inputs, targets in _blocks(labelled):
        for path, answers in _ask_block(version, inputs, targets, crps).items():
            parts.setdefault(path, []).append(answers)
        if advance is not None:
            advance(len(targets))
    return {path: _join(some) for path, some in parts.items()}


def _blocks(labelled: Labelled) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[Any]]]:
    for start in range(0, len(labelled), ROWS):
        here = slice(start, start + ROWS)
        yield {name: array[here] for name, array in labelled.inputs.items()}, labelled.targets[here]


def _join(parts: list[One]) -> One:
    changes: dict[str, Any] = {}
    for field in fields(parts[0]):
        values = [getattr(part, field.name) for part in parts]
        changes[field.name] = None if values[0] is None else np.concatenate(values)
    return type(parts[0])(**changes)


def _ask_block(
    version: ModelVersion, inputs: Mapping[str, NDArray[Any]], targets: NDArray[Any], crps: bool
) -> dict[str, Answers]:
    standard, calibration = version.evaluate(inputs), version.calibration
    served = None if calibration is None else calibration.map
    levels = [level for reach in LEVELS for level in ((1 - reach) / 2, (1 + reach) / 2)]
    if isinstance(served, PitMap | StandardizedResiduals):
        levels += [(place + 0.5) / STAND_INS for place in range(STAND_INS)]
    predictive = version.predict(inputs, SamplingSpec(uncalibrated=True, quantiles=tuple(levels), coverage=PROMISED))
    if version.manifest.task is Task.CLASSIFICATION:
        return _of_classes(standard, predictive, served is not None)
    drawn, answer = predictive.uncalibrated or predictive.answer, predictive.answer
    assert isinstance(drawn, Regression)
    assert isinstance(answer, Regression)
    decoded = version.engine.draws(version.read_inputs(inputs))
    plain = _of_draws(drawn, _mixture(decoded), targets, crps)
    answers: dict[str, Answers] = {STANDARD: _of_point(standard, targets, crps), DRAWN: plain}
    if calibration is None or served is None:
        return {**answers, DRAWN: replace(plain, promised=answer.prediction_interval)}
    mixture, dense = _mixture(decoded), True
    if isinstance(served, PitMap | StandardizedResiduals):
        assert answer.quantiles is not None
        mixture, dense = (np.moveaxis(answer.quantiles[..., 2 * len(LEVELS) :], -1, 0), None), False
    elif isinstance(served, DeviationScale):
        mixture = _stretch(*mixture, np.array(served.scales))
    else:
        mixture = _mixture(calibration.apply(decoded))
    found = _of_draws(answer, mixture, targets, crps, dense=dense)
    return {**answers, CALIBRATED: replace(found, promised=answer.prediction_interval)}


def _of_classes(standard: Evaluation, predictive: Predictive, served: bool) -> dict[str, Answers]:
    assert standard.probabilities is not None
    drawn, answer = predictive.uncalibrated or predictive.answer, predictive.answer
    assert isinstance(answer, Classification)
    answers = {STANDARD: ClassAnswers(standard.probabilities, entropy(standard.probabilities))}
    for path, found in [(DRAWN, drawn), *([(CALIBRATED, answer)] if served else [])]:
        assert isinstance(found, Classification)
        answers[path] = ClassAnswers(
            found.probabilities, found.predictive_entropy, found.expected_entropy, found.mutual_information
        )
    last = CALIBRATED if served else DRAWN
    return {**answers, last: replace(answers[last], promised=answer.prediction_set)}


def _of_point(standard: Evaluation, targets: Array, crps: bool) -> TargetAnswers:
    """Return what one Gaussian, or without noise one number, says of each row."""
    assert standard.mean is not None
    mean, variance, rows = standard.mean, standard.aleatoric_variance, len(standard.mean)
    if variance is None:  # the score of a point is its absolute error
        scores = row_by_row(lambda i: mean_absolute_error(mean[i], targets[i]), rows) if crps else None
        return TargetAnswers(mean, crps=scores)
    deviation = np.sqrt(variance)[..., None]
    reach = special.ndtri((1 + np.array(LEVELS)) / 2) * deviation  # (N, K, L)
    return TargetAnswers(
        mean,
        total_variance=variance,
        aleatoric_variance=variance,
        intervals=np.stack([mean[..., None] - reach, mean[..., None] + reach], 2),
        negative_log_likelihood=-mixture_log_density(mean[None], variance[None], targets).mean(-1),
        crps=row_by_row(lambda i: gaussian_crps(mean[i], variance[i], targets[i]), rows) if crps else None,
        pit=mixture_cdf(mean[None], variance[None], targets),
    )


Mixture = tuple[Array, Array | None]  # means and variances (S, N, K); without the latter, the draws alone


def _mixture(decoded: Decoded) -> Mixture:
    assert decoded.mean is not None
    return decoded.mean.numpy(), None if decoded.variance is None else decoded.variance.numpy()


def _stretch(means: Array, variances: Array | None, scales: Array) -> Mixture:
    """Stretch a mixture about its mean by factors (K,) on all deviations."""
    middle = means.mean(0)
    return middle + scales * (means - middle), None if variances is None else scales**2 * variances


def _of_draws(answer: Regression, mixture: Mixture, targets: Array, crps: bool, *, dense: bool = True) -> TargetAnswers:
    """Return what an answer and its mixture say of each row; `dense`: the mixture has a density where it has noise."""
    means, variances = mixture
    log_loss = None
    if variances is not None and dense:
        log_loss = -mixture_log_density(means, variances, targets).mean(-1)
    quantiles = None if answer.quantiles is None else answer.quantiles[..., : 2 * len(LEVELS)]
    return TargetAnswers(
        answer.mean,
        total_variance=answer.total_variance,
        epistemic_variance=answer.epistemic_variance,
        aleatoric_variance=answer.aleatoric_variance,
        intervals=None if quantiles is None else np.stack([quantiles[..., 0::2], quantiles[..., 1::2]], 2),
        negative_log_likelihood=log_loss,
        crps=_crps_by_row(means, variances, targets) if crps else None,
        pit=mixture_cdf(means, variances, targets),
    )


def _crps_by_row(means: Array, variances: Array | None, targets: Array) -> Array:
    if variances is None:
        return row_by_row(lambda i: ensemble_crps(means[:, i], targets[i]), len(targets))
    return row_by_row(lambda i: mixture_crps(means[:, i], variances[:, i], targets[i]), len(targets))


def row_by_row(score: Callable[[slice], float], rows: int) -> Array:
    """Return a score of every row alone, (N,): where it is a mean over rows, what their resampled means are made of."""
    return np.array([score(slice(row, row + 1)) for row in range(rows)])
