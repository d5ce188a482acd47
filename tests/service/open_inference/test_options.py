"""Options: a parameter means the same in every form that a client can send it, and a wrong one is named."""

from __future__ import annotations

import math

import pytest

from dubito_models.errors import InvalidArgument
from dubito_models.sampling import Estimator, SamplingSpec
from dubito_models.stopping import Quantity, Stopping, StoppingRule
from dubito_models.thinning import Design, MaskScope
from dubito_service.asking import RequestLimits
from dubito_service.open_inference.options import (
    Options,
    Value,
    field_of,
    read_options,
    read_standard_options,
    soonest,
)
from dubito_service.scheduling.scheduler import Priority

LIMITS = RequestLimits(max_rows=100, max_draws=1000, max_work=20_000, max_message_bytes=2**16)


def read(**parameters: Value) -> Options:
    return read_options(parameters, LIMITS)


@pytest.mark.parametrize("value", [64, 64.0, "64", " 64", "+64"])
def test_a_whole_number_is_the_same_as_integer_double_and_text(value: Value) -> None:
    assert read(draws=value).spec.max_draws == 64


@pytest.mark.parametrize("value", [0.05, "0.05", "5e-2"])
def test_a_number_is_the_same_as_double_and_text(value: Value) -> None:
    assert read(tolerance=value).spec.stopping == Stopping(StoppingRule.TOLERANCE, target=0.05)


@pytest.mark.parametrize("value", [True, 1, 1.0, "true", "TRUE", "1"])
def test_a_flag_is_the_same_as_bool_number_and_text(value: Value) -> None:
    assert read(raw_draws=value).spec.raw_draws
    assert read(refine=value).refine


@pytest.mark.parametrize("value", [2**64 - 1, str(2**64 - 1)])
def test_a_seed_may_have_all_of_64_bits(value: Value) -> None:
    assert read(seed=value).spec.seed == 2**64 - 1


def test_without_parameters_everything_is_the_versions_own() -> None:
    assert read() == Options()
    assert read().spec == SamplingSpec()


def test_every_parameter_reaches_its_field() -> None:
    found = read(
        draws=80, min_draws="20", seed=7, design="independent", mask_scope="ROW", estimator="linearized",
        stopping_rule="threshold", stopping_quantity="mutual_information", stopping_target="0.2", stopping_level=0.9,
        interval_level="0.8", quantiles="0.1, 0.5,0.9", coverage="0.9", stream="nurses", raw_draws="true",
        uncalibrated=True, priority=1, timeout=1_500_000,
    )  # fmt: skip
    stopping = Stopping(StoppingRule.THRESHOLD, Quantity.MUTUAL_INFORMATION, 0.2, 0.9)
    assert found == Options(
        priority=Priority.HIGH,
        timeout=1.5,
        spec=SamplingSpec(
            max_draws=80, min_draws=20, seed=7, design=Design.INDEPENDENT, scope=MaskScope.ROW,
            estimator=Estimator.LINEARIZED, stopping=stopping, interval_level=0.8, quantiles=(0.1, 0.5, 0.9),
            raw_draws=True, uncalibrated=True,
        ),
        interval_asked=True,
        coverage=0.9,
        stream="nurses",
    )  # fmt: skip


def test_no_rule_is_another_wish_than_none_given() -> None:
    assert read(stopping_rule="none").spec.stopping == Stopping(StoppingRule.NONE)
    assert read().spec.stopping is None


def test_priorities_are_triton_s_0_the_default_and_1_the_highest() -> None:
    assert [read(priority=number).priority for number in range(4)] == [
        Priority.NORMAL, Priority.HIGH, Priority.NORMAL, Priority.LOW,
    ]  # fmt: skip


def test_a_timeout_of_0_is_none() -> None:
    assert read(timeout=0).timeout is None
    assert soonest(None, 3.0, 2.0) == 2.0
    assert soonest(None, None) is None


BAD: list[tuple[str, Value]] = [
    ("draws", 0), ("draws", -1), ("draws", 1001), ("draws", 1.5), ("draws", "many"), ("draws", True), ("draws", ""),
    ("draws", math.inf), ("draws", math.nan), ("draws", "9" * 5000), ("draws", "٣"), ("min_draws", 0),
    ("seed", -1), ("seed", 2**64), ("seed", str(2**64)), ("seed", "0x1"), ("tolerance", "fast"), ("tolerance", True),
    ("tolerance", 0), ("tolerance", -0.1), ("tolerance", math.nan), ("stopping_rule", "soon"), ("stopping_rule", 1),
    ("stopping_target", "x"), ("design", "mixed"), ("design", 1), ("mask_scope", "column"), ("estimator", "best"),
    ("interval_level", 1.0), ("interval_level", "nan"), ("quantiles", "0.1;0.9"), ("quantiles", "0.1,"),
    ("quantiles", "0,1"), ("quantiles", ",".join(["0.5"] * 33)), ("quantiles", True), ("coverage", False),
    ("stream", 3), ("raw_draws", "yes"), ("raw_draws", 2), ("joint", 0.5), ("priority", 4), ("priority", -1),
    ("priority", "high"), ("timeout", -1), ("timeout", 0.5), ("timeout", 2**63), ("timeout", "1 s"),
    ("sequence_id", 5), ("sequence_start", True), ("mc_samples", 3), ("Draws", 3), ("", 1), ("x" * 10**6, 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name[:20]}={str(value)[:20]}" for name, value in BAD])
def test_a_wrong_parameter_is_named_with_what_is_accepted(name: str, value: Value) -> None:
    parameters = {name: value}
    with pytest.raises(InvalidArgument) as caught:
        read_options(parameters, LIMITS)
    assert field_of(caught.value.field, parameters) == f"parameters.{name[:128]}"
    assert caught.value.accepted


def test_a_rule_without_the_target_that_it_needs_is_refused_by_its_parameter() -> None:
    with pytest.raises(InvalidArgument) as caught:
        read(stopping_rule="tolerance")
    assert field_of(caught.value.field) == "parameters.stopping_target"


def test_a_tolerance_beside_another_rule_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="tolerance"):
        read(tolerance=0.1, stopping_rule="decision")
    with pytest.raises(InvalidArgument, match="tolerance"):
        read(tolerance=0.1, stopping_target=0.1)


def test_what_clients_add_by_themselves_is_passed_over() -> None:
    added: dict[str, Value] = {"triton_enable_empty_final_response": True, "content_type": "pd", "headers": "x"}
    assert read_options(added, LIMITS) == Options()


def test_the_standard_path_takes_no_draws() -> None:
    assert read_standard_options({"priority": "3", "timeout": "1000"}) == Options(Priority.LOW, 0.001)
    with pytest.raises(InvalidArgument, match="draws: got a parameter of this name; accepted: priority, timeout"):
        read_standard_options({"draws": 3})
