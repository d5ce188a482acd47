"""Tables of Markdown, and how figures stand in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield row(headings)
    yield "|" + "---|" * len(headings)
    for cells in rows:
        yield row(cells)


def row(cells: Sequence[object]) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def figure(value: float | None, digits: int = 3) -> str:
    """Return a number to so many digits, all of those before the point; - for none."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def times(*values: float) -> str:
    """Return ratios, as in 1.87 / 2.82x."""
    return " / ".join(map(figure, values)) + "x"
