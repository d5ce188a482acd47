"""Bad input of every kind, and the next good request after it: the short form of what `make soak` runs."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from dubito_models.package import ModelVersion

from .fuzz import Fuzzed, fuzz
from .pounding import BURST, SECRET, burst, pound
from .serving import Serving, serving


@pytest.fixture(scope="module")
def server(one_model: ModelVersion, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("fuzzed")
    with serving(one_model.folder.parent.parent, folder, "--state", str(folder / "state")) as server:
        yield server


def test_no_message_is_the_server_s_fault_and_the_next_good_one_is_answered_right(server: Serving) -> None:
    found = fuzz(server.address, 1500, seed=0)
    assert found["cases"] >= 1500
    assert found["faults"] == []
    assert found["wrong_after"] == 0
    assert server.process.poll() is None


def test_every_service_that_is_listed_is_fuzzed(server: Serving) -> None:
    with server.channel() as channel:
        services = {method.path.split("/")[1] for method in Fuzzed(channel).known}
    assert services == {
        "dubito.v1.UncertaintyService",
        "dubito.v1.ModelService",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


def test_no_bytes_on_the_socket_end_the_server_and_the_next_good_call_is_answered_right(server: Serving) -> None:
    found = pound(server.address, 200, seed=0)
    assert found["wrong_after"] == 0
    assert server.process.poll() is None


def test_a_call_that_lies_or_breaks_off_is_ended_and_not_by_a_fault_of_the_server_s(server: Serving) -> None:
    assert pound(server.address, 0, seed=0)["faults"] == []


def test_bad_input_leaves_no_error_in_the_log_and_none_of_its_bytes(server: Serving) -> None:
    found = pound(server.address, 20, seed=1)
    assert found["endings"]["metadata that are no text"] == "OK"
    lines = server.log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\S+Z WARNING ", line) for line in lines), lines
    assert len([line for line in lines if "metadata that are no text" in line]) == 1
    assert not [line for line in lines if SECRET in line]


def test_a_message_that_is_packed_to_burst_is_refused_and_takes_little_memory(server: Serving) -> None:
    found = burst(server.address, server.process.pid, BURST // 4)
    assert found["status"] == "RESOURCE_EXHAUSTED"
    assert found["peak_bytes"] < BURST // 8
    assert found["right_after"]
