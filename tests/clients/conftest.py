"""Fixtures of the client's tests."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

from dubito_protos import uncertainty_pb2_grpc as services

from .fakes import Fake


@pytest.fixture
def fake() -> Iterator[Fake]:
    """A running fake server; `fake.target` is its address, `fake.secure_target` the one that wants credentials."""
    servicer = Fake()
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    services.add_UncertaintyServiceServicer_to_server(servicer, server)
    services.add_ModelServiceServicer_to_server(servicer, server)
    servicer.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    secure = server.add_secure_port("127.0.0.1:0", grpc.local_server_credentials())
    servicer.secure_target = f"127.0.0.1:{secure}"
    server.start()
    yield servicer
    servicer.released.set()
    server.stop(None).wait()
