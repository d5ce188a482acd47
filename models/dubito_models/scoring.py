"""A version judged on rows whose targets are known: its standard path, its Monte Carlo path, and its calibration."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

from dubito_models.data import Split
from dubito_models.heads import Decoded, Task
from dubito_models.metrics import (
    ClassificationScores,
    RegressionScores,
    classification_scores,
    gaussian_negative_log_likelihood,
    interval_coverage,
    interval_width,
    mixture_negative_log_likelihood,
    root_mean_squared_error,
)
from dubito_models.package import ModelVersion
from dubito_models.predictive import Classification, Regression
from dubito_models.sampling import SamplingSpec

Array = NDArray[np.float64]
Scores = ClassificationScores | RegressionScores

STANDARD, DRAWN, CALIBRATED = "standard", "Monte Carlo", "Monte Carlo, calibrated"


def score_paths(version: ModelVersion, split: Split, interval_level: float = 0.9) -> dict[str, Scores]:
    """Return the scores of the standard path, the Monte Carlo path and, where there is one, its calibration.

    Both Monte Carlo rows are of the same draws: the version's default seed and number.
    """
    if version.manifest.task is Task.CLASSIFICATION:
        return _score_classification(version, split)
    return _score_regression(version, split, interval_level)


def _score_classification(version: ModelVersion, split: Split) -> dict[str, Scores]:
    predictive = version.predict(split.inputs, SamplingSpec(uncalibrated=True))
    drawn = predictive.uncalibrated or predictive.answer
    standard = version.evaluate(split.inputs).probabilities
    assert isinstance(drawn, Classification)
    assert standard is not None
    scores: dict[str, Scores] = {
        STANDARD: classification_scores(standard, split.targets),
        DRAWN: classification_scores(drawn.probabilities, split.targets),
    }
    if version.calibration is not None and isinstance(predictive.answer, Classification):
        scores[CALIBRATED] = classification_scores(predictive.answer.probabilities, split.targets)
    return scores


def _score_regression(version: ModelVersion, split: Split, level: float) -> dict[str, Scores]:
    predictive = version.predict(split.inputs, SamplingSpec(uncalibrated=True, interval_level=level))
    decoded = version.engine.draws(version.read_inputs(split.inputs))
    standard = version.evaluate(split.inputs)
    assert standard.mean is not None
    drawn = predictive.uncalibrated or predictive.answer
    assert isinstance(drawn, Regression)
    targets = split.targets.astype(np.float64)
    scores: dict[str, Scores] = {
        STANDARD: _score_gaussian(standard.mean, standard.aleatoric_variance, targets, level),
        DRAWN: _score_mixture(drawn, decoded, targets, level),
    }
    if version.calibration is not None and isinstance(predictive.answer, Regression):
        scores[CALIBRATED] = _score_mixture(predictive.answer, version.calibration.apply(decoded), targets, level)
    return scores


def _score_gaussian(mean: Array, variance: Array | None, targets: Array, level: float) -> RegressionScores:
    if variance is None:
        return RegressionScores(root_mean_squared_error(mean, targets), None, level, None, None)
    reach = special.ndtri((1 + level) / 2) * np.sqrt(variance)
    intervals = np.stack([mean - reach, mean + reach], -1)
    return RegressionScores(
        root_mean_squared_error(mean, targets),
        gaussian_negative_log_likelihood(mean, variance, targets),
        level,
        interval_coverage(intervals, targets),
        interval_width(intervals),
    )


def _score_mixture(answer: Regression, decoded: Decoded, targets: Array, level: float) -> RegressionScores:
    known = decoded.mean is not None and decoded.variance is not None
    return RegressionScores(
        root_mean_squared_error(answer.mean, targets),
        mixture_negative_log_likelihood(decoded.mean, decoded.variance, targets) if known else None,  # type: ignore[arg-type]
        level,
        None if answer.interval is None else interval_coverage(answer.interval, targets),
        None if answer.interval is None else interval_width(answer.interval),
    )
