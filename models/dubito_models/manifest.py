"""What a version says of itself, and the one check of inputs against it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from dubito_models.errors import InvalidArgument
from dubito_models.heads import Head, Task
from dubito_models.precision import Precision
from dubito_models.thinning import Design

MAX_FAN_OUT = 64
NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
DtypeName = Literal["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
DTYPES = get_args(DtypeName)
_DTYPES = {name: np.dtype(name) for name in DTYPES}


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ColumnEntry(_Stored):
    """One column of an input that is a table, as `columns.Column` has it."""

    name: Annotated[str, Field(min_length=1)]
    kind: Literal["number", "category"]
    categories: tuple[str, ...] = ()
    allow_nan: bool = False


class InputSignature(_Stored):
    """One input: axis 0 is the rows; other free axes are None in `shape` and named in `free`.

    A table has `columns`, one for each number of a row; each says for itself whether it may hold NaN.
    """

    name: str
    dtype: DtypeName
    shape: tuple[int | None, ...]
    free: dict[int, str] = {}
    bounds: dict[int, tuple[int, int | None]] = {}  # smallest and largest size of free axes, where the network has any
    allow_nan: bool = False
    columns: tuple[ColumnEntry, ...] | None = None
    example_shape: tuple[int, ...]
    low: float  # of the example, so that an audit can make inputs of the same range
    high: float

    @model_validator(mode="after")
    def _has_its_columns(self) -> InputSignature:
        if self.columns is not None and (len(self.shape) != 2 or self.shape[1] != len(self.columns)):
            raise ValueError(f"{len(self.columns)} columns for the shape {self.shape}")
        return self


class SiteEntry(_Stored):
    """One dropout site, as the program has it."""

    name: str
    kind: str
    rate: Annotated[float, Field(gt=0, lt=1)]
    shape: tuple[str, ...]
    source: str
    kept: float
    bypass: float
    balanced: bool


class Manifest(_Stored):
    """What a version is, and everything about drawing that was decided at packing."""

    format: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
    version: Annotated[int, Field(ge=1)]
    task: Task
    head: Head
    outputs: Annotated[int, Field(ge=1)]  # K
    class_names: tuple[str, ...] | None = None
    inputs: tuple[InputSignature, ...]
    output_index: Annotated[int, Field(ge=0)]
    sites: tuple[SiteEntry, ...]
    design: Design
    group_size: Annotated[int, Field(ge=2, le=30)]
    default_draws: Annotated[int, Field(ge=1)]
    default_seed: Annotated[int, Field(ge=0, lt=2**64)]
    fan_out: Annotated[int, Field(ge=1, le=MAX_FAN_OUT)] = 1  # masks of the last site for each draw of the others
    integrated: bool = False  # the last site's masks are, in closed form
    noise_variance: tuple[float, ...] | None = None
    precision: Precision = Precision.FLOAT32
    rounding: float = 0.0  # what bfloat16 moved a draw of the packing example by, in the draws' standard deviations
    parity: float
    checksums: dict[str, str]
    warnings: tuple[str, ...] = ()
    made_with: dict[str, str] = {}


def read_inputs(signature: Sequence[InputSignature], inputs: ArrayLike | Mapping[str, ArrayLike]) -> dict[str, Tensor]:
    """Check inputs against a signature and return tensors (B, ...) by name."""
    named = inputs if isinstance(inputs, Mapping) else {signature[0].name: inputs}
    names = [entry.name for entry in signature]
    if not isinstance(inputs, Mapping) and len(names) > 1:
        raise InvalidArgument("inputs", "one array", f"arrays by name: {', '.join(names)}")
    for name in named:
        find_input(signature, name)
    tensors = {}
    free: dict[str, tuple[str, int]] = {}
    for entry in signature:
        if entry.name not in named:
            raise InvalidArgument(f"inputs[{entry.name!r}]", "nothing", _describe(entry))
        tensors[entry.name] = _read_input(entry, np.asarray(named[entry.name]), free)
    return tensors


def find_input(signature: Sequence[InputSignature], name: str) -> InputSignature:
    """Return the input of a name; raises `InvalidArgument`."""
    for entry in signature:
        if entry.name == name:
            return entry
    accepted = f"inputs named {', '.join(entry.name for entry in signature)}"
    raise InvalidArgument(f"inputs[{name!r}]", "an input of this name", accepted)


def _describe(entry: InputSignature) -> str:
    axes = ["rows", *(str(entry.free.get(i, size)) for i, size in enumerate(entry.shape) if i > 0)]
    return f"{entry.dtype} of shape ({', '.join(axes)})"


def check_shape(entry: InputSignature, shape: tuple[int, ...]) -> None:
    """Refuse a shape that an input cannot have, whatever the others' are; raises `InvalidArgument`."""
    field = f"inputs[{entry.name!r}].shape"
    if len(shape) != len(entry.shape):
        raise InvalidArgument(field, f"rank {len(shape)} {shape}", _describe(entry))
    if any(size != given and size is not None for size, given in zip(entry.shape, shape, strict=True)):
        raise InvalidArgument(field, str(shape), _describe(entry))
    if shape[0] < 1:
        raise InvalidArgument(field, "0 rows", "at least 1 row")
    for axis, label in ((0, "rows"), *entry.free.items()):
        least, most = entry.bounds.get(axis, (1, None))
        if shape[axis] < least or (most is not None and shape[axis] > most):
            accepted = f"{least} to {most}" if most is not None else f"at least {least}"
            raise InvalidArgument(field, f"{label} = {shape[axis]}", accepted)


def _read_input(entry: InputSignature, array: NDArray[Any], free: dict[str, tuple[str, int]]) -> Tensor:
    field = f"inputs[{entry.name!r}]"
    if array.dtype != _DTYPES[entry.dtype] and array.dtype.name != entry.dtype:  # a name takes long to find
        raise InvalidArgument(f"{field}.dtype", array.dtype.name, entry.dtype)
    check_shape(entry, array.shape)
    for axis, label in ((0, "rows"), *entry.free.items()):
        first, size = free.setdefault(label, (entry.name, array.shape[axis]))
        if size != array.shape[axis]:
            accepted = f"{size} {label}, as in {first!r}"
            raise InvalidArgument(f"{field}.shape", f"{label} = {array.shape[axis]}", accepted)
    if entry.columns is not None:
        _check_columns(entry.columns, array, field)
    elif not entry.allow_nan and array.dtype.kind == "f" and not np.logical_and.reduce(np.isfinite(array), axis=None):
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise InvalidArgument(field, f"{array[where]} at {where}", "finite numbers")
    native = array.astype(_DTYPES[entry.dtype], copy=False)
    return torch.from_numpy(native if native.flags.writeable else native.copy())


def _check_columns(columns: Sequence[ColumnEntry], rows: NDArray[Any], field: str) -> None:
    """Refuse rows (B, C) that hold infinity, NaN where a column has none, or what is no code of a category.

    A whole number above a column's categories is accepted, and means what code 0 does.
    """
    missing = np.isnan(rows)
    category = np.array([column.kind == "category" for column in columns])
    with np.errstate(invalid="ignore"):  # of infinities
        no_code = category & ~missing & ((rows < 0) | (np.trunc(rows) != rows))
    bad = np.isinf(rows) | (missing & ~np.array([column.allow_nan for column in columns])) | no_code
    if bad.any():
        row, at = (int(index) for index in np.argwhere(bad)[0])
        accepted = "finite numbers" if columns[at].kind == "number" else "a category's code, a whole number >= 0"
        accepted += "; NaN for a missing value" if columns[at].allow_nan else "; no value may be missing here"
        raise InvalidArgument(f"{field}.columns[{columns[at].name!r}]", f"{rows[row, at]} in row {row}", accepted)
