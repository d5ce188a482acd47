"""Answers that refine, by both clients, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

from dubito_client import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    DubitoClientError,
    InvalidArgument,
    NotFound,
    Prediction,
    Unavailable,
)
from dubito_protos import uncertainty_pb2 as pb

from .fakes import B, Fake, abort, describe

ROWS = np.zeros((B, 1, 8, 8))
Ask = Callable[..., list[Prediction]]


def blocking(fake: Fake, model: str = "digits", rows: Any = ROWS, most: int = 9, **asked: Any) -> list[Prediction]:
    with Client(fake.target) as client:
        if "evaluate" in asked:
            client.evaluate("digits", asked.pop("evaluate"))
        found = []
        for answer in client.predict_stream(model, rows, **asked):
            found.append(answer)
            if len(found) == most:
                break
        return found


def awaiting(fake: Fake, model: str = "digits", rows: Any = ROWS, most: int = 9, **asked: Any) -> list[Prediction]:
    async def run() -> list[Prediction]:
        async with AsyncClient(fake.target) as client:
            if "evaluate" in asked:
                await client.evaluate("digits", asked.pop("evaluate"))
            found = []
            async for answer in client.predict_stream(model, rows, **asked):
                found.append(answer)
                if len(found) == most:
                    break
            return found

    return asyncio.run(run())


@pytest.fixture(params=[blocking, awaiting])
def ask(request: pytest.FixtureRequest) -> Ask:
    found: Ask = request.param
    return found


def test_answers_come_as_they_are_made_and_the_last_is_final(fake: Fake, ask: Ask) -> None:
    answers = ask(fake, seed=7, draws=64)
    assert [int(answer.draws[0]) for answer in answers] == [16, 32, 64]
    assert [answer.final for answer in answers] == [False, False, True]
    [request] = fake.predictions
    assert request.version == 3  # of what was described
    assert (request.sampling.seed, request.sampling.max_draws) == (7, 64)


def test_leaving_early_ends_the_call(fake: Fake, ask: Ask) -> None:
    fake.script = [lambda context: context.add_callback(fake.released.set), fake.hang]
    assert len(ask(fake, most=1)) == 1
    assert fake.released.wait(20)


@pytest.mark.parametrize(("code", "kind"), [
    (grpc.StatusCode.UNAVAILABLE, Unavailable),
    (grpc.StatusCode.INVALID_ARGUMENT, InvalidArgument),
    (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
])  # fmt: skip
def test_a_failure_on_the_way_is_raised_and_nothing_is_repeated(
    fake: Fake, ask: Ask, code: grpc.StatusCode, kind: type[DubitoClientError]
) -> None:
    fake.script = [lambda context: None, lambda context: abort(context, code, "broken")]
    with pytest.raises(kind, match="broken"):
        ask(fake)
    assert len(fake.predictions) == 1


def test_a_reloaded_model_with_another_input_is_asked_anew(fake: Fake, ask: Ask) -> None:
    signature = pb.TensorSignature(name="picture", dtype=pb.DATA_TYPE_FLOAT64, shape=[-1, 1, 8, 8])

    def reload(context: grpc.ServicerContext) -> None:
        fake.model = describe(inputs=[signature], status=pb.ModelStatus(model="digits", version=4))

    fake.script = [lambda context: None, reload]
    answers = ask(fake, evaluate=ROWS)
    assert [answer.final for answer in answers] == [False, False, True]
    assert [request.version for request in fake.predictions] == [3, 4]
    assert len(fake.descriptions) == 2


def test_what_is_refused_is_refused_once(fake: Fake, ask: Ask) -> None:
    with pytest.raises(InvalidArgument, match="tolerance or stopping"):
        ask(fake, tolerance=0.1, stopping=object())
    with pytest.raises(InvalidArgument, match="stopping"):
        ask(fake, stopping="decision")
    with pytest.raises(NotFound):
        ask(fake, "cats")
    assert fake.predictions == []


def test_the_deadline_is_that_of_the_whole_stream(fake: Fake, ask: Ask) -> None:
    fake.script = [lambda context: None, fake.hang]
    with pytest.raises(DeadlineExceeded):
        ask(fake, timeout=0.5)


def test_a_closed_client_asks_nothing(fake: Fake) -> None:
    client = Client(fake.target)
    client.predict("digits", ROWS)
    client.close()
    with pytest.raises(Cancelled):
        next(client.predict_stream("digits", ROWS))
    with pytest.raises(TypeError, match="draw"):
        next(Client(fake.target).predict_stream("digits", ROWS, draw=3))  # type: ignore[call-arg]
