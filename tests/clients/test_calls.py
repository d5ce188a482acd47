"""Laws of the verbs, driven by hand: no socket, and a clock that only the test moves."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import Int32Value

from dubito_client import calls
from dubito_client.errors import (
    DeadlineExceeded,
    DubitoClientError,
    InvalidArgument,
    MessageTooLarge,
    NotImplementedByServer,
    Overloaded,
    Unavailable,
)
from dubito_client.session import Call, Pause, Session, Steps, service_config
from dubito_client.stopping import Stopping
from dubito_protos import uncertainty_pb2 as pb

from .fakes import B, classify, describe

ROWS = np.zeros((B, 1, 8, 8))


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def session(clock: Clock | None = None, **changes: Any) -> Session:
    limits = {"timeout": 30.0, "retries": 3, "max_message_bytes": 2**20, "clock": clock or Clock(), **changes}
    return Session(**limits)


def drive(steps: Steps[Any], *outcomes: Message | DubitoClientError) -> tuple[Any, list[Call | Pause]]:
    """Answer each call with the next outcome; return the result (or the error) and the steps that were taken."""
    waiting = list(outcomes)
    taken: list[Call | Pause] = []
    try:
        step = next(steps)
        while True:
            taken.append(step)
            outcome = b"" if isinstance(step, Pause) else waiting.pop(0)
            if isinstance(outcome, DubitoClientError):
                step = steps.throw(outcome)
            else:
                step = steps.send(outcome if isinstance(outcome, bytes) else outcome.SerializeToString())
    except StopIteration as end:
        return end.value, taken
    except DubitoClientError as error:
        return error, taken


def asked(step: Call | Pause) -> pb.PredictRequest:
    assert isinstance(step, Call)
    assert step.path == "/dubito.v1.UncertaintyService/Predict"
    return pb.PredictRequest.FromString(step.payload)


def full(seconds: float | None) -> Overloaded:
    error = Overloaded("full")
    error.retry_after = seconds
    return error


def other_type() -> pb.GetModelResponse:
    return describe(inputs=[pb.TensorSignature(name="picture", dtype=pb.DATA_TYPE_FLOAT64, shape=[-1, 1, 8, 8])])


def test_every_argument_reaches_its_field() -> None:
    steps = calls.predict(
        session(),
        "digits",
        ROWS,
        version=3,
        draws=64,
        min_draws=16,
        seed=2**64 - 1,
        design="independent",
        interval_level=0.8,
        quantiles=(0.1, 0.9),
        raw_draws=True,
        uncalibrated=True,
        joint=True,
        stopping=Stopping.threshold(0.25, "mutual_information", 0.99),
        coverage=0.95,
        mask_scope="row",
        id="a",
    )
    _, taken = drive(steps, describe(), classify())
    request = asked(taken[1])
    tensor = request.inputs.pop()
    assert (tensor.name, tensor.dtype, list(tensor.shape)) == ("image", pb.DATA_TYPE_FLOAT32, [B, 1, 8, 8])
    stopping = pb.Stopping(
        rule=pb.STOPPING_RULE_THRESHOLD,
        quantity=pb.STOPPING_QUANTITY_MUTUAL_INFORMATION,
        target=0.25,
        level=0.99,
    )
    sampling = pb.SamplingSpec(
        min_draws=16,
        max_draws=64,
        stopping=stopping,
        seed=2**64 - 1,
        design=pb.DESIGN_INDEPENDENT,
        mask_scope=pb.MASK_SCOPE_ROW,
        interval_level=0.8,
        quantiles=[0.1, 0.9],
        raw_draws=True,
        joint=True,
    )
    output = pb.OutputSpec(coverage=0.95, uncalibrated=True)
    assert request == pb.PredictRequest(model="digits", version=3, sampling=sampling, output=output, id="a")


def test_what_is_left_out_is_absent_on_the_wire() -> None:
    _, taken = drive(calls.predict(session(), "digits", ROWS), describe(), classify())
    request = asked(taken[1])
    assert not request.HasField("version")
    assert request.sampling == pb.SamplingSpec()
    assert request.output == pb.OutputSpec()


def test_an_argument_of_zero_is_not_an_absent_one() -> None:
    _, taken = drive(calls.predict(session(), "digits", ROWS, draws=0, seed=0), describe(), classify())
    sampling = asked(taken[1]).sampling
    assert sampling.HasField("max_draws")
    assert sampling.HasField("seed")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("draws", -1),
        ("draws", 2**32),
        ("draws", 1.5),
        ("min_draws", -1),
        ("seed", -1),
        ("seed", 2**64),
        ("version", 2**63),
        ("design", "random"),
        ("mask_scope", "column"),
        ("quantiles", 0.5),
        ("quantiles", ["a"]),
        ("coverage", "much"),
        ("tolerance", "small"),
        ("id", "\ud800"),
        ("timeout", 0.0),
        ("timeout", float("nan")),
        ("timeout", float("inf")),
    ],
)
def test_what_the_wire_cannot_carry_is_refused_before_anything_is_asked(field: str, value: Any) -> None:
    error, taken = drive(calls.predict(session(), "digits", ROWS, **{field: value}))
    assert isinstance(error, InvalidArgument)
    assert (error.field, taken) == (field, [])
    assert error.given
    assert error.accepted


def test_a_model_is_described_once_for_many_predictions() -> None:
    known = session()
    drive(calls.predict(known, "digits", ROWS), describe(), classify())
    _, taken = drive(calls.predict(known, "digits", ROWS), classify())
    assert len(taken) == 1
    _, taken = drive(calls.evaluate(known, "digits", ROWS), pb.EvaluateResponse())
    assert len(taken) == 1


def test_a_refusal_that_rests_on_old_knowledge_leads_to_asking_anew() -> None:
    known = session()
    drive(calls.predict(known, "digits", ROWS), describe(), classify())
    result, taken = drive(
        calls.predict(known, "digits", ROWS), InvalidArgument("other input"), other_type(), classify()
    )
    tensor = asked(taken[2]).inputs[0]
    assert (tensor.name, tensor.dtype) == ("picture", pb.DATA_TYPE_FLOAT64)
    assert not isinstance(result, DubitoClientError)


def test_the_clients_own_refusal_is_never_grounded_on_old_knowledge() -> None:
    known = session()
    drive(calls.predict(known, "digits", ROWS), describe(), classify())
    # Refused by the type that was declared, fine by the one that is declared now.
    too_large = np.full_like(ROWS, 1e300)
    _, taken = drive(calls.predict(known, "digits", too_large), other_type(), classify())
    assert asked(taken[1]).inputs[0].dtype == pb.DATA_TYPE_FLOAT64


def test_a_refusal_that_new_knowledge_does_not_change_is_told_as_it_came() -> None:
    known = session()
    drive(calls.predict(known, "digits", ROWS), describe(), classify())
    refusal = InvalidArgument("NaN")
    error, taken = drive(calls.predict(known, "digits", ROWS), refusal, describe())
    assert error is refusal
    assert len(taken) == 2


def test_fresh_knowledge_is_not_asked_for_twice() -> None:
    refusal = InvalidArgument("NaN")
    error, taken = drive(calls.predict(session(), "digits", ROWS), describe(), refusal)
    assert error is refusal
    assert len(taken) == 2


def test_an_answer_of_another_version_ends_what_was_known_of_the_newest() -> None:
    known = session()
    drive(calls.predict(known, "digits", ROWS), describe(), classify(version=4))
    _, taken = drive(calls.predict(known, "digits", ROWS), describe(), classify())
    assert len(taken) == 2


def test_a_full_server_is_asked_again_after_as_long_as_it_says() -> None:
    _, taken = drive(calls.models(session()), full(0.5), full(0.25), pb.ListModelsResponse())
    assert [step.seconds for step in taken if isinstance(step, Pause)] == [0.5, 0.25]
    assert sum(isinstance(step, Call) for step in taken) == 3


@pytest.mark.parametrize(("delay", "retries"), [(None, 3), (30.0, 3), (0.5, 0)])
def test_a_full_server_is_not_asked_again_in_vain(delay: float | None, retries: int) -> None:
    error, taken = drive(calls.models(session(retries=retries)), full(delay))
    assert isinstance(error, Overloaded)
    assert len(taken) == 1


def test_a_full_server_is_asked_as_often_as_retries_allow() -> None:
    error, taken = drive(calls.models(session(retries=2)), full(0.1), full(0.1), full(0.1))
    assert isinstance(error, Overloaded)
    assert sum(isinstance(step, Call) for step in taken) == 3


def test_all_steps_of_a_call_share_its_time() -> None:
    clock = Clock()
    steps = calls.predict(session(clock), "digits", ROWS, timeout=10.0)
    first = next(steps)
    clock.now += 4.0
    second = steps.send(describe().SerializeToString())
    assert isinstance(first, Call)
    assert isinstance(second, Call)
    assert (first.timeout, second.timeout) == (10.0, 6.0)
    clock.now += 7.0
    with pytest.raises(DeadlineExceeded, match="10 s"):
        steps.throw(full(0.1))


def test_inputs_above_the_limit_are_refused_before_they_are_copied() -> None:
    error, taken = drive(calls.predict(session(max_message_bytes=100), "digits", ROWS), describe())
    assert isinstance(error, MessageTooLarge)
    assert len(taken) == 1


def health(status: int) -> Int32Value:
    """A health response: as on the wire, one enum numbered 1."""
    return Int32Value(value=status)


def test_ready_waits_for_a_server_that_says_that_it_serves() -> None:
    result, taken = drive(calls.ready(session()), Unavailable("not yet"), health(2), health(1))
    assert result is True
    assert sum(isinstance(step, Call) and step.wait_for_ready for step in taken) == 3


def test_ready_is_true_of_a_server_that_knows_no_health() -> None:
    assert drive(calls.ready(session()), NotImplementedByServer("no health"))[0] is True


def test_ready_is_false_when_the_time_is_over() -> None:
    assert drive(calls.ready(session(), 0.5), DeadlineExceeded("late"))[0] is False


def test_only_what_does_no_harm_twice_is_ever_repeated() -> None:
    """Pure questions, and labels, which a server counts once."""
    config = json.loads(service_config(3))
    (method,) = config["methodConfig"]
    assert {name["method"] for name in method["name"]} == {
        "Predict", "Evaluate", "Observe", "ListModels", "GetModel"
    }  # fmt: skip
    assert method["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert method["retryPolicy"]["maxAttempts"] == 4
    assert json.loads(service_config(0)) == {}


@pytest.mark.parametrize("limits", [{"timeout": 0.0}, {"retries": 5}, {"retries": -1}, {"max_message_bytes": 0}])
def test_a_client_with_impossible_limits_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        session(**limits)
