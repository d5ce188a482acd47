"""Calibration: fitted through the serving engine's own draws, stored beside an immutable version."""

from dubito_models.calibration.calibration import Calibration, Grouping, Reached
from dubito_models.calibration.class_maps import ClassMap
from dubito_models.calibration.conformal import Conformal
from dubito_models.calibration.noise import fit_noise_scale, fit_noise_variance
from dubito_models.calibration.selective import Selective
from dubito_models.calibration.target_maps import TargetMap
from dubito_models.calibration.temperature import fit_temperature, negative_log_likelihood

__all__ = [
    "Calibration",
    "ClassMap",
    "Conformal",
    "Grouping",
    "Reached",
    "Selective",
    "TargetMap",
    "fit_noise_scale",
    "fit_noise_variance",
    "fit_temperature",
    "negative_log_likelihood",
]
