"""The Open Inference Protocol over a real socket: no message, however bad, ends in anything but an honest status."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from dubito_models.package import ModelVersion
from dubito_protos import open_inference_pb2 as pb
from dubito_protos import open_inference_pb2_grpc as pb_grpc
from houses import house_rows, pack_houses, write_houses
from served import served
from service.open_inference.wire import arrays, asking, parameter, put, said
from service.wire import rows

Code = grpc.StatusCode
Break = Callable[[pb.ModelInferRequest], object]
SECONDS = 60.0  # that a call may take at most; nothing here waits for it
SERVICE = "inference.GRPCInferenceService"


@pytest.fixture(scope="module")
def channel(packed: Callable[[str], ModelVersion], tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    folder = tmp_path_factory.mktemp("open_inference")
    shutil.copytree(packed("mlp").folder, folder / "repository" / "mlp" / "1")
    pack_houses(folder / "repository", write_houses(folder / "houses.csv"))
    with served(folder) as address, grpc.insecure_channel(address) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> pb_grpc.GRPCInferenceServiceStub:
    return pb_grpc.GRPCInferenceServiceStub(channel)


def test_reflection_lists_the_service(channel: grpc.Channel) -> None:
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    [reply] = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="*")]))
    assert SERVICE in {service.name for service in reply.list_services_response.service}


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_compressed_request_is_answered_as_any_other(
    compression: grpc.Compression, stub: pb_grpc.GRPCInferenceServiceStub
) -> None:
    plain = stub.ModelInfer(asking(), timeout=SECONDS)
    pressed = stub.ModelInfer(asking(), timeout=SECONDS, compression=compression)
    np.testing.assert_allclose(arrays(pressed)["probabilities"], arrays(plain)["probabilities"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "RepositoryModelLoad", "ModelStatistics"])
def test_bytes_that_are_no_message_are_the_callers_fault(method: str, channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE}/{method}")(b"\xff\xff\xff\x01", timeout=SECONDS)
    assert caught.value.code() is Code.INVALID_ARGUMENT


def test_fields_that_are_not_known_are_passed_over(channel: grpc.Channel) -> None:
    unknown = b"\xfa\x3f\x03abc"  # field 1023
    raw = channel.unary_unary(f"/{SERVICE}/ModelInfer")(asking().SerializeToString() + unknown, timeout=SECONDS)
    assert pb.ModelInferResponse.FromString(raw).model_name == "mlp"


def test_a_message_over_the_limit_is_refused_and_the_next_one_answered(
    stub: pb_grpc.GRPCInferenceServiceStub,
) -> None:
    huge = asking()
    huge.raw_input_contents[0] = bytes(33 * 2**20)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(huge, timeout=SECONDS)
    assert caught.value.code() is Code.RESOURCE_EXHAUSTED
    stub.ModelInfer(asking(), timeout=SECONDS)


def many_parameters(request: pb.ModelInferRequest) -> None:
    for number in range(10_000):
        request.parameters[f"p{number}"].CopyFrom(parameter(number))


BAD: dict[str, tuple[Break, Code]] = {
    "a name of 1 MB": (lambda r: setattr(r, "model_name", "m" * 10**6), Code.NOT_FOUND),
    "a name with NUL and newlines": (lambda r: setattr(r, "model_name", "m\x00\n\r"), Code.NOT_FOUND),
    "an input's name of 1 MB": (lambda r: setattr(r.inputs[0], "name", "é" * 500_000), Code.INVALID_ARGUMENT),
    "an output's name of 1 MB": (lambda r: r.outputs.add(name="日" * 300_000), Code.INVALID_ARGUMENT),
    "a version of 1 MB": (lambda r: setattr(r, "model_version", "9" * 10**6), Code.INVALID_ARGUMENT),
    "10,000 parameters": (many_parameters, Code.INVALID_ARGUMENT),
    "10,000 outputs": (lambda r: r.outputs.extend(r.outputs.add() for _ in range(10_000)), Code.INVALID_ARGUMENT),
    "dims that overflow": (lambda r: r.inputs[0].shape.__setitem__(1, 2**60 + 2), Code.INVALID_ARGUMENT),
    "1,000 dims": (lambda r: r.inputs[0].shape.extend([1] * 998), Code.INVALID_ARGUMENT),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_gets_an_honest_status_and_spoils_nothing(
    case: str, stub: pb_grpc.GRPCInferenceServiceStub
) -> None:
    harm, code = BAD[case]
    request = asking()
    harm(request)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=SECONDS)
    assert caught.value.code() is code, caught.value.details()
    [reply] = stub.ModelStreamInfer(iter([request]), timeout=SECONDS)
    assert reply.error_message
    stub.ModelInfer(asking(), timeout=SECONDS)


def test_an_id_comes_back_as_it_was(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    for name in ("", "日\n\x00", "i" * 10**6):
        request = asking()
        request.id = name
        assert stub.ModelInfer(request, timeout=SECONDS).id == name


def test_a_table_of_texts_is_answered_as_its_columns_are(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    names = ["area", "rooms", "city", "garden", "style"]
    cells = np.array([row[1:6] for row in house_rows(20, seed=3)], object)
    whole = pb.ModelInferRequest(model_name="houses")
    put(whole, "inputs", cells)
    columns = pb.ModelInferRequest(model_name="houses")
    for at, name in reversed(list(enumerate(names))):
        put(columns, name, cells[:, at : at + 1])
    first, second = (arrays(stub.ModelInfer(request, timeout=SECONDS)) for request in (whole, columns))
    assert first["mean"].shape == (20, 1)
    assert (first["aleatoric_variance"] > 0).all()
    np.testing.assert_allclose(first["mean"], second["mean"], rtol=1e-6)


def test_a_whole_session_of_a_client(stub: pb_grpc.GRPCInferenceServiceStub) -> None:
    described = stub.ModelMetadata(pb.ModelMetadataRequest(name="mlp"), timeout=SECONDS)
    configured = stub.ModelConfig(pb.ModelConfigRequest(name="mlp"), timeout=SECONDS).config
    assert configured.max_batch_size > 0
    assert [list(each.dims) for each in configured.input] == [list(each.shape)[1:] for each in described.inputs]
    replies = list(stub.ModelStreamInfer(iter([asking(seed=number) for number in range(5)]), timeout=SECONDS))
    assert {said(reply.infer_response)["seed"] for reply in replies} == set("01234")
    standard = arrays(stub.ModelInfer(asking(model="mlp.standard"), timeout=SECONDS))
    assert standard["probabilities"].shape == (len(rows(3)), 4)
    [counted] = stub.ModelStatistics(pb.ModelStatisticsRequest(name="mlp.standard"), timeout=SECONDS).model_stats
    assert counted.inference_count >= 3
    states = stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=SECONDS).models
    assert {(each.name, each.state) for each in states} >= {("mlp", "READY"), ("houses.standard", "READY")}
