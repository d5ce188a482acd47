"""The runtime of KServe: flags and settings that there are, a port that KServe finds, and a protocol that is served."""

from __future__ import annotations

import shlex

from dubito_protos import open_inference_pb2 as open_pb
from dubito_service import configuration
from dubito_service.command import serve
from dubito_service.security.scopes import SCOPES
from dubito_service.settings import Settings

from .manifests import PROJECT, image_variables, only, variables

RUNTIME = only("kserve/serving-runtime.yaml", "ServingRuntime")
EXAMPLE = only("kserve/inference-service.yaml", "InferenceService")
[CONTAINER] = RUNTIME["spec"]["containers"]
FLAGS = dict(each.removeprefix("--").split("=", 1) for each in CONTAINER["args"])


def chosen() -> Settings:
    """The settings of a container that KServe starts, which has replaced what stands in braces."""
    given = {name: value.replace("{{.Name}}", "flowers") for name, value in variables(CONTAINER).items()}
    flags = {name.replace("-", "_"): value for name, value in FLAGS.items()}
    return configuration.configure(flags, {**image_variables(), **given}, None).settings


def test_every_argument_is_a_flag_of_the_server() -> None:
    known = {option for each in serve.params for option in each.opts}
    assert {f"--{name}" for name in FLAGS} <= known
    assert all(shlex.split(each) == [each] for each in CONTAINER["args"])


def test_the_server_reads_the_folder_that_kserve_fills() -> None:
    assert str(chosen().repository) == "/mnt/models"


def test_kserve_finds_the_port_by_its_name_and_it_is_the_only_one() -> None:
    [port] = CONTAINER["ports"]
    assert port == {"name": "h2c", "containerPort": chosen().port, "protocol": "TCP"}
    assert CONTAINER["readinessProbe"]["grpc"]["port"] == chosen().port
    assert RUNTIME["spec"]["annotations"]["prometheus.kserve.io/port"] == str(chosen().metrics_port)


def test_the_protocol_is_served() -> None:
    assert RUNTIME["spec"]["protocolVersions"] == ["grpc-v2"]
    [service] = open_pb.DESCRIPTOR.services_by_name.values()
    assert f"/{service.full_name}/ModelInfer" in SCOPES


def test_the_example_fits_the_runtime() -> None:
    model = EXAMPLE["spec"]["predictor"]["model"]
    [known] = RUNTIME["spec"]["supportedModelFormats"]
    assert model["runtime"] == RUNTIME["metadata"]["name"]
    assert model["modelFormat"] == {name: known[name] for name in ("name", "version")}
    assert model["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]


def test_the_image_is_of_this_release() -> None:
    assert CONTAINER["image"] == f"dubito:{PROJECT['project']['version']}"


def test_threads_are_the_cores_that_are_asked_for_but_one() -> None:
    assert chosen().torch_threads == int(CONTAINER["resources"]["requests"]["cpu"]) - 1
