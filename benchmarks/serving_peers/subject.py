"""What a peer serves: a digits network in eager torch, and Monte Carlo dropout the usual way."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from serving_peers import Call, Tuning
from serving_peers.networks import load

Rows = NDArray[np.float32]  # (B, 1, 8, 8), or probabilities (B, K)


def drop_out(network: nn.Module) -> nn.Module:
    """Let a network that is in eval draw: its dropout alone is put in train."""
    for module in network.modules():
        if isinstance(module, _DropoutNd):
            module.train()
    return network


@dataclass(frozen=True, slots=True)
class Subject:
    """What one peer is to serve, and how."""

    folder: Path
    network: str
    call: Call
    draws: int
    port: int
    tuning: Tuning

    def answer(self) -> Callable[[Rows], Rows]:
        """Return what answers a batch; call it in the process that computes."""
        torch.set_num_threads(self.tuning.threads)
        network = load(self.folder, self.network)
        if self.call == "Predict":
            drop_out(network)

        @torch.inference_mode()
        def evaluate(rows: Rows) -> Rows:
            return network(torch.from_numpy(rows)).softmax(-1).numpy()

        @torch.inference_mode()
        def predict(rows: Rows) -> Rows:
            repeated = torch.from_numpy(rows).repeat_interleave(self.draws, 0)  # (B S, 1, 8, 8)
            return network(repeated).softmax(-1).unflatten(0, (-1, self.draws)).mean(1).numpy()

        return predict if self.call == "Predict" else evaluate


def describe(subject: Subject) -> str:
    """Write a subject as the argument of an adapter."""
    return json.dumps({**asdict(subject), "folder": str(subject.folder)})


def read(text: str) -> Subject:
    """Read what `describe` wrote."""
    fields = json.loads(text)
    return Subject(**{**fields, "folder": Path(fields["folder"]), "tuning": Tuning(**fields["tuning"])})


def own() -> Subject:
    """Return what this process was told to serve."""
    return read(sys.argv[1])
