"""Fixtures that several folders share: packed versions of small networks, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dubito_models.package import ModelVersion
from dubito_models.packing import pack
from dubito_models.repository import Repository
from networks import CASES, build, sample


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("repository")


@pytest.fixture(scope="session")
def packed(repository: Path) -> Callable[[str], ModelVersion]:
    """Return a case's packed version; each is packed once for the whole run."""
    versions: dict[str, ModelVersion] = {}

    def get(name: str) -> ModelVersion:
        if name not in versions:
            case = CASES[name]
            pack(
                build(name), sample(name, 2), repository=repository, name=name, task=case.task, head=case.head,
                **case.options,
            )  # fmt: skip
            versions[name] = Repository(repository).load(name)
        return versions[name]

    return get
