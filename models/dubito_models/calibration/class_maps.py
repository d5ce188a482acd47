"""Calibration maps of a classification: what they are, and their application.

Two kinds. A map that is `per_draw` acts on the log-probabilities of every draw, before the mean over draws is taken
(Laves et al. 2019, for the temperature); any other acts on the mean of the draws' probabilities. No logarithm goes
below -80, so that a head which says exactly 0 or 1 gives numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from dubito_models.calibration.parameters import (
    Numbers,
    check_count,
    check_finite,
    check_positive,
    check_rising,
)
from dubito_models.errors import InvalidArgument

Array = NDArray[np.float64]

LEAST_LOG = -80.0  # of a probability, where a map takes its logarithm


# --- Of every draw ---


@dataclass(frozen=True, slots=True)
class Temperature:
    """softmax(log p / temperature) of every draw (Guo et al. 2017, Laves et al. 2019)."""

    temperature: float
    kind: Literal["temperature"] = "temperature"
    per_draw: ClassVar[Literal[True]] = True

    def __post_init__(self) -> None:
        check_positive("temperature", (self.temperature,))

    def apply(self, log_probabilities: Tensor) -> Tensor:
        """Return log-probabilities (..., K), normalised, of the same dtype and device."""
        return F.log_softmax(log_probabilities.clamp(min=LEAST_LOG) / self.temperature, -1)


@dataclass(frozen=True, slots=True)
class VectorScaling:
    """softmax(weights_k log p_k + biases_k) of every draw (Guo et al. 2017); K numbers each."""

    weights: Numbers
    biases: Numbers
    kind: Literal["vector_scaling"] = "vector_scaling"
    per_draw: ClassVar[Literal[True]] = True

    def __post_init__(self) -> None:
        check_finite("weights", self.weights)
        check_finite("biases", self.biases)
        check_count("biases", len(self.biases), len(self.weights))

    def apply(self, log_probabilities: Tensor) -> Tensor:
        """Return log-probabilities (..., K), normalised, of the same dtype and device."""
        check_count("classes", log_probabilities.shape[-1], len(self.weights))
        weights, biases = log_probabilities.new_tensor(self.weights), log_probabilities.new_tensor(self.biases)
        return F.log_softmax(log_probabilities.clamp(min=LEAST_LOG) * weights + biases, -1)


@dataclass(frozen=True, slots=True)
class Dirichlet:
    """softmax(W log p + b) of every draw (Kull et al. 2019): `weights` K rows of K numbers, `biases` K."""

    weights: tuple[Numbers, ...]
    biases: Numbers
    kind: Literal["dirichlet"] = "dirichlet"
    per_draw: ClassVar[Literal[True]] = True

    def __post_init__(self) -> None:
        for row in self.weights:
            check_finite("weights", row)
            check_count("weights", len(row), len(self.weights))
        check_finite("biases", self.biases)
        check_count("biases", len(self.biases), len(self.weights))

    def apply(self, log_probabilities: Tensor) -> Tensor:
        """Return log-probabilities (..., K), normalised, of the same dtype and device."""
        check_count("classes", log_probabilities.shape[-1], len(self.weights))
        weights, biases = log_probabilities.new_tensor(self.weights), log_probabilities.new_tensor(self.biases)
        return F.log_softmax(log_probabilities.clamp(min=LEAST_LOG) @ weights.T + biases, -1)


# --- Of the draws' mean ---


def sum_of_others(probabilities: Array) -> Array:
    """Return 1 - p of probabilities (N, K), to all digits: a difference would lose them where p is nearly 1."""
    nothing = np.zeros_like(probabilities[..., :1])
    before = np.concatenate([nothing, probabilities.cumsum(-1)[..., :-1]], axis=-1)
    after = np.concatenate([probabilities[..., ::-1].cumsum(-1)[..., -2::-1], nothing], axis=-1)
    found: Array = before + after
    return found


def bounded_log(probabilities: Array) -> Array:
    """Return the logarithm, no lower than -80; any shape."""
    found: Array = np.log(np.maximum(probabilities, math.exp(LEAST_LOG)))
    return found


def _mapped_classes(probabilities: Array, lists: int) -> Array:
    """Return the columns (K, N) that a map of so many lists acts on: of two classes, class 1 alone."""
    check_count("classes", probabilities.shape[-1], 2 if lists == 1 else lists)
    return np.moveaxis(probabilities, -1, 0)[-lists:]


def _check_one_against_rest(field: str, given: int) -> None:
    if given in (0, 2):
        raise InvalidArgument(field, f"{given} of them", "1 for two classes, K for K of at least 3")


@dataclass(frozen=True, slots=True)
class LogMeanTemperature:
    """softmax(log p / temperature) of the mean p of the draws' probabilities."""

    temperature: float
    kind: Literal["log_mean_temperature"] = "log_mean_temperature"
    per_draw: ClassVar[Literal[False]] = False

    def __post_init__(self) -> None:
        check_positive("temperature", (self.temperature,))

    def apply_mean(self, probabilities: Array) -> Array:
        """Return probabilities (N, K)."""
        found: Array = special.softmax(bounded_log(probabilities) / self.temperature, axis=-1)
        return found


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A non-decreasing map of each class's mean probability, then renormalised (Zadrozny & Elkan 2002).

    Linear between `values` in (0, 1) at `knots`, which rise, and constant beyond them. One list of each per class; of
    two classes one list is all, of class 1, and class 0 is its complement.
    """

    knots: tuple[Numbers, ...]
    values: tuple[Numbers, ...]
    kind: Literal["isotonic"] = "isotonic"
    per_draw: ClassVar[Literal[False]] = False

    def __post_init__(self) -> None:
        _check_one_against_rest("knots", len(self.knots))
        check_count("values", len(self.values), len(self.knots))
        for knots, values in zip(self.knots, self.values, strict=True):
            check_finite("knots", knots)
            check_finite("values", values)
            check_count("values", len(values), len(knots))
            check_rising("knots", knots, strictly=True)
            check_rising("values", values, strictly=False)
            if values[0] <= 0 or values[-1] >= 1:
                raise InvalidArgument("values", f"{values[0]:g}..{values[-1]:g}", "numbers between 0 and 1")

    def apply_mean(self, probabilities: Array) -> Array:
        """Return probabilities (N, K)."""
        columns = _mapped_classes(probabilities, len(self.knots))
        mapped = np.stack(
            [np.interp(column, x, y) for column, x, y in zip(columns, self.knots, self.values, strict=True)], axis=-1
        )
        if len(self.knots) == 1:
            return np.concatenate([1 - mapped, mapped], axis=-1)
        found: Array = mapped / mapped.sum(-1, keepdims=True)
        return found


@dataclass(frozen=True, slots=True)
class Beta:
    """logit q = a log p - b log(1 - p) + c of each class's mean p, then renormalised (Kull et al. 2017).

    `a` and `b` are at least 0. One number of each per class; of two classes one is all, of class 1, and class 0 is its
    complement.
    """

    a: Numbers
    b: Numbers
    c: Numbers
    kind: Literal["beta"] = "beta"
    per_draw: ClassVar[Literal[False]] = False

    def __post_init__(self) -> None:
        _check_one_against_rest("a", len(self.a))
        for name, values in (("a", self.a), ("b", self.b), ("c", self.c)):
            check_finite(name, values)
            check_count(name, len(values), len(self.a))
        if min(*self.a, *self.b) < 0:
            raise InvalidArgument("a, b", min(*self.a, *self.b), "numbers of at least 0")

    def apply_mean(self, probabilities: Array) -> Array:
        """Return probabilities (N, K)."""
        columns = _mapped_classes(probabilities, len(self.a))
        rest = np.moveaxis(bounded_log(sum_of_others(probabilities)), -1, 0)[-len(columns) :]
        a, b, c = (np.reshape(values, (-1, *(1,) * (columns.ndim - 1))) for values in (self.a, self.b, self.c))
        logit = np.moveaxis(a * bounded_log(columns) - b * rest + c, 0, -1)
        if len(self.a) == 1:
            return np.concatenate([special.expit(-logit), special.expit(logit)], axis=-1)
        # In logarithms, for a row to which every class says no.
        found: Array = special.softmax(special.log_expit(logit), axis=-1)
        return found


# --- All of them ---


PerDrawMap: TypeAlias = Temperature | VectorScaling | Dirichlet
MeanMap: TypeAlias = LogMeanTemperature | Isotonic | Beta
ClassMap: TypeAlias = PerDrawMap | MeanMap
ClassMapKind: TypeAlias = Literal[
    "temperature", "log_mean_temperature", "vector_scaling", "dirichlet", "isotonic", "beta"
]
