"""Replay: an answer asked for again, alone, with its seed and exactly the draws that it used, is the same answer.

Numbers agree to float rounding; of the model whose products are rounded to bfloat16, to a part of the draws' standard
deviation. Where nothing but its own rule stopped a question, the rule stops it after as many draws again.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dubito_protos import open_inference_pb2 as oip
from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb
from dubito_protos import uncertainty_pb2_grpc as pb_grpc

from .questions import ROUNDED, as_evaluation

ROUNDING = 1e-6
ROUNDED_SHARE = 1e-2  # of the draws' standard deviation
_OWN = (pb.STOP_REASON_MAX_DRAWS, pb.STOP_REASON_TOLERANCE, pb.STOP_REASON_DECISION, pb.STOP_REASON_THRESHOLD)
_ESTIMATORS = {"plain": pb.ESTIMATOR_PLAIN, "linearized": pb.ESTIMATOR_LINEARIZED}
SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Answered:
    """A question and its answer, of either path and either protocol."""

    request: pb.PredictRequest
    values: dict[str, NDArray[Any]]
    version: int
    draws: NDArray[np.int64] | None = None  # None: of the standard path
    seed: int = 0
    estimator: int = 0
    own_rule: bool = True  # neither a deadline nor load stopped it


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a replay is off, in its tolerance, by quantity; whether the rule stopped it otherwise."""

    model: str
    off: dict[str, float]
    stopped_otherwise: bool = False

    @property
    def same(self) -> bool:
        """Whether all agree to rounding."""
        return all(part <= 1.0 for part in self.off.values())


def answered(request: pb.PredictRequest, reply: pb.PredictResponse) -> Answered:
    """Return what an answer says, to compare a replay with it."""
    values = {"standard_error": _array(reply.standard_error)}
    if reply.WhichOneof("answer") == "classification":
        values |= {
            name: _array(getattr(reply.classification, name))
            for name in (
                "probabilities",
                "predictive_entropy",
                "expected_entropy",
                "mutual_information",
                "standard_deviation",
            )
        }
    else:
        values |= {name: _array(getattr(reply.regression, name)) for name in ("mean", "epistemic_variance", "interval")}
    own = all(reason in _OWN for reason in reply.stop_reason)
    draws = tensors.decode(reply.draws)
    return Answered(request, values, reply.version, draws, reply.seed, reply.estimator, own)


def evaluated(request: pb.PredictRequest, reply: pb.EvaluateResponse) -> Answered:
    """Return what an answer of the standard path says."""
    return Answered(request, {"output": tensors.decode(reply.output)}, reply.version)


def inferred(request: pb.PredictRequest, reply: oip.ModelInferResponse) -> Answered:
    """Return what an answer of the Open Inference Protocol says, by the names of the other one."""
    values: dict[str, NDArray[Any]] = {}
    reasons = b""
    for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True):
        if output.name == "stop_reason":
            reasons = raw
        elif output.datatype in ("FP64", "INT64"):
            dtype = "<f8" if output.datatype == "FP64" else "<i8"
            values[output.name] = np.frombuffer(raw, dtype).reshape(output.shape)
    names = ("probabilities", "predictive_entropy", "mutual_information", "standard_deviation")
    names += ("mean", "epistemic_variance", "interval", "standard_error")
    own = not {"deadline", "load"} & set(_texts(reasons))
    seed = int(reply.parameters["seed"].string_param)
    estimator = _ESTIMATORS[reply.parameters["estimator"].string_param]
    kept = {name: values[name] for name in names if name in values}
    return Answered(request, kept, int(reply.model_version), values["draws"], seed, estimator, own)


def _texts(raw: bytes) -> list[str]:
    found = []
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        found.append(raw[4 : 4 + length].decode())
        raw = raw[4 + length :]
    return found


def _array(tensor: pb.Tensor) -> NDArray[Any]:
    return tensors.decode(tensor) if tensor.dtype else np.full(0, np.nan)


async def replay(stub: pb_grpc.UncertaintyServiceAsyncStub, given: Answered) -> Difference:
    """Ask for an answer again, and compare."""
    if given.draws is None:
        asked = as_evaluation(given.request)
        asked.version = given.version
        again = evaluated(given.request, await stub.Evaluate(asked, timeout=SECONDS))
        return Difference(given.request.model, _off(given, again, slice(None)))
    off: dict[str, float] = {}
    for draws in np.unique(given.draws):
        reply = await stub.Predict(exactly(given, int(draws)), timeout=SECONDS)
        for name, part in _off(given, answered(given.request, reply), given.draws == draws).items():
            off[name] = max(part, off.get(name, 0.0))
    stopped_otherwise = False
    if given.own_rule and given.request.sampling.HasField("stopping"):
        rule = pb.PredictRequest()
        rule.CopyFrom(given.request)
        rule.version, rule.sampling.seed = given.version, given.seed
        alone = answered(given.request, await stub.Predict(rule, timeout=SECONDS))
        stopped_otherwise = not np.array_equal(alone.draws, given.draws)
    return Difference(given.request.model, off, stopped_otherwise)


def exactly(given: Answered, draws: int) -> pb.PredictRequest:
    """Return the question that asks for exactly so many draws of the same seed."""
    asked = pb.PredictRequest()
    asked.CopyFrom(given.request)
    asked.version = given.version
    asked.output.ClearField("stream")
    sampling = asked.sampling
    sampling.seed, sampling.min_draws, sampling.max_draws = given.seed, draws, draws
    sampling.estimator = given.estimator  # type: ignore[assignment]
    sampling.stopping.Clear()
    sampling.stopping.rule = pb.STOPPING_RULE_NONE
    return asked


def _off(given: Answered, again: Answered, rows: Any) -> dict[str, float]:
    """Return by quantity the largest difference, in its tolerance."""
    off = {}
    for name, value in given.values.items():
        one, other = value[rows], again.values[name][rows]
        if one.shape != other.shape or not np.array_equal(np.isnan(one), np.isnan(other)):
            off[name] = np.inf
            continue
        gap = np.abs(np.where(one == other, 0.0, one - other)) / _tolerance(given, name, one, rows)
        off[name] = float(np.nan_to_num(gap, nan=0.0).max(initial=0.0))
    return off


def _tolerance(given: Answered, name: str, value: NDArray[Any], rows: Any) -> NDArray[np.float64]:
    rounding = ROUNDING * np.maximum(1.0, np.abs(np.nan_to_num(value, posinf=0.0, neginf=0.0)))
    if name == "output":
        return 10 * rounding  # of onnxruntime's single precision, in passes of other sizes
    if given.request.model == ROUNDED:
        spread = given.values["standard_deviation"][rows].max()
        return np.maximum(rounding, ROUNDED_SHARE * spread)
    return rounding
