"""Many requests of one call: answered as they are ready, few at a time, and gone with the call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from dubito_service.dubito_v1.bulk import answer_bulk

from ..hooked import settle


class Sender:
    """Requests 0, 1, 2, ...; knows how many were read, and may go on forever, break, or end."""

    def __init__(self, count: int | None = None, error: Exception | None = None) -> None:
        self.read = 0
        self._count = count
        self._error = error

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        if self.read == self._count:
            if self._error is not None:
                raise self._error
            raise StopAsyncIteration
        self.read += 1
        await asyncio.sleep(0)
        return self.read - 1


class Answers:
    """Answers that are ready when they are told to."""

    def __init__(self) -> None:
        self.doors: dict[int, asyncio.Event] = {}
        self.cancelled: list[int] = []

    async def __call__(self, request: int) -> int:
        try:
            await self.doors.setdefault(request, asyncio.Event()).wait()
        except asyncio.CancelledError:
            self.cancelled.append(request)
            raise
        return request

    def open(self, *requests: int) -> None:
        for each in requests:
            self.doors.setdefault(each, asyncio.Event()).set()


async def double(request: int) -> int:
    return 2 * request


async def test_every_request_is_answered_once() -> None:
    answers = [each async for each in answer_bulk(Sender(100), double, 7)]
    assert sorted(answers) == [2 * i for i in range(100)]


async def test_answers_come_as_they_are_ready() -> None:
    answers = Answers()
    async with contextlib.aclosing(answer_bulk(Sender(3), answers, 8)) as replies:
        for number in (1, 2, 0):
            answers.open(number)
            assert await anext(replies) == number
        with pytest.raises(StopAsyncIteration):
            await anext(replies)


async def test_no_more_are_read_than_may_be_under_way_or_untaken() -> None:
    sender, answers = Sender(), Answers()
    async with contextlib.aclosing(answer_bulk(sender, answers, 4)) as replies:
        answers.open(0, 1)
        assert await anext(replies) in (0, 1)
        await settle()
        await settle()
        assert sender.read == 4  # the first is taken, but not yet written: it holds its place
        answers.open(*range(2, 100))
        await settle()
        assert sender.read == 4
        await anext(replies)
        await settle()
        await settle()
        assert sender.read == 5


async def test_leaving_ends_all_that_is_under_way() -> None:
    sender, answers = Sender(), Answers()
    async with contextlib.aclosing(answer_bulk(sender, answers, 4)) as replies:
        answers.open(2)
        assert await anext(replies) == 2
    assert sorted(answers.cancelled) == [0, 1, 3]
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    assert not tasks


async def test_what_was_read_is_answered_before_an_error_of_reading_ends_the_call() -> None:
    answers = Answers()
    async with contextlib.aclosing(answer_bulk(Sender(3, ConnectionError()), answers, 8)) as replies:
        await settle()
        answers.open(0, 1, 2)
        assert [await anext(replies) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ConnectionError):
            await anext(replies)


async def test_no_requests_no_answers() -> None:
    assert [each async for each in answer_bulk(Sender(0), double, 4)] == []
