"""What a server keeps of versions that it has unloaded: a model is loaded, asked and unloaded again and again.

The server runs as its operators run it, in a process of its own. Prints JSON: resident memory of that process in MiB
after so many reloads, and its growth per reload over the second half.

    python benchmarks/reloading.py [--reloads 200]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import numpy as np
import psutil
import torch
from torch import nn

from dubito_models.packing import pack
from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb
from dubito_protos import uncertainty_pb2_grpc as pb_grpc

DUBITO = str(Path(sys.executable).with_name("dubito"))
WIDTH = 1024  # of the layers: a version that were kept would take 17 MiB twice over
SECONDS = 300.0  # that a call may take at most


def package(repository: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(16, WIDTH), nn.ReLU(), nn.Dropout(0.1),
        *(layer for _ in range(4) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.2))),
        nn.Linear(WIDTH, 10),
    )  # fmt: skip
    pack(network, {"input": torch.randn(2, 16)}, repository=repository, name="wide", task="classification",
         head="logits")  # fmt: skip


def reload(channel: grpc.Channel) -> None:
    models, predictions = pb_grpc.ModelServiceStub(channel), pb_grpc.UncertaintyServiceStub(channel)
    models.LoadModel(pb.LoadModelRequest(model="wide"), timeout=SECONDS)
    inputs = [tensors.encode(np.zeros((32, 16), np.float32), "input")]
    sampling = pb.SamplingSpec(max_draws=40)
    predictions.Predict(pb.PredictRequest(model="wide", inputs=inputs, sampling=sampling), timeout=SECONDS)
    predictions.Evaluate(pb.EvaluateRequest(model="wide", inputs=inputs), timeout=SECONDS)
    models.UnloadModel(pb.UnloadModelRequest(model="wide"), timeout=SECONDS)


def measure(reloads: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        package(folder / "repository")
        command = [
            DUBITO,
            "serve",
            "--repository",
            str(folder / "repository"),
            "--model-control",
            "explicit",
            "--log-level",
            "warning",
        ]
        with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                address = process.stdout.readline().split()[-1]
                resident = []
                began = time.perf_counter()
                with grpc.insecure_channel(address) as channel:
                    for _ in range(reloads):
                        reload(channel)
                        resident.append(psutil.Process(process.pid).memory_info().rss / 2**20)
                seconds = (time.perf_counter() - began) / reloads
            finally:
                process.terminate()
    half = resident[reloads // 2 :]
    shown = {count: round(resident[count - 1], 1) for count in (1, 2, 5, 10, 20, 50, 100, 150, 200) if count < reloads}
    return {
        "reloads": reloads,
        "resident_mib": {**shown, reloads: round(resident[-1], 1)},
        "growth_mib_per_reload": round(float(np.polyfit(np.arange(len(half)), half, 1)[0]), 4),
        "seconds_per_reload": round(seconds, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reloads", type=int, default=200)
    print(json.dumps(measure(parser.parse_args().reloads), indent=1))


if __name__ == "__main__":
    main()
