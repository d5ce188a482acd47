"""What a version costs and what its draws are worth: time by rows and draws, the prefix's share, draws needed.

Times are medians of whole requests, as the engine answers them in this process: checks, prefix, draws, moments,
calibration; no network. All sizes take turns, so that a machine that slows down slows them all.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dubito_models.errors import InvalidArgument
from dubito_models.heads import Task
from dubito_models.package import ModelVersion, make_rows
from dubito_models.predictive import Array, Classification, Predictive, Regression
from dubito_models.sampling import Estimator, Plan, SamplingSpec
from dubito_models.stopping import ALL_DRAWS, Stopping, StoppingRule
from dubito_models.thinning import Design

TARGETS: Mapping[Task, tuple[float, ...]] = {
    Task.CLASSIFICATION: (0.05, 0.02, 0.01, 0.005),  # in probability
    Task.REGRESSION: (0.2, 0.1, 0.05, 0.02),  # in medians of the epistemic standard deviation
}
LEAST_ROUNDS, MOST_ROUNDS = 3, 101
NEEDS_ROWS, NEEDS_GROUPS = 128, 32  # from which the draws needed are told
_PREFIX_SECONDS = 0.5  # for each number of rows
_LEAST_NEEDS_ROWS = 16

Clock = Callable[[], float]
Inputs = Mapping[str, NDArray[Any]]
Supply = Callable[[int], Inputs]


@dataclass(frozen=True, slots=True)
class Speed:
    """The median time of a request; None where it was left out, because it would take longer than there was."""

    rows: int
    draws: int  # taken: whole groups
    milliseconds: float | None
    own_seed_milliseconds: float | None  # under a seed whose masks are not kept
    repeats: int

    @property
    def rows_per_second(self) -> float | None:
        """Rows answered in a second, by one request after another."""
        return None if self.milliseconds is None else 1000.0 * self.rows / self.milliseconds


@dataclass(frozen=True, slots=True)
class PrefixShare:
    """Median times of what runs once a request, and of one draw of the rest."""

    rows: int
    prefix_milliseconds: float
    suffix_milliseconds: float

    @property
    def share(self) -> float:
        """The part of a single pass that comes before the first mask, 0 to 1."""
        return self.prefix_milliseconds / (self.prefix_milliseconds + self.suffix_milliseconds)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a calibration does to answers, and how a request is drawn that asks for nothing else."""

    method: str  # of the map; "identity" where none helped
    parameters: Mapping[str, float]
    stopping: Stopping
    estimator: Estimator
    control_variate: bool  # of a regression's variance


@dataclass(frozen=True, slots=True)
class Drawing:
    """How a version's draws are run."""

    way: str  # leading axis, vmapped or looped
    pass_draws: Mapping[int, int]  # draws that ride a pass, by rows
    precision: str
    design: str
    group_size: int
    sites: int
    balanced_sites: int
    mask_bytes: int  # of the default draws, at the packing example's sizes
    keeps_masks: bool  # of the default seed, for its default draws
    fan_out: int  # masks of the last site for each draw of the others
    integrated: bool  # the last site's masks are, in closed form
    calibration: Calibrated | None

    @property
    def stops(self) -> bool:
        """Whether a request that asks for nothing is ended by a rule, row by row."""
        return self.calibration is not None and self.calibration.stopping.rule is not StoppingRule.NONE


@dataclass(frozen=True, slots=True)
class Need:
    """How many draws bring the largest standard error of a row's means down to `target`.

    For the version's own design, and for independent draws; at the median row, and at nine rows of ten.
    """

    target: float
    median: int
    nine_tenths: int
    independent_median: int
    independent_nine_tenths: int


@dataclass(frozen=True, slots=True)
class Needs:
    """Draws needed, target by target, and what they were measured from."""

    rows: int
    draws: int
    scale: tuple[float, ...] | None  # K: the unit of a regression's targets, medians of the epistemic deviation
    default_error: tuple[float, float]  # by the default draws, in the same unit: median row, nine rows of ten
    needs: tuple[Need, ...]


@dataclass(frozen=True, slots=True)
class Bench:
    """Everything that was measured of a version."""

    model: str
    version: int
    task: Task
    threads: int
    default_draws: int  # as calibrated, else as packed; at most, where the calibration has a rule
    drawing: Drawing
    speeds: tuple[Speed, ...]
    prefixes: tuple[PrefixShare, ...]
    needs: Needs | None  # None: without rows of one's own


def measure(
    version: ModelVersion,
    rows: Sequence[int],
    draws: Sequence[int],
    *,
    data: Inputs | None = None,
    seconds: float = 20.0,
    clock: Clock = time.perf_counter,
) -> Bench:
    """Measure a version at these numbers of rows and draws, on rows of `data` or on made-up ones.

    `seconds`: what the requests may take, and about once more what is drawn to tell the draws needed.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise InvalidArgument("seconds", seconds, "a finite number > 0")
    supply = supply_rows(version, data)
    speeds = measure_speed(version, supply, rows, draws, seconds, clock)
    needs = None
    if data is not None:
        tensors = version.read_inputs(data)
        most = affordable_rows(speeds, 2 * NEEDS_GROUPS * version.engine.masks.group_size, seconds)
        needs = draws_needed(version, spaced_rows(tensors, most))
    some = {count: version.read_inputs(supply(count)) for count in sorted(set(rows))}
    return Bench(
        model=version.name,
        version=version.version,
        task=version.manifest.task,
        threads=torch.get_num_threads(),
        default_draws=usual_plan(version).max_draws,
        drawing=describe_drawing(version, some),
        speeds=speeds,
        prefixes=tuple(prefix_share(version, inputs, clock=clock) for inputs in some.values()),
        needs=needs,
    )


def usual_plan(version: ModelVersion) -> Plan:
    """Return how a request is drawn that asks for nothing."""
    return version.engine.plan(SamplingSpec(), calibration=version.calibration)


def supply_rows(version: ModelVersion, data: Inputs | None) -> Supply:
    """Return what gives inputs of any number of rows: those of `data` in turn, or made-up ones."""

    def supply(rows: int) -> Inputs:
        if data is None:
            return {name: value.numpy() for name, value in make_rows(version.manifest.inputs, rows).items()}
        return {name: value[np.arange(rows) % len(value)] for name, value in data.items()}

    return supply


# --- Time ---


def measure_speed(
    version: ModelVersion,
    supply: Supply,
    rows: Sequence[int],
    draws: Sequence[int],
    seconds: float = 20.0,
    clock: Clock = time.perf_counter,
) -> tuple[Speed, ...]:
    """Time requests of all these rows and draws, in turns, until the seconds are spent.

    All draws are made, whatever stopping rule the version is calibrated with. The smallest size is always timed, once
    after warming up; a larger one is left out where three rounds with it would take longer.
    """
    engine = version.engine
    taken = sorted({engine.plan(SamplingSpec(max_draws=count)).max_draws for count in draws})
    own_seed = (engine.defaults.seed + 1) % 2**64
    inputs = {count: supply(count) for count in sorted(set(rows))}
    cells = sorted(((count, many) for count in inputs for many in taken), key=lambda cell: (math.prod(cell), cell))
    start = clock()

    def time_one(cell: tuple[int, int], seed: int | None) -> float:
        begun = clock()
        version.predict(inputs[cell[0]], SamplingSpec(max_draws=cell[1], seed=seed, stopping=ALL_DRAWS))
        return clock() - begun

    found: dict[tuple[tuple[int, int], int | None], list[float]] = {}

    def take(cell: tuple[int, int]) -> float:
        both = [time_one(cell, seed) for seed in (None, own_seed)]
        for seed, once in zip((None, own_seed), both, strict=True):
            found.setdefault((cell, seed), []).append(once)
        return sum(both)

    chosen: list[tuple[int, int]] = []
    round_seconds = unit_seconds = 0.0
    for cell in cells:
        expected = unit_seconds * math.prod(cell)
        if chosen and clock() - start + 2 * expected + (LEAST_ROUNDS - 1) * (round_seconds + expected) > seconds:
            break
        for seed in (None, own_seed):
            time_one(cell, seed)  # warms up
        once = take(cell)
        round_seconds, unit_seconds = round_seconds + once, once / math.prod(cell)
        chosen.append(cell)
    rounds = 1
    while rounds < MOST_ROUNDS and clock() - start + round_seconds <= seconds:
        round_seconds = sum(map(take, chosen))
        rounds += 1

    def speed(cell: tuple[int, int]) -> Speed:
        if cell not in chosen:
            return Speed(*cell, None, None, 0)
        kept, own = (1000.0 * statistics.median(found[cell, seed]) for seed in (None, own_seed))
        return Speed(*cell, kept, own, rounds)

    return tuple(speed(cell) for cell in sorted(cells))


def prefix_share(
    version: ModelVersion,
    inputs: Mapping[str, Tensor],
    *,
    seconds: float = _PREFIX_SECONDS,
    clock: Clock = time.perf_counter,
) -> PrefixShare:
    """Time what runs before the first mask, and one draw of what comes after, in turns, on these rows (B, ...)."""
    engine = version.engine
    program, plan = engine.program, engine.plan(SamplingSpec())
    run = program.many if engine.vmaps and program.fan_out > 1 else program.loop  # as the engine runs one draw
    tensors = {name: value.to(program.device) for name, value in inputs.items()}
    before: list[float] = []
    after: list[float] = []
    with torch.inference_mode():
        boundary = program.prefix(tensors)
        masks = engine.masks.draws(boundary.symbols, plan.seed, plan.design, 0, 1)
        run(boundary, masks)
        start = clock()
        while len(before) < LEAST_ROUNDS or (len(before) < MOST_ROUNDS and clock() - start < seconds):
            _wait(program.device)
            begun = clock()
            boundary = program.prefix(tensors)
            _wait(program.device)
            middle = clock()
            run(boundary, masks)
            _wait(program.device)
            before.append(middle - begun)
            after.append(clock() - middle)
    return PrefixShare(boundary.rows, *(1000.0 * statistics.median(times) for times in (before, after)))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe_drawing(version: ModelVersion, inputs: Mapping[int, Mapping[str, Tensor]]) -> Drawing:
    """Say how draws are run; `inputs` by numbers of rows, to tell how many draws ride a pass."""
    engine, manifest, calibration = version.engine, version.manifest, version.calibration
    plan = usual_plan(version)
    runs = {rows: engine.start([(some, plan)], None)[0] for rows, some in inputs.items()}
    way = engine.program.way
    shapes = engine.program.mask_shapes(next(iter(runs.values())).boundary.symbols)
    *early, last = (math.prod(shape) for shape in shapes)
    mask_bytes = plan.max_draws * (sum(early) + last * (1 if manifest.integrated else manifest.fan_out))  # a byte each
    return Drawing(
        way=way if engine.vmaps else "looped",
        pass_draws={rows: engine.pass_size(run.boundary) if engine.vmaps else 1 for rows, run in runs.items()},
        precision=engine.program.precision.value,
        design=engine.masks.design_of(plan.design).value,
        group_size=plan.group_size,
        sites=len(engine.program.sites),
        balanced_sites=sum(engine.masks.balanced) if plan.design is Design.BALANCED else 0,
        mask_bytes=mask_bytes,
        keeps_masks=engine.masks.keeps(mask_bytes),
        fan_out=manifest.fan_out,
        integrated=manifest.integrated,
        calibration=None
        if calibration is None
        else Calibrated(
            calibration.method,
            calibration.parameters,
            calibration.stopping,
            calibration.estimator,
            calibration.control_variate,
        ),
    )


# --- Draws ---


def affordable_rows(speeds: Sequence[Speed], draws: int, seconds: float) -> int:
    """Return of how many rows so many draws take about these seconds at most, by the largest request timed."""
    timed = [(speed.rows * speed.draws, speed.milliseconds) for speed in speeds if speed.milliseconds is not None]
    work, milliseconds = max(timed)
    affordable = math.floor(seconds * work * 1000.0 / max(milliseconds * draws, 1e-9))
    return min(NEEDS_ROWS, max(_LEAST_NEEDS_ROWS, affordable))


def spaced_rows(inputs: Mapping[str, Tensor], most: int) -> dict[str, Tensor]:
    """Return at most so many rows, evenly spaced: a file may be sorted."""
    rows = len(next(iter(inputs.values())))
    picked = torch.from_numpy(np.linspace(0, rows - 1, min(rows, most)).round().astype(np.int64))
    return {name: value[picked] for name, value in inputs.items()}


def draws_needed(
    version: ModelVersion,
    inputs: Mapping[str, Tensor],
    targets: Sequence[float] | None = None,
    groups: int = NEEDS_GROUPS,
) -> Needs:
    """Tell from the answers to these rows (B, ...) how many draws would bring their means' errors to each target.

    A standard error falls as 1 / sqrt(draws), over whole groups under a balanced design too. `targets` are in
    probability; for a regression in medians, over rows, of each output's epistemic standard deviation.
    """
    task = version.manifest.task
    usual = usual_plan(version)
    draws = usual.group_size * groups
    answers = {
        design: version.predict(inputs, SamplingSpec(max_draws=draws, design=design, stopping=ALL_DRAWS))
        for design in {usual.design, Design.INDEPENDENT}
    }
    scale = _epistemic_scale(answers[usual.design].answer)
    own, independent = (_single_draw(answers[design], scale) for design in (usual.design, Design.INDEPENDENT))
    step = usual.group_size if usual.design is Design.BALANCED else 1

    def count(variances: Array, share: float, target: float, step: int) -> int:
        wanted = _quantile(variances, share) / target**2
        return max(step, 2, math.ceil(round(wanted / step, 6)) * step)  # one draw tells no error

    return Needs(
        rows=len(own),
        draws=draws,
        scale=None if scale is None else tuple(scale.tolist()),
        default_error=(
            math.sqrt(_quantile(own, 0.5) / usual.max_draws),
            math.sqrt(_quantile(own, 0.9) / usual.max_draws),
        ),
        needs=tuple(
            Need(
                target,
                count(own, 0.5, target, step),
                count(own, 0.9, target, step),
                count(independent, 0.5, target, 1),
                count(independent, 0.9, target, 1),
            )
            for target in (targets or TARGETS[task])
        ),
    )


def _epistemic_scale(answer: Classification | Regression) -> Array | None:
    """Return the median over rows of each output's epistemic standard deviation (K,), for a regression."""
    if isinstance(answer, Classification):
        return None
    assert answer.epistemic_variance is not None
    scale: Array = np.median(np.sqrt(answer.epistemic_variance), axis=0)
    return scale


def _single_draw(answer: Predictive, scale: Array | None) -> Array:
    """Return the squared standard error of each row's worst output (B,), times the draws: what one draw would have."""
    assert answer.standard_error is not None
    unit = 1.0 if scale is None else np.where(scale > 0, scale, 1.0)
    worst: Array = (answer.draws[:, None] * (answer.standard_error / unit) ** 2).max(-1)
    return worst


def _quantile(values: Array, share: float) -> float:
    return float(np.quantile(values, share, method="higher"))
