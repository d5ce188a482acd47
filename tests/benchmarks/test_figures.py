"""The tables of figures in the documents are those of the committed results."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import engine_table  # noqa: E402
import figures  # noqa: E402
from markdown_table import figure, times  # noqa: E402


@pytest.mark.parametrize("document", figures.DOCUMENTS, ids=lambda path: path.parent.name)
def test_a_document_says_what_the_results_say(document: Path) -> None:
    """`make figures` would change nothing."""
    text = document.read_text()
    assert figures.write_tables(text) == text


def test_every_table_stands_in_one_document() -> None:
    named = Counter(name for path in figures.DOCUMENTS for _, name, _ in figures.BLOCK.findall(path.read_text()))
    assert named == Counter(figures.TABLES.keys())
    for path in figures.DOCUMENTS:
        assert path.read_text().count("<!-- figures: ") == len(figures.BLOCK.findall(path.read_text()))


def test_a_result_that_changes_is_written_into_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing but its table is touched."""
    before = "As it was.\n\n<!-- figures: engine, settled decisions -->\nold\n<!-- end of figures -->\n\nAs it was.\n"
    found = copy.deepcopy(figures.read("engine"))
    found["networks"][0]["settled decisions"]["times faster"] = 1234.5
    monkeypatch.setattr(figures, "read", lambda name: found)
    after = figures.write_tables(before)
    assert "| 1234x | 20x |" in after
    assert "old" not in after
    assert after.startswith("As it was.\n\n<!-- figures: engine, settled decisions -->\n| network |")
    assert after.endswith("|\n<!-- end of figures -->\n\nAs it was.\n")
    assert figures.write_tables(after) == after


def test_an_aim_that_is_missed_is_said() -> None:
    """A peak above a quarter of the repeated batch's, and an aim that neither precision reaches, are bold."""
    found = figures.read("engine")
    peaks = [
        share > 0.25
        for network in found["networks"]
        for cell in network["memory"]
        for share in cell["share of the repeated batch's"].values()
    ]
    assert "\n".join(engine_table.memory(found)).count("**") == 2 * sum(peaks) > 0
    [mlp] = [line for line in engine_table.aims(found) if "p .5" in line]
    gains = next(cell for cell in found["networks"][1]["speed"] if (cell["rows"], cell["draws"]) == (8, 64))
    missed = max(gains[engine_table.EQUAL_DRAWS][way] for way in (engine_table.OURS, engine_table.ROUNDED)) < 4
    assert ("**4x**" in mlp) == missed


def test_figures_have_three_digits_and_all_before_the_point() -> None:
    said = [figure(value) for value in (0.00616, 1.2, 9.0, 22.16, 294.0, 1770.6)]
    assert said == ["0.00616", "1.2", "9", "22.2", "294", "1771"]
    assert (figure(None), times(1.87), times(1.87, 2.82)) == ("-", "1.87x", "1.87 / 2.82x")
