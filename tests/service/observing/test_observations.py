"""The store of observations: once per prediction, bounded, in SQLite and PostgreSQL alike."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sql

from dubito_models.calibration.adaptive import error_bound
from dubito_models.errors import InvalidArgument
from dubito_models.predictive import Validity
from dubito_service.errors import AlreadyObserved, CannotOpenState, StateUnavailable
from dubito_service.observing import database, observations
from dubito_service.observing.drift import REFERENCE_ROWS, Drift, read_drift, write_drift
from dubito_service.observing.observations import EPISTEMIC, SCORE, Observations, Outcome, Rules, StreamKey
from dubito_service.observing.receipts import Classified, Receipt, write_inputs
from observed import NOW, class_probabilities, classified, labels_of, lac_reference, regressed, scored
from postgres import BINARIES, Postgres, running_postgres

Open = Callable[..., Observations]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    if BINARIES is None:
        pytest.skip("PostgreSQL is not installed")
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "state")
    server: Postgres = request.getfixturevalue("postgres")
    return server.empty()


@pytest.fixture
def opened(state: str) -> Iterator[Open]:
    """Opens the same store again and again, as replicas and restarts do."""
    stores: list[Observations] = []

    def open_store(**rules: float) -> Observations:
        stores.append(Observations(state, Rules(**rules)))  # type: ignore[arg-type]
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def record(store: Observations, receipt: Receipt, labels: object, **more: object) -> Outcome:
    options = {"now": NOW, "reference": None, "inputs": None, **more}
    return store.record(receipt, scored(receipt, labels), **options)  # type: ignore[arg-type]


def some(rows: int = 4, seed: int = 0, **changes: object) -> tuple[Receipt, np.ndarray]:
    random = np.random.default_rng(seed)
    p = class_probabilities(random, rows)
    return classified(p, **changes), labels_of(random, p)


def rows_of(store: Observations, model: str = "mlp") -> int:
    return len(store.newest(model, 1, 10**6).stream)


def test_a_prediction_counts_once_and_a_repeat_changes_nothing(opened: Open) -> None:
    store = opened()
    receipt, labels = some(stream="s", coverage=0.9, served_coverage=0.9, answer=answering(0.9, 4))
    labels = np.zeros(4, int)
    first = record(store, receipt, labels)
    assert (first.duplicate, first.stream and first.stream.count) == (False, 4)
    states = store.streams()
    assert record(store, receipt, labels) == Outcome(duplicate=True)
    assert record(opened(), receipt, labels) == Outcome(duplicate=True)  # after a restart too
    assert store.streams() == states
    assert rows_of(store) == 4


def test_other_labels_than_before_are_refused_and_change_nothing(opened: Open) -> None:
    store = opened()
    receipt, labels = some()
    record(store, receipt, labels)
    before = store.newest("mlp", 1, 10).measures["negative_log_likelihood"]
    with pytest.raises(AlreadyObserved, match=receipt.prediction_id):
        record(store, receipt, (labels + 1) % 3)
    np.testing.assert_array_equal(store.newest("mlp", 1, 10).measures["negative_log_likelihood"], before)


def test_of_fifty_at_once_one_counts(opened: Open) -> None:
    """Over two replicas of the store, each from many threads."""
    stores = [opened(), opened()]
    receipt = answered(0.9, 4)
    start = threading.Barrier(10)

    def go(number: int) -> bool:
        start.wait(30)
        found = [record(stores[(number + i) % 2], receipt, np.zeros(4, int)).duplicate for i in range(5)]
        return not any(found) if len(set(found)) == 1 else found.count(False) == 1

    with ThreadPoolExecutor(10) as pool:
        counted = list(pool.map(go, range(10)))
    assert sum(counted) == 1
    [state] = stores[0].streams().values()
    assert state.count == 4
    assert rows_of(stores[1]) == 4


def answering(served: float, rows: int) -> Classified:
    """Sets that hold class 0 alone."""
    return Classified(np.tile([0.8, 0.1, 0.1], (rows, 1)), np.tile([True, False, False], (rows, 1)))


def answered(served: float, rows: int, stream: str = "s", **changes: object) -> Receipt:
    fields: dict[str, object] = {"coverage": 0.9, "served_coverage": served, **changes}
    return classified(np.tile([0.8, 0.1, 0.1], (rows, 1)), answer=answering(served, rows), stream=stream, **fields)


def test_replicas_that_write_at_once_lose_no_label(opened: Open) -> None:
    stores = [opened(), opened(), opened()]

    def go(number: int) -> None:
        for i in range(12):
            record(stores[number % 3], answered(0.9, 2), np.full(2, int(i % 4 == 0)))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(go, range(6)))
    [state] = stores[0].streams().values()
    assert (state.count, state.errors) == (6 * 12 * 2, 6 * 3 * 2)
    assert state.level == pytest.approx(0.1 + 0.01 * (144 * 0.1 - 36))
    drift = stores[1].drifts("mlp", 1)[("c0", EPISTEMIC)]
    assert len(drift.gathered) == 144


def test_a_streams_level_moves_by_its_labels_and_survives_a_restart(opened: Open) -> None:
    record(opened(adaptation=0.05), answered(0.9, 1), [1])
    key = StreamKey("mlp", 1, "c0", "s", 0.9)
    assert opened().streams()[key].level == pytest.approx(0.1 + 0.05 * (0.1 - 1))
    record(opened(adaptation=0.02), answered(0.9, 1), [0])
    found = opened().streams()[key]
    assert found.level == pytest.approx(0.1 - 0.045 + 0.02 * 0.1)
    assert (found.count, found.errors) == (2, 1)


def test_streams_coverages_versions_and_calibrations_are_apart(opened: Open) -> None:
    store = opened()
    for changes in ({}, {"stream": "t"}, {"coverage": 0.8}, {"calibration_id": "c1"}, {"version": 2}, {"model": "m"}):
        record(store, answered(0.9, 1, **changes), [1])  # type: ignore[arg-type]
    assert len(store.streams()) == 6
    assert {state.count for state in store.streams().values()} == {1}


def test_an_answer_of_no_stream_moves_none(opened: Open) -> None:
    store = opened()
    assert record(store, answered(0.9, 1, stream=""), [1]).stream is None
    assert store.streams() == {}


def test_everything_never_errs_and_nothing_always_does(opened: Open) -> None:
    """At coverage 1 and 0, whatever the sets say: a point at the mean may equal its target."""
    store = opened()
    first = record(store, answered(1.0, 3), [1, 1, 1]).stream
    assert first is not None
    assert first.errors == 0
    second = record(store, answered(0.0, 3), [0, 0, 0]).stream
    assert second is not None
    assert second.errors == 3


def test_long_run_miscoverage_keeps_its_bound_through_an_abrupt_shift(opened: Open) -> None:
    """Gibbs & Candes' proposition 4.1, which holds for any labels at all: there is nothing random to it."""
    store = opened(adaptation=0.05)
    random = np.random.default_rng(5)
    reference = np.array(lac_reference(200, 1))
    key = StreamKey("mlp", 1, "c0", "s", 0.9)
    for number in range(300):
        state = store.streams().get(key)
        ask = 0.9 if state is None else state.coverage_to_ask
        p = class_probabilities(random, 1)
        label = labels_of(random, p) if number < 150 else p.argmin(-1)  # from then on the least likely class
        rank = int(np.ceil(201 * ask - 1e-9))
        edge = np.inf if rank > 200 else -np.inf if rank < 1 else reference[rank - 1]
        receipt = classified(
            p, answer=Classified(p, 1 - p <= edge), stream="s", coverage=0.9, served_coverage=ask, scoring=None
        )
        record(store, receipt, label)
    state = store.streams()[key]
    assert abs(state.mean_error - 0.1) <= error_bound(0.1, 0.05, 300)
    assert state.mean_error < 0.2
    assert state.coverage_to_ask > 0.95  # it has learned that labels are odd now


def test_drift_raises_an_alarm_once_and_exchangeable_labels_raise_none(opened: Open) -> None:
    """Fixed seeds; of the tests on exchangeable rows each raises a false alarm with probability at most .01."""
    store = opened()
    reference = lac_reference(500, 3)
    for seed in range(10):
        receipt, labels = some(40, seed=100 + seed)
        assert record(store, receipt, labels, reference=reference).alarms == ()
    assert not any(drift.alarm for drift in store.drifts("mlp", 1).values())
    alarms = []
    for seed in range(10):
        receipt, _ = some(40, seed=200 + seed)
        assert isinstance(receipt.answer, Classified)
        labels = receipt.answer.probabilities.argmin(-1)
        alarms += record(opened(), receipt, labels, reference=None).alarms  # by any replica, after any restart
    assert alarms == [SCORE]
    drifts = store.drifts("mlp", 1)
    assert drifts[("c0", SCORE)].alarm
    assert not drifts[("c0", EPISTEMIC)].alarm
    assert record(store, some(4, seed=1, calibration_id="c1")[0], [0, 0, 0, 0], reference=reference).alarms == ()
    assert not store.drifts("mlp", 1)[("c1", SCORE)].alarm  # a new calibration begins anew


def test_epistemic_uncertainty_is_tested_against_the_first_rows(opened: Open) -> None:
    """Fixed seeds, false-alarm rate .01 before the shift."""
    store = opened()
    random = np.random.default_rng(2)
    for shift, expected in ((0.0, ()), (0.5, (EPISTEMIC,))):
        alarms: list[str] = []
        for _ in range(10):
            receipt, labels = some(40, epistemic=random.gamma(2.0, 0.1, 40) + shift, scoring=None)
            alarms += record(store, receipt, labels).alarms
        assert tuple(alarms) == expected
    test = store.drifts("mlp", 1)[("c0", EPISTEMIC)].test
    assert test is not None
    assert len(test.reference) == REFERENCE_ROWS


def test_answers_drawn_otherwise_are_not_tested_for_drift(opened: Open) -> None:
    store = opened()
    for validity in (Validity.APPROXIMATE, Validity.NONE):
        receipt, labels = some(validity=validity)
        record(store, receipt, labels, reference=lac_reference(50, 0))
    assert store.drifts("mlp", 1) == {}


def test_scores_of_a_calibration_that_is_not_loaded_start_no_test(opened: Open) -> None:
    store = opened()
    record(store, *some(), reference=None)
    assert set(store.drifts("mlp", 1)) == {("c0", EPISTEMIC)}
    record(store, *some(seed=1), reference=lac_reference(50, 0))
    record(store, *some(seed=2), reference=None)
    test = store.drifts("mlp", 1)[("c0", SCORE)].test
    assert test is not None
    assert test.count == 8


def test_several_targets_are_tested_by_their_largest_score(opened: Open) -> None:
    store = opened()
    random = np.random.default_rng(0)
    for _ in range(3):
        mean = random.normal(size=(100, 2))
        record(store, regressed(mean), mean + random.normal(size=(100, 2)))
    test = store.drifts("mlp", 1)[("c0", SCORE)].test
    assert test is not None
    assert len(test.reference) == REFERENCE_ROWS
    assert test.count == 100


def test_no_more_rows_are_kept_than_are_asked(opened: Open) -> None:
    store = opened(rows=100)
    receipts = [some(3, seed=i, issued=NOW + i) for i in range(80)]
    for receipt, labels in receipts:
        record(store, receipt, labels)
        assert rows_of(store) <= 100 + 3
    assert rows_of(store) > 90
    old, labels = receipts[0]
    with pytest.raises(InvalidArgument, match=r"^receipt: .*--state-rows"):
        record(store, old, labels)  # nobody knows any more that it counted
    late = some(3, issued=NOW + 1)
    with pytest.raises(InvalidArgument, match="older than what is kept"):
        record(store, *late)
    assert record(store, *receipts[-1]).duplicate
    kept = Observations.newest(opened(rows=10), "mlp", 1, 10**6)  # another bound holds from the next label on
    assert len(kept.stream) > 90
    record(opened(rows=10), *some(2, seed=99, issued=NOW + 99))
    assert rows_of(store) <= 10


def test_no_more_streams_are_kept_than_are_bearable(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently moved are forgotten, and begin anew."""
    monkeypatch.setattr(observations, "MOST_STATES", 5)
    store = opened()
    for number in range(8):
        record(store, answered(0.9, 1, f"s{number}"), [1], now=NOW + number)
    assert {key.stream for key in store.streams()} == {f"s{number}" for number in range(3, 8)}
    assert set(store.drifts("mlp", 1)) == {("c0", EPISTEMIC)}


def test_the_newest_rows_come_first(opened: Open) -> None:
    store = opened()
    for number in range(5):
        record(store, *some(2, seed=number, issued=NOW + number), now=NOW + number)
    found = store.newest("mlp", 1, 5)
    np.testing.assert_array_equal(found.seconds, NOW + np.array([4, 4, 3, 3, 2]))
    assert rows_of(store, "other") == 0


def test_scores_come_back_of_answers_drawn_as_calibrated_alone(opened: Open) -> None:
    store = opened()
    good, labels = some(5, groups=np.arange(5))
    record(store, good, labels)
    record(store, *some(5, seed=1, validity=Validity.APPROXIMATE))
    record(store, *some(5, seed=2, calibration_id="c1"))
    found = store.exact_scores("mlp", 1, "c0", 100)
    order = np.argsort(found.members)
    expected = scored(good, labels)
    np.testing.assert_array_equal(found.scores[order], expected.scores)
    np.testing.assert_array_equal(found.labels[order], expected.labels)
    assert store.exact_scores("mlp", 1, "none", 100).scores.shape == (0, 0)
    assert len(store.exact_scores("mlp", 1, "c0", 2).scores) == 2


def test_inputs_come_back_with_the_labels_of_their_rows(opened: Open) -> None:
    store = opened()
    for number in range(3):
        receipt, labels = some(4, seed=number, issued=NOW + number)
        record(store, receipt, labels, inputs=write_inputs({"x": np.full((4, 2), number)}) if number else None)
    kept = store.kept_inputs("mlp", 1, 100)
    assert len(kept.inputs) == 2
    assert [part.shape for part in kept.labels] == [(4, 1), (4, 1)]
    np.testing.assert_array_equal(kept.labels[1], scored(*some(4, seed=2)).labels)
    assert len(store.kept_inputs("mlp", 1, 5).inputs) == 1


def test_replicas_agree_on_a_key(opened: Open) -> None:
    stores = [opened() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda number: stores[number].fact("receipt_key", lambda: str(number)), range(4)))
    assert len(set(made)) == 1
    assert opened().fact("receipt_key", lambda: "another") == made[0]


def test_stores_that_are_opened_at_once_make_their_tables_once(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 30.0)  # of six writers on a slow disk the last one waits long
    start = threading.Barrier(6)

    def go(number: int) -> Outcome:
        start.wait(30)
        store = Observations(state, Rules())
        try:
            return record(store, *some(seed=number))
        finally:
            store.close()

    with ThreadPoolExecutor(6) as pool:
        assert not any(outcome.duplicate for outcome in pool.map(go, range(6)))


def test_tables_of_another_release_are_refused(opened: Open, state: str) -> None:
    store = opened()
    store.database.write(lambda connection: connection.execute(sql.text("UPDATE dubito_facts SET value = '0'")))
    with pytest.raises(CannotOpenState, match="another release"):
        opened()


def test_what_is_not_known_and_not_a_number_is_kept_as_absent(opened: Open) -> None:
    store = opened()
    p = np.array([[np.nan, np.nan, np.nan], [0.2, 0.3, 0.5]])
    record(store, classified(p, epistemic=np.array([np.nan, 0.1])), [0, 2], reference=lac_reference(50, 0))
    likelihood = store.newest("mlp", 1, 10).measures["negative_log_likelihood"]
    assert np.isnan(likelihood).sum() == 1
    test = store.drifts("mlp", 1)[("c0", SCORE)].test
    assert test is not None
    assert test.count == 1


def test_a_locked_sqlite_is_unavailable_after_a_bounded_wait(tmp_path: Path) -> None:
    store = Observations(str(tmp_path), Rules())
    other = sqlite3.connect(tmp_path / "observations.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    receipt, labels = some()
    with pytest.raises(StateUnavailable, match="locked"):
        record(store, receipt, labels)
    assert rows_of(store) == 0  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    assert not record(store, receipt, labels).duplicate
    store.close()


def test_a_full_disk_is_unavailable_and_breaks_nothing(tmp_path: Path) -> None:
    store = Observations(str(tmp_path), Rules())
    record(store, *some())

    def fill(connection: sql.Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    store.database.write(fill)
    big, labels = some(5000, seed=1)
    with pytest.raises(StateUnavailable, match="full"):
        record(store, big, labels)
    assert rows_of(store) == 4
    assert record(store, *some()).duplicate is False
    store.database.write(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count=1000000"))
    assert not record(store, big, labels).duplicate
    store.close()


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        ("mysql://root:secret@host/db", InvalidArgument, r"got mysql://; accepted: a folder, or postgresql\+psycopg"),
        ("postgresql://:::", InvalidArgument, "an address that cannot be read"),
        ("postgresql+psycopg://me:secret@/db?host=/nowhere", CannotOpenState, "cannot be opened"),
    ],
)
def test_a_state_that_cannot_be_opened_is_refused_without_its_password(
    state: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        Observations(state, Rules())
    assert "secret" not in str(caught.value)


def test_a_folder_that_cannot_be_made_or_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(CannotOpenState, match="cannot be made a folder"):
        Observations(str(tmp_path / "file" / "state"), Rules())
    (tmp_path / "observations.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(CannotOpenState, match="not a database"):
        Observations(str(tmp_path), Rules())


@pytest.mark.postgres
def test_a_postgresql_that_is_lost_is_unavailable_and_is_found_again(postgres: Postgres) -> None:
    with running_postgres() as server:
        store = Observations(server.empty(), Rules())
        record(store, *some())
        server.stop()
        late = some(seed=1)
        with pytest.raises(StateUnavailable):
            record(store, *late)
        with pytest.raises(StateUnavailable):
            store.newest("mlp", 1, 10)
        server.start()
        assert not record(store, *late).duplicate
        assert rows_of(store) == 8
        store.close()


@pytest.mark.postgres
def test_a_locked_postgresql_is_unavailable_after_a_bounded_wait(postgres: Postgres) -> None:
    state = postgres.empty()
    store = Observations(state, Rules())
    with postgres.connect() as other:
        other.execute("LOCK TABLE dubito_predictions")
        with pytest.raises(StateUnavailable, match="lock timeout"):
            record(store, *some())
        other.rollback()
    assert not record(store, *some()).duplicate
    store.close()


@pytest.mark.parametrize("rows", [0, 7, REFERENCE_ROWS, REFERENCE_ROWS + 5])
def test_a_test_of_drift_is_the_same_after_it_was_stored(rows: int) -> None:
    random = np.random.default_rng(rows)
    drift = Drift.start(None, 0.01, "a").after(random.random(min(rows, 150))).after(random.random(max(0, rows - 150)))
    assert read_drift(write_drift(drift)) == drift
    known = Drift.start((0.1, 0.5), 0.01, "b").after(random.random(rows))
    assert read_drift(write_drift(known)) == known
