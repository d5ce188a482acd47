"""The tables of results/serving.json, which `benchmarks/serving.py --out` wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markdown_table import table, times

Document = Mapping[str, Any]

OURS = "dubito"
NAMES = {
    "mlserver": ("MLServer", "mlserver"),
    "litserve": ("LitServe", "litserve"),
    "pytriton": ("PyTriton", "nvidia-pytriton"),
}  # as they are written, and the distribution whose version is told


def beside(document: Document) -> Iterator[str]:
    """Yield what each server makes of the most callers, and how long a caller alone waits."""
    headings = ("network", "call", "server", "requests/s", "p50 ms", "p99 ms", "p50 ms of one caller alone")
    versions = {name: found[NAMES[name][1]] for name, found in document["versions of the others"].items()}
    yield from table(headings, (line for part in document["beside others"] for line in _servers(part, versions)))


def _servers(part: Document, versions: Mapping[str, str]) -> Iterator[tuple[object, ...]]:
    found = {(cell["call"], cell["server"], cell["callers"]): cell for cell in part["cells"]}
    most, least = max(callers for *_, callers in found), min(callers for *_, callers in found)
    for call, server, callers in found:
        if callers == most and server in (OURS, *NAMES):
            cell, alone = found[call, server, most], found[call, server, least]
            name = OURS if server == OURS else f"{NAMES[server][0]} {versions[server]}"
            waits = (cell["p50 milliseconds"], cell["p99 milliseconds"])
            yield (
                *(f"digits {part['network']}", call, name, f"{cell['requests per second']:.0f}"),
                *(f"{wait:.0f}" for wait in waits),
                f"{alone['p50 milliseconds']:.1f}",
            )


def aims(document: Document) -> Iterator[str]:
    """Yield what was aimed at beside what was found; bold: not reached."""
    lines = (
        (target["what"], f"{target['aimed at']:g}x", _found(target)) for target in document["targets, at 64 callers"]
    )
    yield from table(("requests/s at 64 callers", "aimed at", "found"), lines)


def _found(target: Document) -> str:
    return times(target["found"]) if target["reached"] else f"**{times(target['found'])}**"
