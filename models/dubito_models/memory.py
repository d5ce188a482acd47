"""Memory: what versions leave behind that are held no more, given back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import linecache

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import graph_module
from torch.fx.experimental.symbolic_shapes import ShapeEnv

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h


def keep_imports() -> None:
    """Keep what is there now, modules above all, out of later collections, which then take some hundredths of a second.

    For a process to call when it has imported what it will, before it loads versions.
    """
    gc.collect()
    gc.freeze()


def keep_pages() -> None:
    """Have glibc keep what passes free for the next ones, up to a quarter of a GiB, in one arena for all threads.

    Where it gives them back with every pass they come again page by page: up to a quarter of a small CNN's time in a
    server, as measured. For a process to call when it starts; `give_back` returns what is kept. Other C libraries stay
    as they are.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 256 << 20)):
            mallopt(parameter, value)


def give_back() -> None:
    """Return to the system what is not used any more; no other Python code runs meanwhile.

    torch keeps some of every graph that was ever loaded: what it worked out about shapes, which it works out again when
    needed, and the text of the code, for traces. glibc keeps freed pages for later; other C libraries do not.
    """
    FakeTensorMode.cache_clear()
    for method in vars(ShapeEnv).values():
        clear = getattr(method, "cache_clear", None)
        if clear is not None:
            clear()
    graph_module._loader.eval_cache.clear()
    for name in [name for name in linecache.cache if name.startswith("<eval_with_key>")]:
        del linecache.cache[name]
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
