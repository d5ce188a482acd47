"""Predicting: from a question that was found good to an answer that is ready to be written, whatever the wire."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import numpy as np

from dubito_models.predictive import Array, Classification, Predictive, StopReason, Validity
from dubito_models.standard import Evaluation
from dubito_service.asking import Adapt, Prediction, Spent, StandardRequest
from dubito_service.errors import NoFiniteAnswer
from dubito_service.observing.observer import Issued, Observer, settle_coverage
from dubito_service.reports import AnswerReport, Watch, ignore
from dubito_service.scheduling.devices import Devices
from dubito_service.scheduling.dispatching import Clock
from dubito_service.scheduling.drawing import Drawn, Request
from dubito_service.scheduling.standard_worker import EvaluationRequest, StandardWorker
from dubito_service.scheduling.worker import DeviceWorker


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

    @property
    def final(self) -> bool:
        """Whether no better answer follows."""
        return StopReason.UNFINISHED not in self.predictive.stop_reason

    @property
    def validity(self) -> Validity:
        """How far its calibration holds."""
        found = self.predictive.calibration_validity
        if self.asked.stream and found is Validity.EXACT:
            return Validity.APPROXIMATE  # the level was chosen by labels that came back
        return found

    @property
    def warnings(self) -> tuple[str, ...]:
        """What its caller should know of it."""
        found = [*self.asked.warnings, *([self.issued.warning] if self.issued.warning else [])]
        for reason, what in ((StopReason.DEADLINE, "the deadline"), (StopReason.LOAD, "the server's load")):
            if reason in self.predictive.stop_reason:
                used, most = int(self.predictive.draws.min()), self.asked.plan.max_draws
                found.append(f"{what} ended drawing after {used} of {most} draws")
        return tuple(found)


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
        device: Devices | DeviceWorker,
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
        """Answer with dropout active; raises `NoFiniteAnswer`, and what `DeviceWorker.draw` raises."""
        began = self._clock()
        return self._answer(asked, await self._device.draw(_work(asked, call)), call, began)

    async def refine(self, asked: Prediction, call: Call) -> AsyncGenerator[Answer]:
        """Answer as `predict` does, and before that whenever there are clearly more draws than before."""
        began = self._clock()
        async with contextlib.aclosing(self._device.watch(_work(asked, call))) as answers:
            async for drawn in answers:
                yield self._answer(asked, drawn, call, began)

    async def evaluate(self, asked: StandardRequest, call: Call) -> StandardAnswer:
        """Answer by the standard network; raises `NoFiniteAnswer`, and what `StandardWorker.evaluate` raises."""
        began = self._clock()
        work = EvaluationRequest(asked.version, asked.inputs, asked.rows, call.deadline, call.caller, asked.priority)
        done = await self._standard.evaluate(work)
        found = done.evaluation
        _check_finite(found.probabilities, found.mean, found.aleatoric_variance)
        spent = Spent(done.queue_seconds, done.compute_seconds, self._clock() - call.arrived)
        self._report(asked, found, 1, spent, began - call.arrived)
        return StandardAnswer(asked, found, spent)

    def _answer(self, asked: Prediction, drawn: Drawn, call: Call, began: float) -> Answer:
        """Settle an answer; the last one comes with a receipt."""
        found = drawn.predictive.answer
        if isinstance(found, Classification):
            _check_finite(found.probabilities)
        else:
            _check_finite(found.mean, found.aleatoric_variance)
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
            self._report(asked, predictive, asked.plan.max_draws, spent, began - call.arrived)
        return Answer(asked, predictive, spent, issued)

    def _report(
        self,
        asked: Prediction | StandardRequest,
        answer: Predictive | Evaluation,
        most_draws: int,
        spent: Spent,
        reading: float,
    ) -> None:
        times = (spent.queue, spent.compute, spent.total, reading)
        self._watch(AnswerReport(asked.version, asked.rows, answer, most_draws, *times))


def _check_finite(*answers: Array | None) -> None:
    """Raise `NoFiniteAnswer` for rows of which one of the answers, each (B, K), is no finite number.

    Of NaN there would be a label, the first class, and whatever else is made of it looks like an answer too.
    """
    for values in answers:
        if values is not None and not np.isfinite(values).all():
            raise NoFiniteAnswer(np.flatnonzero(~np.isfinite(values).all(-1)).tolist())


def _work(asked: Prediction, call: Call) -> Request:
    return Request(
        engines=asked.version.engines,
        calibration=asked.calibration,
        inputs=asked.inputs,
        plan=asked.plan,
        rows=asked.rows,
        deadline=call.deadline,
        model=asked.version.name,
        version=asked.version.version,
        caller=call.caller,
        priority=asked.priority,
    )
