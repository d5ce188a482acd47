"""Writes the tables of figures in the documents anew, from the JSON of benchmarks/results.

python benchmarks/figures.py

A table stands between `<!-- figures: NAME -->` and `<!-- end of figures -->`, NAME one of `TABLES`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import engine_table
import other_tables
import serving_table
import uci_table

HERE = Path(__file__).parent
DOCUMENTS = tuple(HERE.parent / name for name in ("README.md", "benchmarks/README.md", "tests/reliability/README.md"))
BLOCK = re.compile(r"(<!-- figures: (.*?) -->\n).*?(<!-- end of figures -->)", flags=re.DOTALL)


def read(name: str) -> Any:
    """Return what a benchmark wrote."""
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def of(tabulate: Callable[[Mapping[str, Any]], Iterator[str]], name: str) -> Iterator[str]:
    """Yield the lines of a table of one document."""
    return tabulate(read(name))


def of_protocols() -> Iterator[str]:
    """Yield the lines of the table of all protocols of `benchmarks/uci.py`."""
    return uci_table.tabulate({protocol: read(f"uci-{protocol}") for protocol in uci_table.COMPARED})


TABLES: Mapping[str, Callable[[], Iterator[str]]] = {
    "engine, speed": partial(of, engine_table.speed, "engine"),
    "engine, aims": partial(of, engine_table.aims, "engine"),
    "engine, settled decisions": partial(of, engine_table.settled, "engine"),
    "engine, accuracy": partial(of, engine_table.accuracy, "engine"),
    "engine, bfloat16": partial(of, engine_table.rounding, "engine"),
    "engine, memory": partial(of, engine_table.memory, "engine"),
    "serving": partial(of, serving_table.beside, "serving"),
    "serving, aims": partial(of, serving_table.aims, "serving"),
    "scored tables": partial(of, other_tables.scoring, "batch"),
    "scored tables, stopping rules": partial(of, other_tables.stopping, "batch"),
    "scored tables, memory": partial(of, other_tables.footprint, "batch"),
    "calibration, scores": partial(of, other_tables.scores, "calibrating"),
    "calibration, coverage": partial(of, other_tables.coverage, "calibrating"),
    "the paper's table": of_protocols,
    "reliability": partial(of, other_tables.reliability, "reliability"),
}


def write_tables(text: str) -> str:
    """Return a document with its tables written anew."""
    return BLOCK.sub(lambda block: block[1] + "\n".join(TABLES[block[2]]()) + "\n" + block[3], text)


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(write_tables(document.read_text()))
