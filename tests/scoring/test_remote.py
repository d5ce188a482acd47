"""Scoring by a server: the same answers as here, whatever the server goes through meanwhile."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from dubito_batch.answers import Asked
from dubito_batch.local import LocalScorer
from dubito_batch.remote import RemoteScorer
from dubito_batch.scoring import score
from dubito_client import Client
from dubito_client.answers import Calibration, InputSignature, ModelInfo, Prediction
from dubito_client.errors import (
    Cancelled,
    DubitoClientError,
    InvalidArgument,
    NotFound,
    Overloaded,
    ProtocolError,
    ServerError,
    Unavailable,
    from_error,
    refused,
)
from dubito_client.many import Outcome
from dubito_client.stopping import Stopping
from dubito_models.package import ModelVersion
from served import served

from .conftest import rows
from .test_scoring import lists

INFO = ModelInfo(
    model="sums",
    version=3,
    state="ready",
    reason="",
    task="regression",
    calibration_id=None,
    inputs=(InputSignature("x", "float32", (None, None), dimension_names=("rows", "length")),),
    head="mean",
    class_names=(),
    outputs=1,
    sites=(),
    design="balanced",
    group_size=10,
    default_draws=40,
    default_seed=0,
    calibration=None,
    onnx_parity=0.0,
    warnings=(),
    checksums={"program.pt2": "ab"},
    max_rows=5,
    max_draws=1000,
)
CALIBRATION = Calibration("c1", "identity", {}, 40, 0, "balanced", 9, "f", "decision", "plain", "lac", "none", 9, None)


def prediction(x: np.ndarray, **changes: Any) -> Prediction:
    fields: dict[str, Any] = {
        "model": "sums",
        "version": 3,
        "id": "",
        "mean": x.sum(1, dtype=np.float64)[:, None],
        "draws": np.full(len(x), 40),
        "standard_error": None,
        "stop_reason": ("max_draws",) * len(x),
        "seed": 0,
        "design": "balanced",
        "group_size": 10,
        "mask_scope": "draw",
        "estimator": "plain",
        "calibration_id": None,
        "calibration_validity": "none",
        "warnings": (),
        "timings": None,
        "raw_draws": None,
        "joint_covariance": None,
        "coverage": None,
        "abstain": None,
        "uncalibrated": None,
        "final": True,
    }
    return Prediction(**{**fields, **changes})


class Scripted:
    """A client whose server does what a script says, call by call; then it answers everything.

    An item says what becomes of the requests of one call, in their order: None is an answer, an error that error, and
    what is callable is called with the rows and returns the answer. Beyond the list all are answered. An error instead
    of a list ends the call at once.
    """

    def __init__(self, *script: Any, info: ModelInfo = INFO) -> None:
        self.script = list(script)
        self.info = info
        self.calls: list[dict[str, Any]] = []
        self.sizes: list[list[int]] = []  # rows of each request, by call
        self.now = 0.0
        self.waits: list[float] = []
        self.takes = 0.0  # seconds until an answer
        self.tried: list[np.ndarray] = []  # before any table
        self.refusal: Exception | None = None  # of those

    def model(self, name: str, *, version: int | None = None) -> ModelInfo:
        return self.info

    def predict_many(self, model: str, inputs: Iterable[Any], **asked: Any) -> Iterator[Outcome]:
        requests = list(inputs)
        self.calls.append(asked)
        self.sizes.append([len(each["x"]) for each in requests])
        item = self.script.pop(0) if self.script else []
        if isinstance(item, Exception):
            raise item
        numbered = list(zip(range(len(requests)), itertools.chain(item, itertools.repeat(None)), strict=False))
        for number, said in reversed(numbered):  # not in their order
            self.now += self.takes
            if isinstance(said, Exception):
                yield number, said  # type: ignore[misc]
            elif said is not None:
                yield number, said(requests[number]["x"])
            else:
                yield number, prediction(requests[number]["x"])

    def predict(self, model: str, inputs: Any, **asked: Any) -> Prediction:
        self.tried.append(inputs["x"])
        if self.refusal is not None:
            raise self.refusal
        return prediction(inputs["x"])

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def scorer(self, asked: Asked | None = None, **options: Any) -> RemoteScorer:
        return RemoteScorer(self, "sums", asked, clock=self.clock, sleep=self.sleep, **options)  # type: ignore[arg-type]


def full(seconds: float | None) -> Overloaded:
    error = Overloaded("the queue is full")
    error.retry_after = seconds
    return error


def broken(kind: type[DubitoClientError] = Unavailable) -> DubitoClientError:
    error = kind("Socket closed")
    error.code = grpc.StatusCode.UNAVAILABLE
    return error


X = np.arange(24, dtype=np.float32).reshape(12, 2)


def right(found: dict[str, np.ndarray], x: np.ndarray = X) -> bool:
    return found["mean"].ravel().tolist() == x.sum(1).tolist() and len(found["draws"]) == len(x)


# --- A server of its own ---


@pytest.fixture(scope="module")
def folder(judge: ModelVersion, gauge: ModelVersion, gauges: ModelVersion, models: Path) -> Path:
    return models.parent


@pytest.fixture(scope="module")
def target(folder: Path) -> Iterator[str]:
    with served(folder, "--log-level", "error") as address:
        yield address


@pytest.fixture
def client(target: str) -> Iterator[Client]:
    with Client(target) as connected:
        assert connected.ready(60)
        yield connected


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("judge", Asked(coverage=0.8)),
        ("judge", Asked(draws=60, min_draws=20, seed=5, stopping=Stopping.decision(), design="independent")),
        ("gauge", Asked(interval_level=0.5, quantiles=(0.1, 0.9))),
        ("gauges", Asked(coverage=0.8, tolerance=0.1, estimator="plain")),
        ("gauges", Asked()),
    ],
)
def test_a_server_answers_as_the_version_does_here(
    client: Client, request: pytest.FixtureRequest, name: str, asked: Asked
) -> None:
    local = LocalScorer(request.getfixturevalue(name), asked)
    remote = RemoteScorer(client, name, asked)
    x = rows(700)
    here, there = local.score({"x": x}), remote.score({"x": x})
    assert set(here) == set(there)
    for kind in here:
        if here[kind].dtype == object:
            assert here[kind].tolist() == there[kind].tolist()
        else:
            np.testing.assert_allclose(there[kind], here[kind], rtol=1e-6, atol=1e-6, err_msg=kind)


@pytest.mark.parametrize("name", ["judge", "gauge", "gauges"])
def test_a_server_describes_a_version_as_it_is_described_here(
    client: Client, request: pytest.FixtureRequest, name: str
) -> None:
    here, there = LocalScorer(request.getfixturevalue(name)).described, RemoteScorer(client, name).described
    assert there.max_rows == 10_000
    for field in type(here).__dataclass_fields__:
        if field != "max_rows":
            assert getattr(here, field) == getattr(there, field), field


def test_a_table_is_scored_by_a_client_and_a_name(client: Client, judge: ModelVersion) -> None:
    table = lists(rows(40).tolist())
    here, there = (list(score(table, model, batch_rows=16)) for model in (judge, (client, "judge")))
    for one, other in zip(here, there, strict=True):
        assert one.schema.equals(other.schema)
        assert one["dubito_label"].equals(other["dubito_label"])


def test_what_the_server_refuses_is_told_at_once(client: Client) -> None:
    with pytest.raises(NotFound, match="nobody"):
        RemoteScorer(client, "nobody")
    with pytest.raises(InvalidArgument, match="no calibration"):
        RemoteScorer(client, "gauge", Asked(coverage=0.9))
    with pytest.raises(InvalidArgument, match="draws"):
        RemoteScorer(client, "gauge", Asked(draws=10**6))
    with pytest.raises(InvalidArgument, match="target"):
        RemoteScorer(client, "gauge", Asked(tolerance=-1.0))
    with pytest.raises(InvalidArgument, match="shape"):
        RemoteScorer(client, "gauge").score({"x": np.zeros((3, 5), np.float32)})


def test_a_server_that_dies_between_blocks_ends_in_a_clear_error(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "repository" / "gauge", tmp_path / "repository" / "gauge")
    with served(tmp_path) as address, Client(address) as connected:
        assert connected.ready(60)
        scorer = RemoteScorer(connected, "gauge", patience=2.0)
        scorer.score({"x": rows(9)})
        lost = connected, scorer
    with Client(address, timeout=2.0) as again:
        lost[1]._client = again
        with pytest.raises(Unavailable, match="no answer for"):
            lost[1].score({"x": rows(9)})


def test_a_server_with_little_room_answers_all_rows_in_the_end(
    folder: Path, gauge: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUBITO_QUEUE_WORK", "21000")  # one request's, and no second one's
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        time.sleep(seconds)

    x = rows(6000)
    with served(folder, "--log-level", "error") as address, Client(address) as connected:
        assert connected.ready(60)
        scorer = RemoteScorer(connected, "gauge", sleep=sleep)
        scorer._in_flight = 8
        found = scorer.score({"x": x})
    np.testing.assert_allclose(found["mean"], gauge.predict(x).answer.mean, atol=1e-6)
    assert set(found["stop_reason"].tolist()) == {"max_draws"}
    assert waits


# --- A server with a script ---


def test_a_block_goes_in_requests_that_the_server_takes_and_comes_back_in_order() -> None:
    client = Scripted()
    scorer = client.scorer()
    assert right(scorer.score({"x": X}))
    assert client.sizes == [[5, 5, 2]]
    assert client.calls[0]["version"] == 3
    assert client.calls[0]["priority"] == "low"
    assert client.calls[0]["seed"] is None  # the version's own, of which the calibration is


@pytest.mark.parametrize("bad", [{6}, {0, 7, 8, 11}, set(range(12))])
def test_rows_without_a_finite_answer_are_found_among_those_that_share_their_request(bad: set[int]) -> None:
    class Overflowing(Scripted):
        def predict_many(self, model: str, inputs: Iterable[Any], **asked: Any) -> Iterator[Outcome]:
            for number, each in enumerate(inputs):
                if any((each["x"] == X[row]).all(1).any() for row in bad):
                    yield number, from_error(grpc.StatusCode.OUT_OF_RANGE.value[0], "inputs: got row", "inputs", None)
                else:
                    yield number, prediction(each["x"])

    client = Overflowing()
    found = client.scorer().score({"x": X})
    assert np.flatnonzero(np.isnan(found["mean"][:, 0])).tolist() == sorted(bad)
    left = [row for row in range(12) if row not in bad]
    np.testing.assert_allclose(found["mean"][left, 0], X[left].sum(1), rtol=1e-6)
    assert client.waits == []


def test_an_overloaded_server_is_asked_again_after_the_time_that_it_names() -> None:
    client = Scripted([full(7.5), None, None], [full(3.0)])
    assert right(client.scorer().score({"x": X}))
    assert client.sizes == [[5, 5, 2], [5], [5]]
    assert client.waits == [7.5, 3.0]


def test_a_server_that_does_not_say_when_is_asked_at_longer_and_longer_intervals() -> None:
    client = Scripted([full(None)] * 3, [full(None)] * 3, [full(None)] * 3)
    assert right(client.scorer().score({"x": X}))
    assert client.waits == [0.25, 0.5, 1.0]


def test_a_server_that_stays_full_is_given_up_after_the_patience() -> None:
    client = Scripted(*[[full(10.0)] * 3 for _ in range(9)])
    with pytest.raises(Overloaded, match=r"no answer for 60 s, and then: the queue is full"):
        client.scorer(patience=65.0).score({"x": X})
    assert client.waits == [10.0] * 6


def test_every_answer_renews_the_patience() -> None:
    client = Scripted([full(40.0), full(40.0), None], [full(40.0), None])
    assert right(client.scorer(patience=60.0).score({"x": X}))
    assert client.waits == [40.0, 40.0]


@pytest.mark.parametrize("kind", [Unavailable, ServerError, Cancelled])
def test_a_server_that_is_lost_and_comes_back_is_asked_for_what_is_missing(kind: type[DubitoClientError]) -> None:
    def vanish(x: np.ndarray) -> Prediction:
        raise broken(kind)

    client = Scripted([None, vanish, None], broken(kind), broken(kind))
    assert right(client.scorer().score({"x": X}))
    assert client.sizes == [[5, 5, 2], [5, 5], [5, 5], [5, 5]]


def test_a_server_that_stays_lost_is_a_clear_error_after_the_patience() -> None:
    client = Scripted(*[broken() for _ in range(99)])
    with pytest.raises(Unavailable, match=r"no answer for \d+ s, and then: Socket closed"):
        client.scorer(patience=30.0).score({"x": X})
    assert 20.0 < sum(client.waits) <= 30.0


def test_a_server_that_does_not_answer_is_told_of_once_each_time() -> None:
    told: list[str] = []
    client = Scripted(broken(), broken(), [], [full(1.0)], [], broken(), [None, broken(), None])
    scorer = client.scorer(tell=told.append)
    for _ in range(3):
        assert right(scorer.score({"x": X}))
    assert told == ["the server does not answer (Socket closed); it is tried for up to 60 s"] * 3


def test_a_server_that_is_silent_is_a_clear_error_too() -> None:
    release = threading.Event()

    def hang(x: np.ndarray) -> Prediction:
        release.wait(60)
        return prediction(x)

    client = Scripted([hang])
    try:
        client.now = 0.0
        scorer = client.scorer(patience=0.2)
        with pytest.raises(Unavailable, match="the server is silent"):
            scorer.score({"x": X[:3]})
    finally:
        release.set()
    for thread in threading.enumerate():
        if thread.name == "dubito-batch-answers":
            thread.join(60)


def test_an_answer_with_fewer_draws_than_asked_is_asked_again() -> None:
    def short(x: np.ndarray) -> Prediction:
        return prediction(x, stop_reason=("max_draws",) * (len(x) - 1) + ("load",))

    client = Scripted([short, None, short])
    found = client.scorer().score({"x": X})
    assert right(found)
    assert set(found["stop_reason"].tolist()) == {"max_draws"}
    assert client.sizes == [[5, 5, 2], [5, 2]]


def test_another_calibration_than_in_the_beginning_ends_the_scoring() -> None:
    client = Scripted([lambda x: prediction(x, calibration_id="c2")])
    with pytest.raises(InvalidArgument, match=r"calibration: got c2, to which the server has switched.*none"):
        client.scorer().score({"x": X})


def test_an_answer_to_other_rows_is_an_error() -> None:
    client = Scripted([lambda x: prediction(x[1:])])
    with pytest.raises(ProtocolError, match="4 rows of 5"):
        client.scorer().score({"x": X})


def test_what_no_waiting_helps_against_is_raised_at_once() -> None:
    client = Scripted([None, InvalidArgument("inputs: got NaN")])
    with pytest.raises(InvalidArgument, match="NaN"):
        client.scorer().score({"x": X})
    assert client.waits == []
    closed = Scripted(Cancelled("the client is closed"))
    with pytest.raises(Cancelled, match="closed"):
        closed.scorer().score({"x": X})


def test_more_requests_are_in_flight_while_answers_come_fast_and_fewer_when_the_server_is_full() -> None:
    client = Scripted([], [], [], [], [], [full(0.1)])
    scorer = client.scorer(in_flight=8)
    for _ in range(6):
        scorer.score({"x": X})
    assert [call["in_flight"] for call in client.calls] == [1, 2, 4, 8, 8, 8, 4]


def test_a_slow_server_gets_no_more_requests_than_it_answers_within_the_patience() -> None:
    client = Scripted()
    client.takes = 20.0
    scorer = client.scorer(patience=60.0)
    for _ in range(3):
        assert right(scorer.score({"x": X}))
    assert [call["in_flight"] for call in client.calls] == [1, 1, 1]


@pytest.mark.parametrize(
    ("asked", "changes", "expected"),
    [
        (Asked(), {}, 500),  # 20,000 rows x draws
        (Asked(draws=200), {}, 100),
        (Asked(draws=10**6), {}, 1),
        (Asked(tolerance=0.1), {}, 156),  # 640 draws at most
        (Asked(draws=400, tolerance=0.1), {}, 250),
        (Asked(stopping=Stopping.none()), {"calibration": CALIBRATION}, 500),
        (Asked(), {"calibration": CALIBRATION}, 156),
        (Asked(draws=8), {}, 512),
        (Asked(draws=8), {"outputs": 10_000}, 5),
        (Asked(draws=8), {"max_rows": 7}, 7),
    ],
)
def test_requests_hold_as_many_rows_as_their_draws_and_answers_let_be_of_use(
    asked: Asked, changes: dict[str, Any], expected: int
) -> None:
    fields = {name: getattr(INFO, name) for name in ModelInfo.__dataclass_fields__}
    client = Scripted(info=ModelInfo(**{**fields, "max_rows": 10_000, **changes}))
    client.info = ModelInfo(**{**fields, "max_rows": 10_000, **changes, "calibration_id": None})
    scorer = client.scorer(asked)
    answer: Callable[[np.ndarray], Prediction] = lambda x: prediction(  # noqa: E731
        x, calibration_id=scorer.described.calibration_id
    )
    client.script = [[answer] * 2000]
    scorer.score({"x": np.zeros((1200, 2), np.float32)})
    assert max(client.sizes[0]) == expected


def test_requests_hold_no_more_bytes_than_a_message() -> None:
    client = Scripted()
    scorer = client.scorer()
    wide = np.zeros((9, 2**20), np.float32)  # 4 MiB a row
    scorer.score({"x": wide})
    assert client.sizes == [[1] * 9]


def test_an_input_of_a_type_that_is_not_known_here_is_refused() -> None:
    fields = {name: getattr(INFO, name) for name in ModelInfo.__dataclass_fields__}
    client = Scripted(info=ModelInfo(**{**fields, "inputs": (InputSignature("x", "unspecified", (None, 2)),)}))
    with pytest.raises(InvalidArgument, match=r"'x' is of an unknown type.*a newer client"):
        client.scorer()


def test_a_version_that_does_not_serve_is_refused() -> None:
    fields = {name: getattr(INFO, name) for name in ModelInfo.__dataclass_fields__}
    client = Scripted(info=ModelInfo(**{**fields, "state": "failed", "reason": "checksum"}))
    with pytest.raises(InvalidArgument, match="3, which is failed checksum"):
        client.scorer()


def test_what_the_server_does_not_take_is_refused_before_a_table_is_read() -> None:
    client = Scripted()
    client.scorer()
    assert [each.shape for each in client.tried] == [(1, 1)]
    client.refusal = refused("sampling.quantiles", "33 of them", "at most 32")
    with pytest.raises(InvalidArgument, match="33 of them"):
        client.scorer()


@pytest.mark.parametrize("error", [refused("inputs['x'].shape", "length = 1", "at least 2"), full(1.0), broken()])
def test_a_trial_that_says_nothing_of_what_is_asked_is_passed_over(error: Exception) -> None:
    client = Scripted()
    client.refusal = error
    assert right(client.scorer().score({"x": X}))
