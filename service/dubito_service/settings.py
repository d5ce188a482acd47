"""What an operator can set: by flag, or by environment variable `DUBITO_<NAME>`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """The server's settings; work is counted in rows x draws."""

    model_config = SettingsConfigDict(env_prefix="DUBITO_", frozen=True, extra="forbid")

    repository: Path
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 50051  # 0: any free port
    port_file: Path | None = None  # the port is written there once the server is ready
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    newest_versions: Count = 3  # of each model are served
    torch_threads: Annotated[int, Field(ge=0)] = 0  # of the Monte Carlo path; 0: all cores but one

    device: Literal["auto", "cpu", "cuda"] = "auto"  # of the Monte Carlo path; auto: a GPU where there is one
    calibration_seconds: Seconds = 1.0  # between looks for a calibration that was switched; 0: never
    pass_bytes: Annotated[int, Field(ge=2**16)] = 64 * 2**20  # of the largest value of a pass, at most

    max_rows: Count = 10_000  # of a request
    max_draws: Count = 10_000  # of a request
    max_work: Count = 1_000_000  # of a request
    max_message_bytes: Annotated[int, Field(ge=1, lt=2**31)] = 32 * 2**20

    state: str | None = None  # folder, or address of a PostgreSQL, for labels that come back; None: they are refused
    receipt_key_file: Path | None = None  # the same for all replicas; None: a key kept with the state
    receipt_days: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0  # after that labels come too late
    keep_inputs: bool = False  # with the labels, to refit whole calibrations from them
    state_rows: Count = 1_000_000  # labels kept, the newest
    observed_rows: Count = 1_000  # newest rows of a version that GetModel speaks of
    adaptation: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.01  # step of a stream's coverage, a label
    false_alarm: Annotated[float, Field(gt=0, lt=1)] = 0.01  # probability of each test of drift, however long it runs

    queue_work: Count = 4_000_000  # of all requests in flight
    queue_rows: Count = 100_000  # of all requests in flight on the standard path
    step_work: Count = 8192  # of a step of the device
    step_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.05  # slow networks get smaller steps
    patience_seconds: Seconds = 5.0  # a request without a nearer deadline is due so long after its last turn
    reply_seconds: Seconds = 0.02  # kept back before a deadline, for the way home
    grace_seconds: Seconds = 30.0  # for what is in flight when the server stops
