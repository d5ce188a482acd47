"""The same job on Ray: Ray Data gives stretches of blocks to actors, which make the same parts by the same code.

An actor holds the model, one for each GPU of the cluster, else one for each CPU. What a killed worker leaves undone Ray
gives to another; the parts come out the same. A stretch that workers die over time and again ends the job, its finished
parts kept. Input, output and repository must be within reach of every machine.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dubito_batch.answers import Asked, Described
from dubito_batch.ledger import PROCESSOR
from dubito_batch.parts import Place
from dubito_batch.running import Progress, Watch
from dubito_batch.work import Stretch, Work, Written, total
from dubito_client.errors import DubitoClientError, ServerError, Unavailable, refused

if TYPE_CHECKING:
    import pyarrow as arrow

    from dubito_batch.local import LocalScorer

Passes = Mapping[str, int | str]

_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"  # of what is of Ray in this process and is not Python
_KNOCK_SECONDS = 20.0
_STRETCHES = 8  # for each actor at least, where there are blocks enough: so that all end at about the same time
_MOST_BLOCKS = 16  # of a stretch: what is lost with a worker
_TRIES = 4  # of a stretch whose workers die, such as for want of memory
_CALLS = 2  # of an actor at once: while one scores, the other reads or writes


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What it takes to open a model on another machine."""

    repository: str
    model: str
    version: int | None
    asked: Asked

    def open(self, version: int | None, passes: Passes | None) -> LocalScorer:
        """Open it here, for one CPU or the GPU that there is."""
        from dubito_batch.local import open_local  # needs torch

        return open_local(self.repository, self.model, self.asked, version=version, threads=1, passes=passes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RayModel:
    """A model of which the scorers are actors: what a job has to know of it, as a worker of the cluster says."""

    opening: Opening
    described: Described
    passes: Passes
    gpus: bool  # whether actors have one each
    threads: int  # actors that the cluster has room for

    @property
    def asked(self) -> Asked:
        """What is asked of its draws."""
        return self.opening.asked


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be connected to the cluster at an address, to one of this machine's own without; Ray's own logs stay in files.

    Where this process is connected already, that stays so. Raises `InvalidArgument` where Ray is not installed, and
    `Unavailable` where nobody is at the address.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise refused("engine", "ray, which is not installed", "local, or pip install 'dubito[batch,ray]'") from None
    if ray.is_initialized():
        yield
        return
    try:
        _knock(address or "")
        with _signals_kept(), _hushed():
            ray.init(address or "local", log_to_driver=False, logging_level="error")
    except (OSError, ValueError, RuntimeError) as error:
        raise Unavailable(f"no Ray cluster at {address or 'this machine'}: {_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise `OSError` where nobody is at a host and port, for which Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), _KNOCK_SECONDS).close()


@contextmanager
def _hushed() -> Iterator[None]:
    """Let Ray start such that it tells the terminal nothing, unless the environment says what it is to tell."""
    import ray.data  # which sets up its log

    if _LOG_LEVEL in os.environ:
        yield
        return
    for handler in logging.getLogger(ray.data.__name__).handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)  # errors are raised, and told by who catches them
    os.environ[_LOG_LEVEL] = "fatal"
    terminal = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)  # it would tell that it tells no more
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        del os.environ[_LOG_LEVEL]


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Let nobody change what becomes of signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_on_ray(opening: Opening, passes: Passes | None) -> RayModel:
    """Let a worker open the model, and say what it is; `passes`: of a job that is taken up again.

    Processors of a cluster may differ, so the job's stays what it was.
    Raises what opening it raises, and `ServerError` where the cluster fails.
    """
    import ray

    gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
    with _translated():
        asked = ray.remote(_describe).options(num_gpus=1 if gpus else 0, num_cpus=1)
        content = ray.get(asked.remote(opening, passes))
    described, found = _read(content)
    if passes and PROCESSOR in passes:
        found = {**found, PROCESSOR: passes[PROCESSOR]}
    return RayModel(opening=opening, described=described, passes=found, gpus=gpus > 0, threads=max(1, gpus or cpus))


def _describe(opening: Opening, passes: Passes | None) -> bytes:
    """Open a model in a worker, and tell what it is, as `_read` reads it."""
    try:
        scorer = opening.open(opening.version, passes)
        return pickle.dumps((scorer.described, scorer.passes))
    except DubitoClientError as error:
        return pickle.dumps(error)


def score_missing_on_ray(work: Work, model: RayModel, watch: Watch, *, actors: int) -> Progress:
    """Make every part that is not there, by so many actors; returns how far the job is then.

    Raises what the first failure was: in the order of the input where the work is strict. Finished parts are kept.
    """
    done, rows = work.done()
    counts = work.counts()
    start = watch.clock()
    progress = Progress(total=total(counts), rows=rows, parts=len(done))
    watch.report(progress)
    watch.check()
    stretches = cut(work.missing(done), counts, work.ledger.batch_rows, actors)
    for part in _score(work, model, stretches, actors) if stretches else ():
        progress = progress.after(part, watch.clock() - start)
        watch.report(progress)
        watch.check()
    return progress


def cut(missing: Iterable[Stretch], counts: list[int | None], batch_rows: int, actors: int) -> list[Stretch]:
    """Cut stretches such that every actor gets several; one whose end nobody knows stays whole.

    `counts`: rows of every file, None where it does not say.
    """
    whole: list[Stretch] = []
    for stretch in missing:
        rows, blocks = counts[stretch.first.file], stretch.blocks
        if blocks is None and rows is not None:
            blocks = -(-rows // batch_rows) - stretch.first.block
        if blocks is None or blocks > 0:
            whole.append(Stretch(stretch.first, blocks))
    blocks_known = sum(stretch.blocks or 0 for stretch in whole)
    size = max(1, min(_MOST_BLOCKS, blocks_known // (_STRETCHES * actors)))
    return [piece for stretch in whole for piece in _pieces(stretch, size)]


def _pieces(stretch: Stretch, size: int) -> Iterator[Stretch]:
    if stretch.blocks is None:
        yield stretch
        return
    file, first = stretch.first.file, stretch.first.block
    for start in range(0, stretch.blocks, size):
        yield Stretch(Place(file, first + start), min(size, stretch.blocks - start))


def _score(work: Work, model: RayModel, stretches: list[Stretch], actors: int) -> Iterator[Written]:
    """Let actors score stretches, and tell of each part that they have written."""
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # so that a part is told of when it is written
    context.execution_options.preserve_order = work.strict
    items = [{"file": each.first.file, "block": each.first.block, "blocks": each.blocks} for each in stretches]
    size = min(actors, len(items))
    pool = ray.data.ActorPoolStrategy(
        size=size, max_concurrent_calls_per_actor=_CALLS, max_tasks_in_flight_per_actor=_CALLS,
        enable_true_multi_threading=True,
    )  # fmt: skip
    with _translated(), ray.data.DataContext.current(context):
        with warnings.catch_warnings():  # of max_task_retries, for which there is no other way
            warnings.simplefilter("ignore", RayDeprecationWarning)
            told = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                Actor,
                batch_size=1,
                batch_format="pyarrow",
                fn_constructor_args=(work, model),
                compute=pool,
                num_cpus=1,
                num_gpus=1 if model.gpus else 0,
                max_task_retries=_TRIES - 1,
            )
        for row in told.iter_rows():
            written: Written = _read(row["told"])
            yield written


class Actor:
    """One that scores stretches in a process of its own; the first of them has it open the model."""

    def __init__(self, work: Work, model: RayModel) -> None:
        self._work, self._model = work, model
        self._lock = threading.Lock()  # of the opening
        self._scorer: LocalScorer | None = None

    def __call__(self, batch: arrow.Table) -> Iterator[dict[str, list[bytes]]]:
        """Make the parts of a stretch and tell of each, and of a failure, as `_read` reads it."""
        [item] = batch.to_pylist()
        try:
            scorer = self._open()
            for block in self._work.read(Stretch(Place(item["file"], item["block"]), item["blocks"])):
                yield {"told": [pickle.dumps(self._work.write(self._work.score(block, scorer)))]}
        except DubitoClientError as error:
            yield {"told": [pickle.dumps(error)]}

    def _open(self) -> LocalScorer:
        model = self._model
        with self._lock:
            if self._scorer is None:
                scorer = model.opening.open(model.described.version, model.passes)
                passes = {**scorer.passes, PROCESSOR: model.passes.get(PROCESSOR)}
                if scorer.described != model.described or passes != model.passes:
                    given = f"{model.described.model} version {model.described.version}, which is not alike everywhere"
                    accepted = "the same files, torch, numpy and kind of device on every machine"
                    raise refused("version", given, accepted)
                self._scorer = scorer
            return self._scorer


def _read(told: bytes) -> Any:
    """Return what a worker tells, or raise the error that it met."""
    found = pickle.loads(told)
    if isinstance(found, DubitoClientError):
        raise found
    return found


@contextmanager
def _translated() -> Iterator[None]:
    """Let what Ray raises be an error of ours, on one line."""
    from ray.data.exceptions import ExecutionTimeoutError, SystemException
    from ray.exceptions import RayActorError, RayError

    try:
        yield
    except RayActorError as error:
        said = f"workers of the Ray cluster died, {_TRIES} times over the same rows (is there memory for them?)"
        raise ServerError(f"{said}: {_line(error)}") from error
    except (RayError, SystemException, ExecutionTimeoutError) as error:
        raise ServerError(f"the Ray cluster failed: {_line(error)}") from error


def _line(error: Exception) -> str:
    """Return the last line of what an error says, which is the cause where it holds a stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
