"""Asking: what a caller may ask of a version, whatever the wire; every check that needs no network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from dubito_models.calibration import Calibration
from dubito_models.errors import InvalidArgument
from dubito_models.fanning import POINTS
from dubito_models.heads import Task
from dubito_models.manifest import Manifest
from dubito_models.package import ModelVersion
from dubito_models.sampling import Estimator, Plan, SamplingSpec
from dubito_models.thinning import MaskScope
from dubito_service.errors import StateUnset
from dubito_service.scheduling.scheduler import Priority

# What a stream asks of conformal prediction now, by version, calibration, name and the coverage that it wants.
Adapt = Callable[[ModelVersion, str, str, float], float]

MAX_QUANTILES = 32
MAX_STREAM = 128  # characters of a stream's name
_WORKING_BYTES = 2**30  # that a request's draws may take until it is answered
_PER_GROUP = 8  # numbers: up to four moments, old and new while they grow
_PER_DRAW = 8  # the draw and its noise, old and new while they grow, and what they end as
_PER_CONTROL = 10  # the draw's control variate, and both with their difference
_PER_FAN = 6  # of each of the last site's masks: the draw under it, old and new, and its deviations
_LINEAR_DRAWS = 128  # as many draws cost about as much as the linear ones of the estimator


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """The most that one request may ask for; work is rows x draws."""

    max_rows: int
    max_draws: int
    max_work: int
    max_message_bytes: int


@dataclass(frozen=True, slots=True)
class Question:
    """What a caller wants of a version; `interval_asked`: the specification's interval level is the caller's own.

    `coverage`: of sets or intervals, in (0, 1); `stream`: by whose labels it is adapted, "" for none.
    """

    version: ModelVersion
    inputs: Mapping[str, NDArray[Any]]
    spec: SamplingSpec
    interval_asked: bool = False
    coverage: float | None = None
    stream: str = ""
    id: str = ""
    priority: Priority = Priority.NORMAL


@dataclass(frozen=True, slots=True)
class Prediction:
    """A question that was found good; `inputs`: each (B, ...)."""

    version: ModelVersion
    calibration: Calibration | None
    inputs: Mapping[str, Tensor]
    rows: int
    plan: Plan
    id: str
    warnings: tuple[str, ...]
    stream: str = ""
    coverage: float | None = None  # of sets or intervals, as asked
    served_coverage: float | None = None  # at which they are made, 0 to 1: in a stream another one
    priority: Priority = Priority.NORMAL


@dataclass(frozen=True, slots=True)
class StandardRequest:
    """What the standard path is asked, found good; `inputs`: each (B, ...)."""

    version: ModelVersion
    inputs: Mapping[str, Tensor]
    rows: int
    id: str
    priority: Priority = Priority.NORMAL


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds: from arrival to the first pass, in passes, and from arrival to the answer."""

    queue: float
    compute: float
    total: float


class renaming:  # noqa: N801 - used as a function is; a class costs a call less than a generator
    """Lets refusals inside name a field as the caller's wire does."""

    __slots__ = ("_rename",)

    def __init__(self, rename: Callable[[str], str]) -> None:
        self._rename = rename

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InvalidArgument):
            raise InvalidArgument(self._rename(error.field), error.given, error.accepted) from None
        if isinstance(error, StateUnset):
            raise StateUnset(self._rename(error.field), error.given) from None


def ask(question: Question, limits: RequestLimits, adapt: Adapt | None = None) -> Prediction:
    """Check everything that a question asks; `adapt`: says what streams ask for, None where none are kept.

    Raises `InvalidArgument` or `StateUnset`.
    """
    version, calibration = question.version, question.version.calibration
    inputs, rows = check_inputs(question.inputs, version, limits)
    coverage, stream = question.coverage, question.stream
    _check_coverage(coverage, version, calibration)
    _check_stream(stream, coverage, adapt)
    served = coverage
    if stream and coverage is not None and calibration is not None and adapt is not None:
        served = adapt(version, calibration.id, stream, coverage)
    if len(question.spec.quantiles) > MAX_QUANTILES:
        raise InvalidArgument("quantiles", f"{len(question.spec.quantiles)} of them", f"at most {MAX_QUANTILES}")
    spec = question.spec if served is None else replace(question.spec, coverage=_inside(served))
    plan = version.engine.plan(spec, min(limits.max_draws, limits.max_work // max(1, rows)), calibration)
    _check_work(plan, rows, version, limits)
    warnings = tuple(_ignored(question, calibration, inputs))
    return Prediction(
        version, calibration, inputs, rows, plan, question.id, warnings, stream, coverage, served, question.priority
    )


def ask_standard(
    version: ModelVersion,
    inputs: Mapping[str, NDArray[Any]],
    limits: RequestLimits,
    name: str = "",
    priority: Priority = Priority.NORMAL,
) -> StandardRequest:
    """Check what the standard path is asked; raises `InvalidArgument`."""
    return StandardRequest(version, *check_inputs(inputs, version, limits), name, priority)


def check_inputs(
    inputs: Mapping[str, NDArray[Any]], version: ModelVersion, limits: RequestLimits
) -> tuple[dict[str, Tensor], int]:
    """Check arrays by name against the signature; returns them with their number of rows."""
    for name, array in inputs.items():
        if array.ndim and array.shape[0] > limits.max_rows:
            accepted = f"1 to {limits.max_rows} rows a request"
            raise InvalidArgument(f"inputs[{name!r}].shape", f"{array.shape[0]} rows", accepted)
    read = version.read_inputs(inputs)
    return read, int(next(iter(read.values())).shape[0])


def check_draws(field: str, draws: int, limits: RequestLimits) -> int:
    """Check a number of draws that was asked for."""
    if not 1 <= draws <= limits.max_draws:
        raise InvalidArgument(field, draws, f"1 to {limits.max_draws}, or absent for the version's own")
    return draws


def _check_coverage(coverage: float | None, version: ModelVersion, calibration: Calibration | None) -> None:
    if coverage is None:
        return
    if not 0 < coverage < 1:
        raise InvalidArgument("coverage", coverage, "between 0 and 1, both excluded")
    if calibration is None or not calibration.conformal:
        label = f"{version.name} version {version.version}"
        accepted = f"none: {label} has no calibration with scores for it (dubito calibrate makes them)"
        raise InvalidArgument("coverage", coverage, accepted)


def _check_stream(stream: str, coverage: float | None, adapt: Adapt | None) -> None:
    if not stream:
        return
    if adapt is None:
        raise StateUnset("stream", repr(stream))
    if len(stream) > MAX_STREAM or not stream.isprintable():
        raise InvalidArgument("stream", repr(stream), f"at most {MAX_STREAM} printable characters")
    if coverage is None:
        raise InvalidArgument("stream", repr(stream), "this only with a coverage, which it adapts")


def _inside(coverage: float | None) -> float | None:
    """Return a coverage that conformal prediction knows; what is served at its ends is written without it."""
    return 0.5 if coverage in (0.0, 1.0) else coverage


def _check_work(plan: Plan, rows: int, version: ModelVersion, limits: RequestLimits) -> None:
    """Check what only shows once defaults are filled in: rows x draws, and the memory that an answer takes."""
    manifest = version.manifest
    work = rows * (plan.max_draws + (_LINEAR_DRAWS if plan.spec.estimator is Estimator.LINEARIZED else 0))
    if work > limits.max_work:
        given = f"{plan.max_draws} for {rows} rows, {work} rows x draws"
        raise InvalidArgument("max_draws", given, f"at most {limits.max_work} rows x draws a request")
    if plan.spec.raw_draws and rows * plan.max_draws * manifest.outputs * 8 > limits.max_message_bytes:
        given = f"true, {work} rows x draws of {manifest.outputs} outputs"
        raise InvalidArgument("raw_draws", given, f"answers of at most {limits.max_message_bytes} bytes")
    if plan.spec.joint and rows**2 * manifest.outputs * 8 > limits.max_message_bytes:
        given = f"true, for {rows} rows of {manifest.outputs} outputs"
        raise InvalidArgument("joint", given, f"answers of at most {limits.max_message_bytes} bytes")
    if _working_bytes(plan, rows, manifest, version.calibration) > _WORKING_BYTES:
        given = f"{plan.max_draws} for {rows} rows of {manifest.outputs} outputs"
        raise InvalidArgument("max_draws", given, "fewer draws or rows a request: too much to keep")


def _working_bytes(plan: Plan, rows: int, manifest: Manifest, calibration: Calibration | None) -> int:
    """Estimate what a request's draws take at most, in numbers of 8 bytes: `_PER_...` of each, as measured."""
    spec, groups = plan.spec, -(-plan.max_draws // plan.group_size)
    kept = _PER_DRAW if manifest.task is Task.REGRESSION or spec.keeps_draws else 0
    if manifest.task is Task.REGRESSION and calibration is not None and calibration.control_variate:
        kept += _PER_CONTROL
    if spec.joint:
        kept += _PER_FAN * (POINTS if manifest.integrated else manifest.fan_out)
    twice = 2 if spec.uncalibrated and calibration is not None else 1
    return (kept * plan.max_draws + _PER_GROUP * groups) * twice * rows * manifest.outputs * 8


def _ignored(question: Question, calibration: Calibration | None, inputs: Mapping[str, Tensor]) -> Iterable[str]:
    spec, manifest, engine = question.spec, question.version.manifest, question.version.engine
    if manifest.task is Task.REGRESSION:
        yield from manifest.warnings
    if question.version.fallback:
        yield question.version.fallback
    if manifest.task is Task.CLASSIFICATION and (question.interval_asked or spec.quantiles):
        yield "interval_level and quantiles have no effect: this is a classification"
    if spec.estimator is Estimator.LINEARIZED:
        if calibration is None or not calibration.linearized:
            why = "there is none" if calibration is None else "it did not find that it pays without bias"
            yield f"estimator linearized has no effect: the version's calibration has to allow it; {why}"
        elif spec.scope is MaskScope.ROW:
            yield "estimator linearized has no effect where each row has masks of its own"
        elif not engine.refiner.can_linearize(engine.program.symbols_of(inputs), manifest.outputs):
            yield "estimator linearized has no effect on inputs of this size: their gradients are too many to keep"
    if spec.uncalibrated and calibration is None:
        yield "uncalibrated has no effect: this version has no calibration"
