"""Forecasting: windows of a series, and what came after each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from statsmodels.datasets import co2 as mauna_loa

from dubito_models.data.splits import SHARES, Splits, take
from dubito_models.errors import InvalidArgument
from dubito_models.heads import Task


def co2(window: int = 36, horizon: int = 24) -> Splits:
    """Return the monthly means of CO2 above Mauna Loa, 1958 to 2001 in ppmv (Keeling & Whorf 2004), in windows.

    Inputs are (N, window, 1), the months up to an origin; targets (N, horizon), the months after it. Months without a
    measurement are interpolated. The splits follow one another in time, a horizon apart: what a network is judged by
    lies wholly after all that it was trained on.
    """
    weeks = mauna_loa.load_pandas().data["co2"]
    months = weeks.resample("MS").mean().interpolate()
    return split_series(months.to_numpy(np.float32), window, horizon)


def split_series(series: NDArray[np.float32], window: int, horizon: int) -> Splits:
    """Cut a series (T,) into windows and horizons, and these into splits that follow one another in time."""
    if min(window, horizon) < 1:
        raise InvalidArgument("window, horizon", f"{window}, {horizon}", "at least 1 step each")
    origins = len(series) - window - horizon + 1
    usable = origins - (len(SHARES) - 1) * horizon  # between two splits lies a gap, in which the horizons end
    if usable < 20 * len(SHARES):
        given = f"{len(series)} steps for a window of {window} and a horizon of {horizon}"
        raise InvalidArgument("series", given, f"at least {window + len(SHARES) * (horizon + 20) - 1} steps")
    every = np.lib.stride_tricks.sliding_window_view(series, window + horizon)  # (origins, window + horizon)
    inputs, targets = every[:, :window, None], every[:, window:]
    ends = np.rint(np.cumsum(list(SHARES.values())) * usable).astype(int)
    train, validation, calibration, test = (
        take(inputs, targets, np.arange(start, end) + number * horizon)
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
    )
    names = tuple(f"step {step}" for step in range(1, horizon + 1))
    return Splits(train, validation, calibration, test, task=Task.REGRESSION, target_names=names, overlap=horizon)
