"""Streaming: many requests over one call, answers as they are ready, and bounds on what is kept of both.

At most so many requests are being answered; the next is read when one of them is done. An answer that nobody has read
yet keeps its request from going on. So a slow reader is answered slowly, and what it may keep here is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

R = TypeVar("R")
A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class _Ended(Generic[A]):
    """No more answers follow, because of an error where there is one."""

    error: Exception | None = None


async def answer_each(
    requests: AsyncIterator[R], answer: Callable[[R], AsyncGenerator[A]], most: int
) -> AsyncGenerator[A]:
    """Yield the answers to every request, each request's own in order; at most `most` requests are under way.

    `answer` gives a request's answers. An error that it raises, or that reading raises, ends all of them. Closing ends
    every request that is under way.
    """
    answers: asyncio.Queue[A | _Ended[A]] = asyncio.Queue(1)
    reader = asyncio.create_task(_read(requests, answer, most, answers))
    try:
        while not isinstance(given := await answers.get(), _Ended):
            yield given
        if given.error is not None:
            raise given.error
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


async def _read(
    requests: AsyncIterator[R],
    answer: Callable[[R], AsyncGenerator[A]],
    most: int,
    answers: asyncio.Queue[A | _Ended[A]],
) -> None:
    room = asyncio.Semaphore(most)

    async def give(request: R) -> None:
        try:
            async with contextlib.aclosing(answer(request)) as found:
                async for each in found:
                    await answers.put(each)
        finally:
            room.release()

    ended: _Ended[A] = _Ended()
    try:
        async with asyncio.TaskGroup() as group:
            await room.acquire()
            async for request in requests:
                group.create_task(give(request))
                await room.acquire()
    except ExceptionGroup as errors:
        ended = _Ended(errors.exceptions[0])
    await answers.put(ended)
