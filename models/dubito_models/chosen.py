"""How the commands say which packaged version they are about: MODEL, --repository, --version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def choose_version(command: Command) -> Command:
    """Give a command the arguments `model`, `repository` (a path) and `number` (None: the newest)."""
    number = click.option("--version", "number", type=click.IntRange(1), help="Of the model; the newest by default.")
    repository = click.option(
        "--repository",
        default=Path("repository"),
        show_default=True,
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of models.",
    )
    return click.argument("model")(repository(number(command)))
