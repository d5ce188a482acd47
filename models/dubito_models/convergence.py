"""How many draws suffice: how far answers of few draws are off those of very many others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dubito_models.engine import Run
from dubito_models.package import ModelVersion
from dubito_models.predictive import Classification, Predictive, totals
from dubito_models.sampling import SamplingSpec
from dubito_models.stopping import ALL_DRAWS, Quantity, influence, standard_error

SEEDS = 8
ROUNDING = 1e-5  # of the scale, that float32 may leave
BEYOND = 4  # times the default draws are the most that are looked at

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Errors:
    """Root mean squares over rows, outputs and seeds, one for each number of draws.

    `found`: of the differences from a long reference. `promised`: of the standard errors that the same draws tell;
    None where they tell none.
    """

    found: tuple[float, ...]
    promised: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Convergence:
    """Monte Carlo errors of the mean and of the epistemic uncertainty by the number of `draws`.

    The latter is the mutual information, or a regression's epistemic deviation; `scale` is its own root mean square. A
    seed's reference are the longest runs of all other seeds, whose own variance is taken off.
    """

    rows: int
    seeds: int
    draws: tuple[int, ...]
    default_draws: int
    mean: Errors
    epistemic: Errors
    scale: float

    @property
    def exact(self) -> bool:
        """Whether draws leave nothing to chance, as where their only site is integrated in closed form."""
        return max(*self.mean.found, *self.epistemic.found) <= ROUNDING * self.scale


@dataclass(frozen=True, slots=True)
class _Look:
    """What one seed says after some groups of draws."""

    mean: Array  # (B, K)
    epistemic: Array  # (B, 1) or (B, K)
    mean_error: Array  # (B, K)
    epistemic_error: Array | None  # (B, 1)


def draws_at(default_draws: int, group_size: int) -> tuple[int, ...]:
    """Return numbers of draws: 1, 2, 4, ... groups, to at least `BEYOND` times the default."""
    groups = math.ceil(BEYOND * default_draws / group_size)
    return tuple(group_size << power for power in range(math.ceil(math.log2(groups)) + 1))


def converge(
    version: ModelVersion,
    inputs: Mapping[str, Tensor],
    *,
    seeds: int = SEEDS,
    advance: Callable[[int], None] | None = None,
) -> Convergence:
    """Measure on these rows (B, ...), by seeds after the version's own, what answers as they are served would miss.

    `advance` is told of every seed that is done, 1 at a time.
    """
    usual = version.engine.plan(SamplingSpec(stopping=ALL_DRAWS))
    draws = draws_at(usual.max_draws, usual.group_size)
    looks = []
    for number in range(1, seeds + 1):
        looks.append(_look(version, inputs, draws, (usual.seed + number) % 2**64))
        if advance is not None:
            advance(1)
    means = np.array([[look.mean for look in own] for own in looks])  # (R, L, B, K)
    epistemic = np.array([[look.epistemic for look in own] for own in looks])
    errors = np.array([[look.mean_error for look in own] for own in looks])
    told = [[look.epistemic_error for look in own if look.epistemic_error is not None] for own in looks]
    return Convergence(
        rows=means.shape[2],
        seeds=seeds,
        draws=draws,
        default_draws=usual.max_draws,
        mean=Errors(found_errors(means), _root_mean_squares(errors)),
        epistemic=Errors(found_errors(epistemic), _root_mean_squares(np.array(told)) if all(told) else None),
        scale=float(np.sqrt((epistemic[:, -1] ** 2).mean())),
    )


def found_errors(values: Array) -> tuple[float, ...]:
    """Return root mean squared errors, L, of estimates (R, L, ...) by R seeds and L ascending numbers of draws.

    Each seed is held to the mean of the other seeds' last estimates; what that errs itself is taken off, so that
    nothing is left where estimates only scatter as the reference does.
    """
    last = values[:, -1]
    seeds = len(values)
    reference = (last.sum(0) - last) / (seeds - 1)  # (R, ...): without the seed itself
    own = last.var(0, ddof=1).mean() / (seeds - 1)
    squares = ((values - reference[:, None]) ** 2).mean(axis=(0, *range(2, values.ndim)))
    return tuple(np.sqrt(np.maximum(squares - own, 0.0)).tolist())


def _root_mean_squares(errors: Array) -> tuple[float, ...]:
    return tuple(np.sqrt((errors**2).mean(axis=(0, *range(2, errors.ndim)))).tolist())


def _look(version: ModelVersion, inputs: Mapping[str, Tensor], draws: Sequence[int], seed: int) -> list[_Look]:
    """Draw once with a seed, and look after each number of draws."""
    engine = version.engine
    plan = engine.plan(SamplingSpec(max_draws=draws[-1], seed=seed, stopping=ALL_DRAWS, raw_draws=True))
    [run] = engine.start([(inputs, plan)], version.calibration)
    looks = []
    for count in draws:
        while run.next_draw < count:
            [run] = engine.advance([run], min(count - run.next_draw, draws[0] * 8))
        [answer] = engine.finish([run])
        looks.append(_told(version, run, answer))
    return looks


def _told(version: ModelVersion, run: Run, predictive: Predictive) -> _Look:
    answer = predictive.answer
    assert predictive.standard_error is not None
    assert run.moments is not None
    mean, _ = totals(run.moments)  # which the standard error is of, also where a calibration maps it
    if not isinstance(answer, Classification):
        assert answer.epistemic_variance is not None
        return _Look(mean, np.sqrt(answer.epistemic_variance), predictive.standard_error, None)
    assert answer.mutual_information is not None
    ratios = None if version.calibration is None else version.calibration.error_ratios
    error = standard_error(
        influence(Quantity.MUTUAL_INFORMATION, run.moments),
        run.moments.count,
        version.engine.masks.balances(run.plan.design),
        None if ratios is None else ratios.mutual_information,
    )
    return _Look(mean, answer.mutual_information[:, None], predictive.standard_error, error[:, None])
