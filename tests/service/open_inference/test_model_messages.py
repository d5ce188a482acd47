"""What is served, as clients read it: honest metadata, a configuration without the rows, statistics, an index."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from google.protobuf.json_format import MessageToDict

from calibrations import calibration
from dubito_models.calibration import Selective
from dubito_models.errors import InvalidArgument
from dubito_models.manifest import ColumnEntry
from dubito_models.package import ModelVersion
from dubito_protos import open_inference_pb2 as pb
from dubito_service.errors import NotServed
from dubito_service.open_inference.messages import Served
from dubito_service.open_inference.model_messages import (
    check_repository,
    naming,
    read_loaded_name,
    write_config,
    write_index,
    write_metadata,
    write_statistics,
)
from dubito_service.open_inference.statistics import Counts, Duration
from dubito_service.versions.policy import Policy
from dubito_service.versions.registry import Entry, State

Packed = Callable[[str], ModelVersion]


def tensors(found: pb.ModelMetadataResponse) -> dict[str, tuple[str, list[int]]]:
    return {each.name: (each.datatype, list(each.shape)) for each in (*found.inputs, *found.outputs)}


def test_metadata_declares_what_every_answer_holds(packed: Packed) -> None:
    found = write_metadata(Served(packed("mlp"), False), [1, 3])
    assert (found.name, list(found.versions), found.platform) == ("mlp", ["1", "3"], "dubito_montecarlo")
    described = tensors(found)
    assert described["input"] == ("FP32", [-1, 6])
    assert described["probabilities"] == ("FP64", [-1, 4])
    assert described["label"] == ("INT64", [-1])
    assert described["stop_reason"] == ("BYTES", [-1])
    assert not {"prediction_set", "raw_draws", "abstain"} & set(described)
    assert not found.properties


def test_a_regression_declares_its_intervals_and_free_axes(packed: Packed) -> None:
    described = tensors(write_metadata(Served(packed("two-inputs"), False), [1]))
    assert described["tokens"] == ("INT64", [-1, -1])
    assert described["interval"] == ("FP64", [-1, 1, 2])
    assert "aleatoric_variance" not in described


def test_abstaining_is_declared_where_the_calibration_of_now_knows_when(
    packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    selective = Selective("predictive_entropy", 1.0, 0.1, 0.05, 0.5, 0.1)
    monkeypatch.setattr(packed("mlp"), "calibration", calibration(selective=selective))
    assert tensors(write_metadata(Served(packed("mlp"), False), [1]))["abstain"] == ("BOOL", [-1])


def test_the_standard_path_declares_the_networks_own_output_first(packed: Packed) -> None:
    version = packed("mlp")
    found = write_metadata(Served(version, True), [1])
    assert (found.name, found.platform) == ("mlp.standard", "onnxruntime_onnx")
    own, *decoded = found.outputs
    assert (own.name, own.datatype, list(own.shape)) == (version.standard.output.name, "FP32", [-1, 4])
    assert [output.name for output in decoded] == ["probabilities", "label"]


def test_a_configuration_has_batches_and_shapes_without_the_rows(packed: Packed) -> None:
    config = MessageToDict(
        write_config(Served(packed("mlp"), False), 100, Policy(2), 3), preserving_proto_field_name=True
    )
    assert config["max_batch_size"] == 100
    assert config["input"] == [{"name": "input", "data_type": "TYPE_FP32", "dims": ["6"]}]
    outputs = {output["name"]: output for output in config["output"]}
    assert outputs["probabilities"] == {"name": "probabilities", "data_type": "TYPE_FP64", "dims": ["4"]}
    assert outputs["label"] == {"name": "label", "data_type": "TYPE_INT64"}
    assert config["version_policy"] == {"latest": {"num_versions": 2}}
    assert config["instance_group"] == [{"name": "mlp_0", "count": 3, "kind": "KIND_CPU"}]
    assert config["dynamic_batching"] == {"priority_levels": "3", "default_priority_level": "2"}
    assert config["parameters"]["task"] == {"string_value": "classification"}
    assert "decoupled" not in config["model_transaction_policy"]


def test_a_model_whose_versions_are_pinned_says_which(packed: Packed) -> None:
    config = write_config(Served(packed("mlp"), False), 100, Policy(2, {"mlp": (1, 4)}), 1)
    assert list(config.version_policy.specific.versions) == [1, 4]


def test_a_configuration_tells_a_tables_columns(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    version = packed("two-inputs")
    columns = tuple(ColumnEntry(name=name, kind="number") for name in ("area", "rooms", "floor"))
    tokens, features = version.manifest.inputs
    manifest = version.manifest.model_copy(
        update={"inputs": (tokens, features.model_copy(update={"columns": columns}))}
    )
    monkeypatch.setattr(version, "manifest", manifest)
    config = write_config(Served(version, False), 100, Policy(), 1)
    told = json.loads(config.parameters["columns.features"].string_value)
    assert [column["name"] for column in told] == ["area", "rooms", "floor"]


def test_instances_are_the_threads_that_draw_each_gpu_by_its_number_and_one_session_of_the_standard_path(
    packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = packed("mlp")
    on_cpu = write_config(Served(version, True), 100, Policy(), 3).instance_group[0]
    assert (on_cpu.count, list(on_cpu.gpus)) == (1, [])
    engines = [SimpleNamespace(program=SimpleNamespace(device=torch.device("cuda", number))) for number in (0, 1)]
    monkeypatch.setattr(ModelVersion, "engines", tuple(engines))
    on_gpus = write_config(Served(version, False), 100, Policy(), 3).instance_group[0]
    assert (on_gpus.kind, on_gpus.count, list(on_gpus.gpus)) == (pb.ModelInstanceGroup.KIND_GPU, 1, [0, 1])


def test_statistics_have_equal_counts_for_every_part_of_an_answer(packed: Packed) -> None:
    counts = Counts(
        last=1.5, rows=30, passes=2, success=Duration(7, 700), failure=Duration(1, 5), queue=Duration(7, 100),
        reading=Duration(7, 50), compute=Duration(7, 500), rest=Duration(7, 20),
        batches={12: Duration(1, 80), 3: Duration(1, 40)},
    )  # fmt: skip
    [found] = write_statistics({Served(packed("mlp"), True): counts}).model_stats
    assert (found.name, found.version, found.last_inference) == ("mlp.standard", "1", 1500)
    assert (found.inference_count, found.execution_count) == (30, 2)
    stats = found.inference_stats
    parts = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
    assert [part.count for part in parts] == [stats.success.count] * 4 == [7] * 4
    assert [part.ns for part in parts] == [100, 50, 500, 20]
    assert (stats.fail.count, stats.cache_hit.count) == (1, 0)
    assert [(each.batch_size, each.compute_infer.count) for each in found.batch_stats] == [(3, 1), (12, 1)]


def test_the_index_tells_how_every_version_stands_and_why(packed: Packed) -> None:
    entries = [
        Entry("mlp", 1, packed("mlp")),
        Entry("mlp", 2, None, "checksum"),
        Entry("mlp", 3, None, "", State.LOADING),
        Entry("price", 1, None, "", State.UNLOADED),
    ]
    models = write_index(entries, only_ready=False).models
    assert [(each.name, each.version, each.state, each.reason) for each in models[::2]] == [
        ("mlp", "1", "READY", ""),
        ("mlp", "2", "UNAVAILABLE", "checksum"),
        ("mlp", "3", "LOADING", ""),
        ("price", "1", "UNAVAILABLE", "unloaded"),
    ]
    assert [each.name for each in write_index(entries, only_ready=True).models] == ["mlp", "mlp.standard"]


def test_another_repository_and_another_configuration_are_refused() -> None:
    check_repository("", {"unload_dependents": pb.ModelRepositoryParameter(bool_param=True)})
    with pytest.raises(InvalidArgument, match="repository_name"):
        check_repository("other")
    for name in ("config", "file:1/program.pt2", "x" * 10**5):
        with pytest.raises(InvalidArgument, match="as its folder has it"):
            check_repository("", {name: pb.ModelRepositoryParameter(bytes_param=b"")})


def test_a_model_is_loaded_with_both_its_paths() -> None:
    assert read_loaded_name("mlp") == "mlp"
    with pytest.raises(InvalidArgument, match="'mlp'"):
        read_loaded_name("mlp.standard")


def test_refusals_of_the_registry_name_the_field_of_this_protocol() -> None:
    with pytest.raises(NotServed, match="model_name: got 'x'; accepted: mlp"), naming():
        raise NotServed("model", "'x'", "mlp")
