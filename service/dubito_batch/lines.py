"""Lines: the rows of a CSV as texts, in their order, those too that have too few or too many cells."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import pyarrow as arrow
from pyarrow import csv

from dubito_batch.answers import PROBLEM
from dubito_batch.reading import problem_text

_PARSED_BYTES = 1 << 20  # at a time, where no line is longer
_CELL_BYTES = 64  # with room to spare
_LINE_BYTES = 1 << 28  # at most
_FIRST = 2  # as Arrow numbers rows: the names are 1

Opener = Callable[[], AbstractContextManager[arrow.NativeFile]]


def read_lines(opened: Opener, names: Sequence[str], delimiter: str) -> Iterator[arrow.RecordBatch]:
    """Read rows as texts, and last a column `dubito_problem`: null, but where a line has another number of cells.

    The row of such a line is null. A line must fit what is parsed at a time, so where one does not, that is doubled and
    the lines are read anew. Raises `ValueError` for a line of more than 256 MiB, and Arrow's errors.
    """
    told, size = 0, max(_PARSED_BYTES, _CELL_BYTES * len(names))
    while True:
        seen = 0
        try:
            for batch in _parse(opened, names, delimiter, size):
                seen += batch.num_rows
                if seen > told:
                    fresh, told = seen - told, seen
                    yield batch.slice(batch.num_rows - fresh)
            return
        except arrow.ArrowInvalid as error:
            if "straddling" not in str(error):
                raise
        size *= 2
        if size > _LINE_BYTES:
            raise ValueError(f"a line of more than {_LINE_BYTES >> 20} MiB, or a quote that nothing closes")


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _parse(opened: Opener, names: Sequence[str], delimiter: str, size: int) -> Iterator[arrow.RecordBatch]:
    schema = arrow.schema([*((name.strip(), arrow.string()) for name in names), (PROBLEM, arrow.string())])
    uneven: deque[tuple[int, arrow.RecordBatch]] = deque()  # by number of the row; some batches ahead

    def note(line: csv.InvalidRow) -> str:
        if "\n" in line.text and line.text.count('"') % 2:
            return "error"  # a quote that nothing closes, with all lines after it in its cell
        problem = problem_text("line", _cells(line.actual_columns), f"{_cells(len(names))}, one for each column")
        cells = [*(arrow.nulls(1, arrow.string()) for _ in names), arrow.array([problem])]
        uneven.append((line.number - _FIRST, arrow.RecordBatch.from_arrays(cells, schema=schema)))
        return "skip"

    with (
        opened() as stream,
        csv.open_csv(
            stream,
            read_options=csv.ReadOptions(block_size=size),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(names, arrow.string())),
        ) as reader,
    ):
        row = 0
        for batch in reader:
            columns = [*batch.columns, arrow.nulls(batch.num_rows, arrow.string())]
            rest = arrow.RecordBatch.from_arrays(columns, schema=schema)
            while rest.num_rows:
                if uneven and uneven[0][0] == row:
                    piece = uneven.popleft()[1]
                else:
                    piece = rest.slice(0, uneven[0][0] - row if uneven else None)
                    rest = rest.slice(piece.num_rows)
                row += piece.num_rows
                yield piece
        yield from (piece for _, piece in uneven)
