"""The client's TLS and token: they arrive, on every verb, and what is wrong with them is said."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from click.testing import CliRunner, Result

from certificates import Issued, issue
from dubito_client import AccessDenied, AsyncClient, Client, InvalidArgument, TlsFailed, Unavailable, command
from dubito_protos import uncertainty_pb2_grpc as services

from .fakes import B, Fake, abort

ROWS = np.zeros((B, 1, 8, 8))
TOKEN = "dubito_secret"


class Doorkeeper(grpc.ServerInterceptor):
    """Lets in who brings the token; `came` are the authorizations that calls brought."""

    def __init__(self) -> None:
        self.came: list[str] = []

    def intercept_service(self, continuation: Callable[..., Any], handler_call_details: Any) -> Any:
        found = dict(handler_call_details.invocation_metadata).get("authorization", "")
        self.came.append(found)
        return continuation(handler_call_details)


class Secured(Fake):
    """A fake server that wants a certificate, and one that does not."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.doorkeeper = Doorkeeper()
        self.authority = issue("lab", authority=True)
        self.root = self.authority.write(folder, "root")[0]
        self.own = issue("alice", self.authority).write(folder, "alice")
        self.mutual_target = self.other_name_target = ""


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    fake = Secured(tmp_path)
    server = grpc.server(
        futures.ThreadPoolExecutor(8), interceptors=[fake.doorkeeper], options=[("grpc.so_reuseport", 0)]
    )
    services.add_UncertaintyServiceServicer_to_server(fake, server)
    services.add_ModelServiceServicer_to_server(fake, server)

    def listen(pair: Issued, root: bytes | None = None) -> str:
        credentials = grpc.ssl_server_credentials([(pair.key_pem, pair.pem)], root, root is not None)
        return f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"

    fake.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    fake.secure_target = listen(issue("server", fake.authority))
    fake.mutual_target = listen(issue("server", fake.authority), fake.authority.pem)
    fake.other_name_target = listen(issue("server", fake.authority, host="10.0.0.7"))
    server.start()
    yield fake
    fake.released.set()
    server.stop(None).wait()


def test_a_token_goes_along_with_every_verb_and_is_not_shown(secured: Secured) -> None:
    with Client(secured.secure_target, root_certificates=secured.root, token=TOKEN) as client:
        client.models()
        client.predict("digits", ROWS)
        client.evaluate("digits", ROWS)
        client.observe("id", [0, 1, 0], receipt=b"r")
        assert len(list(client.predict_stream("digits", ROWS))) == 3
        assert TOKEN not in repr(vars(client)["_session"])
    assert set(secured.doorkeeper.came) == {f"Bearer {TOKEN}"}
    assert len(secured.doorkeeper.came) >= 5


async def test_the_asynchronous_client_takes_the_same(secured: Secured) -> None:
    certificate, key = secured.own
    async with AsyncClient(
        secured.mutual_target,
        root_certificates=secured.root.read_bytes(),
        client_certificate=certificate,
        client_key=str(key),
        token=TOKEN,
    ) as client:
        assert (await client.predict("digits", ROWS)).rows == B
        stream: AsyncIterator[Any] = client.predict_stream("digits", ROWS)
        assert len([answer async for answer in stream]) == 3
    assert set(secured.doorkeeper.came) == {f"Bearer {TOKEN}"}


def test_a_certificate_shows_who_asks_and_without_one_the_hint_says_so(secured: Secured) -> None:
    certificate, key = secured.own
    own = {"client_certificate": certificate, "client_key": key}
    with Client(secured.mutual_target, root_certificates=secured.root, **own) as client:
        assert len(client.models()) == 2
    with (
        Client(secured.mutual_target, root_certificates=secured.root, retries=0) as client,
        pytest.raises(Unavailable, match="a client's certificate"),
    ):
        client.models()


def test_a_server_of_an_unknown_authority_is_not_trusted(secured: Secured, tmp_path: Path) -> None:
    other = issue("another lab", authority=True).write(tmp_path, "other")[0]
    for choice in ({"tls": True}, {"root_certificates": other}):
        with (
            Client(secured.secure_target, retries=0, token=TOKEN, **choice) as client,  # type: ignore[arg-type]
            pytest.raises(TlsFailed, match=r"is not trusted: .*root_certificates, or --ca"),
        ):
            client.models()
    assert secured.doorkeeper.came == []


def test_a_server_of_another_name_is_not_trusted(secured: Secured) -> None:
    with (
        Client(secured.other_name_target, root_certificates=secured.root, retries=0) as client,
        pytest.raises(TlsFailed, match="of another name"),
    ):
        client.models()


def test_tls_to_a_plaintext_port_and_the_other_way_round_are_told(secured: Secured) -> None:
    with (
        Client(secured.target, tls=True, retries=0) as client,
        pytest.raises(TlsFailed, match="speaks no TLS here"),
    ):
        client.models()
    with Client(secured.secure_target, retries=0) as client, pytest.raises(Unavailable, match="does it want TLS"):
        client.models()


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
def test_a_refused_token_is_access_denied_and_not_asked_again(fake: Fake, code: grpc.StatusCode) -> None:
    fake.script = [lambda context: abort(context, code, "this call needs the scope predict")]
    with Client(fake.target, token=TOKEN) as client, pytest.raises(AccessDenied, match="needs the scope") as caught:
        client.models()
    assert caught.value.code is code
    assert len(fake.seen) == 1


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"token": ""}, "token: got a text that is none"),
        ({"token": "two words"}, "token: got"),
        ({"token": "line\nend"}, "token: got"),
        ({"token": "\u00fc"}, "token: got"),
        ({"root_certificates": "absent.pem"}, "root_certificates: got absent.pem; .*No such file"),
        ({"root_certificates": b"no pem"}, "root_certificates: got bytes without PEM"),
        ({"client_certificate": b"-----BEGIN CERTIFICATE-----"}, "client_key: got none"),
        ({"client_key": b"-----BEGIN PRIVATE KEY-----"}, "client_certificate: got none"),
        ({"tls": True, "credentials": grpc.local_channel_credentials()}, "credentials: got"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(choice: dict[str, Any], said: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(InvalidArgument, match=said) as caught:
            kind("127.0.0.1:1", **choice)
        assert not choice.get("token") or choice["token"] not in str(caught.value)


def run(*arguments: str, environment: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(command.main, ["models", *arguments], env=environment or {})


def test_the_command_line_takes_files_and_the_token_from_a_file_or_the_environment(
    secured: Secured, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    certificate, key = (str(path) for path in secured.own)
    mutual = ["--server", secured.mutual_target, "--ca", str(secured.root), "--cert", certificate, "--key", key]
    result = run(*mutual, "--token-file", str(tmp_path / "token"), "--json")
    assert len(json.loads(result.stdout)) == 2, result.output
    by_name = {"DUBITO_TOKEN_FILE": str(tmp_path / "token")}
    assert run("--server", secured.target, environment=by_name).exit_code == 0
    assert run("--server", secured.target, environment={"DUBITO_TOKEN": TOKEN}).exit_code == 0
    assert secured.doorkeeper.came == [f"Bearer {TOKEN}"] * 3
    assert run("--server", secured.target).exit_code == 0
    assert secured.doorkeeper.came[-1] == ""


def test_the_command_line_says_in_one_line_what_is_wrong(secured: Secured, tmp_path: Path) -> None:
    untrusted = run("--server", secured.secure_target, "--tls")
    halved = run("--server", secured.target, "--cert", str(secured.own[0]))
    absent = run("--server", secured.target, "--token-file", str(tmp_path / "absent"))
    secured.script = [lambda context: abort(context, grpc.StatusCode.UNAUTHENTICATED, "got no token")]
    denied = run("--server", secured.target)
    said = ("is not trusted", "client_key: got none", "token-file: got", "got no token")
    for result, text in zip((untrusted, halved, absent, denied), said, strict=True):
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
        assert text in result.stderr
