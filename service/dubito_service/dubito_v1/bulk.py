"""Bulk: many requests of one call in flight at once, each answered when it is ready.

A request holds its place until its answer has been taken from here, that is, written. So who reads slowly is soon read
from no more, and what is kept of a call is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

Q = TypeVar("Q")
R = TypeVar("R")


async def answer_bulk(
    requests: AsyncIterator[Q], answer: Callable[[Q], Coroutine[Any, Any, R]], most: int
) -> AsyncGenerator[R]:
    """Yield the answer to each request as it is ready; `most`: read and not yet taken, at most.

    `answer` makes its refusals answers: what it raises ends the call, and so does what reading raises, once those that
    were read are answered. Closing cancels all that is under way.
    """
    ready: asyncio.Queue[asyncio.Task[R] | None] = asyncio.Queue()  # None: nothing more comes
    room = asyncio.Semaphore(most)
    flying: set[asyncio.Task[R]] = set()

    def land(task: asyncio.Task[R]) -> None:
        flying.discard(task)
        ready.put_nowait(task)

    async def read() -> None:
        await room.acquire()
        async for request in requests:
            task = asyncio.create_task(answer(request))
            flying.add(task)
            task.add_done_callback(land)
            await room.acquire()

    reader = asyncio.create_task(read())
    ended = asyncio.create_task(_end(reader, flying, ready))
    try:
        while (task := await ready.get()) is not None:
            yield task.result()
            room.release()
        reader.result()
    finally:
        left = (reader, ended, *flying)
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def _end(reader: asyncio.Task[None], flying: set[asyncio.Task[R]], ready: asyncio.Queue[Any]) -> None:
    """Say that nothing more comes, once all that was read is answered."""
    await asyncio.wait([reader])
    if flying:
        await asyncio.wait(flying)
    ready.put_nowait(None)
