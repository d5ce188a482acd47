"""The Monte Carlo path: start (prefix once), advance (draws for many requests at once), finish.

`predict` is the loop over them. Nothing here depends on who else is served: a run takes draws 0, 1, 2, ... of its
seed, and moments are kept per group, so an answer is the same alone or among strangers, to float rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dubito_models.calibration import Calibration
from dubito_models.errors import InvalidArgument
from dubito_models.heads import Decoded, Head, Task, decode
from dubito_models.precision import Precision
from dubito_models.predictive import (
    Array,
    Classification,
    Moments,
    Predictive,
    Regression,
    Spread,
    StopReason,
    Validity,
    classify,
    gather,
    join_answers,
    join_rows,
    joint_covariance,
    match_diagonal,
    merge,
    regress,
    split_rows,
    spread,
    take_rows,
    to_numpy,
)
from dubito_models.program import Boundary, StochasticProgram
from dubito_models.recording import Recorder
from dubito_models.refining import Refiner
from dubito_models.sampling import Estimator, Plan, SamplingSpec
from dubito_models.sites import SiteKind
from dubito_models.stopping import ALL_DRAWS, StoppingRule, count_looks, next_look, settled
from dubito_models.thinning import Design, Masks, MaskScope

PASS_BYTES = 64 << 20  # of the largest value of a pass on a CPU, at most, where nobody says otherwise
_PASS_SHARE = 64  # of a GPU's free memory: a pass has some such values at a time, and other versions want room too
_PATIENCE = 16  # times the default draws, at most, for a stopping rule whose caller sets no limit
_USUAL_BYTES = 2 << 20  # of the largest value of a pass on a CPU: about what the second cache level holds
_FEW_DRAWS = 64  # that may ride one pass, whatever their number
_ROW_MASKS = 1 << 22  # elements, at most, of masks that rows do not share, at a time
_KEPT_PLANS = 256  # callers that differ in what they ask are few, their requests many


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a request that have drawn, and why no more; `rows`: their numbers in it."""

    rows: NDArray[np.int64]
    boundary: Boundary
    moments: Moments
    plain: Moments | None  # without calibration, where asked for
    reason: StopReason
    groups: NDArray[np.int64] | None = None  # (B,): within which coverage holds, where it was calibrated by group


@dataclass(frozen=True, slots=True)
class Run:
    """One request inside the core; the rows that a stopping rule has settled stand aside."""

    plan: Plan
    boundary: Boundary  # of the rows that still draw
    calibration: Calibration | None
    active: NDArray[np.int64]  # their numbers in the request
    moments: Moments | None = None
    plain: Moments | None = None  # without calibration, where asked for
    next_draw: int = 0
    settled: tuple[Part, ...] = ()
    groups: NDArray[np.int64] | None = None  # of all rows of the request: see `Part`
    first_row: int = 0  # the number of its first row, where it is a part of a larger request: masks of rows go by it

    @property
    def rows(self) -> int:
        """The number of rows that still draw."""
        return self.boundary.rows

    @property
    def tile_key(self) -> tuple[object, ...]:
        """Runs of one version with equal keys can share a pass.

        Same seed, design, scope, calibration, place in the draws, and sizes but the rows; the last draws of a run,
        where they are fewer than a group, are shared only with as many.
        """
        calibration = None if self.calibration is None else self.calibration.id
        tail = min(wants(self), self.plan.group_size)
        return (*self.plan.thinning, self.next_draw, tail, calibration, self.boundary.sizes)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a version decided at packing for whoever asks for nothing else."""

    draws: int
    seed: int
    design: Design


class Engine:
    """One version's Monte Carlo path on one device. Not thread-safe: one thread drives it."""

    def __init__(
        self,
        program: StochasticProgram,
        masks: Masks,
        head: Head,
        defaults: Defaults,
        *,
        noise_variance: Array | None = None,
        pass_bytes: int = PASS_BYTES,
        vmapped: bool = True,
        recorder: Recorder | None = None,
    ) -> None:
        """Set up; `pass_bytes`: what the largest value of a pass may take, however many draws are asked.

        `recorder`: records passes that are made often, where there is a device that can.
        """
        self.program = program
        self.masks = masks
        self.head = head
        self.defaults = defaults
        self._noise_variance = noise_variance
        self._pass_bytes = pass_bytes
        self._timed: dict[int, int] = {}
        self._plans: dict[tuple[object, ...], Plan] = {}
        self.refiner = Refiner(program, masks, head)
        self.vmaps = vmapped
        self._recorder = recorder

    def plan(self, spec: SamplingSpec, affordable: int | None = None, calibration: Calibration | None = None) -> Plan:
        """Fill in what was calibrated, else the version's defaults; balanced draws are rounded up to whole groups.

        `affordable`: the most draws that a stopping rule may take where its caller sets no limit.
        """
        key = (spec, affordable, None if calibration is None else calibration.id)
        found = self._plans.get(key)
        if found is None:
            found = self._make_plan(spec, affordable, calibration)
            if len(self._plans) >= _KEPT_PLANS:
                self._plans.clear()
            self._plans[key] = found
        return found

    def _make_plan(self, spec: SamplingSpec, affordable: int | None, calibration: Calibration | None) -> Plan:
        design = spec.design or self.defaults.design
        g = self.masks.group_size if design is Design.BALANCED else 1
        if spec.scope is MaskScope.ROW:
            self._refuse_weights()
        calibrated = ALL_DRAWS if calibration is None or spec.joint else calibration.stopping
        stopping = calibrated if spec.stopping is None else spec.stopping
        stopping.check(self.head.task)
        usual, least = self.defaults.draws, 1
        if calibration is not None and stopping == calibration.stopping:
            usual, least = calibration.draws, calibration.min_draws
        elif stopping.rule is not StoppingRule.NONE:
            usual = max(usual, min(usual * _PATIENCE, affordable or usual * _PATIENCE))
        least = min(least, spec.max_draws or least) if spec.min_draws is None else spec.min_draws
        most = spec.max_draws or max(usual, least)
        estimator = spec.estimator or (Estimator.PLAIN if calibration is None else calibration.estimator)
        if estimator is Estimator.LINEARIZED and self.head.task is not Task.CLASSIFICATION:
            raise InvalidArgument("estimator", estimator, "plain, for a regression")
        return Plan(
            max_draws=-(-most // g) * g,
            min_draws=-(-least // g) * g,
            seed=self.defaults.seed if spec.seed is None else spec.seed,
            design=design,
            group_size=self.masks.group_size,
            spec=replace(spec, stopping=stopping, estimator=estimator),
        )

    def _refuse_weights(self) -> None:
        weights = [site.name for site in self.program.sites if site.kind is SiteKind.WEIGHT]
        if weights:
            given = f"row, where weights are dropped ({', '.join(weights)})"
            raise InvalidArgument("mask_scope", given, "draw: a row has no weights of its own")

    def start(
        self,
        requests: Sequence[tuple[Mapping[str, Tensor], Plan]],
        calibration: Calibration | None,
        first_rows: Sequence[int] | None = None,
    ) -> list[Run]:
        """Run the prefix once for several requests whose inputs have equal shapes but for the rows.

        `first_rows`: the numbers of their first rows, where some are parts of larger requests.
        """
        names = self.program.inputs
        with torch.inference_mode():
            joined = {name: self._send([inputs[name] for inputs, _ in requests]) for name in names}
            boundary = self.program.prefix(joined)
            parts = self.program.split(boundary, [inputs[names[0]].shape[0] for inputs, _ in requests])
        grouping = None if calibration is None else calibration.grouping
        firsts = first_rows or (0,) * len(requests)
        return [
            Run(plan, part, calibration, np.arange(part.rows),
                groups=None if grouping is None else grouping.of(inputs), first_row=first)
            for (inputs, plan), part, first in zip(requests, parts, firsts, strict=True)
        ]  # fmt: skip

    def _send(self, parts: Sequence[Tensor]) -> Tensor:
        """Put the rows of several requests on the device."""
        joined = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        if self.program.device.type == "cuda" and joined.device.type == "cpu":
            return joined.pin_memory().to(self.program.device, non_blocking=True)
        return joined.to(self.program.device)

    def advance(self, runs: Sequence[Run], draws: int) -> list[Run]:
        """Take the next `draws` draws of runs with one tile key, in one pass; whole groups, or the last ones."""
        plan, first = runs[0].plan, runs[0].next_draw
        with torch.inference_mode():
            boundary = self.program.join([run.boundary for run in runs])
            if plan.spec.scope is MaskScope.ROW:
                raw = self._passes_by_row(
                    boundary, np.concatenate([run.first_row + run.active for run in runs]), plan, first, draws
                )
            else:
                raw = self._passes(boundary, plan, first, draws)
            counts = _group_counts(first, draws, self.masks.group_size)
            parts = self._gather(decode(self.head, raw), counts, runs)
        moved = [
            replace(
                run,
                moments=moments if run.moments is None else merge(run.moments, moments),
                plain=plain if run.plain is None or plain is None else merge(run.plain, plain),
                next_draw=run.next_draw + draws,
            )
            for run, (moments, plain) in zip(runs, parts, strict=True)
        ]
        return [self._look(run) if run.plan.spec.stops else run for run in moved]

    def _look(self, run: Run) -> Run:
        """Let the rows stand aside that have enough draws, where the rule looks now."""
        groups, rest = divmod(run.next_draw, run.plan.group_size)
        if rest or groups < run.plan.first_look or next_look(groups - 1) != groups or run.moments is None:
            return run
        stopping, look = run.plan.stopping, count_looks(groups) - count_looks(run.plan.first_look - 1)
        ratios = None if run.calibration is None else run.calibration.error_ratios
        done = settled(stopping, run.moments, look, self.masks.balances(run.plan.design), ratios)
        if not done.any():
            return run
        aside, left = (torch.from_numpy(np.flatnonzero(which)) for which in (done, ~done))
        plain = run.plain
        part = Part(
            run.active[done],
            self.program.select(run.boundary, aside),
            take_rows(run.moments, aside),
            None if plain is None else take_rows(plain, aside),
            stopping.reason,
            None if run.groups is None else run.groups[run.active[done]],
        )
        return replace(
            run,
            boundary=self.program.select(run.boundary, left),
            active=run.active[~done],
            moments=take_rows(run.moments, left),
            plain=None if plain is None else take_rows(plain, left),
            settled=(*run.settled, part),
        )

    def _gather(
        self, decoded: Decoded, counts: Sequence[int], runs: Sequence[Run]
    ) -> list[tuple[Moments, Moments | None]]:
        """Sum up all rows at once, calibrated and where asked for plain; then split them by run."""
        rows = [run.rows for run in runs]
        calibration = runs[0].calibration
        keep = decoded.mean is not None or any(run.plan.spec.keeps_draws for run in runs)
        joint = any(run.plan.spec.joint for run in runs)
        plain: Sequence[Moments | None] = [None] * len(runs)
        if calibration is not None and any(run.plan.spec.uncalibrated for run in runs):
            plain = split_rows(gather(decoded, counts, keep, joint=joint), rows)
            plain = [part if run.plan.spec.uncalibrated else None for part, run in zip(plain, runs, strict=True)]
        calibrated = decoded if calibration is None else calibration.apply(decoded)
        return list(zip(split_rows(gather(calibrated, counts, keep, joint=joint), rows), plain, strict=True))

    def pass_size(self, boundary: Boundary) -> int:
        """Return how many draws ride one pass: of what was timed, that of the nearest number of rows below."""
        usual = _USUAL_BYTES if self.program.device.type == "cpu" else self._pass_bytes
        timed = [rows for rows in self._timed if rows <= boundary.rows]
        most = min(self._timed[max(timed)] if timed else usual, self._pass_bytes)
        return max(1, most // max(1, self.program.bytes_per_draw(boundary.symbols)))

    def possible_pass_sizes(self, boundary: Boundary) -> list[int]:
        """Return numbers of draws a pass that are worth timing: 1, and by how much the largest value of it takes."""
        one = max(1, self.program.bytes_per_draw(boundary.symbols))
        shares = [self._pass_bytes >> shift for shift in range(8)]
        return sorted({1, *(max(1, share // one) for share in shares)}) if self.vmaps else [1]

    def use_pass_bytes(self, found: Mapping[int, int]) -> None:
        """Let passes of so many rows or more take so many bytes for their largest value; {}: the usual for all."""
        self._timed = dict(found)

    @property
    def records(self) -> bool:
        """Whether passes that are made often are recorded."""
        return self._recorder is not None

    def run_passes(self, run: Run, draws: int, size: int) -> None:
        """Make a run's first draws, so many a pass, to their end, and forget them: to take the time."""
        with torch.inference_mode():
            self._passes(run.boundary, run.plan, 0, draws, size)
        if self._recorder is not None:  # a device that records is left to itself once a pass is launched
            self._recorder.wait()

    def _passes(self, boundary: Boundary, plan: Plan, first: int, draws: int, size: int | None = None) -> Tensor:
        """Return raw predictions (draws, N, ...), `size` draws a pass."""
        chunk = size or self.pass_size(boundary)
        if not size and draws > _FEW_DRAWS:  # a share of what all at once would take, even where that fits a cache
            chunk = min(chunk, max(_FEW_DRAWS, draws // 8))
        parts = []
        for start in range(first, first + draws, chunk):
            count = min(chunk, first + draws - start)
            masks = self.masks.draws(boundary.symbols, plan.seed, plan.design, start, count)
            run = self.program.many if self.vmaps and (count > 1 or self.program.fan_out > 1) else self.program.loop
            recorder = self._recorder
            parts.append(run(boundary, masks) if recorder is None else recorder.run(run, boundary, masks))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _passes_by_row(
        self, boundary: Boundary, numbers: NDArray[np.int64], plan: Plan, first: int, draws: int
    ) -> Tensor:
        """Do the same with masks of its own for each row, by their numbers (N,); rows in blocks, draws by groups.

        A group's masks are made at once, for no more rows than its draws of them may ride one pass; where those of a
        single row may not, they go by fewer.
        """
        g = plan.group_size
        shapes = self.program.mask_shapes(boundary.symbols)
        per_row = g * max(sum(math.prod(shape) for shape in shapes), 1)
        one = max(1, self.program.bytes_per_draw(boundary.symbols, by_row=True) // boundary.rows)
        most = max(1, self._pass_bytes // one)  # rows x draws
        size = max(1, min(most // g, _ROW_MASKS // per_row))
        parts = np.array_split(numbers, -(-len(numbers) // size))
        run = self.program.many_by_row if self.vmaps else self.program.loop_by_row
        blocks = []
        for part, block in zip(self.program.split(boundary, [len(part) for part in parts]), parts, strict=True):
            rows, found = torch.from_numpy(block), []
            for start in range(first, first + draws, g):
                count = min(g, first + draws - start)
                masks = self.masks.draws(part.symbols, plan.seed, plan.design, start, count, rows)
                passes = [torch.split(mask, min(most, count) * (len(mask) // count)) for mask in masks]
                found += [run(part, some) for some in zip(*passes, strict=True)]
            blocks.append(torch.cat(found))
        return torch.cat(blocks, 1)

    def finish(self, runs: Sequence[Run], reason: StopReason = StopReason.MAX_DRAWS) -> list[Predictive]:
        """End runs that have drawn at least once as answers; `reason`: why those rows end that no rule has settled.

        Rows of which a draw is not finite have answers that are not finite.
        """
        pieces: list[tuple[int, Part]] = []
        for number, run in enumerate(runs):
            if run.moments is None:
                raise InvalidArgument("run", "no draws", "a run that was advanced")
            pieces += [(number, part) for part in run.settled]
            if run.rows or not run.settled:
                groups = None if run.groups is None else run.groups[run.active]
                pieces.append((number, Part(run.active, run.boundary, run.moments, run.plain, reason, groups)))
        alike: dict[tuple[object, ...], list[tuple[int, Part]]] = {}
        for number, part in pieces:
            run = runs[number]
            key = (part.moments.count, run.plan, run.calibration and run.calibration.id, part.plain is None)
            alike.setdefault((*key, part.boundary.sizes, part.reason), []).append((number, part))
        answers: list[list[tuple[Part, Predictive]]] = [[] for _ in runs]
        with np.errstate(over="ignore", invalid="ignore"):  # of rows whose draws are not finite
            for group in alike.values():
                found = self._finish(runs[group[0][0]], [part for _, part in group])
                for (number, part), answer in zip(group, found, strict=True):
                    answers[number].append((part, answer))
        return [join_answers([answer for _, answer in own], [part.rows for part, _ in own]) for own in answers]

    def _finish(self, run: Run, parts: Sequence[Part]) -> Iterator[Predictive]:
        """End parts of runs like this one, with equal draws, together: numpy's cost is per call, not per row."""
        plan, calibration, reason = run.plan, run.calibration, parts[0].reason
        moments = join_rows([part.moments for part in parts])
        plain = [part.plain for part in parts if part.plain is not None]
        whole_plain = join_rows(plain) if plain else None
        balanced = self.masks.balances(plan.design)
        ratios = None if calibration is None else calibration.error_ratios
        scatter = spread(moments, balanced, None if ratios is None else ratios.mean)
        drawn = moments.draws
        if calibration is not None and calibration.control_variate and plan.spec.scope is MaskScope.DRAW:
            boundary = self.program.join([part.boundary for part in parts])
            moments, scatter = self.refiner.control(boundary, moments, scatter, plan.seed, plan.design)
        answer = self._end(moments, scatter, plan.spec, calibration)
        error = scatter.standard_error
        estimator = self._estimator(plan.spec, calibration, parts[0].boundary, moments)
        validity = _validity(run, reason, estimator, self.program.precision)
        if calibration is not None and estimator is Estimator.LINEARIZED and moments.total > 1:
            boundary = self.program.join([part.boundary for part in parts])
            answer, error = self.refiner.linearize(boundary, moments, plan.seed, plan.design, calibration)
        abstain = None
        if calibration is not None:
            groups = [part.groups for part in parts if part.groups is not None]
            within = np.concatenate(groups) if groups else None
            answer, abstain = calibration.finish(
                answer, plan.spec.coverage, len(moments.count), within, exact=validity is Validity.EXACT
            )
        whole = Predictive(
            answer=answer,
            uncalibrated=self._end(whole_plain, spread(whole_plain, balanced), plan.spec) if whole_plain else None,
            draws=np.full(moments.mean.shape[1], moments.total, dtype=np.int64),
            standard_error=error,
            stop_reason=(reason,) * moments.mean.shape[1],
            seed=plan.seed,
            design=self.masks.design_of(plan.design).value,
            group_size=self.masks.group_size,
            scope=plan.spec.scope.value,
            estimator=estimator.value,
            calibration_id="" if calibration is None else calibration.id,
            calibration_validity=validity,
            coverage=plan.spec.coverage,
            abstain=abstain,
            raw_draws=to_numpy(drawn) if plan.spec.raw_draws and drawn is not None else None,
            joint_covariance=None,
        )
        end = 0
        for part in parts:
            start, end = end, end + len(part.rows)
            own = whole.rows(start, end)
            joint = joint_covariance(part.moments, balanced) if plan.spec.joint else None
            yield own if joint is None else replace(own, joint_covariance=match_diagonal(joint, own.answer))

    def _estimator(
        self, spec: SamplingSpec, calibration: Calibration | None, boundary: Boundary, moments: Moments
    ) -> Estimator:
        """Return what is used of what was asked: linear logits where a calibration found that they serve."""
        serves = calibration is not None and calibration.linearized and spec.scope is MaskScope.DRAW
        if serves and self.refiner.can_linearize(boundary.symbols, moments.mean.shape[-1]):
            return spec.estimator or Estimator.PLAIN
        return Estimator.PLAIN

    def _end(
        self, moments: Moments, scatter: Spread, spec: SamplingSpec, calibration: Calibration | None = None
    ) -> Classification | Regression:
        if self.head.task is Task.CLASSIFICATION:
            return classify(moments, scatter)
        noise = self._noise_variance
        if calibration is None:
            return regress(moments, scatter, noise, spec.interval_level, spec.quantiles)
        return calibration.regress(moments, scatter, noise, spec)

    def predict(
        self,
        inputs: Mapping[str, Tensor],
        spec: SamplingSpec | None = None,
        calibration: Calibration | None = None,
    ) -> Predictive:
        """Answer one request: `inputs` by name, each (B, ...)."""
        plan = self.plan(spec or SamplingSpec(), calibration=calibration)
        [run] = self.start([(inputs, plan)], calibration)
        while left := wants(run):
            [run] = self.advance([run], min(left, self._most_draws(run)))
        [answer] = self.finish([run])
        return answer

    def _most_draws(self, run: Run) -> int:
        """Return how many draws to take at a time, whole groups, so that what they give stays within bounds."""
        g = run.plan.group_size
        return max(1, self._pass_bytes // max(1, self.program.bytes_per_draw(run.boundary.symbols)) // g) * g

    def draws(self, inputs: Mapping[str, Tensor], spec: SamplingSpec | None = None) -> Decoded:
        """Return what every draw says of every row, uncalibrated, on the CPU: arrays (S, B, K).

        The variance of a regression is the noise that the network predicts, or the constant that the version knows.
        """
        plan = self.plan(spec or SamplingSpec())
        [run] = self.start([(inputs, plan)], None)
        with torch.inference_mode():
            found = decode(self.head, self._passes(run.boundary, plan, 0, plan.max_draws).cpu())
        if found.mean is not None and found.variance is None and self._noise_variance is not None:
            return replace(found, variance=torch.as_tensor(self._noise_variance).expand_as(found.mean))
        return found


def wants(run: Run, *, watched: bool = False) -> int:
    """Return how many draws a run still wants, to the next look of its rule or of whoever watches; 0: it has enough."""
    if run.settled and not run.rows:
        return 0
    stepwise = watched or run.plan.spec.stops
    return (run.plan.look_after(run.next_draw, watched=watched) if stepwise else run.plan.max_draws) - run.next_draw


def _validity(run: Run, reason: StopReason, estimator: Estimator, precision: Precision) -> Validity:
    """Tell whether rows that end for this reason were drawn as those that their calibration was fitted to."""
    plan, calibration = run.plan, run.calibration
    if calibration is None:
        return Validity.NONE
    ended = (StopReason.MAX_DRAWS, plan.stopping.reason) if plan.spec.stops else (StopReason.MAX_DRAWS,)
    least = plan.min_draws if plan.spec.stops else calibration.min_draws  # which only a rule heeds
    drawn = plan.max_draws, least, plan.seed, plan.design.value, plan.stopping, estimator
    alike = drawn == calibration.drawn and plan.spec.scope is MaskScope.DRAW and precision == calibration.precision
    return Validity.EXACT if alike and reason in ended else Validity.APPROXIMATE


def _group_counts(first: int, draws: int, group_size: int) -> list[int]:
    if first % group_size:
        raise InvalidArgument("advance", f"draws from {first}", f"whole groups of {group_size}")
    whole, rest = divmod(draws, group_size)
    return [group_size] * whole + [rest] * (rest > 0)


def choose_default_draws(group_size: int) -> int:
    """Return the default number of draws: at least 32, at least four groups (for a standard error between groups)."""
    return group_size * max(4, math.ceil(32 / group_size))


def choose_pass_bytes(device: torch.device) -> int:
    """Return what the largest value of a pass may take on a device: 64 MiB, of a GPU a 64th of what is free now."""
    return torch.cuda.mem_get_info(device)[0] // _PASS_SHARE if device.type == "cuda" else PASS_BYTES
