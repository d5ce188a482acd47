"""Recorded passes: on a GPU, what a pass launches is recorded once for its sizes, and played again by one launch.

The kernels of a small network take less time than a processor takes to launch them one by one (CUDA graphs). A
recording is of fixed sizes: rows are filled up to the next of a few numbers by repeating the last one, which no other
row notices. It is kept where it gives what the pass itself gives and takes clearly less time than the pass without
such rows, which is what is made otherwise; memory for all of them is one pool, as only one is played at a time.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from dubito_models.program import Boundary

log = logging.getLogger(__name__)

KEPT = 32  # recordings, the last ones used
OFTEN = 3  # a pass of the same sizes is recorded when it is made so often
_WARM_UPS = 3  # as torch asks for, before anything is recorded
_ROUNDS = 5
_WORTH = 0.9  # a recording has to take less than this of the pass's own time
_TOLERANCE = 1e-5  # of the largest value, by which it may differ
_PADDED_ROWS = 256  # beyond, a pass is large enough as it is

Pass: TypeAlias = Callable[[Boundary, Sequence[Tensor]], Tensor]
Select: TypeAlias = Callable[[Boundary, Tensor], Boundary]
Play: TypeAlias = Callable[[], None]


class Device(Protocol):
    """What can record."""

    def record(self, act: Callable[[], Tensor]) -> tuple[Tensor, Play]:
        """Return what `act` returns, and what computes it anew, in the same place, of what its inputs hold by then."""

    def wait(self) -> None:
        """Wait until all that was launched is done."""


class CudaGraphs:
    """CUDA graphs of one GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def record(self, act: Callable[[], Tensor]) -> tuple[Tensor, Play]:
        """Record on a stream of its own, after passes that let libraries choose and allocate."""
        with torch.cuda.device(self._device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UPS):
                    act()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Other threads may allocate meanwhile: the server pins memory for requests that come in.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = act()
        return result, graph.replay

    def wait(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize(self._device)


@dataclass(frozen=True, slots=True)
class _Recording:
    values: tuple[Tensor, ...]  # of the boundary, where the recording reads them
    masks: tuple[Tensor, ...]
    result: Tensor
    play: Play

    def run(self, boundary: Boundary, masks: Sequence[Tensor]) -> Tensor:
        for place, value in zip((*self.values, *self.masks), (*boundary.values, *masks), strict=True):
            place.copy_(value)
        self.play()
        return self.result.clone()  # the next one that is played may use its place


class Recorder:
    """Runs passes, recorded where that pays; one thread drives it. `select`: takes rows of a boundary."""

    def __init__(self, device: Device, select: Select, clock: Callable[[], float] = time.perf_counter) -> None:
        self._device = device
        self._select = select
        self._clock = clock
        self._seen: OrderedDict[object, int] = OrderedDict()
        self._kept: OrderedDict[object, _Recording | None] = OrderedDict()  # None: it does not pay

    def run(self, act: Pass, boundary: Boundary, masks: Sequence[Tensor]) -> Tensor:
        """Return what `act` returns of a boundary and masks: (S, N, ...)."""
        key = (act, boundary.sizes, fill_up(boundary.rows), *(tuple(mask.shape) for mask in masks))
        if key in self._kept:
            self._kept.move_to_end(key)
        elif self._is_frequent(key):
            self._keep(key, self._try(act, boundary, masks))
        found = self._kept.get(key)
        return act(boundary, masks) if found is None else self._play(found, boundary, masks)

    def wait(self) -> None:
        """Wait until all passes that were launched are done."""
        self._device.wait()

    def _play(self, recording: _Recording, boundary: Boundary, masks: Sequence[Tensor]) -> Tensor:
        return recording.run(self._fill(boundary), masks)[:, : boundary.rows]

    def _fill(self, boundary: Boundary) -> Boundary:
        """Repeat the last row until there are as many as a recording has."""
        rows = fill_up(boundary.rows)
        if rows == boundary.rows:
            return boundary
        numbers = torch.arange(rows, device=boundary.values[0].device).clamp_(max=boundary.rows - 1)
        return self._select(boundary, numbers)

    def _is_frequent(self, key: object) -> bool:
        self._seen[key] = self._seen.pop(key, 0) + 1
        if self._seen[key] >= OFTEN:
            del self._seen[key]
            return True
        if len(self._seen) > KEPT:
            self._seen.popitem(last=False)
        return False

    def _keep(self, key: object, recording: _Recording | None) -> None:
        self._kept[key] = recording
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def _try(self, act: Pass, boundary: Boundary, masks: Sequence[Tensor]) -> _Recording | None:
        """Record a pass, filled up, where it can be, gives the same and is faster than the pass as it is."""
        filled = self._fill(boundary)
        values, own = tuple(map(torch.clone, filled.values)), tuple(map(torch.clone, masks))
        held = Boundary(values, filled.symbols)
        try:
            result, play = self._device.record(lambda: act(held, own))
            recording = _Recording(values, own, result, play)
            plain, played = act(filled, masks), recording.run(filled, masks)
        except RuntimeError as error:  # of CUDA: an operator that cannot be recorded, or too little memory
            log.warning("pass not recorded rows=%d: %s", filled.rows, str(error).splitlines()[0])
            return None
        if not torch.allclose(played, plain, rtol=0, atol=_TOLERANCE * max(1.0, float(plain.abs().max()))):
            log.warning("pass not recorded rows=%d: played again it gives another result", filled.rows)
            return None
        usual = self._time(lambda: act(boundary, masks))
        return recording if self._time(lambda: self._play(recording, boundary, masks)) < _WORTH * usual else None

    def _time(self, act: Callable[[], Tensor]) -> float:
        seconds = []
        for _ in range(_ROUNDS):
            self._device.wait()
            began = self._clock()
            act()
            self._device.wait()
            seconds.append(self._clock() - began)
        return statistics.median(seconds)


def fill_up(rows: int) -> int:
    """Return the number of rows that a recording for so many has: a power of two, or one and a half of one."""
    if rows > _PADDED_ROWS:
        return rows
    power = 1 << (rows - 1).bit_length()
    return power * 3 // 4 if power >= 4 and rows <= power * 3 // 4 else power
