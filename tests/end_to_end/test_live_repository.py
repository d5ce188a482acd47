"""A repository under a running server: versions come and go, and no request fails for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dubito_models.errors import InvalidArgument
from dubito_models.package import ModelVersion
from dubito_models.repository import Repository
from dubito_protos import uncertainty_pb2 as pb
from dubito_protos import uncertainty_pb2_grpc as pb_grpc
from dubito_service.command import serve
from dubito_service.errors import NotServed
from dubito_service.server import Server
from dubito_service.settings import Settings
from service.wire import asking, probabilities

Packed = Callable[[str], ModelVersion]
Health = health_pb2.HealthCheckResponse
SECONDS = 60.0  # that a call may take at most; nothing here waits for it
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def copy_version(source: ModelVersion, target: Path) -> None:
    """Copy a version to another number, as an operator does it: beside the others, then by one rename."""
    staging = target.with_name(f".{target.name}")
    shutil.copytree(source.folder, staging)
    manifest = source.manifest.model_copy(update={"version": int(target.name)})
    (staging / "manifest.json").write_text(manifest.model_dump_json())
    staging.rename(target)


@pytest.fixture
def folder(packed: Packed, tmp_path: Path) -> Path:
    """A repository of one version."""
    (tmp_path / "repository" / "mlp").mkdir(parents=True)
    copy_version(packed("mlp"), tmp_path / "repository" / "mlp" / "1")
    return tmp_path / "repository"


Start = Callable[..., Server]


@pytest_asyncio.fixture
async def make() -> AsyncIterator[Start]:
    """Makes servers in this process; each is stopped when the test ends."""
    servers: list[Server] = []

    def make(repository: Path | str, **settings: Any) -> Server:
        servers.append(Server(Settings(repository=repository, port=0, **settings)))
        return servers[-1]

    yield make
    for server in servers:
        assert await server.stop(0.0)


async def health_of(channel: grpc.aio.Channel, name: str) -> int:
    reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))
    status: int = reply.status
    return status


async def test_versions_are_loaded_switched_and_unloaded_under_traffic_and_no_request_fails(
    make: Start, folder: Path, packed: Packed
) -> None:
    """Callers ask for the newest all along; each answer is of a version that was served, by one and the same masks."""
    server = make(folder, newest_versions=1, repository_seconds=0.01)
    await server.start()
    versions: list[int] = []
    answers: list[Any] = []
    ended = asyncio.Event()

    async def call(stub: Any) -> None:
        while not ended.is_set():
            reply = await stub.Predict(asking(2, max_draws=20))
            versions.append(reply.version)
            answers.append(probabilities(reply))

    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = pb_grpc.UncertaintyServiceStub(channel)
        models: Any = pb_grpc.ModelServiceStub(channel)
        callers = [asyncio.create_task(call(stub)) for _ in range(4)]
        for number in (2, 3, 4):
            copy_version(packed("mlp"), folder / "mlp" / str(number))
            while number not in versions:
                await asyncio.sleep(0.01)
                assert not any(caller.done() for caller in callers)
        await models.LoadModel(pb.LoadModelRequest(model="mlp", version=1))
        await models.UnloadModel(pb.UnloadModelRequest(model="mlp", version=1))
        shutil.rmtree(folder / "mlp" / "4")
        seen = len(versions)
        while 3 not in versions[seen:]:
            await asyncio.sleep(0.01)
        ended.set()
        await asyncio.gather(*callers)
    assert set(versions) <= {1, 2, 3, 4}
    for answer in answers:
        np.testing.assert_allclose(answer, answers[0], rtol=0, atol=1e-6)


async def test_a_repository_at_a_url_is_served_and_followed_with_its_calibrations(
    make: Start, packed: Packed, tmp_path: Path, folder: Path
) -> None:
    store, root = MemoryFileSystem(), f"/{uuid.uuid4().hex}"
    store.put(str(folder), root, recursive=True)
    try:
        server = make(f"memory:/{root}", cache=tmp_path / "cache", repository_seconds=0.01, calibration_seconds=0.01)
        await server.start()
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub: Any = pb_grpc.UncertaintyServiceStub(channel)
            before = await stub.Predict(asking(3))
            expected: Any = packed("mlp").predict(np.asarray(_rows(3))).answer
            np.testing.assert_allclose(probabilities(before), expected.probabilities, rtol=0, atol=1e-6)
            local = Repository(folder).load("mlp")
            found = local.calibrate(_rows(200), np.arange(200) % 4)
            store.put(str(local.folder / "calibrations"), f"{root}/mlp/1/calibrations", recursive=True)
            while (await stub.Predict(asking(3))).calibration_id != found.id:
                await asyncio.sleep(0.01)
            copy_version(packed("mlp"), folder / "mlp" / "2")
            store.put(str(folder / "mlp" / "2"), f"{root}/mlp/2", recursive=True)
            while (await stub.Predict(asking(3))).version != 2:
                await asyncio.sleep(0.01)
    finally:
        store.rm(root, recursive=True)


def _rows(count: int) -> Any:
    return np.random.default_rng(0).normal(size=(count, 6)).astype(np.float32)


async def test_while_versions_are_loaded_the_server_lives_and_is_not_ready_and_callers_are_told_to_come_back(
    make: Start, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, gate, load = threading.Event(), threading.Event(), Repository.load

    def slow(self: Repository, *arguments: Any, **options: Any) -> ModelVersion:
        entered.set()
        assert gate.wait(60)
        return load(self, *arguments, **options)

    monkeypatch.setattr(Repository, "load", slow)
    server = make(folder)
    starting = asyncio.create_task(server.start())
    assert await asyncio.to_thread(entered.wait, 60)
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = pb_grpc.UncertaintyServiceStub(channel)
        models: Any = pb_grpc.ModelServiceStub(channel)
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="mlp"))
        states = aiter(watching)
        assert (await anext(states)).status == Health.NOT_SERVING
        assert await health_of(channel, "") == Health.NOT_SERVING
        assert await health_of(channel, "grpc.health.v1.Health") == Health.SERVING
        listed = await models.ListModels(pb.ListModelsRequest())
        assert [status.state for status in listed.models] == [pb.MODEL_STATE_LOADING]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Predict(asking())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        gate.set()
        await starting
        assert (await anext(states)).status == Health.SERVING
        assert await health_of(channel, "") == Health.SERVING
        assert (await stub.Predict(asking())).version == 1
        await models.UnloadModel(pb.UnloadModelRequest(model="mlp"))
        assert (await anext(states)).status == Health.NOT_SERVING
        assert await health_of(channel, "") == Health.SERVING
        watching.cancel()


async def test_a_request_that_is_under_way_ends_on_its_version_and_the_unload_waits_for_it(
    make: Start, folder: Path
) -> None:
    server = make(folder)
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = pb_grpc.UncertaintyServiceStub(channel)
        models: Any = pb_grpc.ModelServiceStub(channel)
        stream = stub.PredictStream(asking(100, max_draws=9000))
        replies = aiter(stream)
        assert not (await anext(replies)).final
        unloading = asyncio.ensure_future(models.UnloadModel(pb.UnloadModelRequest(model="mlp")))
        while await health_of(channel, "mlp") == Health.SERVING:
            await asyncio.sleep(0.001)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Predict(asking())
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert not unloading.done()
        last = [reply async for reply in replies][-1]
        assert last.final
        assert set(last.stop_reason) == {pb.STOP_REASON_MAX_DRAWS}
        await unloading


def command(*arguments: str, before: str = "") -> list[str]:
    return [sys.executable, "-c", f"{before}\nfrom dubito_service.command import serve; serve()", *arguments]


@contextlib.contextmanager
def process_of(*arguments: str, before: str = "") -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "DUBITO_LOG_LEVEL": "info"}
    with subprocess.Popen(
        command(*arguments, "--port", "0", before=before), env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def test_sigterm_while_a_version_is_loaded_ends_the_server_in_good_order(folder: Path) -> None:
    endless = (
        "import threading\nfrom dubito_models.repository import Repository\n"
        "Repository.load = lambda *given, **options: print('loads', flush=True) or threading.Event().wait()"
    )
    with process_of("--repository", str(folder), before=endless) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loads\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
        assert process.stdout.read() == ""  # it was never ready


def test_pins_and_control_are_flags(folder: Path, packed: Packed) -> None:
    for number in (2, 3):
        copy_version(packed("mlp"), folder / "mlp" / str(number))
    flags = ["--model-control", "explicit", "--load", "mlp", "--pin", "mlp=1,3", "--pin", "other=2"]
    with process_of("--repository", str(folder), *flags) as process:
        assert process.stdout is not None
        assert "dubito serves mlp/1, mlp/3 on" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--pin", "mlp"], "MODEL=VERSION[,VERSION]"),
        (["--pin", "mlp=0"], "--pin.mlp.0: got 0"),
        (["--model-control", "magic"], "--model-control"),
        (["--repository-seconds", "-1"], "--repository-seconds"),
    ],
    ids=["a pin without a number", "a pin of none", "no such control", "no such time"],
)
def test_a_flag_that_makes_no_sense_is_refused_in_a_line(flags: list[str], said: str, folder: Path) -> None:
    done = CliRunner().invoke(serve, ["--repository", str(folder), *flags, "--print-config"])
    assert done.exit_code == 2
    assert said in done.output


async def test_what_cannot_be_served_is_refused_by_name(make: Start, folder: Path) -> None:
    with pytest.raises(InvalidArgument, match="repository: got nowhere://bucket"):
        make("nowhere://bucket")
    with pytest.raises(InvalidArgument, match="--model-control explicit"):
        make(folder, load=("mlp",))
    server = make(folder, load=("mlp", "nlp"), model_control="explicit")
    with pytest.raises(NotServed, match="'nlp'; accepted: mlp"):
        await server.start()


def test_resident_memory_stays_flat_over_reloads() -> None:
    """A version that were kept would cost 32 MiB a reload, both its paths; one or two may be on their way out."""
    script = [sys.executable, str(BENCHMARKS / "reloading.py"), "--reloads", "20"]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    resident = json.loads(done.stdout)["resident_mib"]
    assert resident["20"] - resident["5"] < 100
