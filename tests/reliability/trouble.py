"""Trouble: callers that ask for what there is not, leave, or are killed, beside others that must not notice.

    python -m reliability.trouble HOST:PORT --calls 100 --rows 10 --draws 3000

asks so often at once, says so in a line, and waits until it is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np

from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb
from dubito_protos import uncertainty_pb2_grpc as pb_grpc

from .calling import SECONDS, Callers
from .questions import Question, question

FIRST = 10**9  # of the questions' numbers, which nobody else asks
REFUSED_AS = frozenset(("INVALID_ARGUMENT", "NOT_FOUND"))
STAY_SECONDS = 0.02  # that a caller waits before it leaves
CALL_PAUSE, KILL_PAUSE = 0.5, 30.0  # seconds between one and the next


def doomed(address: str, calls: int, rows: int, draws: int) -> list[str]:
    """Return the command of a caller that is to be killed."""
    asked = ["--calls", str(calls), "--rows", str(rows), "--draws", str(draws)]
    return [sys.executable, "-m", "reliability.trouble", address, *asked]


FOLDER = Path(__file__).parents[1]  # that it is run in


class Trouble:
    """Makes trouble of every kind until the block ends, each kind at least once, and counts it."""

    def __init__(self, address: str, callers: Callers) -> None:
        self._address, self._callers = address, callers
        self._numbers = itertools.count(FIRST)
        self._ended = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._counts = {"invalid": 0, "left": 0, "killed": 0}
        self._wrong: list[str] = []

    async def __aenter__(self) -> Trouble:
        acts: dict[str, tuple[Callable[[], Awaitable[None]], float]] = {
            "invalid": (self._ask_wrongly, CALL_PAUSE),
            "left": (self._leave, CALL_PAUSE),
            "killed": (self._kill, KILL_PAUSE),
        }
        self._tasks = [asyncio.create_task(self._repeat(name, *act)) for name, act in acts.items()]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        await asyncio.gather(*self._tasks)

    @property
    def said(self) -> dict[str, Any]:
        """The figures; `wrong`: what was answered to requests that make no sense, but for the right refusal."""
        return {"phase": "trouble", **self._counts, "wrong": self._wrong}

    async def _repeat(self, name: str, act: Callable[[], Awaitable[None]], pause: float) -> None:
        while not self._ended.is_set():
            await act()
            self._counts[name] += 1
            try:
                await asyncio.wait_for(self._ended.wait(), pause)
            except TimeoutError:
                continue

    async def _ask_wrongly(self) -> None:
        asked = spoilt(question(next(self._numbers)))
        outcome = await self._callers.ask(asked)
        codes = {refused.code for refused in outcome.refused}
        if outcome.answers or not codes <= REFUSED_AS:
            self._wrong.append(f"{asked.kind} {asked.number}: {sorted(codes) or 'answered'}")

    async def _leave(self) -> None:
        asking = asyncio.create_task(self._callers.ask(question(next(self._numbers))))
        await asyncio.sleep(STAY_SECONDS)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    async def _kill(self) -> None:
        command = doomed(self._address, calls=10, rows=1, draws=200)
        process = await asyncio.create_subprocess_exec(*command, cwd=FOLDER, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert await process.stdout.readline()
        process.kill()
        await process.wait()


def spoilt(asked: Question) -> Question:
    """Return a question whose every request is wrong: of a model that there is not, or without draws."""
    requests = []
    for request in asked.requests:
        wrong = pb.PredictRequest()
        wrong.CopyFrom(request)
        if asked.number % 2 or asked.kind == "Evaluate":
            wrong.model = "nobody"
        else:
            wrong.sampling.max_draws = 0
        requests.append(wrong)
    return replace(asked, requests=tuple(requests))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="HOST:PORT")
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("--draws", type=int, default=3000)
    options = parser.parse_args()
    inputs = [tensors.encode(np.zeros((options.rows, 6), np.float32), "input")]
    with grpc.insecure_channel(options.target) as channel:
        stub = pb_grpc.UncertaintyServiceStub(channel)
        flying = []
        for seed in range(options.calls):  # each its own masks
            sampling = pb.SamplingSpec(max_draws=options.draws, seed=seed)
            request = pb.PredictRequest(model="mlp", inputs=inputs, sampling=sampling)
            flying.append(stub.Predict.future(request, timeout=SECONDS))
        print(f"{len(flying)} calls are under way", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
