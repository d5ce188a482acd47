"""What a call asks, as a message: each value checked for what the wire can carry; the rest is for the server to say."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, SupportsIndex, TypedDict

from dubito_client.answers import Design, Estimator, MaskScope, Priority
from dubito_client.errors import refused
from dubito_client.stopping import Stopping
from dubito_protos import uncertainty_pb2 as pb

_DESIGNS: dict[str | None, pb.Design] = {
    None: pb.DESIGN_UNSPECIFIED,
    "balanced": pb.DESIGN_BALANCED,
    "independent": pb.DESIGN_INDEPENDENT,
}
_SCOPES: dict[str | None, pb.MaskScope] = {
    None: pb.MASK_SCOPE_UNSPECIFIED,
    "draw": pb.MASK_SCOPE_DRAW,
    "row": pb.MASK_SCOPE_ROW,
}
_ESTIMATORS: dict[str | None, pb.Estimator] = {
    None: pb.ESTIMATOR_UNSPECIFIED,
    "plain": pb.ESTIMATOR_PLAIN,
    "linearized": pb.ESTIMATOR_LINEARIZED,
}
_PRIORITIES: dict[str | None, pb.Priority] = {
    None: pb.PRIORITY_UNSPECIFIED,
    "high": pb.PRIORITY_HIGH,
    "normal": pb.PRIORITY_NORMAL,
    "low": pb.PRIORITY_LOW,
}
_RULES: dict[str | None, pb.StoppingRule] = {
    "none": pb.STOPPING_RULE_NONE,
    "tolerance": pb.STOPPING_RULE_TOLERANCE,
    "decision": pb.STOPPING_RULE_DECISION,
    "threshold": pb.STOPPING_RULE_THRESHOLD,
}
_QUANTITIES: dict[str | None, pb.StoppingQuantity] = {
    None: pb.STOPPING_QUANTITY_UNSPECIFIED,
    "mean": pb.STOPPING_QUANTITY_MEAN,
    "predictive_entropy": pb.STOPPING_QUANTITY_PREDICTIVE_ENTROPY,
    "mutual_information": pb.STOPPING_QUANTITY_MUTUAL_INFORMATION,
}
_UINT32, INT64, _UINT64 = (0, 2**32 - 1), (-(2**63), 2**63 - 1), (0, 2**64 - 1)


class Asked(TypedDict, total=False):
    """What `predict` takes by name, but for `timeout`."""

    version: int | None
    draws: int | None
    min_draws: int | None
    seed: int | None
    design: Design | None
    interval_level: float | None
    quantiles: Iterable[float]
    raw_draws: bool
    joint: bool
    uncalibrated: bool
    stopping: Stopping | None
    tolerance: float | None
    coverage: float | None
    stream: str
    mask_scope: MaskScope | None
    estimator: Estimator | None
    priority: Priority | None
    id: str


def prediction_request(
    model: str,
    *,
    version: int | None = None,
    draws: int | None = None,
    min_draws: int | None = None,
    seed: int | None = None,
    design: Design | None = None,
    interval_level: float | None = None,
    quantiles: Iterable[float] = (),
    raw_draws: bool = False,
    joint: bool = False,
    uncalibrated: bool = False,
    stopping: Stopping | None = None,
    tolerance: float | None = None,
    coverage: float | None = None,
    stream: str = "",
    mask_scope: MaskScope | None = None,
    estimator: Estimator | None = None,
    priority: Priority | None = None,
    id: str = "",  # noqa: A002 - the wire's own name
) -> pb.PredictRequest:
    """Return the request without its inputs."""
    if tolerance is not None:
        if stopping is not None:
            raise refused("tolerance", tolerance, "tolerance or stopping, not both")
        stopping = Stopping.tolerance(_reals("tolerance", [tolerance])[0])
    return pb.PredictRequest(
        model=text("model", model),
        version=whole("version", version, *INT64),
        sampling=pb.SamplingSpec(
            min_draws=whole("min_draws", min_draws, *_UINT32),
            max_draws=whole("draws", draws, *_UINT32),
            stopping=None if stopping is None else _stopping(stopping),
            seed=whole("seed", seed, *_UINT64),
            design=_choice("design", design, _DESIGNS),
            mask_scope=_choice("mask_scope", mask_scope, _SCOPES),
            estimator=_choice("estimator", estimator, _ESTIMATORS),
            interval_level=_real("interval_level", interval_level),
            quantiles=_reals("quantiles", quantiles),
            raw_draws=bool(raw_draws),
            joint=bool(joint),
        ),
        output=pb.OutputSpec(
            coverage=_real("coverage", coverage), uncalibrated=bool(uncalibrated), stream=text("stream", stream)
        ),
        id=text("id", id),
        priority=rank(priority),
    )


def rank(priority: Priority | None) -> pb.Priority:
    """Return a priority as the wire has it."""
    found: pb.Priority = _choice("priority", priority, _PRIORITIES)
    return found


def _stopping(rule: Stopping) -> pb.Stopping:
    if not isinstance(rule, Stopping):
        raise refused("stopping", repr(rule), "Stopping.tolerance(...), .decision(...), .threshold(...) or .none()")
    return pb.Stopping(
        rule=_choice("stopping.rule", rule.rule, _RULES),
        quantity=_choice("stopping.quantity", rule.quantity, _QUANTITIES),
        target=_real("stopping.target", rule.target),
        level=_real("stopping.level", rule.level),
    )


def whole(field: str, value: SupportsIndex | None, low: int, high: int) -> int | None:
    """Return a whole number that the wire's type can carry; whether it makes sense is for the server to say."""
    if value is None:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        raise refused(field, repr(value), "a whole number") from None
    if not low <= number <= high:
        raise refused(field, number, f"{low} to {high}")
    return number


def _real(field: str, value: float | None) -> float | None:
    return None if value is None else _reals(field, [value])[0]


def _reals(field: str, values: Iterable[float]) -> list[float]:
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        raise refused(field, repr(values), "numbers") from None


def text(field: str, value: str) -> str:
    """Return a text that the wire can carry."""
    try:
        value.encode()
    except (AttributeError, UnicodeEncodeError):
        raise refused(field, repr(value), "a text of valid characters") from None
    return value


def _choice(field: str, word: str | None, accepted: dict[str | None, Any]) -> Any:
    if word not in accepted:
        raise refused(field, repr(word), ", ".join(name for name in accepted if name))
    return accepted[word]
