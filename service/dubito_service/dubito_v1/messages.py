"""The translator of predictions and evaluations between dubito's own protocol and the core."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from numpy.typing import NDArray

from dubito_models.errors import InvalidArgument
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


def read_prediction(
    request: pb.PredictRequest, registry: Registry, limits: RequestLimits, adapt: Adapt | None = None
) -> Prediction:
    """Check everything that a `PredictRequest` asks; `adapt`: says what streams ask for, None where none are kept.

    Raises `NotServed`, `InvalidArgument` or `StateUnset`.
    """
    version = _find(request, registry)
    output, inputs = request.output, _decode(request.inputs)
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
    return ask_standard(version, _decode(request.inputs), limits, request.id, priority)


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


def _decode(given: Iterable[pb.Tensor]) -> dict[str, NDArray[Any]]:
    """Decode inputs by name."""
    arrays: dict[str, NDArray[Any]] = {}
    for tensor in given:
        if tensor.name in arrays:
            raise InvalidArgument(f"inputs[{tensor.name!r}]", "an input of this name twice", "each input once")
        try:
            arrays[tensor.name] = tensors.decode(tensor)
        except tensors.TensorError as error:
            raise InvalidArgument(f"inputs[{tensor.name!r}].{error.field}", error.given, error.accepted) from None
    return arrays


def _read_sampling(request: pb.PredictRequest, limits: RequestLimits) -> SamplingSpec:
    asked = request.sampling
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
        uncalibrated=request.output.uncalibrated,
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
        draws=tensors.encode(predictive.draws),
        standard_error=_encode(predictive.standard_error),
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
        raw_draws=_encode(predictive.raw_draws),
        joint_covariance=_encode(predictive.joint_covariance),
        final=answer.final,
        coverage=asked.coverage,
        served_coverage=asked.served_coverage,
        abstain=_encode(predictive.abstain),
        prediction_id=issued.prediction_id,
        receipt=issued.receipt,
    )
    _set_answer(reply, predictive.answer, "classification", "regression")
    if predictive.uncalibrated is not None:
        _set_answer(reply, predictive.uncalibrated, "uncalibrated_classification", "uncalibrated_regression")
    return reply


def _set_answer(
    reply: pb.PredictResponse, answer: Classification | Regression, classification: str, regression: str
) -> None:
    if isinstance(answer, Classification):
        getattr(reply, classification).CopyFrom(_write_classification(answer))
    else:
        getattr(reply, regression).CopyFrom(_write_regression(answer))


def _write_classification(answer: Classification) -> pb.Classification:
    return pb.Classification(
        probabilities=tensors.encode(answer.probabilities),
        label=tensors.encode(answer.label),
        predictive_entropy=tensors.encode(answer.predictive_entropy),
        expected_entropy=tensors.encode(answer.expected_entropy),
        mutual_information=_encode(answer.mutual_information),
        standard_deviation=_encode(answer.standard_deviation),
        plain_mutual_information=_encode(answer.plain_mutual_information),
        variation_ratio=_encode(answer.variation_ratio),
        disagreement=_encode(answer.disagreement),
        margin=tensors.encode(answer.margin),
        prediction_set=_encode(answer.prediction_set),
    )


def _write_regression(answer: Regression) -> pb.Regression:
    return pb.Regression(
        mean=tensors.encode(answer.mean),
        total_variance=_encode(answer.total_variance),
        epistemic_variance=_encode(answer.epistemic_variance),
        aleatoric_variance=_encode(answer.aleatoric_variance),
        interval=_encode(answer.interval),
        interval_level=answer.interval_level,
        quantiles=_encode(answer.quantiles),
        prediction_interval=_encode(answer.prediction_interval),
    )


def write_error(name: str, error: Exception, found: Refusal) -> pb.PredictBulkResponse:
    """Write the refusal of a request inside a stream; `name`: the request's id."""
    number: int = found.code.value[0]
    field, retry = str(getattr(error, "field", "")), getattr(error, "retry_after", None)
    said = pb.Error(code=number, message=found.message, field=shorten(field, LONGEST_FIELD), retry_seconds=retry)
    return pb.PredictBulkResponse(id=name, error=said)


def write_evaluation(answer: StandardAnswer) -> pb.EvaluateResponse:
    """Write the answer to an `EvaluateRequest`."""
    asked, evaluation = answer.asked, answer.evaluation
    return pb.EvaluateResponse(
        model=asked.version.name,
        version=asked.version.version,
        id=asked.id,
        output=tensors.encode(evaluation.output),
        probabilities=_encode(evaluation.probabilities),
        label=_encode(evaluation.label),
        mean=_encode(evaluation.mean),
        aleatoric_variance=_encode(evaluation.aleatoric_variance),
        timings=_timings(answer.spent),
    )


def _encode(array: NDArray[Any] | None) -> pb.Tensor | None:
    return None if array is None else tensors.encode(array)


def _timings(spent: Spent) -> pb.Timings:
    return pb.Timings(queue_seconds=spent.queue, compute_seconds=spent.compute, total_seconds=spent.total)
