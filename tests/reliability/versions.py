"""What is served here: a small network of every kind, packed, and one of them calibrated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dubito_models.networks import MLP
from dubito_models.package import ModelVersion, load_version
from dubito_models.packing import pack
from networks import CASES, build, sample

from .questions import MODELS, ROUNDED


def make_repository(folder: Path) -> Path:
    """Pack all of them into a folder."""
    for name in MODELS:
        if name == ROUNDED:
            _pack_rounded(folder)
            continue
        case = CASES[name]
        options: dict[str, Any] = {"task": case.task, "head": case.head, **case.options}
        pack(build(name), sample(name, 2), repository=folder, name=name, **options)
    _calibrate(load_version(folder / "mlp" / "1"))
    return folder


def _pack_rounded(folder: Path) -> None:
    """Pack a network whose products are rounded to bfloat16."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        network, example = MLP(32, [64, 64], 4, 0.2), {"inputs": torch.randn(8, 32)}
    options: dict[str, Any] = {"task": "classification", "head": "logits", "precision": "bfloat16"}
    pack(network, example, repository=folder, name=ROUNDED, **options)


def _calibrate(version: ModelVersion) -> None:
    """Calibrate on labels that the version means itself."""
    random = np.random.default_rng(0)
    inputs = MODELS[version.name].rows(random, 200)
    p = version.predict(inputs).answer.probabilities  # type: ignore[union-attr]
    version.calibrate(inputs, (random.random((len(p), 1)) > p.cumsum(-1)).sum(-1))
