"""The verbs of a client, without the network: what to ask, what to make of the reply.

Each verb is a generator of steps (session.py); client.py and aio.py make methods of them. Their docstrings are the
methods' own, so they speak to the caller; `session` is the client itself.

**Stale knowledge.** To name and convert inputs a client asks GetModel once per model and remembers. The server may load
another version meanwhile, but it checks every input's name and type against the version that answers. So an accepted
request was right, whatever the client believed; and a refusal, the server's or the client's own, that rests on old
knowledge leads to asking GetModel again and, if the inputs are declared otherwise now, to one more attempt. The codes
of categories alone are beyond the server's check: so the answer for a table counts only if it is of the version that
was described, or of one whose columns are the same; else the table is encoded and asked about anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, Unpack

import numpy as np
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import Int32Value, StringValue
from numpy.typing import ArrayLike, NDArray

from dubito_client.answers import (
    Design,
    Estimator,
    Evaluation,
    MaskScope,
    ModelInfo,
    ModelStatus,
    Observation,
    Prediction,
    Priority,
)
from dubito_client.errors import (
    DeadlineExceeded,
    InvalidArgument,
    MessageTooLarge,
    NotFound,
    NotImplementedByServer,
    Overloaded,
    Unavailable,
    refused,
)
from dubito_client.inputs import Inputs, named_arrays
from dubito_client.replies import (
    parse,
    read_evaluation,
    read_loaded,
    read_model,
    read_models,
    read_observation,
    read_prediction,
)
from dubito_client.requests import INT64, Asked, prediction_request, rank, text, whole
from dubito_client.session import MODELS, UNCERTAINTY, Call, Deadline, Next, Open, Pause, Session, Steps, Stream
from dubito_client.stopping import Stopping
from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb

A = TypeVar("A", Prediction, Evaluation)

_SERVING = 1  # of grpc.health.v1.HealthCheckResponse.ServingStatus


def predict(
    session: Session,
    model: str,
    inputs: Inputs,
    *,
    version: int | None = None,
    draws: int | None = None,
    min_draws: int | None = None,
    seed: int | None = None,
    design: Design | None = None,
    interval_level: float | None = None,
    quantiles: Iterable[float] = (),
    raw_draws: bool = False,
    joint: bool = False,
    uncalibrated: bool = False,
    stopping: Stopping | None = None,
    tolerance: float | None = None,
    coverage: float | None = None,
    stream: str = "",
    mask_scope: MaskScope | None = None,
    estimator: Estimator | None = None,
    priority: Priority | None = None,
    timeout: float | None = None,
    id: str = "",  # noqa: A002 - the wire's own name
) -> Steps[Prediction]:
    """Predict with dropout active, and say how far to trust it.

    `inputs`: an array of rows for a model of one input, else a mapping from names to arrays; lists do, and values are
    converted to the declared types where those can hold them. A model of tables takes columns by name too, with texts
    for categories: a mapping, a list of mappings, a data frame. What is left out takes the model's own default:
    `version` the newest, `draws` (at most so many), `stopping` and `estimator` those it was calibrated with, `seed` and
    `design` those it was packed with.
    `stopping`: a rule by which each row may take fewer draws (`Stopping`); `tolerance` is short for that of the mean.
    `coverage`: of conformal prediction sets or intervals; `interval_level` and `quantiles`: of the predictive
    distribution of a regression; each in (0, 1). `stream`: a name under which the labels come back that adapt the
    coverage which is served to the one asked (`observe`).
    `raw_draws`: the prediction of every draw too; `joint`: the covariance of the predictions between rows.
    `mask_scope`: "draw", one thinned network for all rows, or "row", masks of its own for each row.
    `estimator`: "plain", or "linearized": corrected by linear logits, where the model's calibration allows it.
    `priority`: "high", "normal" or "low", of requests that wait at the server.
    `timeout`: seconds for everything. Raises the errors of `dubito_client.errors`.
    """
    deadline = session.deadline(timeout)
    request = prediction_request(
        model,
        version=version,
        draws=draws,
        min_draws=min_draws,
        seed=seed,
        design=design,
        stopping=stopping,
        tolerance=tolerance,
        interval_level=interval_level,
        quantiles=quantiles,
        raw_draws=raw_draws,
        joint=joint,
        uncalibrated=uncalibrated,
        coverage=coverage,
        stream=stream,
        mask_scope=mask_scope,
        estimator=estimator,
        priority=priority,
        id=id,
    )
    prediction = yield from _ask_about(session, deadline, f"/{UNCERTAINTY}/Predict", request, inputs, read_prediction)
    _forget_stale(session, model, version, prediction.version)
    return prediction


def predict_stream(
    session: Session, model: str, inputs: Inputs, *, timeout: float | None = None, **asked: Unpack[Asked]
) -> Stream[Prediction]:
    """Predict as `predict` does, and yield better and better answers on the way: the first after one group of draws.

    The last one is `final`, and what `predict` would have said. Leaving the loop early ends the call. Arguments and
    errors are those of `predict`; nothing is repeated once an answer has come.
    """
    deadline = session.deadline(timeout)
    request = prediction_request(model, **asked)
    about = pb.GetModelRequest(model=request.model, version=asked.get("version"))
    info = session.known.get(_key(about))
    fresh = info is None
    if info is None:
        info = yield from _describe(session, deadline, about)
    while True:
        try:
            request.version = info.version  # so that all answers are of the version that was described
            fill(request, named_arrays(inputs, info.inputs), session.max_message_bytes)
            yield Open(f"/{UNCERTAINTY}/PredictStream", request.SerializeToString(), deadline.left())
            payload = yield Next()
            break
        except (InvalidArgument, NotFound):
            now = info if fresh else (yield from _describe(session, deadline, about))
            if (now.version, now.inputs) == (info.version, info.inputs):
                raise
            info, fresh = now, True
    while payload:
        yield read_prediction(payload)
        payload = yield Next()


def evaluate(
    session: Session,
    model: str,
    inputs: Inputs,
    *,
    version: int | None = None,
    priority: Priority | None = None,
    timeout: float | None = None,
    id: str = "",  # noqa: A002 - the wire's own name
) -> Steps[Evaluation]:
    """Evaluate the standard network: dropout off, one pass, no uncertainty but the network's own.

    `inputs`, `version`, `priority`, `timeout` as for `predict`.
    """
    deadline = session.deadline(timeout)
    request = pb.EvaluateRequest(
        model=text("model", model),
        version=whole("version", version, *INT64),
        id=text("id", id),
        priority=rank(priority),
    )
    evaluation = yield from _ask_about(session, deadline, f"/{UNCERTAINTY}/Evaluate", request, inputs, read_evaluation)
    _forget_stale(session, model, version, evaluation.version)
    return evaluation


def observe(
    session: Session,
    prediction: Prediction | str,
    label: ArrayLike,
    *,
    receipt: bytes | None = None,
    stream: str = "",
    timeout: float | None = None,
) -> Steps[Observation]:
    """Bring the labels of an earlier prediction back: each prediction counts once, however often they come.

    `prediction`: the prediction itself, or its id, with its `receipt`. `label`: class numbers (B,), or of a regression
    numbers (B, K), one for every row. Other labels than before are refused with `InvalidArgument`; a server that keeps
    no observations raises `NotPossible`.
    """
    deadline = session.deadline(timeout)
    number, bought = (
        (prediction.prediction_id, prediction.receipt) if isinstance(prediction, Prediction) else (prediction, receipt)
    )
    if not number or not bought:
        raise refused("receipt", "nothing", "a prediction with a receipt, of a server that keeps observations")
    try:
        encoded = tensors.encode(np.asarray(label))
    except (tensors.TensorError, ValueError) as error:
        raise refused("label", error, "an array of numbers") from error
    request = pb.ObserveRequest(
        prediction_id=text("prediction", number), receipt=bought, label=encoded, stream=text("stream", stream)
    )
    return read_observation((yield from _ask(session, deadline, f"/{UNCERTAINTY}/Observe", request)))


def models(session: Session, *, timeout: float | None = None) -> Steps[tuple[ModelStatus, ...]]:
    """List every version that the server holds, or failed to load."""
    deadline = session.deadline(timeout)
    payload = yield from _ask(session, deadline, f"/{MODELS}/ListModels", pb.ListModelsRequest())
    return read_models(payload)


def model(session: Session, name: str, *, version: int | None = None, timeout: float | None = None) -> Steps[ModelInfo]:
    """Describe one version, the newest by default: its inputs, classes, dropout sites, defaults and calibration."""
    deadline = session.deadline(timeout)
    request = pb.GetModelRequest(model=text("model", name), version=whole("version", version, *INT64))
    return (yield from _describe(session, deadline, request))


def load(
    session: Session, name: str, *, version: int | None = None, timeout: float | None = None
) -> Steps[ModelStatus]:
    """Load a version, or what the server's policy says of a model; return what serves then: that version, the newest.

    What is loaded already is not loaded again. A version that cannot be loaded, or a server that loads nothing by
    request, raises `NotPossible`; what was served before still is.
    """
    deadline = session.deadline(timeout)
    request = pb.LoadModelRequest(model=text("model", name), version=whole("version", version, *INT64))
    return read_loaded((yield from _ask(session, deadline, f"/{MODELS}/LoadModel", request)))


def unload(session: Session, name: str, *, version: int | None = None, timeout: float | None = None) -> Steps[None]:
    """Take a version, or all of a model, out of service; returns when no request holds it any more.

    It stays so until it is loaded again, or changes in the repository.
    """
    deadline = session.deadline(timeout)
    request = pb.UnloadModelRequest(model=text("model", name), version=whole("version", version, *INT64))
    yield from _ask(session, deadline, f"/{MODELS}/UnloadModel", request)
    for known in [known for known in session.known if known[0] == name]:
        del session.known[known]


def ready(session: Session, timeout: float | None = None) -> Steps[bool]:
    """Wait until the server answers and says that it serves; False where it does not within `timeout` seconds."""
    deadline = session.deadline(timeout)
    while True:
        # The messages of grpc.health.v1, one field numbered 1 each, are on the wire the same as these.
        check = _ask(session, deadline, "/grpc.health.v1.Health/Check", StringValue(), wait_for_ready=True)
        try:
            payload = yield from check
            if parse(Int32Value, payload).value == _SERVING:
                return True
            yield Pause(min(0.1, deadline.left()))
        except NotImplementedByServer:
            return True  # it answers, and knows no states
        except DeadlineExceeded:
            return False
        except Unavailable:
            yield Pause(0.1)


def _ask_about(
    session: Session,
    deadline: Deadline,
    path: str,
    request: pb.PredictRequest | pb.EvaluateRequest,
    inputs: Inputs,
    read: Callable[[bytes], A],
) -> Steps[A]:
    """Ask with the inputs named and converted as the model declares them, as it does now if it declared them before."""
    asked = pb.GetModelRequest(model=request.model)
    if request.HasField("version"):
        asked.version = request.version
    info = session.known.get(_key(asked))
    fresh = info is None
    if info is None:
        info = yield from _describe(session, deadline, asked)
    while True:
        try:
            fill(request, named_arrays(inputs, info.inputs), session.max_message_bytes)
            answer = read((yield from _ask(session, deadline, path, request)))
        except InvalidArgument:
            if fresh:
                raise
            now = yield from _describe(session, deadline, asked)
            if now.inputs == info.inputs:
                raise
        else:
            if answer.version == info.version or not any(declared.columns for declared in info.inputs):
                return answer
            now = yield from _describe(session, deadline, asked)
            if now.inputs == info.inputs:
                return answer
        info, fresh = now, True


def describe(session: Session, deadline: Deadline, request: pb.GetModelRequest) -> Steps[ModelInfo]:
    """Say what a model is, from memory where it was asked before."""
    info = session.known.get(_key(request))
    return info if info is not None else (yield from _describe(session, deadline, request))


def _describe(session: Session, deadline: Deadline, request: pb.GetModelRequest) -> Steps[ModelInfo]:
    """Ask what a model is, and remember it."""
    payload = yield from _ask(session, deadline, f"/{MODELS}/GetModel", request)
    info = session.known[_key(request)] = read_model(payload)
    return info


def _ask(
    session: Session, deadline: Deadline, path: str, request: Message, *, wait_for_ready: bool = False
) -> Steps[bytes]:
    """Ask, and again after as long as a full server says, while that is within the deadline.

    gRPC itself repeats what nobody answered (`service_config`), but it does not read a RetryInfo.
    """
    payload = request.SerializeToString()
    retries = session.retries
    while True:
        try:
            return (yield Call(path, payload, deadline.left(), wait_for_ready))
        except DeadlineExceeded as error:
            raise deadline.missed() from error
        except Overloaded as error:
            if not retries or error.retry_after is None or error.retry_after >= deadline.left():
                raise
            wait = error.retry_after
        retries -= 1
        yield Pause(wait)


def fill(request: pb.PredictRequest | pb.EvaluateRequest, arrays: dict[str, NDArray[Any]], max_bytes: int) -> None:
    """Put the arrays into a request; `MessageTooLarge` before anything is copied that could not be sent."""
    size = sum(array.nbytes for array in arrays.values())
    if size > max_bytes:
        raise MessageTooLarge(
            f"the inputs hold {size} bytes, and this client sends at most {max_bytes} at once: "
            "send fewer rows per call, or raise max_message_bytes"
        )
    del request.inputs[:]
    for name, array in arrays.items():
        try:
            request.inputs.append(tensors.encode(array, name))
        except tensors.TensorError as error:
            raise refused(f"inputs.{name}.{error.field}", error.given, error.accepted) from error


def _forget_stale(session: Session, model: str, version: int | None, answered: int) -> None:
    """Drop what is remembered of a model whose newest version is another one now."""
    known = session.known.get((model, version))
    if known is not None and known.version != answered:
        session.known.pop((model, version), None)


def _key(request: pb.GetModelRequest) -> tuple[str, int | None]:
    return request.model, request.version if request.HasField("version") else None
