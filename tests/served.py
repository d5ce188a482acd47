"""`dubito serve` in a process of its own, for a test."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

DUBITO = str(Path(sys.executable).with_name("dubito"))


@contextlib.contextmanager
def served(folder: Path, *options: str) -> Iterator[str]:
    """Serve the `repository` in a folder, with more options; yields the address, and ends the server in good order."""
    port = folder / "port"
    command = [DUBITO, "serve", "--repository", str(folder / "repository"), "--port", "0", "--port-file", str(port)]
    command += options
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield f"127.0.0.1:{port.read_text().strip()}"
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        if process.stdout is not None:
            process.stdout.close()
