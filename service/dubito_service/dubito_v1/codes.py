"""The tables between the enums of dubito's own protocol and those of the core."""

from __future__ import annotations

from dubito_models.predictive import StopReason, Validity
from dubito_models.sampling import Estimator
from dubito_models.stopping import Quantity, StoppingRule
from dubito_models.thinning import Design, MaskScope
from dubito_protos import uncertainty_pb2 as pb
from dubito_service.scheduling.scheduler import Priority

DESIGNS: dict[int, Design | None] = {
    pb.DESIGN_UNSPECIFIED: None,
    pb.DESIGN_BALANCED: Design.BALANCED,
    pb.DESIGN_INDEPENDENT: Design.INDEPENDENT,
}
SCOPES = {
    pb.MASK_SCOPE_UNSPECIFIED: MaskScope.DRAW,
    pb.MASK_SCOPE_DRAW: MaskScope.DRAW,
    pb.MASK_SCOPE_ROW: MaskScope.ROW,
}
SCOPE_CODES = {MaskScope.DRAW.value: pb.MASK_SCOPE_DRAW, MaskScope.ROW.value: pb.MASK_SCOPE_ROW}
ESTIMATORS: dict[int, Estimator | None] = {
    pb.ESTIMATOR_UNSPECIFIED: None,
    pb.ESTIMATOR_PLAIN: Estimator.PLAIN,
    pb.ESTIMATOR_LINEARIZED: Estimator.LINEARIZED,
}
ESTIMATOR_CODES = {
    Estimator.PLAIN.value: pb.ESTIMATOR_PLAIN,
    Estimator.LINEARIZED.value: pb.ESTIMATOR_LINEARIZED,
}
DESIGN_CODES = {
    Design.BALANCED.value: pb.DESIGN_BALANCED,
    Design.INDEPENDENT.value: pb.DESIGN_INDEPENDENT,
    Design.MIXED.value: pb.DESIGN_MIXED,
}
STOP_REASON_CODES = {
    StopReason.UNFINISHED: pb.STOP_REASON_UNSPECIFIED,
    StopReason.MAX_DRAWS: pb.STOP_REASON_MAX_DRAWS,
    StopReason.TOLERANCE: pb.STOP_REASON_TOLERANCE,
    StopReason.DECISION: pb.STOP_REASON_DECISION,
    StopReason.THRESHOLD: pb.STOP_REASON_THRESHOLD,
    StopReason.DEADLINE: pb.STOP_REASON_DEADLINE,
    StopReason.LOAD: pb.STOP_REASON_LOAD,
}
RULES = {
    pb.STOPPING_RULE_NONE: StoppingRule.NONE,
    pb.STOPPING_RULE_TOLERANCE: StoppingRule.TOLERANCE,
    pb.STOPPING_RULE_DECISION: StoppingRule.DECISION,
    pb.STOPPING_RULE_THRESHOLD: StoppingRule.THRESHOLD,
}
RULE_CODES = {rule: code for code, rule in RULES.items()}
QUANTITIES = {
    pb.STOPPING_QUANTITY_UNSPECIFIED: Quantity.MEAN,
    pb.STOPPING_QUANTITY_MEAN: Quantity.MEAN,
    pb.STOPPING_QUANTITY_PREDICTIVE_ENTROPY: Quantity.PREDICTIVE_ENTROPY,
    pb.STOPPING_QUANTITY_MUTUAL_INFORMATION: Quantity.MUTUAL_INFORMATION,
}
QUANTITY_CODES = {quantity: code for code, quantity in QUANTITIES.items()}  # the last of equals: the named one
PRIORITIES = {
    pb.PRIORITY_UNSPECIFIED: Priority.NORMAL,
    pb.PRIORITY_HIGH: Priority.HIGH,
    pb.PRIORITY_NORMAL: Priority.NORMAL,
    pb.PRIORITY_LOW: Priority.LOW,
}
VALIDITY_CODES = {
    Validity.NONE: pb.CALIBRATION_VALIDITY_NONE,
    Validity.APPROXIMATE: pb.CALIBRATION_VALIDITY_APPROXIMATE,
    Validity.EXACT: pb.CALIBRATION_VALIDITY_EXACT,
}
