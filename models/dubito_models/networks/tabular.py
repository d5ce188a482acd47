"""From the raw columns of a table to what a network learns well from: a module, packed with the network.

**Numbers** are standardised by the training rows; a missing one is their median, and says so by a feature of its own
where training has seen missing values in that column.
**Categories** are one feature each, 1 or 0, minus the share of training rows that have it; so is a missing one. A code
that training has never seen, and code 0, are the average training row: 0 in all features of the column. So no weight
serves them alone, which nothing would have trained. (A linear layer on such features is a learned embedding.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from dubito_models.columns import Column
from dubito_models.errors import InvalidArgument
from dubito_models.networks.scaling import Standardize

_MISSING = -1.0  # the code of a missing category in here, which no value has


class NumberEncoder(nn.Module):
    """The number columns at `positions` of a table, with the statistics of its training rows (N, C)."""

    def __init__(self, positions: Sequence[int], rows: NDArray[np.float64]) -> None:
        super().__init__()
        values = rows[:, list(positions)]  # (N, numbers)
        known = ~np.isnan(values)
        median = np.array([np.median(v[k]) if k.any() else 0.0 for v, k in zip(values.T, known.T, strict=True)])
        filled = np.where(known, values, median)
        spread = filled.std(0)
        # What never varied in training teaches nothing: divided by infinity it is 0, whatever comes.
        scale = torch.from_numpy(np.where(np.ptp(filled, axis=0) > 0, spread, np.inf))
        missed = np.flatnonzero(~known.all(0) & known.any(0))
        self.standardize = Standardize(torch.from_numpy(filled.mean(0)), scale)
        self.positions: Tensor
        self.median: Tensor
        self.missed: Tensor
        self.shares: Tensor
        self.register_buffer("positions", torch.tensor(positions))
        self.register_buffer("median", torch.from_numpy(median).float())
        self.register_buffer("missed", torch.from_numpy(missed))
        self.register_buffer("shares", torch.from_numpy(1 - known[:, missed].mean(0)).float())
        self.features = len(positions) + len(missed)

    def forward(self, rows: Tensor) -> Tensor:
        """Return features (B, features) of raw rows (B, C)."""
        values = rows[:, self.positions]  # (B, numbers)
        missing = torch.isnan(values)
        scaled: Tensor = self.standardize(torch.where(missing, self.median, values))
        if not len(self.missed):
            return scaled
        return torch.cat([scaled, missing[:, self.missed].float() - self.shares], 1)


class CategoryEncoder(nn.Module):
    """The category columns at `positions` of a table, with the categories that its training rows (N, C) hold."""

    def __init__(self, positions: Sequence[int], columns: Sequence[Column], rows: NDArray[np.float64]) -> None:
        super().__init__()
        sources: list[int] = []  # of each feature: its column's position in the table,
        members: list[int] = []  # its column's number among the category columns,
        codes: list[float] = []  # its code,
        shares: list[float] = []  # and the share of training rows that have it
        for number, (position, column) in enumerate(zip(positions, columns, strict=True)):
            values = np.where(np.isnan(rows[:, position]), _MISSING, rows[:, position])
            for code in (_MISSING, *range(1, len(column.categories) + 1)):
                share = float((values == code).mean())
                if 0 < share < 1:
                    sources.append(position)
                    members.append(number)
                    codes.append(float(code))
                    shares.append(share)
        self.sources: Tensor
        self.members: Tensor
        self.codes: Tensor
        self.shares: Tensor
        self.register_buffer("sources", torch.tensor(sources, dtype=torch.int64))
        self.register_buffer("members", torch.tensor(members, dtype=torch.int64))
        self.register_buffer("codes", torch.tensor(codes))
        self.register_buffer("shares", torch.tensor(shares))
        of_column = torch.zeros(len(codes), len(positions))
        of_column[torch.arange(len(codes)), self.members] = 1.0
        self.of_column: Tensor
        self.register_buffer("of_column", of_column)  # (features, category columns)
        self.features = len(codes)

    def forward(self, rows: Tensor) -> Tensor:
        """Return features (B, features) of raw rows (B, C)."""
        values = rows[:, self.sources]  # (B, features)
        codes = torch.where(torch.isnan(values), _MISSING, torch.round(values).clamp(min=0))
        hits = (codes == self.codes).float()  # (B, features)
        known = (hits @ self.of_column)[:, self.members]  # (B, features): whether any of the column's codes was hit
        return hits - known * self.shares


class TableEncoder(nn.Module):
    """Features (B, `features`) of a table's raw rows (B, C), fitted to its training rows (N, C).

    `columns` say what each of the C numbers is. Codes are rounded to whole ones. Trains nothing: all it holds are
    buffers. Raises `InvalidArgument` where the training rows do not fit the columns, or say nothing at all.
    """

    def __init__(self, columns: Sequence[Column], training_rows: ArrayLike) -> None:
        super().__init__()
        rows = np.asarray(training_rows, np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(columns) or not len(rows):
            accepted = f"(rows, {len(columns)}), as many numbers as columns"
            raise InvalidArgument("training_rows", f"shape {rows.shape}", accepted)
        if np.isinf(rows).any():
            name = columns[int(np.argwhere(np.isinf(rows))[0, 1])].name
            raise InvalidArgument("training_rows", f"infinity in column {name!r}", "finite numbers, or NaN for missing")
        kinds = [column.kind for column in columns]
        numbers = [at for at, kind in enumerate(kinds) if kind == "number"]
        categories = [at for at, kind in enumerate(kinds) if kind == "category"]
        parts: list[NumberEncoder | CategoryEncoder] = []
        if numbers:
            parts.append(NumberEncoder(numbers, rows))
        if categories:
            parts.append(CategoryEncoder(categories, [columns[at] for at in categories], rows))
        self.parts = nn.ModuleList(part for part in parts if part.features)
        self.features = sum(part.features for part in parts)
        if not self.features:
            raise InvalidArgument("training_rows", "columns that never vary", "at least one column that varies")

    def forward(self, rows: Tensor) -> Tensor:
        """Return features (B, features) of raw rows (B, C); NaN is a missing value."""
        return torch.cat([part(rows) for part in self.parts], 1)
