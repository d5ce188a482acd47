"""Fixtures of batch scoring's tests: calibrated versions in one repository, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dubito_models.calibrating import Abstaining, CalibrationSpec
from dubito_models.package import ModelVersion
from dubito_models.packing import pack

WIDTH = 6
CLASSES = ("cat", "dog", "owl")


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


class Network(nn.Module):
    """A small network whose input is called x."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        layers = nn.Linear(WIDTH, 24), nn.Tanh(), nn.Dropout(0.3), nn.Linear(24, 24), nn.ReLU(), nn.Dropout(0.2)
        self.layers = nn.Sequential(*layers, nn.Linear(24, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def network(outputs: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(outputs)
        return Network(outputs).eval()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the repository; what is beside it is the tests' own."""
    return tmp_path_factory.mktemp("batch") / "repository"


@pytest.fixture(scope="session")
def judge(models: Path) -> ModelVersion:
    """A classifier whose calibration has prediction sets, and abstains."""
    version = packed(models, "judge", 3, "classification", "logits", class_names=list(CLASSES))
    x = rows(300, 5)
    p = version.predict(x).answer.probabilities
    labels = (p.cumsum(-1) > np.random.default_rng(1).random((len(p), 1))).argmax(-1)
    version.calibrate(x, labels, CalibrationSpec(abstaining=Abstaining(0.5, "predictive_entropy")))
    return version


@pytest.fixture(scope="session")
def gauge(models: Path) -> ModelVersion:
    """A regression of one target, without calibration, that predicts its noise."""
    return packed(models, "gauge", 2, "regression", "mean_and_log_variance")


@pytest.fixture(scope="session")
def gauges(models: Path) -> ModelVersion:
    """A regression of two targets whose calibration has prediction intervals, and that does not know its noise."""
    version = packed(models, "gauges", 2, "regression", "mean")
    x = rows(200, 6)
    mean = version.predict(x).answer.mean
    version.calibrate(x, mean + np.random.default_rng(2).normal(size=mean.shape))
    return version


def packed(repository: Path, name: str, outputs: int, task: str, head: str, **options: Any) -> ModelVersion:
    where = {"repository": repository, "name": name}
    return pack(network(outputs), torch.from_numpy(rows(4)), task=task, head=head, **where, **options)
