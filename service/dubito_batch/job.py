"""The job: every row of the input scored once, however often the job is killed and taken up again.

A block of rows becomes a part, and the part's name is the block's number: so what is done is what is there, and a job
that goes on scores the blocks whose parts are missing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version as release_of
from typing import Any

import pyarrow as arrow
from fsspec.core import url_to_fs

from dubito_batch.answers import assemble
from dubito_batch.features import FeatureMap
from dubito_batch.ledger import LEDGER, SUMMARY, Ledger, anew, check_output, check_same, describe_job
from dubito_batch.memory import peak_memory
from dubito_batch.page import PAGE, put_page
from dubito_batch.parts import Folder, Place, encode_part, open_folder
from dubito_batch.ray_engine import RayModel, score_missing_on_ray
from dubito_batch.running import Progress, Watch, score_missing
from dubito_batch.scoring import Scorer, choose_batch_rows, map_files
from dubito_batch.sources import InputFile, find_files, measure_row, real_url, would_find
from dubito_batch.summary import Summary, read_summary, summarize
from dubito_batch.tables import read_schemas, unify
from dubito_batch.work import Work
from dubito_client.errors import InvalidArgument, refused

_NOTHING = Place(0, 0)  # of the part of a table without rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be scored, and where the answers go."""

    source: str  # a file, a folder, a glob or a URL of these
    output: str  # a folder or a URL of one
    columns: Mapping[str, Sequence[str]] | None = None  # by the input that they feed; None: by their names
    batch_rows: int | None = None  # of a block; None: as many as signature and columns let be of use
    workers: int | None = None  # blocks scored at once; None: as many as the scorer can use
    limit_memory: int | None = None  # bytes of this process
    resume: bool = False
    strict: bool = False
    abstain_above: float | None = None  # epistemic uncertainty; of the summary alone


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job; `fresh`: False where it was complete before."""

    summary: Summary
    fresh: bool
    no_page: str  # why there is no page beside the summary; empty where there is one


class InputChanged(InvalidArgument):
    """A file of the input was not the same throughout: the job cannot go on with its parts."""


def run_job(
    job: Job,
    open_scorer: Callable[[Mapping[str, Any] | None], Scorer | RayModel],
    report: Callable[[Progress], None] = lambda progress: None,
    *,
    stopped: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    peak: Callable[[], int] = peak_memory,
) -> Outcome:
    """Score all rows of the input that are not scored yet, and sum the job up.

    `open_scorer` makes the scorer, with the `passes` of the job that is taken up again. `report` is told when the job
    begins and after every part. Once `stopped` says so, blocks under way are finished and `Interrupted` is raised.
    `peak`: the most bytes that this process has taken so far. Raises `InvalidArgument` for what the caller can mend,
    `NotWritten` and the errors of the scorer; from the first report on, finished parts are kept and the job can be
    taken up again.
    """
    _check(job)
    watch = Watch(report=report, stopped=stopped, clock=clock, peak=peak)
    folder = open_folder(job.output)
    begun = check_output(folder, job.resume)
    files = find_files(job.source)
    _check_apart(folder, job.source, files)
    scorer = open_scorer(None if begun is None else begun.passes)
    if isinstance(scorer, RayModel) and job.limit_memory is not None:
        raise refused("limit_memory", job.limit_memory, "none on Ray, whose workers are other processes")
    schemas = read_schemas(files)
    mapping = map_files(scorer.described.inputs, schemas, job.columns)
    table = unify(schemas)
    nothing = _score_nothing(table, scorer)
    batch_rows = job.batch_rows or (
        choose_batch_rows(scorer.described.inputs, measure_row([*schemas])) if begun is None else begun.batch_rows
    )
    ledger = _describe(job, scorer, mapping, files, table, batch_rows)
    folder.make()
    with folder.locked():
        begun = check_output(folder, job.resume)
        folder.clear_left_overs()
        if begun is None:
            folder.put(LEDGER, ledger.encode())
        else:
            check_same(begun, ledger, {place.file for place in folder.parts()})
            complete = read_summary(folder)
            if complete is not None and begun == ledger and _says_all(complete, job):
                return Outcome(complete, False, "" if PAGE in folder.names() else "no page")
            if begun != ledger:
                folder.put(LEDGER, ledger.encode())
        work, workers = Work(folder, ledger, mapping, table, job.strict), job.workers or scorer.threads
        if isinstance(scorer, RayModel):
            done = score_missing_on_ray(work, scorer, watch, actors=workers)
        else:
            done = score_missing(work, scorer, watch, workers=workers, limit_memory=job.limit_memory)
        if not folder.parts():
            folder.put(_NOTHING.name, nothing)
        _check_unchanged(files, job.source)
        summary = summarize(
            folder,
            ledger,
            scorer.described,
            scored=done.scored,
            seconds=done.seconds,
            threshold=job.abstain_above,
            advance=watch.check,
        )
        no_page = put_page(folder, summary)
        folder.put(SUMMARY, summary.encode())
    return Outcome(summary, True, no_page)


def _check(job: Job) -> None:
    for name, given in (("batch_rows", job.batch_rows), ("workers", job.workers)):
        if given is not None and given < 1:
            raise refused(name, given, "at least 1")
    if job.abstain_above is not None and not math.isfinite(job.abstain_above):
        raise refused("abstain_above", job.abstain_above, "a finite number")


def _says_all(summary: Summary, job: Job) -> bool:
    """Say whether the summary of a complete job holds all that is asked now."""
    return summary.threshold == job.abstain_above and not (job.strict and summary.invalid)


def _check_apart(folder: Folder, source: str, files: Iterable[InputFile]) -> None:
    """Raise `InvalidArgument` where parts would be taken for input when the job is taken up again."""
    if would_find(source, folder.system, f"{folder.root}/{Place(0, 0).name}"):
        raise refused("output", f"{folder.root} inside the input", "a folder beside the input")
    output = real_url(folder.system, folder.root)
    for file in files:
        if real_url(*url_to_fs(file.url)).startswith(f"{output}/"):
            raise refused("output", f"{folder.root}, which holds the input {file.url}", "a folder beside the input")


def _score_nothing(schema: arrow.Schema, scorer: Scorer | RayModel) -> bytes:
    """Return the part of no rows; `InvalidArgument` where the table's columns cannot be written."""
    empty = arrow.RecordBatch.from_arrays([arrow.nulls(0, field.type) for field in schema], schema=schema)
    scored = assemble(empty, [], {}, scorer.described, scorer.asked)
    try:
        return encode_part(scored, _NOTHING)
    except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError) as error:
        raise refused("input", f"a column that Parquet cannot hold ({error})", "columns that it can") from error


def _describe(
    job: Job,
    scorer: Scorer | RayModel,
    mapping: FeatureMap,
    files: tuple[InputFile, ...],
    table: arrow.Schema,
    batch_rows: int,
) -> Ledger:
    return describe_job(
        scorer.described,
        scorer.asked.document(),
        mapping.columns,
        batch_rows,
        files,
        scorer.passes,
        {"dubito": release_of("dubito"), "pyarrow": arrow.__version__},
        {field.name: str(field.type) for field in table},
    )


def _check_unchanged(files: Iterable[InputFile], source: str) -> None:
    """Raise `InputChanged` where a part may be of other rows than its neighbours; a file that is gone was read."""
    try:
        now = {file.url: file for file in find_files(source)}
    except InvalidArgument:
        return
    for number, file in enumerate(files):
        if now.get(file.url, file) != file:
            error = refused(
                "input", f"{file.url}, which changed while the job ran", f"one that does not; {anew(number)}"
            )
            raise InputChanged(str(error), error.violations)
