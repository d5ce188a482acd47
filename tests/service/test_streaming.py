"""Streaming: answers come as they are ready, and neither many requests nor a slow reader are kept without bound."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from dubito_models.errors import InvalidArgument
from dubito_service.errors import Refusal
from dubito_service.reports import Report, StreamedReport
from dubito_service.streaming import answer_each, tell_each


async def numbers(count: int, read: list[int] | None = None) -> AsyncGenerator[int]:
    for number in range(count):
        if read is not None:
            read.append(number)
        yield number


async def twice(number: int) -> AsyncGenerator[tuple[int, int]]:
    yield number, 0
    await asyncio.sleep(0)
    yield number, 1


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(100):
        await asyncio.sleep(0)


async def test_every_request_gets_all_its_answers_its_own_in_order() -> None:
    found = [answer async for answer in answer_each(numbers(50), twice, 7)]
    assert sorted(found) == [(number, turn) for number in range(50) for turn in (0, 1)]
    for number in range(50):
        assert [turn for one, turn in found if one == number] == [0, 1]


async def test_a_request_that_takes_long_holds_up_no_other() -> None:
    slow = asyncio.Event()

    async def answer(number: int) -> AsyncGenerator[int]:
        if number == 0:
            await slow.wait()
        yield number

    found = []
    async with contextlib.aclosing(answer_each(numbers(5), answer, 5)) as answers:
        async for number in answers:
            found.append(number)
            if len(found) == 4:
                slow.set()
    assert found == [1, 2, 3, 4, 0]


async def test_without_a_reader_no_more_requests_are_read_than_may_be_under_way() -> None:
    read: list[int] = []
    answers = answer_each(numbers(1000, read), twice, 4)
    assert await anext(answers) == (0, 0)
    await settle()
    assert len(read) <= 6
    assert len([answer async for answer in answers]) == 1999


async def test_no_more_requests_are_under_way_at_once_than_allowed() -> None:
    under_way, most = 0, 0

    async def answer(number: int) -> AsyncGenerator[int]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        yield number
        under_way -= 1

    assert len([number async for number in answer_each(numbers(40), answer, 3)]) == 40
    assert most == 3


async def test_closing_ends_every_request_that_is_under_way() -> None:
    ended: list[int] = []

    async def answer(number: int) -> AsyncGenerator[int]:
        try:
            if number == 0:
                yield number
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    answers = answer_each(numbers(10), answer, 4)
    assert await anext(answers) == 0
    await settle()
    await answers.aclose()
    assert sorted(ended) == [0, 1, 2, 3]


async def test_cancelling_whoever_waits_ends_every_request_too() -> None:
    ended: list[int] = []

    async def answer(number: int) -> AsyncGenerator[int]:
        try:
            await asyncio.Event().wait()
            yield number
        finally:
            ended.append(number)

    async def read() -> None:
        async with contextlib.aclosing(answer_each(numbers(3), answer, 3)) as answers:
            await anext(answers)

    reading = asyncio.create_task(read())
    await settle()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert sorted(ended) == [0, 1, 2]


async def test_an_error_of_an_answer_ends_the_stream_with_it() -> None:
    async def answer(number: int) -> AsyncGenerator[int]:
        if number == 2:
            raise ValueError("two")
        yield number

    with pytest.raises(ValueError, match="two"):
        async for _ in answer_each(numbers(9), answer, 1):
            pass


async def test_what_was_read_is_answered_before_an_error_of_reading_ends_the_stream() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise ValueError("no such message")

    ready = asyncio.Event()

    async def answer(number: int) -> AsyncGenerator[int]:
        await ready.wait()
        yield number

    async with contextlib.aclosing(answer_each(broken(), answer, 4)) as answers:
        asyncio.get_running_loop().call_later(0.01, ready.set)
        assert [await anext(answers) for _ in range(2)] == [1, 2]
        with pytest.raises(ValueError, match="no such message"):
            await anext(answers)


async def test_an_answer_holds_its_place_until_it_is_written() -> None:
    read: list[int] = []

    async def answer(number: int) -> AsyncGenerator[int]:
        yield number

    async with contextlib.aclosing(answer_each(numbers(1000, read), answer, 4)) as answers:
        for taken in range(1, 4):
            await anext(answers)
            await settle()
            assert len(read) == taken + 3  # what was taken last is not written before the next one is asked for


async def test_nothing_is_left_behind() -> None:
    async def answer(number: int) -> AsyncGenerator[int]:
        if number:
            await asyncio.Event().wait()
        yield number

    async with contextlib.aclosing(answer_each(numbers(9), answer, 4)) as answers:
        assert await anext(answers) == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_no_requests_no_answers() -> None:
    assert [answer async for answer in answer_each(numbers(0), twice, 2)] == []


# --- What is told of requests ---


async def odd_alone(number: int) -> AsyncGenerator[str]:
    """Answer odd numbers twice, and refuse the others."""
    if number % 2 == 0:
        raise InvalidArgument("number", number, "an odd one")
    yield f"{number}"
    yield f"{number} again"


def refuse(number: int, error: Exception, found: Refusal) -> str:
    return f"{number}: {found.code.name}"


async def test_each_request_is_told_of_once_whether_it_is_answered_or_refused_alone() -> None:
    seen: list[Report] = []
    answering = tell_each(odd_alone, refuse, "/a.B/C", seen.append)
    found = [answer async for answer in answer_each(numbers(3), answering, 1)]
    assert found == ["0: INVALID_ARGUMENT", "1", "1 again", "2: INVALID_ARGUMENT"]
    refused = StreamedReport("/a.B/C", "INVALID_ARGUMENT", "InvalidArgument")
    assert seen == [refused, StreamedReport("/a.B/C", "OK"), refused]


async def test_an_error_that_ends_the_call_is_left_to_it_to_tell_of() -> None:
    seen: list[Report] = []
    answering = tell_each(odd_alone, None, "/a.B/C", seen.append)
    with pytest.raises(InvalidArgument):
        _ = [answer async for answer in answer_each(numbers(3), answering, 1)]
    assert seen == []


async def test_a_request_that_its_caller_leaves_is_not_told_of() -> None:
    seen: list[Report] = []

    async def unfinished(number: int) -> AsyncGenerator[str]:
        yield f"{number}"
        await asyncio.Event().wait()

    answering = tell_each(unfinished, refuse, "/a.B/C", seen.append)
    async with contextlib.aclosing(answer_each(numbers(9), answering, 4)) as answers:
        assert await anext(answers) == "0"
    assert seen == []
