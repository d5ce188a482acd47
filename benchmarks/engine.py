"""Time and memory of the Monte Carlo path, side by side with the two usual ways, in one process.

The loop: S passes of the network with dropout active. The repeat: one pass of the batch repeated S times. Ours: the
packed version, same network, same number of draws. Rounds in turn, each way three times in a row of which the last two
count; medians and ratios; prints one JSON document.

    python benchmarks/engine.py [--rounds 15] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dubito_models.engine import SamplingSpec
from dubito_models.package import ModelVersion
from dubito_models.packing import pack


def mlp(rate: float) -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 512), nn.ReLU(), nn.Dropout(rate), nn.Linear(512, 512), nn.ReLU(), nn.Dropout(rate),
        nn.Linear(512, 10),
    )  # fmt: skip


def head_cnn() -> nn.Module:
    def block(channels: int, width: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, width, 3, stride=stride, padding=1), nn.BatchNorm2d(width), nn.ReLU()]

    return nn.Sequential(
        *block(3, 32, 1), *block(32, 64, 2), *block(64, 64, 1), *block(64, 128, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(128, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


CASES = {
    "mlp 16-512-512-10, p .2": Case(lambda: mlp(0.2), (16,)),
    "mlp 16-512-512-10, p .5": Case(lambda: mlp(0.5), (16,)),
    "cnn, one dropout before its head": Case(head_cnn, (3, 32, 32)),
}


def active(network: nn.Module) -> nn.Module:
    """Switch the dropout on and leave everything else in evaluation mode, as users do by hand."""
    network.eval()
    for part in network.modules():
        if isinstance(part, nn.Dropout):
            part.train()
    return network


@torch.inference_mode()
def loop(network: nn.Module, x: Tensor, draws: int) -> Tensor:
    return torch.stack([network(x).softmax(-1) for _ in range(draws)]).mean(0)


@torch.inference_mode()
def repeat(network: nn.Module, x: Tensor, draws: int) -> Tensor:
    outputs = network(x.repeat(draws, *(1,) * (x.dim() - 1))).softmax(-1)
    return outputs.unflatten(0, (draws, len(x))).mean(0)


def ours(version: ModelVersion, x: Tensor, draws: int, seed: int | None = None) -> object:
    return version.engine.predict({"input": x}, SamplingSpec(max_draws=draws, seed=seed))


def measure(name: str, rows: int, draws: int, rounds: int, folder: str) -> dict[str, object]:
    torch.manual_seed(0)
    network, version = prepare(name, folder)
    x = torch.randn(rows, *CASES[name].shape)
    # Whole groups only: the others take as many draws as we do.
    draws = version.engine.plan(SamplingSpec(max_draws=draws)).max_draws
    seeds = iter(range(1, 10_000))
    ways: dict[str, Callable[[], object]] = {
        "loop": lambda: loop(network, x, draws),
        "repeat": lambda: repeat(network, x, draws),
        "dubito": lambda: ours(version, x, draws),
        "dubito, own seed": lambda: ours(version, x, draws, next(seeds)),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            run()  # after the other ways: caches and allocator are warm again for what is timed
            for _ in range(2):
                start = time.perf_counter()
                run()
                times[way].append(time.perf_counter() - start)
    medians = {way: statistics.median(values) for way, values in times.items()}
    best = min(medians["loop"], medians["repeat"])
    return {
        "network": name,
        "rows": rows,
        "draws": draws,
        "milliseconds": {way: round(value * 1e3, 3) for way, value in medians.items()},
        "times faster than the faster of loop and repeat": round(best / medians["dubito"], 2),
        "the same with the caller's own seed": round(best / medians["dubito, own seed"], 2),
    }


def prepare(name: str, folder: str) -> tuple[nn.Module, ModelVersion]:
    torch.manual_seed(0)
    network = CASES[name].build()
    example = torch.randn(2, *CASES[name].shape)
    version = pack(network, example, repository=folder, name="m", task="classification", head="logits")
    return active(network), version


def peak(name: str, way: str, rows: int, draws: int, threads: int, answer: multiprocessing.Queue[int]) -> None:
    """Put the growth of peak resident memory by one call into `answer`, in a process of its own."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        network, version = prepare(name, folder)
    x = torch.randn(rows, *CASES[name].shape)
    run = {"repeat": lambda d: repeat(network, x, d), "dubito": lambda d: ours(version, x, d)}[way]
    run(1)
    with open("/proc/self/clear_refs", "w") as file:  # noqa: PTH123 - resets the high-water mark of this process
        file.write("5")
    before = high_water()
    run(draws)
    answer.put(high_water() - before)


def high_water() -> int:
    with open("/proc/self/status") as file:  # noqa: PTH123
        for line in file:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def memory(name: str, rows: int, draws: int, threads: int) -> dict[str, object]:
    context = multiprocessing.get_context("spawn")
    found = {}
    for way in ("repeat", "dubito"):
        answer: multiprocessing.Queue[int] = context.Queue()
        process = context.Process(target=peak, args=(name, way, rows, draws, threads, answer))
        process.start()
        found[way] = answer.get()
        process.join()
    return {
        "network": name,
        "rows": rows,
        "draws": draws,
        "peak megabytes": {way: round(size / 2**20, 1) for way, size in found.items()},
        "share of the repeated batch's": round(found["dubito"] / found["repeat"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        speed = [
            measure(name, rows, draws, options.rounds, folder)
            for name in CASES
            for rows, draws in ((1, 64), (8, 64), (32, 64))
        ]
    space = [memory("cnn, one dropout before its head", 8, 64, options.threads)]
    document = {
        "threads": options.threads,
        "rounds": options.rounds,
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "speed": speed,
        "memory": space,
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
