"""Streaming: many requests of one call in flight at once, answers as they are ready, and bounds on what is kept.

A request holds its place until its last answer has been taken from here, that is, written; the next is read when there
is a place. An answer that finds no room, as nobody reads, keeps its request from going on. So who reads slowly is soon
read from no more, and what is kept of a call is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from dubito_service.errors import Refusal, told
from dubito_service.reports import StreamedReport, Watch

Q = TypeVar("Q")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class _Answer(Generic[R]):
    value: R


@dataclass(frozen=True, slots=True)
class _Done:
    """A request has had its last answer."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """Nothing more follows, because of an error where there is one."""

    error: Exception | None = None


_News: TypeAlias = "asyncio.Queue[_Answer[R] | _Done | _Ended]"
_DONE = _Done()


def tell_each(
    answer: Callable[[Q], AsyncGenerator[R]],
    refuse: Callable[[Q, Exception, Refusal], R] | None,
    method: str,
    watch: Watch,
) -> Callable[[Q], AsyncGenerator[R]]:
    """Return an `answer` that tells of each request which ends, and whose errors are written by `refuse`.

    Without `refuse` an error is raised, and told of by whoever ends the call with it.
    """

    async def answers(request: Q) -> AsyncGenerator[R]:
        try:
            async with contextlib.aclosing(answer(request)) as replies:
                async for reply in replies:
                    yield reply
        except Exception as error:
            if refuse is None:
                raise
            found = told(error, method)
            watch(StreamedReport(method, found.code.name, type(error).__name__))
            yield refuse(request, error, found)
        else:
            watch(StreamedReport(method, "OK"))

    return answers


async def answer_each(
    requests: AsyncIterator[Q], answer: Callable[[Q], AsyncGenerator[R]], most: int
) -> AsyncGenerator[R]:
    """Yield the answers to every request, each request's own in order; at most `most` requests have a place.

    `answer` gives a request's answers. An error that it raises ends the call; so does one of reading, once all that
    were read are answered. Closing ends every request that is under way.
    """
    news: _News[R] = asyncio.Queue(most)
    room = asyncio.Semaphore(most)
    reader = asyncio.create_task(_read(requests, answer, room, news))
    try:
        while not isinstance(each := await news.get(), _Ended):
            if isinstance(each, _Answer):
                yield each.value
            else:
                room.release()
        if each.error is not None:
            raise each.error
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


async def _read(
    requests: AsyncIterator[Q], answer: Callable[[Q], AsyncGenerator[R]], room: asyncio.Semaphore, news: _News[R]
) -> None:
    error: Exception | None = None
    async with asyncio.TaskGroup() as group:
        try:
            await room.acquire()
            async for request in requests:
                group.create_task(_give(answer(request), news))
                await room.acquire()
        except Exception as broken:
            error = broken
    await news.put(_Ended(error))


async def _give(answers: AsyncGenerator[R], news: _News[R]) -> None:
    try:
        async with contextlib.aclosing(answers) as found:
            async for each in found:
                await news.put(_Answer(each))
    except Exception as error:
        await news.put(_Ended(error))
    else:
        await news.put(_DONE)
