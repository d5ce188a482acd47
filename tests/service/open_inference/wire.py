"""What tests put on the wire of the Open Inference Protocol and read from it: the "mlp" case's requests, by hand."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dubito_protos import open_inference_pb2 as pb

from ..wire import rows

Value = bool | int | float | str
DATATYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
DTYPES = {datatype: np.dtype(dtype) for dtype, datatype in DATATYPES.items()}


def parameter(value: Value) -> pb.InferParameter:
    if isinstance(value, bool):
        return pb.InferParameter(bool_param=value)
    if isinstance(value, int):
        return pb.InferParameter(int64_param=value) if value < 2**63 else pb.InferParameter(uint64_param=value)
    if isinstance(value, float):
        return pb.InferParameter(double_param=value)
    return pb.InferParameter(string_param=value)


def texts(*values: str) -> bytes:
    """The raw form of texts."""
    return b"".join(struct.pack("<I", len(value.encode())) + value.encode() for value in values)


def put(request: pb.ModelInferRequest, name: str, array: NDArray[Any]) -> None:
    """Add an input, its values raw."""
    datatype = DATATYPES.get(array.dtype.name, "BYTES")
    request.inputs.add(name=name, datatype=datatype, shape=array.shape)
    raw = texts(*array.ravel()) if datatype == "BYTES" else np.ascontiguousarray(array).tobytes()
    request.raw_input_contents.append(raw)


def asking(
    count: int = 3, data: int = 0, model: str = "mlp", outputs: tuple[str, ...] = (), **parameters: Value
) -> pb.ModelInferRequest:
    """A request of so many rows of the "mlp" case; `data` tells its rows from others'."""
    request = pb.ModelInferRequest(
        model_name=model,
        id="mine",
        parameters={name: parameter(value) for name, value in parameters.items()},
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
    )
    put(request, "input", rows(count, data))
    return request


def arrays(reply: pb.ModelInferResponse) -> dict[str, NDArray[Any]]:
    """The outputs by name, read as a client reads them; texts as objects."""
    assert len(reply.outputs) == len(reply.raw_output_contents)
    found: dict[str, NDArray[Any]] = {}
    for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True):
        assert not output.HasField("contents")
        if output.datatype == "BYTES":
            values: list[str] = []
            while raw:
                (length,) = struct.unpack_from("<I", raw)
                values.append(raw[4 : 4 + length].decode())
                raw = raw[4 + length :]
            found[output.name] = np.array(values, object).reshape(output.shape)
        else:
            found[output.name] = np.frombuffer(raw, DTYPES[output.datatype]).reshape(output.shape)
    return found


def said(reply: pb.ModelInferResponse) -> dict[str, Value]:
    """The response's parameters by name."""
    return {name: getattr(each, str(each.WhichOneof("parameter_choice"))) for name, each in reply.parameters.items()}
