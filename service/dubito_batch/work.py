"""The work of a job: which blocks are missing, and what makes a part of one, in whatever process that is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import pyarrow as arrow
from pyarrow import compute

from dubito_batch.answers import PROBLEM, STATUS
from dubito_batch.features import FeatureMap, check_columns
from dubito_batch.ledger import Ledger
from dubito_batch.parts import Folder, Place, encode_part
from dubito_batch.scoring import Scorer, score_block
from dubito_batch.sources import InputFile, count_rows, read_blocks, read_schema
from dubito_batch.summary import DRAWS, count_invalid, first_problem
from dubito_batch.tables import conform, naming
from dubito_client.errors import InvalidArgument, refused

_READERS = 8  # of footers at once: a store beyond this machine takes its time for each


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive blocks of one input file."""

    first: Place
    blocks: int | None  # None: all to the end of the file


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of one input file, before or after scoring."""

    place: Place
    rows: arrow.RecordBatch
    size: int  # bytes of the rows as they were read


@dataclass(frozen=True, slots=True)
class Written:
    """What is told of a part that was written."""

    rows: int
    invalid: int
    draws: int
    block: int  # bytes of its rows as they were read
    size: int  # bytes that its block took in memory, in all its forms together


@dataclass(frozen=True, slots=True)
class Work:
    """What a job has to do; `strict`: a row that cannot be scored is an error."""

    folder: Folder
    ledger: Ledger
    mapping: FeatureMap
    table: arrow.Schema  # of the rows of all files
    strict: bool = False

    def counts(self) -> list[int | None]:
        """Count the rows of every file; None where it does not say, or cannot be read: that is told in its turn."""
        return [_count(file) for file in self.ledger.files]

    def done(self) -> tuple[frozenset[Place], int]:
        """Return the blocks whose parts are there and whole, and how many rows these have.

        Raises `InvalidArgument` where one is not of this job, or the work is strict and one holds a row that could not
        be scored.
        """
        found = sorted(self.folder.parts())
        if found and found[-1].file >= len(self.ledger.files):
            given = f"{found[-1].name} in {self.folder.root}, which is of no file of the input"
            raise refused("output", given, "the parts of this job alone")
        with ThreadPoolExecutor(_READERS) as pool:
            counts = dict(zip(found, pool.map(self.folder.count_rows, found), strict=True))
        done = {place: count for place, count in counts.items() if count is not None}
        if self.strict:
            for place in done:
                self._check(place, self.folder.read_part(place, (STATUS, PROBLEM)))
        return frozenset(done), sum(done.values())

    def missing(self, done: Iterable[Place]) -> Iterator[Stretch]:
        """List what is still to be done, in the order of the input."""
        blocks: dict[int, set[int]] = {}
        for place in done:
            blocks.setdefault(place.file, set()).add(place.block)
        for file in range(len(self.ledger.files)):
            for first, count in gaps(blocks.get(file, set())):
                yield Stretch(Place(file, first), count)

    def read(self, stretch: Stretch) -> Iterator[Block]:
        """Read the blocks of a stretch; none where the file ends before it."""
        first, file = stretch.first, self.ledger.files[stretch.first.file]
        schema = read_schema(file)
        with naming(file):
            check_columns(self.mapping, schema)
        found = islice(read_blocks(file, self.ledger.batch_rows, first.block), stretch.blocks)
        conformed = (conform(rows, self.table, file) for rows in found)
        return (
            Block(Place(first.file, number), rows, rows.nbytes) for number, rows in enumerate(conformed, first.block)
        )

    def score(self, block: Block, scorer: Scorer) -> Block:
        """Score a block."""
        scored = score_block(block.rows, self.mapping, scorer)
        if self.strict:
            self._check(block.place, scored)
        return Block(block.place, scored, block.size)

    def write(self, scored: Block) -> Written:
        """Make a part of a block that is scored."""
        rows, content = scored.rows, encode_part(scored.rows, scored.place)
        self.folder.put(scored.place.name, content)
        draws = compute.sum(rows[DRAWS]).as_py() or 0
        return Written(
            rows=rows.num_rows,
            invalid=count_invalid(rows),
            draws=draws,
            block=scored.size,
            size=rows.nbytes + 2 * len(content),
        )

    def _check(self, place: Place, scored: arrow.RecordBatch | arrow.Table) -> None:
        found = first_problem(scored)
        if found is not None:
            at, problem = found
            row, file = place.block * self.ledger.batch_rows + at, self.ledger.files[place.file].url
            given = f"row {row} (from 0) of {file}, which cannot be scored ({problem})"
            raise refused("input", given, "with --strict, only rows that can be scored")


def total(counts: Iterable[int | None]) -> int | None:
    """Add up the rows of files; None where one is not known."""
    known = list(counts)
    return None if None in known else sum(filter(None, known))


def _count(file: InputFile) -> int | None:
    try:
        return count_rows(file)
    except InvalidArgument:
        return None


def gaps(done: set[int]) -> Iterator[tuple[int, int | None]]:
    """List the missing blocks of a file, given those that are done: the first and how many; None for all others."""
    first = 0
    for block in sorted(done):
        if block > first:
            yield first, block - first
        first = block + 1
    yield first, None
