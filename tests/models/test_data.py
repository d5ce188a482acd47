"""The digits and their splits, and the shifts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dubito_models.data import SHARES, Split, blur, digits, pure_noise, rotate
from dubito_models.errors import InvalidArgument


def parts(seed: int) -> dict[str, Split]:
    data = digits(seed)
    return {name: getattr(data, name) for name in SHARES}


def test_splits_share_no_row_and_lose_none() -> None:
    """The four splits together are the digits, each image as often as it is there."""
    source = load_digits()
    whole = Counter(
        (image.tobytes(), int(label))
        for image, label in zip((source.images / 16).astype(np.float32), source.target, strict=True)
    )
    found: Counter[tuple[bytes, int]] = Counter()
    for split in parts(3).values():
        found.update((image.tobytes(), int(label)) for image, label in zip(split.inputs, split.targets, strict=True))
    assert found == whole


def test_every_class_is_split_by_the_shares() -> None:
    """Each split holds its share of each class, to one image."""
    totals = np.bincount(load_digits().target)
    for name, split in parts(0).items():
        assert np.abs(np.bincount(split.targets) - SHARES[name] * totals).max() <= 1


def test_images_are_floats_in_the_unit_interval() -> None:
    """Images are float32 (N, 1, 8, 8) that span [0, 1], labels int64 (N,), and nobody can write to either."""
    for split in parts(0).values():
        assert split.inputs.shape == (len(split), 1, 8, 8)
        assert split.inputs.dtype == np.float32
        assert (split.inputs.min(), split.inputs.max()) == (0, 1)
        assert split.targets.shape == (len(split),)
        assert split.targets.dtype == np.int64
        with pytest.raises(ValueError, match="read-only"):
            split.inputs[0] = 0
        with pytest.raises(ValueError, match="read-only"):
            split.targets[0] = 0
    assert digits().class_names == tuple("0123456789")


def test_the_seed_alone_decides() -> None:
    """The same seed gives the same splits, whatever numpy's global generator does; another seed others."""
    np.random.seed(1)
    first = parts(5)
    np.random.seed(2)
    for name, split in parts(5).items():
        np.testing.assert_array_equal(split.inputs, first[name].inputs)
        np.testing.assert_array_equal(split.targets, first[name].targets)
    assert not np.array_equal(first["test"].inputs, parts(6)["test"].inputs)


def test_a_negative_seed_is_refused() -> None:
    """A seed below 0 is refused by name."""
    with pytest.raises(InvalidArgument, match="seed"):
        digits(-1)


def test_a_quarter_turn_moves_pixels_exactly() -> None:
    """Rotation by 90 degrees is numpy's rot90, counter-clockwise, and by 0 nothing."""
    images = parts(0)["test"].inputs
    np.testing.assert_allclose(rotate(images, 90), np.rot90(images, axes=(2, 3)), atol=1e-5)
    np.testing.assert_array_equal(rotate(images, 0), images)


def test_blur_keeps_light_and_loses_contrast() -> None:
    """A blur of an image in the middle of the dark keeps its sum and lowers its peak; of width 0 it does nothing."""
    image = np.zeros((1, 1, 33, 33), np.float32)
    image[0, 0, 16, 16] = 1
    blurred = blur(image, 1.5)
    assert blurred.sum() == pytest.approx(1, abs=1e-4)
    assert blurred.max() == pytest.approx(1 / (2 * np.pi * 1.5**2), rel=0.02)
    np.testing.assert_array_equal(blur(image, 0), image)


def test_rows_and_channels_do_not_mix() -> None:
    """A shift of several images is the shift of each alone, per channel."""
    images = pure_noise((3, 2, 8, 8), seed=1)
    for shift in (lambda x: rotate(x, 33), lambda x: blur(x, 0.8)):
        alone = [shift(images[i : i + 1, c : c + 1]) for i in range(3) for c in range(2)]
        np.testing.assert_array_equal(shift(images), np.concatenate(alone).reshape(images.shape))


def test_shifts_stay_images() -> None:
    """Shifted images are float32 in [0, 1], and the originals are untouched."""
    images = parts(0)["test"].inputs
    before = images.copy()
    for shifted in (rotate(images, 45), blur(images, 2), pure_noise(images.shape, seed=0)):
        assert shifted.dtype == np.float32
        assert shifted.shape == images.shape
        assert shifted.min() >= 0
        assert shifted.max() <= 1
    np.testing.assert_array_equal(images, before)


def test_noise_is_uniform_and_seeded() -> None:
    """Noise is a pure function of its seed, with the mean and variance of a uniform (4 standard errors)."""
    noise = pure_noise((200, 1, 8, 8), seed=7)
    np.testing.assert_array_equal(noise, pure_noise((200, 1, 8, 8), seed=7))
    assert not np.array_equal(noise, pure_noise((200, 1, 8, 8), seed=8))
    assert noise.mean() == pytest.approx(1 / 2, abs=4 * np.sqrt(1 / 12 / noise.size))
    assert noise.var() == pytest.approx(1 / 12, abs=4 * np.sqrt(1 / 180 / noise.size))


@pytest.mark.parametrize(
    ("field", "shift"),
    [
        ("degrees", lambda x: rotate(x, float("inf"))),
        ("sigma", lambda x: blur(x, -1)),
        ("sigma", lambda x: blur(x, float("nan"))),
        ("images", lambda x: rotate(x[0], 10)),
        ("images", lambda x: blur(x[:, 0], 1)),
    ],
)
def test_impossible_shifts_are_refused(field: str, shift: object) -> None:
    """Angles and widths that are no numbers, and arrays that are no images, are refused by name."""
    assert callable(shift)
    with pytest.raises(InvalidArgument) as caught:
        shift(np.zeros((2, 1, 8, 8), np.float32))
    assert caught.value.field == field
