"""The Kubernetes manifests: what they name is what the server has, and what they promise is what it keeps."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from grpc_health.v1 import health_pb2
from prometheus_client import generate_latest

from dubito_models.repository import Repository
from dubito_service import configuration
from dubito_service.dubito_v1.servicer import SERVICES
from dubito_service.health import Health
from dubito_service.settings import Settings
from dubito_service.telemetry.prometheus import Telemetry
from dubito_service.versions.loading import Loader
from dubito_service.versions.registry import Registry
from served import DUBITO

from .manifests import DEPLOY, PROJECT, container, image_variables, only, ports, read, seconds_to_stop, variables

BASE, GPU = "kubernetes/base", "kubernetes/overlays/gpu"
SECURE, STORE = "kubernetes/components/secure", "kubernetes/components/object-store"
FILES = [str(path.relative_to(DEPLOY)) for path in sorted((DEPLOY / "kubernetes").rglob("*.yaml"))]
LABELS = {"app.kubernetes.io/name": "dubito"}


@pytest.fixture
def deployment() -> dict[str, Any]:
    return only(f"{BASE}/deployment.yaml", "Deployment")


@pytest.fixture
def settings() -> Settings:
    """The settings of a pod of the base."""
    return configuration.configure({}, image_variables(), DEPLOY / BASE / "dubito.toml").settings


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_yaml(name: str) -> None:
    assert read(name)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("/deployment.yaml")])
def test_every_variable_is_a_setting(name: str) -> None:
    given = variables(container(only(name, "Deployment")))
    assert {each.removeprefix("DUBITO_").lower() for each in given} <= {*Settings.model_fields, "config"}


def test_the_file_of_settings_is_mounted_where_the_server_looks_for_it(deployment: dict[str, Any]) -> None:
    [mount] = [each for each in container(deployment)["volumeMounts"] if each["name"] == "settings"]
    [generator] = only(f"{BASE}/kustomization.yaml", "Kustomization")["configMapGenerator"]
    [volume] = [each for each in deployment["spec"]["template"]["spec"]["volumes"] if each["name"] == "settings"]
    assert volume["configMap"]["name"] == generator["name"]
    assert variables(container(deployment))["DUBITO_CONFIG"] == f"{mount['mountPath']}/{generator['files'][0]}"


def test_ports_agree(deployment: dict[str, Any], settings: Settings) -> None:
    here = ports(container(deployment))
    assert here == {"grpc": settings.port, "metrics": settings.metrics_port}
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(settings.metrics_port)
    for service in read(f"{BASE}/service.yaml"):
        assert [(each["port"], each["targetPort"]) for each in service["spec"]["ports"]] == [(settings.port, "grpc")]
    policy = only(f"{BASE}/access.yaml", "NetworkPolicy")
    assert [rule["ports"][0]["port"] for rule in policy["spec"]["ingress"]] == list(here)


def test_everything_selects_these_pods_and_no_others(deployment: dict[str, Any]) -> None:
    """An empty selector would hold for every pod of the namespace."""
    spec = deployment["spec"]
    assert spec["template"]["metadata"]["labels"] == spec["selector"]["matchLabels"] == LABELS
    assert [each["labelSelector"]["matchLabels"] for each in spec["template"]["spec"]["topologySpreadConstraints"]] == [
        LABELS
    ]
    assert all(service["spec"]["selector"] == LABELS for service in read(f"{BASE}/service.yaml"))
    assert only(f"{BASE}/scaling.yaml", "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == LABELS
    assert only(f"{BASE}/access.yaml", "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == LABELS
    assert only(f"{BASE}/kustomization.yaml", "Kustomization")["labels"] == [{"pairs": LABELS}]


async def test_a_pod_lives_while_it_loads_and_is_ready_only_then(deployment: dict[str, Any], tmp_path: Path) -> None:
    registry = Registry((), Loader(Repository(tmp_path)))
    health, found = Health(SERVICES, registry, lambda: True, lambda: True), container(deployment)

    async def serves(probe: str) -> bool:
        asked = found[probe]["grpc"]
        assert asked["port"] == ports(found)["grpc"]
        request = health_pb2.HealthCheckRequest(service=asked.get("service", ""))
        return (await health.Check(request, None)).status == health_pb2.HealthCheckResponse.SERVING  # type: ignore[arg-type]

    probes = ("startupProbe", "livenessProbe", "readinessProbe")
    assert [await serves(probe) for probe in probes] == [True, True, False]
    await registry.open(())
    assert [await serves(probe) for probe in probes] == [True, True, True]
    await registry.close(10)


def test_a_pod_is_not_killed_before_the_server_has_finished(deployment: dict[str, Any], settings: Settings) -> None:
    pause = container(deployment)["lifecycle"]["preStop"]["sleep"]["seconds"]
    given = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert given >= pause + settings.grace_seconds + seconds_to_stop()


def test_threads_are_the_cores_that_are_asked_for_but_one(deployment: dict[str, Any], settings: Settings) -> None:
    assert settings.torch_threads == int(container(deployment)["resources"]["requests"]["cpu"]) - 1


def test_pods_are_scaled_by_a_metric_that_the_adapter_makes_of_one_that_the_server_has() -> None:
    [metric] = only(f"{BASE}/scaling.yaml", "HorizontalPodAutoscaler")["spec"]["metrics"]
    [adapter] = read("kubernetes/prometheus-adapter.yaml")
    [rule] = adapter["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    telemetry = Telemetry()
    telemetry.meters.of_path("model", 1, monte_carlo=True).queue.observe(0.1)
    served = set(re.findall(r"^(\w+)[{ ]", generate_latest(telemetry.meters.registry).decode(), flags=re.MULTILINE))
    asked = set(re.findall(r"dubito_\w+", rule["seriesQuery"] + rule["metricsQuery"]))
    assert asked
    assert asked <= served
    [series] = re.findall(r"^dubito_\w+", rule["seriesQuery"])
    assert re.fullmatch(rule["name"]["matches"], series)


def test_a_pod_runs_as_nobody_and_may_write_to_its_volumes_alone(deployment: dict[str, Any]) -> None:
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container(deployment)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [each["mountPath"] for each in container(deployment)["volumeMounts"] if not each.get("readOnly")] == ["/tmp"]
    assert {each["name"] for each in container(deployment)["volumeMounts"]} == {each["name"] for each in pod["volumes"]}


def test_copies_from_an_object_store_have_a_place(settings: Settings) -> None:
    patch = only(f"{STORE}/deployment.yaml", "Deployment")
    assert str(settings.cache) in [each["mountPath"] for each in container(patch)["volumeMounts"]]


def test_secrets_are_files_in_mounted_volumes() -> None:
    patch = only(f"{SECURE}/deployment.yaml", "Deployment")
    mounts = {each["mountPath"] for each in container(patch)["volumeMounts"]}
    given = variables(container(patch))
    assert {given[f"DUBITO_{name}"].rpartition("/")[0] for name in ("TLS_CERTIFICATE", "TLS_KEY", "TOKENS")} == mounts
    [probes] = [yaml.safe_load((DEPLOY / SECURE / "probes.yaml").read_text())]
    [ready] = [each["value"] for each in probes if each["path"].endswith("readinessProbe")]
    assert ready["exec"]["command"][-1] == given["DUBITO_PORT_FILE"]


def test_the_file_that_says_ready_is_of_this_run_and_of_no_earlier_one(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ready.write_text("50051\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [DUBITO, "serve", "--repository", str(tmp_path), "--port", str(taken.getsockname()[1])]
        done = subprocess.run([*command, "--port-file", str(ready)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot listen" in done.stderr
    assert not ready.exists()


def test_a_gpu_is_asked_for_where_it_is_used() -> None:
    found = container(only(f"{GPU}/deployment.yaml", "Deployment"))
    assert found["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert variables(found) == {"DUBITO_DEVICE": "cuda"}


def test_the_image_is_of_this_release() -> None:
    release = PROJECT["project"]["version"]
    tags = [only(f"{each}/kustomization.yaml", "Kustomization")["images"][0]["newTag"] for each in (BASE, GPU)]
    assert tags == [release, f"{release}-cuda"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, for its kustomize")
def test_kustomize_puts_all_of_it_together(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY / "kubernetes", tmp_path / "kubernetes")
    whole = tmp_path / "kubernetes" / "overlays" / "whole"
    whole.mkdir()
    parts = {"resources": ["../gpu"], "components": ["../../components/secure", "../../components/object-store"]}
    (whole / "kustomization.yaml").write_text(yaml.safe_dump({"kind": "Kustomization", **parts}))
    done = subprocess.run(["kubectl", "kustomize", str(whole)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    documents = list(yaml.safe_load_all(done.stdout))
    assert len(documents) == 8
    [built] = [document for document in documents if document["kind"] == "Deployment"]
    found = container(built)
    given = {name: value for name, value in variables(found).items() if name != "DUBITO_CONFIG"}
    settings = configuration.configure({}, {**image_variables(), **given}, DEPLOY / BASE / "dubito.toml").settings
    assert (settings.device, settings.repository) == ("cuda", "s3://models/repository")
    volumes = {each["name"] for each in built["spec"]["template"]["spec"]["volumes"]}
    assert {each["name"] for each in found["volumeMounts"]} == volumes
    assert all("grpc" not in found[probe] for probe in ("startupProbe", "livenessProbe", "readinessProbe"))
