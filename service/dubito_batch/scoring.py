"""Scoring: blocks of a table in, the same blocks with predictions and their uncertainty out."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import numpy as np
import pyarrow as arrow
from numpy.typing import NDArray

from dubito_batch.answers import PROBLEM, Asked, Described, Scored, assemble, check_names
from dubito_batch.features import FeatureMap, check_columns, map_columns, read_features
from dubito_batch.remote import RemoteScorer
from dubito_batch.sources import InputFile, find_files, measure_row, read_blocks
from dubito_batch.tables import conform, naming, read_schemas, unify
from dubito_client.answers import InputSignature
from dubito_client.client import Client
from dubito_client.errors import InvalidArgument, refused

if TYPE_CHECKING:
    from dubito_models.package import ModelVersion

MOST_ROWS = 8192  # of a block, where nobody says otherwise
_BLOCK_BYTES = 32 << 20  # of a block's inputs, and of its columns, likewise
_FREE_SIZE = 512  # as which a free axis counts
_NO_ANSWER = "the network's answer: got NaN or infinity; accepted: finite numbers"
_AHEAD = 2  # blocks beside those that are scored, read already or waiting to be taken

_SOURCES = "a path, a glob or a URL, or what Arrow has: a table, or record batches (of pandas: Table.from_pandas)"


class Scorer(Protocol):
    """One model that answers rows, here or at a server; several threads may call `score` at once."""

    @property
    def described(self) -> Described:
        """What the model is."""

    @property
    def asked(self) -> Asked:
        """What is asked of its draws."""

    @property
    def threads(self) -> int:
        """How many threads that call `score` at once are of use."""

    @property
    def passes(self) -> Mapping[str, int | str]:
        """What rounding hangs on, beside all that: the same again wherever answers are to be the same to the bit."""

    def score(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer rows (B, ...) of equal shapes, by input name: arrays (B, ...) by their names in a `Prediction`.

        What it does not say is left out; where its answer is no finite number, `probabilities` or `mean` are none
        either. Raises `InvalidArgument`, with the field `inputs[...].shape`, for sizes that
        the model does not take.
        """


Source: TypeAlias = str | os.PathLike[str] | arrow.Table | arrow.RecordBatch | Iterable[arrow.RecordBatch]
Model: TypeAlias = "ModelVersion | Scorer | tuple[Client, str]"


def choose_batch_rows(inputs: Sequence[InputSignature], row_bytes: int = 0) -> int:
    """Return the largest power of two up to 8192 of which inputs, and columns, take at most 32 MiB each.

    Free axes of inputs count as 512; `row_bytes`: of all columns of a row, also those that pass through.
    """
    input_bytes = sum(
        math.prod(_FREE_SIZE if size is None else size for size in entry.shape[1:]) * np.dtype(entry.dtype).itemsize
        for entry in inputs
    )
    return 1 << (max(1, min(MOST_ROWS, _BLOCK_BYTES // max(1, input_bytes, row_bytes))).bit_length() - 1)


def _take_problems(block: arrow.RecordBatch) -> tuple[arrow.RecordBatch, dict[int, str]]:
    """Return a block without its column of problems, and these by row."""
    at = block.schema.get_field_index(PROBLEM)
    if at < 0:
        return block, {}
    told = enumerate(block.column(at).to_pylist())
    return block.remove_column(at), {row: problem for row, problem in told if problem is not None}


def score_block(block: arrow.RecordBatch, mapping: FeatureMap, scorer: Scorer) -> arrow.RecordBatch:
    """Score the rows of a block: its own columns come first, then those of `result_schema`.

    Rows of a size that the model does not take, and those that it has no finite answer to, have a problem, as those
    have whose cells are bad, and those that have one in a column `dubito_problem`, as `read_blocks` gives it.
    """
    block, problems = _take_problems(block)
    whole = np.setdiff1d(np.arange(block.num_rows), [*problems])
    features = read_features(block.take(arrow.array(whole)) if problems else block, mapping)
    problems |= {int(whole[row]): problem for row, problem in features.problems.items()}
    scored = []
    for group in features.groups:
        rows = whole[group.rows]
        try:
            answers = scorer.score(group.inputs)
        except InvalidArgument as error:
            if not error.field.endswith("].shape"):
                raise
            problems |= dict.fromkeys(rows.tolist(), str(error))
            continue
        finite = _are_finite(answers)
        if finite.all():
            scored.append(Scored(rows, answers))
        else:
            problems |= dict.fromkeys(rows[~finite].tolist(), _NO_ANSWER)
            scored.append(Scored(rows[finite], {name: values[finite] for name, values in answers.items()}))
    return assemble(block, scored, problems, scorer.described, scorer.asked)


def _are_finite(answers: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Tell of each row (B,) whether what is predicted is a finite number."""
    found = np.ones(len(answers["draws"]), np.bool_)
    for name in ("probabilities", "mean", "aleatoric_variance"):
        if name in answers:
            found &= np.isfinite(answers[name]).all(-1)
    return found


def score(
    source: Source,
    model: Model,
    asked: Asked | None = None,
    *,
    columns: Mapping[str, Sequence[str]] | None = None,
    batch_rows: int | None = None,
) -> Iterator[arrow.RecordBatch]:
    """Score a table, and yield it block by block in its order, each with the columns of `result_schema`.

    `source`: a path, glob or URL as `dubito score --input` takes it, a table, or batches. `model`: a version that is
    loaded here, a client with a model's name, or a scorer, which knows what is asked. `columns`: which of the table's
    feed which input, by its name or a glob; by themselves by their names. `batch_rows`: of a block, at most. Few
    blocks are in memory at once. Raises `InvalidArgument`, and the errors of the scorer.
    """
    scorer = open_scorer(model, asked)
    if batch_rows is not None and batch_rows < 1:
        raise refused("batch_rows", batch_rows, "at least 1")
    blocks = _mapped(source, scorer, columns, batch_rows)
    return _score_all(blocks, scorer)


def open_scorer(model: Model, asked: Asked | None = None) -> Scorer:
    """Return the scorer of a version that is loaded here, or of a client and a model's name; a scorer as it is."""
    if isinstance(model, tuple):
        return RemoteScorer(*model, asked)
    if hasattr(model, "manifest"):
        from dubito_batch.local import LocalScorer  # needs torch

        return LocalScorer(cast("ModelVersion", model), asked)
    if asked not in (None, model.asked):
        raise refused("asked", asked, "nothing beside a scorer, which knows what is asked")
    return model


def map_files(
    inputs: Sequence[InputSignature],
    schemas: Mapping[InputFile, arrow.Schema],
    columns: Mapping[str, Sequence[str]] | None,
) -> FeatureMap:
    """Find the columns for each input as `map_columns` does, in the first file, and see that all files have them.

    Raises `InvalidArgument`, by file, also where a name of a column begins as those added do.
    """
    first = next(iter(schemas))
    with naming(first):
        mapping = map_columns(inputs, schemas[first], columns)
    for file, schema in schemas.items():
        with naming(file):
            check_columns(mapping, schema)
            check_names(schema)
    return mapping


def _mapped(
    source: Source, scorer: Scorer, columns: Mapping[str, Sequence[str]] | None, batch_rows: int | None
) -> Iterator[tuple[arrow.RecordBatch, FeatureMap]]:
    """Yield blocks and what feeds the inputs; the columns that the first has are looked for in all."""
    if isinstance(source, str | os.PathLike):
        files = find_files(os.fspath(source))
        schemas = read_schemas(files)
        mapping, table = map_files(scorer.described.inputs, schemas, columns), unify(schemas)
        rows = batch_rows or choose_batch_rows(scorer.described.inputs, measure_row([*schemas]))
        for file in files:
            for block in read_blocks(file, rows):
                yield conform(block, table, file), mapping
        return
    rows = batch_rows or choose_batch_rows(scorer.described.inputs)
    batches = _batches(source, rows)
    first = next(batches, None)
    if first is None:
        return
    mapping = map_columns(scorer.described.inputs, first.schema, columns)
    schema = first.schema
    check_names(schema)
    for batch in chain([first], batches):
        if batch.schema != schema:
            check_columns(mapping, batch.schema)
            check_names(batch.schema)
            schema = batch.schema
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows), mapping


def _batches(source: arrow.Table | arrow.RecordBatch | Iterable[arrow.RecordBatch], rows: int) -> Iterator[Any]:
    """Yield the batches of what is in memory; `InvalidArgument` where it is of another kind, or holds another."""
    if isinstance(source, arrow.Table):
        source = source.to_batches(rows)
    elif isinstance(source, arrow.RecordBatch):
        source = [source]
    elif not isinstance(source, Iterable):
        raise refused("source", f"a {type(source).__name__}", _SOURCES)
    for batch in source:
        if not isinstance(batch, arrow.RecordBatch):
            raise refused("source", f"a {type(source).__name__} of {type(batch).__name__}", _SOURCES)
        yield batch


def _score_all(blocks: Iterator[tuple[arrow.RecordBatch, FeatureMap]], scorer: Scorer) -> Iterator[arrow.RecordBatch]:
    """Score blocks in threads, and yield them in their order."""
    waiting: deque[Future[arrow.RecordBatch]] = deque()
    with ThreadPoolExecutor(scorer.threads) as pool:
        try:
            for block, mapping in blocks:
                waiting.append(pool.submit(score_block, block, mapping, scorer))
                if len(waiting) >= scorer.threads + _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
