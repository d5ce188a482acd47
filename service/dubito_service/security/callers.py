"""Callers: the name that a call is counted and limited under."""

from __future__ import annotations

from contextvars import ContextVar
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import grpc

Context = grpc.aio.ServicerContext[Any, Any]

_COMMON_NAME = "x509_common_name"

# Of the call whose task this is: gRPC runs every call in a task of its own, and its context takes no attributes.
_named: ContextVar[str | None] = ContextVar("caller", default=None)


def caller_of(context: Context) -> str:
    """Return the name of the token that the call came with, else its certificate's, else the peer's host.

    The certificate's is the common name of its subject (or all of the subject where it has none); the host comes
    without the port, and is "unix" on a socket of the file system.
    """
    named = _named.get()
    return _peer(context) if named is None else named


def name_caller(token: str) -> None:
    """Name the caller after its token, for the rest of this call."""
    _named.set(token)


@lru_cache(maxsize=4096)
def host_of(peer: str) -> str:
    """Return the host of a peer as gRPC spells it: "ipv4:127.0.0.1:5000", "ipv6:%5B::1%5D:5000", "unix:/a/socket"."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    return unquote(rest.rpartition(":")[0]).strip("[]")


def _peer(context: Context) -> str:
    about = context.auth_context()
    for key in (_COMMON_NAME, "x509_subject"):
        for value in about.get(key, ()):
            if value:
                return value.decode(errors="replace")
    return host_of(context.peer())
