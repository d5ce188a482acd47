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
    load, bad, callers = document["load"], document["bad_input"], document["asked"]["callers"]
    steady, overload = load["steady"], load["overload"]
    yield from table(
        ("", ""),
        (
            (f"the capacity, {callers} callers", f"{load['capacity']['answers_per_second']:.0f} answers/s"),
            (f"80 % of it, {_span(steady)}", _steady(steady)),
            ("beside it", _trouble(load["trouble"])),
            (f"3 times of it, {_span(overload)}, {overload['deadline']:g} s for each", _overload(overload)),
            ("replays", _replays(load["replay"])),
            ("bad input", _bad_input(bad)),
            ("laws broken", "; ".join(document["broken"]) or "none"),
        ),
    )


def _span(phase: Document) -> str:
    seconds = phase["seconds"]
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} s"


def _steady(steady: Document) -> str:
    wait, growth = steady["milliseconds"]["Predict"], steady["resident_growth"]
    grows = "was looked at too seldom" if growth is None else f"grows by {growth:.1%} after the first third"
    return (
        f"{steady['answers']:,} answers, {steady['shortened'] / steady['answers']:.1%} of them with fewer draws than "
        f"asked, {sum(steady['refused'].values()):,} errors; resident memory {grows}. `Predict` p50 {wait['p50']:.0f} "
        f"ms, p99 {wait['p99'] / 1000:.1f} s (all priorities, no deadlines, 1 to 16 rows)"
    )


def _trouble(trouble: Document) -> str:
    return (
        f"{trouble['invalid']:,} wrong requests, {trouble['left']:,} callers that left and {trouble['killed']:,} that "
        f"were killed; {len(trouble['wrong']):,} of them dealt with wrongly"
    )


def _overload(overload: Document) -> str:
    refused, overtaken = overload["refusal_milliseconds"], overload["overtaken_milliseconds"]
    rate = overload["answers"] / overload["seconds"]
    return (
        f"{rate:.0f} answers/s, {overload['shortened'] / overload['answers']:.0%} of them with fewer draws than asked, "
        f"{overload['late_share']:.1%} of the {overload['timed_answers']:,} that were timed come late; "
        f"{overload['refused'].get('RESOURCE_EXHAUSTED', 0):,} refused: at the door within {refused['p50']:.0f} ms "
        f"(p99 {refused['p99']:.0f}), or, {overload['overtaken_share']:.0%} of them, once others had gone first (p50 "
        f"{overtaken.get('p50', 0):.0f} ms); {overload['expired_share']:.2%} end at their deadline unanswered (1 % "
        f"allowed). Back to normal after {overload['recovery_seconds']:.1f} s"
    )


def _replays(replay: Document) -> str:
    return (
        f"{replay['compared']:,} answers asked for again: {replay['differing']} differ, "
        f"{replay['stopped_otherwise']} stop at another draw"
    )


def _bad_input(bad: Document) -> str:
    connections = bad["connections"]
    return (
        f"{bad['fuzz']['cases']:,} messages, {bad['pounding']['cases']:,} calls that are none: "
        f"{bad['fuzz']['fault_count'] + len(bad['pounding']['faults'])} are the server's fault, "
        f"{bad['fuzz']['wrong_after'] + bad['pounding']['wrong_after']} good requests after them are answered wrong; "
        f"{connections['connections']:,} connections after as many others leave "
        f"{connections['grown_bytes'] / 2**20:.1f} MiB behind; "
        f"memory for a message packed to burst: {bad['burst']['peak_bytes'] / 2**20:.0f} MiB"
    )


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text
