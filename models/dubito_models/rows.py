"""Rows for a version to answer: its inputs from a file, and what is known to be true of them."""

from __future__ import annotations

import math
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dubito_models.columns import NUMBER, number_of, text_of
from dubito_models.errors import InvalidArgument
from dubito_models.files import read_lines
from dubito_models.heads import Task
from dubito_models.manifest import ColumnEntry, InputSignature, Manifest
from dubito_models.package import ModelVersion

SHIPPED = ("digits", "diabetes", "co2")
PARTS = ("train", "validation", "calibration", "test")
TARGETS = ("labels", "targets")  # an archive's array that holds them, where nobody says which
_ARCHIVE, _ARRAY, _TABLES = ".npz", ".npy", (".csv", ".parquet")
_PART = re.compile(rf"(?P<of>.+):(?P<part>{'|'.join(PARTS)})(?::(?P<seed>\d{{1,9}}))?")

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Labelled:
    """Rows whose truth is known.

    `inputs` (N, ...) by name, as the version's signature has them; `targets`: class numbers (N,) int64, or numbers
    (N, K) float64. `overlap`: so many consecutive rows share targets, as the windows of a series do. `part`: which one
    of what training split they are; None where nobody says.
    """

    inputs: Arrays
    targets: NDArray[Any]
    overlap: int = 1
    part: str | None = None

    def __len__(self) -> int:
        return len(self.targets)


def read_rows(path: Path, signature: Sequence[InputSignature]) -> Arrays:
    """Read a version's inputs by name from .npz, .npy, .csv or .parquet, in their declared shapes and types.

    Of an archive, the arrays with the inputs' names, or its only one; of a table, the columns that the version knows.
    What does not fit comes as it is, for `read_inputs` to refuse.
    """
    suffix = _suffix(path, (_ARCHIVE, _ARRAY, *_TABLES))
    try:
        if suffix == _ARCHIVE:
            arrays, _ = _read_npz(path, signature)
        elif suffix == _ARRAY:
            arrays = {_only(path, signature).name: _read_npy(path)}
        else:
            entry = _only(path, signature)
            arrays = {entry.name: _features(_read_table(path, entry.columns is not None), entry)}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        _refuse_file(path, error)
    return {entry.name: _fit(arrays[entry.name], entry) for entry in signature}


def read_labelled(source: str | Path, version: ModelVersion, target: str | Sequence[str] | None = None) -> Labelled:
    """Read rows whose truth is known, in the shapes and types that a version declares.

    `source`: an .npz archive with the inputs and `labels` or `targets`; a .csv or .parquet table, `target` being its
    column, or one for each of a regression's targets; `NAME:PART` or `NAME:PART:SEED`, a part (train, validation,
    calibration, test) of data that ship with dubito (digits, diabetes, co2) under a split's seed, 0 by default; or
    `FILE:PART[:SEED]`, what `dubito train` split a table into. Classes are numbers from 0, or names that the version
    knows. Raises `InvalidArgument` for what cannot be read or does not fit.
    """
    wanted = (target,) if isinstance(target, str) else tuple(target or ())
    part = None if Path(source).exists() else _PART.fullmatch(str(source))
    if part is None:
        found = _read_file(Path(source), version, wanted)
    elif part["of"] in SHIPPED:
        found = _read_shipped(part["of"], part["part"], int(part["seed"] or 0), version)
    else:
        found = _take_part(Path(part["of"]), part["part"], int(part["seed"] or 0), version, wanted)
    version.read_inputs(found.inputs)
    for name, array in found.inputs.items():
        if len(array) != len(found):
            raise InvalidArgument("targets", f"{len(found)} for {len(array)} rows of {name!r}", "one for each row")
    return found


# --- Sources ---


def _suffix(path: Path, accepted: Sequence[str]) -> str:
    suffix = path.suffix.lower()
    if suffix not in accepted:
        raise InvalidArgument("data", path, f"a file that ends in {', '.join(accepted)}")
    return suffix


def _refuse_file(path: Path, error: Exception) -> NoReturn:
    if isinstance(error, OSError):
        raise InvalidArgument("data", f"{path} ({error.strerror or error})", "a file that can be read") from None
    raise InvalidArgument("data", f"{path} ({error})", "arrays as numpy saves them, without pickles") from None


def _read_file(path: Path, version: ModelVersion, target: Sequence[str]) -> Labelled:
    manifest = version.manifest
    suffix = path.suffix.lower()
    if suffix not in (_ARCHIVE, *_TABLES):
        accepted = f"a file that ends in {', '.join((_ARCHIVE, *_TABLES))}, which holds the truth beside the inputs"
        named = ", ".join(f"{name}:test" for name in SHIPPED)
        raise InvalidArgument("data", path, f"{accepted}; or {named}")
    try:
        if suffix == _ARCHIVE:
            arrays, found = _read_npz(path, manifest.inputs, target or TARGETS)
            targets = np.asarray(found)
        else:
            entry = _only(path, manifest.inputs)
            table = _read_table(path, named=True)
            columns = [_target_column(table, name, manifest) for name in _targets_named(target, manifest)]
            targets = np.stack(columns, -1) if manifest.task is Task.REGRESSION else columns[0]
            arrays = {entry.name: _features(table, entry, without=target)}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        _refuse_file(path, error)
    inputs = {entry.name: _fit(arrays[entry.name], entry) for entry in manifest.inputs}
    return Labelled(inputs, _check_targets(targets, manifest))


def _read_shipped(name: str, part: str, seed: int, version: ModelVersion) -> Labelled:
    from dubito_models.data import co2, diabetes, digits  # rows of one's own need no scikit-learn

    manifest = version.manifest
    entry = _only(Path(name), manifest.inputs)
    if name == "co2":
        splits = co2(entry.example_shape[1], manifest.outputs)
    else:
        splits = {"digits": digits, "diabetes": diabetes}[name](seed)
    if splits.task is not manifest.task:
        raise InvalidArgument("data", f"{name}, a {splits.task.value}", f"rows for a {manifest.task.value}")
    split = getattr(splits, part)
    targets = _check_targets(np.asarray(split.targets), manifest)
    return Labelled({entry.name: _fit(split.inputs, entry)}, targets, splits.overlap, part)


def _take_part(path: Path, part: str, seed: int, version: ModelVersion, target: Sequence[str]) -> Labelled:
    """Return the rows of a table that training split off: the same, as they hang on the targets and the seed alone."""
    from dubito_models.tables import Table, split_table

    manifest = version.manifest
    columns = manifest.inputs[0].columns
    if columns is None or path.suffix.lower() not in _TABLES:
        given = f"{path}:{part}, which training did not split"
        raise InvalidArgument("data", given, f"{path} itself; or a table, for a version that was trained on it")
    whole = _read_file(path, version, target)
    [(name, rows)] = whole.inputs.items()
    table = Table(rows, whole.targets, (), manifest.task, target[0])
    split = getattr(split_table(table, seed), part)
    return Labelled({name: split.inputs}, split.targets, part=part)


# --- Archives ---


def _read_npz(
    path: Path, signature: Sequence[InputSignature], truth: Sequence[str] = ()
) -> tuple[Arrays, NDArray[Any] | None]:
    """Read the inputs, and where `truth` names any, the one array of that name; no others are looked at."""
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise InvalidArgument("data", f"{path}, which holds a single array", "an archive, as numpy.savez writes it")
        given = f"{path} with arrays named {', '.join(loaded.files) or 'nothing'}"
        true = [name for name in truth if name in loaded.files]
        if truth and len(true) != 1:
            raise InvalidArgument("data", given, f"one array named {' or '.join(truth)} beside the inputs")
        others = [name for name in loaded.files if name not in true]
        names = [entry.name for entry in signature]
        if not set(names) <= set(others):
            if not len(names) == len(others) == 1:
                raise InvalidArgument("data", given, f"arrays named {', '.join(names)}")
            return {names[0]: loaded[others[0]]}, loaded[true[0]] if true else None
        return {name: loaded[name] for name in names}, loaded[true[0]] if true else None


def _read_npy(path: Path) -> NDArray[Any]:
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            raise InvalidArgument("data", f"{path}, which holds an archive", "an array, as numpy.save writes it")
        return loaded


def _only(path: Path, signature: Sequence[InputSignature]) -> InputSignature:
    if len(signature) > 1:
        names = ", ".join(entry.name for entry in signature)
        raise InvalidArgument("data", path, f"an .npz file with arrays named {names}")
    return signature[0]


# --- Tables ---


@dataclass(frozen=True, slots=True)
class _Table:
    """Lines of cells with their numbers, and the columns' names, empty ones where the file has none."""

    path: Path
    header: list[str]
    lines: list[tuple[int, list[str]]]

    def column(self, name: str) -> list[tuple[int, str]]:
        at = self.header.index(name)
        return [(number, cells[at]) for number, cells in self.lines]


def _read_table(path: Path, named: bool) -> _Table:
    """Read a table; where it need not be `named`, a first line of numbers is a row."""
    lines = _parquet_lines(path) if path.suffix.lower() == ".parquet" else read_lines(path)
    if lines and (named or any(number_of(cell.strip()) is None for cell in lines[0][1])):
        header = [name.strip() for name in lines.pop(0)[1]]
    else:
        header = [""] * len(lines[0][1]) if lines else []
    if not lines:
        raise InvalidArgument("data", f"{path} without a row", "at least one row")
    for number, cells in lines:
        if len(cells) != len(header):
            raise InvalidArgument("data", f"{path} with {len(cells)} cells in line {number}", f"{len(header)}")
    return _Table(path, header, lines)


def _parquet_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Return what a table in Parquet would be as lines of text; the names are the first."""
    import pyarrow as arrow  # by an extra of its own
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
    except arrow.ArrowInvalid as error:
        raise InvalidArgument("data", f"{path} ({error})", "a Parquet file") from None
    cells = [[text_of(value) or "" for value in column.to_pylist()] for column in table.columns]
    rows = [list(row) for row in zip(*cells, strict=True)]
    return list(enumerate([list(table.column_names), *rows], 1))


def _features(table: _Table, entry: InputSignature, without: Sequence[str] = ()) -> NDArray[Any]:
    """Return the numbers (N, C) of the columns that the version names, or else of all but those `without`."""
    if entry.columns is None:
        kept = [at for at, name in enumerate(table.header) if not name or name not in without]
        rows = [[_number(cells[at], f"line {number}") for at in kept] for number, cells in table.lines]
        return np.array(rows)
    for column in entry.columns:
        if column.name not in table.header:
            given = f"{table.path} without a column {column.name!r}"
            raise InvalidArgument("data", given, f"columns {_listed([each.name for each in entry.columns])}")
    columns = [
        [_encode(cell, column, number) for number, cell in table.column(column.name)] for column in entry.columns
    ]
    return np.array(columns).T


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _number(cell: str, where: str) -> float:
    number = number_of(cell.strip())
    if number is None:
        raise InvalidArgument("data", f"{cell!r} in {where}", "numbers")
    return number


def _encode(cell: str, column: ColumnEntry, line: int) -> float:
    """Return the number of a cell: a category's code, 0 for one that training has not seen, NaN for a missing value."""
    if column.kind == "number":
        return _number(cell, f"column {column.name!r}, line {line}")
    text = text_of(cell)
    if text is None:
        return math.nan if column.allow_nan else 0.0
    return float(column.categories.index(text) + 1) if text in column.categories else 0.0


def _fit(array: NDArray[Any], entry: InputSignature) -> NDArray[Any]:
    """Give rows their declared shape where their numbers fill it, and their declared type where that loses nothing.

    Floats may be rounded.
    """
    row = entry.shape[1:]
    sizes = [size for size in row if size is not None]
    if array.ndim and len(sizes) == len(row) and math.prod(array.shape[1:]) == math.prod(sizes):
        array = array.reshape(len(array), *sizes)
    if array.dtype.kind not in "biuf":
        return array
    with np.errstate(invalid="ignore", over="ignore"):
        converted = array.astype(entry.dtype)
    rounds = converted.dtype.kind == "f"
    return converted if rounds or np.array_equal(converted, array) else array


# --- Truth ---


def _targets_named(target: Sequence[str], manifest: Manifest) -> Sequence[str]:
    wanted = 1 if manifest.task is Task.CLASSIFICATION else manifest.outputs
    if len(target) != wanted:
        accepted = "--target COLUMN" + (f", {wanted} times, in the targets' order" if wanted > 1 else "")
        raise InvalidArgument("target", ", ".join(target) or "nothing", accepted)
    return target


def _target_column(table: _Table, name: str, manifest: Manifest) -> NDArray[Any]:
    """Return one column of truth (N,): class numbers, or numbers."""
    if name not in table.header:
        given = f"{name!r}"
        raise InvalidArgument("target", given, f"a column of {table.path.name}: {_listed(table.header)}")
    cells = table.column(name)
    for number, cell in cells:
        if text_of(cell) is None:
            given = f"no value in line {number}"
            raise InvalidArgument(f"target {name!r}", given, "a value in every row; leave those rows out")
    if manifest.task is Task.REGRESSION:
        return np.array([_number(cell, f"column {name!r}, line {number}") for number, cell in cells])
    return np.array([cell.strip() for _, cell in cells])


def _check_targets(targets: NDArray[Any], manifest: Manifest) -> NDArray[Any]:
    """Return class numbers (N,) int64, or numbers (N, K) float64, of what a file or data set says."""
    if manifest.task is Task.CLASSIFICATION:
        return _class_numbers(targets, manifest)
    if targets.dtype.kind not in "biuf":
        raise InvalidArgument("targets", f"dtype {targets.dtype}", "numbers")
    columns = targets[:, None] if targets.ndim == 1 else targets
    if columns.ndim != 2 or columns.shape[1] != manifest.outputs:
        accepted = f"({len(columns)}, {manifest.outputs})" if columns.ndim else f"(rows, {manifest.outputs})"
        raise InvalidArgument("targets", f"shape {targets.shape}", accepted)
    values = columns.astype(np.float64)
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise InvalidArgument("targets", f"{values[row].tolist()} in row {row}", "finite numbers")
    return values


def _class_numbers(targets: NDArray[Any], manifest: Manifest) -> NDArray[np.int64]:
    classes, names = manifest.outputs, manifest.class_names
    flat = targets[:, 0] if targets.ndim == 2 and targets.shape[1] == 1 else targets
    if flat.ndim != 1:
        raise InvalidArgument("targets", f"shape {targets.shape}", "(rows,), one class a row")
    if flat.dtype.kind in "US":
        flat = _named_classes(flat.astype(np.str_).tolist(), names, classes)
    if flat.dtype.kind not in "biuf" or not np.array_equal(flat, np.trunc(flat)):
        raise InvalidArgument("targets", f"dtype {flat.dtype}", _accepted(classes, names))
    numbers = flat.astype(np.int64)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < classes:
        raise InvalidArgument("targets", f"classes {numbers.min()} to {numbers.max()}", _accepted(classes, names))
    return numbers


def _named_classes(texts: Sequence[str], names: Sequence[str] | None, classes: int) -> NDArray[np.int64]:
    """Return class numbers of texts: by name where all are names, else of whole numbers."""
    said = {text: _normal(text) for text in set(texts)}
    places = {_normal(name): place for place, name in enumerate(names or ())}
    if not set(said.values()) <= set(places):
        strange = sorted(text for text, normal in said.items() if normal not in places)
        if not all(normal.isdecimal() for normal in said.values()):
            raise InvalidArgument("targets", repr(strange[0]), _accepted(classes, names))
        places = {normal: int(normal) for normal in said.values()}
    return np.array([places[said[text]] for text in texts], np.int64)


def _normal(text: str) -> str:
    """Return a class's text as training names it: a whole number has no decimal point."""
    stripped = text.strip()
    return text_of(float(stripped)) or stripped if NUMBER.fullmatch(stripped) else stripped


def _accepted(classes: int, names: Sequence[str] | None) -> str:
    return f"class numbers 0 to {classes - 1}" + (f", or {_listed(names)}" if names else "")
