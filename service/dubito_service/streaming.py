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
