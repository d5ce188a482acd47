"""Selective prediction: abstaining above an uncertainty, so that few of the answers given are wrong.

Selection with guaranteed risk (Geifman & El-Yaniv 2017). A binary search over the calibration rows, from the least
uncertain up, asks at each step whether the exact upper confidence bound of the error rate among those accepted
(Clopper & Pearson 1934) is at most the risk; the steps share the probability of being wrong.

The promise is exact for independent rows of one distribution, where an error does not become less likely as the
uncertainty grows. Then, given how many calibration rows lie below the true threshold, the steps above it are fixed
until the first that accepts too much; each does so with at most its share of delta, ties or not. Where errors become
less likely somewhere, the search might take more steps than those that share delta, and no proof is known to us.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from dubito_models.errors import InvalidArgument

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Selective:
    """A threshold of an uncertainty: with probability 1 - delta, at most `risk` of the rows up to it are wrong.

    `threshold` is the largest uncertainty accepted, in the unit of `quantity`, or -infinity where nothing can be
    promised. `accepted` and `bound` are of the calibration rows: the share accepted, and the upper bound of their error
    rate that passed (1 where none are).
    """

    quantity: str
    threshold: float
    risk: float
    delta: float
    accepted: float
    bound: float

    def __post_init__(self) -> None:
        if math.isnan(self.threshold) or self.threshold == math.inf:
            raise InvalidArgument("threshold", self.threshold, "a finite number or -infinity")
        for name in ("risk", "delta"):
            _check_share(name, getattr(self, name))
        for name in ("accepted", "bound"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InvalidArgument(name, getattr(self, name), "between 0 and 1")

    def abstains(self, uncertainty: ArrayLike) -> NDArray[np.bool_]:
        """Return whether to abstain, (B,) of uncertainties (B,): above the threshold, and where it is NaN."""
        accepted: NDArray[np.bool_] = np.asarray(uncertainty, dtype=np.float64) <= self.threshold
        return ~(accepted & math.isfinite(self.threshold))


def _check_share(field: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise InvalidArgument(field, value, "between 0 and 1, both excluded")


def upper_bound(errors: int, rows: int, delta: float) -> float:
    """Return the highest error rate at which so few errors among so many rows have a probability of `delta`.

    The exact binomial bound (Clopper & Pearson 1934): the true rate lies above it with probability at most `delta`.
    """
    return float(special.betaincinv(errors + 1, rows - errors, 1.0 - delta)) if errors < rows else 1.0


def fit_selective(
    losses: ArrayLike, uncertainty: ArrayLike, *, quantity: str, risk: float, delta: float = 0.05
) -> Selective:
    """Find the threshold of most accepted rows whose error rate is at most `risk` with probability 1 - `delta`.

    `losses` (N,): 1 where a row is answered wrong, else 0; `uncertainty` (N,), in the unit of `quantity`. Rows of the
    same uncertainty are accepted together.
    """
    _check_share("risk", risk)
    _check_share("delta", delta)
    wrong, doubt = _check_rows(losses, uncertainty)
    order = np.argsort(doubt, kind="stable")
    doubt, errors = doubt[order], np.concatenate([[0], np.cumsum(wrong[order])]).astype(np.int64)
    share = delta / len(doubt).bit_length()  # of each step: ceil(log2(N + 1)), as 0 to N rows may come out
    passed, failed = 0, len(doubt) + 1
    threshold, accepted, bound = -math.inf, 0, 1.0
    while failed - passed > 1:
        middle = (passed + failed) // 2
        rows = int(np.searchsorted(doubt, doubt[middle - 1], side="right"))
        limit = upper_bound(int(errors[rows]), rows, share)
        if limit <= risk:
            passed, threshold, accepted, bound = middle, float(doubt[middle - 1]), rows, limit
        else:
            failed = middle
    return Selective(quantity, threshold, risk, delta, accepted / len(doubt), bound)


def _check_rows(losses: ArrayLike, uncertainty: ArrayLike) -> tuple[Array, Array]:
    wrong, doubt = np.asarray(losses, dtype=np.float64), np.asarray(uncertainty, dtype=np.float64)
    if wrong.ndim != 1 or not len(wrong):
        raise InvalidArgument("losses", f"shape {wrong.shape}", "shape (N,), at least one row")
    if not np.isin(wrong, (0.0, 1.0)).all():
        raise InvalidArgument("losses", "other numbers", "0 where a row is right and 1 where it is wrong")
    if doubt.shape != wrong.shape:
        raise InvalidArgument("uncertainty", f"shape {doubt.shape}", f"shape {wrong.shape}, as the losses have it")
    if not np.isfinite(doubt).all():
        raise InvalidArgument("uncertainty", "NaN or infinity", "finite numbers")
    return wrong, doubt
