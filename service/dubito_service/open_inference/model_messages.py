"""The translator of what is served between the Open Inference Protocol and the core."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from dubito_models.errors import InvalidArgument
from dubito_models.manifest import InputSignature
from dubito_models.package import ModelVersion
from dubito_protos import open_inference_pb2 as pb
from dubito_service.errors import NotServed
from dubito_service.open_inference.datatypes import datatype_of
from dubito_service.open_inference.messages import STANDARD, Served
from dubito_service.open_inference.options import PRIORITIES
from dubito_service.open_inference.outputs import Output, declare, declare_standard
from dubito_service.open_inference.statistics import Counts, Duration
from dubito_service.versions.policy import Policy
from dubito_service.versions.registry import Entry, State

# What of Triton's extensions holds here; a client asks for nothing that is not among them.
EXTENSIONS = (
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
# A version that failed cannot be told from one that was unloaded but by its reason.
_STATES = {
    State.READY: "READY",
    State.LOADING: "LOADING",
    State.FAILED: "UNAVAILABLE",
    State.UNLOADED: "UNAVAILABLE",
}
_TYPES = {
    "BOOL": pb.TYPE_BOOL,
    "UINT8": pb.TYPE_UINT8,
    "UINT16": pb.TYPE_UINT16,
    "UINT32": pb.TYPE_UINT32,
    "UINT64": pb.TYPE_UINT64,
    "INT8": pb.TYPE_INT8,
    "INT16": pb.TYPE_INT16,
    "INT32": pb.TYPE_INT32,
    "INT64": pb.TYPE_INT64,
    "FP16": pb.TYPE_FP16,
    "FP32": pb.TYPE_FP32,
    "FP64": pb.TYPE_FP64,
    "BYTES": pb.TYPE_STRING,
}


def write_metadata(served: Served, versions: Iterable[int]) -> pb.ModelMetadataResponse:
    """Write what a model takes and gives; `versions`: of it that are ready."""
    return pb.ModelMetadataResponse(
        name=served.name,
        versions=[str(version) for version in versions],
        platform=_platform(served),
        inputs=[
            _write_tensor(entry.name, entry.dtype, (None, *entry.shape[1:])) for entry in served.version.manifest.inputs
        ],
        outputs=[_write_tensor(output.name, output.dtype, output.shape) for output in _outputs(served)],
    )


def _write_tensor(name: str, dtype: str, shape: Sequence[int | None]) -> pb.ModelMetadataResponse.TensorMetadata:
    sizes = [-1 if size is None else size for size in shape]
    return pb.ModelMetadataResponse.TensorMetadata(name=name, datatype=datatype_of(dtype), shape=sizes)


def _outputs(served: Served) -> tuple[Output, ...]:
    return declare_standard(served.version) if served.standard else declare(served.version)


def _platform(served: Served) -> str:
    return "onnxruntime_onnx" if served.standard else "dubito_montecarlo"


def write_config(served: Served, max_rows: int, policy: Policy, replicas: int) -> pb.ModelConfig:
    """Write a model's configuration: shapes without the rows, of which a request has at most `max_rows`."""
    return pb.ModelConfig(
        name=served.name,
        platform=_platform(served),
        backend="onnxruntime" if served.standard else "dubito",
        version_policy=_write_policy(policy, served.version.name),
        max_batch_size=min(max_rows, 2**31 - 1),
        input=[
            pb.ModelInput(name=entry.name, data_type=_type(entry.dtype), dims=_dims(entry.shape))
            for entry in served.version.manifest.inputs
        ],
        output=[
            pb.ModelOutput(name=output.name, data_type=_type(output.dtype), dims=_dims(output.shape))
            for output in _outputs(served)
        ],
        instance_group=[_instance(served, replicas)],
        dynamic_batching=pb.ModelDynamicBatching(
            priority_levels=len(PRIORITIES) - 1, default_priority_level=PRIORITIES.index(PRIORITIES[0], 1)
        ),
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
        response_cache=pb.ModelResponseCache(enable=False),
        parameters={name: pb.ModelParameter(string_value=text) for name, text in _about(served.version).items()},
    )


def _write_policy(policy: Policy, model: str) -> pb.ModelVersionPolicy:
    if model in policy.pins:
        return pb.ModelVersionPolicy(specific=pb.ModelVersionPolicy.Specific(versions=policy.pins[model]))
    return pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=policy.newest))


def _type(dtype: str) -> pb.DataType:
    return _TYPES[datatype_of(dtype)]


def _dims(shape: Sequence[int | None]) -> list[int]:
    return [-1 if size is None else size for size in shape[1:]]


def _instance(served: Served, replicas: int) -> pb.ModelInstanceGroup:
    """Return what runs it: one thread for each GPU, so many on a CPU, one session of onnxruntime."""
    name, devices = f"{served.name}_0", [engine.program.device for engine in served.version.engines]
    if not served.standard and devices[0].type == "cuda":
        gpus = [device.index or 0 for device in devices]
        return pb.ModelInstanceGroup(name=name, count=1, kind=pb.ModelInstanceGroup.KIND_GPU, gpus=gpus)
    count = 1 if served.standard else replicas
    return pb.ModelInstanceGroup(name=name, count=count, kind=pb.ModelInstanceGroup.KIND_CPU)


def _about(version: ModelVersion) -> dict[str, str]:
    """Return what else a client may want to know, as texts; lists in JSON."""
    manifest = version.manifest
    found = {
        "task": manifest.task.value,
        "head": manifest.head.value,
        "default_draws": str(manifest.default_draws),
        "default_seed": str(manifest.default_seed),
        "calibration_id": "" if version.calibration is None else version.calibration.id,
    }
    if manifest.class_names:
        found["class_names"] = json.dumps(manifest.class_names)
    return found | {f"columns.{entry.name}": _columns(entry) for entry in manifest.inputs if entry.columns}


def _columns(entry: InputSignature) -> str:
    return json.dumps([column.model_dump() for column in entry.columns or ()])


def write_statistics(counted: Mapping[Served, Counts]) -> pb.ModelStatisticsResponse:
    """Write what models have done since the server started."""
    return pb.ModelStatisticsResponse(model_stats=[_write_counts(*each) for each in counted.items()])


def _write_counts(served: Served, counts: Counts) -> pb.ModelStatistics:
    return pb.ModelStatistics(
        name=served.name,
        version=str(served.version.version),
        last_inference=int(counts.last * 1e3),
        inference_count=counts.rows,
        execution_count=counts.passes,
        inference_stats=pb.InferStatistics(
            success=_write_duration(counts.success),
            fail=_write_duration(counts.failure),
            queue=_write_duration(counts.queue),
            compute_input=_write_duration(counts.reading),
            compute_infer=_write_duration(counts.compute),
            compute_output=_write_duration(counts.rest),
            cache_hit=pb.StatisticDuration(),
            cache_miss=pb.StatisticDuration(),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=rows,
                compute_input=_write_duration(Duration(passes.count)),
                compute_infer=_write_duration(passes),
                compute_output=_write_duration(Duration(passes.count)),
            )
            for rows, passes in sorted(counts.batches.items())
        ],
    )


def _write_duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=duration.nanoseconds)


def write_index(entries: Iterable[Entry], *, only_ready: bool) -> pb.RepositoryIndexResponse:
    """Write how every version stands, both its paths; `only_ready`: of those alone that are."""
    return pb.RepositoryIndexResponse(
        models=[
            pb.RepositoryIndexResponse.ModelIndex(
                name=entry.model + path, version=str(entry.version), state=_STATES[entry.state], reason=_reason(entry)
            )
            for entry in entries
            for path in ("", STANDARD)
            if entry.state is State.READY or not only_ready
        ]
    )


def _reason(entry: Entry) -> str:
    return entry.reason or ("unloaded" if entry.state is State.UNLOADED else "")


@contextlib.contextmanager
def naming() -> Iterator[None]:
    """Let refusals of the registry name the field as this protocol does."""
    try:
        yield
    except NotServed as error:
        raise NotServed("model_name" if error.field == "model" else error.field, error.given, error.accepted) from None


def check_repository(name: str, parameters: Mapping[str, pb.ModelRepositoryParameter] | None = None) -> None:
    """Refuse another repository than the server's, and what would change a model while it is loaded."""
    if name:
        raise InvalidArgument("repository_name", repr(name), "nothing: there is one repository, which has no name")
    for parameter in parameters or ():
        if parameter != "unload_dependents":  # nothing depends on another model here
            accepted = "none: a model is loaded as its folder has it"
            raise InvalidArgument(f"parameters.{parameter[:128]}", "a parameter of this name", accepted)


def read_loaded_name(name: str) -> str:
    """Read the name of a model to load or unload, both paths of it."""
    if name.endswith(STANDARD):
        model = name.removesuffix(STANDARD)
        raise InvalidArgument("model_name", repr(name), f"{model!r}: it is loaded and unloaded with both its paths")
    return name
