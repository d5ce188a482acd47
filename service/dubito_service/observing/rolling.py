"""Rolling scores: what the newest labels say of a version, each with a band of 95 %.

Bands of means and of the calibration error are percentiles of a bootstrap over rows (Efron 1979) with fixed resamples,
so that the same rows give the same band. Those of shares are Wilson's (1927). All take rows for independent.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dubito_models.calibration.adaptive import AdaptiveState
from dubito_service.observing.drift import Drift
from dubito_service.observing.observations import Newest, StreamKey

Array = NDArray[np.float64]

BINS = 15  # of the calibration error
RESAMPLES = 500
_TAIL = 2.5  # per cent on either side
_NORMAL = 1.959963984540054  # the normal quantile of .975


@dataclass(frozen=True, slots=True)
class Banded:
    """A number and its band."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Rolling:
    """The newest rows of a version under one calibration; None where they do not tell.

    `coverage` is of the `covered_rows` that were answered at a coverage and in no stream, `served_coverage` the mean of
    theirs. Where there are several targets, it is the mean over them. `drift` by what is tested; `streams` by key.
    """

    calibration_id: str
    rows: int
    first_seconds: float  # since 1970
    last_seconds: float
    negative_log_likelihood: Banded | None
    accuracy: Banded | None
    brier_score: Banded | None
    expected_calibration_error: Banded | None
    root_mean_squared_error: Banded | None
    coverage: Banded | None
    served_coverage: float | None
    covered_rows: int
    drift: Mapping[str, Drift]
    streams: Mapping[StreamKey, AdaptiveState]


def wilson(share: float, count: int) -> Banded:
    """Return a share of so many trials with the score interval of Wilson (1927)."""
    z2 = _NORMAL**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    reach = _NORMAL / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return Banded(share, max(0.0, middle - reach), min(1.0, middle + reach))


@functools.lru_cache(maxsize=2)
def _resamples(rows: int) -> Array:
    """Return how often each row is in each resample, (RESAMPLES, rows)."""
    drawn = np.random.default_rng(0).multinomial(rows, np.full(rows, 1.0 / rows), RESAMPLES)
    return drawn.astype(np.float64)


def _banded(columns: Array, end: Callable[[Array], Array]) -> Banded:
    """Return a number that is made of sums over rows, `columns` (N, C), by `end`: (R, C) means to (R,) numbers."""
    count = len(columns)
    value = float(end(columns.mean(0)[None])[0])
    low, high = np.percentile(end(_resamples(count) @ columns / count), (_TAIL, 100.0 - _TAIL))
    return Banded(value, float(low), float(high))


def _mean(values: Array) -> Banded | None:
    known = values[~np.isnan(values)]
    return _banded(known[:, None], lambda means: means[:, 0]) if len(known) else None


def _root_mean(values: Array) -> Banded | None:
    known = values[~np.isnan(values)]
    return _banded(known[:, None], lambda means: np.sqrt(means[:, 0])) if len(known) else None


def _calibration_error(confidence: Array, correct: Array) -> Banded | None:
    """Return the expected calibration error over bins (l, u] of equal width (Naeini et al. 2015, Guo et al. 2017).

    It is not 0 at finitely many rows, however well the version is calibrated, and its resamples lie higher still.
    """
    known = ~(np.isnan(confidence) | np.isnan(correct))
    if not known.any():
        return None
    bins = np.clip(np.searchsorted(np.arange(BINS + 1) / BINS, confidence[known]) - 1, 0, BINS - 1)
    gaps = np.eye(BINS)[bins] * (correct[known] - confidence[known])[:, None]
    return _banded(gaps, lambda means: np.abs(means).sum(-1))


def roll(
    newest: Newest,
    drifts: Mapping[tuple[str, str], Drift],
    streams: Mapping[StreamKey, AdaptiveState],
    current: str,
) -> tuple[Rolling, ...]:
    """Return what the newest rows say, by calibration: that in `current` use first, then by how new their rows are.

    `drifts` and `streams`: those of the version, of any calibration.
    """
    names = dict.fromkeys([name for name in newest.calibration if name == current] + list(newest.calibration))
    calibrations, unstreamed = np.array(newest.calibration), np.array([not name for name in newest.stream])
    found = []
    for name in names:
        here = calibrations == name
        of = {measure: values[here] for measure, values in newest.measures.items()}
        plain = unstreamed[here] & ~np.isnan(of["covered"])
        covered, seconds = of["covered"][plain], newest.seconds[here]
        found.append(
            Rolling(
                calibration_id=name,
                rows=int(here.sum()),
                first_seconds=float(seconds.min()),
                last_seconds=float(seconds.max()),
                negative_log_likelihood=_mean(of["negative_log_likelihood"]),
                accuracy=_share(of["correct"]),
                brier_score=_mean(of["brier_score"]),
                expected_calibration_error=_calibration_error(of["confidence"], of["correct"]),
                root_mean_squared_error=_root_mean(of["squared_error"]),
                coverage=_share(covered),
                served_coverage=float(of["served_coverage"][plain].mean()) if len(covered) else None,
                covered_rows=len(covered),
                drift={kind: drift for (calibration, kind), drift in drifts.items() if calibration == name},
                streams={key: state for key, state in streams.items() if key.calibration == name},
            )
        )
    return tuple(found)


def _share(values: Array) -> Banded | None:
    known = values[~np.isnan(values)]
    return wilson(float(known.mean()), len(known)) if len(known) else None
