from dubito_protos import uncertainty_pb2 as _uncertainty_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Receipt(_message.Message):
    __slots__ = ("prediction_id", "model", "version", "calibration_id", "validity", "issued", "stream", "coverage", "served_coverage", "seed", "design", "mask_scope", "draws", "classified", "regressed", "epistemic", "scoring", "groups", "inputs")
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_ID_FIELD_NUMBER: _ClassVar[int]
    VALIDITY_FIELD_NUMBER: _ClassVar[int]
    ISSUED_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    SERVED_COVERAGE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DESIGN_FIELD_NUMBER: _ClassVar[int]
    MASK_SCOPE_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    CLASSIFIED_FIELD_NUMBER: _ClassVar[int]
    REGRESSED_FIELD_NUMBER: _ClassVar[int]
    EPISTEMIC_FIELD_NUMBER: _ClassVar[int]
    SCORING_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    prediction_id: str
    model: str
    version: int
    calibration_id: str
    validity: _uncertainty_pb2.CalibrationValidity
    issued: float
    stream: str
    coverage: float
    served_coverage: float
    seed: int
    design: str
    mask_scope: str
    draws: _uncertainty_pb2.Tensor
    classified: Classified
    regressed: Regressed
    epistemic: _uncertainty_pb2.Tensor
    scoring: Scoring
    groups: _uncertainty_pb2.Tensor
    inputs: _containers.RepeatedCompositeFieldContainer[_uncertainty_pb2.Tensor]
    def __init__(self, prediction_id: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., calibration_id: _Optional[str] = ..., validity: _Optional[_Union[_uncertainty_pb2.CalibrationValidity, str]] = ..., issued: _Optional[float] = ..., stream: _Optional[str] = ..., coverage: _Optional[float] = ..., served_coverage: _Optional[float] = ..., seed: _Optional[int] = ..., design: _Optional[str] = ..., mask_scope: _Optional[str] = ..., draws: _Optional[_Union[_uncertainty_pb2.Tensor, _Mapping]] = ..., classified: _Optional[_Union[Classified, _Mapping]] = ..., regressed: _Optional[_Union[Regressed, _Mapping]] = ..., epistemic: _Optional[_Union[_uncertainty_pb2.Tensor, _Mapping]] = ..., scoring: _Optional[_Union[Scoring, _Mapping]] = ..., groups: _Optional[_Union[_uncertainty_pb2.Tensor, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[_uncertainty_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class Classified(_message.Message):
    __slots__ = ("probabilities", "prediction_set")
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_SET_FIELD_NUMBER: _ClassVar[int]
    probabilities: _uncertainty_pb2.Tensor
    prediction_set: _uncertainty_pb2.Tensor
    def __init__(self, probabilities: _Optional[_Union[_uncertainty_pb2.Tensor, _Mapping]] = ..., prediction_set: _Optional[_Union[_uncertainty_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Regressed(_message.Message):
    __slots__ = ("mean", "total_variance", "base_interval", "prediction_interval")
    MEAN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_VARIANCE_FIELD_NUMBER: _ClassVar[int]
    BASE_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    mean: _uncertainty_pb2.Tensor
    total_variance: _uncertainty_pb2.Tensor
    base_interval: _uncertainty_pb2.Tensor
    prediction_interval: _uncertainty_pb2.Tensor
    def __init__(self, mean: _Optional[_Union[_uncertainty_pb2.Tensor, _Mapping]] = ..., total_variance: _Optional[_Union[_uncertainty_pb2.Tensor, _Mapping]] = ..., base_interval: _Optional[_Union[_uncertainty_pb2.Tensor, _Mapping]] = ..., prediction_interval: _Optional[_Union[_uncertainty_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Scoring(_message.Message):
    __slots__ = ("method", "penalty", "regular_rank", "floor")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PENALTY_FIELD_NUMBER: _ClassVar[int]
    REGULAR_RANK_FIELD_NUMBER: _ClassVar[int]
    FLOOR_FIELD_NUMBER: _ClassVar[int]
    method: str
    penalty: float
    regular_rank: int
    floor: float
    def __init__(self, method: _Optional[str] = ..., penalty: _Optional[float] = ..., regular_rank: _Optional[int] = ..., floor: _Optional[float] = ...) -> None: ...
