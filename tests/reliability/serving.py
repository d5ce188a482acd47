"""A server in a process of its own, that is watched and, at times, killed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

START = "from dubito_service.command import serve; serve()"


@dataclass(frozen=True, slots=True)
class Serving:
    """A running server: its process and its address; its log lies in a file."""

    process: subprocess.Popen[str]
    address: str
    log: Path

    @property
    def resident_bytes(self) -> int:
        """Its resident memory."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    @property
    def descriptors(self) -> int:
        """Its open file descriptors."""
        return int(psutil.Process(self.process.pid).num_fds())

    def channel(self) -> grpc.Channel:
        """Return a channel to it, on a connection of its own."""
        return grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])

    def kill(self) -> None:
        """End it as a crash of the machine would: without a word."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def serving(
    repository: Path, folder: Path, *options: str, before: tuple[str, ...] = (), start: str = START
) -> Iterator[Serving]:
    """Serve a repository until the block ends; `before`: of the command, `start`: the Python that serves."""
    command = [*before, sys.executable, "-c", start, "--repository", str(repository), "--port", "0"]
    command += ["--log-level", "warning", *options]
    log = folder / "server.log"
    with log.open("a") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said, log.read_text()
        yield Serving(process, said.split(" on ")[1].split(";")[0].strip(), log)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
