"""Which path of a version to use, in one sentence, and what stands against trusting it."""

from __future__ import annotations

from dataclasses import dataclass

from dubito_models.answering import CALIBRATED, DRAWN, STANDARD
from dubito_models.scorecard import Difference, Scorecard, figure

JUDGED_BY = ("nll", "crps", "brier")  # proper scores: the first that the paths have
FEW_ROWS = 100
NOTABLE = {"nll": 0.02}  # nats; of other scores, this share of the standard path's:
NOTABLE_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    """The path to use and why; `warnings`: what the rows cannot tell."""

    path: str
    sentence: str
    warnings: tuple[str, ...]


def judge(card: Scorecard, rows: int, overlap: int = 1) -> Verdict:
    """Choose a path by the paired intervals of a proper score, of so many rows; `overlap`: as `Labelled` has it.

    Where the standard path is as good, it is chosen: it needs no draws. A calibration that does harm is left out.
    """
    drawn = _difference(card, DRAWN, STANDARD)
    if drawn is None:
        sentence = "The paths have no proper score in common, so these rows cannot tell which to use."
        return Verdict(STANDARD, sentence, _warnings(card, rows, overlap))
    calibrated = card.difference(drawn.measure, CALIBRATED, DRAWN)
    harmful = calibrated is not None and calibrated.interval.low > 0
    gain = drawn
    if calibrated is not None and not harmful:
        gain = card.difference(drawn.measure, CALIBRATED, STANDARD) or drawn
    label = next(measure.label for measure in card.measures if measure.key == drawn.measure)
    warnings = _warnings(card, rows, overlap)
    if harmful and calibrated is not None:
        warnings += (f"The calibration does harm on these rows: it raises the {label} by {_said(calibrated, card)}.",)
    if gain.interval.high < 0:
        return Verdict(gain.first, _on_gain(gain, calibrated, label, card), warnings)
    if drawn.interval.high < 0:
        return Verdict(DRAWN, _on_gain(drawn, calibrated, label, card), warnings)
    return Verdict(STANDARD, _on_none(gain, label, card), warnings)


def _warnings(card: Scorecard, rows: int, overlap: int) -> tuple[str, ...]:
    said, apart = [], -(-rows // overlap)
    if apart < FEW_ROWS:
        shared = f", which count as {apart} because they share targets," if overlap > 1 else ""
        said.append(f"{rows} rows{shared} are few: intervals are rough, and differences that matter may not show.")
    right = [score.value for score in card.scores.get("accuracy", {}).values() if score is not None]
    if right and min(right) == 1:
        most = 1 - (1 - card.level) ** (1 / rows)
        said.append(f"No row is wrong, yet of others up to {most:.1%} may be (at {card.level:.0%} confidence).")
    return tuple(said)


def _difference(card: Scorecard, first: str, second: str) -> Difference | None:
    for measure in JUDGED_BY:
        found = card.difference(measure, first, second)
        if found is not None:
            return found
    return None


def _on_gain(gain: Difference, calibrated: Difference | None, label: str, card: Scorecard) -> str:
    said = f"Use {_named(gain.first)}: its {label} is lower than the standard path's by {_said(gain, card, sign=-1)}"
    if calibrated is None or calibrated.interval.low > 0:
        return said + "."
    if calibrated.interval.high < 0:
        return said + f"; calibration alone lowers it by {_said(calibrated, card, sign=-1)}."
    return said + f"; calibration changes it by {_said(calibrated, card)}, which these rows do not settle."


def _on_none(gain: Difference, label: str, card: Scorecard) -> str:
    named = _named(gain.first)
    if gain.interval.low > 0:
        return (
            f"Use the standard path: the {label} of {named} is higher by {_said(gain, card)}; "
            "draw only where you need to know how far to trust an answer."
        )
    if _is_wide(gain, card):
        return (
            f"These rows are too few to tell the paths apart: the {label} of {named} less that of the standard path is "
            f"{_said(gain, card)}."
        )
    return (
        f"The standard path predicts as well: the {label} of {named} less its own is {_said(gain, card)}; "
        "draw where you need to know how far to trust an answer."
    )


def _is_wide(gain: Difference, card: Scorecard) -> bool:
    """Tell whether a difference that matters would be within the interval."""
    standard = card.scores[gain.measure][STANDARD]
    assert standard is not None
    notable = NOTABLE.get(gain.measure, NOTABLE_SHARE * abs(standard.value))
    return max(abs(gain.interval.low), abs(gain.interval.high)) > notable


def _named(path: str) -> str:
    return {DRAWN: "the Monte Carlo path", CALIBRATED: "the calibrated Monte Carlo path"}[path]


def _said(difference: Difference, card: Scorecard, sign: int = 1) -> str:
    found = difference.interval
    value, low, high = sign * found.value, *sorted((sign * found.low, sign * found.high))
    return f"{figure(value)} ({card.level:.0%} interval {figure(low)} to {figure(high)})"
