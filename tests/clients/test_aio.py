"""Laws of the asynchronous client, over real sockets: the same verbs, errors and limits."""

from __future__ import annotations

import asyncio
import inspect
import time

import grpc
import numpy as np
import pytest

from dubito_client import AsyncClient, Cancelled, Client, DeadlineExceeded, InvalidArgument, Unavailable

from .fakes import LOGITS_ROWS, B, Fake, abort, full, refuse

ROWS = np.zeros((B, 1, 8, 8))


def unavailable(context: grpc.ServicerContext) -> None:
    abort(context, grpc.StatusCode.UNAVAILABLE, "restarting")


async def test_every_verb_answers(fake: Fake) -> None:
    async with AsyncClient(fake.target) as client:
        assert await client.ready(5.0)
        p = await client.predict("digits", ROWS, draws=64)
        np.testing.assert_array_equal(p.probabilities, LOGITS_ROWS)
        assert (await client.evaluate("digits", ROWS)).output.shape == (B, 2)
        assert len(await client.models()) == 2
        assert (await client.model("digits")).version == 3


def test_both_clients_have_the_same_verbs_with_the_same_arguments() -> None:
    for verb in ("predict", "evaluate", "observe", "models", "model", "load", "unload", "ready"):
        assert inspect.signature(getattr(Client, verb)) == inspect.signature(getattr(AsyncClient, verb))
        assert getattr(Client, verb).__doc__
        assert inspect.iscoroutinefunction(getattr(AsyncClient, verb))


async def test_many_calls_are_in_flight_at_once(fake: Fake) -> None:
    fake.script = [lambda context: time.sleep(0.2)] * 4
    async with AsyncClient(fake.target) as client:
        await client.model("digits")
        start = time.monotonic()
        await asyncio.gather(*(client.predict("digits", ROWS) for _ in range(4)))
    assert time.monotonic() - start < 0.75


async def test_a_refusal_is_typed(fake: Fake) -> None:
    fake.script = [lambda context: refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "inputs.image", "NaN", "numbers")]
    async with AsyncClient(fake.target) as client:
        with pytest.raises(InvalidArgument) as caught:
            await client.predict("digits", ROWS)
    assert (caught.value.field, caught.value.given, caught.value.accepted) == ("inputs.image", "NaN", "numbers")


async def test_what_found_nobody_and_what_found_a_full_server_is_repeated(fake: Fake) -> None:
    fake.script = [unavailable, lambda context: full(context, 0.05)]
    async with AsyncClient(fake.target) as client:
        await client.predict("digits", ROWS)
    assert len(fake.predictions) == 3


async def test_attempts_end_with_the_retries(fake: Fake) -> None:
    fake.script = [unavailable] * 9
    async with AsyncClient(fake.target, retries=0) as client:
        with pytest.raises(Unavailable):
            await client.predict("digits", ROWS)
    assert len(fake.predictions) == 1


async def test_a_deadline_is_kept_by_the_client_itself(fake: Fake) -> None:
    fake.script = [fake.hang]
    async with AsyncClient(fake.target) as client:
        with pytest.raises(DeadlineExceeded):
            await client.predict("digits", ROWS, timeout=0.3)


async def test_a_cancelled_task_ends_at_once_and_harms_no_other(fake: Fake) -> None:
    fake.script = [fake.hang]
    async with AsyncClient(fake.target) as client:
        await client.model("digits")
        hanging = asyncio.create_task(client.predict("digits", ROWS))
        while not fake.predictions:
            await asyncio.sleep(0.01)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        assert (await client.predict("digits", ROWS)).rows == B


async def test_closing_ends_the_calls_under_way_and_refuses_later_ones(fake: Fake) -> None:
    fake.script = [fake.hang]
    client = AsyncClient(fake.target)
    await client.model("digits")
    hanging = asyncio.create_task(client.predict("digits", ROWS))
    while not fake.predictions:
        await asyncio.sleep(0.01)
    await client.close()
    with pytest.raises(Cancelled):
        await hanging
    with pytest.raises(Cancelled, match="closed"):
        await client.models()


async def test_credentials_secure_the_channel(fake: Fake) -> None:
    async with AsyncClient(fake.secure_target, credentials=grpc.local_channel_credentials()) as client:
        assert len(await client.models()) == 2


async def test_a_client_that_never_called_closes() -> None:
    async with AsyncClient("127.0.0.1:1"):
        pass
