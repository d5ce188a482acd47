"""Who calls: the token's name before the certificate's, the certificate's before the host."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dubito_service.security.callers import caller_of, host_of, name_caller


class Peer:
    """What gRPC says of a call."""

    def __init__(self, peer: str, **about: list[bytes]) -> None:
        self._peer, self._about = peer, about

    def peer(self) -> str:
        return self._peer

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._about


def context(peer: str = "ipv4:10.0.0.7:5000", **about: list[bytes]) -> Any:
    return Peer(peer, **about)


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:127.0.0.1:40832", "127.0.0.1"),
        ("ipv6:%5B::1%5D:40832", "::1"),
        ("ipv6:[fe80::1%25eth0]:40832", "fe80::1%eth0"),
        ("unix:/run/dubito.sock", "unix"),
        ("unix:", "unix"),
        ("unknown", "unknown"),
        ("", ""),
    ],
)
def test_a_host_has_no_port(peer: str, host: str) -> None:
    assert host_of(peer) == host


async def test_a_token_s_name_comes_before_a_certificate_s_and_that_before_the_host() -> None:
    certified = context(x509_common_name=[b"alice"], x509_subject=[b"CN=alice,O=lab"])
    assert caller_of(context()) == "10.0.0.7"
    assert caller_of(certified) == "alice"
    assert caller_of(context(x509_common_name=[b""], x509_subject=[b"O=lab"])) == "O=lab"
    name_caller("mobile")
    assert caller_of(certified) == "mobile"


async def test_each_call_has_its_own_caller() -> None:
    async def call(token: str | None) -> str:
        if token is not None:
            name_caller(token)
        await asyncio.sleep(0)
        return caller_of(context())

    names = await asyncio.gather(*(asyncio.create_task(call(token)) for token in ("a", None, "b")))
    assert names == ["a", "10.0.0.7", "b"]
