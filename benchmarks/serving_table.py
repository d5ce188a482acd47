"""The tables of the README from what `benchmarks/serving.py --out` wrote.

python benchmarks/serving_table.py benchmarks/results/serving.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def tabulate(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the tables: by server and callers, of a request's bare cost, and of the targets."""
    yield "| network | call | callers | server | draws | requests/s | p50 ms | p99 ms |"
    yield "|---|---|---|---|---|---|---|---|"
    for part in document["beside others"]:
        for cell in part["cells"]:
            yield row(cell["network"], cell["call"], *measured(cell))
    yield ""
    yield "| network | callers | server | draws | requests/s | p50 ms | p99 ms |"
    yield "|---|---|---|---|---|---|---|"
    for cell in document["bare"]["cells"]:
        yield row(cell["network"], *measured(cell))
    yield ""
    yield "| at 64 callers | aimed at | found |"
    yield "|---|---|---|"
    for target in document["targets, at 64 callers"]:
        yield row(target["what"], f"{target['aimed at']:g}x", f"{target['found']:.2f}x")


def measured(cell: Mapping[str, Any]) -> tuple[object, ...]:
    """Return what a line says of one cell."""
    return (
        cell["callers"],
        cell["server"],
        cell.get("draws", "-"),
        f"{cell['requests per second']:.0f}",
        f"{cell['p50 milliseconds']:.1f}",
        f"{cell['p99 milliseconds']:.1f}",
    )


def row(*values: object) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(str(value) for value in values)} |"


if __name__ == "__main__":
    print("\n".join(tabulate(json.loads(Path(sys.argv[1]).read_text()))))
