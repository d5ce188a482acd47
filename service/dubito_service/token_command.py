"""`dubito token`: tokens for the callers of a server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from dubito_models.errors import InvalidArgument
from dubito_service.security.scopes import Scope
from dubito_service.security.tokens import add_token, new_secret

MOST_DAYS = 100_000


class _Misused(click.ClickException):
    """What the caller can mend, told in one line."""

    exit_code = 2


def _end_after(days: float) -> datetime:
    if not 0 < days <= MOST_DAYS:
        raise InvalidArgument("days", days, f"more than 0, at most {MOST_DAYS}")
    return (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)


@click.group()
def token() -> None:
    """Make tokens for the callers of a server."""


@token.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([str(scope) for scope in Scope]),
    default=(str(Scope.PREDICT),),
    show_default=True,
    help="What it is for; may be given more than once.",
)
@click.option("--rate", type=float, help="Requests per second; any number by default.")
@click.option("--burst", type=int, help="Requests at once, with --rate.  [default: those of a second]")
@click.option("--days", type=float, help="For which it is good.  [default: ever]")
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="DUBITO_TOKENS",
    show_envvar=True,
    default=Path("tokens.toml"),
    show_default=True,
    help="To which its hash is added.",
)
def new(
    name: str, scopes: tuple[str, ...], rate: float | None, burst: int | None, days: float | None, file: Path
) -> None:
    """Make a token for the caller NAME, and print it, once: only its hash is kept.

    A server that reads the file takes the token up within a second of its next call. To revoke one, delete its entry.
    """
    secret = new_secret()
    try:
        expires = None if days is None else _end_after(days)
        chosen = tuple(Scope(scope) for scope in dict.fromkeys(scopes))
        add_token(file, secret, name, chosen, rate=rate, burst=burst, expires=expires)
    except InvalidArgument as error:
        raise _Misused(str(error)) from error
    click.echo(secret)
    until = "" if expires is None else f", until {expires.isoformat()}"
    click.echo(f"{name} in {file}, for {', '.join(chosen)}{until}; this token is not shown again", err=True)
