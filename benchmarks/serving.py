"""Requests per second and latency of `Predict` and `Evaluate` beside three other servers, and what a request costs.

*Beside others* (`--peers-venv`): MLServer, LitServe and Triton's Python back end serve the same digits networks, with
the same weights, by eager torch. Each batches dynamically in its own way, with the settings that `--tune` found best at
64 callers, and does Monte Carlo dropout as usual: the rows S times over in one pass, dropout alone in train mode, the
mean over S. They answer by that mean alone, dubito by all that it has to say. It is asked for S draws twice: as packed,
where a balanced design makes whole groups of them and so more than S ("draws" in the document), and independent, where
it makes just S. `Evaluate` is the network in eval mode.

*Bare cost*: a network that computes next to nothing, by Predict and PredictBulk, beside a bare grpc.aio server on
uvloop that replies by the same bytes, once without a look at them and once parsing and writing the messages.

Callers ask one row at a time and again as soon as they are answered, all in a process of their own: grpc.aio on uvloop,
raw tensors; LitServe speaks HTTP, so JSON by aiohttp on uvloop. Before anything is timed all answers are compared with
those of the network in this process. Servers take turns in rounds, in another order each, and those that are not asked
stand still (some poll); given are medians over the rounds, and the processor time of the server per request, its
processes summed.

    python benchmarks/serving.py [--peers-venv DIR] [--seconds 2.5] [--rounds 3] [--out FILE]
    python benchmarks/serving.py --peers-venv DIR --tune [--out FILE]

`--peers-venv`: where each server has a virtual environment of its own, made where it is missing; `make serving-bench`
does it all.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from serving_peers import (
    CALLS,
    CHOSEN,
    PEERS,
    Call,
    Peer,
    Tuning,
    free_port,
    make_environment,
    read_tuning,
    search,
)
from serving_peers.callers import dubito_requests
from serving_peers.networks import NETWORKS, build, weights
from serving_peers.processes import Callers, CallFailed, lives, processor_seconds, running, standing_still
from serving_peers.subject import Subject, describe, drop_out
from serving_peers.targets import ECHO, INDEPENDENT, OURS, judge_bare, judge_beside

from dubito_models.data import digits
from dubito_models.packing import pack

CALLERS = (1, 16, 64)
DIGITS = ("mlp", "cnn")
ECHO_DRAWS = 10  # one group
WARM = 0.4  # seconds before a cell is counted, at most
PATIENCE = 180.0  # seconds for a server to give its first answer
VERSIONS = ("dubito", "grpcio", "numpy", "onnxruntime", "protobuf", "torch", "uvloop")
THEIRS = (
    "aiohttp",
    "fastapi",
    "grpcio",
    "litserve",
    "mlserver",
    "nvidia-pytriton",
    "protobuf",
    "torch",
    "uvloop",
    "uvicorn",
)


@dataclass(frozen=True, slots=True)
class Contender:
    """A server as it is asked for one thing; `job`: what all its jobs have in common."""

    name: str
    callers: Callers
    server: psutil.Process
    job: Mapping[str, Any]
    tuning: Tuning | None = None


@dataclass(slots=True)
class Cell:
    """What came of one contender at one number of callers, round by round."""

    contender: Contender
    what: Mapping[str, Any]
    callers: int
    samples: list[dict[str, Any]] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        rates = [sample["rate"] for sample in self.samples]
        draws = self.samples[0]["draws"]
        return {
            **self.what,
            "server": self.contender.name,
            "callers": self.callers,
            **({} if draws is None else {"draws": draws}),
            "requests per second": round(statistics.median(rates), 1),
            "requests per second, lowest and highest": [round(min(rates), 1), round(max(rates), 1)],
            "p50 milliseconds": self._median("p50", 1e3),
            "p99 milliseconds": self._median("p99", 1e3),
            "server processor milliseconds per request": self._median("processor", 1e3),
        }

    def _median(self, name: str, scale: float) -> float:
        return round(statistics.median(sample[name] for sample in self.samples) * scale, 3)


def prepare(folder: Path) -> dict[str, str]:
    """Pack the networks for dubito, keep their weights for the others and rows for the callers; return input names."""
    images = digits().test.inputs
    np.save(folder / "rows.npy", images[: max(CALLERS)])
    names = {}
    for name in NETWORKS:
        network = build(name)
        torch.save(network.state_dict(), weights(folder, name))
        pack(network, torch.tensor(images[:2]), repository=folder / "repository", name=name, task="classification",
             head="logits", draws=ECHO_DRAWS if name == ECHO else None)  # fmt: skip
        names[name] = next(iter(inspect.signature(network.forward).parameters))
    return names


@contextlib.contextmanager
def serving_dubito(folder: Path) -> Iterator[tuple[psutil.Process, str]]:
    """Run `dubito serve` with its default settings; yields it and its address."""
    port_file = folder / "port"
    dubito = Path(sys.executable).with_name("dubito")
    command = [dubito, "serve", "--repository", folder / "repository", "--port", "0", "--port-file", port_file]
    with running([*command, "--log-level", "warning"], folder, "dubito") as server:
        until = time.monotonic() + PATIENCE
        while not port_file.exists():
            if not lives(server) or time.monotonic() > until:
                raise SystemExit("dubito does not start")
            time.sleep(0.05)
        yield server, f"127.0.0.1:{port_file.read_text().strip()}"


@contextlib.contextmanager
def serving_peer(
    peer: Peer, python: Path, subject: Subject, callers: Callers
) -> Iterator[Contender]:  # fmt: skip
    """Run a peer for one network and one kind of call; yields it as a contender that answers.

    So they start one after another: beside others PyTriton does not get ready within the time that it allows itself.
    """
    http = peer.protocol == "http"
    job = {
        "way": peer.protocol,
        "target": f"http://127.0.0.1:{subject.port}/predict" if http else f"127.0.0.1:{subject.port}",
        "model": "digits",
    }
    name = f"{peer.name}-{subject.network}-{subject.call}"
    with running([python, "-m", peer.adapter, describe(subject)], subject.folder, name) as server:
        contender = Contender(peer.name, callers, server, job, subject.tuning)
        await_answers(contender, 1)
        yield contender


def await_answers(contender: Contender, rows: int) -> NDArray[np.float64]:
    """Return the answers to the first rows, as soon as a server that has just been started gives any."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return np.array(contender.callers.do({**contender.job, "do": "show", "rows": rows})["answers"])
        except CallFailed:
            if not lives(contender.server) or time.monotonic() > until:
                raise
            time.sleep(0.2)


def check(contender: Contender, call: Call, network: str, rows: NDArray[np.float32]) -> None:
    """Wait for a server, and compare its answers with those of the network here: 6 standard errors, of 20 draws."""
    count = 8
    given = await_answers(contender, count)
    truth, deviation = drawn(network, rows[:count], 2000) if call == "Predict" else evaluated(network, rows[:count])
    if not (np.abs(given - truth) <= 6 * deviation / np.sqrt(20) + 1e-4).all():
        raise SystemExit(f"{contender.name} answers {call} of {network} by {given[0]}; by torch: {truth[0]}")


@torch.inference_mode()
def evaluated(network: str, rows: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the probabilities (B, K) in eval, and zeros."""
    found = build(network)(torch.from_numpy(rows)).softmax(-1).double().numpy()
    return found, np.zeros_like(found)


@torch.inference_mode()
def drawn(network: str, rows: NDArray[np.float32], draws: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation (B, K) of the probabilities over draws."""
    module = drop_out(build(network))
    repeated = torch.from_numpy(rows).repeat_interleave(draws, 0)
    found = module(repeated).softmax(-1).unflatten(0, (-1, draws)).double()
    return found.mean(1).numpy(), found.std(1).numpy()


def measure(contender: Contender, callers: int, seconds: float) -> dict[str, Any]:
    before, warm = processor_seconds(contender.server), min(WARM, seconds)
    sample = contender.callers.do(
        {**contender.job, "do": "run", "callers": callers, "warm": warm, "seconds": seconds}
    )  # fmt: skip
    used = processor_seconds(contender.server) - before
    return {**sample, "processor": used / (sample["rate"] * (seconds + warm))}


def take_turns(cells: Sequence[Cell], rounds: int, seconds: float) -> None:
    """Measure all cells in each round; those that differ in the server alone follow one another, in changing order."""
    servers = list({cell.contender.server.pid: cell.contender.server for cell in cells}.values())

    def sample(cell: Cell, wanted: float) -> dict[str, Any]:
        with standing_still([server for server in servers if server.pid != cell.contender.server.pid]):
            return measure(cell.contender, cell.callers, wanted)

    for cell in cells:
        if cell.callers == max(CALLERS):
            sample(cell, min(seconds, 1.0))  # warms up
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(json.dumps([cell.what, cell.callers]), []).append(cell)
    for turn in range(rounds):
        for group in groups.values():
            first = turn % len(group)
            for cell in group[first:] + group[:first]:
                cell.samples.append(sample(cell, seconds))
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)


def idle_shares(contenders: Sequence[Contender]) -> dict[str, float]:
    """Return the share of a core that each server uses while nobody asks it anything."""
    seconds = 2.0
    before = {contender.name: processor_seconds(contender.server) for contender in contenders}
    time.sleep(seconds)
    return {
        contender.name: round((processor_seconds(contender.server) - before[contender.name]) / seconds, 3)
        for contender in contenders
    }


@dataclass(frozen=True, slots=True)
class Bench:
    """What one run has at hand."""

    folder: Path
    inputs: Mapping[str, str]
    rows: NDArray[np.float32]
    draws: int
    rounds: int
    seconds: float
    dubito: psutil.Process
    address: str
    callers: Callers  # of gRPC
    pythons: Mapping[str, Path]  # of the peers that take part
    peers_callers: Mapping[str, Callers]
    tuning: Path  # what --tune has found

    def ours(self, name: str, way: str, network: str, *, independent: bool = False) -> Contender:
        job = {
            "way": f"dubito {way}",
            "target": self.address,
            "model": network,
            "input": self.inputs[network],
            "draws": ECHO_DRAWS if network == ECHO else self.draws,
            "independent": independent,
        }
        return Contender(name, self.callers, self.dubito, job)


def compare(bench: Bench, network: str) -> dict[str, Any]:
    """Measure a network behind dubito and behind its peers."""
    with contextlib.ExitStack() as stack:
        cells, contenders = [], []
        for call in CALLS:
            rivals = [bench.ours(OURS, call, network)]
            if call == "Predict":
                rivals.append(bench.ours(INDEPENDENT, call, network, independent=True))
            for name, python in bench.pythons.items():
                tuning = read_tuning(bench.tuning, network, PEERS[name], call)
                subject = Subject(bench.folder, network, call, bench.draws, free_port(), tuning)
                rivals.append(
                    stack.enter_context(serving_peer(PEERS[name], python, subject, bench.peers_callers[name]))
                )
            contenders.append((call, rivals))
        for call, rivals in contenders:
            for rival in rivals:
                check(rival, call, network, bench.rows)
            cells += [
                Cell(rival, {"network": network, "call": call}, callers) for callers in CALLERS for rival in rivals
            ]  # fmt: skip
        idle = {call: idle_shares(rivals) for call, rivals in contenders}
        take_turns(cells, bench.rounds, bench.seconds)
        return {
            "network": network,
            "tunings": {
                call: {rival.name: asdict(rival.tuning) for rival in rivals if rival.tuning is not None}
                for call, rivals in contenders
            },
            "share of a core used idle": idle,
            "cells": [cell.describe() for cell in cells],
        }


def strip(bench: Bench) -> dict[str, Any]:
    """Measure what a request costs where the network costs nothing, and what a stream of them saves."""
    request = dubito_requests(bench.ours(OURS, "Predict", ECHO).job, bench.rows[:1])[0]
    with grpc.insecure_channel(bench.address) as channel:
        reply = channel.unary_unary("/dubito.v1.UncertaintyService/Predict")(request, timeout=PATIENCE)
    (bench.folder / "reply").write_bytes(reply)
    port = free_port()
    command = [Path(sys.executable), "-m", "serving_peers.echo", str(port), bench.folder / "reply"]
    with running(command, bench.folder, "grpc-echo") as server:
        common = {**bench.ours(OURS, "Predict", ECHO).job, "target": f"127.0.0.1:{port}"}
        bare = [
            Contender(f"grpc.aio, {kind}", bench.callers, server, {**common, "way": f"echo of {kind}"})
            for kind in ("bytes", "messages")
        ]
        await_answers(bare[0], 1)
        ways = {
            ECHO: [*bare, bench.ours("Predict", "Predict", ECHO), bench.ours("PredictBulk", "PredictBulk", ECHO)],
            "mlp": [bench.ours("Predict", "Predict", "mlp"), bench.ours("PredictBulk", "PredictBulk", "mlp")],
        }
        cells = [
            Cell(contender, {"network": network}, callers)
            for network, contenders in ways.items()
            for callers in CALLERS
            for contender in contenders
        ]
        take_turns(cells, bench.rounds, bench.seconds / 2)
    return {
        "bytes of a request": len(request),
        "bytes of a reply": len(reply),
        "cells": [cell.describe() for cell in cells],
    }


def tune_call(peer: Peer, python: Path, subject: Subject, callers: Callers, seconds: float) -> dict[str, Any]:
    """Find a peer's best setting for one network and one kind of call."""

    def answered(tuning: Tuning) -> float:
        tried = replace(subject, port=free_port(), tuning=tuning)
        with serving_peer(peer, python, tried, callers) as contender:
            found: float = measure(contender, max(CALLERS), seconds)["rate"]
        print(f"{peer.name} {subject.network} {subject.call} {tuning}: {found:.0f}/s", file=sys.stderr)
        return found

    best, rates = search(peer, answered)
    tried = [{**asdict(tuning), "requests per second": round(found, 1)} for tuning, found in rates.items()]
    return {"best": asdict(best), "tried": tried}


def describe_machine() -> dict[str, Any]:
    known = torch.cpu.get_capabilities()
    return {
        "processor": known.get("cpu_name", platform.processor() or "unknown"),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load average before": [round(load, 2) for load in os.getloadavg()],
    }


def find_versions(python: Path) -> dict[str, str]:
    """Return the versions of what matters in another environment."""
    code = "import json,sys\nfrom importlib.metadata import distributions\n" + (
        "print(json.dumps({d.name: d.version for d in distributions() if d.name in sys.argv}))"
    )
    found = subprocess.run([python, "-c", code, *THEIRS], check=True, capture_output=True, text=True)
    versions: dict[str, str] = json.loads(found.stdout)
    return dict(sorted(versions.items()))


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return [name for name in text.split(",") if name]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-venv", type=Path, help="measure the other servers too; their environments stand here")
    parser.add_argument("--peers", type=names, default=list(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--networks", type=names, default=list(DIGITS), help=f"of {', '.join(DIGITS)}")
    parser.add_argument("--seconds", type=float, default=2.5, help="of each cell in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--tune", action="store_true", help="find the peers' best settings, and no more")
    parser.add_argument("--tuning", type=Path, default=CHOSEN, help="what --tune has found")
    parser.add_argument("--out", type=Path, help="write the document there")
    options = parser.parse_args(arguments)
    for flag, given, known in (("peers", options.peers, PEERS), ("networks", options.networks, DIGITS)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"--{flag}: got {', '.join(unknown)}; accepted: {', '.join(known)}")
    if options.tune and options.peers_venv is None:
        parser.error("--tune: needs --peers-venv")
    return options


def hire(options: argparse.Namespace, folder: Path, stack: contextlib.ExitStack) -> tuple[Any, Any]:
    """Make the environments of the peers, and start callers for them; return interpreters and callers by name."""
    if options.peers_venv is None:
        return {}, {}
    place = options.peers_venv.resolve()
    pythons = {name: make_environment(PEERS[name], place) for name in options.peers}
    callers = {}
    for name, python in pythons.items():
        own = PEERS[name].protocol == "http"
        callers[name] = Callers(python if own else Path(sys.executable), folder / "rows.npy")
        stack.callback(callers[name].close)
    return pythons, callers


def tune(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    prepare(folder)
    with contextlib.ExitStack() as stack:
        pythons, callers = hire(options, folder, stack)
        tunings: dict[str, Any] = {}
        for network in options.networks:
            for name, python in pythons.items():
                for call in CALLS:
                    subject = Subject(folder, network, call, options.draws, 0, PEERS[name].start)
                    found = tune_call(PEERS[name], python, subject, callers[name], options.seconds)
                    tunings.setdefault(network, {}).setdefault(name, {})[call] = found
    return {"machine": describe_machine(), "callers": max(CALLERS), "draws": options.draws, "tunings": tunings}


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    machine = describe_machine()
    inputs = prepare(folder)
    with contextlib.ExitStack() as stack:
        pythons, peers_callers = hire(options, folder, stack)
        callers = Callers(Path(sys.executable), folder / "rows.npy")
        stack.callback(callers.close)
        dubito, address = stack.enter_context(serving_dubito(folder))
        bench = Bench(
            folder, inputs, np.load(folder / "rows.npy"), options.draws, options.rounds, options.seconds, dubito,
            address, callers, pythons, peers_callers, options.tuning,
        )  # fmt: skip
        compared = [compare(bench, network) for network in options.networks]
        bare = strip(bench)
    targets = judge_bare(bare["cells"], max(CALLERS))
    if pythons:
        for part in compared:
            targets += judge_beside(part["cells"], list(pythons), part["network"], max(CALLERS))
    return {
        "machine": {**machine, "load average after": [round(load, 2) for load in os.getloadavg()]},
        "versions": {name: metadata.version(name) for name in VERSIONS},
        "versions of the others": {name: find_versions(python) for name, python in pythons.items()},
        "rows per request": 1,
        "draws asked": options.draws,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "targets, at 64 callers": targets,
        "beside others": compared,
        "bare": bare,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(arguments)
    with tempfile.TemporaryDirectory() as name:
        document = (tune if options.tune else run)(options, Path(name))
    text = json.dumps(document, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
