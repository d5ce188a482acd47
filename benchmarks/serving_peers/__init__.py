"""The servers that `benchmarks/serving.py` puts beside dubito, and how each is set up.

Each runs in a virtual environment of its own, and once for each network and kind of call, so that it can be tuned to
that alone. The adapters (`mlserver_peer`, `litserve_peer`, `pytriton_peer`) run there, and answer by what `subject`
gives them; nothing here imports more than the standard library, as all of them import it.

A setting (`Tuning`) is found by `benchmarks/serving.py --tune`: one thing after another is tried at 64 callers, and the
one that answered most requests a second is kept, with all that were tried, in `tuning.json`.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

Call = Literal["Predict", "Evaluate"]
CALLS: tuple[Call, ...] = ("Predict", "Evaluate")
BETTER = 1.03  # as many requests a second, for a setting to take another's place
CHOSEN = Path(__file__).with_name("tuning.json")
CONSTRAINTS = Path(__file__).parents[1] / "requirements-serving.txt"


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a peer batches and computes."""

    workers: int  # processes, or what the peer has for them, that run the network; 0: that of the server itself
    threads: int  # of torch, in each
    batch: int  # requests that share a pass, at most
    delay: float  # seconds that a batch may wait for more


@dataclass(frozen=True, slots=True)
class Peer:
    """One server: what to install, its adapter, how it is spoken to, and which settings are worth a try."""

    name: str
    packages: tuple[str, ...]  # of PyPI; requirements-serving.txt says which versions
    protocol: Literal["open-inference", "http"]
    start: Tuning
    tries: Mapping[str, tuple[float, ...]]

    @property
    def adapter(self) -> str:
        """The module that runs in the peer's own environment."""
        return f"serving_peers.{self.name}_peer"


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "mlserver", ("mlserver", "torch", "uvloop"), "open-inference", Tuning(0, 1, 64, 0.005),
            {"workers": (1,), "threads": (2,), "delay": (0.001, 0.002), "batch": (32,)},
        ),
        Peer(
            "litserve", ("litserve", "torch", "numpy", "uvloop", "aiohttp"), "http", Tuning(1, 1, 64, 0.005),
            {"workers": (2,), "threads": (2,), "delay": (0.001, 0.002), "batch": (32,)},
        ),
        Peer(
            "pytriton", ("nvidia-pytriton", "torch"), "open-inference", Tuning(1, 1, 64, 0.005),
            {"workers": (2,), "threads": (2,), "delay": (0.0, 0.001), "batch": (32,)},
        ),
    )
}  # fmt: skip


def neighbours(peer: Peer, tuning: Tuning, what: str) -> list[Tuning]:
    """Return the settings to try that differ from this one in one thing alone."""
    values = (*peer.tries[what], asdict(peer.start)[what])
    return [replace(tuning, **{what: value}) for value in values if value != asdict(tuning)[what]]


def search(peer: Peer, rate: Callable[[Tuning], float]) -> tuple[Tuning, dict[Tuning, float]]:
    """Vary one thing after another and keep what answers clearly more; return the best, and all rates measured."""
    best, rates = peer.start, {peer.start: rate(peer.start)}
    for what in peer.tries:
        for tuning in neighbours(peer, best, what):
            if tuning not in rates:
                rates[tuning] = rate(tuning)
            if rates[tuning] > BETTER * rates[best]:
                best = tuning
    return best, rates


def read_tuning(path: Path, network: str, peer: Peer, call: Call) -> Tuning:
    """Read the setting that `--tune` found best; the peer's start where nothing was tried."""
    tunings: dict[str, Any] = json.loads(path.read_text())["tunings"] if path.exists() else {}
    found = tunings.get(network, {}).get(peer.name, {}).get(call)
    return peer.start if found is None else Tuning(**found["best"])


def make_environment(peer: Peer, folder: Path) -> Path:
    """Make the peer's virtual environment, unless it is there, and return its interpreter."""
    place = folder / peer.name
    python, stamp = place / "bin" / "python", place / ".installed"
    wanted = "\n".join((*peer.packages, CONSTRAINTS.read_text()))
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"{peer.name}: a virtual environment in {place}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--constraint", CONSTRAINTS]
        subprocess.run([*pip, *peer.packages], check=True, stdout=sys.stderr)
        stamp.write_text(wanted)
    return python


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port
