"""Randomness as a pure function of a seed and a number, with the caller's global generators left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def randomness(seed: int, epoch: int) -> np.random.Generator:
    """Return the generator of an epoch; epoch 0 stands for what comes before the first."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,)))


@contextmanager
def seeded(random: np.random.Generator, device: torch.device) -> Iterator[None]:
    """Seed torch's generators of the CPU and of this device from `random`, for the time of a with block."""
    # Not torch.manual_seed: it reseeds every GPU, of which the caller gets back only those that were forked.
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else []):
        seed = int(random.integers(2**63))
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        yield
