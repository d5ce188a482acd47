"""The files that deploy the server, read."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "service" / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

Manifest = dict[str, Any]


def read(name: str) -> list[Manifest]:
    """Every document of a file."""
    return [document for document in yaml.safe_load_all((DEPLOY / name).read_text()) if document is not None]


def only(name: str, kind: str) -> Manifest:
    """The one document of a kind."""
    [found] = [document for document in read(name) if document["kind"] == kind]
    return found


def container(manifest: Manifest) -> Manifest:
    [found] = manifest["spec"]["template"]["spec"]["containers"]
    return found


def variables(found: Manifest) -> dict[str, str]:
    """The environment of a container."""
    return {each["name"]: each["value"] for each in found.get("env", ())}


def ports(found: Manifest) -> dict[str, int]:
    return {each["name"]: each["containerPort"] for each in found["ports"]}


def image_variables() -> dict[str, str]:
    """The environment that the last stage of the Containerfile sets."""
    [_, last] = (DEPLOY / "Containerfile").read_text().split("\nFROM docker.io/library/python:${PYTHON}-slim\n")
    [block] = re.findall(r"^ENV ((?:.*\\\n)*.*)$", last, flags=re.MULTILINE)
    return dict(pair.split("=", 1) for pair in block.replace("\\\n", " ").split())


def seconds_to_stop() -> float:
    """The longest that a server takes to stop once its grace is over."""
    from dubito_service import server

    return server._FAREWELL_SECONDS + server._LAST_STEP_SECONDS + server._LAST_WRITE_SECONDS + server._LAST_LOAD_SECONDS
