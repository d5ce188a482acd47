"""The translator between the wire and the core: every check of a request, every field of a reply."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dubito_models.calibration import Calibration, Selective
from dubito_models.errors import InvalidArgument
from dubito_models.heads import Task
from dubito_models.manifest import InputSignature, Manifest
from dubito_models.package import ModelVersion
from dubito_models.predictive import Classification, Predictive, Regression, StopReason, Validity
from dubito_models.sampling import Estimator, Plan, SamplingSpec
from dubito_models.standard import Evaluation
from dubito_models.stopping import Quantity, Stopping, StoppingRule
from dubito_models.thinning import Design, MaskScope
from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb
from dubito_service.observed_messages import read_stream
from dubito_service.observing import Adapt, Issued
from dubito_service.registry import Entry, Registry

MAX_QUANTILES = 32
_WORKING_BYTES = 2**30  # of what is kept of a request's draws until it is answered

_DESIGNS: dict[int, Design | None] = {
    pb.DESIGN_UNSPECIFIED: None,
    pb.DESIGN_BALANCED: Design.BALANCED,
    pb.DESIGN_INDEPENDENT: Design.INDEPENDENT,
}
_SCOPES = {
    pb.MASK_SCOPE_UNSPECIFIED: MaskScope.DRAW,
    pb.MASK_SCOPE_DRAW: MaskScope.DRAW,
    pb.MASK_SCOPE_ROW: MaskScope.ROW,
}
_SCOPE_CODES = {MaskScope.DRAW.value: pb.MASK_SCOPE_DRAW, MaskScope.ROW.value: pb.MASK_SCOPE_ROW}
_LINEAR_DRAWS = 128  # as many draws cost about as much as the linear ones of the estimator
_ESTIMATORS: dict[int, Estimator | None] = {
    pb.ESTIMATOR_UNSPECIFIED: None,
    pb.ESTIMATOR_PLAIN: Estimator.PLAIN,
    pb.ESTIMATOR_LINEARIZED: Estimator.LINEARIZED,
}
_ESTIMATOR_CODES = {
    Estimator.PLAIN.value: pb.ESTIMATOR_PLAIN,
    Estimator.LINEARIZED.value: pb.ESTIMATOR_LINEARIZED,
}
_DESIGN_CODES = {
    Design.BALANCED.value: pb.DESIGN_BALANCED,
    Design.INDEPENDENT.value: pb.DESIGN_INDEPENDENT,
    Design.MIXED.value: pb.DESIGN_MIXED,
}
_STOP_REASONS = {
    StopReason.UNFINISHED: pb.STOP_REASON_UNSPECIFIED,
    StopReason.MAX_DRAWS: pb.STOP_REASON_MAX_DRAWS,
    StopReason.TOLERANCE: pb.STOP_REASON_TOLERANCE,
    StopReason.DECISION: pb.STOP_REASON_DECISION,
    StopReason.THRESHOLD: pb.STOP_REASON_THRESHOLD,
    StopReason.DEADLINE: pb.STOP_REASON_DEADLINE,
    StopReason.LOAD: pb.STOP_REASON_LOAD,
}
_RULES = {
    pb.STOPPING_RULE_NONE: StoppingRule.NONE,
    pb.STOPPING_RULE_TOLERANCE: StoppingRule.TOLERANCE,
    pb.STOPPING_RULE_DECISION: StoppingRule.DECISION,
    pb.STOPPING_RULE_THRESHOLD: StoppingRule.THRESHOLD,
}
_RULE_CODES = {rule: code for code, rule in _RULES.items()}
_QUANTITIES = {
    pb.STOPPING_QUANTITY_UNSPECIFIED: Quantity.MEAN,
    pb.STOPPING_QUANTITY_MEAN: Quantity.MEAN,
    pb.STOPPING_QUANTITY_PREDICTIVE_ENTROPY: Quantity.PREDICTIVE_ENTROPY,
    pb.STOPPING_QUANTITY_MUTUAL_INFORMATION: Quantity.MUTUAL_INFORMATION,
}
_QUANTITY_CODES = {quantity: code for code, quantity in _QUANTITIES.items()}  # the last of equals: the named one
_COLUMN_KINDS = {"number": pb.COLUMN_KIND_NUMBER, "category": pb.COLUMN_KIND_CATEGORY}
_VALIDITY = {
    Validity.NONE: pb.CALIBRATION_VALIDITY_NONE,
    Validity.APPROXIMATE: pb.CALIBRATION_VALIDITY_APPROXIMATE,
    Validity.EXACT: pb.CALIBRATION_VALIDITY_EXACT,
}


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """The most that one request may ask for; work is rows x draws."""

    max_rows: int
    max_draws: int
    max_work: int
    max_message_bytes: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """A `PredictRequest` that was found good; `inputs`: each (B, ...)."""

    version: ModelVersion
    calibration: Calibration | None
    inputs: Mapping[str, Tensor]
    rows: int
    plan: Plan
    id: str
    warnings: tuple[str, ...]
    stream: str = ""
    coverage: float | None = None  # of sets or intervals, as asked
    served_coverage: float | None = None  # at which they are made, 0 to 1: in a stream another one


@dataclass(frozen=True, slots=True)
class StandardRequest:
    """An `EvaluateRequest` that was found good; `inputs`: each (B, ...)."""

    version: ModelVersion
    inputs: Mapping[str, Tensor]
    rows: int
    id: str


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds: from arrival to the first pass, in passes, and from arrival to the answer."""

    queue: float
    compute: float
    total: float


def read_prediction(
    request: pb.PredictRequest, registry: Registry, limits: RequestLimits, adapt: Adapt | None = None
) -> Prediction:
    """Check everything that a `PredictRequest` asks; `adapt`: says what streams ask for, None where none are kept.

    Raises `NotServed`, `InvalidArgument`, `StateUnset` or `NotImplementedYet`.
    """
    version = _find(request, registry)
    inputs, rows = _read_inputs(request.inputs, version, limits)
    calibration = version.calibration
    coverage = _read_coverage(request.output, version, calibration)
    stream = read_stream(request.output, coverage, adapt)
    served = coverage
    if stream and coverage is not None and calibration is not None and adapt is not None:
        served = adapt(version, calibration.id, stream, coverage)
    plan = _read_sampling(request, version, calibration, rows, limits, served)
    _check_work(plan, rows, version.manifest, limits)
    warnings = tuple(_ignored(request, version, calibration))
    return Prediction(version, calibration, inputs, rows, plan, request.id, warnings, stream, coverage, served)


def read_evaluation(request: pb.EvaluateRequest, registry: Registry, limits: RequestLimits) -> StandardRequest:
    """Check everything that an `EvaluateRequest` asks; raises `NotServed` or `InvalidArgument`."""
    version = _find(request, registry)
    inputs, rows = _read_inputs(request.inputs, version, limits)
    return StandardRequest(version, inputs, rows, request.id)


def _find(request: pb.PredictRequest | pb.EvaluateRequest, registry: Registry) -> ModelVersion:
    return registry.find(request.model, request.version if request.HasField("version") else None)


def _read_inputs(
    given: Iterable[pb.Tensor], version: ModelVersion, limits: RequestLimits
) -> tuple[dict[str, Tensor], int]:
    """Decode and check inputs; returns them with their number of rows."""
    arrays: dict[str, NDArray[Any]] = {}
    for tensor in given:
        if tensor.name in arrays:
            raise InvalidArgument(f"inputs[{tensor.name!r}]", "an input of this name twice", "each input once")
        try:
            array = arrays[tensor.name] = tensors.decode(tensor)
        except tensors.TensorError as error:
            raise InvalidArgument(f"inputs[{tensor.name!r}].{error.field}", error.given, error.accepted) from None
        if array.ndim and array.shape[0] > limits.max_rows:
            accepted = f"1 to {limits.max_rows} rows a request"
            raise InvalidArgument(f"inputs[{tensor.name!r}].shape", f"{array.shape[0]} rows", accepted)
    read = version.read_inputs(arrays)
    return read, int(next(iter(read.values())).shape[0])


def _read_sampling(
    request: pb.PredictRequest,
    version: ModelVersion,
    calibration: Calibration | None,
    rows: int,
    limits: RequestLimits,
    coverage: float | None,
) -> Plan:
    asked = request.sampling
    _check_choices(asked)
    most, least = _read_draws(asked, "max_draws", limits), _read_draws(asked, "min_draws", limits)
    if len(asked.quantiles) > MAX_QUANTILES:
        raise InvalidArgument("sampling.quantiles", f"{len(asked.quantiles)} of them", f"at most {MAX_QUANTILES}")
    try:
        spec = SamplingSpec(
            max_draws=most,
            min_draws=least,
            seed=asked.seed if asked.HasField("seed") else None,
            design=_DESIGNS[asked.design],
            scope=_SCOPES[asked.mask_scope],
            estimator=_ESTIMATORS[asked.estimator],
            stopping=_read_stopping(asked.stopping),
            interval_level=asked.interval_level if asked.HasField("interval_level") else 0.9,
            quantiles=tuple(asked.quantiles),
            raw_draws=asked.raw_draws,
            joint=asked.joint,
            coverage=_inside(coverage),
            uncalibrated=request.output.uncalibrated,
        )
        affordable = min(limits.max_draws, limits.max_work // max(1, rows))
        return version.engine.plan(spec, affordable, calibration)
    except InvalidArgument as error:
        raise InvalidArgument(f"sampling.{error.field}", error.given, error.accepted) from None


def _inside(coverage: float | None) -> float | None:
    """Return a coverage that conformal prediction knows; what is served at its ends is written without it."""
    return 0.5 if coverage in (0.0, 1.0) else coverage


def _read_draws(asked: pb.SamplingSpec, name: Literal["min_draws", "max_draws"], limits: RequestLimits) -> int | None:
    if not asked.HasField(name):
        return None
    draws: int = getattr(asked, name)
    if not 1 <= draws <= limits.max_draws:
        raise InvalidArgument(f"sampling.{name}", draws, f"1 to {limits.max_draws}, or absent for the version's own")
    return draws


def _read_stopping(asked: pb.Stopping) -> Stopping | None:
    """Read a rule; None, as calibrated, where neither it nor a target is given."""
    if asked.rule not in pb.StoppingRule.values():
        raise InvalidArgument("stopping.rule", asked.rule, ", ".join(pb.StoppingRule.keys()))
    if asked.quantity not in _QUANTITIES:
        raise InvalidArgument("stopping.quantity", asked.quantity, ", ".join(pb.StoppingQuantity.keys()))
    implied = StoppingRule.TOLERANCE if asked.HasField("target") else StoppingRule.NONE
    found = Stopping(
        rule=_RULES.get(asked.rule, implied),
        quantity=_QUANTITIES[asked.quantity],
        target=asked.target if asked.HasField("target") else None,
        level=asked.level if asked.HasField("level") else 0.95,
    )
    unsaid = asked.rule == pb.STOPPING_RULE_UNSPECIFIED and found.rule is StoppingRule.NONE
    return None if unsaid else found


def _check_choices(asked: pb.SamplingSpec) -> None:
    accepted = [pb.Design.Name(code) for code in _DESIGNS]
    if asked.design not in _DESIGNS:
        raise InvalidArgument("sampling.design", _name(pb.Design, asked.design), ", ".join(accepted))
    _check_choice("sampling.mask_scope", pb.MaskScope, asked.mask_scope)
    _check_choice("sampling.estimator", pb.Estimator, asked.estimator)


def _read_coverage(output: pb.OutputSpec, version: ModelVersion, calibration: Calibration | None) -> float | None:
    if not output.HasField("coverage"):
        return None
    if not 0 < output.coverage < 1:
        raise InvalidArgument("output.coverage", output.coverage, "between 0 and 1, both excluded")
    if calibration is None or not calibration.conformal:
        label = f"{version.name} version {version.version}"
        accepted = f"none: {label} has no calibration with scores for it (dubito calibrate makes them)"
        raise InvalidArgument("output.coverage", output.coverage, accepted)
    return output.coverage


def _check_choice(field: str, enum: Any, value: int) -> None:
    if value not in enum.values():
        raise InvalidArgument(field, value, ", ".join(enum.keys()))


def _name(enum: Any, value: int) -> str:
    return str(enum.Name(value)) if value in enum.values() else str(value)


def _check_work(plan: Plan, rows: int, manifest: Manifest, limits: RequestLimits) -> None:
    """Check what only shows once defaults are filled in: rows x draws, and the memory that an answer takes."""
    work = rows * (plan.max_draws + (_LINEAR_DRAWS if plan.spec.estimator is Estimator.LINEARIZED else 0))
    if work > limits.max_work:
        given = f"{plan.max_draws} for {rows} rows, {work} rows x draws"
        raise InvalidArgument("sampling.max_draws", given, f"at most {limits.max_work} rows x draws a request")
    if plan.spec.raw_draws and rows * plan.max_draws * manifest.outputs * 8 > limits.max_message_bytes:
        given = f"true, {work} rows x draws of {manifest.outputs} outputs"
        raise InvalidArgument("sampling.raw_draws", given, f"answers of at most {limits.max_message_bytes} bytes")
    if plan.spec.joint and rows**2 * manifest.outputs * 8 > limits.max_message_bytes:
        given = f"true, for {rows} rows of {manifest.outputs} outputs"
        raise InvalidArgument("sampling.joint", given, f"answers of at most {limits.max_message_bytes} bytes")
    if _working_bytes(plan, rows, manifest) > _WORKING_BYTES:
        given = f"{plan.max_draws} for {rows} rows of {manifest.outputs} outputs, {len(plan.spec.quantiles)} quantiles"
        raise InvalidArgument("sampling.max_draws", given, "fewer draws, rows or quantiles a request: too much to keep")


def _working_bytes(plan: Plan, rows: int, manifest: Manifest) -> int:
    """Estimate what is kept of the draws: moments per group; the draws where they are wanted, once per quantile."""
    per_row = 2 * -(-plan.max_draws // plan.group_size)
    if plan.spec.keeps_draws:
        per_row += 3 * plan.max_draws
    if manifest.task is Task.REGRESSION:
        per_row += plan.max_draws * (2 + len(plan.spec.quantiles))
    return per_row * rows * manifest.outputs * 8


def _ignored(request: pb.PredictRequest, version: ModelVersion, calibration: Calibration | None) -> Iterable[str]:
    asked = request.sampling
    if version.manifest.task is Task.REGRESSION:
        yield from version.manifest.warnings
    if version.manifest.task is Task.CLASSIFICATION and (asked.HasField("interval_level") or asked.quantiles):
        yield "interval_level and quantiles have no effect: this is a classification"
    if asked.estimator == pb.ESTIMATOR_LINEARIZED:
        if calibration is None or not calibration.linearized:
            why = "there is none" if calibration is None else "it did not find that it pays without bias"
            yield f"estimator ESTIMATOR_LINEARIZED has no effect: the version's calibration has to allow it; {why}"
        elif asked.mask_scope == pb.MASK_SCOPE_ROW:
            yield "estimator ESTIMATOR_LINEARIZED has no effect where each row has masks of its own"
    if request.output.uncalibrated and calibration is None:
        yield "uncalibrated has no effect: this version has no calibration"


def write_prediction(
    asked: Prediction, predictive: Predictive, spent: Spent, issued: Issued | None = None
) -> pb.PredictResponse:
    """Write the answer to a `PredictRequest`, or one on the way to it; the last one with what was `issued` for it."""
    issued, validity = issued or Issued(), predictive.calibration_validity
    if asked.stream and validity is Validity.EXACT:
        validity = Validity.APPROXIMATE  # the level was chosen by labels that came back
    reply = pb.PredictResponse(
        model=asked.version.name,
        version=asked.version.version,
        id=asked.id,
        draws=tensors.encode(predictive.draws),
        standard_error=_encode(predictive.standard_error),
        stop_reason=[_STOP_REASONS[reason] for reason in predictive.stop_reason],
        seed=predictive.seed,
        design=_DESIGN_CODES[predictive.design],
        group_size=predictive.group_size,
        mask_scope=_SCOPE_CODES[predictive.scope],
        estimator=_ESTIMATOR_CODES[predictive.estimator],
        calibration_id=predictive.calibration_id,
        calibration_validity=_VALIDITY[validity],
        warnings=(*asked.warnings, *([issued.warning] if issued.warning else [])),
        timings=_timings(spent),
        raw_draws=_encode(predictive.raw_draws),
        joint_covariance=_encode(predictive.joint_covariance),
        final=StopReason.UNFINISHED not in predictive.stop_reason,
        coverage=asked.coverage,
        served_coverage=asked.served_coverage,
        abstain=_encode(predictive.abstain),
        prediction_id=issued.prediction_id,
        receipt=issued.receipt,
    )
    if StopReason.DEADLINE in predictive.stop_reason:
        used = int(predictive.draws.min())
        reply.warnings.append(f"the deadline ended drawing after {used} of {asked.plan.max_draws} draws")
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


def write_evaluation(asked: StandardRequest, evaluation: Evaluation, spent: Spent) -> pb.EvaluateResponse:
    """Write the answer to an `EvaluateRequest`."""
    return pb.EvaluateResponse(
        model=asked.version.name,
        version=asked.version.version,
        id=asked.id,
        output=tensors.encode(evaluation.output),
        probabilities=_encode(evaluation.probabilities),
        label=_encode(evaluation.label),
        mean=_encode(evaluation.mean),
        aleatoric_variance=_encode(evaluation.aleatoric_variance),
        timings=_timings(spent),
    )


def _encode(array: NDArray[Any] | None) -> pb.Tensor | None:
    return None if array is None else tensors.encode(array)


def _timings(spent: Spent) -> pb.Timings:
    return pb.Timings(queue_seconds=spent.queue, compute_seconds=spent.compute, total_seconds=spent.total)


def write_models(entries: Sequence[Entry]) -> pb.ListModelsResponse:
    """Write the state of every version."""
    return pb.ListModelsResponse(models=[_write_status(entry) for entry in entries])


def _write_status(entry: Entry) -> pb.ModelStatus:
    version = entry.loaded
    if version is None:
        return pb.ModelStatus(
            model=entry.model, version=entry.version, state=pb.MODEL_STATE_FAILED, reason=entry.reason
        )
    return pb.ModelStatus(
        model=entry.model,
        version=entry.version,
        state=pb.MODEL_STATE_READY,
        task=version.manifest.task.value,
        calibration_id="" if version.calibration is None else version.calibration.id,
    )


def read_name(request: pb.GetModelRequest, registry: Registry) -> Entry:
    """Find the version that a `GetModelRequest` means; raises `NotServed`."""
    return registry.entry(request.model, request.version if request.HasField("version") else None)


def write_model(entry: Entry, limits: RequestLimits, observed: Sequence[pb.Observed] = ()) -> pb.GetModelResponse:
    """Write what a version is and what labels say of it; of one that failed to load, only its state."""
    status = _write_status(entry)
    if entry.loaded is None:
        return pb.GetModelResponse(status=status)
    manifest = entry.loaded.manifest
    return pb.GetModelResponse(
        status=status,
        inputs=[_write_signature(signature) for signature in manifest.inputs],
        head=manifest.head.value,
        class_names=manifest.class_names or (),
        outputs=manifest.outputs,
        sites=[
            pb.SiteInfo(name=site.name, kind=site.kind, rate=site.rate, shape=site.shape, balanced=site.balanced)
            for site in manifest.sites
        ],
        design=_DESIGN_CODES[entry.loaded.engine.masks.design_of(manifest.design).value],
        group_size=manifest.group_size,
        default_draws=manifest.default_draws,
        default_seed=manifest.default_seed,
        calibration=_write_calibration(entry.loaded.calibration),
        onnx_parity=manifest.parity,
        warnings=manifest.warnings,
        checksums=manifest.checksums,
        max_rows=limits.max_rows,
        max_draws=limits.max_draws,
        observed=observed,
    )


def _write_signature(signature: InputSignature) -> pb.TensorSignature:
    return pb.TensorSignature(
        name=signature.name,
        dtype=tensors.dtype_code(np.dtype(signature.dtype)),
        shape=[-1 if size is None else size for size in signature.shape],
        allow_nan=signature.allow_nan,
        dimension_names=["rows", *(signature.free.get(axis, "") for axis in range(1, len(signature.shape)))],
        columns=[
            pb.Column(
                name=column.name,
                kind=_COLUMN_KINDS[column.kind],
                categories=column.categories,
                allow_nan=column.allow_nan,
            )
            for column in signature.columns or ()
        ],
    )


def _write_calibration(calibration: Calibration | None) -> pb.CalibrationInfo | None:
    if calibration is None:
        return None
    return pb.CalibrationInfo(
        id=calibration.id,
        method=calibration.method,
        parameters=calibration.parameters,
        draws=calibration.draws,
        seed=calibration.seed,
        design=_DESIGN_CODES[calibration.design],
        rows=calibration.rows,
        data_fingerprint=calibration.data_fingerprint,
        stopping=_write_stopping(calibration.stopping),
        estimator=_ESTIMATOR_CODES[calibration.estimator.value],
        conformal=calibration.conformal[-1].conformal.method if calibration.conformal else "",
        condition=_condition(calibration),
        score_rows=calibration.score_rows,
        selective=_write_selective(calibration.selective),
    )


def _write_stopping(rule: Stopping) -> pb.Stopping:
    if rule.rule is StoppingRule.NONE:
        return pb.Stopping(rule=pb.STOPPING_RULE_NONE)
    quantity = _QUANTITY_CODES[rule.quantity]
    return pb.Stopping(rule=_RULE_CODES[rule.rule], quantity=quantity, target=rule.target, level=rule.level)


def _condition(calibration: Calibration) -> str:
    if not calibration.conformal:
        return ""
    condition = calibration.conformal[-1].conformal.condition
    return condition if calibration.grouping is None else f"{condition} {calibration.grouping.name}"


def _write_selective(found: Selective | None) -> pb.Selective | None:
    if found is None:
        return None
    return pb.Selective(
        quantity=found.quantity,
        threshold=found.threshold,
        risk=found.risk,
        confidence=1.0 - found.delta,
        accepted=found.accepted,
    )
