"""The translator of what is served, and what it is, between dubito's own protocol and the core."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dubito_models.calibration import Calibration, Selective
from dubito_models.manifest import InputSignature
from dubito_models.stopping import Stopping, StoppingRule
from dubito_protos import tensors
from dubito_protos import uncertainty_pb2 as pb
from dubito_service.asking import RequestLimits
from dubito_service.dubito_v1.codes import DESIGN_CODES, ESTIMATOR_CODES, QUANTITY_CODES, RULE_CODES
from dubito_service.versions.registry import Entry, Registry, State

_COLUMN_KINDS = {"number": pb.COLUMN_KIND_NUMBER, "category": pb.COLUMN_KIND_CATEGORY}
_STATES = {
    State.READY: pb.MODEL_STATE_READY,
    State.FAILED: pb.MODEL_STATE_FAILED,
    State.LOADING: pb.MODEL_STATE_LOADING,
    State.UNLOADED: pb.MODEL_STATE_UNLOADED,
}


def write_models(entries: Sequence[Entry]) -> pb.ListModelsResponse:
    """Write the state of every version."""
    return pb.ListModelsResponse(models=[write_status(entry) for entry in entries])


def write_status(entry: Entry) -> pb.ModelStatus:
    """Write how a version stands."""
    version = entry.loaded
    if version is None:
        return pb.ModelStatus(model=entry.model, version=entry.version, state=_STATES[entry.state], reason=entry.reason)
    return pb.ModelStatus(
        model=entry.model,
        version=entry.version,
        state=pb.MODEL_STATE_READY,
        reason=entry.reason,
        task=version.manifest.task.value,
        calibration_id="" if version.calibration is None else version.calibration.id,
    )


def read_version(request: pb.LoadModelRequest | pb.UnloadModelRequest) -> int | None:
    """Return the version that is to be loaded or unloaded; None where the policy says which."""
    return request.version if request.HasField("version") else None


def read_name(request: pb.GetModelRequest, registry: Registry) -> Entry:
    """Find the version that a `GetModelRequest` means; raises `NotServed`."""
    return registry.entry(request.model, request.version if request.HasField("version") else None)


def write_model(entry: Entry, limits: RequestLimits, observed: Sequence[pb.Observed] = ()) -> pb.GetModelResponse:
    """Write what a version is and what labels say of it; of one that failed to load, only its state."""
    status = write_status(entry)
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
        design=DESIGN_CODES[entry.loaded.engine.masks.design_of(manifest.design).value],
        group_size=manifest.group_size,
        default_draws=manifest.default_draws,
        default_seed=manifest.default_seed,
        calibration=_write_calibration(entry.loaded.calibration),
        onnx_parity=manifest.parity,
        warnings=entry.loaded.warnings,
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
        design=DESIGN_CODES[calibration.design],
        rows=calibration.rows,
        data_fingerprint=calibration.data_fingerprint,
        stopping=_write_stopping(calibration.stopping),
        estimator=ESTIMATOR_CODES[calibration.estimator.value],
        conformal=calibration.conformal[-1].conformal.method if calibration.conformal else "",
        condition=_condition(calibration),
        score_rows=calibration.score_rows,
        selective=_write_selective(calibration.selective),
    )


def _write_stopping(rule: Stopping) -> pb.Stopping:
    if rule.rule is StoppingRule.NONE:
        return pb.Stopping(rule=pb.STOPPING_RULE_NONE)
    quantity = QUANTITY_CODES[rule.quantity]
    return pb.Stopping(rule=RULE_CODES[rule.rule], quantity=quantity, target=rule.target, level=rule.level)


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
