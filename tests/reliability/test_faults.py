"""Faults of the machine under a server that is in use: what was acknowledged stays, and the rest is answered on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import resource
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import torch
from google.rpc.error_details_pb2 import BadRequest

from dubito_models.engine import Engine, Run
from dubito_models.package import ModelVersion
from dubito_models.repository import Repository
from dubito_models.sampling import SamplingSpec
from dubito_protos import uncertainty_pb2 as pb
from dubito_protos import uncertainty_pb2_grpc as pb_grpc
from dubito_service import server as composition
from dubito_service.errors import LoadFailed
from dubito_service.versions.loading import Loader
from service.wire import asking, detail, probabilities, rows

from .calling import observation, refusal
from .conftest import Start
from .frames import BEGINNINGS
from .serving import Serving, serving
from .trouble import FOLDER, doomed

Code = grpc.StatusCode
SECONDS = 60.0  # that a call may take at most; nothing here waits for it


def asked(data: int, coverage: bool = True) -> pb.PredictRequest:
    request = asking(3, data, max_draws=20)
    if coverage:
        request.output.coverage = 0.9
    return request


async def outcome(call: Any) -> Any:
    """The answer, or the status."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return error


def assert_right(reply: Any, data: int, version: ModelVersion) -> None:
    """Whether it is the version's own answer to `asked(data)`."""
    assert isinstance(reply, pb.PredictResponse), reply
    whole = version.predict(rows(3, data), SamplingSpec(max_draws=20)).answer.probabilities  # type: ignore[union-attr]
    np.testing.assert_allclose(probabilities(reply), whole, atol=1e-6)


# --- The process ---


class Observing(threading.Thread):
    """Asks and brings labels back, until the server is gone."""

    def __init__(self, address: str, place: int) -> None:
        super().__init__()
        self.address, self.place = address, place
        self.sent: dict[str, pb.ObserveRequest] = {}
        self.acknowledged: list[str] = []

    def run(self) -> None:
        with grpc.insecure_channel(self.address) as channel:
            stub = pb_grpc.UncertaintyServiceStub(channel)
            with contextlib.suppress(grpc.RpcError):
                for number in range(10**6):
                    reply = stub.Predict(asked(1000 * self.place + number), timeout=SECONDS)
                    self.sent[reply.prediction_id] = observation(reply)
                    assert not stub.Observe(self.sent[reply.prediction_id], timeout=SECONDS).duplicate
                    self.acknowledged.append(reply.prediction_id)


def stored(state: Path) -> dict[str, int]:
    """Rows by prediction, in the file itself."""
    with contextlib.closing(sqlite3.connect(state / "observations.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return dict(database.execute("SELECT prediction, count(*) FROM dubito_rows GROUP BY prediction"))


@dataclass(frozen=True)
class Survivor:
    """A server on the state of one that was killed, and who had called that one."""

    server: Serving
    state: Path
    callers: list[Observing]


@pytest.fixture(scope="module")
def survivor(one_model: ModelVersion, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Survivor]:
    repository, folder = one_model.folder.parent.parent, tmp_path_factory.mktemp("survivor")
    state = folder / "state"
    settings = folder / "dubito.toml"
    settings.write_text("queue_work = 1_000_000_000\n")  # so that nobody here is refused
    options = ("--state", str(state), "--metrics-port", "0", "--log-level", "info", "--config", str(settings))
    with serving(repository, folder, *options) as server:
        callers = [Observing(server.address, place) for place in range(6)]
        for caller in callers:
            caller.start()
        until(lambda: sum(len(caller.acknowledged) for caller in callers) >= 60)
        server.kill()
        for caller in callers:
            caller.join(SECONDS)
            assert not caller.is_alive()
    with serving(repository, folder, *options) as server:
        yield Survivor(server, state, callers)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_was_acknowledged_before_a_kill_is_there_once_and_the_next_server_answers(
    survivor: Survivor, one_model: ModelVersion
) -> None:
    with survivor.server.channel() as channel:
        stub = pb_grpc.UncertaintyServiceStub(channel)
        assert_right(stub.Predict(asked(1), timeout=SECONDS), 1, one_model)
        for caller in survivor.callers:
            for name, labels in caller.sent.items():
                again = stub.Observe(labels, timeout=SECONDS)
                assert again.duplicate or name not in caller.acknowledged
    found = stored(survivor.state)
    assert found == {name: 3 for caller in survivor.callers for name in caller.sent}


# --- The disk ---


def most_bytes_of_a_file(server: Serving, most: int) -> None:
    """Let no file grow beyond so many bytes, which to a process is what a full disk is."""
    psutil.Process(server.process.pid).rlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def test_a_full_disk_refuses_labels_and_nothing_else_and_loses_none(
    survivor: Survivor, one_model: ModelVersion
) -> None:
    with survivor.server.channel() as channel:
        stub = pb_grpc.UncertaintyServiceStub(channel)
        first, second = (stub.Predict(asked(data), timeout=SECONDS) for data in (1, 2))
        assert not stub.Observe(observation(first), timeout=SECONDS).duplicate
        most_bytes_of_a_file(survivor.server, 1)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Observe(observation(second), timeout=SECONDS)
        assert caught.value.code() is Code.UNAVAILABLE
        assert "store of observations" in str(caught.value.details())
        assert refusal(caught.value).retry_seconds  # type: ignore[arg-type]
        assert_right(stub.Predict(asked(3), timeout=SECONDS), 3, one_model)
        most_bytes_of_a_file(survivor.server, resource.RLIM_INFINITY)
        assert not stub.Observe(observation(second), timeout=SECONDS).duplicate
        assert stub.Observe(observation(first), timeout=SECONDS).duplicate
    found = stored(survivor.state)
    assert (found[first.prediction_id], found[second.prediction_id]) == (3, 3)


def test_a_thousand_half_open_and_a_thousand_cancelled_calls_leave_nothing_behind(
    survivor: Survivor, one_model: ModelVersion
) -> None:
    """Connections that say how HTTP/2 begins, some also that a call begins, and then nothing."""
    server = survivor.server
    with server.channel() as channel:
        stub = pb_grpc.UncertaintyServiceStub(channel)
        assert_right(stub.Predict(asked(1), timeout=SECONDS), 1, one_model)
        descriptors, resident = server.descriptors, server.resident_bytes
        for _ in range(4):
            half_open(server.address, 250)
            assert_right(stub.Predict(asked(2), timeout=SECONDS), 2, one_model)
        for _ in range(10):
            calls = [stub.Predict.future(asked(number), timeout=SECONDS) for number in range(100)]
            for call in calls:
                call.cancel()
        assert_right(stub.Predict(asked(3), timeout=SECONDS), 3, one_model)
        until(lambda: server.descriptors <= descriptors + 5)
        until(lambda: metric(server, "dubito_calls_in_flight") == 0)
        assert server.resident_bytes - resident < 64 * 2**20


def test_a_client_that_is_killed_with_a_hundred_calls_under_way_leaves_nothing_behind(
    survivor: Survivor, one_model: ModelVersion
) -> None:
    server = survivor.server
    rows, draws = 50, 10_000
    command = doomed(server.address, 100, rows, draws)
    with subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE) as client:
        try:
            until(lambda: metric(server, "dubito_queue_work") >= 50 * rows * draws)  # the first may be answered already
        finally:
            client.kill()
    until(lambda: metric(server, "dubito_calls_in_flight") == 0)
    until(lambda: metric(server, "dubito_queue_work") == 0)
    with server.channel() as channel:
        stub = pb_grpc.UncertaintyServiceStub(channel)
        assert_right(stub.Predict(asked(4), timeout=SECONDS), 4, one_model)


def half_open(address: str, count: int) -> None:
    """Open so many connections at once, and leave each without an end."""
    host, port = address.rsplit(":", 1)
    with contextlib.ExitStack() as stack:
        for number in range(count):
            raw = stack.enter_context(socket.create_connection((host, int(port)), timeout=SECONDS))
            raw.sendall(BEGINNINGS[number % len(BEGINNINGS)])


def metric(server: Serving, name: str) -> float:
    """A gauge without labels, as its metrics say."""
    [where] = re.findall(r"metrics address=(\S+)", server.log.read_text())[-1:]
    with urllib.request.urlopen(where, timeout=SECONDS) as page:
        [number] = re.findall(rf"^{name} (\S+)", page.read().decode(), re.MULTILINE)
    return float(number)


def copy_version(source: ModelVersion, folder: Path, number: int) -> Path:
    """Copy a version to another number; not yet its manifest, which commits it."""
    target = folder / source.name / str(number)
    shutil.copytree(source.folder, target, ignore=shutil.ignore_patterns("manifest.json", "calibrations"))
    return target


def commit(source: ModelVersion, target: Path) -> None:
    """Write a copy's manifest."""
    manifest = source.manifest.model_copy(update={"version": int(target.name)})
    (target / "manifest.json").write_text(manifest.model_dump_json())


async def test_a_version_is_corrupted_half_copied_and_deleted_while_it_is_served_and_no_request_fails(
    make: Start, packed: Callable[[str], ModelVersion], tmp_path: Path
) -> None:
    """Version 1 is damaged in place, 2 is copied without its end, 3 comes whole, and 1 and 2 are deleted."""
    source, folder = packed("mlp"), tmp_path / "repository"
    first = copy_version(source, folder, 1)
    commit(source, first)
    server = make(folder, newest_versions=1, repository_seconds=0.02)
    await server.start()
    failures: list[Any] = []
    served: list[int] = []
    ended = asyncio.Event()

    async def call(stub: Any) -> None:
        while not ended.is_set():
            reply = await outcome(stub.Predict(asked(len(served) % 5, coverage=False), timeout=SECONDS))
            failed = not isinstance(reply, pb.PredictResponse)
            (failures if failed else served).append(reply if failed else reply.version)

    async def served_more(version: int) -> None:
        served.clear()
        while served.count(version) < 20 and not failures:
            await asyncio.sleep(0.01)

    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = pb_grpc.UncertaintyServiceStub(channel)
        callers = [asyncio.create_task(call(stub)) for _ in range(4)]
        await served_more(1)
        program = first / "program.pt2"
        program.write_bytes(program.read_bytes()[:-100] + b"?" * 100)
        while not any(entry.reason for entry in server.registry.entries()):
            await asyncio.sleep(0.01)
        await served_more(1)
        second = copy_version(source, folder, 2)
        (second / "program.pt2").write_bytes((source.folder / "program.pt2").read_bytes()[:1000])
        commit(source, second)
        while 2 not in {entry.version for entry in server.registry.entries()}:
            await asyncio.sleep(0.01)
        await served_more(1)
        commit(source, copy_version(source, folder, 3))
        await served_more(3)
        shutil.rmtree(first)
        shutil.rmtree(second)
        await served_more(3)
        shutil.rmtree(folder / source.name / "3")
        await asyncio.sleep(0.2)  # some looks at a repository that is empty now
        await served_more(3)
        ended.set()
        await asyncio.gather(*callers)
    assert failures == []


def test_a_mutated_program_whose_checksum_is_right_is_refused_or_loaded_and_never_crashes(
    packed: Callable[[str], ModelVersion], tmp_path: Path
) -> None:
    """The manifest names the checksum of what lies there, so that the archive itself has to be refused.

    Every third is hit where the archive lists its files, which never goes unnoticed, the others anywhere.
    """
    source, random = packed("mlp"), np.random.default_rng(0)
    good = (source.folder / "program.pt2").read_bytes()
    loader, refused = Loader(Repository(tmp_path)), 0
    for number in range(1, 13):
        target, data = copy_version(source, tmp_path, number), bytearray(good)
        for place in random.integers(0 if number % 3 else len(data) - 22, len(data), 6):
            data[place] ^= int(random.integers(1, 256))
        (target / "program.pt2").write_bytes(data)
        commit(source, target)
        try:
            loader.load(source.name, number)
        except LoadFailed:
            refused += 1
    assert refused >= 4
    commit(source, copy_version(source, tmp_path, 13))
    np.testing.assert_array_equal(
        loader.load(source.name, 13).predict(rows(2)).answer.probabilities,  # type: ignore[union-attr]
        source.predict(rows(2)).answer.probabilities,  # type: ignore[union-attr]
    )


async def test_refused_requests_do_not_keep_a_version_that_is_unloaded(make: Start) -> None:
    """Not even until the next garbage collection, which a server that idles may not see for long."""
    server = make()
    await server.start()
    gc.disable()
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub: Any = pb_grpc.UncertaintyServiceStub(channel)
            shape, draws = asked(1), asked(2)
            shape.inputs[0].shape[1], draws.sampling.max_draws = 7, 0
            for request in (shape, draws):
                assert (await outcome(stub.Predict(request, timeout=SECONDS))).code() is Code.INVALID_ARGUMENT
                assert await ended(stub.PredictStream(request, timeout=SECONDS)) is Code.INVALID_ARGUMENT
            models: Any = pb_grpc.ModelServiceStub(channel)
            await models.UnloadModel(pb.UnloadModelRequest(model="mlp"), timeout=SECONDS)
    finally:
        gc.enable()


# --- The device ---


Advance = Callable[[Engine, Sequence[Run], int], list[Run]]


async def test_a_device_error_in_a_pass_fails_its_own_request_alone_with_an_id_and_no_more(
    make: Start, one_model: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 24 callers, 4 bring what the device chokes on, five rows, with whomever they share a pass."""
    server = make()
    await server.start()
    advance: Advance = Engine.advance

    def choking(engine: Engine, runs: Sequence[Run], draws: int) -> list[Run]:
        if any(run.rows == 5 for run in runs):
            raise RuntimeError("CUDA error: device-side assert triggered (a secret)")
        return advance(engine, runs, draws)

    monkeypatch.setattr(Engine, "advance", choking)
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = pb_grpc.UncertaintyServiceStub(channel)
        for _ in range(3):
            asks = [*(asking(5, i, max_draws=20) for i in range(4)), *map(asked, range(4, 24))]
            replies = await asyncio.gather(*(outcome(stub.Predict(request, timeout=SECONDS)) for request in asks))
            for reply in replies[:4]:
                assert reply.code() is Code.INTERNAL
                assert "secret" not in str(reply.details())
            for data, reply in enumerate(replies[4:], 4):
                assert_right(reply, data, one_model)
        monkeypatch.undo()
        assert_right(await outcome(stub.Predict(asked(0), timeout=SECONDS)), 0, one_model)
    assert server.device.queued_work == 0


async def test_a_pass_that_takes_too_much_memory_is_split_until_it_fits_and_nobody_notices(
    make: Start, one_model: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make()
    await server.start()
    advance: Advance = Engine.advance
    sizes: list[int] = []

    def small(engine: Engine, runs: Sequence[Run], draws: int) -> list[Run]:
        sizes.append(sum(run.rows for run in runs) * draws)
        if sizes[-1] > 3 * 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return advance(engine, runs, draws)

    monkeypatch.setattr(Engine, "advance", small)
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = pb_grpc.UncertaintyServiceStub(channel)
        replies = await asyncio.gather(*(outcome(stub.Predict(asked(i), timeout=SECONDS)) for i in range(40)))
        for data, reply in enumerate(replies):
            assert_right(reply, data, one_model)
    assert max(sizes) > 3 * 20


# --- Clients ---


async def test_streams_that_nobody_reads_hold_little_delay_nobody_and_are_let_go(
    make: Start, one_model: ModelVersion
) -> None:
    """Each would bring 2,000 draws of 100 rows, several times over."""
    server = make(idle_seconds=1.0)
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as slow, grpc.aio.insecure_channel(server.address) as other:
        stub: Any = pb_grpc.UncertaintyServiceStub(slow)
        request = asking(100, 7, max_draws=2000)
        request.sampling.raw_draws = True
        streams = [stub.PredictStream(request, timeout=SECONDS) for _ in range(8)]
        for stream in streams:
            assert await stream.read() is not grpc.aio.EOF
        quick: Any = pb_grpc.UncertaintyServiceStub(other)
        for data in range(5):
            assert_right(await outcome(quick.Predict(asked(data), timeout=SECONDS)), data, one_model)
        while server.device.queued_work:
            await asyncio.sleep(0.01)
        for stream in streams:
            assert await ended(stream) is Code.DEADLINE_EXCEEDED


async def ended(stream: Any) -> grpc.StatusCode:
    """Read to the end, and return the status there."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await stream.read() is not grpc.aio.EOF:
            pass
    code: grpc.StatusCode = await stream.code()
    return code


# --- Clocks ---


async def test_a_wall_clock_that_jumps_ends_no_call_and_labels_are_taken_once_it_is_back(
    make: Start, one_model: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Years ahead and back: deadlines are kept by a clock that cannot be set; receipts alone have a date."""
    ahead = [0.0]

    class Jumping:
        """The module `time`, but for the wall clock."""

        monotonic = staticmethod(time.monotonic)

        @staticmethod
        def time() -> float:
            return time.time() + ahead[0]

    monkeypatch.setattr(composition, "time", Jumping)
    server = make(state=str(tmp_path / "state"))
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = pb_grpc.UncertaintyServiceStub(channel)
        first = await stub.Predict(asked(1), timeout=SECONDS)
        for ahead[0] in (3e8, -3e8):
            replies = await asyncio.gather(*(outcome(stub.Predict(asked(i), timeout=SECONDS)) for i in range(8)))
            for data, reply in enumerate(replies):
                assert_right(reply, data, one_model)
            refused = await outcome(stub.Observe(observation(first), timeout=SECONDS))
            assert detail(refused, BadRequest).field_violations[0].field == "receipt"
            assert not (await stub.Observe(observation(replies[0]), timeout=SECONDS)).duplicate
        ahead[0] = 0.0
        assert not (await stub.Observe(observation(first), timeout=SECONDS)).duplicate
