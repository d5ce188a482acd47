"""Predicting: from a question that was found good to an answer that is ready to be written, whatever the wire."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from dubito_models.predictive import Predictive, StopReason
from dubito_models.standard import Evaluation
from dubito_service.asking import Adapt, Prediction, Spent, StandardRequest
from dubito_service.observing import Issued, Observer, settle_coverage
from dubito_service.reports import AnswerReport, Watch, ignore
from dubito_service.worker import Clock, DeviceWorker, Drawn, Request, StandardWorker


@dataclass(frozen=True, slots=True)
class Call:
    """When a call arrived and when its caller stops waiting, in seconds on the workers' clock; and who called."""

    arrived: float
    deadline: float | None = None
    caller: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the Monte Carlo path, and what goes with it."""

    asked: Prediction
    predictive: Predictive
    spent: Spent
    issued: Issued


@dataclass(frozen=True, slots=True)
class StandardAnswer:
    """An answer of the standard path."""

    asked: StandardRequest
    evaluation: Evaluation
    spent: Spent


class Predictor:
    """Answers questions by the workers; belongs to one event loop."""

    def __init__(
        self,
        device: DeviceWorker,
        standard: StandardWorker,
        clock: Clock,
        observer: Observer | None = None,
        watch: Watch = ignore,
    ) -> None:
        self._device = device
        self._standard = standard
        self._clock = clock
        self._observer = observer
        self._watch = watch

    @property
    def adapt(self) -> Adapt | None:
        """What says what streams ask of conformal prediction; None where no observations are kept."""
        return None if self._observer is None else self._observer.coverage_to_ask

    def call(self, seconds_left: float | None, caller: str = "") -> Call:
        """Note a call that arrives now."""
        now = self._clock()
        return Call(now, None if seconds_left is None else now + seconds_left, caller)

    async def predict(self, asked: Prediction, call: Call) -> Answer:
        """Answer with dropout active; raises what `DeviceWorker.draw` raises."""
        return self._answer(asked, await self._device.draw(_work(asked, call)), call)

    async def refine(self, asked: Prediction, call: Call) -> AsyncGenerator[Answer]:
        """Answer as `predict` does, and before that whenever there are clearly more draws than before."""
        async with contextlib.aclosing(self._device.watch(_work(asked, call))) as answers:
            async for drawn in answers:
                yield self._answer(asked, drawn, call)

    async def evaluate(self, asked: StandardRequest, call: Call) -> StandardAnswer:
        """Answer by the standard network; raises what `StandardWorker.evaluate` raises."""
        done = await self._standard.evaluate(asked.version, asked.inputs, asked.rows)
        spent = Spent(done.queue_seconds, done.compute_seconds, self._clock() - call.arrived)
        self._report(asked, done.evaluation, 1, spent)
        return StandardAnswer(asked, done.evaluation, spent)

    def _answer(self, asked: Prediction, drawn: Drawn, call: Call) -> Answer:
        """Settle an answer; the last one comes with a receipt."""
        predictive, issued = settle_coverage(drawn.predictive, asked.served_coverage), Issued()
        last = StopReason.UNFINISHED not in predictive.stop_reason
        if self._observer is not None and last:
            issued = self._observer.issue(
                asked.version,
                asked.calibration,
                asked.inputs,
                predictive,
                stream=asked.stream,
                coverage=asked.coverage,
                served_coverage=asked.served_coverage,
            )
        spent = Spent(drawn.queue_seconds, drawn.compute_seconds, self._clock() - call.arrived)
        if last:
            self._report(asked, predictive, asked.plan.max_draws, spent)
        return Answer(asked, predictive, spent, issued)

    def _report(
        self, asked: Prediction | StandardRequest, answer: Predictive | Evaluation, most_draws: int, spent: Spent
    ) -> None:
        report = AnswerReport(asked.version, asked.rows, answer, most_draws, spent.queue, spent.compute, spent.total)
        self._watch(report)


def _work(asked: Prediction, call: Call) -> Request:
    return Request(
        engine=asked.version.engine,
        calibration=asked.calibration,
        inputs=asked.inputs,
        plan=asked.plan,
        rows=asked.rows,
        deadline=call.deadline,
    )
