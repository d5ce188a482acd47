"""Calibration: fitted through the serving engine's own draws, stored beside an immutable version, applied per draw."""

from dubito_models.calibration.calibration import Calibration
from dubito_models.calibration.temperature import TemperatureFit, fit_temperature, negative_log_likelihood

__all__ = ["Calibration", "TemperatureFit", "fit_temperature", "negative_log_likelihood"]
