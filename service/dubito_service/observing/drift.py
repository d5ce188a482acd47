"""Drift: a test of exchangeability that first gathers a reference where it is given none, and its bytes in a store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from dubito_models.calibration.exchangeability import Exchangeability

REFERENCE_ROWS = 200  # that are gathered
MOST_TESTED = 256  # rows of one prediction, the first: chosen without a look at what they say, so the test holds

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Drift:
    """Scores gathered for a reference, then the test against it (None before)."""

    false_alarm: float
    seed: int
    gathered: tuple[float, ...] = ()
    test: Exchangeability | None = None

    @classmethod
    def start(cls, reference: Sequence[float] | None, false_alarm: float, *name: object) -> Drift:
        """Start from a reference; None gathers the first rows that come. `name` fixes the numbers that break ties."""
        seed = int.from_bytes(hashlib.sha256(repr(name).encode()).digest()[:8], "little")
        test = None if reference is None else Exchangeability.start(reference, false_alarm, seed)
        return cls(false_alarm, seed, test=test)

    def after(self, scores: Array) -> Drift:
        """Return the state after the scores of one prediction's rows, (B,), in their order; NaN is passed over."""
        gathered, test = self.gathered, self.test
        for score in scores[~np.isnan(scores)][:MOST_TESTED].tolist():
            if test is not None:
                test = test.after(score)
                continue
            gathered = (*gathered, score)
            if len(gathered) == REFERENCE_ROWS:
                gathered, test = (), Exchangeability.start(gathered, self.false_alarm, self.seed)
        return replace(self, gathered=gathered, test=test)

    @property
    def alarm(self) -> bool:
        """Whether the test has raised an alarm."""
        return self.test is not None and self.test.alarm


_COLUMNS = ("reference", "scores")


def write_drift(drift: Drift) -> bytes:
    """Return the state as a line of JSON and its long columns as float64, which are read many times faster."""
    test, said = drift.test, None
    columns: Sequence[tuple[float, ...]] = [drift.gathered]
    if test is not None:
        columns = [getattr(test, name) for name in _COLUMNS]
        said = {field.name: getattr(test, field.name) for field in fields(test) if field.name not in _COLUMNS}
    head = {"false_alarm": drift.false_alarm, "seed": drift.seed, "test": said, "sizes": [len(one) for one in columns]}
    return json.dumps(head).encode() + b"\n" + b"".join(np.array(one, dtype="<f8").tobytes() for one in columns)


def read_drift(data: bytes) -> Drift:
    """Return what `write_drift` wrote."""
    line, _, rest = data.partition(b"\n")
    head = json.loads(line)
    sizes = np.cumsum(head["sizes"])
    columns = [tuple(part.tolist()) for part in np.split(np.frombuffer(rest, "<f8"), sizes[:-1])]
    start = Drift(head["false_alarm"], head["seed"])
    if head["test"] is None:
        return replace(start, gathered=columns[0])
    said = {**head["test"], "shares": tuple(head["test"]["shares"]), **dict(zip(_COLUMNS, columns, strict=True))}
    return replace(start, test=Exchangeability(**said))
