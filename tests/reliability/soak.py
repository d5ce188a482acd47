"""Soak: all that is shown to hold of a server over time, in its full form; `make soak`. Prints one JSON document.

    python -m reliability.soak [--steady 1800] [--overload 300] [--replay 10000] [--fuzz 50000] [--out FILE]

A server in a process of its own; its callers in another. Its resident memory is read every second. The exit status is 1
where a law was broken; `broken` says which. `--only` runs the load or the bad input alone; FILE has the other part.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .frames import BEGINNINGS
from .fuzz import Fuzzed, fuzz
from .pounding import BURST, SECRET, burst, pound
from .serving import Serving, serving
from .versions import make_repository

Phases = dict[str, dict[str, Any]]

GROWTH = 0.02  # of resident memory, in the last two thirds of the steady load, at most
RECOVERY_SECONDS = 5.0
IMMEDIATE_MILLISECONDS = 100.0  # half of the refusals of what is not let in come sooner
LATEST_REFUSAL = 0.5  # of the deadline, in which 99 of a hundred of them come
LATE = 0.01  # of the answers whose caller waits beyond its deadline, at most, come after it
SETTLING = 2.0  # seconds that the server has to be done with connections that have ended
CONNECTION_BYTES = 2**10  # that a connection which has ended leaves behind, at most
EXPIRED = 0.01  # of the requests in overload, at most, end at their deadline without an answer or a refusal


@contextmanager
def memory(server: Serving) -> Iterator[list[tuple[float, int]]]:
    """Read a server's resident memory every second: (seconds since 1970, bytes)."""
    seen: list[tuple[float, int]] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            seen.append((time.time(), server.resident_bytes))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def growth(seen: list[tuple[float, int]], began: float, seconds: float) -> float | None:
    """Return by which share memory grew in the last two thirds of a phase: a line through it; None of too few."""
    last = np.array([each for each in seen if began + seconds / 3 <= each[0] <= began + seconds])
    if len(last) < 3:
        return None
    slope = np.polyfit(last[:, 0] - last[0, 0], last[:, 1], 1)[0]
    return float(slope * (last[-1, 0] - last[0, 0]) / last[0, 1])


def under_load(repository: Path, folder: Path, options: argparse.Namespace) -> Phases:
    """Run the load's phases; resident memory goes with the steady one."""
    names = ("callers", "measure", "steady", "overload", "replay")
    with serving(repository, folder, "--state", str(folder / "state")) as server, memory(server) as seen:
        command = [sys.executable, "-m", "reliability.load", server.address]
        command += [part for name in names for part in (f"--{name}", str(getattr(options, name)))]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, stdout=subprocess.PIPE, text=True)
        alive = server.process.poll() is None
    phases: Phases = {said["phase"]: said for said in map(json.loads, done.stdout.splitlines())}
    steady = phases.get("steady")
    if steady:
        steady["resident_growth"] = growth(seen, steady["began"], steady["seconds"])
    resident = [round(rss / 2**20, 1) for _, rss in seen]
    phases["server"] = {"alive": alive, "resident_mib": resident[:: max(1, len(resident) // 60)]}
    phases["server"]["log_errors"] = log_errors(folder)
    return phases


def log_errors(folder: Path) -> list[str]:
    """Return the first of the errors in a server's log, and of what a caller sent."""
    lines = (folder / "server.log").read_text(errors="replace").splitlines()
    return [line[:300] for line in lines if " ERROR " in line or SECRET in line][:5]


def under_fire(repository: Path, folder: Path, options: argparse.Namespace) -> Phases:
    """Send bad input of every kind."""
    with serving(repository, folder, "--state", str(folder / "state")) as server:
        found = {
            "fuzz": fuzz(server.address, options.fuzz, options.seed),
            "pounding": pound(server.address, options.garbage, options.seed),
            "burst": burst(server.address, server.process.pid),
            "connections": connect(server, options.connections),
        }
        found["server"] = {"alive": server.process.poll() is None, "log_errors": log_errors(folder)}
    return found


def connect(server: Serving, count: int) -> dict[str, Any]:
    """Open and close so many connections, silent or with a call begun, and as many once more: what these leave behind.

    The first ones grow what is taken anew for all that are under way at once.
    """
    host, port = server.address.rsplit(":", 1)
    resident = []
    for _ in range(2):
        for number in range(count):
            with socket.create_connection((host, int(port)), timeout=60) as raw:
                raw.sendall(BEGINNINGS[number % len(BEGINNINGS)])
        time.sleep(SETTLING)
        resident.append(server.resident_bytes)
    with server.channel() as channel:
        right = Fuzzed(channel).is_right()
    grown = resident[1] - resident[0]
    return {"phase": "connections", "connections": count, "grown_bytes": grown, "right_after": right}


LAWS: dict[str, Callable[[Phases, Phases], bool]] = {
    "the server lives": lambda load, fire: load["server"]["alive"] and fire["server"]["alive"],
    "no error at a share of capacity": lambda load, fire: not load["steady"]["refused"],
    "resident memory is flat": lambda load, fire: (load["steady"]["resident_growth"] or 0.0) < GROWTH,
    "in overload, refused or answered": lambda load, fire: (
        set(load["overload"]["refused"]) <= {"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    ),
    "what cannot be answered in time is refused at once": lambda load, fire: (
        load["overload"]["expired_share"] <= EXPIRED
    ),
    "what is not let in is told so immediately": lambda load, fire: (
        load["overload"]["refusal_milliseconds"].get("p50", 0.0) <= IMMEDIATE_MILLISECONDS
        and load["overload"]["refusal_milliseconds"].get("p99", 0.0)
        <= LATEST_REFUSAL * 1e3 * load["overload"]["deadline"]
    ),
    "refusals say when to come back": lambda load, fire: load["overload"]["refusals_without_advice"] == 0,
    "answers come by their deadline": lambda load, fire: (
        load["overload"]["timed_answers"] > 0 and load["overload"]["late_share"] <= LATE
    ),
    "wrong requests are refused beside the others, and who leaves or is killed is let go": lambda load, fire: (
        min(load["trouble"][kind] for kind in ("invalid", "left", "killed")) > 0 and not load["trouble"]["wrong"]
    ),
    "it recovers": lambda load, fire: (load["overload"]["recovery_seconds"] or 1e9) <= RECOVERY_SECONDS,
    "every answer is the one that is given alone": lambda load, fire: load["replay"]["differing"] == 0,
    "every rule stops as it does alone": lambda load, fire: load["replay"]["stopped_otherwise"] == 0,
    "no error is logged, whatever comes": lambda load, fire: (
        not load["server"]["log_errors"] + fire["server"]["log_errors"]
    ),
    "no message is the server's fault": lambda load, fire: fire["fuzz"]["fault_count"] == 0,
    "no bytes are the server's fault": lambda load, fire: not fire["pounding"]["faults"],
    "the next good request is answered right": lambda load, fire: (
        fire["fuzz"]["wrong_after"] + fire["pounding"]["wrong_after"] == 0 and fire["burst"]["right_after"]
    ),
    "connections leave nothing behind": lambda load, fire: (
        fire["connections"]["right_after"]
        and fire["connections"]["grown_bytes"] <= CONNECTION_BYTES * fire["connections"]["connections"]
    ),
    "what is packed to burst takes little memory": lambda load, fire: (
        fire["burst"]["status"] == "RESOURCE_EXHAUSTED" and fire["burst"]["peak_bytes"] < BURST / 4
    ),
}


PARTS = {"load": under_load, "bad_input": under_fire}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--measure", type=float, default=30.0, help="seconds, of the capacity")
    parser.add_argument("--steady", type=float, default=1800.0, help="seconds, at 80 %% of it")
    parser.add_argument("--overload", type=float, default=300.0, help="seconds, at 3 times of it")
    parser.add_argument("--replay", type=int, default=10_000, help="answers")
    parser.add_argument("--fuzz", type=int, default=50_000, help="cases")
    parser.add_argument("--garbage", type=int, default=5_000, help="cases on the socket")
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file for the document too")
    parser.add_argument("--only", choices=PARTS, help="the part to run anew; the other is as in the file")
    options = parser.parse_args()
    if options.only and not (options.out and options.out.is_file()):
        parser.error("--only takes the other part from the file that --out names")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository = make_repository(folder / "repository")
        found = dict(json.loads(options.out.read_text())) if options.only else {}
        for name, run in PARTS.items():
            if options.only in (None, name):
                (folder / name).mkdir()
                found[name] = run(repository, folder / name, options)
    load, fire = found["load"], found["bad_input"]
    broken = [law for law, holds in LAWS.items() if not holds(load, fire)]
    asked = {name: value for name, value in vars(options).items() if name not in ("out", "only")}
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    document = {"asked": asked, "machine": machine, "broken": broken, "load": load, "bad_input": fire}
    text = json.dumps(document, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
