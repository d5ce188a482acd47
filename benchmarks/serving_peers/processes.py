"""Processes of the serving benchmark: servers that end with all they have started, and callers that take jobs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

BENCHMARKS = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """Return the environment of a process that imports the networks and the adapters from here."""
    paths = [BENCHMARKS, BENCHMARKS.parent / "models"]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(path) for path in paths), "PYTHONWARNINGS": "ignore"}


@contextlib.contextmanager
def running(command: Sequence[str | Path], folder: Path, name: str) -> Iterator[psutil.Process]:
    """Run a server, with its output in a file of the folder; ends it with all the processes that it has started."""
    log = folder / f"{name}.log"
    with log.open("w") as output:
        # Triton and MLServer write where they run.
        place = folder / name
        place.mkdir(exist_ok=True)
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment(), cwd=place)
    server = psutil.Process(process.pid)
    try:
        yield server
    except BaseException:
        print(f"{name}:\n{log.read_text()[-2000:]}", file=sys.stderr)
        raise
    finally:
        family = [server, *server.children(recursive=True)] if lives(server) else []
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        for left in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        process.wait(20)
        psutil.wait_procs(family, 20)


def lives(server: psutil.Process) -> bool:
    """Tell whether a server has not ended, by itself or by a signal."""
    return server.is_running() and server.status() != psutil.STATUS_ZOMBIE


def processor_seconds(server: psutil.Process) -> float:
    """Return what a server and all its processes have used so far."""
    seconds = 0.0
    for process in (server, *server.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


def signal_family(server: psutil.Process, *, run: bool) -> None:
    """Stop a server and all its processes where they are, or let them go on."""
    for process in (server, *server.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            (process.resume if run else process.suspend)()


@contextlib.contextmanager
def standing_still(servers: Sequence[psutil.Process]) -> Iterator[None]:
    """Stop servers, so that one that polls while nobody asks it takes no time from the others."""
    try:
        for server in servers:
            signal_family(server, run=False)
        yield
    finally:
        for server in servers:
            signal_family(server, run=True)


class CallFailed(RuntimeError):
    """A job that came to nothing, and what its callers were told."""


class Callers:
    """The process of the callers, in an environment that has what their protocol needs."""

    def __init__(self, python: Path, rows: Path) -> None:
        self._process = subprocess.Popen(
            [python, "-m", "serving_peers.callers", rows],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def do(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Have a job done; raises `CallFailed`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the callers ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise CallFailed(f"{job['way']} of {job['model']}: {found['error']}")
        return found

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
