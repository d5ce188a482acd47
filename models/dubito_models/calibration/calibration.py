"""What a calibration is: what it does to an answer, and how the draws were made that it was fitted to."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dubito_models.calibration.class_maps import (
    Beta,
    ClassMap,
    Dirichlet,
    Isotonic,
    LogMeanTemperature,
    Temperature,
    VectorScaling,
)
from dubito_models.calibration.conformal import Conformal
from dubito_models.calibration.selective import Selective
from dubito_models.calibration.target_maps import (
    DeviationScale,
    NoiseScale,
    PitMap,
    StandardizedResiduals,
    TargetMap,
)
from dubito_models.errors import CalibrationMismatch, InvalidArgument
from dubito_models.heads import Decoded, Task
from dubito_models.predictive import (
    Array,
    Classification,
    Moments,
    Regression,
    Spread,
    entropy,
    margin_of,
    regress,
)
from dubito_models.sampling import Estimator, SamplingSpec
from dubito_models.stopping import ALL_DRAWS, ErrorRatios, Stopping

Answer = Classification | Regression
MISSING = -1  # the group of rows whose value is NaN


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which group a row belongs to: the whole number in a column of an input (B, C), such as a category's code."""

    input: str
    column: int
    name: str  # of the column

    def of(self, inputs: Mapping[str, Tensor]) -> NDArray[np.int64]:
        """Return the group of every row, (B,)."""
        values = inputs[self.input][:, self.column].double().cpu().numpy()
        groups: NDArray[np.int64] = np.where(np.isnan(values), MISSING, np.nan_to_num(values)).astype(np.int64)
        return groups


@dataclass(frozen=True, slots=True)
class Reached:
    """Nonconformity scores of answers after so many groups of draws."""

    groups: int
    conformal: Conformal


@dataclass(frozen=True)  # no slots: what is worked out of its many numbers is kept
class Calibration:
    """What is done to draws and answers, and how the draws were made that it was fitted to.

    `map` makes the predictive distribution fit the labels; None where none improved it. `conformal` gives sets and
    intervals at any coverage: the last entry for answers drawn as those it was fitted to, the others, by number of
    groups, for answers that were cut short. From a threshold on, `selective` abstains.

    `program` is the checksum of the program it was fitted for. An answer drawn with the same `seed`, `design`,
    `estimator`, `stopping` rule and numbers of draws is the same function of its row that was calibrated; any other is
    only close to it. `error_ratios` tell a tolerance how much smaller the standard errors of balanced draws are than
    the formula's.
    """

    draws: int  # at most
    seed: int
    design: str
    group_size: int
    program: str
    data_fingerprint: str
    rows: int  # that the map was fitted to
    nll_before: float | None = None  # cross-validated, nats per row and target; None where no map was tried
    nll_after: float | None = None
    tried: tuple[tuple[str, float], ...] = ()  # maps, and the cross-validated likelihood of each
    map: ClassMap | TargetMap | None = None
    conformal: tuple[Reached, ...] = ()
    grouping: Grouping | None = None
    score_rows: int = 0  # that scores and thresholds were fitted to
    selective: Selective | None = None
    min_draws: int = 1
    stopping: Stopping = ALL_DRAWS
    estimator: Estimator = Estimator.PLAIN
    precision: str = "float32"
    fan_out: int = 1
    integrated: bool = False
    error_ratios: ErrorRatios | None = None  # what balance gains in draws
    linearized: bool = False  # whether a classification may be corrected by linear logits: it pays, and has no bias
    control_variate: bool = False  # whether a regression's variance is taken with control variates: they paid

    @functools.cached_property
    def id(self) -> str:
        """The address of its content; a field that is added, with a default, moves no old one."""
        defaults = {field.name: field.default for field in fields(self)}
        said = {name: value for name, value in asdict(self).items() if getattr(self, name) != defaults[name]}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[
            :16
        ]  # a new field moves no old one

    @property
    def method(self) -> str:
        """The map's name; "identity" where there is none."""
        return "identity" if self.map is None else self.map.kind

    @property
    def parameters(self) -> dict[str, float]:
        """The map's single numbers, by name."""
        found = {} if self.map is None else {field.name: getattr(self.map, field.name) for field in fields(self.map)}
        return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}

    @property
    def drawn(self) -> tuple[int, int, int, str, Stopping, Estimator]:
        """How its draws were made: most and least, seed, design, rule and estimator."""
        return self.draws, self.min_draws, self.seed, self.design, self.stopping, self.estimator

    def apply(self, decoded: Decoded) -> Decoded:
        """Calibrate draws, where the map is one of every draw; `CalibrationMismatch` where they were before."""
        if decoded.calibrated:
            raise CalibrationMismatch(f"calibration {self.id} was given draws that are calibrated already")
        if isinstance(self.map, NoiseScale):
            variance = None if decoded.variance is None else decoded.variance * self.map.factor
            return replace(decoded, variance=variance, calibrated=True)
        if isinstance(self.map, Temperature | VectorScaling | Dirichlet) and decoded.log_probabilities is not None:
            return replace(decoded, log_probabilities=self.map.apply(decoded.log_probabilities), calibrated=True)
        return replace(decoded, calibrated=True)

    def regress(self, moments: Moments, scatter: Spread, noise: Array | None, spec: SamplingSpec) -> Regression:
        """End moments as `predictive.regress` does; `noise`: constant, as the version knows it."""
        level, quantiles = spec.interval_level, spec.quantiles
        if noise is not None and isinstance(self.map, NoiseScale):
            noise = noise * self.map.factor
        # Of a conformalised quantile; of every answer, because labels that come back are scored by it.
        base = self.conformal[-1].conformal.base_level if self.conformal else None
        levels = list(quantiles) if base is None else [*quantiles, (1 - base) / 2, (1 + base) / 2]
        if isinstance(self.map, DeviationScale | PitMap | StandardizedResiduals):
            found = self.map.stretch(regress(moments, scatter, noise, level, levels, self.map.quantiles))
        else:
            found = regress(moments, scatter, noise, level, levels)
        if base is None or found.quantiles is None:
            return found
        own = found.quantiles[..., : len(quantiles)] if quantiles else None
        return replace(found, quantiles=own, base_interval=found.quantiles[..., len(quantiles) :])

    def finish(
        self, answer: Answer, coverage: float | None, reached: int, within: NDArray[np.int64] | None, *, exact: bool
    ) -> tuple[Answer, NDArray[np.bool_] | None]:
        """Map the mean, add sets or intervals at a coverage, and tell of each row (B,) whether to abstain.

        `reached`: after how many groups of draws; `within`: the rows' groups (B,); `exact`: the answer was drawn as
        those that the calibration was fitted to.
        """
        if isinstance(answer, Classification):
            answer = self._map_mean(answer)
        if coverage is not None and self.conformal:
            answer = cover(answer, self._conformal_at(reached, exact), coverage, within)
        if self.selective is None:
            return answer, None
        uncertainty = uncertainty_of(answer, self.selective.quantity)
        return answer, self.selective.abstains(np.full(_rows(answer), np.nan) if uncertainty is None else uncertainty)

    def _map_mean(self, answer: Classification) -> Classification:
        """Map the mean probabilities; what the draws say of each other stays."""
        if not isinstance(self.map, LogMeanTemperature | Isotonic | Beta):
            return answer
        mapped = self.map.apply_mean(answer.probabilities)
        return replace(
            answer,
            probabilities=mapped,
            label=mapped.argmax(-1),
            predictive_entropy=entropy(mapped),
            margin=margin_of(mapped),
        )

    def _conformal_at(self, reached: int, exact: bool) -> Conformal:
        if exact:
            return self.conformal[-1].conformal
        below = [entry for entry in self.conformal if entry.groups <= reached]
        return (below[-1] if below else self.conformal[0]).conformal


def cover(answer: Answer, conformal: Conformal, coverage: float, within: NDArray[np.int64] | None) -> Answer:
    """Add the prediction sets or intervals at a coverage; rows belong to the groups `within`, (B,)."""
    if isinstance(answer, Classification):
        return replace(answer, prediction_set=conformal.prediction_set(answer.probabilities, coverage, within))
    deviation = None if answer.total_variance is None else np.sqrt(answer.total_variance)
    interval = conformal.prediction_interval(answer.mean, deviation, answer.base_interval, coverage, within)
    return replace(answer, prediction_interval=interval)


QUANTITIES = {
    Task.CLASSIFICATION: (
        "predictive_entropy", "mutual_information", "variation_ratio", "disagreement", "least_confidence",
    ),
    Task.REGRESSION: ("total_deviation", "epistemic_deviation"),
}  # fmt: skip


def uncertainty_of(answer: Answer, quantity: str) -> Array | None:
    """Return an uncertainty by name, one of `QUANTITIES`, (B,); None where the draws cannot tell.

    `least_confidence` is 1 less the highest probability. Of a regression of several targets, the largest deviation.
    """
    task = Task.CLASSIFICATION if isinstance(answer, Classification) else Task.REGRESSION
    if quantity not in QUANTITIES[task]:
        raise InvalidArgument("quantity", quantity, ", ".join(QUANTITIES[task]))
    if isinstance(answer, Classification):
        found: Array | None = (
            1.0 - answer.probabilities.max(-1) if quantity == "least_confidence" else getattr(answer, quantity)
        )
        return found
    variance = answer.total_variance if quantity == "total_deviation" else answer.epistemic_variance
    return None if variance is None else np.sqrt(variance).max(-1)


def _rows(answer: Answer) -> int:
    return len(answer.label if isinstance(answer, Classification) else answer.mean)


def fingerprint(arrays: Mapping[str, NDArray[np.generic]]) -> str:
    """Return a digest of named arrays: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
