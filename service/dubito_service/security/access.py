"""Access: whether a call may be made, and by whom it is made."""

from __future__ import annotations

import ipaddress
from typing import Any, Literal

import grpc

from dubito_models.errors import InvalidArgument
from dubito_service.errors import Forbidden, Unauthenticated
from dubito_service.security.callers import name_caller
from dubito_service.security.scopes import Scope
from dubito_service.security.tokens import Token, Tokens

Context = grpc.aio.ServicerContext[Any, Any]
Admin = Literal["auto", "on", "off"]


class Access:
    """Asks for a token where there are any, and lets nobody change what is served where `admin` is False."""

    def __init__(self, tokens: Tokens | None = None, admin: bool = True) -> None:
        self._tokens = tokens
        self._admin = admin

    def enter(self, scope: Scope | None, context: Context) -> None:
        """Let a call in that needs a scope, None: an open one; its caller bears the name of its token from now on.

        Raises `Unauthenticated`, `Forbidden` or `TooManyCalls`.
        """
        token: Token | None = None
        if scope is not None and self._tokens is not None:
            token = self._tokens.check(bearer(context), scope)
        if scope is Scope.ADMIN and not self._admin:
            raise Forbidden("calls that change what is served are off here: dubito serve --admin on (DUBITO_ADMIN)")
        if token is not None and self._tokens is not None:
            self._tokens.spend(token)
            name_caller(token.name)

    def stay(self, scope: Scope | None, secret: str | None) -> float:
        """Count one more request of a call that has entered: seconds until the rate has room for it, 0: now.

        Raises `Unauthenticated` or `Forbidden` where the token is no longer good.
        """
        if scope is None or self._tokens is None:
            return 0.0
        return self._tokens.short(self._tokens.check(secret, scope))


def bearer(context: Context) -> str | None:
    """Return the token in a call's metadata, None where there is none; raises `Unauthenticated` for another scheme."""
    found = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    if not found:
        return None
    if len(found) > 1:
        raise Unauthenticated(f"{len(found)} times authorization", "it once")
    scheme, _, secret = str(found[0]).partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("authorization of another kind", "authorization: Bearer and a token")
    return secret.strip()


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a host's address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def admin_allowed(choice: Admin, *, loopback: bool, tokens: bool) -> bool:
    """Tell whether calls may change what is served; auto: where callers are of this machine, or tokens say who may.

    A certificate says who calls, but not what for.
    """
    return choice == "on" or (choice == "auto" and (loopback or tokens))


def check_plaintext(*, tokens: bool, encrypted: bool, loopback: bool, allowed: bool) -> None:
    """Refuse to take tokens in plaintext from other machines; raises `InvalidArgument`."""
    if tokens and not (encrypted or loopback or allowed):
        raise InvalidArgument(
            "tokens",
            "tokens in plaintext from other machines, for all on the way to read",
            "them with tls_certificate and tls_key, on a loopback host, or with plaintext_tokens behind a proxy that "
            "ends TLS",
        )
