"""Outputs: which arrays an answer holds, under which names, and which of them a version always gives.

What a version always gives is declared, and is there in every answer: NaN where a single draw cannot tell. The others
come where a parameter asks for them. Who names outputs gets those alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dubito_models.errors import InvalidArgument
from dubito_models.heads import Head, Task
from dubito_models.package import ModelVersion
from dubito_models.predictive import Classification, Predictive, Regression
from dubito_models.standard import Evaluation
from dubito_service.asking import Prediction

UNCALIBRATED = "uncalibrated_"


@dataclass(frozen=True, slots=True)
class Output:
    """One output; `shape`: B, K and what else there is, None where it is free."""

    name: str
    dtype: str  # of numpy, "object" for texts
    shape: tuple[int | None, ...]


def declare(version: ModelVersion) -> tuple[Output, ...]:
    """Return what every answer of the Monte Carlo path holds, under the version's calibration of now."""
    manifest, calibration = version.manifest, version.calibration
    abstains = calibration is not None and calibration.selective is not None
    return (*_declare_answer(version), *_declare_draws(manifest.outputs, abstains))


def _declare_answer(version: ModelVersion) -> Iterator[Output]:
    K = version.manifest.outputs
    if version.manifest.task is Task.CLASSIFICATION:
        yield Output("probabilities", "float64", (None, K))
        yield Output("label", "int64", (None,))
        for name in ("predictive_entropy", "expected_entropy", "mutual_information", "plain_mutual_information"):
            yield Output(name, "float64", (None,))
        yield Output("standard_deviation", "float64", (None, K))
        for name in ("variation_ratio", "disagreement", "margin"):
            yield Output(name, "float64", (None,))
        return
    for name in ("mean", "total_variance", "epistemic_variance"):
        yield Output(name, "float64", (None, K))
    if _knows_noise(version):
        yield Output("aleatoric_variance", "float64", (None, K))
    yield Output("interval", "float64", (None, K, 2))


def _declare_draws(K: int, abstains: bool) -> Iterator[Output]:
    yield Output("standard_error", "float64", (None, K))
    yield Output("draws", "int64", (None,))
    yield Output("stop_reason", "object", (None,))
    if abstains:
        yield Output("abstain", "bool", (None,))


def declare_asked(asked: Prediction) -> dict[str, Output]:
    """Return what the answer to a question will hold, by name."""
    version, spec, K = asked.version, asked.plan.spec, asked.version.manifest.outputs
    calibration = asked.calibration
    answer = list(_declare_answer(version))
    if spec.quantiles and version.manifest.task is Task.REGRESSION:
        answer.append(Output("quantiles", "float64", (None, K, len(spec.quantiles))))
    found = [*answer, *_declare_draws(K, calibration is not None and calibration.selective is not None)]
    if asked.coverage is not None:
        sets = Output("prediction_set", "bool", (None, K))
        intervals = Output("prediction_interval", "float64", (None, K, 2))
        found.append(sets if version.manifest.task is Task.CLASSIFICATION else intervals)
    if spec.raw_draws:
        found.append(Output("raw_draws", "float64", (None, None, K)))
    if spec.joint:
        found.append(Output("joint_covariance", "float64", (None, None, K)))
    if spec.uncalibrated and calibration is not None:
        found += [Output(UNCALIBRATED + each.name, each.dtype, each.shape) for each in answer]
    return {each.name: each for each in found}


def declare_standard(version: ModelVersion) -> tuple[Output, ...]:
    """Return what every answer of the standard path holds: the network's own output first, then what it means."""
    own, K = version.standard.output, version.manifest.outputs
    if version.manifest.task is Task.CLASSIFICATION:
        decoded = [Output("probabilities", "float64", (None, K)), Output("label", "int64", (None,))]
    else:
        decoded = [Output("mean", "float64", (None, K))]
        if _knows_noise(version):
            decoded.append(Output("aleatoric_variance", "float64", (None, K)))
    raw = Output(own.name, own.dtype, own.shape)
    return (raw, *(each for each in decoded if each.name != own.name))


def choose(wanted: Iterable[str], there: Iterable[str], hint: str) -> tuple[str, ...]:
    """Return the outputs that a request names, all of them where it names none; `hint`: what else there might be."""
    present, chosen = tuple(there), list[str]()
    for name in wanted:
        field = f"outputs[{name[:128]!r}]"
        if name in chosen:
            raise InvalidArgument(field, "an output of this name twice", "each output once")
        if name not in present:
            raise InvalidArgument(field, "an output of this name", f"{', '.join(present)}{hint}")
        chosen.append(name)
    return tuple(chosen) or present


def take_outputs(predictive: Predictive, declared: Mapping[str, Output], names: Iterable[str]) -> list[NDArray[Any]]:
    """Return the outputs of these names in an answer."""
    own = ("standard_error", "draws", "abstain", "raw_draws", "joint_covariance")
    values: dict[str, Any] = {name: getattr(predictive, name) for name in own}
    values["stop_reason"] = np.array([reason.value for reason in predictive.stop_reason], object)
    values.update(_fields(predictive.answer))
    if predictive.uncalibrated is not None:
        plain = _fields(predictive.uncalibrated)
        values.update({UNCALIBRATED + name: value for name, value in plain.items()})
    return [_filled(values.get(name), declared[name], len(predictive.draws)) for name in names]


def take_standard_outputs(evaluation: Evaluation, own: str, names: Iterable[str]) -> list[NDArray[Any]]:
    """Return the outputs of these names in an answer of the standard path; `own`: the network's name of its output."""
    return [evaluation.output if name == own else getattr(evaluation, name) for name in names]


def _fields(answer: Classification | Regression) -> dict[str, Any]:
    return {field.name: getattr(answer, field.name) for field in fields(answer)}


def _filled(value: NDArray[Any] | None, output: Output, rows: int) -> NDArray[Any]:
    """Return a value, or of what one draw cannot tell NaN in its place."""
    if value is not None:
        return value
    return np.full([rows if size is None else size for size in output.shape], np.nan)


def _knows_noise(version: ModelVersion) -> bool:
    manifest = version.manifest
    return manifest.head is Head.MEAN_AND_LOG_VARIANCE or manifest.noise_variance is not None
