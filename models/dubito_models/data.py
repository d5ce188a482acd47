"""The digits: 1797 images of 8x8 pixels (Alpaydin & Kaynak 1998), in four splits, and shifts away from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.datasets import load_digits

from dubito_models.errors import InvalidArgument

SHARES = {"train": 0.6, "validation": 0.1, "calibration": 0.1, "test": 0.2}
BRIGHTEST = 16  # the pixels of the source are whole numbers from 0 to 16

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Split:
    """Images (N, C, H, W) with values in [0, 1], and their labels (N,); both read-only."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Splits:
    """Four splits that share no row: to fit weights, to stop, to calibrate, and to be judged by."""

    train: Split
    validation: Split
    calibration: Split
    test: Split
    class_names: tuple[str, ...]


def _frozen(images: Images, labels: Labels, rows: NDArray[np.int64]) -> Split:
    split = Split(images[rows], labels[rows])
    split.images.flags.writeable = split.labels.flags.writeable = False
    return split


def digits(seed: int = 0) -> Splits:
    """Return the digits, images (N, 1, 8, 8), split 60 / 10 / 10 / 20 % within every class, by the seed alone."""
    if seed < 0:
        raise InvalidArgument("seed", seed, "at least 0")
    source = load_digits()
    images = (source.images[:, None] / BRIGHTEST).astype(np.float32)  # (N, 1, 8, 8)
    labels = source.target.astype(np.int64)  # (N,)
    random = np.random.default_rng(seed)
    cuts = np.cumsum(list(SHARES.values()))[:-1]
    parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in SHARES}
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        edges = np.rint(cuts * len(rows)).astype(int)
        for part, chosen in zip(parts.values(), np.split(rows, edges), strict=True):
            part.append(chosen)
    splits = {name: _frozen(images, labels, random.permutation(np.concatenate(part))) for name, part in parts.items()}
    return Splits(**splits, class_names=tuple(str(name) for name in source.target_names))


# --- Shifts ---


def _images(images: Images) -> Images:
    if images.ndim != 4:
        raise InvalidArgument("images", f"shape {images.shape}", "shape (N, C, H, W)")
    return images.astype(np.float32, copy=False)


def rotate(images: Images, degrees: float) -> Images:
    """Return images (N, C, H, W) turned counter-clockwise about their centre; what comes into view is black."""
    if not math.isfinite(degrees):
        raise InvalidArgument("degrees", degrees, "a finite angle")
    turned: Images = ndimage.rotate(_images(images), degrees, axes=(3, 2), reshape=False, order=1)
    return np.clip(turned, 0, 1)


def blur(images: Images, sigma: float) -> Images:
    """Return images (N, C, H, W) under a Gaussian kernel with a standard deviation of `sigma` pixels."""
    if not (math.isfinite(sigma) and sigma >= 0):
        raise InvalidArgument("sigma", sigma, "at least 0 pixels")
    blurred: Images = ndimage.gaussian_filter(_images(images), sigma=(0, 0, sigma, sigma), mode="constant")
    return np.clip(blurred, 0, 1)


def pure_noise(shape: tuple[int, ...], seed: int) -> Images:
    """Return images of a shape whose every pixel is uniform on [0, 1]."""
    return np.random.default_rng(seed).random(shape, dtype=np.float32)
