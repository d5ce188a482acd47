"""What ways to get more from draws gain for one version: measured when it is calibrated, and written down there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from dubito_models.calibration import Calibration
from dubito_models.engine import Engine
from dubito_models.errors import UnsupportedNetwork
from dubito_models.heads import Task
from dubito_models.linearized import judge
from dubito_models.predictive import Moments, classify, gather, spread, take_rows, to_numpy
from dubito_models.sampling import SamplingSpec
from dubito_models.stopping import measure_error_ratios
from dubito_models.thinning import Design
from dubito_models.variates import measure_gain

_RATIO_ROWS, _RATIO_GROUPS = 128, 32  # by which gains are measured
_JUDGED_ROWS = 32  # by which linear logits are judged
_WORTH = 3.0  # that control variates have to gain: they cost up to 1.7 times the time


def measure_gains(engine: Engine, inputs: Mapping[str, Tensor], calibration: Calibration) -> Calibration:
    """Measure on the first rows of `inputs`, (B, ...), what balance gains, and whether control variates do.

    Returns the calibration with what was found.
    """
    g = engine.masks.group_size
    some = {name: value[:_RATIO_ROWS] for name, value in inputs.items()}
    drawn = engine.draws(some, SamplingSpec(max_draws=g * _RATIO_GROUPS, design=Design.BALANCED))
    found = calibration.apply(drawn)
    moments = gather(found, [g] * _RATIO_GROUPS, keep_draws=True)
    balances = any(engine.masks.balanced)
    ratios = measure_error_ratios(moments, engine.head.task) if balances else None
    pays = engine.head.task is Task.REGRESSION and _measure_control(engine, some, moments) >= _WORTH
    linear = engine.head.task is Task.CLASSIFICATION and _judge_linear(engine, some, moments, calibration)
    return replace(calibration, error_ratios=ratios, control_variate=pays, linearized=linear)


def _judge_linear(engine: Engine, inputs: Mapping[str, Tensor], moments: Moments, calibration: Calibration) -> bool:
    """Tell whether linear logits gain enough, and do no harm."""
    plan = engine.plan(SamplingSpec(max_draws=moments.total, design=Design.BALANCED))
    [run] = engine.start([(inputs, plan)], None)
    few = min(_JUDGED_ROWS, run.rows)
    boundary = engine.program.select(run.boundary, torch.arange(few))
    own = take_rows(moments, torch.arange(few))
    try:
        levels = engine.refiner.levels(boundary, own, plan.seed, plan.design, calibration)
    except UnsupportedNetwork:  # no gradient
        return False
    balanced = any(engine.masks.balanced)
    known = classify(own, spread(own, balanced)).mutual_information
    return levels is not None and known is not None and judge(levels, balanced, known).enough


def _measure_control(engine: Engine, inputs: Mapping[str, Tensor], moments: Moments) -> float:
    """Return by what control variates divide the squared error of the variance."""
    plan = engine.plan(SamplingSpec(max_draws=moments.total, design=Design.BALANCED))
    [run] = engine.start([(inputs, plan)], None)
    assert moments.draws is not None
    outputs = moments.draws.shape[-1]
    try:
        found = engine.refiner.controls(run.boundary, moments.total, outputs, plan.seed, plan.design)
    except UnsupportedNetwork:  # no gradient
        return 1.0
    if found is None:
        return 1.0
    within = None if moments.within is None else to_numpy(moments.variances)  # a constant noise more does no harm
    return measure_gain(to_numpy(moments.draws), to_numpy(found[0]), within)
