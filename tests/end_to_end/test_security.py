"""A secured server, as an operator sets it up: certificates, tokens, and what is refused at the start."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from certificates import Issued, issue
from dubito_client import AccessDenied, Client, Overloaded, TlsFailed, Unavailable
from dubito_models.package import ModelVersion
from dubito_protos import uncertainty_pb2 as pb
from dubito_protos import uncertainty_pb2_grpc as pb_grpc
from served import DUBITO, served

ROWS = np.zeros((2, 6), np.float32)
SECONDS = 60.0  # that a call may take at most; nothing here waits for it


def dubito(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([DUBITO, *arguments], capture_output=True, text=True, timeout=120, check=False)


def new_token(path: Path, name: str, *options: str) -> str:
    done = dubito("token", "new", name, *options, "--file", str(path))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def folder(packed: Callable[[str], ModelVersion], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("secured")
    (root / "repository").symlink_to(packed("mlp").folder.parent.parent)
    return root


@dataclass(frozen=True)
class Secured:
    """A server with TLS and tokens."""

    address: str
    folder: Path
    authority: Issued
    predict: str
    admin: str

    def client(self, token: str | None, **choices: object) -> Client:
        return Client(self.address, token=token, root_certificates=self.authority.pem, **choices)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def secured(folder: Path) -> Iterator[Secured]:
    authority = issue("lab", authority=True)
    certificate, key = issue("server", authority).write(folder, "server")
    tokens = folder / "tokens.toml"
    secrets = new_token(tokens, "mobile", "--rate", "100"), new_token(tokens, "operator", "--scope", "admin")
    options = ["--tls-certificate", str(certificate), "--tls-key", str(key), "--tokens", str(tokens)]
    with served(folder, *options) as address:
        yield Secured(address, folder, authority, *secrets)


def test_a_token_of_the_scope_is_answered_over_tls_and_no_other_is(secured: Secured) -> None:
    with secured.client(secured.predict) as client:
        assert client.predict("mlp", ROWS).rows == 2
        assert client.evaluate("mlp", ROWS).model == "mlp"
        with pytest.raises(AccessDenied, match="needs the scope observe"):
            client.observe("id", [0], receipt=b"r")
    for token, said in ((None, "no token"), ("dubito_x", "not known"), (secured.admin, "needs the scope predict")):
        with secured.client(token) as client, pytest.raises(AccessDenied, match=said):
            client.predict("mlp", ROWS)


def test_who_does_not_make_sure_of_the_server_sends_no_token(secured: Secured) -> None:
    with Client(secured.address, token=secured.predict, tls=True, retries=0) as client, pytest.raises(TlsFailed):
        client.models()
    with Client(secured.address, token=secured.predict, retries=0) as client, pytest.raises(Unavailable):
        client.models()


def test_probes_need_no_token_and_changes_need_the_scope_for_them(secured: Secured) -> None:
    credentials = grpc.ssl_channel_credentials(secured.authority.pem)
    with grpc.secure_channel(secured.address, credentials) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS).status
        models = pb_grpc.ModelServiceStub(channel)
        for token, code in ((secured.predict, "PERMISSION_DENIED"), ("dubito_x", "UNAUTHENTICATED")):
            with pytest.raises(grpc.RpcError) as caught:
                models.LoadModel(
                    pb.LoadModelRequest(model="mlp"), metadata=[("authorization", f"Bearer {token}")], timeout=SECONDS
                )
            assert caught.value.code().name == code


def test_a_token_that_is_made_while_the_server_runs_is_good(secured: Secured) -> None:
    late = new_token(secured.folder / "tokens.toml", "late", "--rate", "0.01", "--burst", "2")
    with secured.client(late, retries=0) as client:
        while True:  # within a second
            try:
                client.models()
                break
            except AccessDenied:
                time.sleep(0.05)
        client.models()
        with pytest.raises(Overloaded, match="the token late is good for") as caught:
            client.models()
    assert caught.value.retry_after is not None


def test_a_certificate_that_is_replaced_is_served_without_a_restart(secured: Secured) -> None:
    with secured.client(secured.predict) as before:
        before.models()
        renewed = issue("another lab", authority=True)
        issue("server", renewed).write(secured.folder, "server")
        with Client(secured.address, token=secured.predict, root_certificates=renewed.pem) as after:
            assert after.models()
        assert before.models()
    issue("server", secured.authority).write(secured.folder, "server")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tls-certificate", "absent.pem", "--tls-key", "absent.key"], "tls_certificate: got absent.pem"),
        (["--tls-key", "absent.key"], "tls_certificate: got none"),
        (["--tokens", "absent.toml"], "tokens: got absent.toml"),
        (["--tokens", "absent.toml", "--host", "0.0.0.0"], "tokens in plaintext from other machines"),
        (["--admin", "maybe"], "admin"),
    ],
)
def test_what_would_protect_nobody_ends_the_start_with_one_line_and_code_2(
    folder: Path, options: list[str], said: str
) -> None:
    done = dubito("serve", "--repository", str(folder / "repository"), "--port", "0", *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_on_an_open_address_changes_are_off_and_the_log_warns(folder: Path) -> None:
    options = ["--repository", str(folder / "repository"), "--port", "0", "--port-file", str(folder / "open")]
    process = subprocess.Popen(
        [DUBITO, "serve", *options, "--host", "0.0.0.0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DUBITO_LOG_LEVEL": "warning"},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        port = (folder / "open").read_text().strip()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.RpcError) as caught:
                pb_grpc.ModelServiceStub(channel).UnloadModel(pb.UnloadModelRequest(model="mlp"), timeout=SECONDS)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "dubito serve --admin on" in caught.value.details()
        with Client(f"127.0.0.1:{port}") as client:
            assert client.predict("mlp", ROWS).rows == 2
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert "open to all" in errors
