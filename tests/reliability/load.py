"""Load: callers in a process of their own, over real sockets. Prints a JSON document a line, one for each phase.

    python -m reliability.load HOST:PORT --measure 5 --steady 30 --overload 10 --replay 300

Measured: callers that ask again as soon as they are answered, which is the capacity. Steady: as many callers at a
share of it, beside others that make trouble. Overload: a multiple of it, sent whether or not answers come, each with a
deadline; then how long it takes until a small question is answered as before. Replay: answers of all phases are asked
for again, alone.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import itertools
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .calling import Callers, Outcome
from .questions import Question, hurried, probe, question
from .replay import Answered, replay
from .trouble import Trouble

PROBES = 20
CALM_SECONDS = 30.0  # that recovery is waited for
OWN_DELAY = 0.1  # seconds, that a caller may take to notice an answer
TIMED = "ModelInfer"  # the kind of call whose caller waits beyond its deadline
OVERTAKEN = "work that goes first"  # what a request is told that was let in, and then crowded out


@dataclass
class Tally:
    """What came of a phase's calls; of the answers a sample is kept, the same number of every so many."""

    keep: int
    began: float = field(default_factory=time.time)
    seconds: dict[str, list[float]] = field(default_factory=lambda: collections.defaultdict(list))
    refusals: list[float] = field(default_factory=list)  # seconds of those that came at once
    overtaken: list[float] = field(default_factory=list)  # and of those that were let in first
    codes: collections.Counter[str] = field(default_factory=collections.Counter)
    unadvised: int = 0  # refusals that do not say when to come back
    unsent: int = 0  # by a caller that is itself too slow
    answers: int = 0
    shortened: int = 0
    timed: int = 0  # answers that could have come after their deadline and be seen: their caller waits longer
    late: int = 0
    messages: dict[str, str] = field(default_factory=dict)
    kept: list[Answered] = field(default_factory=list)
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def note(self, asked: Question, outcome: Outcome, deadline: float | None = None) -> None:
        """Take in what came of a call."""
        if outcome.answers:
            self.seconds[asked.kind].append(outcome.seconds)
            if deadline is not None and asked.kind == TIMED:
                self.timed += 1
                self.late += outcome.seconds > deadline + OWN_DELAY
        elif any(refused.code == "RESOURCE_EXHAUSTED" for refused in outcome.refused):
            waited = any(OVERTAKEN in refused.message for refused in outcome.refused)
            (self.overtaken if waited else self.refusals).append(outcome.seconds)
        self.shortened += outcome.shortened
        for refused in outcome.refused:
            if refused.code == "NOT_SENT":
                self.unsent += 1
                continue
            self.codes[refused.code] += 1
            self.messages.setdefault(refused.code, refused.message)
            self.unadvised += refused.code == "RESOURCE_EXHAUSTED" and refused.retry_seconds is None
        for answered in outcome.answers:
            self.answers += 1
            if len(self.kept) < self.keep:
                self.kept.append(answered)
            elif (place := self._random.randrange(self.answers)) < self.keep:
                self.kept[place] = answered

    @property
    def asked(self) -> int:
        """Requests that came to an end, one way or the other."""
        return self.answers + self.codes.total()

    def said(self, phase: str, elapsed: float) -> dict[str, Any]:
        """Return the figures."""
        latencies = {kind: quantiles(seconds) for kind, seconds in sorted(self.seconds.items())}
        return {
            "phase": phase,
            "began": self.began,
            "seconds": round(elapsed, 2),
            "answers": self.answers,
            "answers_per_second": round(self.answers / elapsed, 1),
            "shortened": self.shortened,
            "not_sent": self.unsent,
            "milliseconds": latencies,
            "refused": dict(self.codes),
            "said": self.messages,
        }


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return the median, the 99th of a hundred and the most, in milliseconds."""
    if not seconds:
        return {}
    p50, p99 = np.quantile(seconds, [0.5, 0.99])
    return {"p50": round(p50 * 1e3, 2), "p99": round(p99 * 1e3, 2), "most": round(max(seconds) * 1e3, 2)}


class Load:
    """Phases of one load; numbers of questions never repeat."""

    def __init__(self, callers: Callers, keep: int, say: Callable[[dict[str, Any]], None]) -> None:
        self._callers, self._say, self._keep = callers, say, keep
        self._numbers = itertools.count()
        self._usual = 0.0  # the most seconds that a small question takes in calm
        self.kept: list[Answered] = []

    async def closed(
        self, phase: str, callers: int, seconds: float, rate: float | None = None, least: int = 0
    ) -> dict[str, Any]:
        """Let so many callers ask for so long, each at its share of the rate, or again as soon as it is answered.

        It lasts longer where fewer than the least answers came.
        """
        tally, began = Tally(self._keep), time.perf_counter()

        async def call(place: int) -> None:
            pause = 0.0 if rate is None else callers / rate
            due = began + pause * place / callers
            while (now := time.perf_counter()) < began + seconds or tally.answers < least:
                if now < due:
                    await asyncio.sleep(due - now)
                due += pause
                asked = question(next(self._numbers))
                tally.note(asked, await self._callers.ask(asked))

        await asyncio.gather(*(call(place) for place in range(callers)))
        return self._end(phase, tally, time.perf_counter() - began)

    async def flood(self, phase: str, rate: float, seconds: float, deadline: float) -> dict[str, Any]:
        """Ask at a rate whatever comes back, each with a deadline; few draws will do."""
        tally, began = Tally(self._keep), time.perf_counter()
        flying: set[asyncio.Task[None]] = set()
        arrivals = random.Random(1)

        async def ask(asked: Question) -> None:
            tally.note(asked, await self._callers.ask(asked, deadline), deadline)

        due = began
        while (now := time.perf_counter()) < began + seconds:
            while due <= now:
                task = asyncio.create_task(ask(hurried(question(next(self._numbers)))))
                flying.add(task)
                task.add_done_callback(flying.discard)
                due += arrivals.expovariate(rate)
            await asyncio.sleep(max(0.0, min(due - time.perf_counter(), 0.1)))
        sent = time.perf_counter() - began
        recovery = asyncio.create_task(self._recovery())
        await asyncio.gather(*flying)
        seconds_to_recover = await recovery
        return self._end(
            phase,
            tally,
            sent,
            rate=round(rate, 1),
            deadline=deadline,
            refusal_milliseconds=quantiles(tally.refusals),
            overtaken_milliseconds=quantiles(tally.overtaken),
            overtaken_share=round(len(tally.overtaken) / max(1, len(tally.overtaken) + len(tally.refusals)), 4),
            refusals_without_advice=tally.unadvised,
            timed_answers=tally.timed,
            late_share=round(tally.late / max(1, tally.timed), 4),
            expired_share=round(tally.codes["DEADLINE_EXCEEDED"] / max(1, tally.asked), 4),
            recovery_seconds=seconds_to_recover,
        )

    async def calm(self) -> dict[str, Any]:
        """Ask a small question again and again, one at a time."""
        seconds = [(await self._callers.ask(probe(number))).seconds for number in range(PROBES)]
        self._usual = max(seconds)
        return {"phase": "calm", "milliseconds": {"Predict": quantiles(seconds)}}

    async def _recovery(self) -> float | None:
        """Return after how many seconds a small question takes no longer than at most it did in calm."""
        began, bound = time.perf_counter(), 2 * self._usual
        while (now := time.perf_counter()) < began + CALM_SECONDS:
            outcome = await self._callers.ask(probe(next(self._numbers)))
            if outcome.answers and not outcome.shortened and outcome.seconds <= bound:
                return round(now - began, 2)
            await asyncio.sleep(0.02)
        return None

    def _end(self, phase: str, tally: Tally, elapsed: float, **more: Any) -> dict[str, Any]:
        self.kept += tally.kept
        said = tally.said(phase, elapsed) | more
        self._say(said)
        return said

    async def replay(self, count: int) -> dict[str, Any]:
        """Ask for kept answers again, alone, and compare."""
        chosen = random.Random(2).sample(self.kept, min(count, len(self.kept)))
        off: dict[str, float] = collections.defaultdict(float)
        differing = stopped_otherwise = 0
        worst = ""
        for given in chosen:
            found = await replay(self._callers.stub, given)
            stopped_otherwise += found.stopped_otherwise
            if not found.same:
                differing += 1
                worst = worst or f"{found.off} of {given.request.model} id {given.request.id}: {given.request.sampling}"
            for name, part in found.off.items():
                off[name] = max(off[name], part)
        said = {
            "phase": "replay",
            "compared": len(chosen),
            "differing": differing,
            "stopped_otherwise": stopped_otherwise,
            "most_of_tolerance": {name: round(part, 4) for name, part in sorted(off.items())},
            "first": worst,
        }
        self._say(said)
        return said


def say(phase: dict[str, Any]) -> None:
    """Print a phase."""
    print(json.dumps(phase), flush=True)


async def run(options: argparse.Namespace) -> None:
    """Run the phases that are asked for."""
    async with Callers(options.target) as callers:
        load = Load(callers, options.replay, say)
        await load.closed("warm-up", options.callers, options.warm)
        load.kept.clear()
        say(await load.calm())
        capacity = (await load.closed("capacity", options.callers, options.measure))["answers_per_second"]
        load.kept.clear()
        # A call is more than an answer where it asks in bulk.
        rate = capacity / ANSWERS_PER_CALL
        if options.steady:
            async with Trouble(options.target, callers) as trouble:
                await load.closed("steady", options.callers, options.steady, options.share * rate, options.replay)
            say(trouble.said)
        if options.overload:
            await load.flood("overload", options.times * rate, options.overload, options.deadline)
        if options.replay:
            await load.replay(options.replay)


def _answers_per_call() -> float:
    asked = [len(question(number).requests) for number in range(1000)]
    return sum(asked) / len(asked)


ANSWERS_PER_CALL = _answers_per_call()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="HOST:PORT")
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--warm", type=float, default=3.0, help="seconds")
    parser.add_argument("--measure", type=float, default=5.0, help="seconds")
    parser.add_argument("--steady", type=float, default=30.0, help="seconds, 0 for none")
    parser.add_argument("--share", type=float, default=0.8, help="of the capacity, in the steady phase")
    parser.add_argument("--overload", type=float, default=10.0, help="seconds, 0 for none")
    parser.add_argument("--times", type=float, default=3.0, help="the capacity, in overload")
    parser.add_argument("--deadline", type=float, default=1.0, help="seconds, of a question in overload")
    parser.add_argument("--replay", type=int, default=300, help="answers, 0 for none")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
