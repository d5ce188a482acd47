"""Admission: who may still come in, and whether in vain; every refusal says when to come back.

A queue is bounded in work, whatever its unit, and so are the shares of it that one model and one caller may hold. Who
holds nothing yet may always come in with one request, however large: or a share that is smaller could never be used.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dubito_service.errors import DeadlineMissed, QueueFull

_SOONEST, _LATEST = 0.05, 30.0  # seconds, to come back after


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most work in flight, and the shares of it, in (0, 1], of one model and of one caller; `unit` names it."""

    work: int
    model_share: float = 1.0
    caller_share: float = 1.0
    unit: str = "rows x draws"


class Admission:
    """The work in flight; belongs to one event loop, and may be shared by workers."""

    def __init__(self, bounds: Bounds) -> None:
        self.work = 0
        self._bounds = bounds
        self._held: Counter[tuple[str, str]] = Counter()  # by "model" or "caller", and name

    @contextlib.contextmanager
    def hold(self, model: str, caller: str, work: int, seconds_per_unit: float | None) -> Iterator[None]:
        """Hold so much work while inside; raises `QueueFull` where there is no room for it."""
        self._check(model, caller, work, seconds_per_unit or 0.0)
        owners = (("model", model), ("caller", caller))
        self.work += work
        for owner in owners:
            self._held[owner] += work
        try:
            yield
        finally:
            self.work -= work
            for owner in owners:
                self._held[owner] -= work
                if not self._held[owner]:
                    del self._held[owner]

    def _check(self, model: str, caller: str, work: int, pace: float) -> None:
        bounds = self._bounds
        shares = (
            ("the queue", self.work, bounds.work),
            (f"the share of model {model}", self._held["model", model], int(bounds.work * bounds.model_share)),
            (f"the share of caller {caller}", self._held["caller", caller], int(bounds.work * bounds.caller_share)),
        )
        for whose, held, most in shares:
            if held and held + work > most:
                what = f"{held} of {most} {bounds.unit}, and {work} more were asked"
                raise QueueFull(what, come_back((held + work - most) * pace), whose)


def come_back(seconds: float) -> float:
    """Return after how many seconds to ask again, where so many are likely to do."""
    return min(max(seconds, _SOONEST), _LATEST)


def check_deadline(left: float, own: float, ahead: Callable[[], float]) -> None:
    """Refuse what cannot be answered within `left` seconds.

    `own`: seconds that the request alone takes at least; `ahead`: an estimate of those of what is due before it, asked
    for only where it matters. Raises `DeadlineMissed` where even an idle server could not, `QueueFull` where the queue
    is in the way.
    """
    if own > left:
        raise DeadlineMissed(
            f"the deadline leaves {max(left, 0.0):.2g} s; an answer takes at least {own:.2g} s, however little waits"
        )
    waiting = ahead()
    if own + waiting > left:
        what = f"{waiting:.2g} s of work are due before this request, whose deadline leaves {left:.2g} s"
        raise QueueFull(what, come_back(own + waiting - left))


def crowded_out(late: float) -> QueueFull:
    """Return the refusal of a request that was let in, and that what came later and goes first has made impossible."""
    return QueueFull(
        f"for work that goes first an answer would come {late:.2g} s after this request's deadline", come_back(late)
    )
