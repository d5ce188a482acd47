"""Scoring in this process, by the engine of a version on disk.

Every thread that scores has one thread of torch, and rows go in slices that only the network and what is asked fix.
So an answer is the same to the bit however many threads there are, and nothing hangs on the clock.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator, Mapping
from enum import StrEnum
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dubito_batch.answers import INTERVAL_LEVEL, OPTIONAL_ARRAYS, Asked, Described, check_asked, concatenate
from dubito_batch.ledger import PROCESSOR
from dubito_client.answers import Column, InputSignature
from dubito_client.errors import NotFound, ServerError, Unavailable, refused
from dubito_client.stopping import Stopping as Rule
from dubito_models.engine import PASS_BYTES, Engine
from dubito_models.errors import DubitoError, InvalidArgument, RepositoryUnavailable, UnknownModel
from dubito_models.heads import Task
from dubito_models.manifest import InputSignature as Declared
from dubito_models.manifest import Manifest
from dubito_models.package import ModelVersion, make_engine, make_rows
from dubito_models.predictive import Predictive
from dubito_models.repository import Repository
from dubito_models.sampling import Estimator, Plan, SamplingSpec
from dubito_models.stopping import Quantity, Stopping, StoppingRule
from dubito_models.thinning import Design

Word = TypeVar("Word", bound=StrEnum)

# Of the largest value that a draw of a slice makes: what the second cache level of a core holds, or a GPU's passes.
_SLICE_BYTES = {"cpu": 2 << 20, "cuda": PASS_BYTES}
_LEAST_ROWS = 8  # of a slice, while these fit a pass: a network's calls cost something however few rows they have
_KEPT_BYTES = 128 << 20  # of a slice's draws until it is answered, if no rule ends any row early
_OWN_NAMES = {"max_draws": "draws"}


class LocalScorer:
    """Answers rows by a version that is loaded here, under the calibration that it has now."""

    def __init__(
        self,
        version: ModelVersion,
        asked: Asked | None = None,
        *,
        threads: int | None = None,
        passes: Mapping[str, int | str] | None = None,
    ) -> None:
        """Set up; `threads`: of a CPU, None for as many as torch has; `passes`: of a job that is taken up again.

        Raises `InvalidArgument` where the version cannot answer what is asked.
        """
        self.described = describe(version)
        self.asked = asked or Asked()
        check_asked(self.asked, self.described)
        self._version, self._calibration = version, version.calibration
        self._torch_threads = torch.get_num_threads()
        device = version.engine.program.device.type
        slice_bytes = _SLICE_BYTES[device] if passes is None else passes.get("slice_bytes", _SLICE_BYTES[device])
        self.passes: Mapping[str, int | str] = {
            "device": device,
            "slice_bytes": slice_bytes,
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            PROCESSOR: _processor(device),
        }
        engines = [make_engine(each.program, version.manifest, PASS_BYTES, each.vmaps) for each in version.engines]
        self.threads = len(engines) if device == "cuda" else threads or self._torch_threads
        with _translated():
            self._spec = _specify(self.asked)
            self._plan = engines[0].plan(self._spec, calibration=self._calibration)
        self._engines: SimpleQueue[Engine] = SimpleQueue()
        for place in range(self.threads):
            self._engines.put(engines[place % len(engines)])
        self._slice_rows: dict[tuple[tuple[str, int], ...], int] = {}
        with self._one_thread():  # what an engine makes once and keeps it makes before several threads have it
            for engine in engines:
                engine.predict(make_rows(version.manifest.inputs, 1), self._spec, self._calibration)

    def score(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer rows (B, ...) by input name, slice by slice; see `Scorer`."""
        with _translated():
            tensors = self._version.read_inputs(inputs)
        engine = self._engines.get()
        try:
            with self._one_thread():
                return self._score(engine, tensors)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise ServerError("there is too little memory; score fewer rows at once, or in fewer threads") from error
        finally:
            self._engines.put(engine)

    def _score(self, engine: Engine, tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
        rows = len(next(iter(tensors.values())))
        step = self.slice_rows(tensors, engine)
        parts = []
        for start in range(0, rows, step):
            # A copy, for torch aligns its own memory: kernels take the ends of what is not aligned another way.
            here = {name: values[start : start + step].clone() for name, values in tensors.items()}
            parts.append(_answers(engine.predict(here, self._spec, self._calibration)))
        return concatenate(parts)

    def slice_rows(self, inputs: Mapping[str, Tensor], engine: Engine) -> int:
        """Return how many rows of these shapes go to an engine at a time, whatever the machine."""
        key = tuple((f"{name} {axis}", size) for name, x in inputs.items() for axis, size in enumerate(x.shape[1:]))
        if key not in self._slice_rows:
            program = engine.program
            with torch.inference_mode():
                first = program.prefix({name: values[:1].to(program.device) for name, values in inputs.items()})
            widest = max(1, program.bytes_per_draw(first.symbols))
            rows = max(int(self.passes["slice_bytes"]) // widest, min(_LEAST_ROWS, PASS_BYTES // widest))
            self._slice_rows[key] = max(1, min(rows, _KEPT_BYTES // _kept_bytes(self._plan, self._version.manifest)))
        return self._slice_rows[key]

    @contextlib.contextmanager
    def _one_thread(self) -> Iterator[None]:
        """Let torch compute in the calling thread alone: its count of threads is each thread's own."""
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(self._torch_threads)


def open_local(
    repository: str,
    model: str,
    asked: Asked | None = None,
    *,
    version: int | None = None,
    threads: int | None = None,
    passes: Mapping[str, int | str] | None = None,
) -> LocalScorer:
    """Load a version of a repository, the newest by default, on a GPU where there is one; the rest as `LocalScorer`.

    Raises `NotFound`, `Unavailable` or `InvalidArgument`.
    """
    try:
        with _translated():
            loaded = Repository(repository).load(model, version, device="auto")
    except UnknownModel as error:
        raise NotFound(str(error)) from None
    except RepositoryUnavailable as error:
        raise Unavailable(str(error)) from None
    except DubitoError as error:
        raise refused("model", f"{model}, which does not load ({error})", "a version that loads") from None
    return LocalScorer(loaded, asked, threads=threads, passes=passes)


def describe(version: ModelVersion) -> Described:
    """Say what a version is as its server would."""
    manifest, calibration = version.manifest, version.calibration
    return Described(
        model=version.name,
        version=version.version,
        task=manifest.task.value,
        head=manifest.head.value,
        outputs=manifest.outputs,
        class_names=manifest.class_names or (),
        inputs=tuple(_declare(each) for each in manifest.inputs),
        checksums=dict(manifest.checksums),
        calibration_id=None if calibration is None else calibration.id,
        covers=calibration is not None and bool(calibration.conformal),
        abstains=calibration is not None and calibration.selective is not None,
    )


def _declare(entry: Declared) -> InputSignature:
    columns = entry.columns or ()
    return InputSignature(
        name=entry.name,
        dtype=entry.dtype,
        shape=entry.shape,
        allow_nan=entry.allow_nan,
        dimension_names=("rows", *(entry.free.get(axis, "") for axis in range(1, len(entry.shape)))),
        columns=tuple(Column(each.name, each.kind, each.categories, each.allow_nan) for each in columns),
    )


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Let the core's refusals be the client's, in the words of `Asked`."""
    try:
        yield
    except InvalidArgument as error:
        raise refused(_OWN_NAMES.get(error.field, error.field), error.given, error.accepted) from None


def _specify(asked: Asked) -> SamplingSpec:
    return SamplingSpec(
        max_draws=asked.draws,
        min_draws=asked.min_draws,
        seed=asked.seed,
        design=None if asked.design is None else _word("design", asked.design, Design),
        stopping=None if asked.rule is None else _read_rule(asked.rule),
        estimator=None if asked.estimator is None else _word("estimator", asked.estimator, Estimator),
        interval_level=INTERVAL_LEVEL if asked.interval_level is None else asked.interval_level,
        quantiles=asked.quantiles,
        coverage=asked.coverage,
    )


def _read_rule(rule: Rule) -> Stopping:
    level = {} if rule.level is None else {"level": rule.level}
    quantity = _word("stopping.quantity", rule.quantity or Quantity.MEAN, Quantity)
    return Stopping(_word("stopping.rule", rule.rule, StoppingRule), quantity, rule.target, **level)


def _word(field: str, word: str, words: type[Word]) -> Word:
    try:
        return words(word)
    except ValueError:
        raise refused(field, repr(word), ", ".join(each.value for each in words)) from None


def _processor(device: str) -> str:
    """Name what chooses among the kernels of an operation, which round differently."""
    own = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{own}, {torch.cuda.get_device_name()}" if device == "cuda" else own


def _kept_bytes(plan: Plan, manifest: Manifest) -> int:
    """Return about how much is kept of a row's draws: moments of each group, and the draws where they are wanted."""
    numbers = 4 * -(-plan.max_draws // plan.group_size)
    if plan.spec.keeps_draws or manifest.task is Task.REGRESSION:
        numbers += (4 + len(plan.spec.quantiles)) * plan.max_draws
    return 8 * numbers * manifest.outputs


def _answers(predictive: Predictive) -> dict[str, NDArray[Any]]:
    """Return what a predictive distribution says, by the names of `Prediction`."""
    words = np.array([reason.value for reason in predictive.stop_reason], object)
    found: dict[str, NDArray[Any]] = {"draws": predictive.draws, "stop_reason": words}
    for name in OPTIONAL_ARRAYS:
        values = getattr(predictive.answer, name, getattr(predictive, name, None))
        if values is not None:
            found[name] = values
    return found
