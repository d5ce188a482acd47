"""The command `dubito score`: a table in, the same table with predictions and their uncertainty out."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from dubito_batch.answers import Asked
from dubito_batch.features import read_asked
from dubito_batch.job import InputChanged, Job, Outcome, run_job
from dubito_batch.page import PAGE, describe, file_name
from dubito_batch.progress import shown
from dubito_batch.ray_engine import Opening, RayModel, connected, open_on_ray
from dubito_batch.remote import RemoteScorer
from dubito_batch.running import Interrupted, Progress
from dubito_batch.scoring import Scorer
from dubito_client.client import Client
from dubito_client.command import failure, reaching
from dubito_client.drawing import drawing, read_stopping
from dubito_client.errors import DubitoClientError, refused

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)

OpenScorer = Callable[[Mapping[str, Any] | None], Scorer | RayModel]


class Size(click.ParamType[int]):
    """A number of bytes: 2GiB, 500 MB, 1048576."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it; GB is a power of ten, GiB one of two."""
        found = _SIZE.fullmatch(str(value).strip())
        if found is None:
            self.fail(f"{value!r} is no size such as 2GiB or 500MB", param, ctx)
        return int(float(found[1]) * (1024 if found[3] else 1000) ** _UNITS[found[2].lower()])


@dataclass(slots=True)
class _Signals:
    """Which signal asked for the end, if any did."""

    told: int | None = None

    def __call__(self) -> bool:
        """Say whether one did."""
        return self.told is not None


@contextmanager
def _ending_well(console: Console) -> Iterator[_Signals]:
    """Let the first Ctrl-C or SIGTERM ask for the end, and the second bring it at once: parts are whole in any case."""
    signals = _Signals()

    def handle(number: int, frame: FrameType | None) -> None:
        signals.told = number
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        console.print("ending with the blocks under way; once more to end at once", soft_wrap=True)

    before = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@click.command()
@click.argument("model")
@click.option("--input", "source", required=True, metavar="PATH", help="Of rows; see above.")
@click.option("--output", required=True, metavar="DIR", help="Folder or URL of one, for Parquet files.")
@click.option("--repository", metavar="DIR", help="Score here, by a model of this folder of models, or URL of one.")
@reaching(required=False)
@click.option("--version", "number", type=click.IntRange(1), help="Of the model; the newest by default.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Score --repository's model here, or on a Ray cluster.",
)
@click.option("--ray-address", metavar="HOST:PORT", help="Of a cluster; one of this machine's own by default.")
@drawing
@click.option("--min-draws", type=int, help="At least so many, where a rule may end them.")
@click.option("--tolerance", type=float, help="Draw until the standard error of the prediction is at most so much.")
@click.option("--quantile", "quantiles", type=float, multiple=True, help="Of the predictive distribution (regression).")
@click.option(
    "--columns",
    multiple=True,
    metavar="NAME=COLUMNS",
    help="What feeds the input NAME: columns between commas, globs too, or one of lists. By their names by default.",
)
@click.option("--batch-rows", type=click.IntRange(1), help="Of a block, and of a file of the output.")
@click.option("--workers", type=click.IntRange(1), help="Blocks scored at once; all cores by default, on Ray its GPUs.")
@click.option("--limit-memory", type=Size(), metavar="SIZE", help="Of this process, 2GiB for example.")
@click.option("--resume", is_flag=True, help="Go on with the job that was begun in DIR.")
@click.option("--strict", is_flag=True, help="Stop at the first row that cannot be scored.")
@click.option("--abstain-above", type=float, help="Count the rows of epistemic uncertainty above this.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON document.")
@click.pass_context
def score(ctx: click.Context, /, **options: Any) -> None:
    """Score a table with MODEL, in this process (--repository) or by a server (--server).

    With --engine ray the workers of a Ray cluster do it, whose machines all must
    reach input, output and repository under the same names.

    \b
    PATH is a file, a folder, a glob such as 'days/*.parquet', or a URL of these:
      .parquet               read as it is
      .arrow, .feather       likewise
      .csv, .csv.gz          with a line of names; all columns stay texts
    DIR gets Parquet files, in the order of the rows: the columns of the input,
    and those of the answer, whose names begin with dubito_. DIR/*.parquet names
    them all for what reads several as one table.

    A row that cannot be scored comes out with the status INVALID and the
    problem. A job that was ended, killed too, goes on with --resume, and ends
    with the same files.
    """
    console = Console(stderr=True, highlight=False, markup=False)
    last: Progress | None = None
    with _ending_well(console) as signals:
        try:
            job, open_scorer = _job(options), _opening(ctx, options, console)
            with shown(console) as show:

                def report(progress: Progress) -> None:
                    nonlocal last
                    last = progress
                    show(progress)

                outcome = run_job(job, open_scorer, report, stopped=signals)
        except Interrupted:
            click.echo(f"Interrupted{_kept(last)}.", err=True)
            ctx.exit(128 + (signals.told or signal.SIGINT))
        except DubitoClientError as error:
            ended = failure(error)
            kept = "" if isinstance(error, InputChanged) else _kept(last)
            raise type(ended)(ended.message + kept) from error
    if options["as_json"]:
        page = None if outcome.no_page else PAGE
        click.echo(json.dumps({**outcome.summary.document(), "output": job.output, "page": page}, allow_nan=False))
    else:
        _show(outcome, job)


def _job(options: Mapping[str, Any]) -> Job:
    names = ("source", "output", "batch_rows", "workers", "limit_memory", "resume", "strict", "abstain_above")
    return Job(columns=read_asked(options["columns"]), **{name: options[name] for name in names})


def _opening(ctx: click.Context, options: Mapping[str, Any], console: Console) -> OpenScorer:
    """Return what makes the scorer, here or at a server; one that the environment names gives way to --repository."""
    asked, repository = _asked(options), options["repository"]
    connect: Callable[[], Client] | None = options["connect"]
    named = ctx.get_parameter_source("server") is click.core.ParameterSource.COMMANDLINE
    if repository is not None and named:
        raise refused("repository", "both --repository and --server", "one of them")
    model, number = options["model"], options["number"]
    if options["engine"] == "ray":
        if repository is None:
            raise refused("engine", "ray without --repository", "--repository, whose model Ray's workers open")
        opening = Opening(repository=_absolute(repository), model=model, version=number, asked=asked)

        def open_there(passes: Mapping[str, Any] | None) -> RayModel:
            ctx.with_resource(connected(options["ray_address"]))
            return open_on_ray(opening, passes)

        return open_there
    if options["ray_address"] is not None:
        raise refused("ray_address", options["ray_address"], "this only with --engine ray")
    if repository is not None:
        workers = options["workers"]
        return lambda passes: _open_here(repository, model, asked, number, workers, passes)
    if connect is None:
        raise refused("repository", "nothing", "--repository DIR to score here, or --server HOST:PORT")
    tell = partial(console.print, soft_wrap=True)
    return lambda passes: RemoteScorer(ctx.with_resource(connect()), model, asked, version=number, tell=tell)


def _absolute(repository: str) -> str:
    """Return the name that a folder has in other processes too."""
    return repository if "://" in repository or "::" in repository else str(Path(repository).absolute())


def _open_here(
    repository: str,
    model: str,
    asked: Asked,
    number: int | None,
    workers: int | None,
    passes: Mapping[str, Any] | None,
) -> Scorer:
    try:
        from dubito_batch.local import open_local
        from dubito_models.memory import keep_pages
    except ModuleNotFoundError as error:
        accepted = "--server, or what scoring here needs: pip install 'dubito[batch,models]'"
        raise refused("repository", f"{repository}, without {error.name}", accepted) from error
    keep_pages()
    return open_local(repository, model, asked, version=number, threads=workers, passes=passes)


def _asked(options: Mapping[str, Any]) -> Asked:
    plain = ("draws", "min_draws", "tolerance", "seed", "coverage", "interval_level", "design", "estimator")
    return Asked(
        stopping=read_stopping(*(options[name] for name in ("stop", "target", "of", "level"))),
        quantiles=options["quantiles"],
        **{name: options[name] for name in plain},
    )


def _kept(last: Progress | None) -> str:
    """Say what is left of a job that ended early, once it had begun."""
    if last is None:
        return ""
    parts = "1 finished part is" if last.parts == 1 else f"{last.parts:,} finished parts are"
    return f"; {parts} kept, and --resume goes on"


def _show(outcome: Outcome, job: Job) -> None:
    console, summary = Console(highlight=False, markup=False), outcome.summary
    grid = Table.grid(padding=(0, 2))
    for name, said in describe(summary).items():
        grid.add_row(name, said)
    console.print(grid)
    if summary.problems:
        console.print("\nRows that could not be scored, by what was wrong:")
    for kind in summary.problems:
        example = kind.examples[0]
        where = f"row {example.row} of {file_name(example.file)}: {example.given}"
        console.print(f"{kind.rows:>9,}  {kind.what} ({where})", soft_wrap=True)
    console.print()
    if not outcome.fresh:
        console.print("This job was complete before; nothing was done.")
    said = outcome.no_page or f"page: {job.output.rstrip('/')}/{PAGE}"
    console.print(said, soft_wrap=True)
