"""The command line: `dubito`, its lazily loaded commands, and the client's own two."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import click
import numpy as np

from dubito_client.answers import Design, Estimator, Evaluation, MaskScope, ModelInfo, Prediction
from dubito_client.client import Client
from dubito_client.drawing import drawing, read_stopping
from dubito_client.errors import (
    AccessDenied,
    DubitoClientError,
    InvalidArgument,
    MessageTooLarge,
    NotFound,
    TlsFailed,
    refused,
)
from dubito_client.files import read_arrays, read_table
from dubito_client.inputs import Inputs, fit_rows
from dubito_client.receipts import append_receipt, read_labels, read_receipts, summary
from dubito_client.secure import read_token
from dubito_client.stopping import Quantity, Rule

SHOWN_LINES = 50

_GROUP = "dubito.commands"
# Said here because help must list a command without importing it: training alone imports torch.
_CAPTIONS = {
    "calibrate": "Calibrate a packaged model on labelled rows.",
    "evaluate": "Score a packaged model on labelled rows, and report.",
    "bench": "Measure what a packaged model costs here, and how many draws it needs.",
    "load": "Have a server load a model of its repository.",
    "models": "List the models that a server holds.",
    "observe": "Bring the labels of earlier predictions back to a server.",
    "predict": "Predict the rows of a file, and say how far to trust it.",
    "score": "Score a table of any size, and say of every row how far to trust it.",
    "serve": "Serve a repository of packaged models over gRPC.",
    "token": "Make tokens for the callers of a server.",
    "train": "Train, calibrate and package a model from a recipe.",
    "unload": "Have a server take a model out of service.",
}
_EXTRAS = {
    "bench": "models",
    "calibrate": "models",
    "evaluate": "train",
    "score": "batch",
    "serve": "server",
    "token": "server",
    "train": "train",
}


class Failure(click.ClickException):
    """A server that failed, told in one line."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class BadInput(Failure):
    """What the caller can mend, told in one line."""

    exit_code = 2


class Commands(click.Group):
    """A group whose commands are the entry points of `dubito.commands`, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, without importing what they name."""
        return sorted(_entries())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; `BadInput` where a package that it needs is missing."""
        entry = _entries().get(cmd_name)
        if entry is None:
            return None
        try:
            command: click.Command = entry.load()
        except ModuleNotFoundError as error:
            raise _needs_more(cmd_name) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List every command from what is known of it by name."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _CAPTIONS.get(name, "")) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; one that imports what it needs only when it runs gets the same message."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if ctx.invoked_subcommand is None or (error.name or "").startswith("dubito_"):
                raise
            raise _needs_more(ctx.invoked_subcommand) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dubito")
def main() -> None:
    """Monte Carlo dropout as a service: predictions, and how far to trust them."""


_timeout = click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True, metavar="S", help="Seconds."
)
_file = click.Path(path_type=Path, dir_okay=False)
_identity = (
    click.option(
        "--token-file",
        type=_file,
        envvar="DUBITO_TOKEN_FILE",
        show_envvar=True,
        help="With the token that the server asks for; or give the token itself in DUBITO_TOKEN.",
    ),
    click.option("--tls", is_flag=True, help="Encrypt, and make sure of the server."),
    click.option("--ca", type=_file, help="The authority of the server's certificate, PEM; implies --tls."),
    click.option("--cert", type=_file, help="The caller's own certificate, PEM; implies --tls."),
    click.option("--key", type=_file, help="Of --cert, PEM."),
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def reaching(*, required: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make what adds the options by which a server is reached.

    The command gets `connect`, which makes a client of them; None without a server, where none is `required`.
    """

    def add(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(
            *,
            server: str | None,
            timeout: float,
            token_file: Path | None,
            tls: bool,
            ca: Path | None,
            cert: Path | None,
            key: Path | None,
            **options: Any,
        ) -> None:
            def connect() -> Client:
                token = os.environ.get("DUBITO_TOKEN") or None if token_file is None else read_token(token_file)
                certificates: dict[str, Any] = {"root_certificates": ca, "client_certificate": cert, "client_key": key}
                return Client(str(server), timeout=timeout, token=token, tls=tls, **certificates)

            command(connect=None if server is None else connect, **options)

        named = click.option(
            "--server", required=required, metavar="HOST:PORT", envvar="DUBITO_SERVER", show_envvar=True
        )
        for option in reversed((named, *_identity, _timeout)):
            run = option(run)
        return run

    return add


@dataclass(frozen=True, slots=True)
class _Asked:
    """What `predict` asks of the draws; None takes the model's own."""

    draws: int | None
    stop: Rule | None
    target: float | None
    of: Quantity | None
    level: float | None
    seed: int | None
    design: Design | None
    masks_by: MaskScope | None
    estimator: Estimator | None
    coverage: float | None
    stream: str
    interval_level: float | None


@click.command()
@click.argument("model")
@click.option(
    "--input", "source", required=True, type=click.Path(path_type=Path), help=".npy, .npz, .csv, .parquet or .json."
)
@click.option("--version", type=int, help="Of the model; the newest by default.")
@drawing
@click.option(
    "--masks-by",
    type=click.Choice(["draw", "row"]),
    help="Who shares masks: all rows of a draw, or no two rows.  [default: draw]",
)
@click.option("--stream", default="", help="Name under which labels come back and adapt --coverage.")
@click.option("--standard", is_flag=True, help="The standard path: dropout off, one pass.")
@_json
@click.option("--all", "show_all", is_flag=True, help=f"Show every row, not the first {SHOWN_LINES}.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Write the whole answer to a file too: .json, or .npz for arrays."
)
@click.option(
    "--receipt", type=click.Path(path_type=Path, dir_okay=False), help="Add what dubito observe needs to a file."
)
@reaching()
def predict(
    model: str,
    source: Path,
    connect: Callable[[], Client],
    version: int | None,
    standard: bool,
    as_json: bool,
    show_all: bool,
    output: Path | None,
    receipt: Path | None,
    **asked: Any,
) -> None:
    """Predict the rows of a file with MODEL, and say how far to trust it."""
    try:
        if receipt is not None and standard:
            raise refused("receipt", receipt, "this without --standard, of which no labels are taken back")
        if output is not None and output.suffix not in (".json", ".npz"):
            raise refused("output", output.name, "a file that ends in .json or .npz")
        with connect() as client:
            info = client.model(model, version=version)
            answer = _answer(client, info, _rows(source, info), None if standard else _Asked(**asked))
        if receipt is not None and isinstance(answer, Prediction):
            append_receipt(receipt, answer)
    except DubitoClientError as error:
        raise failure(error) from error
    if output is not None:
        _write(answer, info, output)
    _show(answer, info, as_json, None if show_all else SHOWN_LINES)


@click.command()
@click.argument("receipts", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--labels",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    help="A label for every row of every prediction, in their order: .npy, .npz, .csv, .parquet or .json.",
)
@_json
@reaching()
def observe(receipts: Path, source: Path, as_json: bool, connect: Callable[[], Client]) -> None:
    """Bring the labels of the predictions in RECEIPTS back, a file that predict --receipt wrote.

    Labels count once: where this was interrupted, call it again.
    """
    try:
        kept = read_receipts(receipts)
        labels = read_labels(source, sum(each.rows for each in kept))
        with connect() as client:
            parts = np.split(labels, np.cumsum([each.rows for each in kept])[:-1])
            came = [
                client.observe(each.prediction_id, part, receipt=each.receipt)
                for each, part in zip(kept, parts, strict=True)
            ]
    except DubitoClientError as error:
        raise failure(error) from error
    said = summary(came)
    if as_json:
        click.echo(json.dumps(said))
        return
    repeats = f", {said['duplicates']} of which had brought theirs before" if said["duplicates"] else ""
    click.echo(f"{said['rows']} labels of {len(came)} predictions{repeats}")
    if said["covered"] is not None:
        click.echo(f"{said['covered']:.1%} of them were covered")


@click.command()
@_json
@reaching()
def models(as_json: bool, connect: Callable[[], Client]) -> None:
    """List the models that a server holds."""
    from dubito_client import tables

    try:
        with connect() as client:
            held = client.models()
    except DubitoClientError as error:
        raise failure(error) from error
    if as_json:
        click.echo(tables.document(held))
    elif held:
        tables.show(tables.models_columns(held))
    else:
        click.echo("The server holds no model.")


@click.command()
@click.argument("model")
@click.option("--version", type=int, help="Of the model; what the server's policy says by default.")
@reaching()
def load(model: str, version: int | None, connect: Callable[[], Client]) -> None:
    """Have a server load MODEL from its repository, and wait until it serves."""
    try:
        with connect() as client:
            status = client.load(model, version=version)
    except DubitoClientError as error:
        raise failure(error) from error
    click.echo(f"{status.model} version {status.version} is {status.state}.")


@click.command()
@click.argument("model")
@click.option("--version", type=int, help="Of the model; all of them by default.")
@reaching()
def unload(model: str, version: int | None, connect: Callable[[], Client]) -> None:
    """Have a server take MODEL out of service, and wait until no request holds it any more.

    It stays so until it is loaded again, or changes in the repository.
    """
    try:
        with connect() as client:
            client.unload(model, version=version)
    except DubitoClientError as error:
        raise failure(error) from error
    which = model if version is None else f"{model} version {version}"
    click.echo(f"{which} is unloaded.")


def _answer(client: Client, info: ModelInfo, inputs: Inputs, asked: _Asked | None) -> Prediction | Evaluation:
    """Ask for exactly the version that was described: rows were shaped, and classes will be named, by it."""
    if asked is None:
        return client.evaluate(info.model, inputs, version=info.version)
    return client.predict(
        info.model,
        inputs,
        version=info.version,
        draws=asked.draws,
        stopping=read_stopping(asked.stop, asked.target, asked.of, asked.level),
        seed=asked.seed,
        design=asked.design,
        mask_scope=asked.masks_by,
        estimator=asked.estimator,
        coverage=asked.coverage,
        stream=asked.stream,
        interval_level=asked.interval_level,
    )


def _rows(source: Path, info: ModelInfo) -> Inputs:
    """Read rows: by column names for a table, else shaped as declared, where that is possible without guessing."""
    declared = {signature.name: signature for signature in info.inputs}
    if len(info.inputs) == 1 and info.inputs[0].columns:
        return read_table(source)
    rows = read_arrays(source)
    if isinstance(rows, dict):
        return {name: fit_rows(array, declared[name]) if name in declared else array for name, array in rows.items()}
    return fit_rows(rows, info.inputs[0]) if len(info.inputs) == 1 else rows


def _show(answer: Prediction | Evaluation, info: ModelInfo, as_json: bool, limit: int | None) -> None:
    from dubito_client import tables

    if as_json:
        click.echo(tables.document(answer, class_names=list(info.class_names)))
        return
    tables.show(tables.answer_columns(answer, info, limit))
    lines = tables.lines_of(answer)
    if limit is not None and lines > limit:
        click.echo(f"... and {lines - limit} more; --all shows them")
    click.echo(f"\n{tables.caption(answer)}")
    for warning in answer.warnings if isinstance(answer, Prediction) else ():
        click.echo(f"warning: {tables.plain(warning)}")


def _write(answer: Prediction | Evaluation, info: ModelInfo, output: Path) -> None:
    from dubito_client import tables

    try:
        if output.suffix == ".npz":
            arrays: dict[str, Any] = tables.arrays_of(answer)
            np.savez(output, **arrays)
        else:
            output.write_text(tables.document(answer, class_names=list(info.class_names)) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"output: {output} cannot be written: {error.strerror or error}") from error


def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=_GROUP)}


def _needs_more(name: str) -> BadInput:
    extra = _EXTRAS.get(name)
    remedy = f": pip install 'dubito[{extra}]'" if extra else ""
    return BadInput(f"dubito {name} needs more than the client{remedy}")


def failure(error: DubitoClientError) -> Failure:
    """Return an error told in one line; what the caller can mend ends with 2, what the server must with 1."""
    mendable = isinstance(error, (AccessDenied, InvalidArgument, MessageTooLarge, NotFound, TlsFailed))
    return BadInput(str(error)) if mendable else Failure(str(error))
