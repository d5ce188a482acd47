"""The mirror: copies of remote versions in a cache folder, as whole and as new as the remote ones.

A version's copy lies under the checksum of its manifest, `<cache>/<checksum>/<model>/<version>/`, so that it never
changes either: a version whose manifest is another one is another copy. Checksums decide what has to be fetched, and
the manifest is written last. Several processes may share a cache.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from fsspec import AbstractFileSystem
from pydantic import ValidationError

from dubito_models.errors import CorruptVersion, RepositoryUnavailable
from dubito_models.files import write_atomically
from dubito_models.manifest import Manifest
from dubito_models.package import CALIBRATIONS, CURRENT, MANIFEST, PROGRAM, STANDARD

# What stores say of a file that is another one when the file is: sizes, checksums, times, generations.
_TELLING = ("size", "ETag", "etag", "md5Hash", "md5", "generation", "LastModified", "last_modified", "updated",
            "mtime", "modified", "created")  # fmt: skip
_CALIBRATION = re.compile(r"[0-9a-f]{16}\.json")


def redact(url: str) -> str:
    """Return a URL without the password that it may carry."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc="...@" + parts.netloc.rpartition("@")[2]))


class Mirror:
    """A remote folder of versions, and the cache folder of their copies; every method asks the remote."""

    def __init__(self, system: AbstractFileSystem, root: str, cache: Path) -> None:
        self._system = system
        self._root = root.rstrip("/")
        self._cache = cache

    def marks(self) -> dict[str, str]:
        """Return, of each file by its path below the root, what changes when the file does."""
        try:
            self._system.invalidate_cache()
            files: dict[str, dict[str, Any]] = self._system.find(self._root, detail=True)
        except FileNotFoundError:
            return {}  # stores know no empty folder
        except Exception as error:  # each store has errors of its own
            raise self._unavailable(error) from error
        start = len(self._root) + 1
        return {
            path[start:]: " ".join(f"{key}={info[key]}" for key in _TELLING if info.get(key) is not None)
            for path, info in files.items()
        }

    def fetch(self, model: str, version: int) -> Path:
        """Return the folder of a version's copy, made or completed now; raises `CorruptVersion` with what is wrong."""
        data = self._read(f"{model}/{version}/{MANIFEST}")
        if data is None:
            raise CorruptVersion(f"{MANIFEST} is missing: the version was not written to its end")
        try:
            manifest = Manifest.model_validate_json(data)
        except ValidationError as error:
            raise CorruptVersion(f"{MANIFEST}: {error.errors()[0]['msg']}") from None
        folder = self._cache / _checksum(data)[:16] / model / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (PROGRAM, STANDARD):
            self._fetch_file(f"{model}/{version}/{name}", folder / name, manifest.checksums.get(name))
        self.fetch_calibrations(model, version, folder)
        write_atomically(folder / MANIFEST, data)
        return folder

    def fetch_calibrations(self, model: str, version: int, folder: Path) -> None:
        """Make the calibrations in a copy those of the remote version; which one is in use is written last."""
        remote, local = f"{model}/{version}/{CALIBRATIONS}", folder / CALIBRATIONS
        current = self._read(f"{remote}/{CURRENT}")
        names = {name for name in self._names(remote) if _CALIBRATION.fullmatch(name)}
        if not names and current is None:
            shutil.rmtree(local, ignore_errors=True)
            return
        local.mkdir(exist_ok=True)
        for name in sorted(names):
            data = self._read(f"{remote}/{name}")
            if data is not None and _bytes_of(local / name) != data:
                write_atomically(local / name, data)
        if current is None:
            (local / CURRENT).unlink(missing_ok=True)
        elif _bytes_of(local / CURRENT) != current:
            write_atomically(local / CURRENT, current)
        for path in local.glob("*.json"):
            if path.name not in names:
                path.unlink(missing_ok=True)

    def forget_others(self, folder: Path) -> None:
        """Remove the copies of what lay under a copy's number before."""
        for other in self._cache.glob(f"*/{folder.parent.name}/{folder.name}"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)

    def _fetch_file(self, remote: str, target: Path, checksum: str | None) -> None:
        held = _bytes_of(target)
        if held is not None and _checksum(held) == checksum:
            return
        data = self._read(remote)
        if data is None:
            raise CorruptVersion(f"{target.name}: it is missing")
        if _checksum(data) != checksum:
            raise CorruptVersion(
                f"{target.name}: its checksum is not the manifest's; the file was changed or is not yet there whole"
            )
        write_atomically(target, data)

    def _names(self, path: str) -> list[str]:
        try:
            listed: list[str] = self._system.ls(f"{self._root}/{path}", detail=False)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._unavailable(error) from error
        return [name.rpartition("/")[2] for name in listed]

    def _read(self, path: str) -> bytes | None:
        """Return a remote file; None where there is none."""
        try:
            data: bytes = self._system.cat_file(f"{self._root}/{path}")
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._unavailable(error) from error
        return data

    def _unavailable(self, error: Exception) -> RepositoryUnavailable:
        kind = type(error).__name__
        return RepositoryUnavailable(f"the repository {redact(self._root)} cannot be read ({kind}: {error})")


def _bytes_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
