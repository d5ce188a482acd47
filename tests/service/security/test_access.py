"""Access: each RPC needs a scope that is written down, and what protects nobody is refused at the start."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

import dubito_protos
from certificates import issue
from dubito_client import Client
from dubito_client.errors import AccessDenied
from dubito_models.errors import InvalidArgument
from dubito_service.security.access import Admin, admin_allowed, check_plaintext, is_loopback
from dubito_service.security.scopes import PROBES, SCOPES, Scope, scope_of
from served import served


def declared() -> list[str]:
    """Every method of every service that a server of ours may serve."""
    names = [name for _, name, _ in pkgutil.iter_modules(dubito_protos.__path__) if name.endswith("_pb2")]
    files = [importlib.import_module(f"dubito_protos.{name}").DESCRIPTOR for name in names]
    services = [
        service
        for file in (*files, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
        for service in file.services_by_name.values()
    ]
    return [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]


def test_what_is_not_written_down_needs_the_scope_of_changes() -> None:
    assert scope_of("/inference.GRPCInferenceService/LogSettings") is Scope.ADMIN
    assert scope_of("/a.b/c") is Scope.ADMIN


def test_only_probes_and_reflection_are_open() -> None:
    allowed = ("grpc.health.v1.", "grpc.reflection.")
    found = {method for method in declared() if scope_of(method) is None}
    assert {method for method in found if not method[1:].startswith(allowed)} <= PROBES


def test_every_method_of_our_own_services_has_a_scope_that_is_written_down() -> None:
    assert [method for method in declared() if method.startswith("/dubito.") and method not in SCOPES] == []


@pytest.mark.parametrize(
    ("method", "scope"),
    [
        ("/dubito.v1.UncertaintyService/PredictBulk", Scope.PREDICT),
        ("/dubito.v1.UncertaintyService/Observe", Scope.OBSERVE),
        ("/dubito.v1.ModelService/GetModel", Scope.PREDICT),
        ("/dubito.v1.ModelService/UnloadModel", Scope.ADMIN),
        ("/inference.GRPCInferenceService/ModelInfer", Scope.PREDICT),
        ("/inference.GRPCInferenceService/RepositoryModelLoad", Scope.ADMIN),
        ("/inference.GRPCInferenceService/ServerReady", None),
        ("/grpc.health.v1.Health/Watch", None),
    ],
)
def test_a_method_needs_the_scope_of_what_it_does(method: str, scope: Scope | None) -> None:
    assert scope_of(method) is scope


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.7", False), ("example.org", False), ("localhost.example.org", False)],
)  # fmt: skip
def test_loopback_is_what_no_other_machine_reaches(host: str, own: bool) -> None:
    assert is_loopback(host) is own


@pytest.mark.parametrize(
    ("choice", "loopback", "tokens", "allowed"),
    [
        ("auto", True, False, True),
        ("auto", False, False, False),
        ("auto", False, True, True),
        ("on", False, False, True),
        ("off", True, True, False),
    ],
)
def test_changes_are_for_this_machine_or_tokens_unless_told_otherwise(
    choice: Admin, loopback: bool, tokens: bool, allowed: bool
) -> None:
    assert admin_allowed(choice, loopback=loopback, tokens=tokens) is allowed


def test_a_certificate_alone_lets_nobody_change_what_is_served_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    authority = issue("lab", authority=True)
    root, _ = authority.write(tmp_path, "authority")
    certificate, key = issue("server", authority).write(tmp_path, "server")
    own, own_key = issue("anybody", authority).write(tmp_path, "own")
    files = ["--tls-certificate", certificate, "--tls-key", key, "--tls-client-ca", root]
    with (
        served(tmp_path, "--host", "0.0.0.0", *map(str, files)) as address,
        Client(address, root_certificates=root, client_certificate=own, client_key=own_key) as client,
    ):
        assert not client.models()
        with pytest.raises(AccessDenied, match="dubito serve --admin on"):
            client.unload("flowers")


def test_tokens_in_plaintext_from_other_machines_are_refused_unless_told_otherwise() -> None:
    with pytest.raises(InvalidArgument, match="tls_certificate and tls_key"):
        check_plaintext(tokens=True, encrypted=False, loopback=False, allowed=False)
    check_plaintext(tokens=False, encrypted=False, loopback=False, allowed=False)
    check_plaintext(tokens=True, encrypted=True, loopback=False, allowed=False)
    check_plaintext(tokens=True, encrypted=False, loopback=True, allowed=False)
    check_plaintext(tokens=True, encrypted=False, loopback=False, allowed=True)
