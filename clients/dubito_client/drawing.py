"""The options of commands that ask for draws: how many, until when, and how they are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from dubito_client.errors import refused
from dubito_client.stopping import Quantity, Rule, Stopping

_DRAWS = (
    click.option("--draws", type=int, help="At most so many; the model's own number by default."),
    click.option(
        "--stop",
        type=click.Choice(["none", "tolerance", "decision", "threshold"]),
        help="When a row has draws enough: only with all; its standard error is at most --target; its class is "
        "settled; it is settled above or below --target. As calibrated by default.",
    ),
    click.option("--target", type=float, help="Of --stop tolerance (which it implies) and threshold."),
    click.option(
        "--of",
        type=click.Choice(["mean", "predictive_entropy", "mutual_information"]),
        help="What --target is about; mean by default.",
    ),
    click.option("--level", type=float, help="Confidence of --stop decision and threshold.  [default: 0.95]"),
    click.option("--seed", type=int, help="Of the masks; the model's own by default."),
    click.option("--design", type=click.Choice(["balanced", "independent"]), help="How the masks hang together."),
    click.option(
        "--estimator",
        type=click.Choice(["plain", "linearized"]),
        help="Mean over draws, or corrected by linear logits: for accuracy beyond hundreds of draws. As calibrated by "
        "default.",
    ),
    click.option("--coverage", type=float, help="Of prediction sets or intervals, in (0, 1)."),
    click.option(
        "--interval-level", type=float, help="Of the predictive distribution's interval (regression), in (0, 1)."
    ),
)


def drawing(run: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; what is not given is None, and means the model's own."""
    for option in reversed(_DRAWS):
        run = option(run)
    return run


def read_stopping(stop: Rule | None, target: float | None, of: Quantity | None, level: float | None) -> Stopping | None:
    """Return the rule that the options name, None for the model's own. Raises `InvalidArgument`."""
    if stop is None and target is None:
        for name, value in (("of", of), ("level", level)):
            if value is not None:
                raise refused(name, value, "this only with --stop")
        return None
    return Stopping(stop or "tolerance", of, target, level)
