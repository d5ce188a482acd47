"""An engine that a test can watch, hold up and break."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dubito_models.calibration import Calibration
from dubito_models.engine import Engine, Run
from dubito_models.sampling import Plan, SamplingSpec
from dubito_service.scheduling.drawing import Request, WorkLimits
from dubito_service.scheduling.scheduler import Priority


@dataclass(frozen=True)
class Pass:
    """What a pass was asked to do."""

    rows: tuple[int, ...]
    first: int
    draws: int


class Hooked(Engine):
    """A real engine; `hook` runs before every pass, `prefix_hook` before every prefix."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.program, engine.masks, engine.head, engine.defaults)
        self.passes: list[Pass] = []
        self.prefixes: list[tuple[int, ...]] = []
        self.hook: Callable[[Pass], None] = lambda this: None
        self.prefix_hook: Callable[[tuple[int, ...]], None] = lambda rows: None

    def start(
        self,
        requests: Sequence[tuple[Mapping[str, Tensor], Plan]],
        calibration: Calibration | None,
        first_rows: Sequence[int] | None = None,
    ) -> list[Run]:
        self.prefixes.append(tuple(next(iter(inputs.values())).shape[0] for inputs, _ in requests))
        self.prefix_hook(self.prefixes[-1])
        return super().start(requests, calibration, first_rows)

    def advance(self, runs: Sequence[Run], draws: int) -> list[Run]:
        self.passes.append(Pass(tuple(run.rows for run in runs), runs[0].next_draw, draws))
        self.hook(self.passes[-1])
        return super().advance(runs, draws)


class Gate:
    """Holds passes up: `entered` once one is in, `open` to let it and all later ones go on."""

    def __init__(self) -> None:
        self._entered = threading.Event()
        self._open = threading.Event()

    def __call__(self, this: Pass) -> None:
        self._entered.set()
        assert self._open.wait(60)

    def open(self) -> None:
        self._open.set()

    def has_entered(self) -> bool:
        return self._entered.is_set()


async def settle() -> None:
    """Let the event loop get done with what it has been given."""
    for _ in range(4):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop go on until it is so."""
    while not condition():
        await asyncio.sleep(0.001)


def limits(**changes: float) -> WorkLimits:
    fields: dict[str, float] = {
        "queue_work": 10**6,
        "step_work": 8192,
        "step_seconds": 1e9,  # steps are cut by work alone
        "patience_seconds": 5.0,
        "reply_seconds": 0.0,
        **changes,
    }
    return WorkLimits(**fields)  # type: ignore[arg-type]


def request(
    engine: Engine,
    rows: int = 1,
    *,
    shift: float = 0.0,
    deadline: float | None = None,
    model: str = "mlp",
    caller: str = "somebody",
    priority: Priority = Priority.NORMAL,
    **spec: Any,
) -> Request:
    """A request of the "mlp" case; `shift` tells its rows from others'."""
    inputs = {"input": shift + torch.arange(rows * 6, dtype=torch.float32).reshape(rows, 6) / 10}
    plan = engine.plan(SamplingSpec(**spec))
    return Request((engine,), None, inputs, plan, rows, deadline, model, 1, caller, priority)
