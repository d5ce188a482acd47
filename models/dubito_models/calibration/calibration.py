"""What a calibration is: its parameters, and how the draws it was fitted to were made."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from dubito_models.heads import Decoded


@dataclass(frozen=True, slots=True)
class Calibration:
    """A temperature per draw: p proportional to p ** (1 / temperature), that is softmax(logits / temperature).

    `program` is the checksum of the program it was fitted for. An answer drawn with the same `seed`, `design` and
    number of `draws` is the same function of its row that was calibrated; any other is only close to it.
    """

    method: Literal["temperature", "identity"]
    temperature: float
    draws: int
    seed: int
    design: str
    group_size: int
    program: str
    data_fingerprint: str
    rows: int
    nll_before: float  # cross-validated, nats per row
    nll_after: float
    estimator: str = "plain"
    precision: str = "float32"
    fan_out: int = 1

    @property
    def id(self) -> str:
        """The address of its content."""
        return _address(self)

    def apply(self, decoded: Decoded) -> Decoded:
        """Calibrate draws of a classification."""
        if self.method == "identity" or decoded.log_probabilities is None:
            return decoded
        return replace(decoded, log_probabilities=F.log_softmax(decoded.log_probabilities / self.temperature, -1))


@functools.lru_cache(maxsize=256)
def _address(calibration: Calibration) -> str:
    return hashlib.sha256(json.dumps(asdict(calibration), sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(arrays: Mapping[str, NDArray[np.generic]]) -> str:
    """Return a digest of named arrays: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
