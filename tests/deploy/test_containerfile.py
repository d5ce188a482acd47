"""The container image: it runs what the project installs, as nobody in particular, and says what the server reads."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dubito_service import configuration

from .manifests import DEPLOY, PROJECT, ROOT, image_variables

TEXT = (DEPLOY / "Containerfile").read_text()
LAST = TEXT[TEXT.rindex("\nFROM ") :]


def test_the_variables_of_the_image_are_settings_that_go_together(tmp_path: Path) -> None:
    found = configuration.configure({}, image_variables(), None).settings
    assert (found.host, str(found.repository), str(found.cache)) == ("0.0.0.0", "/models", "/var/cache/dubito")


def test_the_ports_that_are_exposed_are_those_that_the_server_listens_on() -> None:
    found = configuration.configure({}, image_variables(), None).settings
    [exposed] = re.findall(r"^EXPOSE (.*)$", LAST, flags=re.MULTILINE)
    assert [int(port) for port in exposed.split()] == [found.port, found.metrics_port]


def test_torch_is_the_one_that_the_project_asks_for() -> None:
    [asked] = [each for each in PROJECT["project"]["optional-dependencies"]["models"] if each.startswith("torch")]
    assert f'"{asked}"' in TEXT


def test_the_extras_that_are_installed_are_there() -> None:
    [named] = re.findall(r'install "\.\[(.*)\]"', TEXT)
    assert set(named.split(",")) <= set(PROJECT["project"]["optional-dependencies"])


def test_every_package_of_the_wheel_is_copied_and_nothing_else_is_asked_for() -> None:
    copied = set(re.findall(r"^COPY (?!--)(.*) \S+$", TEXT, flags=re.MULTILINE))
    sources = {name for each in copied for name in each.split()}
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sources == {"pyproject.toml", "README.md", *(package.split("/")[0] for package in packages)}
    ignored = (DEPLOY / "Containerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == sources


def test_signals_reach_the_server_without_a_shell_between() -> None:
    [entry] = re.findall(r"^ENTRYPOINT (.*)$", LAST, flags=re.MULTILINE)
    program, command = json.loads(entry)
    assert program in PROJECT["project"]["scripts"]
    assert command in PROJECT["project"]["entry-points"]["dubito.commands"]


def test_the_last_stage_installs_nothing_and_runs_as_nobody() -> None:
    assert not re.search(r"\bpip\b|\bapt", LAST)
    [user] = re.findall(r"^USER (\d+):(\d+)$", LAST, flags=re.MULTILINE)
    assert all(int(number) > 0 for number in user)
    assert f"--owner={user[0]} --group={user[1]}" in LAST


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint (make deploy-check)")
def test_its_own_linter_finds_nothing() -> None:
    done = subprocess.run(["hadolint", "service/deploy/Containerfile"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
