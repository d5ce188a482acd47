"""Requests per second and latency of `Predict` and `Evaluate`, for 1, 16 and 64 callers at once.

The server runs in a process of its own, as `dubito serve`; the callers share one client in another process, each
asking again as soon as it is answered. One row a request. Prints one JSON document.

    python benchmarks/serving.py [--seconds 4] [--draws 32]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from dubito_client import AsyncClient
from dubito_models.networks import CNN, MLP
from dubito_models.packing import pack

CALLERS = (1, 16, 64)
NETWORKS = {
    "mlp": lambda: MLP(64, [256, 256], 10, 0.3),
    "cnn": lambda: CNN((1, 8, 8), [32, 64], 10, channel_dropout=[0.1, 0.2], head_dropout=0.4),
}


def prepare(folder: str) -> None:
    """Pack networks of the digits recipes' shape; their weights do not matter for time."""
    torch.manual_seed(0)
    for name, build in NETWORKS.items():
        pack(build(), torch.rand(2, 1, 8, 8), repository=folder, name=name, task="classification", head="logits")


async def measure(
    client: AsyncClient, model: str, rpc: str, callers: int, seconds: float, draws: int
) -> dict[str, object]:
    image = np.random.default_rng(0).random((1, 1, 8, 8), dtype=np.float32)
    times: list[float] = []
    used: list[int] = []
    stop = time.perf_counter() + seconds

    async def call() -> None:
        while time.perf_counter() < stop:
            start = time.perf_counter()
            if rpc == "Predict":
                answer = await client.predict(model, image, draws=draws)
                used.append(int(answer.draws[0]))
            else:
                await client.evaluate(model, image)
            times.append(time.perf_counter() - start)

    began = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    elapsed = time.perf_counter() - began
    cuts = statistics.quantiles(times, n=100)
    return {
        "model": model,
        "rpc": rpc,
        "callers": callers,
        "draws": max(used) if used else None,
        "requests per second": round(len(times) / elapsed, 1),
        "p50 milliseconds": round(cuts[49] * 1e3, 2),
        "p99 milliseconds": round(cuts[98] * 1e3, 2),
    }


async def ask(target: str, seconds: float, draws: int) -> list[dict[str, object]]:
    rows = []
    async with AsyncClient(target) as client:
        for model in NETWORKS:
            for rpc in ("Predict", "Evaluate"):
                await measure(client, model, rpc, 8, 1.0, draws)  # warms up
                for callers in CALLERS:
                    rows.append(await measure(client, model, rpc, callers, seconds, draws))  # noqa: PERF401
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--draws", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder)
        port_file = Path(folder) / "port"
        dubito = str(Path(sys.executable).with_name("dubito"))
        command = [dubito, "serve", "--repository", folder, "--port", "0", "--port-file", str(port_file)]
        server = subprocess.Popen([*command, "--log-level", "warning"], stdout=subprocess.DEVNULL)
        try:
            while not port_file.exists():
                if server.poll() is not None:
                    raise SystemExit(f"the server ended with {server.returncode}")
                time.sleep(0.05)
            rows = asyncio.run(ask(f"127.0.0.1:{port_file.read_text().strip()}", options.seconds, options.draws))
        finally:
            server.terminate()
            server.wait(60)
    print(json.dumps({"rows per request": 1, "seconds": options.seconds, "results": rows}, indent=2))


if __name__ == "__main__":
    main()
