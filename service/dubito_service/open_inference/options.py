"""The parameters of a request: what a caller may ask beside its inputs, in whatever form its client can send it.

Older clients cannot send every kind of number, so that each is taken as a text too. Names are those of dubito's own
protocol; what this server does not know is refused, lest a slip of the pen pass for a default.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias, TypeVar

from dubito_models.errors import InvalidArgument
from dubito_models.sampling import MAX_SEED, Estimator, SamplingSpec
from dubito_models.stopping import Quantity, Stopping, StoppingRule
from dubito_models.thinning import Design, MaskScope
from dubito_service.asking import MAX_QUANTILES, RequestLimits, check_draws
from dubito_service.scheduling.scheduler import Priority

Value: TypeAlias = bool | int | float | str
E = TypeVar("E", bound=StrEnum)

# Of every request. Timeout: microseconds, 0 for none.
SCHEDULING = ("priority", "timeout")
SAMPLING = (
    "draws", "min_draws", "seed", "tolerance", "stopping_rule", "stopping_quantity", "stopping_target",
    "stopping_level", "design", "mask_scope", "estimator", "interval_level", "quantiles", "coverage", "stream",
    "raw_draws", "joint", "uncalibrated", "refine",
)  # fmt: skip
# What clients add to requests by themselves, of which nothing here depends.
UNASKED = frozenset(
    (
        "triton_enable_empty_final_response", "binary_data", "binary_data_output", "binary_data_size", "content_type",
        "headers",
    )
)  # fmt: skip
PRIORITIES = (Priority.NORMAL, Priority.HIGH, Priority.NORMAL, Priority.LOW)  # by number: 0 is the default, 1 highest

# Where a field of a question stands among the parameters.
_NAMES = {
    "max_draws": "draws",
    "stopping.rule": "stopping_rule",
    "stopping.quantity": "stopping_quantity",
    "stopping.target": "stopping_target",
    "stopping.level": "stopping_level",
}
_WHOLE = re.compile(r"[+-]?\d{1,20}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Options:
    """What parameters ask of a request. `timeout`: seconds from its arrival; `refine`: answers on the way too."""

    priority: Priority = Priority.NORMAL
    timeout: float | None = None
    spec: SamplingSpec = field(default_factory=SamplingSpec)
    interval_asked: bool = False
    coverage: float | None = None
    stream: str = ""
    refine: bool = False


def field_of(name: str, parameters: Iterable[str] = ()) -> str:
    """Return where a field of a question stands in a request with these parameters."""
    if name.startswith(("inputs", "outputs", "raw_input_contents", "model_", "parameters")):
        return name
    if name == "stopping.target" and "tolerance" in parameters:
        return "parameters.tolerance"
    return f"parameters.{_NAMES.get(name, name)}"


def read_options(parameters: Mapping[str, Value], limits: RequestLimits) -> Options:
    """Read the parameters of a Monte Carlo request; raises `InvalidArgument` with the fields of a question."""
    _check_names(parameters, (*SAMPLING, *SCHEDULING))
    interval = _number(parameters, "interval_level")
    return Options(
        priority=_priority(parameters),
        timeout=_timeout(parameters),
        spec=SamplingSpec(
            max_draws=_draws(parameters, "draws", limits),
            min_draws=_draws(parameters, "min_draws", limits),
            seed=_seed(parameters),
            design=_choice(parameters, "design", (Design.BALANCED, Design.INDEPENDENT)),
            scope=_choice(parameters, "mask_scope", tuple(MaskScope)) or MaskScope.DRAW,
            estimator=_choice(parameters, "estimator", tuple(Estimator)),
            stopping=_stopping(parameters),
            interval_level=0.9 if interval is None else interval,
            quantiles=_quantiles(parameters),
            raw_draws=_flag(parameters, "raw_draws"),
            joint=_flag(parameters, "joint"),
            uncalibrated=_flag(parameters, "uncalibrated"),
        ),
        interval_asked=interval is not None,
        coverage=_number(parameters, "coverage"),
        stream=_text(parameters, "stream"),
        refine=_flag(parameters, "refine"),
    )


def read_standard_options(parameters: Mapping[str, Value]) -> Options:
    """Read the parameters of a request of the standard path, which takes no draws."""
    _check_names(parameters, SCHEDULING)
    return Options(priority=_priority(parameters), timeout=_timeout(parameters))


def _check_names(parameters: Mapping[str, Value], accepted: Iterable[str]) -> None:
    for name in parameters:
        if name.startswith("sequence_"):
            raise InvalidArgument(
                name, repr(parameters[name]), "none: requests are independent, there are no sequences"
            )
        if name not in accepted and name not in UNASKED:
            raise InvalidArgument(name[:128], "a parameter of this name", ", ".join(accepted))


def _whole(parameters: Mapping[str, Value], name: str, accepted: str) -> int | None:
    """Read a whole number, None where it is absent."""
    value = parameters.get(name)
    if value is None:
        return None
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgument(name, _shown(value), accepted)
    return value


def _number(parameters: Mapping[str, Value], name: str) -> float | None:
    """Read a number, None where it is absent; what range it must have, the question says."""
    value = parameters.get(name)
    if value is None:
        return None
    if isinstance(value, bool):
        raise InvalidArgument(name, _shown(value), "a number")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise InvalidArgument(name, _shown(value), "a number") from None


def _flag(parameters: Mapping[str, Value], name: str) -> bool:
    value = parameters.get(name, False)
    word = value.strip().lower() if isinstance(value, str) else value
    if word in ("true", "1", 1, True):
        return True
    if word in ("false", "0", 0, False):
        return False
    raise InvalidArgument(name, _shown(value), "true or false")


def _text(parameters: Mapping[str, Value], name: str) -> str:
    value = parameters.get(name, "")
    if not isinstance(value, str):
        raise InvalidArgument(name, _shown(value), "a text")
    return value


def _choice(parameters: Mapping[str, Value], name: str, accepted: tuple[E, ...]) -> E | None:
    value = parameters.get(name)
    if value is None:
        return None
    for each in accepted:
        if isinstance(value, str) and value.lower() == each.value:
            return each
    raise InvalidArgument(name, _shown(value), ", ".join(accepted))


def _draws(parameters: Mapping[str, Value], name: str, limits: RequestLimits) -> int | None:
    accepted = f"1 to {limits.max_draws}, or absent for the version's own"
    draws = _whole(parameters, name, accepted)
    return None if draws is None else check_draws(name, draws, limits)


def _seed(parameters: Mapping[str, Value]) -> int | None:
    accepted = f"0..{MAX_SEED}"
    seed = _whole(parameters, "seed", accepted)
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise InvalidArgument("seed", seed, accepted)
    return seed


def _quantiles(parameters: Mapping[str, Value]) -> tuple[float, ...]:
    """Read quantiles, "0.05, 0.5, 0.95", or the one that is a number."""
    value = parameters.get("quantiles", "")
    if not isinstance(value, str):
        found = _number(parameters, "quantiles")
        return () if found is None else (found,)
    parts = value.split(",", MAX_QUANTILES) if value.strip() else []
    if len(parts) > MAX_QUANTILES:
        raise InvalidArgument("quantiles", f"more than {MAX_QUANTILES} of them", f"at most {MAX_QUANTILES}")
    try:
        return tuple(float(part) for part in parts)
    except ValueError:
        raise InvalidArgument("quantiles", _shown(value), "numbers with commas between, as 0.05,0.5,0.95") from None


def _stopping(parameters: Mapping[str, Value]) -> Stopping | None:
    """Read a rule; None, as calibrated, where neither it nor a target is given."""
    rule = _choice(parameters, "stopping_rule", tuple(StoppingRule))
    target, tolerance = _number(parameters, "stopping_target"), _number(parameters, "tolerance")
    if tolerance is not None:
        if rule not in (None, StoppingRule.TOLERANCE) or target is not None:
            raise InvalidArgument("tolerance", tolerance, "this alone, or stopping_rule with stopping_target")
        target = tolerance
    quantity = _choice(parameters, "stopping_quantity", tuple(Quantity)) or Quantity.MEAN
    level = _number(parameters, "stopping_level")
    if rule is None and target is None:
        return None
    rule = StoppingRule.TOLERANCE if rule is None else rule
    return Stopping(rule=rule, quantity=quantity, target=target, level=0.95 if level is None else level)


def _priority(parameters: Mapping[str, Value]) -> Priority:
    accepted = f"0 for the default, or 1, the highest, to {len(PRIORITIES) - 1}"
    priority = _whole(parameters, "priority", accepted) or 0
    if not 0 <= priority < len(PRIORITIES):
        raise InvalidArgument("priority", priority, accepted)
    return PRIORITIES[priority]


def _timeout(parameters: Mapping[str, Value]) -> float | None:
    accepted = "microseconds, a whole number; 0 for no timeout"
    timeout = _whole(parameters, "timeout", accepted)
    if not timeout:
        return None
    if not 0 < timeout < 2**63:
        raise InvalidArgument("timeout", timeout, accepted)
    return timeout / 1e6


def soonest(*seconds: float | None) -> float | None:
    """Return the least of what is given."""
    return min((each for each in seconds if each is not None), default=None)


def _shown(value: Value) -> str:
    return repr(value)[:128]
