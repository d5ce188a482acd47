"""Questions: mixed calls of all kinds, each a function of its number alone, so that it can be asked again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dubito_protos import open_inference_pb2 as oip
from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb

Inputs = dict[str, NDArray[Any]]
Random = np.random.Generator

BULK = 4  # requests of a PredictBulk
ROUNDED = "rounded"  # the model in bfloat16
KINDS = {"Predict": 0.4, "PredictStream": 0.1, "PredictBulk": 0.1, "Evaluate": 0.15, "ModelInfer": 0.15, "Observe": 0.1}
_DATATYPES = {"float32": "FP32", "int64": "INT64"}


@dataclass(frozen=True, slots=True)
class Model:
    """Rows of a model, of random lengths where it takes any, and whether it is a classification."""

    rows: Callable[[Random, int], Inputs]
    classification: bool = True


@dataclass(frozen=True, slots=True)
class Question:
    """One call: its kind, and the requests that it stands for; several in bulk alone."""

    number: int
    kind: str
    requests: tuple[pb.PredictRequest, ...]


def _encoder(random: Random, rows: int) -> Inputs:
    return {"series": random.normal(size=(rows, int(random.choice((3, 5, 9))), 16)).astype(np.float32)}


def _two_inputs(random: Random, rows: int) -> Inputs:
    tokens = random.integers(0, 20, (rows, int(random.choice((4, 7)))))
    return {"tokens": tokens, "features": random.normal(size=(rows, 3)).astype(np.float32)}


def _flat(name: str, width: int) -> Callable[[Random, int], Inputs]:
    return lambda random, rows: {name: random.normal(size=(rows, width)).astype(np.float32)}


MODELS: dict[str, Model] = {
    "mlp": Model(_flat("input", 6)),  # calibrated
    "encoder": Model(_encoder),
    "two-inputs": Model(_two_inputs, classification=False),
    ROUNDED: Model(_flat("inputs", 32)),
}


def question(number: int, kinds: dict[str, float] = KINDS) -> Question:
    """Return the call of a number."""
    random = np.random.default_rng([20, number])
    kind = str(random.choice(list(kinds), p=np.array(list(kinds.values())) / sum(kinds.values())))
    if kind == "Observe":
        asked = _request(random, f"{number}", "mlp")
        asked.output.coverage = 0.9
        asked.output.stream = f"ward {number % 8}" if number % 2 else ""
        return Question(number, kind, (asked,))
    count = BULK if kind == "PredictBulk" else 1
    names = random.choice(list(MODELS), count)
    return Question(number, kind, tuple(_request(random, f"{number}-{i}", str(names[i])) for i in range(count)))


def probe(number: int) -> Question:
    """Return a small question, of which all cost the same."""
    asked = _request(np.random.default_rng([21, number]), "", "mlp")
    asked.sampling.Clear()
    asked.sampling.max_draws = 20
    return Question(number, "Predict", (asked,))


def hurried(question: Question) -> Question:
    """Return a question that few draws will do for, so that load may shed the others."""
    requests = []
    for request in question.requests:
        hasty = pb.PredictRequest()
        hasty.CopyFrom(request)
        hasty.sampling.min_draws = 10
        requests.append(hasty)
    return replace(question, requests=tuple(requests))


def _request(random: Random, name: str, model: str) -> pb.PredictRequest:
    rows = int(random.choice((1, 1, 1, 4, 16)))
    inputs = [tensors.encode(value, field) for field, value in MODELS[model].rows(random, rows).items()]
    request = pb.PredictRequest(model=model, inputs=inputs, id=name, priority=int(random.integers(0, 4)))
    sampling = request.sampling
    sampling.max_draws = int(random.choice((20, 40, 80)))
    if random.random() < 0.5:
        sampling.seed = int(random.integers(0, 5))
    if random.random() < 0.1:
        sampling.mask_scope = pb.MASK_SCOPE_ROW
    if random.random() < 0.1:
        sampling.design = pb.DESIGN_INDEPENDENT
    _stop(random, sampling, model)
    return request


def _stop(random: Random, sampling: pb.SamplingSpec, model: str) -> None:
    """Let some stop early by a rule."""
    chance = random.random()
    if chance < 0.2:
        sampling.stopping.rule = pb.STOPPING_RULE_TOLERANCE
        sampling.stopping.target = float(random.choice((0.02, 0.05)))
        sampling.min_draws = 10
    elif chance < 0.4 and MODELS[model].classification:
        sampling.stopping.rule = pb.STOPPING_RULE_DECISION
        sampling.min_draws = 10


def as_evaluation(request: pb.PredictRequest) -> pb.EvaluateRequest:
    """Return the same rows as a question to the standard path."""
    return pb.EvaluateRequest(model=request.model, inputs=request.inputs, id=request.id, priority=request.priority)


def as_inference(request: pb.PredictRequest) -> oip.ModelInferRequest:
    """Return the same question as the Open Inference Protocol has it."""
    asked = oip.ModelInferRequest(model_name=request.model, id=request.id)
    for tensor in request.inputs:
        datatype = _DATATYPES[tensors.dtype_name(tensor.dtype)]
        asked.inputs.add(name=tensor.name, datatype=datatype, shape=tensor.shape)
        asked.raw_input_contents.append(tensor.data)
    sampling, parameters = request.sampling, asked.parameters
    parameters["draws"].int64_param = sampling.max_draws
    if sampling.HasField("min_draws"):
        parameters["min_draws"].int64_param = sampling.min_draws
    if sampling.HasField("seed"):
        parameters["seed"].string_param = str(sampling.seed)
    if sampling.mask_scope == pb.MASK_SCOPE_ROW:
        parameters["mask_scope"].string_param = "row"
    if sampling.design == pb.DESIGN_INDEPENDENT:
        parameters["design"].string_param = "independent"
    if sampling.stopping.rule == pb.STOPPING_RULE_TOLERANCE:
        parameters["tolerance"].string_param = str(sampling.stopping.target)
    elif sampling.stopping.rule == pb.STOPPING_RULE_DECISION:
        parameters["stopping_rule"].string_param = "decision"
    return asked
