"""The registry: the newest good versions are served, and a bad one harms no other."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dubito_models.package import ModelVersion, Repository
from dubito_service.errors import NotServed
from dubito_service.registry import Registry, load_registry


def corrupt(folder: Path) -> None:
    program = folder / "program.pt2"
    program.write_bytes(program.read_bytes()[:-1] + b"?")


def halve(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def scramble(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"\xff\x00{")


@pytest.fixture
def folder(packed: Callable[[str], ModelVersion], tmp_path: Path) -> Path:
    """A repository of three versions of one model, and one of another."""
    source = packed("mlp")
    for number in (1, 2, 3):
        copy_version(source, tmp_path / "mlp" / str(number), number)
    copy_version(source, tmp_path / "other" / "1", 1, name="other")
    return tmp_path


def copy_version(source: ModelVersion, target: Path, number: int, name: str = "mlp") -> None:
    shutil.copytree(source.folder, target)
    manifest = source.manifest.model_copy(update={"version": number, "name": name})
    (target / "manifest.json").write_text(manifest.model_dump_json())


def states(registry: Registry) -> dict[str, bool]:
    return {f"{entry.model}/{entry.version}": entry.loaded is not None for entry in registry.entries()}


def test_the_newest_versions_are_served(folder: Path) -> None:
    registry = load_registry(Repository(folder), newest=2)
    assert states(registry) == {"mlp/2": True, "mlp/3": True, "other/1": True}
    assert registry.find("mlp", None).version == 3
    assert registry.find("mlp", 2).version == 2


@pytest.mark.parametrize("harm", [corrupt, halve, scramble])
def test_a_bad_version_is_reported_and_leaves_the_others_serving(folder: Path, harm: Callable[[Path], None]) -> None:
    harm(folder / "mlp" / "3")
    registry = load_registry(Repository(folder), newest=1)
    assert states(registry) == {"mlp/2": True, "mlp/3": False, "other/1": True}
    assert registry.find("mlp", None).version == 2
    assert registry.entry("mlp", 3).reason
    with pytest.raises(NotServed, match="failed to load"):
        registry.find("mlp", 3)


def test_a_model_without_a_good_version_is_named_with_the_reason(folder: Path) -> None:
    corrupt(folder / "other" / "1")
    registry = load_registry(Repository(folder), newest=1)
    with pytest.raises(NotServed, match="checksum"):
        registry.find("other", None)


def test_an_unexpected_failure_harms_no_other_version(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = Repository.load

    def fail(self: Repository, model: str, version: int | None = None, **options: int) -> ModelVersion:
        if version == 3:
            raise ZeroDivisionError("secret")
        return load(self, model, version, **options)

    monkeypatch.setattr(Repository, "load", fail)
    with caplog.at_level(logging.ERROR):
        registry = load_registry(Repository(folder), newest=1)
    assert registry.entry("mlp", 3).reason == "it cannot be loaded (ZeroDivisionError)"
    assert "secret" in caplog.text
    assert registry.find("mlp", None).version == 2


def test_an_empty_repository_serves_nothing_and_says_so(tmp_path: Path) -> None:
    registry = load_registry(Repository(tmp_path), newest=1)
    assert registry.entries() == ()
    with pytest.raises(NotServed, match="empty"):
        registry.find("mlp", None)
