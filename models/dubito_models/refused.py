"""How the commands of this package say what their caller can mend."""

from __future__ import annotations

import click


class Refused(click.ClickException):
    """What the caller can mend, told in one line."""

    exit_code = 2

    def __init__(self, error: Exception) -> None:
        super().__init__(" ".join(str(error).split()))
