"""TLS: only whom a certificate vouches for gets in, a changed pair is taken up, and a bad one is not."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from certificates import Issued, issue
from dubito_models.errors import InvalidArgument
from dubito_service.security.callers import caller_of
from dubito_service.security.certificates import Certificates, TlsFiles, read_pair, tls_files

NOW = datetime.now(UTC)
SECONDS = 60.0  # that a call may take at most; nothing here waits for it


@pytest.fixture(scope="module")
def authority() -> Issued:
    return issue("lab", authority=True)


@pytest.fixture(scope="module")
def stranger() -> Issued:
    return issue("another lab", authority=True)


def files(folder: Path, pair: Issued, authority: Issued | None = None) -> TlsFiles:
    certificate, key = pair.write(folder, "server")
    if authority is None:
        return TlsFiles(certificate, key)
    return TlsFiles(certificate, key, authority.write(folder, "clients")[0])


def test_a_good_pair_is_read_with_its_end_and_without_showing_its_key(tmp_path: Path, authority: Issued) -> None:
    pair = issue("server", authority)
    read = read_pair(files(tmp_path, pair, authority), NOW)
    assert read.until == pair.certificate.not_valid_after_utc
    assert "PRIVATE" not in repr(read)


Spoil = Callable[[Path, Issued], None]


def key_of(key: Any, protection: Any = None) -> Spoil:
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection or NoEncryption())
    return lambda folder, authority: (folder / "server.key").write_bytes(data) and None


def certificate_of(**choices: Any) -> Spoil:
    return lambda folder, authority: issue("server", authority, **choices).write(folder, "server") and None


def garbage(name: str) -> Spoil:
    return lambda folder, authority: (folder / name).write_bytes(b"-----BEGIN x-----\n\xff") and None


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder, authority: (folder / "server.pem").unlink(), "tls_certificate: .*No such file"),
        (lambda folder, authority: (folder / "server.key").unlink(), "tls_key: .*No such file"),
        (lambda folder, authority: (folder / "clients.pem").unlink(), "tls_client_ca: .*No such file"),
        (garbage("server.pem"), "tls_certificate: .*holds no certificate"),
        (garbage("server.key"), "tls_key: .*holds no private key"),
        (garbage("clients.pem"), "tls_client_ca: .*holds no certificate"),
        (key_of(ec.generate_private_key(ec.SECP256R1())), "tls_key: .*another certificate's"),
        (key_of(ed25519.Ed25519PrivateKey.generate()), "tls_key: .*a key of another kind"),
        (key_of(ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(b"x")), "tls_key: .*a passphrase"),
        (certificate_of(days=(-9, -1)), "tls_certificate: .*which expired at"),
        (certificate_of(days=(1, 9)), "tls_certificate: .*which is valid from"),
        (certificate_of(key=rsa.generate_private_key(65537, 1024)), "tls_key: .*an RSA key of 1024 bits"),
    ],
)
def test_what_no_client_should_accept_is_refused_with_the_file(
    tmp_path: Path, authority: Issued, spoil: Spoil, said: str
) -> None:
    chosen = files(tmp_path, issue("server", authority), authority)
    spoil(tmp_path, authority)
    with pytest.raises(InvalidArgument, match=said):
        read_pair(chosen, NOW)


def test_a_strong_rsa_key_will_do(tmp_path: Path, authority: Issued) -> None:
    read_pair(files(tmp_path, issue("server", authority, key=rsa.generate_private_key(65537, 2048))), NOW)


def test_one_file_needs_the_other() -> None:
    a, b, c = Path("a"), Path("b"), Path("c")
    assert tls_files(None, None, None) is None
    assert tls_files(a, b, c) == TlsFiles(a, b, c)
    for given in ((a, None, None), (None, b, None), (None, None, c)):
        with pytest.raises(InvalidArgument, match="tls_"):
            tls_files(*given)


def test_a_changed_pair_is_taken_up_and_a_bad_one_is_told_of_once(
    tmp_path: Path, authority: Issued, caplog: pytest.LogCaptureFixture
) -> None:
    held = Certificates(files(tmp_path, issue("server", authority)), time.time)
    first = held.pair
    assert not held.refresh()
    second = issue("server", authority)
    (tmp_path / "server.pem").write_bytes(second.pem)  # its key is yet to come
    for _ in range(3):
        assert not held.refresh()
    assert held.pair is first
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    (tmp_path / "server.key").write_bytes(second.key_pem)
    assert held.refresh()
    assert held.pair.certificate == second.pem
    assert not held.refresh()
    (tmp_path / "server.key").unlink()
    assert not held.refresh()
    assert "PRIVATE" not in caplog.text


def test_a_pair_that_is_not_valid_yet_is_taken_up_when_it_is(tmp_path: Path, authority: Issued) -> None:
    now = [NOW]
    held = Certificates(files(tmp_path, issue("server", authority)), lambda: now[0].timestamp())
    issue("server", authority, days=(1, 9)).write(tmp_path, "server")
    assert not held.refresh()
    now[0] += timedelta(days=2)
    assert held.refresh()


async def who(_: Any, context: Any) -> bytes:
    await context.read()
    return caller_of(context).encode()


class Who(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.stream_unary_rpc_method_handler(who)


Serve = Callable[[TlsFiles], Awaitable[int]]


@pytest_asyncio.fixture(loop_scope="module")
async def served() -> AsyncIterator[Serve]:
    """Serves the caller's name over TLS; gives the port."""
    servers: list[grpc.aio.Server] = []

    async def serve(chosen: TlsFiles) -> int:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((Who(),))
        port = server.add_secure_port("127.0.0.1:0", Certificates(chosen, time.time).credentials())
        await server.start()
        servers.append(server)
        return port

    yield serve
    for server in servers:
        await server.stop(None)


def connect(port: int, root: Issued | None, own: Issued | None = None) -> grpc.aio.Channel:
    alone = [("grpc.use_local_subchannel_pool", 1)]
    if root is None:
        return grpc.aio.insecure_channel(f"127.0.0.1:{port}", alone)
    pair = (None, None) if own is None else (own.key_pem, own.pem)
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(root.pem, *pair), alone)


async def name(channel: grpc.aio.Channel) -> str:
    call: Any = channel.unary_unary("/a/who")
    reply: bytes = await call(b"", timeout=SECONDS)
    return reply.decode()


async def refused(channel: grpc.aio.Channel) -> grpc.StatusCode:
    async with channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await name(channel)
    return caught.value.code()


@pytest.mark.asyncio(loop_scope="module")
async def test_only_clients_with_a_good_certificate_get_in_and_bear_its_name(
    served: Serve, tmp_path: Path, authority: Issued, stranger: Issued
) -> None:
    port = await served(files(tmp_path, issue("server", authority), authority))
    async with connect(port, authority, issue("alice", authority)) as channel:
        assert await name(channel) == "alice"
    callers = {
        "none": None,
        "of another authority": issue("alice", stranger),
        "of nobody": issue("alice"),
        "expired": issue("alice", authority, days=(-9, -1)),
        "not valid yet": issue("alice", authority, days=(1, 9)),
    }
    codes = {kind: await refused(connect(port, authority, own)) for kind, own in callers.items()}
    assert set(codes.values()) == {grpc.StatusCode.UNAVAILABLE}


@pytest.mark.asyncio(loop_scope="module")
async def test_plaintext_and_silence_at_the_port_harm_nobody(served: Serve, tmp_path: Path, authority: Issued) -> None:
    port = await served(files(tmp_path, issue("server", authority)))
    assert await refused(connect(port, None)) is grpc.StatusCode.UNAVAILABLE
    with socket.create_connection(("127.0.0.1", port)) as silent:
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
        async with connect(port, authority) as channel:
            assert await name(channel) == "127.0.0.1"
        silent.sendall(b"\x16")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_new_pair_serves_new_connections_and_open_ones_stay(
    served: Serve, tmp_path: Path, authority: Issued, stranger: Issued
) -> None:
    port = await served(files(tmp_path, issue("server", authority)))
    async with connect(port, authority) as before:
        assert await name(before) == "127.0.0.1"
        issue("server", stranger).write(tmp_path, "server")
        async with connect(port, stranger) as after:
            assert await name(after) == "127.0.0.1"
        assert await refused(connect(port, authority)) is grpc.StatusCode.UNAVAILABLE
        (tmp_path / "server.key").write_bytes(b"")
        async with connect(port, stranger) as after:
            assert await name(after) == "127.0.0.1"
        assert await name(before) == "127.0.0.1"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_pair_that_changes_while_many_connect_fails_none(
    served: Serve, tmp_path: Path, authority: Issued
) -> None:
    port = await served(files(tmp_path, issue("server", authority)))

    async def come_and_go() -> str:
        async with connect(port, authority) as channel:
            return await name(channel)

    for _ in range(5):
        issue("server", authority).write(tmp_path, "server")
        assert set(await asyncio.gather(*(come_and_go() for _ in range(10)))) == {"127.0.0.1"}
