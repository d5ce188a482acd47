"""Memory: how much this process has taken, and how many blocks may be under way in what is left of a limit."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from dubito_client.errors import refused

_MIB = 2**20
_ALIKE = 1.25  # times as large as one that is done, and no larger: a block that is taken to cost as much


def peak_memory() -> int:
    """Return the most bytes that this process has had resident so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the process was forked from
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # of Unix alone

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass(slots=True)
class Room:
    """How many blocks may be under way at once, at most `most`: as many as the limit holds, by what others took.

    A block that is larger than all that are done is the last one to be begun until it is done too.
    """

    limit: int  # bytes of this process
    most: int
    peak: int  # bytes that this process has taken so far
    _fit: int = 1
    _alone: int = 0  # peak with one block
    _cost: int = 1  # bytes that one more takes
    _begun: int = 0  # bytes of the largest block that was read
    _done: int = 0  # of the largest that is done

    @property
    def window(self) -> int:
        """How many there may be now."""
        return 1 if self._begun > _ALIKE * self._done else self._fit

    def begin(self, size: int) -> None:
        """Take note of a block of so many bytes that was read."""
        self._begun = max(self._begun, size)

    def end(self, size: int, cost: int, peak: int) -> None:
        """Take note that it is done, that it took at least `cost` in all its forms, and of the peak since.

        Raises `InvalidArgument` where that is above the limit.
        """
        window = self.window
        if peak > self.limit:
            took = "one block" if window == 1 else f"{window} blocks at once"
            accepted = f"at least {-(-peak // _MIB)} MiB, which the model and {took} took"
            accepted += "; blocks of fewer rows, in another output, take less"
            raise refused("limit_memory", f"{self.limit // _MIB} MiB", accepted)
        if window == 1:
            grown, self._alone = peak - self.peak, peak
        else:
            grown = (peak - self._alone) // (window - 1)
        self.peak = peak
        self._cost = max(self._cost, cost, grown)
        self._done = max(self._done, size)
        self._fit = min(self.most, 1 + (self.limit - self._alone) // self._cost)
