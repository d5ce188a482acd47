"""Fixtures: a repository of one calibrated model, and servers in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from dubito_models.package import ModelVersion
from dubito_service.server import Server
from dubito_service.settings import Settings
from observed import calibrated

Start = Callable[..., Server]


@pytest.fixture(scope="session")
def one_model(packed: Callable[[str], ModelVersion], tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    """The "mlp" case, calibrated, in a repository of its own."""
    return calibrated(packed("mlp"), tmp_path_factory.mktemp("one"), rows=200)


@pytest_asyncio.fixture
async def make(one_model: ModelVersion) -> AsyncIterator[Start]:
    """Makes servers in this process, of that repository unless told otherwise; each is stopped when the test ends."""
    servers: list[Server] = []

    def make(repository: Path | None = None, **settings: Any) -> Server:
        folder = repository or one_model.folder.parent.parent
        servers.append(Server(Settings(repository=folder, port=0, **settings)))
        return servers[-1]

    yield make
    for server in servers:
        assert await server.stop(0.0)
