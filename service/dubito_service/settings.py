"""What an operator can set: by flag, by environment variable `DUBITO_<NAME>`, or in a file (configuration.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]


class Settings(BaseSettings):
    """The server's settings; work is counted in rows x draws."""

    model_config = SettingsConfigDict(env_prefix="DUBITO_", frozen=True, extra="forbid")

    repository: Path | str  # a folder, or the URL of one (fsspec)
    cache: Path | None = None  # for copies of versions that come by URL; None: the user's own cache on this platform
    model_control: Literal["poll", "explicit", "none"] = "poll"  # who says what is loaded while the server runs
    repository_seconds: Seconds = 2.0  # between looks at the repository; 0: never
    pins: dict[str, tuple[Count, ...]] = {}  # by model, the versions that are served instead of the newest ones
    load: tuple[str, ...] = ()  # models that are loaded at the start under explicit control
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 50051  # 0: any free port
    port_file: Path | None = None  # the port is written there once the server is ready
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None  # of /metrics, in plain HTTP; None: no metrics
    metrics_host: str | None = None  # None: as `host`
    server_name: Annotated[str, Field(min_length=1)] = "dubito"  # as clients of the Open Inference Protocol see it
    newest_versions: Count = 3  # of each model are served
    torch_threads: Annotated[int, Field(ge=0)] = 0  # of a replica's passes; 0: all cores but one, shared out
    replicas: Count = 1  # threads that draw on a CPU, from the same networks; of GPUs each has one

    device: Literal["auto", "cpu", "cuda"] = "auto"  # of the Monte Carlo path; auto: a GPU where there is one
    calibration_seconds: Seconds = 1.0  # between looks for a calibration that was switched; 0: never
    pass_bytes: Annotated[int, Field(ge=2**16)] | None = None  # of a pass's largest value; None: 64 MiB, a GPU's 64th

    max_rows: Count = 10_000  # of a request
    max_draws: Count = 10_000  # of a request
    max_work: Count = 1_000_000  # of a request
    max_message_bytes: Annotated[int, Field(ge=1, lt=2**31)] = 32 * 2**20

    tls_certificate: Path | None = None  # PEM, the leaf first; read again when it changes; None: plaintext
    tls_key: Path | None = None  # of the certificate
    tls_client_ca: Path | None = None  # whose certificates clients must bring; None: they need none
    tokens: Path | None = None  # a file that dubito token makes; read again when it changes; None: no call needs one
    plaintext_tokens: bool = False  # from other machines too: for a proxy before this server that ends TLS
    admin: Literal["auto", "on", "off"] = "auto"  # calls that load and unload; auto: from here, or by token

    max_calls: Count = 4096  # under way at once
    caller_calls: Count = 512  # of one caller: a token, a certificate, a host
    max_connections: Count = 4096
    max_streams: Count = 512  # calls of one connection at once
    max_metadata_bytes: Annotated[int, Field(ge=1024, lt=2**31)] = 16 * 2**10  # of a request
    idle_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 300.0  # that a client may keep a call waiting
    message_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0  # for a call's only message to arrive
    ping_seconds: Seconds = 60.0  # of silence, after which a client is asked whether it is there; 0: never
    connection_idle_seconds: Seconds = 0.0  # without a call, after which a connection is closed; 0: never
    connection_age_seconds: Seconds = 0.0  # after which a client is asked to connect anew; 0: never

    state: str | None = None  # folder, or address of a PostgreSQL, for labels that come back; None: they are refused
    receipt_key_file: Path | None = None  # the same for all replicas; None: a key kept with the state
    receipt_days: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0  # after that labels come too late
    keep_inputs: bool = False  # with the labels, to refit whole calibrations from them
    state_rows: Count = 1_000_000  # labels kept, the newest
    observed_rows: Count = 1_000  # newest rows of a version that GetModel speaks of
    adaptation: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.01  # step of a stream's coverage, a label
    false_alarm: Annotated[float, Field(gt=0, lt=1)] = 0.01  # probability of each test of drift, however long it runs

    stream_requests: Count = 128  # of one PredictBulk or ModelStreamInfer, under way at once
    queue_work: Count = 4_000_000  # of all requests in flight
    queue_rows: Count = 100_000  # of all requests in flight on the standard path
    model_work: Share = 1.0  # share of either queue that requests for one model may hold
    caller_work: Share = 1.0  # share of either queue that one caller may hold: a token, a certificate, a host
    overload_seconds: Annotated[float, Field(gt=0)] = 2.0  # of work that may wait before draws are shed; inf: never
    step_work: Count = 8192  # of a step of the device
    step_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.05  # slow networks get smaller steps
    patience_seconds: Seconds = 5.0  # a request without a nearer deadline is due so long after its last turn
    gather_seconds: Seconds = 0.005  # that a step may wait for callers to come back, where that pays; 0: never
    reply_seconds: Seconds = 0.02  # kept back before a deadline, for the way home
    grace_seconds: Seconds = 30.0  # for what is in flight when the server stops

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take nothing but arguments: whoever makes settings says where they come from."""
        return (init_settings,)
