"""Recurrent layers behind dropout: draws that ride the rows of one call beside draws one after another.

Masks on what a layer reads, and masks on its recurrent weights (a variational layer's hidden state): the packed version
as it is served, and the same with `vmaps` off. One process, the ways in turn, each twice in a row of which the second
counts; medians; prints one JSON document.

    python benchmarks/recurrent.py [--rounds 7] [--threads 1]
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from dubito_models.layers import VariationalGRU, VariationalLSTM
from dubito_models.packing import pack
from dubito_models.sampling import SamplingSpec
from dubito_models.thinning import Design

DRAWS, STEPS, FEATURES = 32, 20, 32
CELLS = {"LSTM": VariationalLSTM, "GRU": VariationalGRU}
MASKS = {"what is read": "input_dropout", "recurrent weights": "hidden_dropout"}


class Reader(nn.Module):
    """A recurrent layer with one kind of dropout, and a head on its mean state."""

    def __init__(self, cell: str, width: int, masks: str) -> None:
        super().__init__()
        self.recurrent = CELLS[cell](FEATURES, width, batch_first=True, **{MASKS[masks]: 0.2})
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.recurrent(x)
        logits: Tensor = self.head(states.mean(1))
        return logits


def time_ways(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each way."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            run()
            start = time.perf_counter()
            run()
            times[way].append(time.perf_counter() - start)
    return {way: round(statistics.median(values) * 1e3, 2) for way, values in times.items()}


def measure(cell: str, width: int, masks: str, rounds: int, folder: str) -> list[dict[str, object]]:
    network, example = Reader(cell, width, masks), torch.randn(2, STEPS, FEATURES)
    engine = pack(network, example, repository=folder, name="m", task="classification", head="logits").engine
    spec, served = SamplingSpec(max_draws=DRAWS, design=Design.INDEPENDENT), engine.vmaps

    def run(x: Tensor, *, vmaps: bool) -> object:
        engine.vmaps = vmaps
        return engine.predict({"x": x}, spec)

    found: list[dict[str, object]] = []
    for rows in (1, 8, 64):
        x = torch.randn(rows, STEPS, FEATURES)
        ways = {"loop": functools.partial(run, x, vmaps=False), "served": functools.partial(run, x, vmaps=served)}
        took = time_ways(ways, rounds)
        case = {"masks on": masks, "cell": cell, "width": width, "rows": rows, "milliseconds": took}
        found.append({**case, "loop / served": round(took["loop"] / took["served"], 2)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    found = []
    for masks, cell, width in itertools.product(MASKS, CELLS, (64, 256)):
        with tempfile.TemporaryDirectory() as folder:
            found += measure(cell, width, masks, options.rounds, folder)
    document = {
        "threads": options.threads,
        "rounds": options.rounds,
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "draws": DRAWS,
        "steps": STEPS,
        "speed": found,
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
