"""The translator of inferences between the Open Inference Protocol and the core."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dubito_models.errors import InvalidArgument
from dubito_models.manifest import InputSignature, find_input
from dubito_models.manifest import check_shape as check_signature
from dubito_models.package import ModelVersion
from dubito_models.predictive import Regression
from dubito_protos import open_inference_pb2 as pb
from dubito_service.asking import (
    Adapt,
    Prediction,
    Question,
    RequestLimits,
    Spent,
    StandardRequest,
    ask,
    ask_standard,
    renaming,
)
from dubito_service.errors import NotServed, shorten
from dubito_service.open_inference.columns import check_column, check_texts, gather_columns, is_column
from dubito_service.open_inference.datatypes import (
    BRAIN_FLOAT,
    DATATYPES,
    DTYPES,
    TEXT,
    as_texts,
    check_datatype,
    check_shape,
    datatype_of,
    decode,
    encode,
    widen,
)
from dubito_service.open_inference.options import (
    UNASKED,
    Options,
    Value,
    field_of,
    read_options,
    read_standard_options,
)
from dubito_service.open_inference.outputs import (
    Output,
    choose,
    declare_asked,
    declare_standard,
    take_outputs,
    take_standard_outputs,
)
from dubito_service.open_inference.statistics import Path
from dubito_service.predicting import Answer, StandardAnswer
from dubito_service.versions.registry import Registry

STANDARD = ".standard"  # after a model's name, which holds no dot: its standard path
FINAL = "triton_final_response"
_LONGEST_ERROR = 512  # bytes, as a status has it
_MOST_DIGITS = 18  # of a version
_MOST_PARAMETERS = 64  # of a request; there are fewer
_TURNED = 2**16  # typed values that are turned at a time: no other thread of Python runs meanwhile

# The one field that typed values of a datatype stand in; FP16 and BF16 have none.
_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    TEXT: "bytes_contents",
}
# What else a request may name as an output, by the parameter that asks for it.
_HINT = (
    "; by parameter coverage: prediction_set, prediction_interval; quantiles; raw_draws; joint: joint_covariance; "
    "uncalibrated: uncalibrated_..., where there is a calibration"
)


@dataclass(frozen=True, slots=True)
class Served:
    """A model as this protocol has it: one path of a version."""

    version: ModelVersion
    standard: bool

    @property
    def name(self) -> str:
        """The model's name."""
        return self.version.name + STANDARD if self.standard else self.version.name

    @property
    def path(self) -> Path:
        """What it is counted under."""
        return Path(self.version.name, self.version.version, self.standard)


@dataclass(frozen=True, slots=True)
class Inference:
    """A request that was found good, and what its answer is to hold."""

    served: Served
    asked: Prediction | StandardRequest
    options: Options
    declared: Mapping[str, Output]
    outputs: tuple[str, ...]


def find_served(name: str, version: str, registry: Registry, prefix: str = "model_") -> Served:
    """Find the path of a version that a request names; `prefix`: of the fields that it names them by.

    Raises `NotServed` or `InvalidArgument`.
    """
    number = read_version(version, f"{prefix}version")
    try:
        return Served(registry.find(name.removesuffix(STANDARD), number), name.endswith(STANDARD))
    except NotServed as error:
        if error.field == "model":
            accepted = f"{error.accepted}; each also with {STANDARD} for the network without dropout"
            raise NotServed(f"{prefix}name", repr(name), accepted) from None
        raise NotServed(f"{prefix}version", error.given, error.accepted) from None


def read_version(version: str, field: str) -> int | None:
    """Read a version's number, None for the newest."""
    if not version:
        return None
    if version.isascii() and version.isdigit() and version[0] != "0" and len(version) <= _MOST_DIGITS:
        return int(version)
    raise InvalidArgument(field, repr(version), "a version's number, 1 or more; nothing for the newest")


def read_inference(
    request: pb.ModelInferRequest, served: Served, limits: RequestLimits, adapt: Adapt | None = None
) -> Inference:
    """Check everything that a `ModelInferRequest` asks of a model; raises `InvalidArgument` or `StateUnset`.

    `adapt`: says what streams ask for, None where none are kept.
    """
    version, parameters = served.version, _read_parameters(request.parameters, "parameters")
    with renaming(partial(field_of, parameters=parameters)):
        options = read_standard_options(parameters) if served.standard else read_options(parameters, limits)
        inputs = _read_inputs(request, version.manifest.inputs, limits)
        asked: Prediction | StandardRequest
        if served.standard:
            asked = ask_standard(version, inputs, limits, request.id, options.priority)
            declared = {each.name: each for each in declare_standard(version)}
        else:
            question = Question(
                version=version,
                inputs=inputs,
                spec=options.spec,
                interval_asked=options.interval_asked,
                coverage=options.coverage,
                stream=options.stream,
                id=request.id,
                priority=options.priority,
            )
            asked = ask(question, limits, adapt)
            declared = declare_asked(asked)
        wanted = choose(_read_outputs(request.outputs), declared, "" if served.standard else _HINT)
    return Inference(served, asked, options, declared, wanted)


# --- Reading ---


def _read_parameters(given: Mapping[str, pb.InferParameter], field: str) -> dict[str, Value]:
    """Return parameters by name; those that clients add by themselves may be empty."""
    if len(given) > _MOST_PARAMETERS:
        raise InvalidArgument(field, f"{len(given)} of them", f"at most {_MOST_PARAMETERS}")
    found: dict[str, Value] = {}
    for name, parameter in given.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is not None:
            found[name] = getattr(parameter, kind)
        elif name not in UNASKED:
            raise InvalidArgument(f"{field}.{name[:128]}", "nothing", "a value")
    return found


def _check_tensor_parameters(given: Mapping[str, pb.InferParameter], field: str) -> None:
    for name in given:
        if name.startswith("shared_memory_"):
            accepted = "none: shared memory is not served, tensors travel in the messages"
            raise InvalidArgument(f"{field}.parameters.{name[:128]}", "a region of shared memory", accepted)
        if name not in UNASKED:
            raise InvalidArgument(f"{field}.parameters.{name[:128]}", "a parameter of this name", "none here")


def _read_outputs(given: Iterable[pb.ModelInferRequest.InferRequestedOutputTensor]) -> Iterator[str]:
    for output in given:
        _check_tensor_parameters(output.parameters, f"outputs[{output.name[:128]!r}]")
        yield output.name


def _read_inputs(
    request: pb.ModelInferRequest, signature: tuple[InputSignature, ...], limits: RequestLimits
) -> dict[str, NDArray[Any]]:
    """Decode inputs by name, as the signature types them."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        accepted = f"{len(request.inputs)}, one for each input; or none, and contents in every input"
        raise InvalidArgument("raw_input_contents", f"{len(raw)} of them", accepted)
    arrays: dict[str, NDArray[Any]] = {}
    for place, tensor in enumerate(request.inputs):
        field = f"inputs[{tensor.name!r}]"
        if tensor.name in arrays:
            raise InvalidArgument(field, "an input of this name twice", "each input once")
        _check_tensor_parameters(tensor.parameters, field)
        arrays[tensor.name] = _read_tensor(tensor, raw[place] if raw else None, field, signature, limits)
    dtypes = {entry.name: entry.dtype for entry in signature}
    gathered = gather_columns(arrays, signature)  # a column that is left over is refused with the names that there are
    return {name: widen(array, dtypes[name]) if name in dtypes else array for name, array in gathered.items()}


def _read_tensor(
    tensor: pb.ModelInferRequest.InferInputTensor,
    raw: bytes | None,
    field: str,
    signature: tuple[InputSignature, ...],
    limits: RequestLimits,
) -> NDArray[Any]:
    check_datatype(tensor.datatype, field)
    shape = check_shape(tensor.shape, field)
    if shape and shape[0] > limits.max_rows:  # before anything of that size is made
        raise InvalidArgument(f"{field}.shape", f"{shape[0]} rows", f"1 to {limits.max_rows} rows a request")
    _check_declared(tensor, shape, field, signature)
    if raw is None:
        return _read_contents(tensor, shape, field)
    if tensor.contents.ListFields():
        raise InvalidArgument(f"{field}.contents", "values here and in raw_input_contents", "one of the two")
    return decode(tensor.datatype, shape, raw, field)


def _check_declared(
    tensor: pb.ModelInferRequest.InferInputTensor,
    shape: tuple[int, ...],
    field: str,
    signature: tuple[InputSignature, ...],
) -> None:
    """Refuse a name, datatype or shape that the signature does not have, before any array of it is made."""
    if tensor.datatype == TEXT:
        check_texts(tensor.name, shape, signature)
        return
    if is_column(tensor.name, signature):
        check_column(shape, field)
        return
    entry = find_input(signature, tensor.name)
    if not _holds(entry.dtype, tensor.datatype):
        raise InvalidArgument(f"{field}.datatype", tensor.datatype, _accepted(entry))
    check_signature(entry, shape)


@cache
def _holds(dtype: str, datatype: str) -> bool:
    """Tell whether a dtype holds every value of one of the protocol's datatypes; none holds texts."""
    own = np.dtype(np.float32) if datatype == BRAIN_FLOAT else DTYPES.get(datatype)
    return own is not None and widen(np.empty(0, own), dtype).dtype.name == dtype


def _accepted(entry: InputSignature) -> str:
    """Return the datatypes in which an input may come, its own first."""
    own = datatype_of(entry.dtype)
    others = [datatype for datatype in DATATYPES if datatype != own and _holds(entry.dtype, datatype)]
    others += [TEXT] if entry.columns is not None else []
    return f"{own}; {', '.join(others)}, which it holds" if others else own


def _read_contents(tensor: pb.ModelInferRequest.InferInputTensor, shape: tuple[int, ...], field: str) -> NDArray[Any]:
    """Return the array of typed values."""
    datatype, field = tensor.datatype, f"{field}.contents"
    given = {descriptor.name: values for descriptor, values in tensor.contents.ListFields()}
    if datatype not in _CONTENTS:
        raise InvalidArgument(
            field, f"no raw values of {datatype}", "raw_input_contents, the only form of FP16 and BF16"
        )
    name = _CONTENTS[datatype]
    for other in given:
        if other != name:
            raise InvalidArgument(field, other, f"{name}, for {datatype}")
    values = given.get(name, ())
    if len(values) != math.prod(shape):
        raise InvalidArgument(field, f"{len(values)} values", f"{math.prod(shape)} values for shape {list(shape)}")
    if datatype == TEXT:
        return as_texts(values, shape, field)
    array, dtype = np.empty(len(values), _held_as(name)), DTYPES[datatype]
    for at in range(0, len(values), _TURNED):
        array[at : at + _TURNED] = values[at : at + _TURNED]
    if dtype.kind in "iu" and array.size and not np.can_cast(array.dtype, dtype):
        bounds = np.iinfo(dtype)
        if array.min() < bounds.min or array.max() > bounds.max:
            raise InvalidArgument(field, f"{array.min()} to {array.max()}", f"{bounds.min} to {bounds.max}, {datatype}")
    return array.astype(dtype, copy=False).reshape(shape)


def _held_as(name: str) -> np.dtype[Any]:
    """Return the dtype of a field of typed values."""
    widest = {"int_contents": "INT32", "uint_contents": "UINT32"}
    return DTYPES[widest.get(name) or next(datatype for datatype, held in _CONTENTS.items() if held == name)]


# --- Writing ---


def write_inference(inference: Inference, answer: Answer | StandardAnswer) -> pb.ModelInferResponse:
    """Write the answer to a `ModelInferRequest`, or one on the way to it."""
    served, names = inference.served, inference.outputs
    if isinstance(answer, Answer):
        arrays = take_outputs(answer.predictive, inference.declared, names)
        parameters = {**_how(answer), **_timings(answer.spent)}
    else:
        arrays = take_standard_outputs(answer.evaluation, served.version.standard.output.name, names)
        parameters = _timings(answer.spent)
    reply = pb.ModelInferResponse(
        model_name=served.name,
        model_version=str(served.version.version),
        id=inference.asked.id,
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
            for name, array in zip(names, arrays, strict=True)
        ],
        raw_output_contents=[encode(array) for array in arrays],
    )
    for name, value in parameters.items():
        _set(reply.parameters[name], value)
    return reply


def write_stream(reply: pb.ModelInferResponse, *, final: bool) -> pb.ModelStreamInferResponse:
    """Write one of the answers to a request of a stream; `final`: no other follows."""
    reply.parameters[FINAL].bool_param = final
    return pb.ModelStreamInferResponse(infer_response=reply)


def write_refusal(request: pb.ModelInferRequest, message: str) -> pb.ModelStreamInferResponse:
    """Write why a request of a stream has no answer, and which it is."""
    which = pb.ModelInferResponse(model_name=request.model_name, model_version=request.model_version, id=request.id)
    reply = write_stream(which, final=True)
    reply.error_message = shorten(message, _LONGEST_ERROR)
    return reply


def _how(answer: Answer) -> dict[str, Value]:
    """Return how an answer was drawn and how far its calibration holds: enough to ask for it again."""
    asked, predictive, issued = answer.asked, answer.predictive, answer.issued
    found: dict[str, Value] = {
        "seed": str(predictive.seed),  # up to 2**64, which not every client reads as a number
        "draws": int(predictive.draws.max()),
        "stop_reason": ",".join(dict.fromkeys(reason.value for reason in predictive.stop_reason)),
        "design": predictive.design,
        "group_size": predictive.group_size,
        "mask_scope": predictive.scope,
        "estimator": predictive.estimator,
        "calibration_id": predictive.calibration_id,
        "calibration_validity": answer.validity.value,
    }
    if isinstance(predictive.answer, Regression):
        found["interval_level"] = predictive.answer.interval_level
    if asked.coverage is not None and asked.served_coverage is not None:
        found |= {"coverage": asked.coverage, "served_coverage": asked.served_coverage}
    if issued.prediction_id:
        found["prediction_id"] = issued.prediction_id
        found["receipt"] = base64.b64encode(issued.receipt).decode()
    if warnings := answer.warnings:
        found["warnings"] = "\n".join(warnings)
    return found


def _timings(spent: Spent) -> dict[str, Value]:
    return {"queue_seconds": spent.queue, "compute_seconds": spent.compute, "total_seconds": spent.total}


def _set(parameter: pb.InferParameter, value: Value) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value
