"""Reports: what the worker and the servicers tell whoever counts (metrics, statistics), as plain records.

A `Watch` is called where the thing happened, on the device thread or the event loop: it is quick, and never raises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from dubito_models.package import ModelVersion
from dubito_models.predictive import Predictive
from dubito_models.standard import Evaluation


@dataclass(frozen=True, slots=True)
class PassReport:
    """One pass of a network for all requests that shared it; `draws`: 1 on the standard path."""

    model: str
    version: int
    monte_carlo: bool  # or the standard path
    requests: int
    rows: int
    draws: int
    seconds: float


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step of a worker: its passes, and how long it was; `fill`: the share of the step's budget that was used."""

    passes: tuple[PassReport, ...]
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


@dataclass(frozen=True, slots=True)
class CallReport:
    """One call that has ended; `code`: the name of its gRPC status."""

    method: str  # /package.Service/Method
    code: str
    seconds: float


Report: TypeAlias = StepReport | AnswerReport | CallReport
Watch: TypeAlias = Callable[[Report], None]


def ignore(report: Report) -> None:
    """Count nothing."""
