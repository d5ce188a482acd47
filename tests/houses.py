"""A table of every kind of column, and a small network for it: what the tests of tables share."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dubito_models.heads import Head
from dubito_models.networks import MLP, Pipeline, Rescale
from dubito_models.networks.tabular import TableEncoder
from dubito_models.package import ModelVersion
from dubito_models.packing import pack
from dubito_models.tables import Table, read_table, split_table

CITIES = ["Bern", "Oslo", "Rome", ""]
HEADER = ["", "area", "rooms", "city", "garden", "style", "price"]


def house_rows(count: int, seed: int = 0) -> list[list[str]]:
    """Rows as a file has them: missing numbers and texts, blanks about a text, rare styles, truth values."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        area, city = random.uniform(30, 200), str(random.choice(CITIES))
        price = 3 * area + 100 * (city == "Rome") + random.normal()
        rows.append(
            [
                str(number),
                f"{area:.2f}" if random.random() > 0.1 else str(random.choice(["", "NA", "?"])),
                str(random.integers(1, 6)),
                f" {city} " if city else "",
                str(random.choice(["True", "false"])),
                str(random.choice(["old", "new"])) if random.random() < 0.95 else f"odd {number}",
                f"{price:.2f}",
            ]
        )
    return rows


def write_houses(path: Path, count: int = 300, seed: int = 0) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *house_rows(count, seed)])
    return path


def house_network(table: Table) -> nn.Module:
    """An untrained network from raw columns to raw prices."""
    train = split_table(table).train
    encoder = TableEncoder(table.columns, train.inputs)
    targets = torch.tensor(train.targets)
    after = Rescale(targets.mean(0), targets.std(0), Head.MEAN_AND_LOG_VARIANCE)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return Pipeline(encoder, MLP(encoder.features, [16], 2, 0.2), after)


def pack_houses(repository: Path, source: Path) -> ModelVersion:
    table = read_table(source, target="price")
    return pack(
        house_network(table),
        torch.tensor(table.inputs[:32]),
        repository=repository,
        name="houses",
        task="regression",
        head="mean_and_log_variance",
        columns={"inputs": table.columns},
    )
