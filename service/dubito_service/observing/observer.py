"""Observing: receipts for answers, labels taken back, and what streams ask for; the event loop never waits for it.

One thread writes, one reads. `Predict` looks at what was read last, at most about a second ago, and goes on while the
database is locked or lost. `Observe` waits, but not for long, and is refused where too many wait already.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dubito_models.calibration import Calibration
from dubito_models.calibration.adaptive import AdaptiveState
from dubito_models.errors import DubitoError
from dubito_models.package import ModelVersion
from dubito_models.predictive import Classification, Predictive
from dubito_service.errors import StateUnavailable
from dubito_service.observing.labels import Scored, read_label, score
from dubito_service.observing.observations import Observations, Outcome, Rules, StreamKey
from dubito_service.observing.receipts import (
    Receipt,
    make_key_file,
    make_receipt,
    new_key,
    new_prediction_id,
    read_key,
    sign,
    write_inputs,
)
from dubito_service.observing.receipts import verify as verify_receipt
from dubito_service.observing.rolling import Rolling, roll

log = logging.getLogger(__name__)

T = TypeVar("T")

REFRESH_SECONDS = 0.5  # between looks at what other replicas have written
WAIT_SECONDS = 8.0  # for a write, with those before it
LOOK_SECONDS = 1.0  # for what `GetModel` says; after that it says what was known before
MOST_WAITING = 256  # labels that wait to be written
_KEY_FILE = "receipt.key"


@dataclass(frozen=True, slots=True)
class ObservingRules:
    """What an operator says beside `Rules`; `most_bytes`: of a receipt."""

    receipt_days: float
    keep_inputs: bool
    observed_rows: int
    most_bytes: int


@dataclass(frozen=True, slots=True)
class Issued:
    """What goes with an answer: an id and a receipt, or why there is none."""

    prediction_id: str = ""
    receipt: bytes = b""
    warning: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """What came of labels that were brought back, and the receipt that they were brought with."""

    receipt: Receipt
    scored: Scored
    outcome: Outcome


def settle_coverage(predictive: Predictive, served: float | None) -> Predictive:
    """Put everything, or nothing, in the place of sets and intervals where a stream asks for a coverage of 1, or 0.

    Every class or none; the whole line, or a point at the mean, which counts as holding no label.
    """
    if served not in (0.0, 1.0):
        return predictive
    answer = predictive.answer
    if isinstance(answer, Classification):
        chosen = np.full(answer.probabilities.shape, served == 1.0)
        return replace(predictive, answer=replace(answer, prediction_set=chosen))
    reach = np.full((*answer.mean.shape, 2), [-np.inf, np.inf])
    interval = reach if served == 1.0 else np.repeat(answer.mean[..., None], 2, -1)
    return replace(predictive, answer=replace(answer, prediction_interval=interval))


def open_key(observations: Observations, file: Path | None) -> bytes:
    """Return the key of receipts: of a file, else kept beside a SQLite store, or in another database."""
    if file is not None:
        return read_key(file)
    folder = observations.database.folder
    if folder is not None:
        return make_key_file(folder / _KEY_FILE)
    return bytes.fromhex(observations.fact("receipt_key", lambda: new_key().hex()))


class Observer:
    """Everything that a server does with labels; belongs to one event loop. `clock`: seconds since 1970."""

    def __init__(
        self, observations: Observations, key: bytes, rules: ObservingRules, clock: Callable[[], float]
    ) -> None:
        self._observations = observations
        self._key = key
        self._rules = rules
        self._clock = clock
        self._writes = ThreadPoolExecutor(1, thread_name_prefix="observe")
        self._reads = ThreadPoolExecutor(1, thread_name_prefix="observed")
        self._waiting = 0
        self._reading = 0
        self._streams: Mapping[StreamKey, AdaptiveState] = observations.streams()
        self._rolling: dict[tuple[str, int], tuple[Rolling, ...]] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._lost = False

    def start(self) -> None:
        """Look at what other replicas write, from now on."""
        self._refreshing = asyncio.create_task(self._refresh())

    async def close(self, seconds: float) -> bool:
        """Let writes end, at most so many seconds; False where they take longer."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        self._writes.shutdown(wait=False)
        self._reads.shutdown(wait=False, cancel_futures=True)
        end = asyncio.get_running_loop().time() + seconds
        while self._waiting or self._reading:
            if asyncio.get_running_loop().time() > end:
                return False
            await asyncio.sleep(0.01)
        self._observations.close()
        return True

    # --- Predictions ---

    def coverage_to_ask(self, version: ModelVersion, calibration: str, stream: str, coverage: float) -> float:
        """Return the coverage at which a stream's next answer is made, 0 to 1; at first that which is wanted."""
        state = self._streams.get(StreamKey(version.name, version.version, calibration, stream, coverage))
        return coverage if state is None else state.coverage_to_ask

    def issue(
        self,
        version: ModelVersion,
        calibration: Calibration | None,
        inputs: Mapping[str, Any],
        predictive: Predictive,
        *,
        stream: str,
        coverage: float | None,
        served_coverage: float | None,
    ) -> Issued:
        """Return the receipt of an answer."""
        grouping = None if calibration is None else calibration.grouping
        receipt = make_receipt(
            predictive,
            calibration,
            model=version.name,
            version=version.version,
            prediction_id=new_prediction_id(),
            issued=self._clock(),
            stream=stream,
            coverage=coverage,
            served_coverage=served_coverage,
            groups=None if grouping is None else grouping.of(inputs),
            inputs={name: value.numpy() for name, value in inputs.items()} if self._rules.keep_inputs else None,
        )
        if receipt.bytes > self._rules.most_bytes:
            most = f"{self._rules.most_bytes} bytes, half of what a message may hold"
            return Issued(warning=f"no receipt: it would take {receipt.bytes} bytes, more than {most}; ask fewer rows")
        return Issued(receipt.prediction_id, sign(receipt, self._key))

    # --- Labels ---

    def verify(self, data: bytes) -> Receipt:
        """Read a receipt; `InvalidArgument` where it is none of this server's, or too old."""
        return verify_receipt(data, self._key, now=self._clock(), days=self._rules.receipt_days)

    async def observe(self, receipt: Receipt, label: NDArray[Any], reference: Sequence[float] | None) -> Observed:
        """Take labels in, once per prediction; raises what `Observations.record` does, or `InvalidArgument`.

        `reference`: scores of the receipt's calibration, where it is loaded. Labels are written even where the caller
        has left: it brings them again and hears that they are a repeat.
        """
        checked, now = read_label(label, receipt), self._clock()
        if self._waiting >= MOST_WAITING:
            raise StateUnavailable(f"is behind: {self._waiting} labels wait")
        self._waiting += 1
        loop = asyncio.get_running_loop()
        try:
            write = loop.run_in_executor(self._writes, self._record, receipt, checked, now, reference)
        except RuntimeError:
            self._waiting -= 1
            raise StateUnavailable("is closed: the server is stopping") from None
        write.add_done_callback(self._written)
        try:
            return await asyncio.wait_for(asyncio.shield(write), WAIT_SECONDS)
        except TimeoutError:
            raise StateUnavailable(f"has not answered within {WAIT_SECONDS:g} s") from None

    def _record(self, receipt: Receipt, label: NDArray[Any], now: float, reference: Sequence[float] | None) -> Observed:
        """Score and write, in the thread of writes."""
        scored = score(receipt, label)
        inputs = write_inputs(receipt.inputs) if self._rules.keep_inputs and receipt.inputs else None
        return Observed(receipt, scored, self._observations.record(receipt, scored, now, reference, inputs))

    def _learn(self, observed: Observed) -> None:
        """Take up at once what labels did to their stream, and say which alarms they raised."""
        receipt, outcome = observed.receipt, observed.outcome
        if outcome.stream is not None and receipt.coverage is not None:
            key = StreamKey(receipt.model, receipt.version, receipt.calibration_id, receipt.stream, receipt.coverage)
            self._streams = {**self._streams, key: outcome.stream}
        for alarm in outcome.alarms:
            log.warning(
                "drift alarm of=%s model=%s version=%d calibration=%s",
                alarm, receipt.model, receipt.version, receipt.calibration_id,
            )  # fmt: skip

    def _written(self, write: asyncio.Future[Observed]) -> None:
        """Learn of a write that ended, also where nobody waits for it any more."""
        self._waiting -= 1
        if not write.cancelled() and write.exception() is None:
            self._learn(write.result())

    # --- What was observed ---

    async def rolling(self, version: ModelVersion) -> tuple[Rolling, ...]:
        """Return what the newest labels say of a version, by calibration; what was known before where that lasts."""
        name, number = version.name, version.version
        current = "" if version.calibration is None else version.calibration.id
        try:
            found = await asyncio.wait_for(self._read(lambda: self._roll(name, number, current)), LOOK_SECONDS)
        except (TimeoutError, StateUnavailable) as error:
            log.warning("observations not read model=%s version=%d reason=%s", name, number, str(error) or "late")
            return self._rolling.get((name, number), ())
        self._rolling[name, number] = found
        return found

    def _roll(self, model: str, version: int, current: str) -> tuple[Rolling, ...]:
        newest = self._observations.newest(model, version, self._rules.observed_rows)
        streams = {key: state for key, state in self._streams.items() if (key.model, key.version) == (model, version)}
        return roll(newest, self._observations.drifts(model, version), streams, current)

    async def _read(self, act: Callable[[], T]) -> T:
        """Read in the thread of reads, unless many wait for it."""
        if self._reading >= MOST_WAITING:
            raise StateUnavailable("is behind")
        self._reading += 1
        try:
            read = asyncio.get_running_loop().run_in_executor(self._reads, act)
        except RuntimeError:
            self._reading -= 1
            raise StateUnavailable("is closed") from None
        read.add_done_callback(self._looked)
        return await asyncio.shield(read)

    def _looked(self, read: asyncio.Future[Any]) -> None:
        self._reading -= 1
        if not read.cancelled():
            read.exception()

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            try:
                self._streams = await self._read(self._observations.streams)
            except StateUnavailable as error:
                if not self._lost:  # said once, not every second
                    log.warning("observations not read reason=%s", error)
                self._lost = True
            except Exception:  # whatever lies in the store, it looks again
                log.exception("observations could not be read")
            else:
                self._lost = False


def open_observer(
    state: str,
    key_file: Path | None,
    kept: Rules,
    rules: ObservingRules,
    clock: Callable[[], float],
) -> Observer:
    """Open the store of observations and its key; raises `InvalidArgument` or `CannotOpenState`."""
    observations = Observations(state, kept)
    try:
        return Observer(observations, open_key(observations, key_file), rules, clock)
    except DubitoError:
        observations.close()
        raise


def find_reference(version: ModelVersion | None, receipt: Receipt) -> Sequence[float] | None:
    """Return the scores that a receipt's calibration was fitted to, of its one column; None where it is not loaded."""
    calibration = None if version is None else version.calibration
    if calibration is None or calibration.id != receipt.calibration_id or not calibration.conformal:
        return None
    columns = calibration.conformal[-1].conformal.groups[0].scores
    return columns[0] if len(columns) == 1 else None
