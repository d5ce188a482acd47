"""Data for the training scripts, each in four splits that share no row."""

from __future__ import annotations

from dubito_models.data.digits import digits
from dubito_models.data.regression import diabetes, uci
from dubito_models.data.series import co2, split_series
from dubito_models.data.shifts import Images, blur, pure_noise, rotate
from dubito_models.data.splits import SHARES, Split, Splits, check_features, check_targets, share_out, take

__all__ = [
    "SHARES",
    "Images",
    "Split",
    "Splits",
    "blur",
    "check_features",
    "check_targets",
    "co2",
    "diabetes",
    "digits",
    "pure_noise",
    "rotate",
    "share_out",
    "split_series",
    "take",
    "uci",
]
