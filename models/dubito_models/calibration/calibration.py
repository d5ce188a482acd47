"""What a calibration is: its parameters, and how the draws it was fitted to were made."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from dubito_models.heads import Decoded
from dubito_models.stopping import ErrorRatios


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is done to every draw, and how the draws were made that it was fitted to.

    `temperature`: p proportional to p ** (1 / temperature), that is softmax(logits / temperature). `noise_scale`: the
    noise variance of a regression times this factor. `identity`: nothing, because neither improved the likelihood.

    `error_ratios` tell a tolerance how much smaller the standard errors of balanced draws are than the formula's.
    `program` is the checksum of the program it was fitted for. An answer drawn with the same `seed`, `design` and
    number of `draws` is the same function of its row that was calibrated; any other is only close to it.
    """

    method: Literal["temperature", "noise_scale", "identity"]
    draws: int
    seed: int
    design: str
    group_size: int
    program: str
    data_fingerprint: str
    rows: int
    nll_before: float  # cross-validated, nats per row and target
    nll_after: float
    temperature: float = 1.0
    noise_scale: float = 1.0
    estimator: str = "plain"
    precision: str = "float32"
    fan_out: int = 1
    error_ratios: ErrorRatios | None = None  # what balance gains in draws
    linearized: bool = False  # whether a classification may be corrected by linear logits: it pays, and has no bias
    control_variate: bool = False  # whether a regression's variance is taken with control variates: they paid

    @property
    def id(self) -> str:
        """The address of its content."""
        return _address(self)

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters of the method, by name."""
        return {} if self.method == "identity" else {self.method: getattr(self, self.method)}

    def apply(self, decoded: Decoded) -> Decoded:
        """Calibrate draws."""
        if self.method == "temperature" and decoded.log_probabilities is not None:
            return replace(decoded, log_probabilities=F.log_softmax(decoded.log_probabilities / self.temperature, -1))
        if self.method == "noise_scale" and decoded.variance is not None:
            return replace(decoded, variance=decoded.variance * self.noise_scale)
        return decoded


@functools.lru_cache(maxsize=256)
def _address(calibration: Calibration) -> str:
    defaults = {field.name: field.default for field in fields(Calibration)}
    said = {name: value for name, value in asdict(calibration).items() if value != defaults[name]}  # a field more
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]  # ... changes no old address


def fingerprint(arrays: Mapping[str, NDArray[np.generic]]) -> str:
    """Return a digest of named arrays: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
