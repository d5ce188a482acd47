"""Deadlines: whatever a client is asked, it waits no longer than its timeout for a server that says nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest

from dubito_client import AsyncClient, Client, DeadlineExceeded

ROWS = np.zeros((3, 4), np.float32)
LABELS = np.zeros(3, np.int64)
SECONDS = 0.3
VERBS: dict[str, Callable[[Any], Any]] = {
    "predict": lambda client: client.predict("digits", ROWS, timeout=SECONDS),
    "predict_stream": lambda client: client.predict_stream("digits", ROWS, timeout=SECONDS),
    "predict_many": lambda client: client.predict_many("digits", [ROWS], timeout=SECONDS),
    "evaluate": lambda client: client.evaluate("digits", ROWS, timeout=SECONDS),
    "observe": lambda client: client.observe("ab" * 16, LABELS, receipt=b"r", timeout=SECONDS),
    "models": lambda client: client.models(timeout=SECONDS),
    "model": lambda client: client.model("digits", timeout=SECONDS),
    "load": lambda client: client.load("digits", timeout=SECONDS),
    "unload": lambda client: client.unload("digits", timeout=SECONDS),
}


class Silent(grpc.GenericRpcHandler):
    """Takes every call, and answers none before the test is over."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        def wait(_: object, context: grpc.ServicerContext) -> Iterator[bytes]:
            self.over.wait(60)
            yield from ()

        return grpc.stream_stream_rpc_method_handler(wait)


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that says nothing."""
    handler = Silent()
    server = grpc.server(futures.ThreadPoolExecutor(4), [handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    handler.over.set()
    server.stop(None).wait()


def test_these_are_all_the_verbs() -> None:
    verbs = {name for name in dir(Client) if not name.startswith("_")}
    assert verbs == {name for name in dir(AsyncClient) if not name.startswith("_")}
    assert verbs - {"close", "ready"} == set(VERBS)


def ask(address: str, verb: str) -> list[Any]:
    """Ask by the blocking client; returns what is found, one or several."""
    with Client(address) as client:
        found = VERBS[verb](client)
        return list(found) if isinstance(found, Iterator) else [found]


def ask_async(address: str, verb: str) -> list[Any]:
    """Ask by the asyncio client."""

    async def run() -> list[Any]:
        async with AsyncClient(address) as client:
            found = VERBS[verb](client)
            return [each async for each in found] if hasattr(found, "__aiter__") else [await found]

    return asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("asking", [ask, ask_async])
def test_every_verb_of_either_client_ends_at_its_deadline(
    silent: str, verb: str, asking: Callable[[str, str], list[Any]]
) -> None:
    with pytest.raises(DeadlineExceeded, match=r"0\.3 s"):
        asking(silent, verb)


def test_who_waits_for_a_server_to_be_ready_is_told_that_it_is_not(silent: str) -> None:
    with Client(silent) as client:
        assert client.ready(SECONDS) is False


async def test_so_is_who_awaits_it(silent: str) -> None:
    async with AsyncClient(silent) as client:
        assert await client.ready(SECONDS) is False
