"""The registry: the right versions are served, a bad one harms no other, and no request ever finds a gap."""

from __future__ import annotations

import asyncio
import gc
import logging
import shutil
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dubito_models.errors import RepositoryUnavailable
from dubito_models.package import ModelVersion
from dubito_models.repository import Repository, Survey
from dubito_service.errors import LoadFailed, LoadingOff, NotServed, StillLoading
from dubito_service.reports import LoadReport, Report
from dubito_service.versions.loading import Loader
from dubito_service.versions.policy import ModelControl, Policy
from dubito_service.versions.registry import Entry, Registry, State
from dubito_service.versions.watching import watch

EXPLICIT = Policy(newest=2, control=ModelControl.EXPLICIT)
Packed = Callable[[str], ModelVersion]


def corrupt(folder: Path) -> None:
    program = folder / "program.pt2"
    program.write_bytes(program.read_bytes()[:-1] + b"?")


def halve(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def scramble(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b"\xff\x00{")


@pytest.fixture
def folder(packed: Packed, tmp_path: Path) -> Path:
    """A repository of three versions of one model, and one of another."""
    root = tmp_path / "repository"
    for number in (1, 2, 3):
        copy_version(packed("mlp"), root / "mlp" / str(number))
    copy_version(packed("mlp"), root / "other" / "1")
    return root


def copy_version(source: ModelVersion, target: Path, draws: int | None = None) -> None:
    """Copy a version to where another model and number is; the manifest, written last, may say other draws."""
    target.mkdir(parents=True)
    for name in ("program.pt2", "standard.onnx"):
        shutil.copy(source.folder / name, target)
    update = {"version": int(target.name), "name": target.parent.name}
    manifest = source.manifest.model_copy(update=update | ({} if draws is None else {"default_draws": draws}))
    (target / "manifest.json").write_text(manifest.model_dump_json())


@dataclass(frozen=True, slots=True)
class Watched(Loader):
    """A loader that a test can hold up: a load waits for `gate`, where there is one."""

    loads: list[tuple[str, int]] = field(default_factory=list)
    entered: threading.Event = field(default_factory=threading.Event)
    gate: list[threading.Event] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # while there is one, the repository does not answer
    refused: list[str] = field(default_factory=list)

    def survey(self) -> Survey:
        if self.broken:
            self.refused.extend(self.broken)
            raise RepositoryUnavailable(self.broken[0])
        return Loader.survey(self)

    def load(self, model: str, version: int) -> ModelVersion:
        self.loads.append((model, version))
        self.entered.set()
        for gate in self.gate:
            assert gate.wait(60)
        return Loader.load(self, model, version)

    def hold(self) -> threading.Event:
        """Hold loads up from now on, until the event is set."""
        self.entered.clear()
        gate = threading.Event()
        self.gate[:] = [gate]
        return gate

    async def loading(self) -> None:
        """Wait until a load is in its thread."""
        assert await asyncio.to_thread(self.entered.wait, 60)


Open = Callable[..., tuple[Registry, Watched]]


@pytest.fixture
async def make(folder: Path) -> AsyncIterator[Open]:
    made: list[Registry] = []

    def make(policy: Policy | None = None, watch: Callable[[Report], None] = lambda report: None) -> Any:
        loader = Watched(Repository(folder))
        made.append(Registry((), loader, policy or Policy(newest=2), watch))
        return made[-1], loader

    yield make
    for registry in made:
        assert await registry.close(60)


def states(registry: Registry) -> dict[str, str]:
    return {f"{entry.model}/{entry.version}": entry.state.value for entry in registry.entries()}


async def test_the_newest_versions_are_served(make: Open) -> None:
    registry, _ = make()
    assert not registry.opened
    await registry.open()
    assert registry.opened
    assert states(registry) == {"mlp/2": "ready", "mlp/3": "ready", "other/1": "ready"}
    assert registry.find("mlp", None).version == 3
    assert registry.find("mlp", 2).version == 2


@pytest.mark.parametrize("harm", [corrupt, halve, scramble])
async def test_a_bad_version_is_reported_and_leaves_the_others_serving(
    make: Open, folder: Path, harm: Callable[[Path], None]
) -> None:
    harm(folder / "mlp" / "3")
    registry, _ = make(Policy(newest=1))
    await registry.open()
    assert states(registry) == {"mlp/2": "ready", "mlp/3": "failed", "other/1": "ready"}
    assert registry.find("mlp", None).version == 2
    assert registry.entry("mlp", 3).reason
    with pytest.raises(NotServed, match="failed to load"):
        registry.find("mlp", 3)


async def test_a_model_without_a_good_version_is_named_with_the_reason(make: Open, folder: Path) -> None:
    corrupt(folder / "other" / "1")
    registry, _ = make()
    await registry.open()
    with pytest.raises(NotServed, match="checksum"):
        registry.find("other", None)


async def test_an_unexpected_failure_harms_no_other_version(
    make: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = Repository.load

    def fail(self: Repository, model: str, version: int | None = None, **options: Any) -> ModelVersion:
        if version == 3:
            raise ZeroDivisionError("secret")
        return load(self, model, version, **options)

    monkeypatch.setattr(Repository, "load", fail)
    registry, _ = make(Policy(newest=1))
    with caplog.at_level(logging.ERROR):
        await registry.open()
    assert registry.entry("mlp", 3).reason == "it cannot be loaded (ZeroDivisionError)"
    assert "secret" in caplog.text
    assert registry.find("mlp", None).version == 2


async def test_an_empty_repository_serves_nothing_and_says_so(tmp_path: Path) -> None:
    registry = Registry((), Loader(Repository(tmp_path)))
    await registry.open()
    assert registry.index() == ()
    with pytest.raises(NotServed, match="empty"):
        registry.find("mlp", None)


async def test_every_version_there_is_stands_in_the_index(make: Open, folder: Path) -> None:
    corrupt(folder / "mlp" / "2")
    registry, _ = make(Policy(newest=1, pins={"mlp": (2,)}))
    await registry.open()
    found = {(entry.model, entry.version): entry.state for entry in registry.index()}
    assert found == {
        ("mlp", 1): State.UNLOADED, ("mlp", 2): State.FAILED, ("mlp", 3): State.UNLOADED, ("other", 1): State.READY,
    }  # fmt: skip
    with pytest.raises(NotServed, match="3 of mlp, which is not loaded; accepted: none"):
        registry.find("mlp", 3)


async def test_a_new_version_is_taken_in_and_the_oldest_goes_and_no_request_finds_a_gap(
    make: Open, folder: Path, packed: Packed
) -> None:
    registry, loader = make()
    await registry.open()
    held = registry.find("mlp", None)
    copy_version(packed("mlp"), folder / "mlp" / "4")
    gate = loader.hold()
    look = asyncio.create_task(registry.look())
    await loader.loading()
    assert registry.find("mlp", None) is held
    assert registry.find("mlp", 2).version == 2
    with pytest.raises(StillLoading, match="mlp version 4 is loaded just now"):
        registry.find("mlp", 4)
    gate.set()
    await look
    assert registry.find("mlp", None).version == 4
    assert states(registry) == {"mlp/3": "ready", "mlp/4": "ready", "other/1": "ready"}
    assert held.version == 3


async def test_while_the_first_versions_are_loaded_callers_are_told_to_come_back(make: Open) -> None:
    registry, loader = make()
    gate = loader.hold()
    opening = asyncio.create_task(registry.open())
    with pytest.raises(StillLoading, match="the server is starting"):
        registry.find("mlp", None)
    await loader.loading()
    for name, version in (("mlp", 2), ("mlp", 3), ("other", 1)):
        with pytest.raises(StillLoading):
            registry.find(name, version)
    gate.set()
    await opening
    assert registry.find("mlp", None).version == 3


async def test_a_bad_new_version_leaves_the_old_one_serving_and_is_said_once(
    make: Open, folder: Path, packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    registry, loader = make()
    await registry.open()
    copy_version(packed("mlp"), folder / "mlp" / "4")
    corrupt(folder / "mlp" / "4")
    for _ in range(4):
        await registry.look()
    assert registry.find("mlp", None).version == 3
    assert states(registry)["mlp/4"] == "failed"
    assert loader.loads.count(("mlp", 4)) == 1
    assert caplog.text.count("version failed") == 1
    assert states(registry)["mlp/2"] == "ready"


async def test_a_half_copied_version_is_tried_again_when_it_is_whole(make: Open, folder: Path, packed: Packed) -> None:
    registry, loader = make()
    await registry.open()
    copy_version(packed("mlp"), folder / "mlp" / "4")
    manifest = (folder / "mlp" / "4" / "manifest.json").read_bytes()
    halve(folder / "mlp" / "4")
    await registry.look()
    assert "not written to its end" in registry.entry("mlp", 4).reason
    (folder / "mlp" / "4" / "manifest.json").write_bytes(manifest)
    await registry.look()  # it may still be changing
    assert loader.loads.count(("mlp", 4)) == 1
    await registry.look()
    assert registry.find("mlp", None).version == 4


async def test_a_version_whose_files_change_is_loaded_anew_and_replaced_in_one(
    make: Open, folder: Path, packed: Packed
) -> None:
    registry, _ = make()
    await registry.open()
    before = registry.find("mlp", 3)
    shutil.rmtree(folder / "mlp" / "3")
    copy_version(packed("mlp"), folder / "mlp" / "3", draws=30)
    await registry.look()
    assert registry.find("mlp", 3) is before
    await registry.look()
    assert registry.find("mlp", 3).manifest.default_draws == 30


async def test_a_version_whose_files_go_bad_is_served_as_it_was_with_the_reason(make: Open, folder: Path) -> None:
    registry, loader = make()
    await registry.open()
    before = registry.find("mlp", 3)
    corrupt(folder / "mlp" / "3")
    for _ in range(3):
        await registry.look()
    entry = registry.entry("mlp", 3)
    assert (entry.loaded, entry.state) == (before, State.READY)
    assert "checksum" in entry.reason
    assert loader.loads.count(("mlp", 3)) == 2


async def test_a_version_that_vanishes_goes_when_another_has_taken_over(make: Open, folder: Path) -> None:
    registry, _ = make()
    await registry.open()
    shutil.rmtree(folder / "mlp" / "3")
    await registry.look()
    assert states(registry) == {"mlp/1": "ready", "mlp/2": "ready", "other/1": "ready"}
    assert registry.find("mlp", None).version == 2


async def test_the_last_version_of_a_model_is_served_though_its_files_are_gone_until_it_is_unloaded(
    make: Open, folder: Path
) -> None:
    registry, _ = make()
    await registry.open()
    shutil.rmtree(folder / "other")
    await registry.look()
    await registry.look()
    await registry.refresh_calibrations()
    assert registry.find("other", None).version == 1
    await registry.unload("other")
    with pytest.raises(NotServed, match="'other'; accepted: mlp"):
        registry.find("other", None)
    await registry.look()
    assert "other/1" not in states(registry)


async def test_a_repository_that_does_not_answer_changes_nothing_and_is_said_once(
    make: Open, folder: Path, packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    registry, loader = make()
    await registry.open()
    before = states(registry)
    loader.broken.append("no answer")
    with pytest.raises(RepositoryUnavailable):
        await registry.look()
    assert states(registry) == before
    watching = asyncio.create_task(watch(registry, 1e-3, 0))
    while len(loader.refused) < 4:
        await asyncio.sleep(0)
    loader.broken.clear()
    copy_version(packed("mlp"), folder / "mlp" / "4")
    while registry.find("mlp", None).version != 4:
        await asyncio.sleep(0.01)
    watching.cancel()
    assert caplog.text.count("no answer") == 1


async def test_callers_that_load_the_same_at_once_share_one_load_which_goes_on_when_one_leaves(make: Open) -> None:
    registry, loader = make(EXPLICIT)
    await registry.open()
    assert registry.entries() == ()
    gate = loader.hold()
    calls = [asyncio.create_task(registry.load("mlp", 3)) for _ in range(4)]
    calls.append(asyncio.create_task(registry.load("mlp", 3)))
    await loader.loading()
    calls[0].cancel()
    gate.set()
    entries = await asyncio.gather(*calls[1:])
    assert {id(entry.loaded) for entry in entries} == {id(registry.find("mlp", 3))}
    assert loader.loads == [("mlp", 3)]
    assert (await registry.load("mlp", 3)).loaded is registry.find("mlp", 3)
    assert loader.loads == [("mlp", 3)]


async def test_under_explicit_control_only_what_is_asked_for_is_loaded(
    make: Open, folder: Path, packed: Packed
) -> None:
    registry, _ = make(EXPLICIT)
    await registry.open(["mlp"])
    assert states(registry) == {"mlp/2": "ready", "mlp/3": "ready"}
    copy_version(packed("mlp"), folder / "mlp" / "4")
    await registry.look()
    assert states(registry) == {"mlp/2": "ready", "mlp/3": "ready"}
    assert {entry.version for entry in registry.index() if entry.model == "mlp"} == {1, 2, 3, 4}
    assert (await registry.load("mlp")).version == 4
    assert states(registry) == {"mlp/3": "ready", "mlp/4": "ready"}
    with pytest.raises(NotServed, match="'nlp'; accepted: mlp, other"):
        await registry.load("nlp")
    with pytest.raises(NotServed, match="got 9; accepted: 1, 2, 3, 4"):
        await registry.load("mlp", 9)


async def test_a_model_to_load_at_the_start_that_is_not_there_is_refused_by_name(make: Open) -> None:
    registry, _ = make(EXPLICIT)
    with pytest.raises(NotServed, match="'nlp'; accepted: mlp, other"):
        await registry.open(["mlp", "nlp"])


async def test_a_bad_version_that_is_asked_for_says_why_and_the_old_one_goes_on(make: Open, folder: Path) -> None:
    registry, loader = make(EXPLICIT)
    await registry.open(["mlp"])
    corrupt(folder / "mlp" / "1")
    with pytest.raises(LoadFailed, match=r"mlp version 1 failed to load: program.pt2: its checksum"):
        await registry.load("mlp", 1)
    before = registry.find("mlp", 3)
    corrupt(folder / "mlp" / "3")
    with pytest.raises(LoadFailed, match="mlp version 3"):
        await registry.load("mlp")
    assert registry.find("mlp", None) is before
    loader.loads.clear()
    with pytest.raises(LoadFailed):  # asked once more, it is tried once more
        await registry.load("mlp", 1)
    assert loader.loads == [("mlp", 1)]


async def test_a_version_loaded_by_name_stays_beside_those_of_the_policy(make: Open, folder: Path) -> None:
    registry, _ = make(Policy(newest=1))
    await registry.open()
    await registry.load("mlp", 1)
    await registry.look()
    assert states(registry) == {"mlp/1": "ready", "mlp/3": "ready", "other/1": "ready"}
    await registry.unload("mlp", 1)
    await registry.look()
    assert states(registry) == {"mlp/3": "ready", "other/1": "ready"}


async def test_what_was_unloaded_is_not_loaded_again_before_it_is_asked_for_or_changes(
    make: Open, folder: Path, packed: Packed
) -> None:
    registry, _ = make()
    await registry.open()
    await registry.unload("mlp")
    await registry.unload("other", 1)
    await registry.look()
    await registry.look()
    assert registry.entries() == ()
    assert {(entry.state, entry.reason) for entry in registry.index()} == {(State.UNLOADED, "unloaded by request")}
    shutil.rmtree(folder / "other" / "1")
    copy_version(packed("mlp"), folder / "other" / "1", draws=30)
    await registry.look()
    await registry.look()
    assert states(registry) == {"other/1": "ready"}
    await registry.load("mlp")
    assert states(registry) == {"mlp/2": "ready", "mlp/3": "ready", "other/1": "ready"}
    with pytest.raises(NotServed):
        await registry.unload("nlp")
    with pytest.raises(NotServed):
        await registry.unload("mlp", 9)


async def test_unload_ends_when_the_last_request_lets_go_and_nothing_keeps_the_version(make: Open) -> None:
    registry, _ = make()
    await registry.open()
    held = registry.find("other", None)
    engine, masks = weakref.ref(held.engine), weakref.ref(held.engine.masks)
    unloading = asyncio.create_task(registry.unload("other"))
    while "other/1" in states(registry):
        await asyncio.sleep(0)
    with pytest.raises(NotServed):
        registry.find("other", None)
    assert not unloading.done()
    assert held.predict(np.zeros((1, 6), np.float32)).draws.min() > 0
    gc.disable()
    try:
        del held
        await asyncio.wait_for(unloading, 60)
        assert (engine(), masks()) == (None, None)
    finally:
        gc.enable()


@pytest.mark.parametrize("registry", [Registry(), Registry([Entry("m", 1, None, "bad")])], ids=["empty", "one entry"])
async def test_a_registry_without_a_repository_loads_nothing(registry: Registry) -> None:
    assert registry.opened
    for act in (registry.load, registry.unload):
        with pytest.raises(LoadingOff):
            await act("m")


async def test_without_control_nothing_is_loaded_after_the_start(make: Open, folder: Path, packed: Packed) -> None:
    registry, _ = make(Policy(newest=1, control=ModelControl.NONE))
    await registry.open()
    copy_version(packed("mlp"), folder / "mlp" / "4")
    await registry.look()
    assert registry.find("mlp", None).version == 3
    with pytest.raises(LoadingOff, match="--model-control none"):
        await registry.load("mlp", 4)
    with pytest.raises(LoadingOff):
        await registry.unload("mlp")


async def test_a_calibration_that_is_switched_is_taken_up_and_a_bad_one_said_once_and_left(
    make: Open, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry, _ = make()
    await registry.open()
    version = registry.find("other", None)
    other = Repository(folder).load("other")
    rows = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    calibration = other.calibrate(rows, np.arange(200) % 4)
    await registry.refresh_calibrations()
    assert version.calibration == calibration
    (version.folder / "calibrations" / "current").write_text("0" * 16)
    for _ in range(3):
        await registry.refresh_calibrations()
    assert version.calibration == calibration
    assert caplog.text.count("not looked at") == 1
    other.use_calibration(None)
    await registry.refresh_calibrations()
    assert version.calibration is None


async def test_listeners_and_reports_hear_of_every_change(make: Open, folder: Path) -> None:
    corrupt(folder / "mlp" / "3")
    reports: list[Report] = []
    heard: list[dict[str, str]] = []
    registry, _ = make(Policy(newest=1), reports.append)
    registry.on_change(lambda: heard.append(states(registry)))
    await registry.open()
    assert {"mlp/3": "loading"} in heard
    assert {"mlp/3": "failed", "mlp/2": "loading"} in heard
    told = {(report.model, report.version): report.failed for report in reports if isinstance(report, LoadReport)}
    assert told == {("mlp", 3): True, ("mlp", 2): False, ("other", 1): False}
    await registry.unload("other")
    assert heard[-1] == {"mlp/2": "ready", "mlp/3": "failed"}
