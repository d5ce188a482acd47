"""The table: the columns that the files of an input have together, and the rows of each file as rows of these columns.

A column that a file does not have is null in its rows. One that is of several types becomes of the one that holds the
values of all, by Arrow's rules: of whole and decimal numbers, of short and long, of nothing and anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import pyarrow as arrow

from dubito_batch.answers import PROBLEM
from dubito_batch.sources import InputFile, read_schema
from dubito_client.columns import some_of
from dubito_client.errors import InvalidArgument, refused


def read_schemas(files: Iterable[InputFile]) -> dict[InputFile, arrow.Schema]:
    """Read the columns of the files, but of those that cannot be read now: the error is due when their rows are.

    Raises `InvalidArgument` where the first cannot be read.
    """
    schemas: dict[InputFile, arrow.Schema] = {}
    for file in files:
        try:
            schemas[file] = read_schema(file)
        except InvalidArgument:
            if not schemas:
                raise
    return schemas


def unify(schemas: Mapping[InputFile, arrow.Schema]) -> arrow.Schema:
    """Return the columns of all files together, in the order in which they come.

    Raises `InvalidArgument`, by file and column, where the values of one column are not of types that go together.
    """
    files = iter(schemas)
    table = schemas[next(files)]
    for file in files:
        table = _join(table, schemas[file], file)
    return table


def conform(rows: arrow.RecordBatch, table: arrow.Schema, file: InputFile) -> arrow.RecordBatch:
    """Return a file's rows with the columns of its table, and what `read_blocks` tells of them.

    Raises `InvalidArgument` where a value would not be the same there, and where the file, which could not be read when
    the columns were, has one more.
    """
    if rows.schema.equals(table, check_metadata=True):
        return rows
    if PROBLEM in rows.schema.names:
        told = rows.schema.get_field_index(PROBLEM)
        return conform(rows.remove_column(told), table, file).append_column(rows.field(told), rows.column(told))
    odd = next((name for name in rows.schema.names if name not in table.names), None)
    if odd is not None:
        raise refused("input", f"{file.url} with the column {odd!r}", f"the columns {some_of(table.names)}")
    return arrow.RecordBatch.from_arrays([_conform(rows, field, file) for field in table], schema=table)


@contextmanager
def naming(file: InputFile) -> Iterator[None]:
    """Say of a refusal which file it is about."""
    try:
        yield
    except InvalidArgument as error:
        raise refused(error.field, f"{error.given} in {file.url}", error.accepted) from None


def _join(table: arrow.Schema, schema: arrow.Schema, file: InputFile) -> arrow.Schema:
    if schema.equals(table):
        return table
    fields = {field.name: field if field.name in schema.names else field.with_nullable(True) for field in table}
    for field in schema:
        known = fields.get(field.name)
        fields[field.name] = field.with_nullable(True) if known is None else _join_field(known, field, file)
    return arrow.schema(list(fields.values()), table.metadata)


def _join_field(known: arrow.Field, field: arrow.Field, file: InputFile) -> arrow.Field:
    if field.equals(known):
        return known
    try:
        joined = arrow.unify_schemas([arrow.schema([known]), arrow.schema([field])], promote_options="permissive")[0]
        for kind in (known.type, field.type):
            arrow.nulls(0, kind).cast(joined.type)
    except (arrow.ArrowTypeError, arrow.ArrowInvalid, arrow.ArrowNotImplementedError):
        given = f"{file.url} with the column {field.name!r} of type {field.type}"
        accepted = f"{known.type}, as in the files before it, or what goes with that"
        raise refused("input", given, f"{accepted} (a CSV's columns are texts)") from None
    return joined


def _conform(rows: arrow.RecordBatch, field: arrow.Field, file: InputFile) -> arrow.Array:
    known = field.name in rows.schema.names
    column = rows.column(field.name) if known else arrow.nulls(rows.num_rows)
    if column.type == field.type:
        return column
    try:
        return column.cast(field.type)
    except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError) as error:
        given = f"{file.url} with the column {field.name!r} of type {column.type} ({error})"
        raise refused(
            "input", given, f"values that {field.type} can hold, of which the column is in all files"
        ) from None
