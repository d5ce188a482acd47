"""Stamps: what changes when a file does, or when another takes its place."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

Stamp: TypeAlias = "tuple[int, int, int] | None"


def stamp_of(path: Path) -> Stamp:
    """Return the stamp of a file, links followed; None where it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
