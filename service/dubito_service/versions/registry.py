"""The registry: which versions of which models are served, and why others are not.

It belongs to one event loop, on which alone its table changes; versions are loaded in a thread, one after the other.
A version replaces another by one assignment. Requests hold the version that they started with, so that nothing ends
for them; when the last one lets go, its memory is given back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from dubito_models.errors import DubitoError, RepositoryUnavailable
from dubito_models.package import ModelVersion
from dubito_models.repository import Found
from dubito_service.errors import LoadFailed, LoadingOff, NotServed, StillLoading
from dubito_service.reports import LoadReport, Watch, ignore
from dubito_service.versions.loading import Loader, collect, released
from dubito_service.versions.policy import ModelControl, Policy, Record, Standing, decide

log = logging.getLogger(__name__)
T = TypeVar("T")


class State(StrEnum):
    """How a version stands."""

    READY = "ready"
    FAILED = "failed"
    LOADING = "loading"
    UNLOADED = "unloaded"  # in the repository, not in memory


@dataclass(frozen=True, slots=True)
class Entry:
    """One version: loaded, or not, with the reason. One that is loaded has a reason where its newer files failed."""

    model: str
    version: int
    loaded: ModelVersion | None
    reason: str = ""
    absence: State = State.FAILED  # how it stands where it is not loaded

    @property
    def state(self) -> State:
        """How it stands."""
        return self.absence if self.loaded is None else State.READY


class Registry:
    """The versions by model and number, and what is done to have the right ones."""

    def __init__(
        self,
        entries: Iterable[Entry] = (),
        loader: Loader | None = None,
        policy: Policy | None = None,
        watch: Watch = ignore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with some entries; without a loader they stay as they are. `clock`: seconds, monotonic."""
        self._entries: dict[str, dict[int, Entry]] = {}
        self._newest: dict[str, ModelVersion] = {}
        self._loader = loader
        self._policy = policy or Policy()
        self._report = watch
        self._clock = clock
        self._records: dict[str, dict[int, Record]] = {}
        self._turn = asyncio.Lock()  # who looks, loads or unloads
        self._loads: set[asyncio.Task[Any]] = set()
        self._leavings: set[asyncio.Task[Any]] = set()
        self._asked: dict[tuple[str, int | None], asyncio.Task[Entry]] = {}
        self._listeners: list[Callable[[], None]] = []
        self._said: dict[str, str] = {}  # the last complaint about each thing
        self.opened = loader is None
        for entry in entries:
            self._put(entry)

    # What is served: read on every request.

    def find(self, model: str, version: int | None) -> ModelVersion:
        """Return one loaded version, the newest for None; `NotServed` or `StillLoading` where there is none."""
        if version is None and model in self._newest:
            return self._newest[model]
        entry = self._entries.get(model, {}).get(version or 0)
        if entry is None and not self.opened:
            raise StillLoading(model, version)
        entry = entry or self.entry(model, version)
        if entry.loaded is not None:
            return entry.loaded
        if entry.state is State.LOADING:
            raise StillLoading(model, entry.version)
        why = f"which failed to load ({entry.reason})" if entry.state is State.FAILED else "which is not loaded"
        raise NotServed("version", f"{entry.version} of {model}, {why}", _numbers(self._ready(model)))

    def entry(self, model: str, version: int | None) -> Entry:
        """Return one version, loaded or not; the newest loaded one for None. `NotServed` where there is none."""
        versions = self._known(model)
        if not versions:
            names = ", ".join(sorted(self._entries)) or "none: the repository is empty"
            raise NotServed("model", repr(model), names)
        wanted = version if version is not None else max(self._ready(model) or self._entries.get(model) or versions)
        if wanted not in versions:
            raise NotServed("version", wanted, _numbers(self._ready(model)))
        return versions[wanted]

    def entries(self) -> tuple[Entry, ...]:
        """Return every version that is loaded, being loaded or failed, by model and number."""
        return tuple(entry for _, versions in sorted(self._entries.items()) for _, entry in sorted(versions.items()))

    def index(self) -> tuple[Entry, ...]:
        """Return every version there is, those in the repository that are not loaded too, by model and number."""
        models = sorted(self._entries.keys() | self._records.keys())
        return tuple(entry for model in models for _, entry in sorted(self._known(model).items()))

    def states(self, model: str) -> set[State]:
        """Return how the versions of a model stand; none where there is no such model."""
        return {entry.state for entry in self._known(model).values()}

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call a listener, on the event loop, whenever a version stands otherwise than before."""
        self._listeners.append(listener)

    def _known(self, model: str) -> dict[int, Entry]:
        unloaded = {
            number: Entry(model, number, None, "" if record.held is None else "unloaded by request", State.UNLOADED)
            for number, record in self._records.get(model, {}).items()
            if record.found is not None
        }
        return unloaded | self._entries.get(model, {})

    def _ready(self, model: str) -> list[int]:
        return [number for number, entry in self._entries.get(model, {}).items() if entry.loaded is not None]

    # What changes it.

    async def open(self, load: Sequence[str] = ()) -> None:
        """Look at the repository for the first time, and load what the policy says; where it polls not, models `load`.

        Raises `RepositoryUnavailable`, and `NotServed` where a model to load is not there.
        """
        async with self._turn:
            await self._survey()
            for model in load:
                self._there(model, None)
            for model, number in (
                (model, number) for model, numbers in self._policy.pins.items() for number in numbers
            ):
                if number not in self._records.get(model, {}):
                    log.warning("pinned version is not in the repository model=%s version=%d", model, number)
        await self._settle_each(load if self._policy.control is ModelControl.EXPLICIT else list(self._records))
        self.opened = True
        self._tell()

    async def look(self) -> None:
        """Look at the repository once more, and take in what is new there where it has the control.

        Raises `RepositoryUnavailable`; all stays as it is then.
        """
        async with self._turn:
            await self._survey()
            await self._fetch_calibrations()
        self._tell()
        if self._policy.control is ModelControl.POLL:
            await self._settle_each(list(self._records))

    async def load(self, model: str, version: int | None = None) -> Entry:
        """Load a version, or for None what the policy says of a model, and return the entry: that version, the newest.

        Ends when the load has. What is loaded already and has not changed is not loaded again; callers that ask for
        the same at once share one load, which goes on when they leave. Raises `NotServed` where there is none in the
        repository, `LoadFailed` with the reason, `LoadingOff` or `RepositoryUnavailable`.
        """
        self._controlled()
        task = self._asked.get((model, version))
        if task is None:
            task = self._start(self._load_asked(model, version), self._loads)
            self._asked[model, version] = task
            task.add_done_callback(lambda _: self._asked.pop((model, version)))
        return await asyncio.shield(task)

    async def unload(self, model: str, version: int | None = None) -> None:
        """Take a version, or for None all of a model, out of service until it is loaded again or changes on disk.

        No new request finds it from now on; ends when the last one that holds it has ended and its memory is given
        back, which goes on when the caller leaves. Raises `NotServed` where there is none, or `LoadingOff`.
        """
        self._controlled()
        async with self._turn:
            self.entry(model, version)
            numbers = list(self._known(model)) if version is None else [version]
            for number in numbers:
                record = self._records.setdefault(model, {}).setdefault(number, Record())
                record.asked, record.tried = False, None
                record.held = "" if record.found is None else record.found.files
            gone = self._drop(model, numbers)
        await asyncio.shield(gone)

    async def refresh_calibrations(self) -> None:
        """Take up calibrations that were switched; where one cannot be read, the old one stays."""
        for entry in self.entries():
            await self._refresh(entry, fetch=False)

    async def close(self, seconds: float) -> bool:
        """Wait for a load that is in its thread; False where it takes longer."""
        for task in self._leavings:
            task.cancel()
        if self._loads:
            await asyncio.wait(self._loads, timeout=seconds)
        return not self._loads

    async def _survey(self) -> None:
        """Note what is in the repository now, and forget what neither is there nor served."""
        survey = await asyncio.to_thread(self._source().survey)
        for model in sorted(self._records.keys() | survey.keys()):
            records, entries = self._records.setdefault(model, {}), self._entries.get(model, {})
            for number in sorted(records.keys() | survey.get(model, {}).keys()):
                record = records.setdefault(number, Record())
                record.before, record.found = record.found, survey.get(model, {}).get(number)
                if record.held is not None and record.has_changed(record.held):
                    record.held = None
                if record.found is None and (number not in entries or entries[number].loaded is None):
                    self._drop(model, [number])
                    del records[number]
                elif record.found is None and record.before is not None:
                    log.warning("version is gone from the repository model=%s version=%d", model, number)
            if not records:
                del self._records[model]

    async def _settle_each(self, models: Sequence[str]) -> None:
        for model in models:
            async with self._turn:  # a model at a time, so that who loads or unloads another comes in between
                if model in self._records:
                    await self._settle(model)

    async def _settle(self, model: str) -> None:
        """Load and drop versions of a model until the policy has nothing to say."""
        while (decision := decide(self._policy, model, self._standings(model))).load:
            await self._load(model, decision.load[0])
        if decision.drop:
            self._drop(model, decision.drop)

    def _standings(self, model: str) -> list[Standing]:
        ready = self._ready(model)
        return [record.standing(number, ready=number in ready) for number, record in self._records[model].items()]

    def _there(self, model: str, version: int | None) -> list[int]:
        """Return the numbers of a model in the repository; `NotServed` where there is none, or not that one."""
        models = sorted(name for name, records in self._records.items() if any(each.found for each in records.values()))
        if model not in models:
            raise NotServed("model", repr(model), ", ".join(models) or "none: the repository is empty")
        there = [number for number, record in self._records[model].items() if record.found is not None]
        if version is not None and version not in there:
            raise NotServed("version", version, ", ".join(map(str, sorted(there))))
        return there

    async def _load_asked(self, model: str, version: int | None) -> Entry:
        async with self._turn:
            await self._survey()
            there = self._there(model, version)
            for number in there if version is None else [version]:
                record = self._records[model][number]
                record.held = None
                if number not in self._ready(model) or (record.found and record.found.files != record.tried):
                    record.tried = None  # once more, whatever came of it before
            if version is not None:
                self._records[model][version].asked = True
                if self._records[model][version].is_stale():
                    await self._load(model, version)
            else:
                await self._settle(model)
            candidates = self._policy.candidates(model, there)
            if version is None and not candidates:
                raise NotServed("model", repr(model), f"this only where a version that is pinned is there, not {there}")
            entry = self._entries[model][candidates[0] if version is None else version]
        if entry.reason:
            raise LoadFailed(model, entry.version, entry.reason)
        return entry

    async def _load(self, model: str, number: int) -> None:
        """Load one version in a thread, and enter what came of it; raises `RepositoryUnavailable`."""
        record, before = self._records[model][number], self._entries.get(model, {}).get(number)
        old = None if before is None else before.loaded
        if old is None:
            self._put(Entry(model, number, None, "", State.LOADING))
        found, began = record.found or Found(False, "", ""), self._clock()
        try:
            thread = self._start(asyncio.to_thread(self._source().load, model, number), self._loads)
            entry = Entry(model, number, await asyncio.shield(thread))
        except (LoadFailed, RepositoryUnavailable) as error:
            reason = error.reason if isinstance(error, LoadFailed) else str(error)
            self._put(Entry(model, number, old, reason))
            if before is None or before.reason != reason:
                level = logging.WARNING if found.committed else logging.INFO  # that is still being written
                log.log(level, "version failed model=%s version=%d reason=%s", model, number, reason)
            self._report(LoadReport(model, number, self._clock() - began, failed=True))
            if isinstance(error, RepositoryUnavailable):
                raise
            if found.committed:
                self._retire([])  # a load that fails half way leaves something behind too
        else:
            self._put(entry)
            record.calibrations = found.calibrations
            self._report(LoadReport(model, number, self._clock() - began, failed=False))
            if old is not None:
                self._retire([old])
        record.tried = found.files

    async def _fetch_calibrations(self) -> None:
        for entry in self.entries():
            record = self._records.get(entry.model, {}).get(entry.version)
            if entry.loaded is None or record is None or record.found is None:
                continue
            if record.found.calibrations != record.calibrations and await self._refresh(entry, fetch=True):
                record.calibrations = record.found.calibrations

    async def _refresh(self, entry: Entry, *, fetch: bool) -> bool:
        """Take up a version's calibration; False where that was not possible, which is said once."""
        if entry.loaded is None:
            return False
        label = f"model={entry.model} version={entry.version}"
        try:
            if await asyncio.to_thread(self._source().refresh, entry.loaded, fetch=fetch):
                now = entry.loaded.calibration
                log.info("calibration switched %s calibration=%s", label, "none" if now is None else now.id)
        except DubitoError as error:
            self._complain(f"calibration {label}", str(error))
            return False
        self._said.pop(f"calibration {label}", None)
        return True

    # The table, and who leaves it.

    def _put(self, entry: Entry) -> None:
        self._entries.setdefault(entry.model, {})[entry.version] = entry
        self._changed(entry.model)

    def _drop(self, model: str, numbers: Iterable[int]) -> asyncio.Task[None]:
        """Take versions out of the table; the task ends when their memory is given back."""
        entries = self._entries.get(model, {})
        dropped = [entries.pop(number) for number in numbers if number in entries]
        if dropped:
            self._changed(model)
        for entry in dropped:
            if entry.loaded is not None:
                log.info("version unloaded model=%s version=%d", model, entry.version)
                if (record := self._records.get(model, {}).get(entry.version)) is not None:
                    record.tried = None
        return self._retire([entry.loaded for entry in dropped if entry.loaded is not None])

    def _changed(self, model: str) -> None:
        ready = self._ready(model)
        self._newest.pop(model, None)
        if ready:
            newest = self._entries[model][max(ready)].loaded
            assert newest is not None
            self._newest[model] = newest
        elif not self._entries[model]:
            del self._entries[model]
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def _retire(self, versions: Sequence[ModelVersion]) -> asyncio.Task[None]:
        return self._start(collect([released(version) for version in versions]), self._leavings)

    def _start(self, work: Coroutine[Any, Any, T], tasks: set[asyncio.Task[Any]]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # its callers may have left
        return task

    def _source(self) -> Loader:
        if self._loader is None:
            raise LoadingOff
        return self._loader

    def _controlled(self) -> None:
        if self._loader is None or self._policy.control is ModelControl.NONE:
            raise LoadingOff

    def _complain(self, what: str, why: str) -> None:
        if self._said.get(what) != why:  # said once, not every second
            log.warning("%s not looked at reason=%s", what, why)
        self._said[what] = why


def _numbers(versions: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(versions))) or "none: no version of this model is ready"
