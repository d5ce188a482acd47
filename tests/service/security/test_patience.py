"""Patience: a client is held to what it owes, and never to what it is owed."""

from __future__ import annotations

import asyncio
import math

import pytest

from dubito_service.errors import TooManyCalls
from dubito_service.security.concurrency import CallLimits, Concurrency
from dubito_service.security.patience import Patience, Watchdog

from ..conftest import Clock


@pytest.fixture
async def patience(clock: Clock) -> Patience:
    task = asyncio.current_task()
    assert task is not None
    return Watchdog(math.inf, clock).watch(task)


async def test_a_call_waits_for_its_first_message(patience: Patience, clock: Clock) -> None:
    assert patience.since() == clock.now
    patience.finished()
    assert patience.since() == math.inf


async def test_a_stream_is_idle_when_all_its_messages_are_answered(patience: Patience, clock: Clock) -> None:
    patience.received()
    patience.received()
    for left in (1, 0):
        assert patience.since() == math.inf
        clock.now += 1.0
        patience.sending()
        assert patience.since() == clock.now
        patience.sent()
        assert (patience.since() == clock.now) is (left == 0)
    patience.received()
    assert patience.since() == math.inf


async def test_a_client_that_has_said_all_is_waited_for_only_while_it_reads(patience: Patience, clock: Clock) -> None:
    patience.received()
    patience.finished()
    for _ in range(3):
        patience.sending()
        assert patience.since() == clock.now
        patience.sent()
        assert patience.since() == math.inf


async def test_only_the_call_whose_client_is_late_is_cancelled() -> None:
    watchdog = Watchdog(0.05, asyncio.get_running_loop().time)
    late, patient, gone = (asyncio.create_task(asyncio.sleep(60)) for _ in range(3))
    watched = [watchdog.watch(task) for task in (late, patient, gone)]
    watched[1].finished()
    watched[2].stop()
    with pytest.raises(asyncio.CancelledError):
        await late
    assert [each.lost for each in watched] == [True, False, False]
    assert not patient.done()
    assert not gone.done()
    for task in (patient, gone):
        task.cancel()


def test_a_place_that_is_left_is_free_and_nothing_is_kept_of_who_held_it() -> None:
    concurrency = Concurrency(CallLimits(calls=3, caller_calls=2))
    for caller in "aab":
        concurrency.enter(caller)
    for caller, said in (("a", "3 of 3"), ("c", "3 of 3")):
        with pytest.raises(TooManyCalls, match=said):
            concurrency.enter(caller)
    concurrency.leave("b")
    with pytest.raises(TooManyCalls, match=r"2 of 2 by this caller \(a\)"):
        concurrency.enter("a")
    concurrency.enter("c")
    for caller in "aac":
        concurrency.leave(caller)
    assert concurrency.calls == 0
    assert not concurrency._of
