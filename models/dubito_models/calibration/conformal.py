"""Split conformal prediction: sets of classes and intervals of targets that hold the truth as often as is asked.

Of n calibration rows and a new one, all exchangeable, the new row's nonconformity score is at most the
ceil((n + 1) c)-th smallest of the n with probability at least c, and where no two scores are equal at most
c + 1 / (n + 1) (Vovk et al. 2005; Lei et al. 2018). That is an average over calibration sets and new rows. It holds
in each class and each group by itself where scores of its own are used (Vovk 2012).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dubito_models.calibration.nonconformity import FLOOR, PENALTY, choose_regular_rank, class_scores, target_scores
from dubito_models.errors import InvalidArgument

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
ClassMethod = Literal["lac", "aps", "raps"]
TargetMethod = Literal["absolute", "normalized", "cqr"]
Condition = Literal["none", "class", "group"]

KEPT = 10_000  # scores of one group, at most

_TABLES = 64  # coverages whose thresholds are kept; a stream moves through many
_RANK_GUARD = 1e-9  # 100 * .55 is 55, though not in floats
_CHOOSING = 10  # one row in so many chooses the regular rank of RAPS
_SLACK = 4 * float(np.finfo(np.float64).eps)


# --- What is accepted ---


def _require(field: str, kept: bool, given: object, accepted: str) -> None:
    if not kept:
        raise InvalidArgument(field, given, accepted)


def _numbers(field: str, values: ArrayLike | None, shape: tuple[int | None, ...]) -> Array:
    """Return numbers of a shape, which has None where any size will do."""
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    accepted = f"numbers of shape ({sizes}{',' if len(shape) == 1 else ''})"
    _require(field, values is not None, "nothing", accepted)
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidArgument(field, type(values).__name__, accepted) from None
    fits = array.ndim == len(shape) and all(
        wanted in (None, size) for wanted, size in zip(shape, array.shape, strict=True)
    )
    _require(field, fits, f"shape {array.shape}", accepted)
    return array


def _finite(field: str, values: Array | None) -> None:
    if values is not None:
        _require(field, values.size > 0, f"shape {values.shape}", "at least one row")
        _require(field, bool(np.isfinite(values).all()), "NaN or infinity", "finite numbers")


def _whole_numbers(field: str, values: ArrayLike, rows: int) -> Integers:
    array = np.asarray(values)
    fits = array.shape == (rows,) and np.issubdtype(array.dtype, np.integer)
    _require(field, fits, f"{array.dtype} of shape {array.shape}", f"integers of shape ({rows},)")
    return array.astype(np.int64)


def _group_numbers(condition: str, groups: ArrayLike | None, rows: int) -> Integers | None:
    if condition == "group":
        _require("groups", groups is not None, "nothing", "a number for each row, of its group")
    else:
        _require("groups", groups is None, "numbers", f"nothing, for the condition {condition}")
    return None if groups is None else _whole_numbers("groups", groups, rows)


def _read_prediction(
    method: str, mean: ArrayLike, deviation: ArrayLike | None, base_interval: ArrayLike | None, outputs: int
) -> tuple[Array, Array | None, Array | None]:
    middle = _numbers("mean", mean, (None, outputs))
    return (
        middle,
        _numbers("deviation", deviation, middle.shape) if method == "normalized" else None,
        _numbers("base_interval", base_interval, (*middle.shape, 2)) if method == "cqr" else None,
    )


# --- The quantile ---


def conformal_quantile(sorted_scores: Sequence[float] | Array, coverage: float) -> float:
    """Return the ceil((n + 1) coverage)-th smallest of n scores, given ascending; infinity where n are too few.

    Never the largest score instead, which covers no more than n / (n + 1). Raises `InvalidArgument` for a coverage
    that is not between 0 and 1.
    """
    if not 0.0 < coverage < 1.0:
        raise InvalidArgument("coverage", coverage, "between 0 and 1, both excluded")
    rank = max(1, math.ceil((len(sorted_scores) + 1) * coverage - _RANK_GUARD))
    return float(sorted_scores[rank - 1]) if rank <= len(sorted_scores) else math.inf


def thin_scores(sorted_scores: Array, most: int = KEPT) -> Array:
    """Return at most so many of n ascending scores, (N,), with conformal quantiles no lower than those of all.

    Kept are those of rank ceil(i (n + 1) / (most + 1)), i from 1 to `most`. Of them the j-th, j >= (most + 1) c, has a
    rank of at least (n + 1) c among all. So coverage holds, and rises by less than 1 / (most + 1) + 1 / (n + 1).
    """
    rows = len(sorted_scores)
    if rows <= most:
        return sorted_scores
    ranks = -(-np.arange(1, most + 1) * (rows + 1) // (most + 1))
    return sorted_scores[ranks - 1]


# --- What is stored ---


@dataclass(frozen=True, slots=True)
class GroupScores:
    """Scores of the calibration rows of a class or group, ascending; `key` None: of all rows."""

    key: int | None
    scores: tuple[tuple[float, ...], ...]  # one column of a classification's labels, or one for each of K targets


def _check_groups(conformal: Conformal) -> None:
    first, *keys = [group.key for group in conformal.groups] or [0]
    numbers = [key for key in keys if key is not None]
    ordered = first is None and numbers == keys and numbers == sorted(set(numbers))
    _require("groups", ordered, [first, *keys], "all rows (None), then numbers, ascending")
    if conformal.condition != "group":
        possible = range(conformal.outputs) if conformal.condition == "class" else range(0)
        _require("groups", set(numbers) <= set(possible), numbers, f"numbers of {possible}")
    columns = 1 if conformal.classifies else conformal.outputs
    for group in conformal.groups:
        _require("scores", len(group.scores) == columns, f"{len(group.scores)} columns", f"{columns}")
        for column in group.scores:
            values = _numbers("scores", column, (None,))
            kept = len(values) <= KEPT and bool(np.isfinite(values).all() and (np.diff(values) >= 0).all())
            _require("scores", kept, f"{len(values)} numbers", f"at most {KEPT}, finite and ascending")


@dataclass(frozen=True)  # no slots: thresholds are worked out once for each coverage
class Conformal:
    """Calibration scores, from which sets or intervals of any coverage are made.

    `condition`: coverage is kept over all rows, in each class, or in each group that the caller names by a number. A
    class or group of fewer than ceil(1 / (1 - coverage)) - 1 calibration rows has no finite threshold of its own. It
    gets that of all rows, or its highest score where that is higher: of its n rows by themselves no more is promised
    than n / (n + 1), of one never met nothing. Several targets are covered each by itself, not jointly.
    """

    method: ClassMethod | TargetMethod
    condition: Condition
    outputs: int  # K
    groups: tuple[GroupScores, ...]  # the first of all rows, then by ascending key
    penalty: float = 0.0  # of raps
    regular_rank: int = 0  # of raps
    base_level: float | None = None  # of cqr: the coverage that the base interval claims
    floor: float = FLOOR  # of normalized: the least deviation

    def __post_init__(self) -> None:
        methods = get_args(ClassMethod) + get_args(TargetMethod)
        _require("method", self.method in methods, self.method, ", ".join(methods))
        conditions = [one for one in get_args(Condition) if self.classifies or one != "class"]
        _require("condition", self.condition in conditions, self.condition, ", ".join(conditions))
        least = 2 if self.classifies else 1
        _require("outputs", self.outputs >= least, self.outputs, f"at least {least}, for {self.method}")
        penalty, level = self.penalty, self.base_level
        _require("penalty", math.isfinite(penalty) and penalty >= 0, penalty, "a finite number, at least 0")
        _require("regular_rank", self.regular_rank >= 0, self.regular_rank, "at least 0")
        given = level is not None and 0.0 < level < 1.0
        accepted = "a level between 0 and 1, both excluded" if self.method == "cqr" else f"none, for {self.method}"
        _require("base_level", given if self.method == "cqr" else level is None, level, accepted)
        _require("floor", math.isfinite(self.floor) and self.floor > 0, self.floor, "a finite number above 0")
        _check_groups(self)

    @property
    def classifies(self) -> bool:
        """Whether it answers with sets of classes; else with intervals."""
        return self.method in get_args(ClassMethod)

    def label_scores(self, probabilities: ArrayLike) -> Array:
        """Return the score of every class, (B, K) of probabilities (B, K)."""
        _require("method", self.classifies, self.method, "a method for classes")
        p = _numbers("probabilities", probabilities, (None, self.outputs))
        return class_scores(self.method, p, self.penalty, self.regular_rank)

    def target_scores(
        self, targets: ArrayLike, mean: ArrayLike, deviation: ArrayLike | None, base_interval: ArrayLike | None
    ) -> Array:
        """Return the score of every target, all (B, K) but `base_interval` (B, K, 2); None where not looked at."""
        middle, half, base = self._predicted(mean, deviation, base_interval)
        return target_scores(_numbers("targets", targets, middle.shape), middle, half, base, self.floor)

    def thresholds(self, coverage: float, rows: int, groups: ArrayLike | None = None) -> Array:
        """Return the highest score that is let in, for each row and output, (B, K)."""
        found: Array = self._table(coverage)[self._members(rows, groups), self._columns]
        return found

    def _table(self, coverage: float) -> Array:
        """Return the highest score of every group that is let in, (G, 1 or K)."""
        found = self._tables.get(coverage)
        if found is None:
            table = np.array([[conformal_quantile(one, coverage) for one in group.scores] for group in self.groups])
            highest = np.array([[one[-1] if one else -math.inf for one in group.scores] for group in self.groups])
            found = np.where(np.isinf(table), np.maximum(table[0], highest), table)
            if len(self._tables) >= _TABLES:
                self._tables.clear()
            self._tables[coverage] = found
        return found

    @functools.cached_property
    def _tables(self) -> dict[float, Array]:
        return {}

    def prediction_set(
        self, probabilities: ArrayLike, coverage: float, groups: ArrayLike | None = None
    ) -> NDArray[np.bool_]:
        """Return for every class whether it is in its row's set, (B, K) of probabilities (B, K).

        Every class where the threshold is infinite, and where a probability is NaN. A set may be empty: then even the
        likeliest class is more unusual than the coverage leaves room for.
        """
        scores = self.label_scores(probabilities)
        left_out: NDArray[np.bool_] = scores > self.thresholds(coverage, len(scores), groups)
        return ~left_out

    def prediction_interval(
        self,
        mean: ArrayLike,
        deviation: ArrayLike | None,
        base_interval: ArrayLike | None,
        coverage: float,
        groups: ArrayLike | None = None,
    ) -> Array:
        """Return intervals (B, K, 2), in the targets' unit, of means (B, K).

        Normalized needs the `deviation` (B, K); cqr the `base_interval` (B, K, 2) of `base_level`, for any coverage,
        and where it would take more from one than there is leaves its midpoint. Infinite where the threshold is, and
        where the prediction is NaN.
        """
        middle, half, base = self._predicted(mean, deviation, base_interval)
        reach = self.thresholds(coverage, len(middle), groups)
        low, high = (middle, middle) if base is None else (base[..., 0], base[..., 1])
        with np.errstate(invalid="ignore", over="ignore"):
            reach = reach if half is None else reach * np.maximum(half, self.floor)
            # A target whose score is the threshold itself stays inside, whatever its subtraction has rounded.
            lower = low - reach - _SLACK * (np.abs(low) + np.abs(reach))
            upper = high + reach + _SLACK * (np.abs(high) + np.abs(reach))
            between, crossed = lower / 2 + upper / 2, lower > upper
        unknown = np.isnan(lower) | np.isnan(upper)
        lower = np.where(unknown, -np.inf, np.where(crossed, between, lower))
        upper = np.where(unknown, np.inf, np.where(crossed, between, upper))
        return np.stack([lower, upper], -1)

    def p_values(self, scores: ArrayLike, groups: ArrayLike | None = None) -> Array:
        """Return of scores (B, K) the share that is as high or higher, among calibration scores and the new one.

        The truth's is at most a with probability at most a. A class or target is let in at coverage c where its own is
        above 1 - c; of a class or group with too few rows for a threshold, the value is of these few all the same, and
        1 where the score is NaN.
        """
        given = _numbers("scores", scores, (None, self.outputs))
        members = self._members(len(given), groups)
        columns = np.broadcast_to(self._columns, given.shape)
        found = np.ones(given.shape)
        for place in np.unique(members):
            for column, known in enumerate(self.groups[place].scores):
                here = (members == place) & (columns == column) & ~np.isnan(given)
                lower = np.searchsorted(np.asarray(known, dtype=np.float64), given[here], side="left")
                found[here] = (len(known) - lower + 1) / (len(known) + 1)
        return found

    @property
    def _columns(self) -> Integers:
        return np.zeros(self.outputs, dtype=np.int64) if self.classifies else np.arange(self.outputs)

    def _members(self, rows: int, groups: ArrayLike | None) -> Integers:
        """Return the place in `groups` of what each row and output is compared with, (B, K); 0: all rows."""
        given = _group_numbers(self.condition, groups, rows)
        if given is None and self.condition == "none":
            return np.zeros((rows, self.outputs), dtype=np.int64)
        keys = np.arange(self.outputs)[None] if given is None else given[:, None]
        known = np.array([group.key for group in self.groups[1:]], dtype=np.int64)
        places = np.searchsorted(known, keys)
        met = places < len(known)
        met[met] = known[places[met]] == keys[met]
        return np.broadcast_to(np.where(met, places + 1, 0), (rows, self.outputs))

    def _predicted(
        self, mean: ArrayLike, deviation: ArrayLike | None, base_interval: ArrayLike | None
    ) -> tuple[Array, Array | None, Array | None]:
        """Return the mean, and the deviation or the base interval where the method looks at it."""
        _require("method", not self.classifies, self.method, "a method for targets")
        return _read_prediction(self.method, mean, deviation, base_interval, self.outputs)


# --- Fitting ---


def _group(scores: Array, keys: Integers | None) -> tuple[GroupScores, ...]:
    """Sort scores (N, columns) of all rows, and of each key's rows."""
    parts: dict[int | None, Array] = {None: scores}
    if keys is not None:
        parts |= {int(key): scores[keys == key] for key in np.unique(keys)}
    return tuple(
        GroupScores(key, tuple(tuple(thin_scores(np.sort(column)).tolist()) for column in part.T))
        for key, part in parts.items()
    )


def fit_classes(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    method: ClassMethod = "lac",
    condition: Condition = "none",
    groups: ArrayLike | None = None,
    penalty: float = PENALTY,
    regular_rank: int | None = None,
) -> Conformal:
    """Score the labels (N,) of calibration rows by their probabilities (N, K).

    `groups` (N,): a number of each row's group, for the condition "group". RAPS without a `regular_rank` has it chosen
    by every tenth row, as the smallest at or above which 90 % of their labels lie; these rows are not scored, so that
    coverage is exact whatever they say.
    """
    p = _numbers("probabilities", probabilities, (None, None))
    _finite("probabilities", p)
    y = _whole_numbers("labels", labels, len(p))
    _require("labels", bool(((y >= 0) & (y < p.shape[1])).all()), "others", f"class numbers 0..{p.shape[1] - 1}")
    given = _group_numbers(condition, groups, len(p))
    keys = y if condition == "class" else given
    rank = 0 if regular_rank is None else regular_rank
    if method == "raps" and regular_rank is None:
        scored = np.arange(len(p)) % _CHOOSING > 0
        rank = choose_regular_rank(p[~scored], y[~scored])
        p, y, keys = p[scored], y[scored], None if keys is None else keys[scored]
    weight, rank = (penalty, rank) if method == "raps" else (0.0, 0)
    scores = class_scores(method, p, weight, rank)[np.arange(len(y)), y]
    return Conformal(method, condition, p.shape[1], _group(scores[:, None], keys), weight, rank)


def fit_targets(
    targets: ArrayLike,
    mean: ArrayLike,
    deviation: ArrayLike | None = None,
    base_interval: ArrayLike | None = None,
    *,
    method: TargetMethod = "normalized",
    base_level: float | None = None,
    groups: ArrayLike | None = None,
    floor: float = FLOOR,
) -> Conformal:
    """Score targets (N, K) by what was predicted: `mean` and `deviation` (N, K), `base_interval` (N, K, 2).

    Normalized needs the deviation; one below `floor`, in the targets' unit, counts as that. Cqr needs the base
    interval and the coverage that it claims. `groups` (N,): a number of each row's group.
    """
    y = _numbers("targets", targets, (None, None))
    middle, half, base = _read_prediction(method, mean, deviation, base_interval, y.shape[1])
    _require("mean", middle.shape == y.shape, f"shape {middle.shape}", f"shape {y.shape}, as the targets have it")
    for name, values in (("targets", y), ("mean", middle), ("deviation", half), ("base_interval", base)):
        _finite(name, values)
    _require("deviation", half is None or bool((half >= 0).all()), "a negative one", "numbers >= 0")
    condition: Condition = "none" if groups is None else "group"
    keys = _group_numbers(condition, groups, len(y))
    scores = target_scores(y, middle, half, base, floor)
    level = base_level if method == "cqr" else None
    return Conformal(method, condition, y.shape[1], _group(scores, keys), base_level=level, floor=floor)


def refit_scores(conformal: Conformal, scores: ArrayLike, keys: ArrayLike | None = None) -> Conformal:
    """Return the same score function with the scores of other rows: (N, 1) of their labels, or (N, K) of targets.

    `keys` (N,): the class or group of each row, for a conformal that has a condition.
    """
    columns = 1 if conformal.classifies else conformal.outputs
    values = _numbers("scores", scores, (None, columns))
    _finite("scores", values)
    conditioned = conformal.condition != "none"
    _require("keys", (keys is not None) == conditioned, keys, "the class or group of each row, for a condition")
    members = None if keys is None else _whole_numbers("keys", keys, len(values))
    return replace(conformal, groups=_group(values, members))
