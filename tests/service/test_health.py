"""Health: each name has its state, and every watcher hears of each change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from dubito_models.package import ModelVersion
from dubito_service.errors import NotServed
from dubito_service.health import SERVICE, Health
from dubito_service.reports import WorkerReport
from dubito_service.versions.registry import Entry, Registry, State

Response = health_pb2.HealthCheckResponse
CONTEXT: Any = None
NAME = "dubito.v1.UncertaintyService"


class Changing(Registry):
    """A registry that a test changes by hand."""

    def put(self, entry: Entry) -> None:
        self._put(entry)

    def drop(self, model: str, number: int) -> None:
        self._drop(model, [number])

    def open_by_hand(self) -> None:
        self.opened = True
        self._tell()


@pytest.fixture
def registry() -> Changing:
    return Changing([Entry("bad", 1, None, "checksum")])


@dataclass
class Workers:
    """What the workers are said to do."""

    answering: bool = True
    live: bool = True

    def health(self, registry: Registry) -> Health:
        return Health([NAME], registry, lambda: self.answering, lambda: self.live)


@pytest.fixture
def workers() -> Workers:
    return Workers()


@pytest.fixture
def health(registry: Changing, workers: Workers) -> Health:
    return workers.health(registry)


async def check(health: Health, name: str) -> int:
    reply = await health.Check(health_pb2.HealthCheckRequest(service=name), CONTEXT)
    return reply.status


def watch(health: Health, name: str) -> AsyncIterator[Response]:
    return health.Watch(health_pb2.HealthCheckRequest(service=name), CONTEXT)


async def test_a_model_is_serving_while_a_version_of_it_is_ready(
    health: Health, registry: Changing, packed: Callable[[str], ModelVersion]
) -> None:
    assert await check(health, "bad") == Response.NOT_SERVING
    registry.put(Entry("mlp", 1, None, "", State.LOADING))
    assert await check(health, "mlp") == Response.NOT_SERVING
    registry.put(Entry("mlp", 1, packed("mlp")))
    assert await check(health, "mlp") == Response.SERVING
    registry.put(Entry("mlp", 2, None, "checksum"))
    assert await check(health, "mlp") == Response.SERVING
    with pytest.raises(NotServed, match=r"'nlp'; accepted: bad, dubito.v1.UncertaintyService, grpc.health.v1.Health"):
        await check(health, "nlp")


async def test_every_watcher_of_a_model_hears_when_it_comes_and_goes(
    health: Health, registry: Changing, packed: Callable[[str], ModelVersion]
) -> None:
    watchers = [watch(health, "mlp") for _ in range(3)]

    async def said() -> set[int]:
        return {(await anext(watcher)).status for watcher in watchers}

    assert await said() == {Response.SERVICE_UNKNOWN}
    registry.put(Entry("mlp", 1, None, "", State.LOADING))
    assert await said() == {Response.NOT_SERVING}
    registry.put(Entry("mlp", 1, packed("mlp")))
    assert await said() == {Response.SERVING}
    registry.put(Entry("mlp", 2, None, "checksum"))  # changes nothing for them
    waiting = [asyncio.ensure_future(anext(watcher)) for watcher in watchers]
    await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)
    registry.drop("mlp", 2)
    registry.drop("mlp", 1)
    assert {(await each).status for each in waiting} == {Response.SERVICE_UNKNOWN}


async def test_the_server_is_serving_from_when_its_versions_are_loaded_until_it_stops_and_alive_all_along(
    packed: Callable[[str], ModelVersion], workers: Workers
) -> None:
    registry = Changing([Entry("mlp", 1, packed("mlp"))])
    registry.opened = False
    health = workers.health(registry)
    watcher = watch(health, "")
    assert (await anext(watcher)).status == Response.NOT_SERVING
    assert await check(health, NAME) == Response.NOT_SERVING
    assert await check(health, SERVICE) == Response.SERVING
    registry.open_by_hand()
    assert (await anext(watcher)).status == await check(health, NAME) == Response.SERVING
    workers.answering = False
    health.wake()
    assert (await anext(watcher)).status == Response.NOT_SERVING
    assert await check(health, "mlp") == Response.NOT_SERVING
    assert await check(health, SERVICE) == Response.SERVING


async def test_watchers_hear_when_a_worker_dies_is_there_again_and_is_lost(
    health: Health, registry: Changing, workers: Workers, packed: Callable[[str], ModelVersion]
) -> None:
    registry.put(Entry("mlp", 1, packed("mlp")))
    ready = [watch(health, name) for name in ("", NAME, "mlp")]
    alive = watch(health, SERVICE)

    async def said() -> set[int]:
        return {(await anext(watcher)).status for watcher in ready}

    assert await said() == {(await anext(alive)).status} == {Response.SERVING}
    for back in (False, True, False):
        workers.answering = back
        health.watch(WorkerReport(back))
        assert await said() == {Response.SERVING if back else Response.NOT_SERVING}
    workers.live = False
    health.watch(WorkerReport(False))
    assert (await anext(alive)).status == await check(health, SERVICE) == Response.NOT_SERVING


async def test_a_server_with_an_empty_repository_is_serving(workers: Workers) -> None:
    assert await check(workers.health(Registry()), "") == Response.SERVING
