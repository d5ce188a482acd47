"""What the process keeps of freed memory."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PASSES = """
import resource, threading
import torch
from dubito_models.memory import give_back, keep_pages

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def work():
    for _ in range(20):
        [torch.ones(6 << 20) for _ in range(4)]  # 24 MiB each

keep_pages()
thread = threading.Thread(target=work)
thread.start()
thread.join()
full = resident()
give_back()
print((full - resident()) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is kept is a matter of glibc")
def test_pages_that_passes_leave_are_given_back_when_asked() -> None:
    """Passes of a thread leave 96 MiB."""
    done = subprocess.run([sys.executable, "-c", PASSES], check=True, stdout=subprocess.PIPE, text=True)
    assert int(done.stdout) > 60
