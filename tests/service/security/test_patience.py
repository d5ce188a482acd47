"""Patience: a client is held to what it owes, and never to what it is owed."""

from __future__ import annotations

import asyncio
import math

import pytest

from dubito_service.errors import TooManyCalls
from dubito_service.security.concurrency import CallLimits, Concurrency
from dubito_service.security.patience import Patience, Watchdog

from ..conftest import Clock

IDLE, MESSAGE = 300.0, 30.0  # seconds


@pytest.fixture
async def patience(clock: Clock) -> Patience:
    task = asyncio.current_task()
    assert task is not None
    return Watchdog(IDLE, clock, MESSAGE).watch(task, stream=True)


async def test_a_call_waits_for_its_first_message(patience: Patience, clock: Clock) -> None:
    assert patience.until() == clock.now + IDLE
    patience.finished()
    assert patience.until() == math.inf


async def test_the_only_message_of_a_call_has_less_time_and_what_is_sent_has_not(clock: Clock) -> None:
    task = asyncio.current_task()
    assert task is not None
    patience = Watchdog(IDLE, clock, MESSAGE).watch(task, stream=False)
    assert patience.until() == clock.now + MESSAGE
    patience.finished()
    patience.sending()
    assert patience.until() == clock.now + IDLE
    hasty = Watchdog(MESSAGE, clock, IDLE).watch(task, stream=False)
    assert hasty.until() == clock.now + MESSAGE


async def test_a_stream_is_idle_when_all_its_messages_are_answered(patience: Patience, clock: Clock) -> None:
    patience.received()
    patience.received()
    for left in (1, 0):
        assert patience.until() == math.inf
        clock.now += 1.0
        patience.sending()
        assert patience.until() == clock.now + IDLE
        patience.sent()
        assert (patience.until() == clock.now + IDLE) is (left == 0)
    patience.received()
    assert patience.until() == math.inf


async def test_a_client_that_has_said_all_is_waited_for_only_while_it_reads(patience: Patience, clock: Clock) -> None:
    patience.received()
    patience.finished()
    for _ in range(3):
        patience.sending()
        assert patience.until() == clock.now + IDLE
        patience.sent()
        assert patience.until() == math.inf


async def test_only_the_call_whose_client_is_late_is_cancelled() -> None:
    watchdog = Watchdog(0.05, asyncio.get_running_loop().time)
    late, patient, gone = (asyncio.create_task(asyncio.sleep(60)) for _ in range(3))
    watched = [watchdog.watch(task, stream=True) for task in (late, patient, gone)]
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
