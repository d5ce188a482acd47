"""The digits: 1797 images of 8x8 pixels (Alpaydin & Kaynak 1998), in four splits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from dubito_models.data.splits import SHARES, Splits, share_out, take
from dubito_models.errors import InvalidArgument
from dubito_models.heads import Task

BRIGHTEST = 16  # the pixels of the source are whole numbers from 0 to 16


def digits(seed: int = 0) -> Splits:
    """Return the digits, images (N, 1, 8, 8) in [0, 1], split 60 / 10 / 10 / 20 % within every class, by the seed."""
    if seed < 0:
        raise InvalidArgument("seed", seed, "at least 0")
    source = load_digits()
    images = (source.images[:, None] / BRIGHTEST).astype(np.float32)  # (N, 1, 8, 8)
    labels = source.target.astype(np.int64)  # (N,)
    random = np.random.default_rng(seed)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in SHARES]
    for label in np.unique(labels):
        for part, chosen in zip(parts, share_out(np.flatnonzero(labels == label), random), strict=True):
            part.append(chosen)
    train, validation, calibration, test = (
        take(images, labels, random.permutation(np.concatenate(part))) for part in parts
    )
    names = tuple(str(name) for name in source.target_names)
    return Splits(train, validation, calibration, test, task=Task.CLASSIFICATION, class_names=names)
