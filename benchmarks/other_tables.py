"""The tables of results/batch.json, calibrating.json and reliability.json, which the programs of those names wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markdown_table import figure, table, times

Document = Mapping[str, Any]

AIMED_RATE, AIMED_STOPPING, AIMED_LABELS, AIMED_MEMORY = 4, 3, 0.995, 1536
LEVEL = 0.9  # of the intervals whose coverage is told


# --- Scored tables ---


def scoring(document: Document) -> Iterator[str]:
    """Yield rows/s of scored tables beside those of the loop; bold: below what was aimed at."""
    headings = ("", "aimed at", "draws", "rows/s", "times the loop's, wall", "times the loop's, processor")
    for_each = document["speed"].items()
    yield from table(headings, (line for name, speed in for_each for line in _rates(document, name, speed)))


def _rates(document: Document, name: str, speed: Document) -> Iterator[tuple[str, ...]]:
    wall = speed["times the loop's rows per second"]
    processor = speed["times the loop's rows per second of the processor"]
    for way, rate in speed["rows per second"].items():
        if way in wall:
            told = [wall[way], processor[way]]
            cells = ["-" if gain is None else _bold(times(gain), gain < AIMED_RATE) for gain in told]
            named = f"Ray, independent, {document['draws']} draws" if way == "ray" else way
            yield name, times(AIMED_RATE), named, f"{rate:.0f}", *cells


def stopping(document: Document) -> Iterator[str]:
    """Yield what stopping rules add to the draws that are made without one; bold: below what was aimed at."""
    adaptive = document["adaptive, digits cnn"]
    answers = adaptive["answers"]
    plain = next(iter(answers))
    gains = [adaptive[f"times the {plain}'s rows per second{of}"] for of in ("", " of the processor")]
    headings = ("digits cnn", "aimed at", "draws a row", "rows/s", "times, wall", "times, processor",
                "classes as by 1,024 draws")  # fmt: skip
    lines = (
        (
            *(way, times(AIMED_STOPPING) if way in gains[0] else "-", figure(told["mean draws"])),
            f"{adaptive['rows per second'][way]:.0f}",
            *(_bold(times(gain[way]), gain[way] < AIMED_STOPPING) if way in gain else "-" for gain in gains),
            f"{told['classes as by 1024 draws']:.2%} (aimed at: {AIMED_LABELS:.1%})",
        )
        for way, told in answers.items()
    )
    yield from table(headings, lines)


def footprint(document: Document) -> Iterator[str]:
    """Yield the peak of a job over very many rows."""
    found = document["memory"]
    cells = (f"{found['rows scored']:,}", f"{found['rows per second']:,}", found["peak resident MiB"])
    yield from table(
        ("rows of 16 floats", "rows/s", "peak resident, MiB", "aimed at, less than"), [(*cells, AIMED_MEMORY)]
    )


# --- Calibration ---


def scores(document: Document) -> Iterator[str]:
    """Yield the scores of the digits' paths, means over seeds."""
    best = "calibrated less the best other, 90 % interval"
    headings = ("", "standard", "Monte Carlo, 40 draws", "calibrated", best)
    yield from table(headings, (_score(*each) for each in document["digits"]["all seeds"].items()))


def _score(name: str, found: Document) -> tuple[str, ...]:
    difference, low, high = found["calibrated less best, 90 %"]
    paths = (f"{found[path]:.4f}" for path in ("standard", "Monte Carlo", "calibrated"))
    return ("ECE, 15 bins" if name == "ECE" else name, *paths, f"{difference:+.4f} ({low:+.4f} to {high:+.4f})")


def coverage(document: Document) -> Iterator[str]:
    """Yield how many test targets lie within intervals, of conformal prediction and of the predictive distribution."""
    ways = ("conformal", "predictive distribution")
    headings = (
        "set",
        "splits",
        "test rows",
        "rows of a split that are scored",
        *ways,
        *(f"width, {way}" for way in ways),
    )
    lines = (
        (
            *(name, found["splits"], found["test rows"], found["score rows of a split"]),
            *(f"{found['coverage'][way]['mean']:.3f} ± {found['coverage'][way]['standard error']:.3f}" for way in ways),
            *(figure(found["width"][way]) for way in ways),
        )
        for name, found in document["coverage"].items()
    )
    yield from table(headings, lines)


# --- What holds of a server over time ---


def reliability(document: Document) -> Iterator[str]:
    """Yield what the phases of a soak came to."""
    load, bad = document["load"], document["bad_input"]
    capacity, steady, overload = load["capacity"], load["steady"], load["overload"]
    callers, wait = document["asked"]["callers"], steady["milliseconds"]["Predict"]
    grown = steady["resident_growth"]
    memory = "was seen too seldom to tell" if grown is None else f"grows by {grown:.1%} in the last two thirds"
    lines = (
        (
            f"capacity, {capacity['seconds']:.0f} seconds, {callers} callers",
            f"{capacity['answers_per_second']:.1f} answers/s; {_shortened(capacity)}",
        ),
        (
            f"80 % of it, {steady['seconds'] / 60:.0f} minutes",
            f"{steady['answers']:,} answers, {sum(steady['refused'].values()):,} errors; {_shortened(steady)}; "
            f"resident memory {memory}. `Predict` p50 {wait['p50']:.0f} ms, p99 {wait['p99']:.0f} ms (all "
            "priorities, 1 to 16 rows)",
        ),
        (f"3 times the capacity, {overload['seconds'] / 60:.0f} minutes", _overload(overload)),
        ("beside the steady load", _trouble(load["trouble"])),
        ("replays", _replays(load["replay"])),
        ("bad input", _bad(bad)),
        ("laws broken", "; ".join(document["broken"]) or "none"),
    )
    yield from table(("", ""), lines)


def _shortened(phase: Document) -> str:
    return f"{phase['shortened']:,} ({phase['shortened'] / max(1, phase['answers']):.1%}) with fewer draws than asked"


def _overload(phase: Document) -> str:
    refused, at_once, waited = phase["refused"], phase["refusal_milliseconds"], phase["overtaken_milliseconds"]
    missed = refused.get("DEADLINE_EXCEEDED", 0)
    return (
        f"{phase['answers']:,} answers; {_shortened(phase)}; of the {phase['timed_answers']:,} whose callers waited "
        f"longer, {phase['late_share']:.1%} came after their deadline of {phase['deadline']:g} s. "
        f"{refused.get('RESOURCE_EXHAUSTED', 0):,} refused: {1 - phase['overtaken_share']:.1%} not let in, half of "
        f"them within {at_once['p50']:.0f} ms, 99 % within {at_once['p99']:.0f} ms; the others were let in and "
        f"overtaken, half of them within {waited.get('p50', 0.0):.0f} ms. {missed:,} ({phase['expired_share']:.1%}) "
        f"end at their deadline unanswered, where the law allows 1 %. Back to normal after "
        f"{phase['recovery_seconds']:.1f} s"
    )


def _trouble(phase: Document) -> str:
    return (
        f"{phase['invalid']:,} wrong requests, {phase['left']:,} whose callers left, {phase['killed']:,} callers "
        f"killed: {phase['wrong']} answered otherwise than they should be"
    )


def _replays(phase: Document) -> str:
    return (
        f"{phase['compared']:,} answers asked for again: {phase['differing']} differ, {phase['stopped_otherwise']} "
        "stop at another draw"
    )


def _bad(phase: Document) -> str:
    fuzz, pounding, connections = phase["fuzz"], phase["pounding"], phase["connections"]
    return (
        f"{fuzz['cases']:,} messages, {pounding['cases']:,} times other bytes: "
        f"{fuzz['fault_count'] + len(pounding['faults'])} are the server's fault, "
        f"{fuzz['wrong_after'] + pounding['wrong_after']} good requests after them are answered wrong; memory for a "
        f"message packed to burst: {phase['burst']['peak_bytes'] / 2**20:.0f} MiB; {connections['connections']:,} "
        f"connections leave {connections['grown_bytes'] / 2**20:.1f} MiB behind"
    )


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text
