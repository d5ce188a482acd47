"""The translator of predictions and evaluations between dubito's own protocol and the core."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any

from google.protobuf.message import Message
from numpy.typing import NDArray

from dubito_models.errors import InvalidArgument
from dubito_models.manifest import InputSignature, find_input
from dubito_models.package import ModelVersion
from dubito_models.predictive import Classification, Regression
from dubito_models.sampling import SamplingSpec
from dubito_models.stopping import Stopping, StoppingRule
from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb
from dubito_service.asking import (
    Adapt,
    Prediction,
    Question,
    RequestLimits,
    Spent,
    StandardRequest,
    ask,
    ask_standard,
    check_draws,
    renaming,
)
from dubito_service.dubito_v1.codes import (
    DESIGN_CODES,
    DESIGNS,
    ESTIMATOR_CODES,
    ESTIMATORS,
    PRIORITIES,
    QUANTITIES,
    RULES,
    SCOPE_CODES,
    SCOPES,
    STOP_REASON_CODES,
    VALIDITY_CODES,
)
from dubito_service.errors import LONGEST_FIELD, Refusal, shorten
from dubito_service.predicting import Answer, StandardAnswer
from dubito_service.scheduling.scheduler import Priority
from dubito_service.versions.registry import Registry

_CLASSIFICATION = (
    "probabilities", "label", "predictive_entropy", "expected_entropy", "mutual_information", "standard_deviation",
    "plain_mutual_information", "variation_ratio", "disagreement", "margin", "prediction_set",
)  # fmt: skip
_REGRESSION = (
    "mean", "total_variance", "epistemic_variance", "aleatoric_variance", "interval", "quantiles",
    "prediction_interval",
)  # fmt: skip
_SHORT = 256  # bytes of what is asked of the draws, that are kept to be recognized


def read_prediction(
    request: pb.PredictRequest, registry: Registry, limits: RequestLimits, adapt: Adapt | None = None
) -> Prediction:
    """Check everything that a `PredictRequest` asks; `adapt`: says what streams ask for, None where none are kept.

    Raises `NotServed`, `InvalidArgument` or `StateUnset`.
    """
    version = _find(request, registry)
    output, inputs = request.output, _decode(request.inputs, version.manifest.inputs)
    with renaming(_field):
        question = Question(
            version=version,
            inputs=inputs,
            spec=_read_sampling(request, limits),
            interval_asked=request.sampling.HasField("interval_level"),
            coverage=output.coverage if output.HasField("coverage") else None,
            stream=output.stream,
            id=request.id,
            priority=_read_priority(request),
        )
        return ask(question, limits, adapt)


def read_evaluation(request: pb.EvaluateRequest, registry: Registry, limits: RequestLimits) -> StandardRequest:
    """Check everything that an `EvaluateRequest` asks; raises `NotServed` or `InvalidArgument`."""
    version, priority = _find(request, registry), _read_priority(request)
    inputs = _decode(request.inputs, version.manifest.inputs)
    return ask_standard(version, inputs, limits, request.id, priority)


def _find(request: pb.PredictRequest | pb.EvaluateRequest, registry: Registry) -> ModelVersion:
    return registry.find(request.model, request.version if request.HasField("version") else None)


def _read_priority(request: pb.PredictRequest | pb.EvaluateRequest) -> Priority:
    _check_choice("priority", pb.Priority, request.priority, PRIORITIES)
    return PRIORITIES[request.priority]


def _field(name: str) -> str:
    """Return where a field of a question stands in a `PredictRequest`."""
    if name in ("coverage", "stream"):
        return f"output.{name}"
    return name if name.startswith("inputs") or name == "priority" else f"sampling.{name}"


def _decode(given: Iterable[pb.Tensor], signature: Sequence[InputSignature]) -> dict[str, NDArray[Any]]:
    """Decode inputs by name; the first that is none of the signature's is refused."""
    arrays: dict[str, NDArray[Any]] = {}
    for tensor in given:
        find_input(signature, tensor.name)
        if tensor.name in arrays:
            raise InvalidArgument(f"inputs[{tensor.name!r}]", "an input of this name twice", "each input once")
        try:
            arrays[tensor.name] = tensors.decode(tensor)
        except tensors.TensorError as error:
            raise InvalidArgument(f"inputs[{tensor.name!r}].{error.field}", error.given, error.accepted) from None
    return arrays


def _read_sampling(request: pb.PredictRequest, limits: RequestLimits) -> SamplingSpec:
    """Read what is asked of the draws; what many requests ask alike is read once."""
    asked, uncalibrated = request.sampling.SerializeToString(), request.output.uncalibrated
    read = _make_sampling if len(asked) <= _SHORT else _make_sampling.__wrapped__
    return read(asked, uncalibrated, limits)


@lru_cache(maxsize=256)
def _make_sampling(sampling: bytes, uncalibrated: bool, limits: RequestLimits) -> SamplingSpec:
    asked = pb.SamplingSpec.FromString(sampling)
    _check_choice("design", pb.Design, asked.design, DESIGNS)
    _check_choice("mask_scope", pb.MaskScope, asked.mask_scope, SCOPES)
    _check_choice("estimator", pb.Estimator, asked.estimator, ESTIMATORS)
    return SamplingSpec(
        max_draws=check_draws("max_draws", asked.max_draws, limits) if asked.HasField("max_draws") else None,
        min_draws=check_draws("min_draws", asked.min_draws, limits) if asked.HasField("min_draws") else None,
        seed=asked.seed if asked.HasField("seed") else None,
        design=DESIGNS[asked.design],
        scope=SCOPES[asked.mask_scope],
        estimator=ESTIMATORS[asked.estimator],
        stopping=_read_stopping(asked.stopping),
        interval_level=asked.interval_level if asked.HasField("interval_level") else 0.9,
        quantiles=tuple(asked.quantiles),
        raw_draws=asked.raw_draws,
        joint=asked.joint,
        uncalibrated=uncalibrated,
    )


def _read_stopping(asked: pb.Stopping) -> Stopping | None:
    """Read a rule; None, as calibrated, where neither it nor a target is given."""
    _check_choice("stopping.rule", pb.StoppingRule, asked.rule, pb.StoppingRule.values())
    _check_choice("stopping.quantity", pb.StoppingQuantity, asked.quantity, QUANTITIES)
    implied = StoppingRule.TOLERANCE if asked.HasField("target") else StoppingRule.NONE
    found = Stopping(
        rule=RULES.get(asked.rule, implied),
        quantity=QUANTITIES[asked.quantity],
        target=asked.target if asked.HasField("target") else None,
        level=asked.level if asked.HasField("level") else 0.95,
    )
    unsaid = asked.rule == pb.STOPPING_RULE_UNSPECIFIED and found.rule is StoppingRule.NONE
    return None if unsaid else found


def _check_choice(field: str, enum: Any, value: int, accepted: Collection[int]) -> None:
    if value not in accepted:
        given = enum.Name(value) if value in enum.values() else value
        raise InvalidArgument(field, given, ", ".join(enum.Name(code) for code in accepted))


def write_prediction(answer: Answer) -> pb.PredictResponse:
    """Write the answer to a `PredictRequest`, or one on the way to it."""
    asked, predictive, issued = answer.asked, answer.predictive, answer.issued
    reply = pb.PredictResponse(
        model=asked.version.name,
        version=asked.version.version,
        id=asked.id,
        stop_reason=[STOP_REASON_CODES[reason] for reason in predictive.stop_reason],
        seed=predictive.seed,
        design=DESIGN_CODES[predictive.design],
        group_size=predictive.group_size,
        mask_scope=SCOPE_CODES[predictive.scope],
        estimator=ESTIMATOR_CODES[predictive.estimator],
        calibration_id=predictive.calibration_id,
        calibration_validity=VALIDITY_CODES[answer.validity],
        warnings=answer.warnings,
        timings=_timings(answer.spent),
        final=answer.final,
        coverage=asked.coverage,
        served_coverage=asked.served_coverage,
        prediction_id=issued.prediction_id,
        receipt=issued.receipt,
    )
    _fill(reply, predictive, ("draws", "standard_error", "raw_draws", "joint_covariance", "abstain"))
    _fill_answer(predictive.answer, reply.classification, reply.regression)
    if predictive.uncalibrated is not None:
        _fill_answer(predictive.uncalibrated, reply.uncalibrated_classification, reply.uncalibrated_regression)
    return reply


def _fill_answer(
    answer: Classification | Regression, classification: pb.Classification, regression: pb.Regression
) -> None:
    if isinstance(answer, Classification):
        _fill(classification, answer, _CLASSIFICATION)
        return
    _fill(regression, answer, _REGRESSION)
    regression.interval_level = answer.interval_level


def _fill(message: Message, answer: object, names: Iterable[str]) -> None:
    """Write the arrays of these names that are there into a message's tensors of the same names."""
    for name in names:
        array = getattr(answer, name)
        if array is not None:
            tensors.fill(getattr(message, name), array)


def write_error(name: str, error: Exception, found: Refusal) -> pb.PredictBulkResponse:
    """Write the refusal of a request inside a stream; `name`: the request's id."""
    number: int = found.code.value[0]
    field, retry = str(getattr(error, "field", "")), getattr(error, "retry_after", None)
    said = pb.Error(code=number, message=found.message, field=shorten(field, LONGEST_FIELD), retry_seconds=retry)
    return pb.PredictBulkResponse(id=name, error=said)


def write_evaluation(answer: StandardAnswer) -> pb.EvaluateResponse:
    """Write the answer to an `EvaluateRequest`."""
    asked, evaluation = answer.asked, answer.evaluation
    reply = pb.EvaluateResponse(
        model=asked.version.name, version=asked.version.version, id=asked.id, timings=_timings(answer.spent)
    )
    _fill(reply, evaluation, ("output", "probabilities", "label", "mean", "aleatoric_variance"))
    return reply


def _timings(spent: Spent) -> pb.Timings:
    return pb.Timings(queue_seconds=spent.queue, compute_seconds=spent.compute, total_seconds=spent.total)
