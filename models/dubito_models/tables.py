"""Tables to train on: one's own .csv or .parquet file, its columns' kinds inferred, its cells as numbers.

**Kinds.** Numbers, and texts that all say numbers or true and false, are a number column; other texts are categories,
as are the texts that Parquet has as a dictionary (a pandas categorical), whatever they say. Dates are refused: what of
them matters (days since an event, month, weekday) only their owner knows. Categories of fewer than `RARE` rows share
code 0, that of what training has never seen. A column that can teach nothing (without a value, the same in every row,
as many categories as rows) is refused, with the advice to leave it out.

**Targets.** Texts, true and false are classes. So are whole numbers of few values that come back (`MOST_CLASSES`,
`ROWS_OF_A_CLASS`); other numbers are a regression. `task` overrides it.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dubito_models.columns import NUMBER, TRUTH, Column, number_of, text_of
from dubito_models.data.splits import SHARES, Splits, share_out, take
from dubito_models.errors import InvalidArgument
from dubito_models.files import read_lines
from dubito_models.heads import Task

RARE = 5  # categories of fewer rows share code 0
MOST_CATEGORIES = 1000  # of one column; the rarer ones share code 0
MOST_CLASSES = 20  # that whole numbers are taken for
ROWS_OF_A_CLASS = 10  # at least, so that each of four splits gets one
LEAST_ROWS = 50
MANY_NUMBERS = 20  # so many different ones among texts are no categories
LOST = 1e-3  # of a column's standard deviation may go when it is rounded to float32

Texts: TypeAlias = list[str | None]
Cells: TypeAlias = NDArray[np.float64] | Texts


@dataclass(frozen=True, slots=True)
class Table:
    """A table as numbers, in the order of its file.

    `inputs` (N, C) float32 as `columns` say. `targets`: class numbers (N,) int64, or numbers (N, 1) float32. `notes`:
    what was decided on the way and its owner might want otherwise.
    """

    inputs: NDArray[np.float32]
    targets: NDArray[Any]
    columns: tuple[Column, ...]
    task: Task
    target_name: str
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Raw:
    """A column as the file has it; `categorical`: the file itself says that it holds categories."""

    name: str
    cells: Cells
    categorical: bool = False


@dataclass(frozen=True, slots=True)
class _Feature:
    """A column to learn from: `numbers` (N,) float32."""

    column: Column
    numbers: NDArray[np.float32]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Target:
    """The column to predict: `numbers` (N,) int64 or (N, 1) float32."""

    task: Task
    numbers: NDArray[Any]
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def read_table(path: str | Path, *, target: str, task: str | None = None, drop: Sequence[str] = ()) -> Table:
    """Read a .csv file with a header, or a .parquet file; `target` is the column to predict, `drop` are left out.

    `task`: classification or regression, inferred from the target by default. Raises `InvalidArgument`, which names
    the column and says what to change, for files that cannot be read and columns that cannot be learnt from.
    """
    if task is not None and task not in list(Task):
        raise InvalidArgument("task", repr(task), ", ".join(Task))
    raw, notes = _read(Path(path), target, drop)
    answers = next(column for column in raw if column.name == target)
    features = [column for column in raw if column.name != target]
    rows = len(answers.cells)
    if rows < LEAST_ROWS:
        raise InvalidArgument("data", f"{path} with {rows} rows", f"at least {LEAST_ROWS} rows")
    if not features:
        raise InvalidArgument("data", f"{path} without a column beside the target", "at least one column to learn from")
    found = _read_target(answers, task)
    read = [_read_feature(column) for column in features]
    return Table(
        inputs=np.stack([column.numbers for column in read], axis=1),
        targets=found.numbers,
        columns=tuple(column.column for column in read),
        task=found.task,
        target_name=target,
        class_names=found.class_names,
        notes=(*notes, *found.notes, *(note for column in read for note in column.notes)),
    )


def split_table(table: Table, seed: int = 0) -> Splits:
    """Split a table's rows 60 / 10 / 10 / 20 % by the seed; a classification's within every class."""
    if seed < 0:
        raise InvalidArgument("seed", seed, "at least 0")
    random = np.random.default_rng(seed)
    strata = table.targets if table.task is Task.CLASSIFICATION else np.zeros(len(table.targets))
    parts: list[list[NDArray[np.int64]]] = [[] for _ in SHARES]
    for stratum in np.unique(strata):
        for part, chosen in zip(parts, share_out(np.flatnonzero(strata == stratum), random), strict=True):
            part.append(chosen)
    train, validation, calibration, test = (
        take(table.inputs, table.targets, random.permutation(np.concatenate(part))) for part in parts
    )
    names = None if table.task is Task.CLASSIFICATION else (table.target_name,)
    return Splits(
        train, validation, calibration, test, table.task, table.class_names, names, table.columns, notes=table.notes
    )


# --- Files ---

_Columns: TypeAlias = tuple[list[str], Callable[[int], _Raw]]  # the names, and the column at a position


def _read(path: Path, target: str, drop: Sequence[str]) -> tuple[list[_Raw], list[str]]:
    """Read the columns that are wanted, and say which were left out unasked."""
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise InvalidArgument("data", path, f"a file that ends in {' or '.join(readers)}")
    try:
        names, column = readers[path.suffix.lower()](path)
    except OSError as error:
        given = f"{path} ({error.strerror or error})"
        raise InvalidArgument("data", given, "a .csv or .parquet file that can be read") from None
    # pandas writes its row numbers without a name, or under one of its own.
    named = [name for name in names if name and not name.startswith("__index_level_")]
    twice = [name for name, times in Counter(named).items() if times > 1]
    if twice:
        raise InvalidArgument("data", f"{path} with two columns {twice[0]!r}", "columns whose names differ")
    for field, name in [("target", target), *(("drop", name) for name in drop)]:
        if name not in named:
            raise InvalidArgument(field, repr(name), f"a column of {path.name}: {_listed(named)}")
    if target in drop:
        raise InvalidArgument("drop", repr(target), "columns other than the target")
    notes = [] if len(named) == len(names) else ["columns without a name of their own were left out"]
    return [column(names.index(name)) for name in named if name not in drop], notes


def _read_csv(path: Path) -> _Columns:
    lines = read_lines(path)
    if not lines:
        raise InvalidArgument("data", f"{path}, which is empty", "a line of column names, and rows")
    names = [name.strip() for name in lines[0][1]]
    for number, cells in lines[1:]:
        if len(cells) != len(names):
            given = f"{path} with {len(cells)} cells in line {number}"
            raise InvalidArgument("data", given, f"{len(names)} in every line, as in the first")
    return names, lambda at: _Raw(names[at], [text_of(cells[at]) for _, cells in lines[1:]])


def _read_parquet(path: Path) -> _Columns:
    import pyarrow as arrow
    from pyarrow import parquet, types

    try:
        with parquet.ParquetFile(path) as file:  # the file alone: a folder's name is no column
            table = file.read()
    except arrow.ArrowInvalid as error:
        raise InvalidArgument("data", f"{path} ({error})", "a Parquet file") from None
    names = [name.strip() for name in table.column_names]

    def column(at: int) -> _Raw:
        cells = table.column(at)
        kind = cells.type
        if types.is_dictionary(kind):
            return _Raw(names[at], [text_of(value) for value in cells.to_pylist()], categorical=True)
        if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
            return _Raw(names[at], cells.cast(arrow.float64(), safe=False).to_numpy())
        if types.is_boolean(kind) or types.is_null(kind) or types.is_string(kind) or types.is_large_string(kind):
            return _Raw(names[at], [text_of(value) for value in cells.to_pylist()])
        accepted = "numbers, booleans or texts"
        if types.is_temporal(kind):
            accepted = "what matters of it as a number (days since an event, month, weekday)"
        raise InvalidArgument(f"column {names[at]!r}", f"values of type {kind}", f"{accepted}, or {_drop(names[at])}")

    return names, column


# --- Columns ---


def _numbers(raw: _Raw) -> NDArray[np.float64] | None:
    """Return a column's numbers, NaN where one is missing; None where it holds other texts."""
    if isinstance(raw.cells, np.ndarray):
        return raw.cells
    said = {text: np.nan if text is None else number_of(text) for text in set(raw.cells)}
    if raw.categorical or None in said.values():
        return None
    return np.array([said[text] for text in raw.cells], np.float64)


def _read_feature(raw: _Raw) -> _Feature:
    """Infer a column's kind; refuse it where nothing can be learnt from it."""
    numbers = _numbers(raw)
    if numbers is None:
        return _read_category(raw)
    known = numbers[~np.isnan(numbers)]
    _check_varies(raw.name, len(np.unique(known)), len(known) < len(numbers), known[:1])
    _check_float32(f"column {raw.name!r}", known, f", or {_drop(raw.name)}")
    return _Feature(Column(raw.name, "number", allow_nan=len(known) < len(numbers)), numbers.astype(np.float32))


def _read_category(raw: _Raw) -> _Feature:
    rows = Counter(text for text in raw.cells if text is not None)
    missing = rows.total() < len(raw.cells)
    _check_varies(raw.name, len(rows), missing, list(rows))
    said = [text for text in rows if number_of(text) is not None]
    if not raw.categorical and len(said) > max(MANY_NUMBERS, len(rows) / 2):
        other = next(text for text in rows if number_of(text) is None)
        accepted = f"numbers with a point, empty where one is missing; or {_drop(raw.name)}"
        raise InvalidArgument(f"column {raw.name!r}", f"{other!r} among numbers", accepted)
    kept = _in_order(text for text, times in rows.most_common(MOST_CATEGORIES) if times >= RARE)
    if not kept:
        given = f"{len(rows)} different texts in {rows.total()} rows, such as {next(iter(rows))!r}"
        accepted = f"categories of {RARE} rows or more; {_drop(raw.name)} leaves it out"
        raise InvalidArgument(f"column {raw.name!r}", given, accepted)
    codes: dict[str | None, float] = {text: float(code) for code, text in enumerate(kept, 1)}
    codes[None] = np.nan
    notes = []
    if len(kept) < len(rows):
        rest = rows.total() - sum(rows[text] for text in kept)
        notes.append(f"column {raw.name!r}: {len(rows) - len(kept)} rare categories, {rest} rows, are taken as one")
    numbers = np.array([codes.get(text, 0.0) for text in raw.cells], np.float32)
    return _Feature(Column(raw.name, "category", tuple(kept), missing), numbers, tuple(notes))


def _check_varies(name: str, different: int, missing: bool, first: Sequence[object] | NDArray[Any]) -> None:
    if not different:
        accepted = f"a column with values; {_drop(name)} leaves it out"
        raise InvalidArgument(f"column {name!r}", "no value in any row", accepted)
    if different == 1 and not missing:  # whether a value is there can tell something, too
        accepted = f"a column that varies; {_drop(name)} leaves it out"
        raise InvalidArgument(f"column {name!r}", f"{text_of(first[0])} in every row", accepted)


def _check_float32(field: str, known: NDArray[np.float64], advice: str) -> None:
    """Refuse numbers that float32, in which networks calculate, cannot hold or cannot tell apart."""
    with np.errstate(over="ignore"):
        rounded = known.astype(np.float32).astype(np.float64)
    if not np.isfinite(rounded).all():
        first = known[~np.isfinite(rounded)][0]
        raise InvalidArgument(field, f"{first:g}", f"finite numbers below 3.4e38; leave those rows out{advice}")
    if np.ptp(known) and np.abs(known - rounded).max() > LOST * known.std():
        given = f"numbers such as {known[0]:.17g} that 32 bits cannot tell apart"
        raise InvalidArgument(field, given, f"numbers from which an offset near {known.mean():.3g} is taken{advice}")


# --- Targets ---


def _read_target(raw: _Raw, task: str | None) -> _Target:
    """Read the column to predict, and decide what kind of task it is where nobody says so."""
    said_true = {text.lower() for text in raw.cells if isinstance(text, str)} <= set(TRUTH)
    numbers = None if said_true and isinstance(raw.cells, list) else _numbers(raw)
    missing = int(np.isnan(numbers).sum()) if numbers is not None else sum(text is None for text in raw.cells)
    if missing:
        given = f"no value in {missing} of {len(raw.cells)} rows"
        raise InvalidArgument(f"target {raw.name!r}", given, "a value in every row; leave those rows out")
    if numbers is None:
        if task == Task.REGRESSION:
            given = f"texts such as {raw.cells[0]!r}"
            raise InvalidArgument(f"target {raw.name!r}", given, "numbers, or --task classification")
        return _read_classes(raw.name, [str(text) for text in raw.cells])
    _check_float32(f"target {raw.name!r}", numbers, "")
    different = len(np.unique(numbers))
    few = different <= MOST_CLASSES and different * ROWS_OF_A_CLASS <= len(numbers) and (numbers % 1 == 0).all()
    if task == Task.CLASSIFICATION or (task is None and few):
        classes = _read_classes(raw.name, [str(text_of(number)) for number in numbers.tolist()])
        note = f"target {raw.name!r}: {different} different whole numbers, taken as classes; --task regression does not"
        return classes if task else _Target(classes.task, classes.numbers, classes.class_names, (note,))
    if different == 1:
        raise InvalidArgument(f"target {raw.name!r}", f"{numbers[0]:g} in every row", "a target that varies")
    return _Target(Task.REGRESSION, numbers.astype(np.float32)[:, None])


def _read_classes(name: str, texts: Sequence[str]) -> _Target:
    rows = Counter(texts)
    names = _in_order(rows)
    if len(names) == 1:
        raise InvalidArgument(f"target {name!r}", f"one class only, {names[0]!r}", "at least two classes")
    few = [text for text in names if rows[text] < ROWS_OF_A_CLASS]
    if few:
        others = f", and {len(few) - 1} more such classes" if len(few) > 1 else ""
        given = f"{rows[few[0]]} rows of class {few[0]!r}{others}"
        accepted = f"at least {ROWS_OF_A_CLASS} rows of every class; leave those rows out or merge classes"
        raise InvalidArgument(f"target {name!r}", given, accepted)
    codes = {text: code for code, text in enumerate(names)}
    return _Target(Task.CLASSIFICATION, np.array([codes[text] for text in texts], np.int64), tuple(names))


def _drop(name: str) -> str:
    return f"--drop {shlex.quote(name)}"


def _in_order(texts: Iterable[str]) -> list[str]:
    """Sort texts, by their numbers where all say one."""
    found = sorted(texts)
    return sorted(found, key=float) if all(map(NUMBER.fullmatch, found)) else found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
