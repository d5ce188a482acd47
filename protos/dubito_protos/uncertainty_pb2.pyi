from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_TYPE_UNSPECIFIED: _ClassVar[DataType]
    DATA_TYPE_BOOL: _ClassVar[DataType]
    DATA_TYPE_UINT8: _ClassVar[DataType]
    DATA_TYPE_INT8: _ClassVar[DataType]
    DATA_TYPE_INT16: _ClassVar[DataType]
    DATA_TYPE_INT32: _ClassVar[DataType]
    DATA_TYPE_INT64: _ClassVar[DataType]
    DATA_TYPE_FLOAT16: _ClassVar[DataType]
    DATA_TYPE_FLOAT32: _ClassVar[DataType]
    DATA_TYPE_FLOAT64: _ClassVar[DataType]

class Design(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DESIGN_UNSPECIFIED: _ClassVar[Design]
    DESIGN_BALANCED: _ClassVar[Design]
    DESIGN_INDEPENDENT: _ClassVar[Design]
    DESIGN_MIXED: _ClassVar[Design]

class MaskScope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MASK_SCOPE_UNSPECIFIED: _ClassVar[MaskScope]
    MASK_SCOPE_DRAW: _ClassVar[MaskScope]
    MASK_SCOPE_ROW: _ClassVar[MaskScope]

class Estimator(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ESTIMATOR_UNSPECIFIED: _ClassVar[Estimator]
    ESTIMATOR_PLAIN: _ClassVar[Estimator]
    ESTIMATOR_LINEARIZED: _ClassVar[Estimator]

class StoppingRule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STOPPING_RULE_UNSPECIFIED: _ClassVar[StoppingRule]
    STOPPING_RULE_NONE: _ClassVar[StoppingRule]
    STOPPING_RULE_TOLERANCE: _ClassVar[StoppingRule]
    STOPPING_RULE_DECISION: _ClassVar[StoppingRule]
    STOPPING_RULE_THRESHOLD: _ClassVar[StoppingRule]

class StoppingQuantity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STOPPING_QUANTITY_UNSPECIFIED: _ClassVar[StoppingQuantity]
    STOPPING_QUANTITY_MEAN: _ClassVar[StoppingQuantity]
    STOPPING_QUANTITY_PREDICTIVE_ENTROPY: _ClassVar[StoppingQuantity]
    STOPPING_QUANTITY_MUTUAL_INFORMATION: _ClassVar[StoppingQuantity]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_HIGH: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_LOW: _ClassVar[Priority]

class StopReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STOP_REASON_UNSPECIFIED: _ClassVar[StopReason]
    STOP_REASON_MAX_DRAWS: _ClassVar[StopReason]
    STOP_REASON_TOLERANCE: _ClassVar[StopReason]
    STOP_REASON_DECISION: _ClassVar[StopReason]
    STOP_REASON_THRESHOLD: _ClassVar[StopReason]
    STOP_REASON_DEADLINE: _ClassVar[StopReason]
    STOP_REASON_LOAD: _ClassVar[StopReason]

class CalibrationValidity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CALIBRATION_VALIDITY_UNSPECIFIED: _ClassVar[CalibrationValidity]
    CALIBRATION_VALIDITY_NONE: _ClassVar[CalibrationValidity]
    CALIBRATION_VALIDITY_APPROXIMATE: _ClassVar[CalibrationValidity]
    CALIBRATION_VALIDITY_EXACT: _ClassVar[CalibrationValidity]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_FAILED: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_UNLOADED: _ClassVar[ModelState]

class ColumnKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COLUMN_KIND_UNSPECIFIED: _ClassVar[ColumnKind]
    COLUMN_KIND_NUMBER: _ClassVar[ColumnKind]
    COLUMN_KIND_CATEGORY: _ClassVar[ColumnKind]
DATA_TYPE_UNSPECIFIED: DataType
DATA_TYPE_BOOL: DataType
DATA_TYPE_UINT8: DataType
DATA_TYPE_INT8: DataType
DATA_TYPE_INT16: DataType
DATA_TYPE_INT32: DataType
DATA_TYPE_INT64: DataType
DATA_TYPE_FLOAT16: DataType
DATA_TYPE_FLOAT32: DataType
DATA_TYPE_FLOAT64: DataType
DESIGN_UNSPECIFIED: Design
DESIGN_BALANCED: Design
DESIGN_INDEPENDENT: Design
DESIGN_MIXED: Design
MASK_SCOPE_UNSPECIFIED: MaskScope
MASK_SCOPE_DRAW: MaskScope
MASK_SCOPE_ROW: MaskScope
ESTIMATOR_UNSPECIFIED: Estimator
ESTIMATOR_PLAIN: Estimator
ESTIMATOR_LINEARIZED: Estimator
STOPPING_RULE_UNSPECIFIED: StoppingRule
STOPPING_RULE_NONE: StoppingRule
STOPPING_RULE_TOLERANCE: StoppingRule
STOPPING_RULE_DECISION: StoppingRule
STOPPING_RULE_THRESHOLD: StoppingRule
STOPPING_QUANTITY_UNSPECIFIED: StoppingQuantity
STOPPING_QUANTITY_MEAN: StoppingQuantity
STOPPING_QUANTITY_PREDICTIVE_ENTROPY: StoppingQuantity
STOPPING_QUANTITY_MUTUAL_INFORMATION: StoppingQuantity
PRIORITY_UNSPECIFIED: Priority
PRIORITY_HIGH: Priority
PRIORITY_NORMAL: Priority
PRIORITY_LOW: Priority
STOP_REASON_UNSPECIFIED: StopReason
STOP_REASON_MAX_DRAWS: StopReason
STOP_REASON_TOLERANCE: StopReason
STOP_REASON_DECISION: StopReason
STOP_REASON_THRESHOLD: StopReason
STOP_REASON_DEADLINE: StopReason
STOP_REASON_LOAD: StopReason
CALIBRATION_VALIDITY_UNSPECIFIED: CalibrationValidity
CALIBRATION_VALIDITY_NONE: CalibrationValidity
CALIBRATION_VALIDITY_APPROXIMATE: CalibrationValidity
CALIBRATION_VALIDITY_EXACT: CalibrationValidity
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_FAILED: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_UNLOADED: ModelState
COLUMN_KIND_UNSPECIFIED: ColumnKind
COLUMN_KIND_NUMBER: ColumnKind
COLUMN_KIND_CATEGORY: ColumnKind

class Tensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Stopping(_message.Message):
    __slots__ = ("rule", "quantity", "target", "level")
    RULE_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    rule: StoppingRule
    quantity: StoppingQuantity
    target: float
    level: float
    def __init__(self, rule: _Optional[_Union[StoppingRule, str]] = ..., quantity: _Optional[_Union[StoppingQuantity, str]] = ..., target: _Optional[float] = ..., level: _Optional[float] = ...) -> None: ...

class SamplingSpec(_message.Message):
    __slots__ = ("min_draws", "max_draws", "stopping", "seed", "design", "mask_scope", "estimator", "interval_level", "quantiles", "joint", "raw_draws")
    MIN_DRAWS_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAWS_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DESIGN_FIELD_NUMBER: _ClassVar[int]
    MASK_SCOPE_FIELD_NUMBER: _ClassVar[int]
    ESTIMATOR_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_LEVEL_FIELD_NUMBER: _ClassVar[int]
    QUANTILES_FIELD_NUMBER: _ClassVar[int]
    JOINT_FIELD_NUMBER: _ClassVar[int]
    RAW_DRAWS_FIELD_NUMBER: _ClassVar[int]
    min_draws: int
    max_draws: int
    stopping: Stopping
    seed: int
    design: Design
    mask_scope: MaskScope
    estimator: Estimator
    interval_level: float
    quantiles: _containers.RepeatedScalarFieldContainer[float]
    joint: bool
    raw_draws: bool
    def __init__(self, min_draws: _Optional[int] = ..., max_draws: _Optional[int] = ..., stopping: _Optional[_Union[Stopping, _Mapping]] = ..., seed: _Optional[int] = ..., design: _Optional[_Union[Design, str]] = ..., mask_scope: _Optional[_Union[MaskScope, str]] = ..., estimator: _Optional[_Union[Estimator, str]] = ..., interval_level: _Optional[float] = ..., quantiles: _Optional[_Iterable[float]] = ..., joint: bool = ..., raw_draws: bool = ...) -> None: ...

class OutputSpec(_message.Message):
    __slots__ = ("coverage", "uncalibrated", "stream")
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    UNCALIBRATED_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    coverage: float
    uncalibrated: bool
    stream: str
    def __init__(self, coverage: _Optional[float] = ..., uncalibrated: bool = ..., stream: _Optional[str] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("model", "version", "inputs", "sampling", "output", "id", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    inputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    sampling: SamplingSpec
    output: OutputSpec
    id: str
    priority: Priority
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., sampling: _Optional[_Union[SamplingSpec, _Mapping]] = ..., output: _Optional[_Union[OutputSpec, _Mapping]] = ..., id: _Optional[str] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class Classification(_message.Message):
    __slots__ = ("probabilities", "label", "predictive_entropy", "expected_entropy", "mutual_information", "standard_deviation", "prediction_set", "plain_mutual_information", "variation_ratio", "disagreement", "margin")
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PREDICTIVE_ENTROPY_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_ENTROPY_FIELD_NUMBER: _ClassVar[int]
    MUTUAL_INFORMATION_FIELD_NUMBER: _ClassVar[int]
    STANDARD_DEVIATION_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_SET_FIELD_NUMBER: _ClassVar[int]
    PLAIN_MUTUAL_INFORMATION_FIELD_NUMBER: _ClassVar[int]
    VARIATION_RATIO_FIELD_NUMBER: _ClassVar[int]
    DISAGREEMENT_FIELD_NUMBER: _ClassVar[int]
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    probabilities: Tensor
    label: Tensor
    predictive_entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor
    standard_deviation: Tensor
    prediction_set: Tensor
    plain_mutual_information: Tensor
    variation_ratio: Tensor
    disagreement: Tensor
    margin: Tensor
    def __init__(self, probabilities: _Optional[_Union[Tensor, _Mapping]] = ..., label: _Optional[_Union[Tensor, _Mapping]] = ..., predictive_entropy: _Optional[_Union[Tensor, _Mapping]] = ..., expected_entropy: _Optional[_Union[Tensor, _Mapping]] = ..., mutual_information: _Optional[_Union[Tensor, _Mapping]] = ..., standard_deviation: _Optional[_Union[Tensor, _Mapping]] = ..., prediction_set: _Optional[_Union[Tensor, _Mapping]] = ..., plain_mutual_information: _Optional[_Union[Tensor, _Mapping]] = ..., variation_ratio: _Optional[_Union[Tensor, _Mapping]] = ..., disagreement: _Optional[_Union[Tensor, _Mapping]] = ..., margin: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Regression(_message.Message):
    __slots__ = ("mean", "total_variance", "epistemic_variance", "aleatoric_variance", "interval", "interval_level", "quantiles", "prediction_interval")
    MEAN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_VARIANCE_FIELD_NUMBER: _ClassVar[int]
    EPISTEMIC_VARIANCE_FIELD_NUMBER: _ClassVar[int]
    ALEATORIC_VARIANCE_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_LEVEL_FIELD_NUMBER: _ClassVar[int]
    QUANTILES_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    mean: Tensor
    total_variance: Tensor
    epistemic_variance: Tensor
    aleatoric_variance: Tensor
    interval: Tensor
    interval_level: float
    quantiles: Tensor
    prediction_interval: Tensor
    def __init__(self, mean: _Optional[_Union[Tensor, _Mapping]] = ..., total_variance: _Optional[_Union[Tensor, _Mapping]] = ..., epistemic_variance: _Optional[_Union[Tensor, _Mapping]] = ..., aleatoric_variance: _Optional[_Union[Tensor, _Mapping]] = ..., interval: _Optional[_Union[Tensor, _Mapping]] = ..., interval_level: _Optional[float] = ..., quantiles: _Optional[_Union[Tensor, _Mapping]] = ..., prediction_interval: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_seconds", "compute_seconds", "total_seconds")
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    queue_seconds: float
    compute_seconds: float
    total_seconds: float
    def __init__(self, queue_seconds: _Optional[float] = ..., compute_seconds: _Optional[float] = ..., total_seconds: _Optional[float] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("model", "version", "id", "classification", "regression", "uncalibrated_classification", "uncalibrated_regression", "draws", "standard_error", "stop_reason", "seed", "design", "group_size", "mask_scope", "estimator", "calibration_id", "calibration_validity", "warnings", "timings", "raw_draws", "joint_covariance", "final", "coverage", "abstain", "prediction_id", "receipt", "served_coverage")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    REGRESSION_FIELD_NUMBER: _ClassVar[int]
    UNCALIBRATED_CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    UNCALIBRATED_REGRESSION_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    STANDARD_ERROR_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DESIGN_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    MASK_SCOPE_FIELD_NUMBER: _ClassVar[int]
    ESTIMATOR_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_ID_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_VALIDITY_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    RAW_DRAWS_FIELD_NUMBER: _ClassVar[int]
    JOINT_COVARIANCE_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    ABSTAIN_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    SERVED_COVERAGE_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    id: str
    classification: Classification
    regression: Regression
    uncalibrated_classification: Classification
    uncalibrated_regression: Regression
    draws: Tensor
    standard_error: Tensor
    stop_reason: _containers.RepeatedScalarFieldContainer[StopReason]
    seed: int
    design: Design
    group_size: int
    mask_scope: MaskScope
    estimator: Estimator
    calibration_id: str
    calibration_validity: CalibrationValidity
    warnings: _containers.RepeatedScalarFieldContainer[str]
    timings: Timings
    raw_draws: Tensor
    joint_covariance: Tensor
    final: bool
    coverage: float
    abstain: Tensor
    prediction_id: str
    receipt: bytes
    served_coverage: float
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., id: _Optional[str] = ..., classification: _Optional[_Union[Classification, _Mapping]] = ..., regression: _Optional[_Union[Regression, _Mapping]] = ..., uncalibrated_classification: _Optional[_Union[Classification, _Mapping]] = ..., uncalibrated_regression: _Optional[_Union[Regression, _Mapping]] = ..., draws: _Optional[_Union[Tensor, _Mapping]] = ..., standard_error: _Optional[_Union[Tensor, _Mapping]] = ..., stop_reason: _Optional[_Iterable[_Union[StopReason, str]]] = ..., seed: _Optional[int] = ..., design: _Optional[_Union[Design, str]] = ..., group_size: _Optional[int] = ..., mask_scope: _Optional[_Union[MaskScope, str]] = ..., estimator: _Optional[_Union[Estimator, str]] = ..., calibration_id: _Optional[str] = ..., calibration_validity: _Optional[_Union[CalibrationValidity, str]] = ..., warnings: _Optional[_Iterable[str]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., raw_draws: _Optional[_Union[Tensor, _Mapping]] = ..., joint_covariance: _Optional[_Union[Tensor, _Mapping]] = ..., final: bool = ..., coverage: _Optional[float] = ..., abstain: _Optional[_Union[Tensor, _Mapping]] = ..., prediction_id: _Optional[str] = ..., receipt: _Optional[bytes] = ..., served_coverage: _Optional[float] = ...) -> None: ...

class PredictBulkResponse(_message.Message):
    __slots__ = ("id", "response", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    response: PredictResponse
    error: Error
    def __init__(self, id: _Optional[str] = ..., response: _Optional[_Union[PredictResponse, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "field", "retry_seconds")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    RETRY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    field: str
    retry_seconds: float
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., retry_seconds: _Optional[float] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("model", "version", "inputs", "id", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    inputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    id: str
    priority: Priority
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., id: _Optional[str] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class EvaluateResponse(_message.Message):
    __slots__ = ("model", "version", "id", "output", "probabilities", "label", "mean", "aleatoric_variance", "timings")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    ALEATORIC_VARIANCE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    id: str
    output: Tensor
    probabilities: Tensor
    label: Tensor
    mean: Tensor
    aleatoric_variance: Tensor
    timings: Timings
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., id: _Optional[str] = ..., output: _Optional[_Union[Tensor, _Mapping]] = ..., probabilities: _Optional[_Union[Tensor, _Mapping]] = ..., label: _Optional[_Union[Tensor, _Mapping]] = ..., mean: _Optional[_Union[Tensor, _Mapping]] = ..., aleatoric_variance: _Optional[_Union[Tensor, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class ObserveRequest(_message.Message):
    __slots__ = ("prediction_id", "receipt", "label", "stream")
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    prediction_id: str
    receipt: bytes
    label: Tensor
    stream: str
    def __init__(self, prediction_id: _Optional[str] = ..., receipt: _Optional[bytes] = ..., label: _Optional[_Union[Tensor, _Mapping]] = ..., stream: _Optional[str] = ...) -> None: ...

class ObserveResponse(_message.Message):
    __slots__ = ("duplicate", "rows", "covered", "stream")
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COVERED_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    duplicate: bool
    rows: int
    covered: Tensor
    stream: StreamState
    def __init__(self, duplicate: bool = ..., rows: _Optional[int] = ..., covered: _Optional[_Union[Tensor, _Mapping]] = ..., stream: _Optional[_Union[StreamState, _Mapping]] = ...) -> None: ...

class StreamState(_message.Message):
    __slots__ = ("stream", "coverage", "served_coverage", "labels", "covered")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    SERVED_COVERAGE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    COVERED_FIELD_NUMBER: _ClassVar[int]
    stream: str
    coverage: float
    served_coverage: float
    labels: int
    covered: float
    def __init__(self, stream: _Optional[str] = ..., coverage: _Optional[float] = ..., served_coverage: _Optional[float] = ..., labels: _Optional[int] = ..., covered: _Optional[float] = ...) -> None: ...

class Banded(_message.Message):
    __slots__ = ("value", "low", "high")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    value: float
    low: float
    high: float
    def __init__(self, value: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class DriftState(_message.Message):
    __slots__ = ("of", "reference_rows", "rows", "evidence", "false_alarm", "alarm")
    OF_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_ROWS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    FALSE_ALARM_FIELD_NUMBER: _ClassVar[int]
    ALARM_FIELD_NUMBER: _ClassVar[int]
    of: str
    reference_rows: int
    rows: int
    evidence: float
    false_alarm: float
    alarm: bool
    def __init__(self, of: _Optional[str] = ..., reference_rows: _Optional[int] = ..., rows: _Optional[int] = ..., evidence: _Optional[float] = ..., false_alarm: _Optional[float] = ..., alarm: bool = ...) -> None: ...

class Observed(_message.Message):
    __slots__ = ("calibration_id", "rows", "first_seconds", "last_seconds", "negative_log_likelihood", "accuracy", "brier_score", "expected_calibration_error", "root_mean_squared_error", "coverage", "served_coverage", "covered_rows", "drift", "streams")
    CALIBRATION_ID_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FIRST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LAST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_LOG_LIKELIHOOD_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    BRIER_SCORE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_CALIBRATION_ERROR_FIELD_NUMBER: _ClassVar[int]
    ROOT_MEAN_SQUARED_ERROR_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    SERVED_COVERAGE_FIELD_NUMBER: _ClassVar[int]
    COVERED_ROWS_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    calibration_id: str
    rows: int
    first_seconds: float
    last_seconds: float
    negative_log_likelihood: Banded
    accuracy: Banded
    brier_score: Banded
    expected_calibration_error: Banded
    root_mean_squared_error: Banded
    coverage: Banded
    served_coverage: float
    covered_rows: int
    drift: _containers.RepeatedCompositeFieldContainer[DriftState]
    streams: _containers.RepeatedCompositeFieldContainer[StreamState]
    def __init__(self, calibration_id: _Optional[str] = ..., rows: _Optional[int] = ..., first_seconds: _Optional[float] = ..., last_seconds: _Optional[float] = ..., negative_log_likelihood: _Optional[_Union[Banded, _Mapping]] = ..., accuracy: _Optional[_Union[Banded, _Mapping]] = ..., brier_score: _Optional[_Union[Banded, _Mapping]] = ..., expected_calibration_error: _Optional[_Union[Banded, _Mapping]] = ..., root_mean_squared_error: _Optional[_Union[Banded, _Mapping]] = ..., coverage: _Optional[_Union[Banded, _Mapping]] = ..., served_coverage: _Optional[float] = ..., covered_rows: _Optional[int] = ..., drift: _Optional[_Iterable[_Union[DriftState, _Mapping]]] = ..., streams: _Optional[_Iterable[_Union[StreamState, _Mapping]]] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("model", "version", "state", "reason", "task", "calibration_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    state: ModelState
    reason: str
    task: str
    calibration_id: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., state: _Optional[_Union[ModelState, str]] = ..., reason: _Optional[str] = ..., task: _Optional[str] = ..., calibration_id: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("name", "kind", "categories", "allow_nan")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    ALLOW_NAN_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: ColumnKind
    categories: _containers.RepeatedScalarFieldContainer[str]
    allow_nan: bool
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[ColumnKind, str]] = ..., categories: _Optional[_Iterable[str]] = ..., allow_nan: bool = ...) -> None: ...

class TensorSignature(_message.Message):
    __slots__ = ("name", "dtype", "shape", "allow_nan", "dimension_names", "columns")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    ALLOW_NAN_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_NAMES_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    allow_nan: bool
    dimension_names: _containers.RepeatedScalarFieldContainer[str]
    columns: _containers.RepeatedCompositeFieldContainer[Column]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., allow_nan: bool = ..., dimension_names: _Optional[_Iterable[str]] = ..., columns: _Optional[_Iterable[_Union[Column, _Mapping]]] = ...) -> None: ...

class SiteInfo(_message.Message):
    __slots__ = ("name", "kind", "rate", "shape", "balanced")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    BALANCED_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    rate: float
    shape: _containers.RepeatedScalarFieldContainer[str]
    balanced: bool
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., rate: _Optional[float] = ..., shape: _Optional[_Iterable[str]] = ..., balanced: bool = ...) -> None: ...

class Selective(_message.Message):
    __slots__ = ("quantity", "threshold", "risk", "confidence", "accepted")
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    RISK_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    quantity: str
    threshold: float
    risk: float
    confidence: float
    accepted: float
    def __init__(self, quantity: _Optional[str] = ..., threshold: _Optional[float] = ..., risk: _Optional[float] = ..., confidence: _Optional[float] = ..., accepted: _Optional[float] = ...) -> None: ...

class CalibrationInfo(_message.Message):
    __slots__ = ("id", "method", "parameters", "draws", "seed", "design", "rows", "data_fingerprint", "stopping", "estimator", "conformal", "condition", "score_rows", "selective")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DESIGN_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DATA_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    ESTIMATOR_FIELD_NUMBER: _ClassVar[int]
    CONFORMAL_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    SCORE_ROWS_FIELD_NUMBER: _ClassVar[int]
    SELECTIVE_FIELD_NUMBER: _ClassVar[int]
    id: str
    method: str
    parameters: _containers.ScalarMap[str, float]
    draws: int
    seed: int
    design: Design
    rows: int
    data_fingerprint: str
    stopping: Stopping
    estimator: Estimator
    conformal: str
    condition: str
    score_rows: int
    selective: Selective
    def __init__(self, id: _Optional[str] = ..., method: _Optional[str] = ..., parameters: _Optional[_Mapping[str, float]] = ..., draws: _Optional[int] = ..., seed: _Optional[int] = ..., design: _Optional[_Union[Design, str]] = ..., rows: _Optional[int] = ..., data_fingerprint: _Optional[str] = ..., stopping: _Optional[_Union[Stopping, _Mapping]] = ..., estimator: _Optional[_Union[Estimator, str]] = ..., conformal: _Optional[str] = ..., condition: _Optional[str] = ..., score_rows: _Optional[int] = ..., selective: _Optional[_Union[Selective, _Mapping]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("status", "inputs", "head", "class_names", "outputs", "sites", "design", "group_size", "default_draws", "default_seed", "calibration", "onnx_parity", "warnings", "checksums", "max_rows", "max_draws", "observed")
    class ChecksumsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STATUS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    DESIGN_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_DRAWS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_SEED_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    ONNX_PARITY_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAWS_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    status: ModelStatus
    inputs: _containers.RepeatedCompositeFieldContainer[TensorSignature]
    head: str
    class_names: _containers.RepeatedScalarFieldContainer[str]
    outputs: int
    sites: _containers.RepeatedCompositeFieldContainer[SiteInfo]
    design: Design
    group_size: int
    default_draws: int
    default_seed: int
    calibration: CalibrationInfo
    onnx_parity: float
    warnings: _containers.RepeatedScalarFieldContainer[str]
    checksums: _containers.ScalarMap[str, str]
    max_rows: int
    max_draws: int
    observed: _containers.RepeatedCompositeFieldContainer[Observed]
    def __init__(self, status: _Optional[_Union[ModelStatus, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[TensorSignature, _Mapping]]] = ..., head: _Optional[str] = ..., class_names: _Optional[_Iterable[str]] = ..., outputs: _Optional[int] = ..., sites: _Optional[_Iterable[_Union[SiteInfo, _Mapping]]] = ..., design: _Optional[_Union[Design, str]] = ..., group_size: _Optional[int] = ..., default_draws: _Optional[int] = ..., default_seed: _Optional[int] = ..., calibration: _Optional[_Union[CalibrationInfo, _Mapping]] = ..., onnx_parity: _Optional[float] = ..., warnings: _Optional[_Iterable[str]] = ..., checksums: _Optional[_Mapping[str, str]] = ..., max_rows: _Optional[int] = ..., max_draws: _Optional[int] = ..., observed: _Optional[_Iterable[_Union[Observed, _Mapping]]] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: ModelStatus
    def __init__(self, status: _Optional[_Union[ModelStatus, _Mapping]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
