"""Refitting from labels that came back: the scores they have are those that a file of the same rows would have."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from calibrations import calibration
from dubito_models.calibration import Calibration, Reached
from dubito_models.calibration.conformal import fit_classes, fit_targets, refit_scores
from dubito_models.errors import InvalidArgument
from dubito_models.package import ModelVersion, load_version
from dubito_models.sampling import SamplingSpec
from dubito_service.calibrate_command import calibrate
from dubito_service.observing.observations import Observations, Rules, ScoredRows
from dubito_service.observing.receipts import Receipt, make_receipt, new_prediction_id, write_inputs
from dubito_service.observing.refitting import LEAST_ROWS, with_scores
from observed import CLASSES, NOW, calibrated, class_probabilities, classified, labelled, labels_of, scored

RANDOM = np.random.default_rng(0)
OLD, NEW = (class_probabilities(RANDOM, 300) for _ in range(2))
OLD_LABELS, NEW_LABELS = labels_of(RANDOM, OLD), labels_of(RANDOM, NEW)
MEMBERS = RANDOM.integers(0, 3, 300)


def found(labels: Any = NEW_LABELS, rows: int = 300, **changes: Any) -> ScoredRows:
    receipt = classified(NEW[:rows], **changes)
    scores = scored(receipt, labels[:rows])
    assert scores.scores is not None
    return ScoredRows(scores.scores, scores.labels, MEMBERS[:rows])


@pytest.mark.parametrize("condition", ["none", "class", "group"])
def test_the_scores_are_those_that_the_rows_themselves_would_give(condition: Any) -> None:
    groups = MEMBERS if condition == "group" else None
    old = fit_classes(OLD, OLD_LABELS, condition=condition, groups=groups)
    early = Reached(1, fit_classes(OLD[:50], OLD_LABELS[:50]))
    before = calibration(conformal=(early, Reached(4, old)), score_rows=300)
    after = with_scores(before, found())
    assert after.conformal[0] == early  # of answers that are cut short
    assert after.conformal[1] == Reached(4, fit_classes(NEW, NEW_LABELS, condition=condition, groups=groups))
    assert after.id != before.id
    assert (after.draws, after.seed, after.map) == (before.draws, before.seed, before.map)


def test_targets_are_refitted_each_by_itself() -> None:
    mean, targets = RANDOM.normal(size=(2, 40, 2))
    old = fit_targets(targets[:20], mean[:20], np.ones((20, 2)))
    new = fit_targets(targets[20:], mean[20:], np.ones((20, 2)))
    scores = new.target_scores(targets[20:], mean[20:], np.ones((20, 2)), None)
    assert refit_scores(old, scores) == new


def test_scores_that_do_not_fit_are_refused() -> None:
    plain, by_class = fit_classes(OLD, OLD_LABELS), fit_classes(OLD, OLD_LABELS, condition="class")
    with pytest.raises(InvalidArgument, match="keys: got None"):
        refit_scores(by_class, np.zeros((20, 1)))
    with pytest.raises(InvalidArgument, match="keys"):
        refit_scores(plain, np.zeros((20, 1)), np.zeros(20, int))
    with pytest.raises(InvalidArgument, match="scores: got shape"):
        refit_scores(plain, np.zeros((20, CLASSES)))
    with pytest.raises(InvalidArgument, match="NaN or infinity"):
        refit_scores(plain, np.full((20, 1), np.nan))


def test_too_few_labels_are_refused() -> None:
    before = calibration(conformal=(Reached(4, fit_classes(OLD, OLD_LABELS)),))
    assert with_scores(before, found(rows=LEAST_ROWS)).score_rows == LEAST_ROWS
    with pytest.raises(InvalidArgument, match=r"got 19 labelled rows drawn as calibration .*; accepted: at least 20"):
        with_scores(before, found(rows=LEAST_ROWS - 1))


# --- The command ---


@pytest.fixture
def version(packed: Callable[[str], ModelVersion], tmp_path: Path) -> ModelVersion:
    return calibrated(packed("mlp"), tmp_path / "repository")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Observations]:
    opened = Observations(str(tmp_path / "state"), Rules())
    yield opened
    opened.close()


def bring(
    version: ModelVersion, store: Observations, rows: int, *, keep: bool = False, seed: int = 50, shift: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Predict rows and bring their labels back."""
    inputs, labels = labelled(version, rows, seed, shift)
    answer = version.predict(inputs, SamplingSpec(coverage=0.9) if version.calibration else None)
    receipt: Receipt = make_receipt(
        answer, version.calibration, model="mlp", version=1, prediction_id=new_prediction_id(), issued=NOW
    )
    kept = write_inputs({"input": inputs}) if keep else None
    store.record(receipt, scored(receipt, labels), NOW, None, kept)
    return inputs, labels


def run(version: ModelVersion, *options: str) -> tuple[int, str]:
    repository = str(version.folder.parent.parent)
    result = CliRunner().invoke(calibrate, ["mlp", "--repository", repository, "--json", *options])
    return result.exit_code, result.output


def current(version: ModelVersion) -> Calibration:
    found = load_version(version.folder).calibration
    assert found is not None
    return found


def test_observed_rows_take_the_place_of_the_scores_and_there_is_a_way_back(
    version: ModelVersion, store: Observations, tmp_path: Path
) -> None:
    before = current(version)
    bring(version, store, 100, shift=0.8)
    code, said = run(version, "--from-observations", "--state", str(tmp_path / "state"))
    assert code == 0, said
    after = current(version)
    assert json.loads(said)["id"] == after.id != before.id
    assert (after.score_rows, after.map, after.rows) == (100, before.map, before.rows)
    assert len(load_version(version.folder).calibrations()) == 2
    old, new = (each.conformal[-1].conformal.thresholds(0.9, 1)[0, 0] for each in (before, after))
    assert new > old  # labels were odder than those of the file
    assert run(version, "--use", before.id)[0] == 0
    assert current(version) == before


def test_coverage_holds_again_on_rows_like_those_observed(
    version: ModelVersion, store: Observations, tmp_path: Path
) -> None:
    """Of 400 scores and 400 new rows: .9 within 4 deviations of .021, which fails once in 10,000 seeds; it is fixed."""
    bring(version, store, 400, shift=0.6)
    inputs, labels = labelled(version, 400, seed=9, shift=0.6)

    def covered() -> float:
        answer: Any = load_version(version.folder).predict(inputs, SamplingSpec(coverage=0.9)).answer
        return float(answer.prediction_set[np.arange(400), labels].mean())

    assert covered() < 0.84
    assert run(version, "--from-observations", "--state", str(tmp_path / "state"))[0] == 0
    assert 0.816 < covered() < 0.984


def test_rows_of_another_calibration_do_not_count(version: ModelVersion, store: Observations, tmp_path: Path) -> None:
    bring(version, store, 100)
    assert run(version, "--from-observations", "--state", str(tmp_path / "state"))[0] == 0
    code, said = run(version, "--from-observations", "--state", str(tmp_path / "state"))
    assert code == 2
    assert "got 0 labelled rows" in said


def test_with_their_inputs_kept_the_whole_calibration_is_refitted(
    version: ModelVersion, store: Observations, tmp_path: Path
) -> None:
    parts = [bring(version, store, 60, keep=True, seed=seed) for seed in (1, 2)]
    code, said = run(version, "--from-observations", "--state", str(tmp_path / "state"))
    assert code == 0, said
    found = current(version)
    inputs, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    assert (found.rows, found.score_rows) == (70, 50)
    assert load_version(version.folder).calibrate(inputs, labels).id == found.id


def test_only_so_many_of_the_newest_rows_are_used(version: ModelVersion, store: Observations, tmp_path: Path) -> None:
    bring(version, store, 50, shift=1.0)
    bring(version, store, 30, seed=51)
    assert run(version, "--from-observations", "--state", str(tmp_path / "state"), "--newest", "30")[0] == 0
    assert current(version).score_rows == 30


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--from-observations"], "state: got nothing; accepted: --state"),
        (["--from-observations", "--state", "nowhere"], "got nowhere; accepted: the folder of a server's --state"),
        (["--from-observations", "--list"], "--data FILE, or --from-observations, or --list, or --use ID"),
        (["--from-observations", "--state", "mysql://a/b"], "postgresql+psycopg://"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(version: ModelVersion, options: list[str], words: str) -> None:
    code, said = run(version, *options)
    assert code == 2
    assert words in said


def test_a_version_without_scores_says_what_it_needs(
    packed: Callable[[str], ModelVersion], version: ModelVersion, store: Observations, tmp_path: Path
) -> None:
    assert run(version, "--use", "none")[0] == 0
    version.use_calibration(None)
    bring(version, store, 50)
    code, said = run(version, "--from-observations", "--state", str(tmp_path / "state"))
    assert code == 2
    assert "--keep-inputs" in said


def test_without_the_server_installed_only_this_option_is_refused(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    for name in [name for name in sys.modules if name.startswith("dubito_service.") and "calibrate" not in name]:
        monkeypatch.delitem(sys.modules, name)
    assert run(version, "--list")[0] == 0
    code, said = run(version, "--from-observations", "--state", "x")
    assert code == 1
    assert "pip install 'dubito[server]'" in said
