"""Tokens: who may call for what, how often and until when.

The file holds the SHA-256 of each token, never the token. A token is 256 random bits, which nobody finds by trying, so
its hash needs neither salt nor stretching.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import os
import secrets
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import tomli_w
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dubito_models.errors import InvalidArgument
from dubito_service.errors import Forbidden, TooManyCalls, Unauthenticated
from dubito_service.security.scopes import Scope
from dubito_service.security.stamps import stamp_of

log = logging.getLogger(__name__)

_NAME = r"^[A-Za-z0-9_.@-]{1,64}$"
_MARK = "dubito_"  # so that scanners for leaked secrets find them
_LONGEST = 256  # characters: what is longer is no token of ours, and is not hashed
_LOOK_SECONDS = 1.0  # between looks whether the file has changed


class _Entry(BaseModel):
    """One table of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=_NAME)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)]
    rate: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None  # requests per second; None: any number
    burst: Annotated[int | None, Field(ge=1)] = None  # requests at once
    expires: AwareDatetime | None = None

    @model_validator(mode="after")
    def _check(self) -> _Entry:
        if self.burst is not None and self.rate is None:
            raise ValueError("burst needs a rate")
        return self


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    token: tuple[_Entry, ...] = ()


@dataclass(slots=True)
class Bucket:
    """A rate: `burst` requests at once, refilled by `rate` a second."""

    rate: float
    burst: float
    held: float
    filled: float  # when, in seconds of the caller's clock

    def take(self, now: float) -> float:
        """Take one request out, and return 0; or, where none is in, the seconds until one will be."""
        self.held = min(self.burst, self.held + max(0.0, now - self.filled) * self.rate)
        self.filled = now
        if self.held < 1.0:
            return (1.0 - self.held) / self.rate
        self.held -= 1.0
        return 0.0


@dataclass(frozen=True, slots=True)
class Token:
    """One token that is known, by its hash."""

    name: str
    digest: bytes
    scopes: frozenset[Scope]
    expires: float = math.inf  # seconds since 1970
    rate: float = math.inf  # requests per second
    burst: float = 1.0  # requests at once


def digest_of(secret: str) -> bytes:
    """Return the hash by which a token is known."""
    return hashlib.sha256(secret.encode()).digest()


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Read a file of tokens; raises `InvalidArgument` for one that is not there or not of this form."""
    try:
        entries = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))).token
    except OSError as error:
        raise InvalidArgument("tokens", path, f"a file that can be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument("tokens", f"{path}, which is no TOML ({error})", "what dubito token writes") from error
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidArgument("tokens", f"{path} with a bad {where}", _said(first["msg"])) from None
    for what in ("name", "sha256"):
        values = [str(getattr(entry, what)) for entry in entries]
        twice = {value for value in values if values.count(value) > 1}
        if twice:
            raise InvalidArgument("tokens", f"{path} with the {what} {min(twice)} twice", f"each {what} once")
    return tuple(_token(entry) for entry in entries)


def _token(entry: _Entry) -> Token:
    return Token(
        name=entry.name,
        digest=bytes.fromhex(entry.sha256),
        scopes=frozenset(entry.scopes),
        expires=math.inf if entry.expires is None else entry.expires.timestamp(),
        rate=math.inf if entry.rate is None else entry.rate,
        burst=float(entry.burst or max(1, math.ceil(entry.rate or 1.0))),
    )


def _said(message: str) -> str:
    return message.removeprefix("Value error, ")


def new_secret() -> str:
    """Return a new token, which is nowhere kept."""
    return _MARK + secrets.token_urlsafe(32)


def add_token(
    path: Path,
    secret: str,
    name: str,
    scopes: Sequence[Scope],
    *,
    rate: float | None = None,
    burst: int | None = None,
    expires: datetime | None = None,
) -> None:
    """Append a token's entry to a file, which is made where there is none; raises `InvalidArgument`."""
    chosen: dict[str, object] = {"rate": rate, "burst": burst, "expires": expires}
    given: dict[str, object] = {"name": name, "sha256": digest_of(secret).hex(), "scopes": tuple(scopes)}
    given |= {key: value for key, value in chosen.items() if value is not None}
    try:
        entry = _Entry.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        bad = str(first["loc"][0]) if first["loc"] else "burst"
        accepted = "1 to 64 of letters, digits, _ . @ and -" if bad == "name" else _said(first["msg"])
        raise InvalidArgument(bad, given.get(bad), accepted) from None
    if path.exists() and any(token.name == name for token in read_tokens(path)):
        raise InvalidArgument("name", name, f"a name that {path} does not hold yet")
    try:
        # Its owner alone reads it: hashes are no tokens, but nobody else's business either.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            table = tomli_w.dumps({"token": [entry.model_dump(exclude_none=True)]})
            file.write(f"\n{table}" if file.tell() else table)
    except OSError as error:
        raise InvalidArgument("file", path, f"a file that can be written ({error.strerror})") from error


class Tokens:
    """The tokens of a file, read again when it changes; where the new file is bad, the old tokens stay."""

    def __init__(self, path: Path, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        """Read the file; raises `InvalidArgument`. `clock` runs evenly; `wall` gives seconds since 1970."""
        self._path, self._clock, self._wall = path, clock, wall
        self._stamp = stamp_of(path)
        self._known = _by_digest(read_tokens(path))
        self._buckets: dict[Token, Bucket] = {}
        self._looked = clock()
        self._refused = ""

    def check(self, secret: str | None, scope: Scope) -> Token:
        """Return the token that a call brought; raises `Unauthenticated` or, without that scope, `Forbidden`."""
        self._look()
        if secret is None:
            raise Unauthenticated("no token", "authorization: Bearer and a token of this server")
        digest = digest_of(secret) if len(secret) <= _LONGEST else b""
        token = self._known.get(digest)
        # What a lookup's time tells is about the hash, of which a caller cannot choose a single bit.
        if token is None or not hmac.compare_digest(token.digest, digest):
            raise Unauthenticated("a token that is not known here", "authorization: Bearer and a token of this server")
        if self._wall() >= token.expires:
            raise Unauthenticated(f"the token {token.name}, which has expired", "one that has not")
        if scope not in token.scopes:
            raise Forbidden(f"the token {token.name} is for {_listed(token.scopes)}; this call needs the scope {scope}")
        return token

    def spend(self, token: Token) -> None:
        """Count one request against a token's rate; raises `TooManyCalls`."""
        short = self.short(token)
        if short:
            raise TooManyCalls(f"the token {token.name} is good for {token.rate:g} requests a second", short)

    def short(self, token: Token) -> float:
        """Count one request, and return 0; or the seconds until the token's rate has room for one."""
        if token.rate == math.inf:
            return 0.0
        now = self._clock()
        bucket = self._buckets.get(token)
        if bucket is None:
            bucket = self._buckets[token] = Bucket(token.rate, token.burst, token.burst, now)
        return bucket.take(now)

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        stamp = stamp_of(self._path)
        if stamp == self._stamp:
            return
        try:
            found = _by_digest(read_tokens(self._path))
        except InvalidArgument as error:
            if str(error) != self._refused:  # said once, not every second
                log.warning("tokens refused, the old ones stay reason=%s", error)
            self._refused = str(error)
            return
        self._known = found
        # A token that is as it was goes on with what its rate has left.
        self._buckets = {token: bucket for token, bucket in self._buckets.items() if token in found.values()}
        self._stamp, self._refused = stamp, ""
        log.info("tokens read count=%d", len(found))


def _by_digest(tokens: Sequence[Token]) -> dict[bytes, Token]:
    return {token.digest: token for token in tokens}


def _listed(scopes: frozenset[Scope]) -> str:
    return ", ".join(sorted(scopes))
