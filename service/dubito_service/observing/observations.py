"""The store of observations: scored labels, what streams have learned of them, and tests of drift.

A prediction's labels, the state of its stream and the tests move in one transaction, and once: its id is a primary key.
What is kept is bounded. The oldest predictions, by when their receipts were issued, are forgotten in batches; a
watermark stays of when the newest of them was issued. Receipts up to it are refused, as nobody knows any more whether
their labels came before.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import sqlalchemy as sql
from numpy.typing import NDArray

from dubito_models.calibration.adaptive import AdaptiveState
from dubito_models.errors import DubitoError, InvalidArgument
from dubito_service.errors import AlreadyObserved, CannotOpenState, StateUnavailable
from dubito_service.observing.database import Database
from dubito_service.observing.drift import Drift, read_drift, write_drift
from dubito_service.observing.labels import Scored
from dubito_service.observing.observed_tables import (
    FACTS,
    MEASURES,
    PREDICTIONS,
    ROWS,
    STATES,
    TABLES,
    row_values,
    stack,
)
from dubito_service.observing.receipts import Receipt

log = logging.getLogger(__name__)

Array = NDArray[np.float64]

MOST_STATES = 1000  # of streams, and of drift: the least recently moved are forgotten
SCORE, EPISTEMIC = "conformal_score", "epistemic_uncertainty"

_STREAM = "stream"
_WATERMARK = "watermark"
_SCHEMA = "1"


@dataclass(frozen=True, slots=True)
class StreamKey:
    """Whose labels move one adaptive state: a stream's under one calibration, at one coverage."""

    model: str
    version: int
    calibration: str
    stream: str
    coverage: float


@dataclass(frozen=True, slots=True)
class Rules:
    """What an operator says of observations: rows kept, the step of adaptation, the probability of a false alarm."""

    rows: int = 1_000_000
    adaptation: float = 0.01
    false_alarm: float = 0.01


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an observation: whether it was a repeat, its stream's state, and which tests raised an alarm."""

    duplicate: bool
    stream: AdaptiveState | None = None
    alarms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest rows of a version, by calibration and stream; measures (N,), NaN where they were not known."""

    calibration: tuple[str, ...]
    stream: tuple[str, ...]
    seconds: Array
    measures: dict[str, Array]


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Nonconformity scores (N, columns) of answers that were drawn as calibrated, with their labels and groups."""

    scores: Array
    labels: Array
    members: NDArray[np.int64]  # -1 where the calibration knows no groups


@dataclass(frozen=True, slots=True)
class KeptInputs:
    """Inputs as their predictions kept them, with the labels of their rows, the oldest first."""

    inputs: tuple[bytes, ...]
    labels: tuple[Array, ...]  # each (B, 1 or K)


class Observations:
    """A store; its methods block, and raise `StateUnavailable` where the database does."""

    def __init__(self, state: str, rules: Rules) -> None:
        """Open the store in a folder, or at an address; raises `InvalidArgument` or `CannotOpenState`."""
        self.database = Database(state)
        self._rules = rules
        self._batch = max(1, rules.rows // 100)
        self._unpruned = self._batch  # what lies there already is counted first
        try:
            self.database.create(TABLES)
            found = self.fact("schema", lambda: _SCHEMA)
            if found != _SCHEMA:
                raise CannotOpenState(f"state: {self.database.name} is of another release (its tables are {found})")
        except DubitoError:
            self.close()
            raise

    def fact(self, name: str, make: Callable[[], str]) -> str:
        """Return what all replicas agree on under a name: what the first of them made."""

        def act(connection: sql.Connection) -> str:
            self.database.insert_new(connection, FACTS, name=name, value=make())
            return str(connection.execute(sql.select(FACTS.c.value).where(FACTS.c.name == name)).scalar_one())

        return self.database.write(act)

    def close(self) -> None:
        """Give up all connections."""
        self.database.close()

    # --- Writing ---

    def record(
        self, receipt: Receipt, scored: Scored, now: float, reference: Sequence[float] | None, inputs: bytes | None
    ) -> Outcome:
        """Take labels in, once; `reference`: the calibration's scores of one column, None where they are not known.

        Raises `AlreadyObserved` for other labels than before, `InvalidArgument` for a receipt older than what is kept.
        """
        outcome = self.database.write(
            lambda connection: self._record(connection, receipt, scored, now, reference, inputs)
        )
        if not outcome.duplicate:
            self._unpruned += receipt.rows
            if self._unpruned >= self._batch:
                self._prune_soon()
        return outcome

    def _record(
        self,
        connection: sql.Connection,
        receipt: Receipt,
        scored: Scored,
        now: float,
        reference: Sequence[float] | None,
        inputs: bytes | None,
    ) -> Outcome:
        watermark = _watermark(connection)
        if receipt.issued <= watermark:
            accepted = "a receipt issued after those that were forgotten: only so many rows are kept (--state-rows)"
            raise InvalidArgument("receipt", "one older than what is kept of labels", accepted)
        first = self.database.insert_new(
            connection,
            PREDICTIONS,
            id=receipt.prediction_id,
            labels=scored.digest,
            model=receipt.model,
            version=receipt.version,
            rows=receipt.rows,
            issued=receipt.issued,
            inputs=inputs,
        )
        if not first:
            query = sql.select(PREDICTIONS.c.labels).where(PREDICTIONS.c.id == receipt.prediction_id)
            if connection.execute(query).scalar_one() != scored.digest:
                raise AlreadyObserved(receipt.prediction_id)
            return Outcome(duplicate=True)
        connection.execute(ROWS.insert(), row_values(receipt, scored, now))
        alarms = self._test(connection, receipt, scored, now, reference)
        return Outcome(False, self._adapt(connection, receipt, scored, now), alarms)

    def _test(
        self,
        connection: sql.Connection,
        receipt: Receipt,
        scored: Scored,
        now: float,
        reference: Sequence[float] | None,
    ) -> tuple[str, ...]:
        """Move the tests of drift, of answers that were drawn as calibrated alone: others differ of themselves."""
        alarms = []
        if not scored.exact:
            return ()
        single = scored.scores is not None and scored.scores.shape[1] == 1
        for kind, values in (
            (SCORE, None if scored.scores is None else scored.scores.max(-1)),
            (EPISTEMIC, scored.epistemic),
        ):
            if values is None:
                continue
            known = reference if kind == SCORE and single else None
            key = _key(kind, receipt.model, receipt.version, receipt.calibration_id)
            if kind == SCORE and single and known is None and not self._there(connection, key):
                continue  # of a calibration that this replica does not hold: one that does starts the test
            data = self._lock(connection, key, now)
            before = Drift.start(known, self._rules.false_alarm, *key.values()) if data is None else read_drift(data)
            drift = before.after(values)
            self._save(connection, key, now, write_drift(drift), new=data is None)
            if drift.alarm and not before.alarm:
                alarms.append(kind)
        return tuple(alarms)

    def _adapt(self, connection: sql.Connection, receipt: Receipt, scored: Scored, now: float) -> AdaptiveState | None:
        if not receipt.stream or receipt.coverage is None or scored.covered is None:
            return None
        coverage = repr(receipt.coverage)
        key = _key(_STREAM, receipt.model, receipt.version, receipt.calibration_id, receipt.stream, coverage)
        data = self._lock(connection, key, now)
        step = self._rules.adaptation
        start = AdaptiveState.start(1.0 - receipt.coverage, step) if data is None else _read_adaptive(data)
        covered = scored.covered
        state = replace(start, step=step).after_many(covered.size, int((~covered).sum()))
        self._save(connection, key, now, json.dumps(asdict(state)).encode(), new=data is None)
        return state

    def _there(self, connection: sql.Connection, key: dict[str, str]) -> bool:
        query = sql.select(STATES.c.kind).where(*(STATES.c[name] == value for name, value in key.items()))
        return connection.execute(query).scalar_one_or_none() is not None

    def _lock(self, connection: sql.Connection, key: dict[str, str], now: float) -> bytes | None:
        """Return the document of a state, which is this transaction's until its end; None where it is new."""
        query = sql.select(STATES.c.document).where(*(STATES.c[name] == value for name, value in key.items()))
        found = connection.execute(query.with_for_update()).scalar_one_or_none()
        if found is None and self.database.insert_new(connection, STATES, **key, moved=now, document=b""):
            return None  # nobody else can make it now
        if found is None:
            found = connection.execute(query.with_for_update()).scalar_one()
        return bytes(found) or None

    def _save(self, connection: sql.Connection, key: dict[str, str], now: float, document: bytes, *, new: bool) -> None:
        where = [STATES.c[name] == value for name, value in key.items()]
        connection.execute(STATES.update().where(*where).values(moved=now, document=document))
        if new:
            _forget_states(connection, key["kind"])

    def _prune_soon(self) -> None:
        """Forget the oldest predictions where there are more rows than are kept, now or after the next labels."""
        try:
            self.database.write(self._prune)
        except StateUnavailable as error:  # the labels are kept all the same
            log.warning("observations not pruned reason=%s", error)
        else:
            self._unpruned = 0

    def _prune(self, connection: sql.Connection) -> None:
        kept = connection.execute(sql.select(sql.func.coalesce(sql.func.sum(PREDICTIONS.c.rows), 0))).scalar_one()
        if kept <= self._rules.rows:
            return
        excess, until = int(kept) - self._rules.rows + self._batch - 1, -math.inf
        oldest = sql.select(PREDICTIONS.c.issued, PREDICTIONS.c.rows).order_by(PREDICTIONS.c.issued).limit(excess)
        for issued, rows in connection.execute(oldest):  # each has a row at least
            if excess <= 0:
                break
            until, excess = issued, excess - rows
        old = sql.select(PREDICTIONS.c.id).where(PREDICTIONS.c.issued <= until)
        connection.execute(ROWS.delete().where(ROWS.c.prediction.in_(old)))
        connection.execute(PREDICTIONS.delete().where(PREDICTIONS.c.issued <= until))
        highest = max(until, _watermark(connection))
        self.database.insert_new(connection, FACTS, name=_WATERMARK, value=repr(highest))
        connection.execute(FACTS.update().where(FACTS.c.name == _WATERMARK).values(value=repr(highest)))

    # --- Reading ---

    def streams(self) -> dict[StreamKey, AdaptiveState]:
        """Return the state of every stream."""

        def act(connection: sql.Connection) -> dict[StreamKey, AdaptiveState]:
            found = connection.execute(sql.select(STATES).where(STATES.c.kind == _STREAM)).all()
            return {
                StreamKey(row.model, int(row.version), row.calibration, row.stream, float(row.coverage)): (
                    _read_adaptive(bytes(row.document))
                )
                for row in found
            }

        return self.database.read(act)

    def drifts(self, model: str, version: int) -> dict[tuple[str, str], Drift]:
        """Return the tests of a version by calibration and by what they test."""

        def act(connection: sql.Connection) -> dict[tuple[str, str], Drift]:
            where = (STATES.c.model == model, STATES.c.version == str(version), STATES.c.kind != _STREAM)
            found = connection.execute(sql.select(STATES).where(*where)).all()
            return {(row.calibration, row.kind): read_drift(bytes(row.document)) for row in found}

        return self.database.read(act)

    def newest(self, model: str, version: int, rows: int) -> Newest:
        """Return so many of the newest rows of a version, the newest first."""
        columns = [ROWS.c[name] for name in ("calibration", "stream", "seconds", *MEASURES)]
        query = sql.select(*columns).where(ROWS.c.model == model, ROWS.c.version == version)

        def act(connection: sql.Connection) -> Newest:
            found = connection.execute(query.order_by(ROWS.c.number.desc()).limit(rows)).all()
            table = [list(column) for column in zip(*found, strict=True)] or [[] for _ in columns]
            measures = [np.array(column, dtype=np.float64) for column in table[3:]]
            return Newest(
                tuple(table[0]), tuple(table[1]), np.array(table[2]), dict(zip(MEASURES, measures, strict=True))
            )

        return self.database.read(act)

    def exact_scores(self, model: str, version: int, calibration: str, rows: int) -> ScoredRows:
        """Return the scores of the newest rows, at most so many, that were drawn as a calibration's own rows."""
        where = (
            ROWS.c.model == model,
            ROWS.c.version == version,
            ROWS.c.calibration == calibration,
            ROWS.c.exact,
            ROWS.c.scores.is_not(None),
        )
        query = sql.select(ROWS.c.scores, ROWS.c.labels, ROWS.c.member).where(*where)

        def act(connection: sql.Connection) -> ScoredRows:
            found = connection.execute(query.order_by(ROWS.c.number.desc()).limit(rows)).all()
            members = [-1 if row.member is None else row.member for row in found]
            scores, labels = stack([row.scores for row in found]), stack([row.labels for row in found])
            return ScoredRows(scores, labels, np.array(members, dtype=np.int64))

        return self.database.read(act)

    def kept_inputs(self, model: str, version: int, rows: int) -> KeptInputs:
        """Return the newest inputs that were kept, and the labels of their rows, of at most so many rows."""
        kept = sql.select(PREDICTIONS.c.id, PREDICTIONS.c.inputs).where(
            PREDICTIONS.c.model == model, PREDICTIONS.c.version == version, PREDICTIONS.c.inputs.is_not(None)
        )

        def act(connection: sql.Connection) -> KeptInputs:
            inputs: list[bytes] = []
            labels: list[Array] = []
            count = 0
            for prediction, data in connection.execute(kept.order_by(PREDICTIONS.c.issued.desc())):
                own = sql.select(ROWS.c.labels).where(ROWS.c.prediction == prediction).order_by(ROWS.c.number)
                found = stack(list(connection.execute(own).scalars()))
                count += len(found)
                if count > rows:
                    break
                inputs.append(bytes(data))
                labels.append(found)
            return KeptInputs(tuple(inputs[::-1]), tuple(labels[::-1]))

        return self.database.read(act)


def _key(kind: str, model: str, version: int, calibration: str, stream: str = "", coverage: str = "") -> dict[str, str]:
    return {
        "kind": kind,
        "model": model,
        "version": str(version),
        "calibration": calibration,
        "stream": stream,
        "coverage": coverage,
    }


def _watermark(connection: sql.Connection) -> float:
    found = connection.execute(sql.select(FACTS.c.value).where(FACTS.c.name == _WATERMARK)).scalar_one_or_none()
    return -math.inf if found is None else float(found)


def _forget_states(connection: sql.Connection, kind: str) -> None:
    newest = sql.select(STATES.c.moved).where(STATES.c.kind == kind).order_by(STATES.c.moved.desc())
    edge = connection.execute(newest.offset(MOST_STATES).limit(1)).scalar_one_or_none()
    if edge is not None:
        connection.execute(STATES.delete().where(STATES.c.kind == kind, STATES.c.moved <= edge))


def _read_adaptive(document: bytes) -> AdaptiveState:
    return AdaptiveState(**json.loads(document))
