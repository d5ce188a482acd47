"""Sources: the files of a table, wherever fsspec reaches, and their rows in blocks of equal size.

Parquet, Arrow (its file format, which Feather is, and its stream), and CSV with a line of names, also compressed. A
CSV is read as texts, so that what passes through a job comes out as it stood; numbers are read from them where a model
wants some.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pyarrow as arrow
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate
from pyarrow import dataset, ipc, parquet, types

from dubito_batch.lines import read_lines
from dubito_client.errors import InvalidArgument, refused

Format = Literal["parquet", "arrow", "csv"]

_SUFFIXES: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
}
_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}  # of a CSV; the others compress inside
_ACCEPTED = (
    "a file that ends in .parquet, .arrow, .feather, .csv or .csv.gz; a folder or a glob of such; or a URL of these"
)
_KINDS = {
    "parquet": "a Parquet file",
    "arrow": "a file in Arrow's format, or Feather's second",
    "csv": "a table in UTF-8 with a line of column names",
}
# What file systems call that which changes when a file does.
_MARKS = (
    "ETag", "etag", "md5Hash", "md5", "content_md5", "checksum", "crc32c", "generation", "mtime", "LastModified",
    "last_modified", "updated", "modified",
)  # fmt: skip
_MAGIC = b"ARROW1"
_HEADER_CHARACTERS = 1 << 24  # of a line of names, at most
_PAGE_BYTES = 1 << 20  # read ahead of each Parquet column, at most
_ALL_PAGES_BYTES = 1 << 25  # of all columns together
_REMOTE_BYTES = 1 << 23  # read ahead of each column of a remote file, at most
_GROUP_BYTES = 1 << 26  # of all of them together; a remote row group of no more is read whole
_SAMPLE_ROWS = 256  # of which columns are measured
_BATCH_BYTES = 1 << 26  # of an Arrow file: larger batches are mapped, not read


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of rows; `mark` changes when the file does."""

    url: str  # a path where the file is local
    format: Format
    size: int  # bytes
    mark: str


# --- Finding ---


def find_files(source: str) -> tuple[InputFile, ...]:
    """List the files of rows that a path, a glob or a URL of either names, sorted by name.

    Folders are searched, to any depth, and what begins with `_` or a dot in them is passed over. Raises
    `InvalidArgument` where there is no such file, or one that is not read here.
    """
    files, path = _open_system(source)
    found = _look(files, path, source)
    if not found:
        raise refused("input", f"{source}, where no file is", _ACCEPTED)
    before, after = _around(files, path, source)
    return tuple(_describe(files, name, found[name], f"{before}{name}{after}") for name in sorted(found))


def would_find(source: str, system: AbstractFileSystem, path: str) -> bool:
    """Say whether `find_files` would list a file at a path of some system, were it there."""
    files, root = url_to_fs(source)
    if files.isfile(root):
        return False
    url, found = real_url(files, root), real_url(system, path)
    if files.isdir(root):
        return found.startswith(f"{url.rstrip('/')}/")
    pattern = re.compile(glob_translate(url))
    folders = [found[:end] for end, character in enumerate(found) if character == "/"]
    return any(pattern.match(name) for name in (found, *folders)) and not _hidden(found, _fixed(url))


def real_url(system: AbstractFileSystem, path: str) -> str:
    """Return what a path is called everywhere: links of this machine are followed."""
    real = str(Path(path).resolve()) if isinstance(system, LocalFileSystem) else path
    return str(system.unstrip_protocol(real))


def _open_system(source: str) -> tuple[AbstractFileSystem, str]:
    try:
        return url_to_fs(source)  # type: ignore[no-any-return]
    except ImportError as error:
        raise refused("input", source, f"a URL whose fsspec plug-in is installed ({error})") from None
    except Exception as error:  # plug-ins raise kinds of their own, for credentials for example
        raise refused("input", f"{source} ({_line(error)})", _ACCEPTED) from None


def _look(files: AbstractFileSystem, path: str, source: str) -> Mapping[str, Any]:
    """Return what fsspec knows of each file, by its path."""
    try:
        if files.isfile(path):
            return {path: files.info(path)}
        if files.isdir(path):
            return _below(files, path)
        if not any(character in path for character in "*?["):
            raise refused("input", f"{source}, which does not exist", _ACCEPTED)
        found: dict[str, Any] = {}
        for name, info in files.glob(path, detail=True).items():
            if not _hidden(name, _fixed(path)):
                found |= _below(files, name) if info["type"] == "directory" else {name: info}
        return found
    except InvalidArgument:
        raise
    except Exception as error:  # as above
        raise refused("input", f"{source} ({_line(error)})", _ACCEPTED) from None


def _below(files: AbstractFileSystem, folder: str) -> dict[str, Any]:
    found = files.find(folder, detail=True)
    return {name: info for name, info in found.items() if not _hidden(name, folder)}


def _hidden(name: str, folder: str) -> bool:
    parts = name.removeprefix(folder.rstrip("/")).split("/")
    return any(part.startswith(("_", ".")) for part in parts)


def _fixed(pattern: str) -> str:
    """Return the folders of a glob that stand before its first sign."""
    plain = pattern[: min(pattern.index(sign) for sign in "*?[" if sign in pattern)]
    return plain.rpartition("/")[0]


def _around(files: AbstractFileSystem, path: str, source: str) -> tuple[str, str]:
    """Return what stands before and after a path in a URL that opens it: a store, a host, an archive around it."""
    if isinstance(files, LocalFileSystem):
        return "", ""
    first, chained, rest = source.partition("::")
    for url, after in ((source.rstrip("/"), ""), (first, chained + rest)):
        if url.endswith(path):
            return url[: len(url) - len(path)], after
    return f"{files.protocol if isinstance(files.protocol, str) else files.protocol[0]}://", ""


def _describe(files: AbstractFileSystem, path: str, info: Mapping[str, Any], url: str) -> InputFile:
    kind = _SUFFIXES.get(_suffix(path))
    if kind is None or (_codec(path) and kind != "csv"):
        accepted = f"{_ACCEPTED}; a glob such as DIR/**/*.parquet leaves others out"
        raise refused("input", f"the file {url}", accepted)
    if isinstance(files, LocalFileSystem):  # which tells a link's own time, and not to the nanosecond
        try:
            status = Path(path).stat()
        except OSError as error:
            raise refused("input", f"{url} ({_line(error)})", _ACCEPTED) from None
        return InputFile(url, kind, status.st_size, f"mtime_ns {status.st_mtime_ns}")
    marks = [f"{name} {info[name]}" for name in _MARKS if info.get(name) is not None]
    return InputFile(url, kind, int(info.get("size") or 0), ", ".join(marks) or str(files.ukey(path)))


def _suffix(path: str) -> str:
    name = path.partition("?")[0].lower().removesuffix(_codec(path))
    return f".{name.rpartition('.')[2]}"


def _codec(path: str) -> str:
    """Return the suffix of compression; empty where there is none."""
    return next((suffix for suffix in _CODECS if path.partition("?")[0].lower().endswith(suffix)), "")


# --- Reading ---


def read_schema(file: InputFile) -> arrow.Schema:
    """Return the columns of a file; those of a CSV are texts.

    Raises `InvalidArgument` where the file cannot be read, has no column, two of one name, or one that Parquet cannot
    hold, though it writes it.
    """
    with _reading(file), ExitStack() as open_files:
        if file.format == "csv":
            schema = _csv_schema(file)
        elif file.format == "arrow":
            schema = _open_arrow(file, open_files).schema
        else:
            schema = _open_parquet(file, open_files).schema_arrow
    _check_names(file, schema.names)
    empty = next((field.name for field in schema if _holds_empty_lists(field.type)), None)
    if empty is not None:
        given = f"{file.url} whose column {empty!r} has lists of a fixed size of 0"
        raise refused("input", given, "columns that Parquet can hold")
    return schema


def count_rows(file: InputFile) -> int | None:
    """Return how many rows a file says that it has; None for CSV and Arrow's stream, which do not say.

    Raises `InvalidArgument` where the file cannot be read.
    """
    with _reading(file), ExitStack() as open_files:
        if file.format == "parquet":
            return int(_open_parquet(file, open_files).metadata.num_rows)
        if file.format == "arrow" and isinstance(_open_arrow(file, open_files), ipc.RecordBatchFileReader):
            files, path = url_to_fs(file.url)
            return int(dataset.dataset(path, filesystem=files, format="ipc").count_rows())
        return None


def read_blocks(file: InputFile, batch_rows: int, first: int = 0) -> Generator[arrow.RecordBatch]:
    """Read a file in blocks of `batch_rows` rows, the last of fewer, from block number `first` on.

    A block is the same wherever the reading began. Lines of a CSV that have too few or too many cells are rows of
    nulls, and the block then has a last column `dubito_problem`, which says so. Raises `InvalidArgument` where the file
    cannot be read, at the latest where what is wrong with it is reached.
    """
    if batch_rows < 1 or first < 0:
        raise refused("batch_rows", f"{batch_rows}, from block {first}", "at least 1, from block 0 or a later one")
    read_schema(file)  # which must be as it says
    with _reading(file), ExitStack() as open_files:
        if file.format == "parquet":
            batches, skipped = _parquet_batches(_open_parquet(file, open_files), batch_rows, first * batch_rows)
        else:
            skipped = first * batch_rows
            batches = _csv_batches(file) if file.format == "csv" else _arrow_batches(file, open_files)
        blocks = _cut(batches, batch_rows, skipped)
        yield from map(_without_all_well, blocks) if file.format == "csv" else blocks


def measure_row(files: Sequence[InputFile]) -> int:
    """Return how many bytes the columns of a row take in memory, by the first rows of the largest file; 0 of none.

    A file that cannot be read says nothing here: it is told of when its turn comes, after what is before it.
    """
    with (
        suppress(InvalidArgument),
        closing(read_blocks(max(files, key=lambda file: file.size), _SAMPLE_ROWS)) as blocks,
    ):
        if (block := next(blocks, None)) is not None:
            size: int = -(-block.nbytes // block.num_rows)
            return size
    return 0


def _cut(batches: Iterable[arrow.RecordBatch], rows: int, skipped: int) -> Iterator[arrow.RecordBatch]:
    """Cut batches of any size into blocks of so many rows, after those skipped."""
    held: list[arrow.RecordBatch] = []
    count = 0
    for batch in batches:
        start = min(skipped, batch.num_rows)
        skipped -= start
        while start < batch.num_rows:
            piece = batch.slice(start, rows - count)
            start, count = start + piece.num_rows, count + piece.num_rows
            held.append(piece)
            if count == rows:
                yield arrow.concat_batches(held)
                held, count = [], 0
    if held:
        yield arrow.concat_batches(held)


def _parquet_batches(
    source: parquet.ParquetFile, batch_rows: int, skipped: int
) -> tuple[Iterator[arrow.RecordBatch], int]:
    """Read from the row group in which the first row wanted is; return how many rows of it are not.

    Row groups are read one by one, so that what a dictionary holds does not depend on where the reading began.
    """
    first = 0
    while first < source.num_row_groups and skipped >= source.metadata.row_group(first).num_rows:
        skipped -= source.metadata.row_group(first).num_rows
        first += 1
    groups = range(first, source.num_row_groups)
    return chain.from_iterable(source.iter_batches(batch_rows, row_groups=[group]) for group in groups), skipped


def _arrow_batches(file: InputFile, open_files: ExitStack) -> Iterator[arrow.RecordBatch]:
    reader = _open_arrow(file, open_files)
    if isinstance(reader, ipc.RecordBatchFileReader):
        return (reader.get_batch(at) for at in range(reader.num_record_batches))
    return iter(reader)


def _csv_batches(file: InputFile) -> Iterator[arrow.RecordBatch]:
    names, delimiter = _csv_header(file)
    return read_lines(partial(_open_csv, file), names, delimiter)


def _without_all_well(block: arrow.RecordBatch) -> arrow.RecordBatch:
    """Leave out the problems of a CSV's rows where there are none."""
    last = block.num_columns - 1
    return block if block.column(last).null_count < block.num_rows else block.remove_column(last)


# --- Opening ---


@contextmanager
def _reading(file: InputFile) -> Iterator[None]:
    """Say which file it is of which something cannot be read."""
    try:
        yield
    except arrow.ArrowMemoryError:
        raise
    except (arrow.ArrowException, csv.Error, OSError, EOFError, ValueError) as error:
        raise refused("input", f"{file.url} ({_line(error)})", _KINDS[file.format]) from error


def _line(error: Exception) -> str:
    """Return what an error says, on one line that fits a terminal."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = " ".join(said.split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def _check_names(file: InputFile, names: list[str]) -> None:
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise refused("input", f"{file.url} with two columns {twice!r}", "columns whose names differ")
    if not names:
        raise refused("input", f"{file.url} without a column", "at least one column")


def _holds_empty_lists(kind: arrow.DataType) -> bool:
    """Say whether there are lists of a fixed size of 0 in a type, however deep."""
    if isinstance(kind, arrow.BaseExtensionType):
        kind = kind.storage_type
    if types.is_fixed_size_list(kind) and kind.list_size == 0:
        return True
    return any(_holds_empty_lists(kind.field(place).type) for place in range(kind.num_fields))


@contextmanager
def _open(file: InputFile, mapped: bool = False) -> Iterator[arrow.NativeFile]:
    """Open a file: a local one by Arrow itself, which then needs no lock of Python's."""
    files, path = url_to_fs(file.url)  # which closes an archive when it is given up
    if isinstance(files, LocalFileSystem):
        with arrow.memory_map(path) if mapped else arrow.OSFile(path) as stream:
            yield stream
    else:
        with files.open(path, "rb") as opened, arrow.PythonFile(opened, mode="r") as stream:
            yield stream


def _open_parquet(file: InputFile, open_files: ExitStack) -> parquet.ParquetFile:
    """Open a file such that of a row group, however large, only some pages are held at a time.

    Of a remote file, small row groups are read whole, and more is read at a time of others: many small reads would take
    longer than all else.
    """
    stream = open_files.enter_context(_open(file))
    found = open_files.enter_context(parquet.ParquetFile(stream))
    columns, local = max(1, found.metadata.num_columns), isinstance(stream, arrow.OSFile)
    if not local and _largest_group(found.metadata) <= _GROUP_BYTES:
        return open_files.enter_context(parquet.ParquetFile(stream, metadata=found.metadata, pre_buffer=True))
    page, pages = (_PAGE_BYTES, _ALL_PAGES_BYTES) if local else (_REMOTE_BYTES, _GROUP_BYTES)
    ahead = max(1, min(page, pages // columns))
    buffered = parquet.ParquetFile(stream, metadata=found.metadata, buffer_size=ahead, pre_buffer=False)
    return open_files.enter_context(buffered)


def _largest_group(metadata: parquet.FileMetaData) -> int:
    """Return how many bytes the largest row group takes in its file."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    sizes = (sum(group.column(at).total_compressed_size for at in range(group.num_columns)) for group in groups)
    return max(sizes, default=0)


def _open_arrow(file: InputFile, open_files: ExitStack) -> ipc.RecordBatchFileReader | ipc.RecordBatchStreamReader:
    stream = open_files.enter_context(_open(file))
    magic = stream.read(len(_MAGIC))
    stream.seek(0)
    if magic != _MAGIC:
        return open_files.enter_context(ipc.open_stream(stream))
    reader = open_files.enter_context(ipc.open_file(stream))
    if isinstance(stream, arrow.OSFile) and file.size > _BATCH_BYTES * reader.num_record_batches:
        return open_files.enter_context(ipc.open_file(open_files.enter_context(_open(file, mapped=True))))
    return reader


@contextmanager
def _open_csv(file: InputFile) -> Iterator[arrow.NativeFile]:
    codec = _CODECS.get(_codec(url_to_fs(file.url)[1]))
    with _open(file) as stream:
        if codec is None:
            yield stream
        else:
            with arrow.CompressedInputStream(stream, codec) as plain:
                yield plain


def _csv_schema(file: InputFile) -> arrow.Schema:
    return _texts(_csv_header(file)[0])


def _csv_header(file: InputFile) -> tuple[list[str], str]:
    """Return the names in the first line, as they stand there, and what stands between them.

    Between them stand commas, semicolons or tabs, whichever the line has most of.
    """
    with _open_csv(file) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        lines = iter(lambda: text.readline(_HEADER_CHARACTERS), "")
        line = next((line for line in lines if line.strip()), "")
        delimiter = max(",;\t", key=line.count)
        names = next(csv.reader(chain([line], lines), delimiter=delimiter), [])  # a name may hold a line's end
    if names and all(_is_number(name) for name in names) and not all(name.isdigit() for name in names):
        raise refused("input", f"{file.url} whose first line is of numbers", "a line of column names")
    return names, delimiter


def _texts(names: list[str]) -> arrow.Schema:
    return arrow.schema([(name.strip(), arrow.string()) for name in names])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
