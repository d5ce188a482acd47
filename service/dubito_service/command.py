"""`dubito serve`."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from dubito_models.errors import DubitoError


@click.command()
@click.option(
    "--repository",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of packaged models, MODEL/VERSION/.  [env: DUBITO_REPOSITORY]",
)
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on, 0 for a free one.  [default: 50051]")
@click.option("--port-file", type=click.Path(path_type=Path, dir_okay=False), help="Write the port here when ready.")
@click.option("--newest-versions", type=int, help="Versions of each model to serve.  [default: 3]")
@click.option(
    "--torch-threads", type=int, help="Threads of the Monte Carlo path, 0 for all cores but one.  [default: 0]"
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Of the Monte Carlo path.  [default: auto]")
@click.option("--pass-bytes", type=int, help="Memory of the largest value of a pass.  [default: 67108864]")
@click.option("--max-rows", type=int, help="Most rows of a request.  [default: 10000]")
@click.option("--max-draws", type=int, help="Most draws of a request.  [default: 10000]")
@click.option(
    "--state",
    metavar="DIR|URL",
    help="Take labels back: keep them in a folder (SQLite), or for several replicas in postgresql+psycopg://...",
)
@click.option(
    "--receipt-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Signs receipts, for replicas to share; without it a key is kept with the state.",
)
@click.option("--receipt-days", type=float, help="For which a receipt is good.  [default: 30]")
@click.option(
    "--keep-inputs/--no-keep-inputs", default=None, help="Keep the inputs of labelled rows too.  [default: no]"
)
@click.option("--state-rows", type=int, help="Labelled rows to keep, the newest.  [default: 1000000]")
@click.option("--observed-rows", type=int, help="Newest rows that rolling scores are of.  [default: 1000]")
@click.option("--adaptation", type=float, help="Step by which a label moves its stream's coverage.  [default: 0.01]")
@click.option("--false-alarm", type=float, help="Probability of a false alarm of drift, of each test.  [default: 0.01]")
@click.option("--grace-seconds", type=float, help="For calls in flight when the server is stopped.  [default: 30]")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[default: info]")
def serve(**flags: Any) -> None:
    """Serve a repository of packaged models over gRPC.

    Every setting can be given as an environment variable too, DUBITO_ and its name. One line is printed when the
    server is ready. SIGTERM and SIGINT stop it: calls in flight are finished first.
    """
    from dubito_service import server, settings  # not above: `--help` needs no torch

    try:
        chosen = settings.Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
        raise click.UsageError(f"{name}: {first['msg']}") from error
    logging.basicConfig(level=chosen.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        ended = asyncio.run(server.serve(chosen, click.echo))
    except (DubitoError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if not ended:
        logging.shutdown()
        os._exit(0)  # a pass that will not end must not keep the process
