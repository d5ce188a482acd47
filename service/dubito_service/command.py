"""`dubito serve`."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from dubito_models.errors import DubitoError, InvalidArgument


class Misused(click.ClickException):
    """What the operator can mend, told in one line."""

    exit_code = 2


class Serve(click.Command):
    """A command that says in one line which flag is wrong."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> click.Context:
        """Read the flags."""
        try:
            return super().make_context(info_name, args, *more, **extra)
        except click.UsageError as error:
            raise Misused(" ".join(error.format_message().split())) from None


def _run(main: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop where there is one: its event loop costs less for each call."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def _some(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...] | None:
    """Tell no flag from an empty one, as any other source may set it then."""
    return values or None


def _pins(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[int, ...]] | None:
    pins: dict[str, tuple[int, ...]] = {}
    for value in values:
        model, _, versions = value.partition("=")
        try:
            pins[model] = pins.get(model, ()) + tuple(int(version) for version in versions.split(","))
        except ValueError:
            raise click.BadParameter(f"got {value}; accepted: MODEL=VERSION[,VERSION], such as digits=3,5") from None
    return pins or None


@click.command(cls=Serve)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="DUBITO_CONFIG",
    show_envvar=True,
    help="Settings in a TOML file, by name: `max_rows = 100`.",
)
@click.option("--print-config", is_flag=True, help="Print the settings in effect, as such a file, and exit.")
@click.option(
    "--repository",
    metavar="DIR|URL",
    help="Folder of packaged models, MODEL/VERSION/, or its URL (s3://, gs://, ...).  [env: DUBITO_REPOSITORY]",
)
@click.option("--cache", type=click.Path(path_type=Path), help="For copies of what comes by URL.")
@click.option(
    "--model-control",
    type=click.Choice(["poll", "explicit", "none"]),
    help="What is loaded while it runs: what is new in the repository, what LoadModel names, nothing.  [default: poll]",
)
@click.option("--repository-seconds", type=float, help="Between looks at the repository, 0 for none.  [default: 2]")
@click.option("--load", multiple=True, callback=_some, metavar="MODEL", help="Load at the start, of explicit control.")
@click.option(
    "--pin",
    "pins",
    multiple=True,
    callback=_pins,
    metavar="MODEL=VERSION[,VERSION]",
    help="Serve these versions of a model instead of the newest.",
)
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on, 0 for a free one.  [default: 50051]")
@click.option("--port-file", type=click.Path(path_type=Path, dir_okay=False), help="Write the port here when ready.")
@click.option("--newest-versions", type=int, help="Versions of each model to serve.  [default: 3]")
@click.option(
    "--torch-threads", type=int, help="Threads of the Monte Carlo path, 0 for all cores but one.  [default: 0]"
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Of the Monte Carlo path.  [default: auto]")
@click.option(
    "--pass-bytes",
    type=int,
    help="Memory of the largest value of a pass.  [default: 64 MiB; on a GPU a 64th of what is free]",
)
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
@click.option("--tls-certificate", type=click.Path(path_type=Path), help="Speak TLS: PEM, read again when it changes.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="The certificate's key.")
@click.option("--tls-client-ca", type=click.Path(path_type=Path), help="Clients must bring a certificate of this one.")
@click.option("--tokens", type=click.Path(path_type=Path), help="Calls need a token of this file; see dubito token.")
@click.option("--admin", type=click.Choice(["auto", "on", "off"]), help="Calls that load and unload.  [default: auto]")
@click.option("--grace-seconds", type=float, help="For calls in flight when the server is stopped.  [default: 30]")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[default: info]")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="[default: text]")
@click.option("--metrics-port", type=int, help="Serve /metrics for Prometheus here, 0 for a free one.  [default: none]")
@click.option("--metrics-host", help="Address of /metrics.  [default: that of --host]")
def serve(config: Path | None, print_config: bool, **flags: Any) -> None:
    """Serve a repository of packaged models over gRPC.

    Every setting can be given as an environment variable too, DUBITO_ and its name, or in a file; a flag beats the
    environment, and that the file. One line is printed when the server is ready. SIGTERM and SIGINT stop it: calls in
    flight are finished first.
    """
    from dubito_service import configuration
    from dubito_service.telemetry import logs  # not above: `--help` needs no more than click

    try:
        chosen = configuration.configure(flags, os.environ, config, to_print=print_config)
    except InvalidArgument as error:
        raise Misused(str(error)) from error
    if print_config:
        click.echo(configuration.print_toml(chosen), nl=False)
        return
    # Before gRPC is loaded: its core writes of connections that break its rules, each time and with their bytes.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from dubito_service import server  # not above: what is printed needs no torch

    logs.start(chosen.settings.log_level, chosen.settings.log_format)

    async def run() -> None:
        if not await server.serve(chosen.settings, click.echo):
            logging.shutdown()
            os._exit(0)  # a pass or a load that will not end must not keep the process, nor the loop from ending

    try:
        _run(run())
    except InvalidArgument as error:
        raise Misused(str(error)) from error
    except (DubitoError, OSError) as error:
        raise click.ClickException(str(error)) from error
