"""When a server may stop drawing, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rule = Literal["none", "tolerance", "decision", "threshold"]
Quantity = Literal["mean", "predictive_entropy", "mutual_information"]


@dataclass(frozen=True, slots=True)
class Stopping:
    """A stopping rule, of each row; made by `tolerance`, `decision`, `threshold` or `none`."""

    rule: Rule
    quantity: Quantity | None = None
    target: float | None = None
    level: float | None = None

    @classmethod
    def none(cls) -> Stopping:
        """Take all draws, by whatever rule the model was calibrated."""
        return cls("none")

    @classmethod
    def tolerance(cls, error: float, of: Quantity = "mean") -> Stopping:
        """Stop when the Monte Carlo standard error of this quantity is at most `error`."""
        return cls("tolerance", of, error)

    @classmethod
    def decision(cls, level: float = 0.95) -> Stopping:
        """Stop when the first class is settled against the runner-up, with this confidence."""
        return cls("decision", level=level)

    @classmethod
    def threshold(cls, bound: float, of: Quantity = "predictive_entropy", level: float = 0.95) -> Stopping:
        """Stop when this quantity is settled above or below `bound`, with this confidence.

        `of="mean"`: the probability of the first class, or the prediction of a regression.
        """
        return cls("threshold", of, bound, level)
