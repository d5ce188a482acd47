"""Answers: what is asked of the draws, and the columns that scoring adds to a table.

The name of every added column begins with `dubito_`. What one draw cannot tell is null, and so is everything but the
status and the problem of a row that could not be scored. B rows, K outputs (classes or targets), Q quantiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as arrow
from numpy.typing import NDArray

from dubito_client.answers import Design, Estimator, InputSignature
from dubito_client.errors import ProtocolError, refused
from dubito_client.stopping import Stopping

PREFIX = "dubito_"
OK, INVALID = "OK", "INVALID"
STATUS, PROBLEM = f"{PREFIX}status", f"{PREFIX}problem"
INTERVAL_LEVEL = 0.9  # where nobody asks for another
# The arrays of an answer that become columns, by their names in a `Prediction`; what every answer has, and the others.
ARRAYS = ("draws", "stop_reason")
OPTIONAL_ARRAYS = (
    "label", "probabilities", "predictive_entropy", "expected_entropy", "mutual_information", "standard_deviation",
    "margin", "prediction_set", "mean", "total_variance", "epistemic_variance", "aleatoric_variance", "interval",
    "quantiles", "prediction_interval", "standard_error", "abstain",
)  # fmt: skip
_STATUSES = (OK, INVALID)
_STOP_REASONS = ("max_draws", "tolerance", "decision", "threshold", "deadline", "load")
_WORD = arrow.dictionary(arrow.int32(), arrow.string())
_REAL = arrow.float64()


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of the draws of every row; None takes the model's own.

    `tolerance` is short for the stopping rule of that name; `interval_level` and `quantiles` are of a regression.
    """

    draws: int | None = None  # at most
    min_draws: int | None = None
    tolerance: float | None = None
    stopping: Stopping | None = None
    seed: int | None = None
    coverage: float | None = None  # of prediction sets or intervals
    interval_level: float | None = None
    quantiles: tuple[float, ...] = ()
    design: Design | None = None
    estimator: Estimator | None = None

    def __post_init__(self) -> None:
        if self.tolerance is not None and self.stopping is not None:
            raise refused("tolerance", self.tolerance, "tolerance or stopping, not both")

    @property
    def rule(self) -> Stopping | None:
        """The stopping rule; None for that of the model's calibration."""
        return self.stopping if self.tolerance is None else Stopping.tolerance(self.tolerance)

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it; equal where the same is asked."""
        rule = self.rule
        changes = {"stopping": None if rule is None else asdict(rule), "quantiles": list(self.quantiles)}
        return {name: value for name, value in {**asdict(self), **changes}.items() if name != "tolerance"}


@dataclass(frozen=True, slots=True)
class Described:
    """One version of a model, as far as scoring a table needs to know it."""

    model: str
    version: int
    task: str  # "classification" or "regression"
    head: str
    outputs: int  # K
    class_names: tuple[str, ...]
    inputs: tuple[InputSignature, ...]
    checksums: Mapping[str, str]
    calibration_id: str | None
    covers: bool  # whether the calibration has prediction sets or intervals
    abstains: bool  # whether the calibration says when to
    max_rows: int | None = None  # of a request to its server

    @property
    def classifies(self) -> bool:
        """Whether it is a classifier."""
        return self.task == "classification"


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """The answers to some rows of a block."""

    rows: NDArray[np.int64]  # (B,): their positions in the block
    answers: Mapping[str, NDArray[Any]]  # (B, ...) by name, as `Scorer.score` returns them


@dataclass(frozen=True, slots=True)
class _Column:
    """One column that scoring adds: the array of an answer that it is of, and the place in that array's last axis."""

    name: str
    type: arrow.DataType
    text: str  # what it is, and in what unit
    source: str
    place: int | None = None

    @property
    def field(self) -> arrow.Field:
        return arrow.field(PREFIX + self.name, self.type, metadata={"description": self.text})


def check_asked(asked: Asked, described: Described) -> None:
    """Raise `InvalidArgument` where a model cannot answer what is asked."""
    label = f"{described.model} version {described.version}"
    if asked.coverage is not None and not described.covers:
        accepted = f"none: {label} has no calibration with scores for it (dubito calibrate makes them)"
        raise refused("coverage", asked.coverage, accepted)
    if described.classifies:
        for name, value in (("interval_level", asked.interval_level), ("quantiles", asked.quantiles or None)):
            if value is not None:
                raise refused(name, value, f"none: {label} is a classifier")


def check_names(schema: arrow.Schema) -> None:
    """Raise `InvalidArgument` where a table's own name of a column begins as those added do, or stands there twice."""
    for name in schema.names:
        if name.startswith(PREFIX):
            raise refused("input", f"a column {name!r}", f"names that do not begin with {PREFIX}, as those added do")
        if len(schema.get_all_field_indices(name)) > 1:
            raise refused("input", f"two columns {name!r}", "each name once")


def scored_schema(schema: arrow.Schema, described: Described, asked: Asked) -> arrow.Schema:
    """Return the columns of a table once it is scored: its own, then those of `result_schema`.

    Raises `InvalidArgument` where `check_names` does.
    """
    check_names(schema)
    return arrow.schema([*schema, *result_schema(described, asked)], schema.metadata)


def result_schema(described: Described, asked: Asked) -> arrow.Schema:
    """Return the columns that scoring adds, each with its description as metadata."""
    return arrow.schema([*_OUTCOME, *(column.field for column in _columns(described, asked))])


_OUTCOME = (
    arrow.field(STATUS, _WORD, metadata={"description": f"{OK}, or {INVALID}: the row could not be scored"}),
    arrow.field(PROBLEM, arrow.string(), metadata={"description": "why it could not; null where it could"}),
)


def _columns(described: Described, asked: Asked) -> Iterator[_Column]:
    yield from _of_classes(described, asked) if described.classifies else _of_targets(described, asked)
    mean = "of each probability" if described.classifies else "of the mean, in the target's unit"
    text = f"Monte Carlo standard error {mean}, over seeds of the masks"
    yield _Column("standard_error", _per_output(described), text, "standard_error")
    yield _Column("draws", arrow.int32(), "thinned networks drawn for the row", "draws")
    yield _Column("stop_reason", _WORD, "why drawing ended; max_draws: no rule ended it", "stop_reason")
    if described.abstains:
        text = "whether the row is too uncertain for the risk that was calibrated"
        yield _Column("abstain", arrow.bool_(), text, "abstain")


def _of_classes(described: Described, asked: Asked) -> Iterator[_Column]:
    every = _per_output(described)
    yield _Column("label", arrow.int64(), "number of the most probable class", "label")
    if described.class_names:
        yield _Column("class_name", _WORD, "name of the most probable class", "label")
    yield _Column("probabilities", every, "of each class: mean over draws", "probabilities")
    for name, text in (
        ("predictive_entropy", "total uncertainty, nats"),
        ("expected_entropy", "aleatoric part of the predictive entropy, nats"),
        ("mutual_information", "epistemic part of the predictive entropy, nats"),
    ):
        yield _Column(name, _REAL, text, name)
    yield _Column("standard_deviation", every, "of each class's probability, over draws", "standard_deviation")
    yield _Column("margin", _REAL, "highest probability less the second highest", "margin")
    if asked.coverage is not None:
        text = f"numbers of the classes that hold the truth with probability {asked.coverage}"
        yield _Column("prediction_set", arrow.list_(arrow.int64()), text, "prediction_set")


def _of_targets(described: Described, asked: Asked) -> Iterator[_Column]:
    each = _per_output(described)
    yield _Column("mean", each, "predictive mean, in the target's unit", "mean")
    for name, text in (
        ("total_variance", "epistemic and aleatoric variance together"),
        ("epistemic_variance", "variance over draws"),
        ("aleatoric_variance", "variance of the noise; null where the model does not know it"),
    ):
        yield _Column(name, each, f"{text}, in the target's unit squared", name)
    level = INTERVAL_LEVEL if asked.interval_level is None else asked.interval_level
    yield from _bounds("interval", each, f"of the central interval that holds {level} of the predictive distribution")
    if asked.coverage is not None:
        text = f"of the interval that holds the truth with probability {asked.coverage}"
        yield from _bounds("prediction_interval", each, text)
    if asked.quantiles:
        levels = ", ".join(map(str, asked.quantiles))
        several = arrow.list_(_REAL, len(asked.quantiles))
        kind = several if described.outputs == 1 else arrow.list_(several, described.outputs)
        yield _Column("quantiles", kind, f"of the predictive distribution, at {levels}", "quantiles")


def _bounds(name: str, kind: arrow.DataType, text: str) -> Iterator[_Column]:
    for place, end in enumerate(("lower", "upper")):
        yield _Column(f"{name}_{end}", kind, f"{end} end {text}, in the target's unit", name, place)


def _per_output(described: Described) -> arrow.DataType:
    """Return the type of one number for each output: a plain one for a single target."""
    return _REAL if described.outputs == 1 else arrow.list_(_REAL, described.outputs)


def to_columns(answers: Mapping[str, NDArray[Any]], described: Described, asked: Asked) -> list[arrow.Array]:
    """Return the columns of `result_schema` behind status and problem, for rows that all were answered.

    An array that an answer does not have, and NaN in one that it has, is null.
    """
    rows = len(answers["draws"])
    return [_to_column(answers.get(column.source), column, rows, described) for column in _columns(described, asked)]


def _to_column(values: NDArray[Any] | None, column: _Column, rows: int, described: Described) -> arrow.Array:
    if values is None:
        return arrow.nulls(rows, column.type)
    if column.source == "prediction_set":
        return _sets(values)
    if column.name == "class_name":
        return _words(values.astype(np.int32), described.class_names)
    if column.source == "stop_reason":
        words = (*_STOP_REASONS, *sorted({*values.tolist()}.difference(_STOP_REASONS)))
        codes = {word: code for code, word in enumerate(words)}
        return _words(np.array([codes[word] for word in values.tolist()], np.int32), words)
    if column.place is not None:
        values = values[..., column.place]
    return _reals(values, column.type) if values.dtype.kind == "f" else arrow.array(values, column.type)


def _reals(values: NDArray[Any], kind: arrow.DataType) -> arrow.Array:
    """Return numbers (B, ...) as plain ones, or as lists of a fixed size; a list without any number is null."""
    if not arrow.types.is_fixed_size_list(kind):
        flat = np.ascontiguousarray(values).reshape(-1)
        missing = np.isnan(flat)
        return arrow.array(flat, kind, mask=missing if missing.any() else None)
    size = kind.list_size
    inner = values.reshape(len(values) * size, -1) if values.ndim > 2 else values.reshape(-1)
    missing = np.isnan(values).reshape(len(values), -1).all(1)
    mask = arrow.array(missing) if missing.any() else None
    return arrow.FixedSizeListArray.from_arrays(_reals(inner, kind.value_type), type=kind, mask=mask)


def _sets(members: NDArray[np.bool_]) -> arrow.Array:
    """Return class numbers by row, of (B, K)."""
    ends = np.concatenate([[0], np.cumsum(members.sum(1))]).astype(np.int32)
    return arrow.ListArray.from_arrays(ends, arrow.array(np.nonzero(members)[1].astype(np.int64)))


def _words(codes: NDArray[np.int32], words: Sequence[str]) -> arrow.Array:
    return arrow.DictionaryArray.from_arrays(arrow.array(codes), arrow.array(words, arrow.string()))


def concatenate(parts: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Put the answers to several rows each one after the other; what one of them does not say is NaN or 0 there."""
    if len(parts) == 1:
        return dict(parts[0])
    alike = {name: values for part in parts for name, values in part.items()}
    return {
        name: np.concatenate([part[name] if name in part else _nothing(len(part["draws"]), values) for part in parts])
        for name, values in alike.items()
    }


def _nothing(rows: int, like: NDArray[Any]) -> NDArray[Any]:
    return np.full((rows, *like.shape[1:]), np.nan if like.dtype.kind == "f" else 0, like.dtype)


def assemble(
    block: arrow.RecordBatch,
    scored: Sequence[Scored],
    problems: Mapping[int, str],
    described: Described,
    asked: Asked,
) -> arrow.RecordBatch:
    """Put answers beside the rows of a block that they are of; rows with `problems`, by position, have none."""
    rows = block.num_rows
    texts = np.full(rows, None, object)
    for row, problem in problems.items():
        texts[row] = problem
    bad = np.array([text is not None for text in texts], np.bool_)
    outcome = [_words(bad.astype(np.int32), _STATUSES), arrow.array(texts, arrow.string())]
    places = np.full(rows, -1, np.int64)
    answered = np.concatenate([each.rows for each in scored]) if scored else np.zeros(0, np.int64)
    places[answered] = np.arange(len(answered))
    if not np.array_equal(places < 0, bad) or len(answered) + len(problems) != rows:
        raise ProtocolError(f"{len(answered)} answers and {len(problems)} problems for a block of {rows} rows")
    schema = scored_schema(block.schema, described, asked)
    if scored:
        columns = to_columns(concatenate([each.answers for each in scored]), described, asked)
        if not np.array_equal(places, np.arange(rows)):
            order = arrow.array(places, mask=bad)
            columns = [column.take(order) for column in columns]
    else:
        columns = [arrow.nulls(rows, column.type) for column in _columns(described, asked)]
    return arrow.RecordBatch.from_arrays([*block.columns, *outcome, *columns], schema=schema)
