"""Retrying: acts on jobs together, and where that fails so that only who is at fault fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from dubito_service.errors import OutOfMemory
from dubito_service.scheduling.dispatching import Job

log = logging.getLogger(__name__)

J = TypeVar("J", bound=Job[Any])
# What allocators say that raise nothing more telling: torch's on a CPU, onnxruntime's, C++'s own.
_SAID = ("DefaultCPUAllocator", "not enough memory", "Failed to allocate memory", "bad_alloc", "bad allocation")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that there is too little memory, of whichever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, Exception) and any(words in str(error) for words in _SAID)


def attempt(jobs: Sequence[J], act: Callable[[Sequence[J]], None]) -> None:
    """Act on jobs at once; where that fails, on each alone, or for want of memory on half of them at a time.

    Whoever fails alone has the error as its outcome: `OutOfMemory`, or the error itself.
    """
    if not jobs:
        return
    failure = _failure(jobs, act)
    if failure is None:
        return
    few = is_out_of_memory(failure)
    how = "tried by halves" if few else "each tried alone"
    log.warning("pass failed requests=%d, %s", len(jobs), how, exc_info=failure)
    failure.__traceback__ = None  # its frames hold what the pass allocated
    if few:
        _free()
        if len(jobs) == 1:
            jobs[0].outcome = _told(failure)
        else:
            middle = len(jobs) // 2
            attempt(jobs[:middle], act)
            attempt(jobs[middle:], act)
        return
    for job in jobs:
        again = _failure([job], act)
        if again is not None:
            job.outcome = _told(again)


def _failure(jobs: Sequence[J], act: Callable[[Sequence[J]], None]) -> Exception | None:
    try:
        act(jobs)
    except Exception as error:
        return error
    return None


def _told(error: Exception) -> Exception:
    if is_out_of_memory(error):
        return OutOfMemory("there is too little memory for this request; ask with fewer rows, draws or outputs at once")
    return error


def _free() -> None:
    """Give memory that torch keeps for itself back to the device."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
