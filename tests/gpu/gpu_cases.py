"""Small networks with every kind of site, and engines of them without a repository: torch, numpy and scipy alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dubito_models.calibrating import CalibrationSpec, Identity, Rows, calibrate_engine
from dubito_models.calibration import Calibration
from dubito_models.engine import Defaults, Engine
from dubito_models.export import Exported, export_network, read_example
from dubito_models.heads import Head, Task
from dubito_models.precision import Precision
from dubito_models.program import StochasticProgram
from dubito_models.thinning import Design, Masks, choose_balanced, choose_group_size


class Images(nn.Module):
    """Channel and element dropout between convolutions, batch norm before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Dropout2d(0.25)
        self.second, self.head = nn.Conv2d(16, 64, 3), nn.Linear(64 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.second(self.drop(F.relu(self.norm(self.first(x))))))
        return self.head(F.dropout(F.max_pool2d(hidden, 2).flatten(1), 0.5, self.training))


class Encoder(nn.Module):
    """Torch's own transformer layers: dropout of attention's weights and of elements; the length is free."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 256, 0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(128, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Causal(nn.Module):
    """Places and what is seen are made inside of forward, on the input's device."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.project, self.head = nn.Embedding(16, 8), nn.Linear(8, 24), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        hidden = x + self.places(torch.arange(length, device=x.device))
        query, key, value = self.project(hidden).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        seen = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        rate = 0.2 if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=rate)
        mixed = F.dropout(found.transpose(1, 2).flatten(2), 0.1, self.training)
        return self.head(mixed.mean(1)) + torch.zeros(2, device=x.device)


class SelfNormalizing(nn.Module):
    """Alpha dropout of channels and of elements."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.channels = nn.Conv1d(2, 6, 3), nn.FeatureAlphaDropout(0.2)
        self.second, self.drop, self.head = nn.Linear(36, 16), nn.AlphaDropout(0.1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.channels(F.selu(self.first(x))).flatten(1)
        return self.head(self.drop(F.selu(self.second(hidden))))


class Branches(nn.Module):
    """Residual branches that are dropped as a whole, by decisions of the network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(nn.Linear(8, 8) for _ in range(3)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            branch = torch.tanh(layer(x))
            if self.training:
                branch = branch * branch.new_empty((branch.shape[0], 1)).bernoulli_(0.8).div_(0.8)
            x = x + branch
        return self.head(x)


class DroppedWeights(nn.Module):
    """Weights that are dropped, as DropConnect has it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = F.dropout(self.first.weight, 0.3, self.training)
        return self.head(F.relu(F.linear(x, weight, self.first.bias)))


class Recurrent(nn.Module):
    """Torch's LSTM with dropout between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 12, num_layers=2, dropout=0.2, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def perceptron(outputs: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 128), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(128, outputs),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """A network: how to build it, one row's shape, what its output means; `free`: whether axis 1 is free, too.

    `fan_out`, `integrated`: the masks of its last site for each draw of the others.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    head: Head = Head.LOGITS
    free: bool = False
    fan_out: int = 1
    integrated: bool = False


CASES = {
    "perceptron": Case(perceptron, (16,)),
    "regression": Case(lambda: perceptron(2), (16,), Head.MEAN_AND_LOG_VARIANCE),
    "images": Case(Images, (1, 8, 8)),
    "encoder": Case(Encoder, (6, 128), free=True),
    "causal": Case(Causal, (5, 8), free=True),
    "self-normalizing": Case(SelfNormalizing, (2, 8)),
    "branches": Case(Branches, (8,)),
    "dropped-weights": Case(DroppedWeights, (8,)),
    "recurrent": Case(Recurrent, (7, 6), free=True),
}
FANNED = {
    "fanned": Case(perceptron, (16,), fan_out=4),
    "integrated": Case(lambda: perceptron(1), (16,), Head.MEAN, integrated=True),
}
ALL = {**CASES, **FANNED}


def build(name: str) -> nn.Module:
    """Return the network of a case, in eval; always the same one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ALL[name].build().eval()


def rows(name: str, count: int, seed: int = 0) -> Tensor:
    """Return made-up rows of a case, on the CPU."""
    return torch.randn(count, *ALL[name].shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def _export(name: str) -> tuple[Exported, dict[str, dict[int, str]]]:
    """Return the exported network of a case, and its inputs' free axes."""
    network = build(name)
    [forward] = read_example(network, rows(name, 2)).inputs
    free = {forward: {1: "length"} if ALL[name].free else {}}
    return export_network(network, read_example(network, rows(name, 2), free)), free


def open_program(name: str, device: torch.device, precision: Precision = Precision.FLOAT32) -> StochasticProgram:
    """Return the program of a case on a device."""
    exported, free = _export(name)
    known = exported.stochastic, free, exported.output, precision
    return StochasticProgram(*known, ALL[name].fan_out, integrated=ALL[name].integrated).to(device)


def make_masks(program: StochasticProgram, name: str) -> Masks:
    """Return the masks of a case's program as packing would."""
    shape = ALL[name].shape
    shapes = program.mask_shapes({"rows": 2, **({"length": shape[0]} if ALL[name].free else {})})
    size = choose_group_size([site.rate for site in program.sites])
    return Masks(program, group_size=size, balanced=choose_balanced(program.sites, shapes))


def open_engine(name: str, device: torch.device, precision: Precision = Precision.FLOAT32) -> Engine:
    """Return the engine of a case on a device."""
    program = open_program(name, device, precision)
    defaults = Defaults(40, 0, Design.BALANCED)
    return Engine(program, make_masks(program, name), ALL[name].head, defaults)


def calibrate(engine: Engine, name: str) -> Calibration:
    """Calibrate an engine of a case on its own device, by made-up labels."""
    program, labels = engine.program, np.arange(120) % 2
    targets = labels if engine.head.task is Task.CLASSIFICATION else labels[:, None].astype(np.float64)
    identity = Identity("", Precision.FLOAT32.value, program.fan_out, program.integrated)
    known = Rows(dict.fromkeys(program.inputs, rows(name, len(labels))), targets)
    return calibrate_engine(engine, identity, known, CalibrationSpec(), "")
