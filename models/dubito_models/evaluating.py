"""A version judged on rows whose truth is known: scores, curves and examples, as one plain document."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from dubito_models.answering import ask
from dubito_models.calibration.calibration import fingerprint
from dubito_models.convergence import SEEDS, Convergence, converge
from dubito_models.curves import (
    Curve,
    Scatter,
    SetCoverage,
    count_pit,
    coverage_of,
    reliability_of,
    scatter_of,
    select_surest,
    set_coverage_of,
)
from dubito_models.doubtful import Example, most_doubtful
from dubito_models.errors import InvalidArgument
from dubito_models.heads import Task
from dubito_models.metrics import ReliabilityBins
from dubito_models.package import ModelVersion
from dubito_models.rows import Labelled
from dubito_models.sampling import SamplingSpec
from dubito_models.scorecard import Scorecard, measures_of, score_rows
from dubito_models.shifting import MOST_ROWS, ShiftCurve, follow_shifts, ladders, spaced
from dubito_models.verdict import Verdict, judge

CONVERGENCE_ROWS = 64
LEAST_ROWS = 2

Progress = Callable[[str, int, int], None]  # what is being done, how many steps of how many are


@dataclass(frozen=True, slots=True)
class Identity:
    """Which version was judged, how its draws were made, and on what."""

    model: str
    version: int
    task: Task
    data: str
    rows: int
    overlap: int
    draws: int
    seed: int
    design: str
    group_size: int
    sites: int
    calibration: str | None  # its address
    calibration_method: str | None
    calibration_parameters: Mapping[str, float]
    calibrated_on_these: bool  # the rows are those that the calibration was fitted to


@dataclass(frozen=True, slots=True)
class Assessment:
    """Everything that was found of a version on some rows; curves by path, charts' data ready to be drawn."""

    identity: Identity
    served: str  # the path whose uncertainties are shown
    card: Scorecard
    verdict: Verdict
    reliability: Mapping[str, ReliabilityBins]  # by path; none for a regression
    selection: tuple[Curve, ...]
    coverage: tuple[Curve, ...]
    pit: Mapping[str, tuple[int, ...]]  # by path: rows in tenths of 0 to 1; none for a classification
    uncertainty: Scatter | None
    examples: tuple[Example, ...]
    convergence: Convergence | None
    shifts: tuple[ShiftCurve, ...] = ()
    set_coverage: SetCoverage | None = None


def evaluate(
    version: ModelVersion,
    labelled: Labelled,
    data: str,
    *,
    shift: bool = False,
    convergence: bool = True,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Assessment:
    """Judge a version on rows; `data` says where they come from, `seed` is of resampling and of noise.

    Raises `InvalidArgument` for fewer than 2 rows.
    """
    if len(labelled) < LEAST_ROWS:
        raise InvalidArgument("data", f"{len(labelled)} rows", f"at least {LEAST_ROWS} rows")
    rows = len(labelled)
    answers = ask(version, labelled, _counted(progress, "answers", rows))
    cells = len(measures_of(answers)) * len(answers)
    card = score_rows(
        answers, labelled.targets, overlap=labelled.overlap, resamples=resamples, seed=seed,
        advance=_counted(progress, "scores", cells),
    )  # fmt: skip
    converged = None
    if convergence:
        some = spaced(labelled, CONVERGENCE_ROWS)
        tensors = version.read_inputs(some.inputs)
        converged = converge(version, tensors, advance=_counted(progress, "draws needed", SEEDS))
    shifts: tuple[ShiftCurve, ...] = ()
    if shift:
        steps = 1 + sum(len(ladder.amounts) for ladder in ladders(version.manifest.inputs))
        counted = _counted(progress, "shifts", steps * min(rows, MOST_ROWS))
        shifts = follow_shifts(version, labelled, seed=seed, advance=counted)
    served, identity = list(answers)[-1], identify(version, labelled, data)
    verdict = judge(card, rows, labelled.overlap)
    verdict = replace(verdict, warnings=(*_seen(identity, labelled), *verdict.warnings))
    return Assessment(
        identity=identity,
        served=served,
        card=card,
        verdict=verdict,
        reliability=reliability_of(answers, labelled.targets),
        selection=select_surest(answers, labelled.targets),
        coverage=coverage_of(answers, labelled.targets),
        pit=count_pit(answers),
        uncertainty=scatter_of(answers[served], labelled.targets),
        examples=most_doubtful(version, answers[served], labelled),
        convergence=converged,
        shifts=shifts,
        set_coverage=set_coverage_of(answers[served], labelled.targets),
    )


def _seen(identity: Identity, labelled: Labelled) -> Iterator[str]:
    if identity.calibrated_on_these:
        yield "The calibration was fitted to these very rows: what it gains here says little of others."
    if labelled.part in ("train", "validation"):
        yield "Training has seen these rows: others will be predicted less well."


def _counted(progress: Progress | None, what: str, steps: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        progress(what, done, steps)

    progress(what, 0, steps)
    return advance


def identify(version: ModelVersion, labelled: Labelled, data: str) -> Identity:
    """Say which version it is, how its draws are made, and whether the rows are those of its calibration."""
    plan, calibration = version.engine.plan(SamplingSpec(), calibration=version.calibration), version.calibration
    targets = labelled.targets
    single = targets.astype(np.float32)  # as training has the targets of a regression
    forms = (targets, single, single.astype(np.float64))
    same = {fingerprint({**labelled.inputs, "labels": some}) for some in forms}
    return Identity(
        model=version.name,
        version=version.version,
        task=version.manifest.task,
        data=data,
        rows=len(labelled),
        overlap=labelled.overlap,
        draws=plan.max_draws,
        seed=plan.seed,
        design=version.engine.masks.design_of(plan.design).value,
        group_size=plan.group_size,
        sites=len(version.manifest.sites),
        calibration=None if calibration is None else calibration.id,
        calibration_method=None if calibration is None else calibration.method,
        calibration_parameters={} if calibration is None else dict(calibration.parameters),
        calibrated_on_these=calibration is not None and calibration.data_fingerprint in same,
    )


def describe(identity: Identity) -> dict[str, str]:
    """Say what was judged, by what it is about."""
    design = identity.design
    if design != "independent":
        design += f", in groups of {identity.group_size}"
    rows = f"{identity.rows} of {identity.data}"
    if identity.overlap > 1:
        rows += f"; {identity.overlap} consecutive ones share targets, and are resampled together"
    return {
        "model": f"{identity.model} version {identity.version}, {identity.task.value}",
        "rows": rows,
        "draws": f"{identity.draws}, {design}, seed {identity.seed}",
        "dropout sites": str(identity.sites),
        "calibration": _describe_calibration(identity),
    }


def _describe_calibration(identity: Identity) -> str:
    if identity.calibration is None or identity.calibration_method is None:
        return "none"
    method, numbers = identity.calibration_method.replace("_", " "), identity.calibration_parameters
    named = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in numbers.items())
    if list(numbers) != [identity.calibration_method]:
        named = f"{method} ({named})" if named else method
    return f"{named}, {identity.calibration}"


def document(value: Any) -> Any:
    """Return what a document holds as JSON has it, without pictures; None for what is not finite."""
    if is_dataclass(value):
        names = [field.name for field in fields(value) if field.name != "picture"]
        return {name: document(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {key: document(each) for key, each in value.items()}
    if isinstance(value, tuple | list | np.ndarray):
        return [document(each) for each in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
