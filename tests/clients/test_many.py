"""Many predictions over one call, by both clients, over real sockets."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from dubito_client import (
    AsyncClient,
    Client,
    DubitoClientError,
    InvalidArgument,
    NotFound,
    Overloaded,
    Prediction,
    Unavailable,
)
from dubito_protos import uncertainty_pb2 as pb

from .fakes import B, Fake, abort

ROWS = np.zeros((B, 1, 8, 8))
Outcomes = list[tuple[int, Prediction | DubitoClientError]]
Ask = Callable[..., Outcomes]


def blocking(fake: Fake, inputs: Iterable[Any], most: int = 10**6, model: str = "digits", **asked: Any) -> Outcomes:
    found: Outcomes = []
    with Client(fake.target) as client:
        for outcome in client.predict_many(model, inputs, **asked):
            found.append(outcome)
            if len(found) == most:
                break
    return found


def awaiting(fake: Fake, inputs: Iterable[Any], most: int = 10**6, model: str = "digits", **asked: Any) -> Outcomes:
    async def run() -> Outcomes:
        found: Outcomes = []
        async with AsyncClient(fake.target) as client:
            outcomes = client.predict_many(model, inputs, **asked)
            async for outcome in outcomes:
                found.append(outcome)
                if len(found) == most:
                    break
            await outcomes.aclose()
        return found

    return asyncio.run(run())


@pytest.fixture(params=[blocking, awaiting])
def ask(request: pytest.FixtureRequest) -> Ask:
    return request.param  # type: ignore[no-any-return]


def test_every_input_has_one_outcome_in_the_order_that_they_come(ask: Ask, fake: Fake) -> None:
    outcomes = ask(fake, [ROWS] * 20, draws=32, priority="low")
    assert sorted(number for number, _ in outcomes) == list(range(20))
    assert [number for number, _ in outcomes[:4]] == [1, 0, 3, 2]
    for number, outcome in outcomes:
        if number % 7 == 6:
            assert isinstance(outcome, Overloaded)
            assert outcome.retry_after == 0.5
        else:
            assert isinstance(outcome, Prediction)
            assert outcome.rows == B
    assert len(fake.descriptions) == 1
    assert {request.sampling.max_draws for request in fake.predictions} == {32}
    assert {request.priority for request in fake.predictions} == {pb.PRIORITY_LOW}
    assert {request.version for request in fake.predictions} == {3}


def test_inputs_that_do_not_fit_are_outcomes_and_are_not_sent(ask: Ask, fake: Fake) -> None:
    outcomes = dict(ask(fake, [ROWS, {"other": ROWS}, ROWS, {"nothing": ROWS}], in_flight=2))
    assert isinstance(outcomes[1], InvalidArgument)
    assert isinstance(outcomes[3], InvalidArgument)
    assert isinstance(outcomes[0], Prediction)
    assert [request.id for request in fake.predictions] == ["0", "2"]


def test_no_more_inputs_are_taken_than_may_be_in_flight(ask: Ask, fake: Fake) -> None:
    taken, most = 0, 0

    def inputs() -> Iterator[Any]:
        nonlocal taken
        for _ in range(40):
            taken += 1
            yield ROWS

    with Client(fake.target) as client:
        found: Outcomes = []
        for outcome in client.predict_many("digits", inputs(), in_flight=4):
            most = max(most, taken - len(found))
            found.append(outcome)
    assert len(found) == 40
    assert most <= 4
    assert len(ask(fake, [ROWS] * 9, in_flight=2)) == 9


def test_leaving_early_ends_the_call_and_leaves_no_thread(ask: Ask, fake: Fake) -> None:
    before = threading.active_count()
    endless = itertools.repeat(ROWS)
    assert len(ask(fake, endless, most=5, in_flight=4)) == 5
    for thread in threading.enumerate():
        if "consume_request_iterator" in thread.name:
            thread.join(30)
    assert threading.active_count() <= before + 4  # gRPC's own for the server's calls


def test_what_the_inputs_raise_is_raised_after_what_was_sent_is_answered(ask: Ask, fake: Fake) -> None:
    def inputs() -> Iterator[Any]:
        yield ROWS
        yield ROWS
        raise LookupError("no more files")

    found: Outcomes = []
    with pytest.raises(LookupError, match="no more files"):
        found += ask(fake, inputs())
    assert len(fake.predictions) == 2


def test_an_error_of_the_call_itself_is_raised(ask: Ask, fake: Fake) -> None:
    fake.script = [lambda context: abort(context, grpc.StatusCode.UNAVAILABLE, "enough")]
    with pytest.raises(Unavailable):
        ask(fake, [ROWS] * 4)
    with pytest.raises(NotFound):
        ask(fake, [ROWS], model="nothing")
    with pytest.raises(InvalidArgument, match="in_flight"):
        ask(fake, [ROWS], in_flight=0)


def test_asynchronous_inputs_are_taken_too(fake: Fake) -> None:
    async def inputs() -> AsyncIterator[Any]:
        for _ in range(6):
            await asyncio.sleep(0)
            yield ROWS

    async def run() -> list[int]:
        async with AsyncClient(fake.target) as client:
            return [number async for number, _ in client.predict_many("digits", inputs(), in_flight=2)]

    assert sorted(asyncio.run(run())) == list(range(6))
