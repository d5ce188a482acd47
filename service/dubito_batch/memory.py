"""Memory: how much this process has taken, and how many blocks may be under way in what is left of a limit."""

from __future__ import annotations

import sys
from pathlib import Path

from dubito_client.errors import refused

_MIB = 2**20


def peak_memory() -> int:
    """Return the most bytes that this process has had resident so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the process was forked from
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # of Unix alone

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def window_of(limit: int, peak: int, cost: int, most: int) -> int:
    """Return how many blocks may be under way at once, once a first one alone was, at most `most`.

    `peak`: bytes that the process took with the first one; `cost`: bytes that one more takes. Raises `InvalidArgument`
    where one alone is too much.
    """
    if peak > limit:
        took = f"at least {-(-peak // _MIB)} MiB, which the model and one block took"
        accepted = f"{took}; blocks of fewer rows, in another output, take less"
        raise refused("limit_memory", f"{limit // _MIB} MiB", accepted)
    return min(most, 1 + (limit - peak) // max(1, cost))
