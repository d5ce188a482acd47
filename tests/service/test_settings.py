"""Settings: a flag beats the environment, the environment beats the default, and what makes no sense is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from dubito_service.settings import Settings


def test_flag_before_environment_before_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUBITO_MAX_ROWS", "7")
    monkeypatch.setenv("DUBITO_MAX_DRAWS", "8")
    settings = Settings(repository=Path("models"), max_draws=9)
    assert (settings.max_rows, settings.max_draws, settings.port) == (7, 9, 50051)


@pytest.mark.parametrize(
    "bad", [{"max_rows": 0}, {"port": 70_000}, {"step_seconds": float("nan")}, {"grace_seconds": -1}, {"max_row": 5}]
)
def test_what_makes_no_sense_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Settings(repository=Path("models"), **bad)  # type: ignore[arg-type]
