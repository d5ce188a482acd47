"""Calibrating a version through the very engine, seed, design, draws and stopping rule that serve it.

Rows are shared out: one part chooses and fits the map of the predictive distribution, the other gives the nonconformity
scores and the threshold of abstaining, of answers that the map has had. So a score is a fixed function of its row, and
split-conformal coverage is exact (Vovk et al. 2005), whatever the map has learned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dubito_models.calibration.calibration import QUANTITIES, Answer, Calibration, Grouping, Reached, uncertainty_of
from dubito_models.calibration.choosing import ChosenMap
from dubito_models.calibration.class_maps import ClassMap, ClassMapKind
from dubito_models.calibration.conformal import Conformal, fit_classes, fit_targets
from dubito_models.calibration.fitting_classes import choose_class_map
from dubito_models.calibration.selective import Selective, fit_selective
from dubito_models.calibration.target_maps import TargetMap, TargetMapKind, choose_target_map
from dubito_models.engine import Engine
from dubito_models.errors import InvalidArgument
from dubito_models.gains import measure_gains
from dubito_models.heads import Task
from dubito_models.predictive import Classification, Predictive, Regression, join_answers
from dubito_models.sampling import Estimator, SamplingSpec
from dubito_models.stopping import ALL_DRAWS

Array = NDArray[np.float64]
Method = Literal["auto", "identity"] | ClassMapKind | TargetMapKind
METHODS: dict[Task, tuple[Method, ...]] = {
    Task.CLASSIFICATION: ("auto", "identity", *get_args(ClassMapKind)),
    Task.REGRESSION: ("auto", "identity", *get_args(TargetMapKind)),
}
CONFORMAL = {Task.CLASSIFICATION: ("lac", "aps", "raps"), Task.REGRESSION: ("normalized", "absolute", "cqr")}
CQR_LEVEL = 0.9
ENOUGH_TO_MAP = 50  # rows: of fewer, what is chosen does harm too often
ENOUGH_SCORES = 50  # for which a coverage of .9 is kept within 2 points: that of n is in steps of 1 / (n + 1)
_BLOCK = 1024  # rows at a time


@dataclass(frozen=True, slots=True)
class Abstaining:
    """What abstaining shall promise: of accepted rows at most `risk` are wrong, with this confidence.

    Wrong is a wrong class, or a prediction further than `error` from its target.
    """

    risk: float
    quantity: str | None = None  # "predictive_entropy", or "total_deviation"
    confidence: float = 0.95
    error: float | None = None


_AS_PACKED = SamplingSpec()


@dataclass(frozen=True, slots=True)
class CalibrationSpec:
    """How to calibrate.

    `sampling`: the draws, rule and estimator that will be served; seed and design are the version's own. `method`: of
    the map; "auto" takes the best by cross-validated likelihood, or none. `conformal`: the scores of sets or intervals;
    None takes "lac", or "normalized", "none" none. Coverage holds for each `condition`: all rows, each "class", or each
    group of `grouping`. `map_share` of the rows fit the map; None leaves a quarter, at least 50, for scores, and all
    where no 50 are left for the map; just a quarter where `method` names one. `overlap`: so many consecutive rows share
    targets, as the windows of a series do. `seed` shuffles rows into shares and folds.
    """

    sampling: SamplingSpec = _AS_PACKED
    method: Method = "auto"
    conformal: str | None = None
    condition: Literal["none", "class", "group"] = "none"
    grouping: Grouping | None = None
    abstaining: Abstaining | None = None
    map_share: float | None = None
    overlap: int = 1
    seed: int = 0

    def check(self, task: Task) -> None:
        """Raise `InvalidArgument` where it makes no sense for such a network."""
        if self.method not in METHODS[task]:
            raise InvalidArgument("method", self.method, f"{', '.join(METHODS[task])}, for a {task}")
        if self.conformal not in (None, "none", *CONFORMAL[task]):
            raise InvalidArgument("conformal", self.conformal, f"{', '.join(CONFORMAL[task])}, none, for a {task}")
        if self.condition == "class" and task is Task.REGRESSION:
            raise InvalidArgument("condition", self.condition, "none or group, for a regression")
        if (self.condition == "group") != (self.grouping is not None):
            raise InvalidArgument("grouping", self.grouping, "a column for condition group, and for no other")
        if self.map_share is not None and not 0.0 <= self.map_share <= 1.0:
            raise InvalidArgument("map_share", self.map_share, "0 to 1")
        given = self.abstaining
        if given is None:
            return
        if not (0.0 < given.risk < 1.0 and 0.0 < given.confidence < 1.0):
            raise InvalidArgument("risk, confidence", f"{given.risk}, {given.confidence}", "between 0 and 1 each")
        if given.quantity not in (None, *QUANTITIES[task]):
            raise InvalidArgument("quantity", given.quantity, ", ".join(QUANTITIES[task]))
        if (task is Task.REGRESSION) != (given.error is not None):
            raise InvalidArgument("error", given.error, "an error that counts as wrong, for a regression and no other")
        if given.error is not None and not (math.isfinite(given.error) and given.error > 0):
            raise InvalidArgument("error", given.error, "a finite number > 0")


@dataclass(frozen=True, slots=True)
class Rows:
    """Labelled rows: inputs by name, each (B, ...), and their targets: class numbers (B,), or numbers (B, K)."""

    inputs: Mapping[str, Tensor]
    targets: NDArray[np.int64] | Array

    def take(self, rows: NDArray[np.int64]) -> Rows:
        """Return the rows of these numbers."""
        chosen = torch.from_numpy(rows)
        return Rows({name: value[chosen] for name, value in self.inputs.items()}, self.targets[rows])

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a calibration is for: the checksums and choices of a version."""

    program: str
    precision: str
    fan_out: int
    integrated: bool


def calibrate_engine(
    engine: Engine, identity: Identity, rows: Rows, spec: CalibrationSpec, fingerprint: str
) -> Calibration:
    """Fit map, scores and threshold; raises `InvalidArgument` for rows or a spec that do not do."""
    task = engine.head.task
    spec.check(task)
    mapped, scored = share_out(len(rows), spec)
    learning = rows.take(mapped)
    calibration = _fit_map(engine, identity, learning, spec, fingerprint)
    known = learning if len(mapped) else rows  # their inputs alone
    calibration = measure_gains(engine, known.inputs, calibration)
    _check_estimator(calibration)
    if not len(scored):
        return calibration
    judged = rows.take(scored)
    calibration = replace(calibration, score_rows=len(judged), grouping=spec.grouping)
    asked = replace(spec.sampling, interval_level=CQR_LEVEL)
    final = predict_rows(engine, judged.inputs, asked, calibration)
    found = calibration
    if spec.conformal != "none":
        found = replace(found, conformal=tuple(_ladder(engine, judged, spec, calibration, final)))
    if spec.abstaining is not None:
        found = replace(found, selective=_fit_threshold(final.answer, judged, spec.abstaining))
    return found


def share_out(count: int, spec: CalibrationSpec) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers of the rows that fit the map, and of those that are scored.

    Rows that share targets stay in two stretches, apart, and so many of them count as one.
    """
    most = count - count // 4  # a map gains more by a row than scores do
    if spec.map_share is not None:
        first = math.ceil(count * spec.map_share)
    elif spec.method not in ("auto", "identity"):
        first = most
    else:
        first = min(most, count - ENOUGH_SCORES * spec.overlap)
        if first < ENOUGH_TO_MAP * spec.overlap or spec.method == "identity":
            first = 0
    if spec.overlap > 1:
        return np.arange(first), np.arange(min(count, first + spec.overlap - 1), count)
    order = np.random.default_rng(spec.seed).permutation(count)
    return np.sort(order[:first]), np.sort(order[first:])


def predict_rows(
    engine: Engine, inputs: Mapping[str, Tensor], spec: SamplingSpec, calibration: Calibration | None
) -> Predictive:
    """Answer as many rows as there are, some at a time."""
    count = len(next(iter(inputs.values())))
    numbers = np.split(np.arange(count), range(_BLOCK, count, _BLOCK))
    parts = [
        engine.predict({name: value[some[0] : some[-1] + 1] for name, value in inputs.items()}, spec, calibration)
        for some in numbers
    ]
    return join_answers(parts, numbers)


def _fit_map(engine: Engine, identity: Identity, rows: Rows, spec: CalibrationSpec, fingerprint: str) -> Calibration:
    plan = engine.plan(spec.sampling)
    calibration = Calibration(
        draws=plan.max_draws,
        min_draws=plan.min_draws,
        seed=plan.seed,
        design=plan.design.value,
        group_size=plan.group_size,
        stopping=plan.stopping,
        estimator=plan.spec.estimator or Estimator.PLAIN,
        program=identity.program,
        precision=identity.precision,
        fan_out=identity.fan_out,
        integrated=identity.integrated,
        data_fingerprint=fingerprint,
        rows=len(rows),
    )
    if not len(rows) or spec.method == "identity":
        return calibration
    drawn = engine.draws(rows.inputs, SamplingSpec(max_draws=min(plan.max_draws, engine.defaults.draws)))
    methods = None if spec.method == "auto" else (spec.method,)
    chosen: ChosenMap[ClassMap] | ChosenMap[TargetMap]
    if drawn.log_probabilities is not None:
        values, labels = drawn.log_probabilities.numpy(), rows.targets.astype(np.int64)
        chosen = choose_class_map(values, labels, methods=methods, seed=spec.seed)
    else:
        assert drawn.mean is not None
        variances = None if drawn.variance is None else drawn.variance.numpy()
        means, targets = drawn.mean.numpy(), rows.targets.astype(np.float64)
        overlap, seed = spec.overlap, spec.seed
        chosen = choose_target_map(means, variances, targets, methods=methods, overlap=overlap, seed=seed)
    return replace(
        calibration, map=chosen.map, nll_before=chosen.nll_before, nll_after=chosen.nll_after, tried=chosen.tried
    )


def _check_estimator(calibration: Calibration) -> None:
    if calibration.estimator is Estimator.LINEARIZED and not calibration.linearized:
        given = "linearized, which gains too little on these rows, or is biased"
        raise InvalidArgument("estimator", given, "plain")


def _ladder(
    engine: Engine, rows: Rows, spec: CalibrationSpec, calibration: Calibration, final: Predictive
) -> list[Reached]:
    """Return scores after 1, 2, 4, 8, ... groups of draws, and last those of the answers that will be served."""
    groups = max(1, -(-calibration.draws // calibration.group_size))
    method = spec.conformal or CONFORMAL[engine.head.task][0]
    within = None if spec.grouping is None else spec.grouping.of(rows.inputs)
    found = []
    for some in [1 << power for power in range(groups.bit_length()) if 1 << power < groups]:
        fewer = SamplingSpec(
            max_draws=some * calibration.group_size, min_draws=1, stopping=ALL_DRAWS, interval_level=CQR_LEVEL
        )
        answer = predict_rows(engine, rows.inputs, fewer, calibration).answer
        found.append(Reached(some, _score(answer, rows, method, spec, within)))
    return [*found, Reached(groups, _score(final.answer, rows, method, spec, within))]


def _score(
    answer: Answer, rows: Rows, method: Any, spec: CalibrationSpec, within: NDArray[np.int64] | None
) -> Conformal:
    if isinstance(answer, Classification):
        return fit_classes(answer.probabilities, rows.targets, method=method, condition=spec.condition, groups=within)
    base = CQR_LEVEL if method == "cqr" else None
    return fit_targets(
        rows.targets, answer.mean, *_spread(answer, method), method=method, base_level=base, groups=within
    )


def _spread(answer: Regression, method: str) -> tuple[Array | None, Array | None]:
    """Return the deviation, and the central interval of the base level, where the method wants them."""
    if method == "absolute":
        return None, None
    if answer.total_variance is None or answer.interval is None:
        raise InvalidArgument("draws", "a single one, of a network that does not know its noise", "conformal absolute")
    return np.sqrt(answer.total_variance), answer.interval


def _fit_threshold(answer: Answer, rows: Rows, asked: Abstaining) -> Selective:
    quantity = asked.quantity or QUANTITIES[_task_of(answer)][0]
    uncertainty = uncertainty_of(answer, quantity)
    if uncertainty is None:
        raise InvalidArgument("quantity", quantity, "one that these draws can tell: more draws")
    if isinstance(answer, Classification):
        wrong = answer.label != rows.targets
    else:
        wrong = (np.abs(answer.mean - rows.targets) > asked.error).any(-1)
    return fit_selective(
        wrong.astype(np.float64), uncertainty, quantity=quantity, risk=asked.risk, delta=1.0 - asked.confidence
    )


def _task_of(answer: Answer) -> Task:
    return Task.CLASSIFICATION if isinstance(answer, Classification) else Task.REGRESSION
