"""Metrics: plain functions over numpy arrays, computed in float64.

Lower is better, but for accuracy, resolution, the area under the ROC, and coverage, which should be its level. Every
function raises `InvalidArgument` for no rows, shapes that do not fit, and values that are no probabilities, labels,
variances or finite numbers.
"""

from __future__ import annotations

from dubito_models.metrics.bootstrap import Interval, PairedDifference, bootstrap_interval, paired_difference
from dubito_models.metrics.calibration_error import (
    ReliabilityBins,
    adaptive_expected_calibration_error,
    classwise_expected_calibration_error,
    debiased_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    reliability_bins,
    root_mean_squared_calibration_error,
    smooth_calibration_error,
    unweighted_calibration_error,
)
from dubito_models.metrics.checks import SUM_TOLERANCE
from dubito_models.metrics.classification import (
    BrierDecomposition,
    ClassificationScores,
    accuracy,
    brier_decomposition,
    brier_score,
    classification_scores,
    negative_log_likelihood,
)
from dubito_models.metrics.regression import (
    RegressionScores,
    ensemble_crps,
    gaussian_crps,
    gaussian_negative_log_likelihood,
    interval_coverage,
    interval_miscalibration_area,
    interval_score,
    interval_width,
    mean_absolute_error,
    mixture_crps,
    mixture_negative_log_likelihood,
    root_mean_squared_error,
    sharpness,
)
from dubito_models.metrics.selective import (
    RiskCoverage,
    area_under_generalized_risk_coverage_curve,
    area_under_risk_coverage_curve,
    area_under_roc,
    excess_area_under_risk_coverage_curve,
    false_positive_rate_at,
    risk_coverage_curve,
)

__all__ = [
    "SUM_TOLERANCE",
    "BrierDecomposition",
    "ClassificationScores",
    "Interval",
    "PairedDifference",
    "RegressionScores",
    "ReliabilityBins",
    "RiskCoverage",
    "accuracy",
    "adaptive_expected_calibration_error",
    "area_under_generalized_risk_coverage_curve",
    "area_under_risk_coverage_curve",
    "area_under_roc",
    "bootstrap_interval",
    "brier_decomposition",
    "brier_score",
    "classification_scores",
    "classwise_expected_calibration_error",
    "debiased_calibration_error",
    "ensemble_crps",
    "excess_area_under_risk_coverage_curve",
    "expected_calibration_error",
    "false_positive_rate_at",
    "gaussian_crps",
    "gaussian_negative_log_likelihood",
    "interval_coverage",
    "interval_miscalibration_area",
    "interval_score",
    "interval_width",
    "maximum_calibration_error",
    "mean_absolute_error",
    "mixture_crps",
    "mixture_negative_log_likelihood",
    "negative_log_likelihood",
    "paired_difference",
    "reliability_bins",
    "risk_coverage_curve",
    "root_mean_squared_calibration_error",
    "root_mean_squared_error",
    "sharpness",
    "smooth_calibration_error",
    "unweighted_calibration_error",
]
