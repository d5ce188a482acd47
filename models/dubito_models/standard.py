"""The standard path: the network with dropout off, exported to ONNX, run by onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from dubito_models.errors import CorruptVersion, UnsupportedNetwork
from dubito_models.export import EXPORTING
from dubito_models.heads import Head, decode
from dubito_models.translation import as_onnx


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the standard path says: the network's raw output, and its meaning by the head."""

    output: NDArray[Any]  # (B, ...)
    probabilities: NDArray[np.float64] | None = None  # (B, K)
    label: NDArray[np.int64] | None = None  # (B,)
    mean: NDArray[np.float64] | None = None  # (B, K)
    aleatoric_variance: NDArray[np.float64] | None = None  # (B, K)


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Keep a library's warnings about its own optional parts away from whoever packs."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def export_onnx(standard: ExportedProgram) -> bytes:
    """Export the network in evaluation mode as ONNX, its free axes free; `UnsupportedNetwork` where ONNX cannot."""
    with EXPORTING, tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "standard.onnx"
        try:
            with contextlib.redirect_stdout(io.StringIO()), _quiet("torch.onnx._internal.exporter._registration"):
                torch.onnx.export(
                    standard,
                    (),
                    path,
                    dynamo=True,
                    external_data=False,
                    verbose=False,
                    custom_translation_table={torch.ops.dubito.recurrent.default: as_onnx},
                )
        except Exception as error:
            cause = error.__cause__ or error
            first = (str(cause) or type(cause).__name__).splitlines()[0]
            raise UnsupportedNetwork(f"the network cannot be exported to ONNX: {first}") from error
        return path.read_bytes()


@dataclass(frozen=True, slots=True)
class RawOutput:
    """What a network itself returns: its name in the ONNX graph, its dtype, and its shape, None where free."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


def _raw_output(node: Any) -> RawOutput:
    kind: str = node.type.removeprefix("tensor(").removesuffix(")")  # onnxruntime has C's names of dtypes
    dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
    return RawOutput(node.name, dtype, (None, *(size if isinstance(size, int) else None for size in node.shape[1:])))


class StandardPath:
    """An ONNX network in onnxruntime; safe to call from several threads."""

    def __init__(self, model: bytes, inputs: Sequence[str], output: int, *, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.add_session_config_entry(
            "session.intra_op.allow_spinning", "0"
        )  # idle threads leave the cores to draws
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises kinds of its own
            raise CorruptVersion(f"standard.onnx: onnxruntime cannot load it ({error})") from error
        given = [node.name for node in self._session.get_inputs()]
        # A network may ignore an input that its signature has; ONNX then drops it.
        if not set(given) <= set(inputs):
            raise CorruptVersion(f"standard.onnx: takes {given}, the manifest says {list(inputs)}")
        self._inputs = given
        self.output = _raw_output(self._session.get_outputs()[output])

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Return the raw prediction (B, ...) for inputs by name, each (B, ...)."""
        [output] = self._session.run([self.output.name], {name: inputs[name] for name in self._inputs})
        return np.asarray(output)


def interpret(head: Head, output: NDArray[Any], noise_variance: NDArray[np.float64] | None = None) -> Evaluation:
    """Decode a raw prediction by its head."""
    decoded = decode(head, torch.as_tensor(output)[None])
    if decoded.log_probabilities is not None:
        probabilities = decoded.log_probabilities[0].exp().numpy()
        return Evaluation(output, probabilities=probabilities, label=probabilities.argmax(-1))
    assert decoded.mean is not None
    mean = decoded.mean[0].numpy()
    if decoded.variance is not None:
        return Evaluation(output, mean=mean, aleatoric_variance=decoded.variance[0].numpy())
    noise = None if noise_variance is None else np.broadcast_to(noise_variance, mean.shape).copy()
    return Evaluation(output, mean=mean, aleatoric_variance=noise)
