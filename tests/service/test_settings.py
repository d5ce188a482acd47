"""Settings: a flag beats the environment, that a file, that the default; what makes no sense is refused."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from dubito_models.errors import InvalidArgument
from dubito_service.command import serve
from dubito_service.configuration import Configuration, configure, flag, print_toml
from dubito_service.settings import Settings

ROOT = Path(__file__).parents[2]
GIVEN = {"repository": "models"}


def chosen(
    flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None, file: Path | None = None
) -> Configuration:
    return configure({**GIVEN, **(flags or {})}, environment or {}, file)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "dubito.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(*given: Any) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        chosen(*given)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_flag_beats_the_environment_that_a_file_and_that_the_default(tmp_path: Path) -> None:
    file = written(tmp_path, "max_rows = 1\nmax_draws = 2\nqueue_rows = 3\n")
    found = chosen({"max_rows": 9, "port": None}, {"DUBITO_MAX_ROWS": "7", "DUBITO_MAX_DRAWS": "8"}, file)
    settings = found.settings
    assert (settings.max_rows, settings.max_draws, settings.queue_rows, settings.port) == (9, 8, 3, 50051)
    assert found.sources == {
        "repository": "--repository",
        "max_rows": "--max-rows",
        "max_draws": "DUBITO_MAX_DRAWS",
        "queue_rows": f"queue_rows in {file}",
    }


def test_calls_of_one_connection_wait_at_the_client_before_its_caller_is_refused() -> None:
    settings = Settings.model_validate(GIVEN)
    assert settings.max_streams <= settings.caller_calls < settings.max_calls


def test_settings_take_nothing_from_an_environment_that_nobody_hands_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUBITO_MAX_ROWS", "7")
    assert Settings(repository=Path("models")).max_rows == 10_000
    assert chosen(environment={}).settings.max_rows == 10_000


@pytest.mark.parametrize(
    "bad", [{"max_rows": 0}, {"port": 70_000}, {"step_seconds": float("nan")}, {"grace_seconds": -1}, {"max_row": 5}]
)
def test_what_makes_no_sense_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Settings(repository=Path("models"), **bad)  # type: ignore[arg-type]


def test_a_value_that_is_refused_is_named_by_where_it_stands(tmp_path: Path) -> None:
    assert str(refused({"max_rows": 0})) == "--max-rows: got 0; accepted: greater than or equal to 1"
    assert str(refused({}, {"DUBITO_MAX_ROWS": "many"})) == "DUBITO_MAX_ROWS: got 'many'; accepted: a valid integer"
    file = written(tmp_path, 'log_level = "loud"\n')
    said = f"log_level in {file}: got 'loud'; accepted: 'debug', 'info', 'warning' or 'error'"
    assert str(refused({}, {}, file)) == said


def test_what_is_printed_needs_no_repository_and_what_serves_does(tmp_path: Path) -> None:
    done = CliRunner().invoke(serve, ["--print-config"], env={"DUBITO_MAX_ROWS": "7"})
    assert done.exit_code == 0, done.output
    assert "# repository is not set\n" in done.output
    assert set(tomllib.loads(done.output)) < set(Settings.model_fields)
    with pytest.raises(InvalidArgument, match="--repository: got nothing"):
        configure({}, {}, written(tmp_path, done.output))


def test_a_setting_that_must_be_given_is_named_with_all_the_ways_to_give_it() -> None:
    with pytest.raises(InvalidArgument) as caught:
        configure({}, {}, None)
    said = "--repository: got nothing; accepted: --repository, DUBITO_REPOSITORY, or repository in --config"
    assert str(caught.value) == said


def test_an_unknown_key_is_an_error_in_a_file_and_in_the_environment_and_names_the_one_that_was_meant(
    tmp_path: Path,
) -> None:
    file = written(tmp_path, "max_row = 1\n")
    said = f"max_row in {file}: got a setting that there is not; accepted: max_rows in {file}, if that was meant"
    assert str(refused({}, {}, file)) == said
    said = "DUBITO_MAX_ROW: got a setting that there is not; accepted: DUBITO_MAX_ROWS, if that was meant"
    assert str(refused({}, {"DUBITO_MAX_ROW": "1"})) == said
    assert "--print-config" in str(refused({}, {"DUBITO_XYZZY": "1"}))


def test_an_unknown_variable_s_value_is_not_repeated_as_it_may_be_a_secret() -> None:
    assert "hunter2" not in str(refused({}, {"DUBITO_PASWORD": "hunter2"}))
    assert "hunter2" not in str(refused({"port": "postgresql://me:hunter2@host/db"}))


def test_variables_of_the_client_and_of_other_commands_are_no_settings_and_no_errors() -> None:
    parts = ("clients/*", "models/*", "service/*", "tests", "tests/*")
    sources = [path for part in parts for path in ROOT.glob(f"{part}/*.py")]
    names = {
        name for path in sources for name in re.findall(r'(?:envvar=|environ\.get\()"(DUBITO_\w+)"', path.read_text())
    }
    assert {"DUBITO_SERVER", "DUBITO_CONFIG", "DUBITO_UCI"} <= names
    settings = {f"DUBITO_{name.upper()}" for name in Settings.model_fields}
    found = chosen(environment=dict.fromkeys(names - settings, "x"))
    assert found.settings == chosen().settings


def test_what_kubernetes_sets_for_a_service_called_dubito_is_no_setting() -> None:
    """Its Service links would else set the port to tcp://10.0.0.1:50051."""
    links = {
        "DUBITO_PORT": "tcp://10.0.0.1:50051",
        "DUBITO_SERVICE_HOST": "10.0.0.1",
        "DUBITO_SERVICE_PORT": "50051",
        "DUBITO_SERVICE_PORT_GRPC": "50051",
        "DUBITO_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "DUBITO_PORT_50051_TCP_PROTO": "tcp",
        "DUBITO_METRICS_PORT": "tcp://10.0.0.2:9464",
        "DUBITO_METRICS_PORT_9464_TCP_ADDR": "10.0.0.2",
    }
    assert chosen(environment=links).settings == chosen().settings


def test_an_empty_variable_sets_nothing_and_case_does_not_matter() -> None:
    assert chosen(environment={"DUBITO_METRICS_PORT": "", "dubito_max_rows": "5"}).settings.max_rows == 5


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "No such file" in str(refused({}, {}, tmp_path / "nowhere.toml"))
    assert "no TOML" in str(refused({}, {}, written(tmp_path, "max_rows = = 1\n")))


def test_what_is_printed_says_where_it_came_from_and_has_the_same_effect_when_read_back(tmp_path: Path) -> None:
    environment = {"DUBITO_MAX_ROWS": "7", "DUBITO_STEP_SECONDS": "0.125"}
    first = chosen({"host": "::1", "keep_inputs": True}, environment)
    text = print_toml(first)
    assert "max_rows = 7  # DUBITO_MAX_ROWS\n" in text
    assert 'host = "::1"  # --host\n' in text
    assert "port = 50051  # default\n" in text
    assert "# state is not set\n" in text
    again = configure({}, {}, written(tmp_path, text))
    assert again.settings == first.settings
    assert print_toml(configure({}, {}, tmp_path / "dubito.toml")).count("\n") == text.count("\n")


def test_tables_and_infinity_are_printed_so_that_they_can_be_read_back(tmp_path: Path) -> None:
    environment = {"DUBITO_PINS": '{"digits": [1, 2]}', "DUBITO_OVERLOAD_SECONDS": "inf"}
    first = chosen({"pins": {"digits": (3,)}, "load": ("digits",)}, environment)
    assert first.settings.pins == {"digits": (3,)}
    assert configure({}, {}, written(tmp_path, print_toml(first))).settings == first.settings


def test_a_mapping_in_the_environment_is_json_and_what_is_wrong_inside_it_is_named() -> None:
    assert str(refused({}, {"DUBITO_PINS": "digits"})) == "DUBITO_PINS: got 'digits'; accepted: JSON"
    said = "DUBITO_PINS.digits.0: got 0; accepted: greater than or equal to 1"
    assert str(refused({}, {"DUBITO_PINS": '{"digits": [0]}'})) == said


def test_every_flag_of_the_command_is_a_setting_and_is_named_as_it_is_typed() -> None:
    flags = {option.name: option.opts[0] for option in serve.params if option.name not in ("config", "print_config")}
    assert set(flags) <= set(Settings.model_fields)
    assert {name: flag(str(name)) for name in flags} == flags


def test_a_password_is_never_printed() -> None:
    text = print_toml(chosen({"state": "postgresql+psycopg://me:hunter2@host/db"}))
    assert "hunter2" not in text
    assert '# state = "postgresql+psycopg://me:***@host/db"' in text
    assert "state" not in tomllib.loads(text)


def test_the_command_prints_the_settings_in_effect_and_ends(tmp_path: Path) -> None:
    file = written(tmp_path, "max_rows = 5\nmax_draws = 6\n")
    environment = {"DUBITO_CONFIG": str(file), "DUBITO_MAX_DRAWS": "8"}
    arguments = ["--repository", str(tmp_path), "--print-config", "--grace-seconds", "4"]
    done = CliRunner().invoke(serve, arguments, env=environment)
    assert done.exit_code == 0
    document = tomllib.loads(done.output)
    assert (document["max_rows"], document["max_draws"], document["grace_seconds"]) == (5, 8, 4.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-row", "5"], "--max-row"),
        (["--port", "many"], "--port"),
        (["--port", "70000"], "--port: got 70000; accepted: less than or equal to 65535"),
        (["--config", "nowhere.toml"], "nowhere.toml"),
        (["more"], "more"),
    ],
)
def test_a_command_line_that_makes_no_sense_ends_with_2_and_one_line(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = CliRunner().invoke(serve, ["--repository", str(tmp_path), *arguments], env={})
    assert done.exit_code == 2
    [line] = done.output.splitlines()
    assert said in line


# --- The README ---


def test_every_setting_stands_in_the_readme_and_its_tables_tell_the_defaults() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    unsaid = [name for name in Settings.model_fields if not re.search(rf"\b{name}\b|{flag(name)}\b", text)]
    assert unsaid == []
    table = text[text.index("| setting | default |") :].split("\n\n")[0]
    told: dict[str, Any] = {}
    for line in table.splitlines()[2:]:
        names, values, _ = (cell.strip() for cell in line.strip("|").split("|", 2))
        told.update(zip(re.findall(r"`(\w+)`", names), values.split(", "), strict=True))
    assert told.pop("port_file") == told.pop("pass_bytes") == ""
    assert {name: float(value) for name, value in told.items()} == {
        name: Settings.model_fields[name].default for name in told
    }
