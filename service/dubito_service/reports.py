"""Reports: what the worker and the servicers tell whoever counts (metrics, statistics), as plain records.

A `Watch` is called where the thing happened, on the device thread or the event loop: it is quick, and never raises.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from dubito_models.package import ModelVersion
from dubito_models.predictive import Predictive
from dubito_models.standard import Evaluation

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PassReport:
    """One pass of a network for all requests that shared it, told before any of their answers leaves.

    `draws`: 1 on the standard path.
    """

    model: str
    version: int
    monte_carlo: bool  # or the standard path
    requests: int
    rows: int
    draws: int
    seconds: float


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step of a worker, told after its passes; `fill`: the share of the step's budget that was used."""

    prefixes: int
    seconds: float
    fill: float
    waiting: int  # requests still in flight after it
    queued_work: int  # rows x draws of all requests in flight


@dataclass(frozen=True, slots=True)
class AnswerReport:
    """One answer that is about to leave; `answer` tells which path it came by."""

    version: ModelVersion
    rows: int
    answer: Predictive | Evaluation
    most_draws: int  # that were asked; 1 on the standard path
    queue_seconds: float
    compute_seconds: float
    total_seconds: float
    reading_seconds: float = 0.0  # of the total, before it was queued


@dataclass(frozen=True, slots=True)
class CallReport:
    """One call that has ended; `code`: the name of its gRPC status, `reason`: of the error that it was refused with."""

    method: str  # /package.Service/Method
    code: str
    seconds: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StreamedReport:
    """One request of a stream that has had its last answer, or its refusal, which does not end the call."""

    method: str
    code: str  # as a call's
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """One version that was loaded, or could not be."""

    model: str
    version: int
    seconds: float
    failed: bool


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """One worker whose thread has died, is there again, or does its work again; told on the event loop."""

    alive: bool


Report: TypeAlias = PassReport | StepReport | AnswerReport | CallReport | StreamedReport | LoadReport | WorkerReport
Watch: TypeAlias = Callable[[Report], None]


def ignore(report: Report) -> None:
    """Count nothing."""


def tell(*watches: Watch) -> Watch:
    """Return a watch that tells several; one that raises all the same is logged once, and goes on being told."""
    failed: set[int] = set()

    def watch(report: Report) -> None:
        for number, each in enumerate(watches):
            try:
                each(report)
            except Exception:  # nobody's answer depends on what is counted
                if number not in failed:
                    failed.add(number)
                    log.exception("report failed kind=%s", type(report).__name__)

    return watch
