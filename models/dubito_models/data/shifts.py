"""Shifts: images moved away from those that a network was trained on."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dubito_models.errors import InvalidArgument

Images = NDArray[np.float32]


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
