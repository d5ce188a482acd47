"""Calibration: fitted through the serving engine's own draws, stored beside an immutable version, applied per draw."""

from dubito_models.calibration.calibration import Calibration
from dubito_models.calibration.fitting import Fit
from dubito_models.calibration.noise import fit_noise_scale, fit_noise_variance
from dubito_models.calibration.temperature import fit_temperature, negative_log_likelihood

__all__ = [
    "Calibration",
    "Fit",
    "fit_noise_scale",
    "fit_noise_variance",
    "fit_temperature",
    "negative_log_likelihood",
]
