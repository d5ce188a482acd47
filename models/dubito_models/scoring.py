"""A version judged on rows whose targets are known, in one line a path: standard, Monte Carlo, and calibrated."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from dubito_models.answering import CALIBRATED, DRAWN, LEVELS, Answers, ClassAnswers, ask
from dubito_models.data import Split
from dubito_models.metrics import (
    ClassificationScores,
    RegressionScores,
    classification_scores,
    interval_coverage,
    interval_width,
    root_mean_squared_error,
)
from dubito_models.package import ModelVersion
from dubito_models.rows import Labelled

Scores = ClassificationScores | RegressionScores

LEVEL = 0.9


def score_paths(version: ModelVersion, split: Split) -> dict[str, Scores]:
    """Return the scores of the standard path, the Monte Carlo path and, where there is one, its calibration.

    Monte Carlo scores are of the same draws: those that are served by default. Intervals are at 90 %.
    """
    [entry] = version.manifest.inputs
    answers = ask(version, Labelled({entry.name: split.inputs}, split.targets), crps=False)
    if version.calibration is not None:
        answers.setdefault(CALIBRATED, answers[DRAWN])  # one that changes nothing
    return {path: _score(found, split.targets) for path, found in answers.items()}


def _score(answers: Answers, targets: NDArray[Any]) -> Scores:
    if isinstance(answers, ClassAnswers):
        return classification_scores(answers.probabilities, targets)
    intervals = None if answers.intervals is None else answers.intervals[..., LEVELS.index(LEVEL)]
    losses = answers.negative_log_likelihood
    return RegressionScores(
        root_mean_squared_error(answers.mean, targets),
        None if losses is None else float(losses.mean()),
        LEVEL,
        None if intervals is None else interval_coverage(intervals, targets),
        None if intervals is None else interval_width(intervals),
    )
