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
    steady, overload, replay = load["steady"], load["overload"], load["replay"]
    wait, refused = steady["milliseconds"]["Predict"], overload["refused"]
    growth = steady["resident_growth"]
    grows = (
        "was looked at too seldom to tell whether it grows"
        if growth is None
        else f"grows by {growth:.1%} after the first third"
    )
    missed = refused.get("DEADLINE_EXCEEDED", 0)
    lines = (
        (
            f"80 % of capacity, {steady['seconds'] / 60:.0f} minutes, {document['asked']['callers']} callers",
            f"{steady['answers']:,} answers, {sum(steady['refused'].values()):,} errors; resident memory "
            f"{grows}. `Predict` p50 {wait['p50']:.0f} ms, p99 "
            f"{wait['p99'] / 1000:.1f} s (all priorities, 1 to 16 rows)",
        ),
        (
            f"3 times the capacity, {overload['seconds'] / 60:.0f} minutes",
            f"{overload['answers']:,} answers, {overload['answered_late']} of them late; "
            f"{refused.get('RESOURCE_EXHAUSTED', 0):,} refused, half of them within "
            f"{overload['refusal_milliseconds']['p50']:.0f} ms; {missed:,} ({overload['expired_share']:.1%}) end at "
            f"their deadline unanswered, where the law allows 1 %. Back to normal after "
            f"{overload['recovery_seconds']:.1f} s",
        ),
        (
            "replays",
            f"{replay['compared']:,} answers asked for again: {replay['differing']} differ, "
            f"{replay['stopped_otherwise']} stop at another draw",
        ),
        (
            "bad input",
            f"{bad['fuzz']['cases']:,} messages, {bad['pounding']['cases']:,} connections: "
            f"{bad['fuzz']['fault_count'] + len(bad['pounding']['faults'])} are the server's fault, "
            f"{bad['fuzz']['wrong_after'] + bad['pounding']['wrong_after']} good requests after them are answered "
            f"wrong; memory for a message packed to burst: {bad['burst']['peak_bytes'] / 2**20:.0f} MiB",
        ),
        ("laws broken", "; ".join(document["broken"]) or "none"),
    )
    yield from table(("", ""), lines)


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text
