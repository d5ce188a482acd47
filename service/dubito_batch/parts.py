"""The output folder: a part is put there whole or not at all, and its name is its commit."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as arrow
from filelock import FileLock, Timeout
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from pyarrow import parquet, types

from dubito_client.errors import DubitoClientError, refused

LOCK = "_dubito_lock"
_NAME = b"dubito_part"  # in a part's footer
_PART = re.compile(r"part-(\d{5,})-(\d{7,})\.parquet")
_ACCEPTED = "the part that the job wrote there; without the file, --resume makes it again"
_LEFT_OVER = re.compile(r"\.(part-|_dubito_).*\.tmp")


class NotWritten(DubitoClientError):
    """The output cannot be written: its disk is full or gone, or its store does not answer."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Which block of which input file, both counted from 0."""

    file: int
    block: int

    @property
    def name(self) -> str:
        """The name of the part that the block becomes."""
        return f"{self.stem}-{self.block:07d}.parquet"

    @property
    def stem(self) -> str:
        """How the names of all parts of the file begin."""
        return f"part-{self.file:05d}"


def _is_word(kind: arrow.DataType) -> bool:
    return bool(types.is_dictionary(kind) or types.is_string(kind) or types.is_large_string(kind))


def encode_part(rows: arrow.RecordBatch, place: Place) -> bytes:
    """Return rows as a Parquet file of one row group that names its place: the same bytes for the same rows."""
    sink = arrow.BufferOutputStream()
    table = arrow.Table.from_batches([rows])
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _NAME: place.name.encode()})
    # A dictionary of numbers, which seldom repeat, takes five times as long and no less room.
    words = [field.name for field in rows.schema if _is_word(field.type)]
    parquet.write_table(table, sink, row_group_size=max(1, table.num_rows), compression="zstd", use_dictionary=words)
    encoded: bytes = sink.getvalue().to_pybytes()
    return encoded


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of this machine, or one of any store that fsspec reaches."""

    system: AbstractFileSystem
    root: str

    @property
    def local(self) -> Path | None:
        """The folder itself, where it is of this machine."""
        return Path(self.root) if isinstance(self.system, LocalFileSystem) else None

    def names(self) -> frozenset[str]:
        """List what is in it; nothing where there is no such folder."""
        try:
            self.system.invalidate_cache(self.root)
            found = self.system.ls(self.root, detail=False)
        except FileNotFoundError:
            return frozenset()
        except Exception as error:  # plug-ins raise kinds of their own
            raise refused("output", f"{self.root} ({_said(error)})", "a folder that can be listed") from error
        return frozenset(path.rstrip("/").rsplit("/", 1)[-1] for path in found) - {""}

    def parts(self) -> frozenset[Place]:
        """List the finished parts."""
        found = (_PART.fullmatch(name) for name in self.names())
        return frozenset(Place(int(match[1]), int(match[2])) for match in found if match)

    def foreign(self) -> list[str]:
        """List what no job leaves in a folder before its ledger."""
        return sorted(name for name in self.names() if name != LOCK and not _LEFT_OVER.fullmatch(name))

    def read(self, name: str) -> bytes:
        """Read a file; `InvalidArgument` where that fails."""
        try:
            content: bytes = self.system.cat_file(f"{self.root}/{name}")
        except Exception as error:
            raise refused("output", f"{name} in {self.root} ({_said(error)})", "a file that can be read") from error
        return content

    def read_part(self, place: Place, columns: Sequence[str]) -> arrow.Table:
        """Read columns of a finished part; `InvalidArgument` where it is no longer what was written."""
        try:
            # In this thread: one of Arrow's that still has a file of Python's when the command ends aborts it.
            with (
                self.system.open(f"{self.root}/{place.name}", "rb") as file,
                parquet.ParquetFile(file, pre_buffer=False) as part,
            ):
                return part.read(columns=list(columns), use_threads=False)
        except Exception as error:
            raise refused("output", f"{place.name} in {self.root} ({_said(error)})", _ACCEPTED) from error

    def count_rows(self, place: Place) -> int | None:
        """Count the rows of a part by its footer; None of one that is cut, as a store may leave it to a killed job.

        Raises `InvalidArgument` where it cannot be read, or is of another place.
        """
        try:
            with self.system.open(f"{self.root}/{place.name}", "rb") as file:
                footer = parquet.read_metadata(file)
        except arrow.ArrowInvalid:
            return None
        except Exception as error:
            raise refused("output", f"{place.name} in {self.root} ({_said(error)})", _ACCEPTED) from error
        held = (footer.metadata or {}).get(_NAME, b"what no job wrote").decode(errors="replace")
        if held != place.name:
            raise refused("output", f"{place.name} in {self.root}, which holds {held}", _ACCEPTED)
        return int(footer.num_rows)

    def put(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all; `NotWritten` where that fails."""
        try:
            if self.local is None:
                self.system.pipe_file(f"{self.root}/{name}", content)
            else:
                _put_here(self.local, name, content)
        except Exception as error:
            raise NotWritten(f"output: {name} in {self.root} cannot be written: {_said(error)}") from error

    def make(self) -> None:
        """Make the folder where there is none."""
        try:
            self.system.makedirs(self.root, exist_ok=True)
        except Exception as error:
            raise refused("output", f"{self.root} ({_said(error)})", "a folder that can be made") from error

    def clear_left_overs(self) -> None:
        """Remove what a killed job had begun to write; only who holds the lock may."""
        if self.local is not None:
            for name in self.names():
                if _LEFT_OVER.fullmatch(name):
                    (self.local / name).unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold it against other jobs; `InvalidArgument` where one holds it. Stores beyond this machine have no lock."""
        if self.local is None:
            yield
            return
        lock = FileLock(self.local / LOCK, blocking=False, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            raise refused("output", self.root, "a folder that no other job is writing now") from None
        except OSError as error:
            raise NotWritten(f"output: {self.root} cannot be written: {_said(error)}") from error
        try:
            yield
        finally:
            lock.release()


def open_folder(url: str) -> Folder:
    """Open an output folder, which need not exist; `InvalidArgument` where fsspec has no way to it."""
    try:
        system, root = url_to_fs(url)
    except Exception as error:  # plug-ins raise kinds of their own, for credentials for example
        raise refused("output", url, f"a folder, or a URL that fsspec opens ({_said(error)})") from error
    if system.isfile(root):
        raise refused("output", f"the file {root}", "a folder")
    return Folder(system, root.rstrip("/"))


def _put_here(folder: Path, name: str, content: bytes) -> None:
    """Write through a file of another name, of which no two writers have the same."""
    partial = folder / f".{name}.{secrets.token_hex(4)}.tmp"
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / name)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _said(error: Exception) -> str:
    return str((error.strerror if isinstance(error, OSError) else None) or error or type(error).__name__)
