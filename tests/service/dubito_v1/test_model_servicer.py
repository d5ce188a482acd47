"""ModelService: loads and unloads end with what came of them, in the words of the protocol."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from dubito_models.errors import DubitoError
from dubito_models.package import ModelVersion
from dubito_models.repository import Repository
from dubito_protos import uncertainty_pb2 as pb
from dubito_service.asking import RequestLimits
from dubito_service.dubito_v1.model_servicer import ModelServicer
from dubito_service.errors import refusal
from dubito_service.versions.loading import Loader
from dubito_service.versions.policy import ModelControl, Policy
from dubito_service.versions.registry import Registry

CONTEXT: Any = None


@pytest.fixture
def folder(packed: Callable[[str], ModelVersion], tmp_path: Path) -> Path:
    """A repository of a good version and a bad one."""
    source = packed("mlp")
    for number in (1, 2):
        shutil.copytree(source.folder, tmp_path / "mlp" / str(number))
        manifest = source.manifest.model_copy(update={"version": number})
        (tmp_path / "mlp" / str(number) / "manifest.json").write_text(manifest.model_dump_json())
    (tmp_path / "mlp" / "2" / "program.pt2").write_bytes(b"?")
    return tmp_path


@pytest.fixture
async def servicer(folder: Path) -> AsyncIterator[ModelServicer]:
    registry = Registry((), Loader(Repository(folder)), Policy(control=ModelControl.EXPLICIT))
    await registry.open()
    yield ModelServicer(registry, RequestLimits(100, 100, 1000, 10**6))
    assert await registry.close(60)


async def states(servicer: ModelServicer) -> dict[int, int]:
    listed = await servicer.ListModels(pb.ListModelsRequest(), CONTEXT)
    return {status.version: status.state for status in listed.models}


async def test_a_version_is_loaded_and_unloaded_and_its_state_listed(servicer: ModelServicer) -> None:
    assert await states(servicer) == {1: pb.MODEL_STATE_UNLOADED, 2: pb.MODEL_STATE_UNLOADED}
    reply = await servicer.LoadModel(pb.LoadModelRequest(model="mlp", version=1), CONTEXT)
    assert reply.status == pb.ModelStatus(model="mlp", version=1, state=pb.MODEL_STATE_READY, task="classification")
    assert (await states(servicer))[1] == pb.MODEL_STATE_READY
    assert await servicer.UnloadModel(pb.UnloadModelRequest(model="mlp"), CONTEXT) == pb.UnloadModelResponse()
    assert await states(servicer) == {1: pb.MODEL_STATE_UNLOADED, 2: pb.MODEL_STATE_UNLOADED}


@pytest.mark.parametrize(
    ("request_", "code", "said"),
    [
        (pb.LoadModelRequest(model="mlp", version=2), "FAILED_PRECONDITION", "program.pt2: its checksum"),
        (pb.LoadModelRequest(model="mlp"), "FAILED_PRECONDITION", "mlp version 2 failed to load"),
        (pb.LoadModelRequest(model="mlp", version=7), "NOT_FOUND", "got 7; accepted: 1, 2"),
        (pb.LoadModelRequest(model="nlp"), "NOT_FOUND", "got 'nlp'; accepted: mlp"),
        (pb.LoadModelRequest(), "NOT_FOUND", "got ''; accepted: mlp"),
        (pb.UnloadModelRequest(model="nlp"), "NOT_FOUND", "got 'nlp'"),
        (pb.UnloadModelRequest(model="mlp", version=0), "NOT_FOUND", "got 0"),
    ],
    ids=["bad", "newest bad", "no such version", "no such model", "no name", "unload no model", "unload no version"],
)
async def test_what_cannot_be_loaded_or_unloaded_is_refused_with_the_reason(
    servicer: ModelServicer, request_: Any, code: str, said: str
) -> None:
    call = servicer.LoadModel if isinstance(request_, pb.LoadModelRequest) else servicer.UnloadModel
    with pytest.raises(DubitoError) as caught:
        await call(request_, CONTEXT)
    found = refusal(caught.value)
    assert found is not None
    assert found.code.name == code
    assert said in found.message


async def test_without_control_a_load_is_refused_with_the_setting(folder: Path) -> None:
    registry = Registry((), Loader(Repository(folder)), Policy(control=ModelControl.NONE))
    servicer = ModelServicer(registry, RequestLimits(100, 100, 1000, 10**6))
    with pytest.raises(DubitoError, match="--model-control") as caught:
        await servicer.LoadModel(pb.LoadModelRequest(model="mlp"), CONTEXT)
    found = refusal(caught.value)
    assert found is not None
    assert found.code.name == "FAILED_PRECONDITION"
