"""How a client shows who it is, and makes sure who answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import grpc

from dubito_client.errors import refused

Pem: TypeAlias = bytes | str | Path  # itself, or the file that holds it


@dataclass(frozen=True, slots=True)
class Identity:
    """What a channel is opened with: its credentials, None for plaintext, and what every call brings along."""

    credentials: grpc.ChannelCredentials | None
    metadata: tuple[tuple[str, str], ...] = field(repr=False)


def identify(
    *,
    credentials: grpc.ChannelCredentials | None,
    token: str | None,
    tls: bool,
    root_certificates: Pem | None,
    client_certificate: Pem | None,
    client_key: Pem | None,
) -> Identity:
    """Read what a client is given; raises `InvalidArgument` for files that cannot be read and halves of a pair."""
    given = {
        "root_certificates": root_certificates,
        "client_certificate": client_certificate,
        "client_key": client_key,
    }
    pems = {name: None if pem is None else _read(name, pem) for name, pem in given.items()}
    for missing, there in (("client_key", "client_certificate"), ("client_certificate", "client_key")):
        if given[missing] is None and given[there] is not None:
            raise refused(missing, "none", f"that of {there}")
    if tls or any(pems.values()):
        if credentials is not None:
            raise refused("credentials", "credentials beside tls, certificates or keys", "the one or the other")
        credentials = grpc.ssl_channel_credentials(
            pems["root_certificates"], pems["client_key"], pems["client_certificate"]
        )
    return Identity(credentials, () if token is None else (("authorization", f"Bearer {_check_token(token)}"),))


def _check_token(token: str) -> str:
    """Return a token that can travel in a header; one that cannot is not shown."""
    if not (token and token.isascii() and token.isprintable() and " " not in token):
        raise refused("token", "a text that is none", "printable ASCII without blanks")
    return token


def _read(name: str, pem: Pem) -> bytes:
    if isinstance(pem, bytes):
        data = pem
    else:
        try:
            data = Path(pem).read_bytes()
        except (OSError, ValueError) as error:
            raise refused(name, pem, f"PEM, or a file that can be read ({error})") from error
    if b"-----BEGIN " not in data:
        raise refused(name, "bytes without PEM" if isinstance(pem, bytes) else f"{pem}, which holds no PEM", "PEM")
    return data


def read_token(file: Path) -> str:
    """Return the token in a file, which holds nothing else; raises `InvalidArgument`."""
    try:
        return _check_token(file.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise refused("token-file", file, f"a file that can be read ({error})") from error
