"""A calibration in words."""

from __future__ import annotations

from dubito_models.calibration.calibration import Calibration
from dubito_models.calibration.selective import Selective
from dubito_models.stopping import Stopping, StoppingRule


def describe(calibration: Calibration) -> dict[str, str]:
    """Say what a calibration does, and to what it was fitted, by what it is about."""
    said = {
        "map": describe_map(calibration),
        "draws": _describe_draws(calibration),
        "coverage": _describe_coverage(calibration),
    }
    if calibration.selective is not None:
        said["abstains"] = _describe_threshold(calibration.selective, calibration.score_rows)
    return said


def describe_map(calibration: Calibration) -> str:
    """Say what is done to the predictive distribution, and by how many rows that was found."""
    if calibration.map is None:
        why = f"nothing improved {calibration.rows} rows" if calibration.rows else "no rows were to spare for one"
        return f"none: {why}"
    named = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in calibration.parameters.items())
    return f"{calibration.method.replace('_', ' ')}{f' ({named})' if named else ''}, of {calibration.rows} rows"


def _describe_draws(calibration: Calibration) -> str:
    draws = f"{calibration.draws}, seed {calibration.seed}, {calibration.design}, {calibration.estimator.value}"
    if calibration.stopping.rule is StoppingRule.NONE:
        return draws
    return f"at most {draws}; stopped by {describe_rule(calibration.stopping)}"


def describe_rule(stopping: Stopping) -> str:
    """Say what a rule is, and what it looks at."""
    at = "" if stopping.target is None else f" of {stopping.quantity.value.replace('_', ' ')} at {stopping.target:g}"
    return f"{stopping.rule.value}{at}"


def _describe_coverage(calibration: Calibration) -> str:
    if not calibration.conformal:
        return "none"
    conformal = calibration.conformal[-1].conformal
    within = {"none": "", "class": ", within each class"}.get(conformal.condition)
    if within is None:
        within = f", within each {calibration.grouping.name}" if calibration.grouping else ", within each group"
    return f"{conformal.method} scores of {calibration.score_rows} rows{within}"


def _describe_threshold(selective: Selective, rows: int) -> str:
    promise = f"at most {selective.risk:.3g} wrong, with confidence {1 - selective.delta:.3g}"
    if not selective.accepted:
        return f"always: of {rows} rows no share could be promised to have {promise}"
    name = selective.quantity.replace("_", " ")
    return f"above {name} {selective.threshold:.4g}; of the {selective.accepted:.1%} below it, {promise}"
