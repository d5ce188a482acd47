"""A PostgreSQL server for tests: of its own, on a socket in a folder of its own, gone when it is closed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

_FOUND = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
_COMMAND = shutil.which("initdb") or (str(_FOUND[-1]) if _FOUND else None)
BINARIES = None if _COMMAND is None else Path(_COMMAND).resolve().parent


def _account() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: then as another user of this machine."""
    if os.geteuid():
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@dataclass
class Postgres:
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert BINARIES is not None
        options = ["-D", str(self.folder / "data"), "-k", str(self.folder), "-h", "", "-c", "fsync=off"]
        self.process = subprocess.Popen(
            [str(BINARIES / "postgres"), *options],
            cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **_account(),
        )  # fmt: skip
        for _ in range(600):
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                time.sleep(0.05)
        raise RuntimeError("PostgreSQL did not start")

    def stop(self) -> None:
        """Stop at once, as a machine that is lost does."""
        if self.process is not None:
            self.process.send_signal(3)  # an immediate shutdown
            self.process.wait(30)
            self.process = None

    def empty(self) -> str:
        """Empty the database, which nobody uses now; returns its address as `--state` takes it."""
        with self.connect() as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        return f"postgresql+psycopg://dubito@/postgres?host={self.folder}"

    def connect(self) -> psycopg.Connection[Any]:
        """Open a connection beside those of a store."""
        return psycopg.connect(f"host={self.folder} user=dubito dbname=postgres", connect_timeout=2)


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    assert BINARIES is not None
    folder = Path(tempfile.mkdtemp(prefix="dubito-pg-"))  # pytest's own folders are closed to other users
    account = _account()
    if account:
        os.chown(folder, account["user"], account["group"])
    command = [str(BINARIES / "initdb"), "-D", str(folder / "data"), "-A", "trust", "-U", "dubito", "--no-sync"]
    server = Postgres(folder)
    try:
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, **account)
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
