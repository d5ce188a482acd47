"""The repository: a folder read in place, or a URL whose versions are copied and checked; never half of one."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dubito_models.errors import CorruptVersion, InvalidArgument, RepositoryUnavailable, UnknownModel
from dubito_models.mirror import redact
from dubito_models.package import ModelVersion
from dubito_models.repository import Repository

Packed = Callable[[str], ModelVersion]


@pytest.fixture
def folder(packed: Packed, tmp_path: Path) -> Path:
    """A repository of one version, for the test to change."""
    shutil.copytree(packed("mlp").folder, tmp_path / "repository" / "mlp" / "1")
    return tmp_path / "repository"


@pytest.fixture
def remote(packed: Packed) -> Iterator[str]:
    """The URL of a store with the same version."""
    root = f"/{uuid.uuid4().hex}"
    store = MemoryFileSystem()
    store.put(str(packed("mlp").folder), f"{root}/mlp/1", recursive=True)
    yield f"memory:/{root}"
    store.rm(root, recursive=True)


def of(url: str) -> tuple[Any, str]:
    """The store of a URL, and the version's folder in it."""
    system, root = fsspec.core.url_to_fs(url)
    return system, f"{root}/mlp/1"


def rows(count: int = 5) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(1).normal(size=(count, 6)).astype(np.float32)


def probabilities(version: ModelVersion) -> Any:
    answer: Any = version.predict(rows()).answer
    return answer.probabilities


def test_the_folder_of_a_model_or_of_a_version_is_no_repository(folder: Path) -> None:
    """Taken for one it would be empty without a word."""
    for part in ("mlp", "mlp/1"):
        with pytest.raises(InvalidArgument) as caught:
            Repository(folder / part)
        assert caught.value.field == "repository"
        assert caught.value.given == f"{folder / part}, which is a single model"
        assert caught.value.accepted == "a folder of MODEL/VERSION/"


def test_a_file_url_is_read_in_place(folder: Path) -> None:
    repository = Repository(f"file://{folder}")
    assert repository.path == folder
    assert repository.load("mlp").folder == folder / "mlp" / "1"


def test_a_remote_version_answers_as_the_local_one_does(packed: Packed, remote: str, tmp_path: Path) -> None:
    repository = Repository(remote, tmp_path)
    assert repository.scan() == {"mlp": [1]}
    version = repository.load("mlp")
    np.testing.assert_array_equal(probabilities(version), probabilities(packed("mlp")))
    assert tmp_path in version.folder.parents


def test_each_url_has_a_cache_of_its_own(remote: str, tmp_path: Path) -> None:
    assert Repository(remote, tmp_path).path != Repository(f"{remote}/other", tmp_path).path


def test_a_copy_that_is_whole_is_not_fetched_again(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Repository(remote, tmp_path).load("mlp")
    read: list[str] = []
    cat_file = MemoryFileSystem.cat_file

    def note(self: MemoryFileSystem, path: str, *rest: Any, **options: Any) -> bytes:
        read.append(Path(path).name)
        return cat_file(self, path, *rest, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr(MemoryFileSystem, "cat_file", note)
    Repository(remote, tmp_path).load("mlp")
    assert read == ["manifest.json", "current"]


@pytest.mark.parametrize("name", ["program.pt2", "standard.onnx"])
def test_a_copy_that_was_harmed_is_fetched_again(name: str, remote: str, tmp_path: Path) -> None:
    copy = Repository(remote, tmp_path).load("mlp").folder / name
    copy.write_bytes(copy.read_bytes()[:-1] + b"?")
    before = copy.read_bytes()
    Repository(remote, tmp_path).load("mlp")
    assert copy.read_bytes() != before


def test_a_remote_version_whose_manifest_is_another_one_is_fetched_again_and_its_old_copy_goes(
    remote: str, tmp_path: Path
) -> None:
    repository = Repository(remote, tmp_path)
    before = repository.load("mlp")
    system, root = of(remote)
    manifest = json.loads(system.cat_file(f"{root}/manifest.json"))
    manifest["default_draws"] = 30
    system.pipe_file(f"{root}/manifest.json", json.dumps(manifest).encode())
    after = repository.load("mlp")
    assert after.manifest.default_draws == 30
    assert not before.folder.exists()


def test_what_the_store_holds_wrong_is_refused_and_leaves_no_whole_copy(remote: str, tmp_path: Path) -> None:
    system, root = of(remote)
    data = system.cat_file(f"{root}/program.pt2")
    system.pipe_file(f"{root}/program.pt2", data[:-1])
    repository = Repository(remote, tmp_path)
    with pytest.raises(CorruptVersion, match=r"program.pt2: its checksum"):
        repository.load("mlp")
    assert not list(tmp_path.rglob("manifest.json"))
    system.pipe_file(f"{root}/program.pt2", data)
    assert repository.load("mlp").version == 1


def test_a_remote_version_without_its_manifest_is_listed_and_not_loaded(remote: str, tmp_path: Path) -> None:
    system, root = of(remote)
    system.rm(f"{root}/manifest.json")
    repository = Repository(remote, tmp_path)
    assert not repository.survey()["mlp"][1].committed
    with pytest.raises(CorruptVersion, match="not written to its end"):
        repository.load("mlp")


def test_remote_calibrations_and_which_is_in_use_are_taken_over(
    packed: Packed, remote: str, tmp_path: Path, folder: Path
) -> None:
    repository = Repository(remote, tmp_path / "cache")
    version = repository.load("mlp")
    assert version.calibration is None
    local = Repository(folder).load("mlp")
    labels = np.arange(200) % 4
    calibration = local.calibrate(rows(200), labels)
    system, root = of(remote)
    before = repository.survey()["mlp"][1]
    system.put(str(local.folder / "calibrations"), f"{root}/calibrations", recursive=True)
    after = repository.survey()["mlp"][1]
    assert (after.files, after.calibrations == before.calibrations) == (before.files, False)
    repository.fetch_calibrations(version)
    assert version.refresh_calibration()
    assert version.calibration == calibration
    system.rm(f"{root}/calibrations", recursive=True)
    repository.fetch_calibrations(version)
    assert version.refresh_calibration()
    assert version.calibration is None
    assert version.calibrations() == ()


@pytest.mark.parametrize("store", ["folder", "remote"])
@pytest.mark.parametrize("change", ["program.pt2", "manifest.json", "standard.onnx"])
def test_the_mark_of_a_version_changes_when_a_file_of_it_does_and_not_else(
    store: str, change: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = str(request.getfixturevalue(store))
    repository = Repository(url, tmp_path / "cache")
    before = repository.survey()
    assert repository.survey() == before
    system, root = of(url)
    data = system.cat_file(f"{root}/{change}")
    system.pipe_file(f"{root}/{change}", data + b" ")
    assert repository.survey()["mlp"][1].files != before["mlp"][1].files


def test_what_is_no_model_is_not_listed(remote: str, folder: Path, tmp_path: Path) -> None:
    system, root = of(remote)
    parent = root.removesuffix("/mlp/1")
    for path in ("README", "a model/1/manifest.json", "mlp/latest/manifest.json", ".incoming/1/manifest.json"):
        system.pipe_file(f"{parent}/{path}", b"{}")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"{}")
    assert Repository(remote, tmp_path).scan() == Repository(folder).scan() == {"mlp": [1]}


def test_an_empty_store_is_an_empty_repository(tmp_path: Path) -> None:
    repository = Repository("memory://nothing-here", tmp_path)
    assert repository.scan() == {}
    with pytest.raises(UnknownModel, match="no mlp in memory://nothing-here"):
        repository.load("mlp")


@pytest.mark.parametrize("url", ["nowhere://bucket", "nowhere::file:///x", "./not/there", "file:///not/there"])
def test_what_is_no_repository_is_refused_by_name(url: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Repository(url)
    assert (caught.value.field, caught.value.given) == ("repository", url)


def test_a_store_that_does_not_answer_is_said_to_be_unavailable(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise ConnectionResetError("by peer")

    repository = Repository(remote, tmp_path)
    version = repository.load("mlp")
    for method in ("find", "cat_file", "ls"):
        monkeypatch.setattr(MemoryFileSystem, method, fail)
    for act in (repository.survey, lambda: repository.load("mlp"), lambda: repository.fetch_calibrations(version)):
        with pytest.raises(RepositoryUnavailable, match=r"cannot be read \(ConnectionResetError: by peer\)"):
            act()


def test_a_repository_that_vanishes_is_unavailable_and_not_empty(folder: Path) -> None:
    repository = Repository(folder)
    shutil.rmtree(folder)
    with pytest.raises(RepositoryUnavailable, match="cannot be read"):
        repository.survey()


def test_a_password_in_a_url_is_not_shown() -> None:
    assert redact("ftp://me:secret@host/models") == "ftp://...@host/models"
    assert redact("s3://bucket/models") == "s3://bucket/models"


def test_copies_lie_in_the_users_cache_where_no_other_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("dubito_models.repository.user_cache_path", lambda name: tmp_path / name)
    assert Repository("memory://models").path.parent == tmp_path / "dubito" / "repositories"
