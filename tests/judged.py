"""Rows whose truth is known, for small packed versions: what the tests of evaluating share."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dubito_models.evaluating import Assessment, evaluate
from dubito_models.package import ModelVersion
from dubito_models.packing import pack
from dubito_models.rows import Labelled, read_labelled
from dubito_models.sampling import SamplingSpec
from houses import pack_houses, write_houses
from networks import sample


def labelled(version: ModelVersion, rows: int, seed: int = 0) -> Labelled:
    """Rows of a case's own kind, their classes drawn from what the Monte Carlo path says: it is calibrated."""
    inputs = {name: value.numpy() for name, value in sample(version.name, rows, seed=10 + seed).items()}
    probabilities = version.predict(inputs, SamplingSpec(uncalibrated=True)).answer.probabilities
    random = np.random.default_rng(seed)
    labels = (probabilities.cumsum(-1) > random.random((rows, 1))).argmax(-1)
    return Labelled(inputs, labels.astype(np.int64))


@cache
def houses(folder: Path) -> tuple[ModelVersion, Labelled]:
    """A version for tables that predicts its noise, and the test rows of its table."""
    path = write_houses(folder / "houses.csv")
    version = pack_houses(folder / "repository", path)
    return version, read_labelled(f"{path}:test", version, "price")


@cache
def line(folder: Path) -> tuple[ModelVersion, Labelled]:
    """A regression of two targets that knows no noise, and 60 rows; its only dropout is integrated."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
    version = pack(
        network, torch.zeros(2, 3), repository=folder / "repository", name="line", task="regression", head="mean"
    )
    random = np.random.default_rng(1)
    inputs = random.normal(size=(60, 3)).astype(np.float32)
    mean = version.evaluate({"input": inputs}).mean
    assert mean is not None
    return version, Labelled({"input": inputs}, mean + 0.3 * random.normal(size=mean.shape))


@cache
def assessed(version: ModelVersion, rows: int = 40, *, shift: bool = False) -> Assessment:
    """A classification judged on few rows."""
    return evaluate(version, labelled(version, rows), "rows.npz", shift=shift, resamples=40)
