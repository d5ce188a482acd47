"""A server that says what a test tells it to, on a real socket."""

# ruff: noqa: N802 - the methods of a servicer are named as on the wire

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb
from dubito_protos import uncertainty_pb2_grpc as services

B, K = 3, 2
LOGITS_ROWS = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])


class Fake(services.UncertaintyServiceServicer, services.ModelServiceServicer):
    """A scripted server: `script` holds what the next calls do before they answer; `seen` what was asked."""

    def __init__(self) -> None:
        self.target = self.secure_target = ""
        self.seen: list[Any] = []
        self.script: list[Callable[[grpc.ServicerContext], None]] = []
        self.released = threading.Event()
        self.model = describe()
        self.prediction = classify()
        self.observation = pb.ObserveResponse(rows=B)
        self.evaluation = pb.EvaluateResponse(model="digits", version=3, output=tensors.encode(np.ones((B, K))))

    @property
    def predictions(self) -> list[pb.PredictRequest]:
        return [request for request in self.seen if isinstance(request, pb.PredictRequest)]

    @property
    def observations(self) -> list[pb.ObserveRequest]:
        return [request for request in self.seen if isinstance(request, pb.ObserveRequest)]

    @property
    def descriptions(self) -> list[pb.GetModelRequest]:
        return [request for request in self.seen if isinstance(request, pb.GetModelRequest)]

    def Predict(self, request: pb.PredictRequest, context: grpc.ServicerContext) -> pb.PredictResponse:
        self._act(request, context)
        self._check_inputs(request, context)
        return self.prediction

    def PredictStream(self, request: pb.PredictRequest, context: grpc.ServicerContext) -> Iterator[pb.PredictResponse]:
        """Answer twice on the way, then for good; between the answers the script goes on."""
        self._act(request, context)
        self._check_inputs(request, context)
        for draws in (16, 32, 64):
            reply = pb.PredictResponse()
            reply.CopyFrom(self.prediction)
            reply.draws.CopyFrom(tensors.encode(np.full(B, draws)))
            reply.final = draws == 64
            yield reply
            if self.script:
                self.script.pop(0)(context)

    def PredictBulk(
        self, request_iterator: Iterator[pb.PredictRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.PredictBulkResponse]:
        """Answer pairs the wrong way round, and refuse every seventh; before each pair the script goes on."""
        held: list[pb.PredictBulkResponse] = []
        for request in request_iterator:
            self.seen.append(request)
            reply = pb.PredictBulkResponse(id=request.id, response=self.prediction)
            if int(request.id) % 7 == 6:
                text = "the queue is full: 9 of 9; come back in 0.5 s"
                reply = pb.PredictBulkResponse(id=request.id, error=pb.Error(code=8, message=text, retry_seconds=0.5))
            held.append(reply)
            if len(held) == 2:
                if self.script:
                    self.script.pop(0)(context)
                yield from reversed(held)
                held.clear()
        yield from held

    def Evaluate(self, request: pb.EvaluateRequest, context: grpc.ServicerContext) -> pb.EvaluateResponse:
        self._act(request, context)
        self._check_inputs(request, context)
        return self.evaluation

    def Observe(self, request: pb.ObserveRequest, context: grpc.ServicerContext) -> pb.ObserveResponse:
        self._act(request, context)
        return self.observation

    def GetModel(self, request: pb.GetModelRequest, context: grpc.ServicerContext) -> pb.GetModelResponse:
        self.seen.append(request)
        if request.model != "digits":
            refuse(context, grpc.StatusCode.NOT_FOUND, "model", request.model, "digits")
        return self.model

    def ListModels(self, request: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        self._act(request, context)
        failed = pb.ModelStatus(
            model="old", version=1, state=pb.MODEL_STATE_FAILED, reason="checksum", task="regression"
        )
        return pb.ListModelsResponse(models=[self.model.status, failed])

    def LoadModel(self, request: pb.LoadModelRequest, context: grpc.ServicerContext) -> pb.LoadModelResponse:
        self._act(request, context)
        if request.version == 9:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "digits version 9 failed to load: checksum")
        return pb.LoadModelResponse(status=self.model.status)

    def UnloadModel(self, request: pb.UnloadModelRequest, context: grpc.ServicerContext) -> pb.UnloadModelResponse:
        self._act(request, context)
        return pb.UnloadModelResponse()

    def hang(self, context: grpc.ServicerContext) -> None:
        """Do not answer before the test is over."""
        self.released.wait(30)

    def _act(self, request: Any, context: grpc.ServicerContext) -> None:
        self.seen.append(request)
        if self.script:
            self.script.pop(0)(context)

    def _check_inputs(self, request: Any, context: grpc.ServicerContext) -> None:
        """Refuse names and types that the model does not declare, as the contract demands of a server."""
        declared = {signature.name: signature.dtype for signature in self.model.inputs}
        given = {tensor.name: tensor.dtype for tensor in request.inputs}
        if given != declared:
            refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "inputs", str(given), str(declared))


def describe(**changes: Any) -> pb.GetModelResponse:
    fields: dict[str, Any] = {
        "status": pb.ModelStatus(model="digits", version=3, state=pb.MODEL_STATE_READY, task="classification"),
        "inputs": [pb.TensorSignature(name="image", dtype=pb.DATA_TYPE_FLOAT32, shape=[-1, 1, 8, 8])],
        "class_names": ["cat", "dog"],
        "outputs": K,
    }
    return pb.GetModelResponse(**{**fields, **changes})


def classify(**changes: Any) -> pb.PredictResponse:
    answer = pb.Classification(
        probabilities=tensors.encode(LOGITS_ROWS),
        label=tensors.encode(LOGITS_ROWS.argmax(axis=1)),
        predictive_entropy=tensors.encode(np.array([0.325, 0.673, 0.5])),
        expected_entropy=tensors.encode(np.array([0.3, 0.6, 0.4])),
        mutual_information=tensors.encode(np.array([0.025, 0.073, 0.1])),
        standard_deviation=tensors.encode(np.full((B, K), 0.05)),
    )
    return _reply(classification=answer, **changes)


def regress(**changes: Any) -> pb.PredictResponse:
    mean = np.array([[1.5, -2.0], [3.0, 4.0], [5.0, 6.0]])
    answer = pb.Regression(
        mean=tensors.encode(mean),
        total_variance=tensors.encode(np.full((B, K), 0.25)),
        epistemic_variance=tensors.encode(np.full((B, K), 0.09)),
        aleatoric_variance=tensors.encode(np.full((B, K), 0.16)),
        interval=tensors.encode(np.stack([mean - 1, mean + 1], axis=2)),
        interval_level=0.9,
    )
    return _reply(regression=answer, **changes)


def refuse(context: grpc.ServicerContext, code: grpc.StatusCode, field: str, given: str, accepted: str) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(
        field=field, description=f"got {given}; accepted: {accepted}", reason="INVALID_ARGUMENT"
    )
    detail = error_details_pb2.BadRequest(field_violations=[violation])
    abort(context, code, f"{field}: got {given}; accepted: {accepted}", detail)


def full(context: grpc.ServicerContext, seconds: float | None) -> None:
    """Refuse for a full queue, with a delay after which to come back where one is given."""
    details = []
    if seconds is not None:
        delay = duration_pb2.Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full", *details)


def abort(context: grpc.ServicerContext, code: grpc.StatusCode, message: str, *details: Any) -> None:
    packed = [any_pb2.Any() for _ in details]
    for holder, detail in zip(packed, details, strict=True):
        holder.Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)


def _reply(**changes: Any) -> pb.PredictResponse:
    fields: dict[str, Any] = {
        "model": "digits",
        "version": 3,
        "draws": tensors.encode(np.full(B, 64)),
        "standard_error": tensors.encode(np.full((B, K), 0.01)),
        "stop_reason": [pb.STOP_REASON_MAX_DRAWS] * B,
        "seed": 7,
        "design": pb.DESIGN_BALANCED,
        "group_size": 16,
        "mask_scope": pb.MASK_SCOPE_DRAW,
        "estimator": pb.ESTIMATOR_PLAIN,
        "calibration_id": "9f3a",
        "calibration_validity": pb.CALIBRATION_VALIDITY_EXACT,
        "timings": pb.Timings(queue_seconds=0.1, compute_seconds=0.2, total_seconds=0.3),
        "final": True,
    }
    return pb.PredictResponse(**{**fields, **changes})
