"""Configuration: which settings are in effect, and where each came from.

A flag beats the environment, the environment a file, a file the default. A key that means nothing is an error wherever
it stands: who misspells a setting runs with another one.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource

from dubito_models.errors import InvalidArgument
from dubito_service.settings import Settings

PREFIX = "DUBITO_"
CONFIG = "DUBITO_CONFIG"  # names the file
# Of the client and its commands, and of this project's own tests.
_OTHERS = frozenset(f"{PREFIX}{name}" for name in ("CONFIG", "FOREIGN_CLIENTS", "SERVER", "TOKEN", "TOKEN_FILE", "UCI"))
# What Kubernetes puts into every container beside a Service that is called dubito, or dubito-something.
_SERVICE_LINK = re.compile(r"DUBITO_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
_PASSWORD = re.compile(r"(?<=://)([^/@:]*):([^/@]+)@")
_FLAGS = {"pins": "--pin"}  # those that are not called as their setting
_UNNAMED = ""  # a repository that is yet to be named
_MOST_SHOWN = 100  # characters of a value that is refused


@dataclass(frozen=True, slots=True)
class Configuration:
    """The settings in effect; `sources`: by name, where a value came from that is not the default."""

    settings: Settings
    sources: Mapping[str, str]


def configure(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None, *, to_print: bool = False
) -> Configuration:
    """Choose among flags, environment variables and a TOML file; None stands for no flag.

    `to_print`: a repository need not be named. Raises `InvalidArgument`, which names the key and where it stands, what
    came and what is accepted.
    """
    values: dict[str, Any] = {"repository": _UNNAMED} if to_print else {}
    sources: dict[str, str] = {}
    given = {name: value for name, value in flags.items() if value is not None}
    for layer, call in (
        ({} if file is None else _read_file(file), lambda name: f"{name} in {file}"),
        (_read_environment(environment), lambda name: PREFIX + name.upper()),
        (given, flag),
    ):
        values.update(layer)
        sources.update({name: call(name) for name in layer})
        for name in layer:
            if name not in Settings.model_fields:
                raise _unknown(name, call)
    try:
        return Configuration(Settings(**values), sources)
    except ValidationError as error:
        raise _refusal(error.errors()[0], sources) from None


def flag(name: str) -> str:
    """Return the flag of a setting."""
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def _read_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidArgument("--config", f"{file}, which cannot be read ({error.strerror})", "a TOML file") from None
    except ValueError as error:
        raise InvalidArgument("--config", f"{file}, which is no TOML ({_one_line(error)})", "a TOML file") from None


class _Variables(EnvSettingsSource):
    """Variables by the lower-case names of settings, read by the types of these: mappings and lists as JSON."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        super().__init__(Settings)
        self.env_vars = {PREFIX.lower() + name: value for name, value in variables.items()}

    def decode_complex_value(self, field_name: str, field: FieldInfo | None, value: Any) -> Any:
        """Read JSON; `InvalidArgument` where it is none."""
        try:
            return json.loads(value)
        except ValueError:
            raise InvalidArgument(PREFIX + field_name.upper(), _shown(value), "JSON") from None


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what the environment sets, by lower-case names, known or not; an empty variable sets nothing."""
    ours = {name.upper(): value for name, value in environment.items() if name.upper().startswith(PREFIX) and value}
    linked = {name for name, value in ours.items() if name.endswith("PORT") and _SERVICE_ADDRESS.match(value)}
    found = {name.removeprefix(PREFIX).lower(): ours[name] for name in ours.keys() - linked - _OTHERS}
    unknown = {name: value for name, value in found.items() if name not in Settings.model_fields}
    unlinked = {name: value for name, value in unknown.items() if not _SERVICE_LINK.fullmatch(PREFIX + name.upper())}
    return {**unlinked, **_Variables(found)()}


def _unknown(name: str, call: Callable[[str], str]) -> InvalidArgument:
    """Refuse what is no setting, without what came with it, which may be a secret."""
    near = difflib.get_close_matches(name, Settings.model_fields, 1, 0.75)
    accepted = f"{call(near[0])}, if that was meant" if near else "what `dubito serve --print-config` lists"
    return InvalidArgument(call(name), "a setting that there is not", accepted)


def _refusal(error: ErrorDetails, sources: Mapping[str, str]) -> InvalidArgument:
    name = str(error["loc"][0])
    if error["type"] == "missing":
        return InvalidArgument(flag(name), "nothing", f"{flag(name)}, {PREFIX}{name.upper()}, or {name} in --config")
    accepted = re.sub(r"^(Input|Value|String) should |^Value error, |, unable to .*", "", _one_line(error["msg"]))
    where = ".".join(str(part) for part in (sources.get(name, name), *error["loc"][1:]))
    return InvalidArgument(where, _shown(error["input"]), accepted.removeprefix("be "))


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _shown(value: object) -> str:
    return _one_line(mask(repr(value)))[:_MOST_SHOWN]


def mask(value: str) -> str:
    """Return a text without the passwords of addresses in it."""
    return _PASSWORD.sub(r"\1:***@", value)


def print_toml(configuration: Configuration) -> str:
    """Return the settings in effect as TOML, with where each came from; read back, it has the same effect.

    What is not set stands there as a comment, and so does an address with a password, which is not shown.
    """
    lines, tables = [], []
    for name, value in configuration.settings.model_dump(mode="json").items():
        source = configuration.sources.get(name, "default")
        if value in (None, {}, _UNNAMED):
            lines.append(f"# {name} is not set\n")
        elif isinstance(value, Mapping):
            tables.append(f"\n# {source}\n{tomli_w.dumps({name: value})}")
        else:
            line = tomli_w.dumps({name: value}).rstrip("\n")
            hidden = mask(line)
            prefix, why = ("", "") if hidden == line else ("# ", "; it holds a password, so give it again")
            lines.append(f"{prefix}{hidden}  # {source}{why}\n")
    return "".join([*lines, *tables])
