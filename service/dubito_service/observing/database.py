"""The database of observations: SQLite in a folder, or PostgreSQL by its address; every wait in it is bounded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from dubito_models.errors import InvalidArgument
from dubito_service.errors import CannotOpenState, StateUnavailable

FILE = "observations.sqlite"
BUSY_SECONDS = 2.0  # for a lock that another holds
STATEMENT_SECONDS = 5.0

_ATTEMPTS = 3
_OPENINGS, _OPENING_SECONDS = 5, 0.25
_CONFLICTS = ("40001", "40P01")  # PostgreSQL: two transactions stood in each other's way
_WAL_BYTES = 64 * 2**20

T = TypeVar("T")


class Database:
    """Transactions of one store; `folder` is where a SQLite file lies, None for PostgreSQL.

    `write` and `read` may run in a thread each. Both raise `StateUnavailable` where the database is locked, full or
    lost.
    """

    def __init__(self, state: str) -> None:
        self.folder: Path | None = None
        if "://" in state:
            self._writer = self._reader = _open_postgresql(state)
        else:
            self.folder = Path(state)
            path = _make_folder(self.folder) / FILE
            self._writer, self._reader = _open_sqlite(path, "BEGIN IMMEDIATE"), _open_sqlite(path, "BEGIN")

    def create(self, tables: sql.MetaData) -> None:
        """Create what tables are missing; `CannotOpenState` where the database cannot be used."""
        for attempts_left in reversed(range(_OPENINGS)):
            try:
                with self._writer.begin() as connection:
                    if self.folder is None:  # two servers that start together would both create them
                        connection.execute(sql.text("SELECT pg_advisory_xact_lock(2053399919)"))
                    tables.create_all(connection)
                return
            except SQLAlchemyError as error:
                if not attempts_left or "locked" not in _reason(error):  # another server that starts is in the way
                    raise CannotOpenState(f"state: {self.name} cannot be opened: {_reason(error)}") from None
                time.sleep(_OPENING_SECONDS)

    @property
    def name(self) -> str:
        """What it is, without a password."""
        return str(self._writer.url if self.folder is None else self.folder / FILE)

    def write(self, act: Callable[[sql.Connection], T]) -> T:
        """Act within one transaction, once more where another one was in its way."""
        for attempt in range(_ATTEMPTS):
            try:
                with _available(), self._writer.begin() as connection:
                    return act(connection)
            except _Conflict:
                time.sleep(0.01 * (attempt + 1))
        raise StateUnavailable("is busy")

    def read(self, act: Callable[[sql.Connection], T]) -> T:
        """Act within one transaction that changes nothing."""
        try:
            with _available(), self._reader.begin() as connection:
                return act(connection)
        except _Conflict:
            raise StateUnavailable("is busy") from None

    def insert_new(self, connection: sql.Connection, table: sql.Table, **values: Any) -> bool:
        """Insert a row; False where one of the same key is there already, which stays."""
        kind = sqlite.insert if self.folder is not None else postgresql.insert
        statement = kind(table).values(**values).on_conflict_do_nothing().returning(*table.primary_key)
        return connection.execute(statement).first() is not None

    def close(self) -> None:
        """Give up all connections."""
        self._writer.dispose()
        self._reader.dispose()


class _Conflict(Exception):
    """A transaction to take again."""


@contextmanager
def _available() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) in _CONFLICTS:
            raise _Conflict from None
        raise StateUnavailable(f"does not answer ({_reason(error)})") from None
    except SQLAlchemyError as error:  # no connection was free in time
        raise StateUnavailable(f"does not answer ({type(error).__name__})") from None


def _reason(error: SQLAlchemyError) -> str:
    """Return the driver's own first line: SQLAlchemy's text repeats statement and values."""
    said = str(error.orig if isinstance(error, DBAPIError) else error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CannotOpenState(f"state: {folder} cannot be made a folder: {error.strerror}") from None
    return folder


def _open_sqlite(path: Path, begin: str) -> sql.Engine:
    engine = sql.create_engine(
        sql.URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_SECONDS}, pool_timeout=BUSY_SECONDS
    )

    def on_connect(connection: Any, record: object) -> None:
        connection.isolation_level = None  # or the driver begins transactions by itself, late and deferred
        for pragma in ("journal_mode=WAL", "synchronous=FULL", f"journal_size_limit={_WAL_BYTES}"):
            connection.execute(f"PRAGMA {pragma}")

    sql.event.listen(engine, "connect", on_connect)
    sql.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _open_postgresql(state: str) -> sql.Engine:
    accepted = "a folder, or postgresql+psycopg://USER@HOST/DATABASE"
    try:
        url = sql.make_url(state)
    except (ArgumentError, ValueError):
        raise InvalidArgument("state", "an address that cannot be read", accepted) from None
    if url.drivername not in ("postgresql", "postgresql+psycopg"):
        raise InvalidArgument("state", f"{url.drivername}://", accepted)
    wait = f"-c lock_timeout={BUSY_SECONDS * 1e3:.0f} -c statement_timeout={STATEMENT_SECONDS * 1e3:.0f}"
    try:
        return sql.create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            pool_timeout=BUSY_SECONDS,
            connect_args={
                "connect_timeout": 3,
                "options": f"{wait} -c idle_in_transaction_session_timeout=10000",
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "tcp_user_timeout": 5000,
            },
        )
    except ModuleNotFoundError:
        raise CannotOpenState("state: PostgreSQL needs psycopg: pip install 'dubito[postgres]'") from None
