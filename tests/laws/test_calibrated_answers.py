"""Calibrated answers: what was calibrated is what is served, and anything else says so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from calibrations import calibration
from dubito_models.calibrating import Abstaining, CalibrationSpec, predict_rows
from dubito_models.calibration import Calibration, Grouping
from dubito_models.calibration.class_maps import Beta, LogMeanTemperature
from dubito_models.calibration.target_maps import DeviationScale, PitMap
from dubito_models.columns import Column
from dubito_models.errors import InvalidArgument
from dubito_models.package import ModelVersion, load_version
from dubito_models.packing import pack
from dubito_models.predictive import Classification, Predictive, Regression, StopReason, Validity
from dubito_models.sampling import Estimator, SamplingSpec
from dubito_models.stopping import ALL_DRAWS, Stopping, StoppingRule
from dubito_models.thinning import Design, MaskScope

Packed = Callable[[str], ModelVersion]
CLASSES, WIDTH = 4, 6


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def labels_of(version: ModelVersion, inputs: np.ndarray, seed: int = 1) -> np.ndarray:
    """Draw labels from what the network itself says, made twice as sharp."""
    p = version.evaluate(inputs).probabilities
    assert p is not None
    sharp = p**2 / (p**2).sum(-1, keepdims=True)
    return (sharp.cumsum(-1) > np.random.default_rng(seed).random((len(p), 1))).argmax(-1)


@pytest.fixture
def version(packed: Packed, tmp_path: Path) -> ModelVersion:
    return load_version(Path(shutil.copytree(packed("mlp").folder, tmp_path / "mlp" / "1")))


@pytest.fixture
def noisy(tmp_path: Path) -> ModelVersion:
    """Pack a regression of two targets that predicts its noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(WIDTH, 32), nn.Tanh(), nn.Dropout(0.3), nn.Linear(32, 4)).eval()
    where = {"repository": tmp_path, "name": "noisy"}
    return pack(network, torch.from_numpy(rows(4)), task="regression", head="mean_and_log_variance", **where)


def classes(found: Predictive) -> Classification:
    assert isinstance(found.answer, Classification)
    return found.answer


def calibrated(version: ModelVersion, **asked: object) -> Calibration:
    x = rows(300, 5)
    return version.calibrate(x, labels_of(version, x), CalibrationSpec(**asked))


# --- What is served by default is what was calibrated ---


DECISION = Stopping(StoppingRule.DECISION)


def test_a_calibrated_rule_and_its_draws_are_the_default_and_exact(version: ModelVersion) -> None:
    x = rows(60, 7)
    calibrated(version, sampling=SamplingSpec(max_draws=160, min_draws=20, stopping=DECISION))
    answer = version.predict(x, SamplingSpec(coverage=0.9))
    assert answer.calibration_validity is Validity.EXACT
    assert set(answer.stop_reason) == {StopReason.DECISION, StopReason.MAX_DRAWS}
    assert (answer.draws.min(), answer.draws.max()) == (20, 160)
    others = (
        SamplingSpec(stopping=ALL_DRAWS), SamplingSpec(max_draws=80), SamplingSpec(min_draws=40), SamplingSpec(seed=1),
        SamplingSpec(design=Design.INDEPENDENT), SamplingSpec(scope=MaskScope.ROW),
        SamplingSpec(stopping=replace(DECISION, level=0.9)),
    )  # fmt: skip
    for other in others:
        assert version.predict(x, other).calibration_validity is Validity.APPROXIMATE


def test_a_rule_that_was_not_asked_for_stands_back_where_rows_have_to_move_together(version: ModelVersion) -> None:
    calibrated(version, sampling=SamplingSpec(max_draws=80, stopping=DECISION))
    answer = version.predict(rows(5), SamplingSpec(joint=True))
    assert answer.joint_covariance is not None
    assert set(answer.draws) == {40}


def test_the_set_of_a_row_is_that_of_its_probabilities_and_neighbours_do_not_matter(version: ModelVersion) -> None:
    found = calibrated(version, sampling=SamplingSpec(max_draws=80, stopping=DECISION), conformal="aps")
    x = rows(30, 9)
    together = classes(version.predict(x, SamplingSpec(coverage=0.8)))
    apart = [classes(version.predict(row[None], SamplingSpec(coverage=0.8))).prediction_set for row in x]
    np.testing.assert_array_equal(together.prediction_set, np.concatenate([one for one in apart if one is not None]))
    expected = found.conformal[-1].conformal.prediction_set(together.probabilities, 0.8)
    np.testing.assert_array_equal(together.prediction_set, expected)
    assert classes(version.predict(x)).prediction_set is None


def test_served_sets_cover_as_often_as_asked(version: ModelVersion) -> None:
    """300 calibration rows leave 75 scores, 3,000 rows judge: at 5 standard errors of both, one alarm in millions."""
    calibrated(version)
    x = rows(3000, 21)
    truth = labels_of(version, x, seed=22)
    for coverage in (0.5, 0.8, 0.95):
        answer = version.predict(x, SamplingSpec(coverage=coverage)).answer
        assert isinstance(answer, Classification)
        assert answer.prediction_set is not None
        covered = answer.prediction_set[np.arange(len(x)), truth].mean()
        error = np.sqrt(coverage * (1 - coverage) * (1 / 3000 + 1 / 75))
        assert coverage - 5 * error < covered < coverage + 1 / 76 + 5 * error


# --- Cut short, another table is used, and said ---


def test_an_answer_that_was_cut_short_uses_the_scores_of_as_many_groups(version: ModelVersion) -> None:
    found = calibrated(version, sampling=SamplingSpec(max_draws=80))
    g, x = found.group_size, rows(40, 3)
    assert [entry.groups for entry in found.conformal] == [1, 2, 4, 8]
    for draws, groups in ((g, 1), (2 * g, 2), (3 * g, 2), (5 * g, 4), (8 * g, 8), (20 * g, 8)):
        given = version.predict(x, SamplingSpec(max_draws=draws, coverage=0.9))
        [entry] = [entry for entry in found.conformal if entry.groups == groups]
        expected = entry.conformal.prediction_set(classes(given).probabilities, 0.9)
        np.testing.assert_array_equal(classes(given).prediction_set, expected)
        assert (given.calibration_validity is Validity.EXACT) == (draws == 8 * g)
    inputs = version.read_inputs(x)
    plan = version.engine.plan(SamplingSpec(coverage=0.9), calibration=found)
    [run] = version.engine.start([(inputs, plan)], found)
    [run] = version.engine.advance([run], 2 * g)
    [late] = version.engine.finish([run], StopReason.DEADLINE)
    assert late.calibration_validity is Validity.APPROXIMATE
    fewer = version.predict(x, SamplingSpec(max_draws=2 * g, coverage=0.9))
    np.testing.assert_array_equal(classes(late).prediction_set, classes(fewer).prediction_set)


# --- Maps ---


def test_a_map_of_the_mean_leaves_what_draws_say_of_each_other(version: ModelVersion) -> None:
    x = version.read_inputs(rows(20))
    plain = classes(version.engine.predict(x))
    for mean_map in (LogMeanTemperature(2.0), Beta((0.5,) * CLASSES, (1.0,) * CLASSES, (0.0, 1.0, 0.0, -1.0))):
        mapped = classes(version.engine.predict(x, None, calibration(map=mean_map)))
        np.testing.assert_allclose(mapped.probabilities, mean_map.apply_mean(plain.probabilities))
        np.testing.assert_array_equal(mapped.label, mapped.probabilities.argmax(-1))
        np.testing.assert_array_equal(mapped.mutual_information, plain.mutual_information)
        np.testing.assert_array_equal(mapped.variation_ratio, plain.variation_ratio)
        assert (mapped.predictive_entropy != plain.predictive_entropy).all()


def test_a_stretched_regression_has_its_quantiles_and_variances_stretched(noisy: ModelVersion) -> None:
    version = noisy
    x = version.read_inputs(rows(9))
    plain = version.engine.predict(x, SamplingSpec(quantiles=(0.1, 0.7))).answer
    assert isinstance(plain, Regression)
    stretch = DeviationScale((2.0,) * plain.mean.shape[1], "crps_scale")
    found = version.engine.predict(x, SamplingSpec(quantiles=(0.1, 0.7)), calibration(map=stretch)).answer
    assert isinstance(found, Regression)
    np.testing.assert_array_equal(found.mean, plain.mean)
    for name in ("total_variance", "epistemic_variance", "aleatoric_variance"):
        np.testing.assert_allclose(getattr(found, name), 4.0 * getattr(plain, name))
    for name in ("interval", "quantiles"):
        middle = plain.mean[..., None]
        np.testing.assert_allclose(getattr(found, name) - middle, 2.0 * (getattr(plain, name) - middle), rtol=1e-6)
    turned = PitMap(((0.0, 0.2, 1.0),) * plain.mean.shape[1], ((0.0, 0.1, 1.0),) * plain.mean.shape[1])
    levels = version.engine.predict(x, SamplingSpec(quantiles=(0.1,)), calibration(map=turned)).answer
    assert isinstance(levels, Regression)
    expected = version.engine.predict(x, SamplingSpec(quantiles=(0.2,))).answer
    assert isinstance(expected, Regression)
    np.testing.assert_allclose(levels.quantiles, expected.quantiles, rtol=1e-6)


@pytest.mark.parametrize("method", ["normalized", "absolute", "cqr"])
def test_served_intervals_cover_as_often_as_asked(noisy: ModelVersion, method: str) -> None:
    """50 scores, 1,500 rows judge: at 5 standard errors of both, one false alarm in millions."""
    chance = np.random.default_rng(0)

    def targets(x: np.ndarray) -> np.ndarray:
        mean = noisy.evaluate(x).mean
        assert mean is not None
        return mean + chance.normal(size=mean.shape) * (0.2 + np.abs(x[:, :1]))

    x = rows(200, 1)
    noisy.calibrate(x, targets(x), CalibrationSpec(conformal=method))
    judged = rows(1500, 2)
    y = targets(judged)
    for coverage in (0.5, 0.9):
        answer = noisy.predict(judged, SamplingSpec(coverage=coverage)).answer
        assert isinstance(answer, Regression)
        assert answer.prediction_interval is not None
        low, high = np.moveaxis(answer.prediction_interval, -1, 0)
        error = np.sqrt(coverage * (1 - coverage) * (1 / 1500 + 1 / 50))
        assert np.abs(((low <= y) & (y <= high)).mean(0) - coverage).max() < 5 * error + 1 / 51


# --- Groups, and abstaining ---


def test_a_group_is_a_value_of_a_tables_column(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)).eval()
    columns = (Column("site", "category", ("a", "b"), False), Column("x", "number"), Column("y", "number"))
    x = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    x[:, 0] = np.arange(400) % 2 + 1
    version = pack(
        network, torch.from_numpy(x[:4]), repository=tmp_path, name="m", task="classification", head="logits",
        columns={"input": columns},
    )  # fmt: skip
    hard = (x[:, 0] == 2) & (np.random.default_rng(1).random(400) < 0.5)
    first = version.evaluate(x).label
    assert first is not None
    labels = np.where(hard, (first + 1) % 3, first)
    spec = CalibrationSpec(condition="group", grouping=Grouping("input", 0, "site"), method="identity")
    found = version.calibrate(x, labels, spec)
    assert [group.key for group in found.conformal[-1].conformal.groups] == [None, 1, 2]
    answer = version.predict(x, SamplingSpec(coverage=0.8)).answer
    assert isinstance(answer, Classification)
    assert answer.prediction_set is not None
    covered = answer.prediction_set[np.arange(400), labels]
    assert min(covered[x[:, 0] == 1].mean(), covered[x[:, 0] == 2].mean()) >= 0.8  # the very rows it was fitted to
    sizes = answer.prediction_set.sum(-1)
    assert sizes[x[:, 0] == 1].mean() < sizes[x[:, 0] == 2].mean()
    expected = found.conformal[-1].conformal.prediction_set(answer.probabilities, 0.8, x[:, 0].astype(np.int64))
    np.testing.assert_array_equal(answer.prediction_set, expected)


def test_abstaining_is_by_the_threshold_and_keeps_its_promise_on_new_rows(version: ModelVersion) -> None:
    """Threshold for 40 % risk at 95 %: on 3,000 new rows at most .4, and 4 standard errors."""
    x = rows(1000, 5)
    truth = np.where(np.random.default_rng(0).random(1000) < 0.8, classes(version.predict(x)).label, 0)
    found = version.calibrate(x, truth, CalibrationSpec(abstaining=Abstaining(0.4, "variation_ratio")))
    assert found.selective is not None
    assert found.selective.accepted > 0
    new = rows(3000, 6)
    answer = version.predict(new)
    assert answer.abstain is not None
    ratio = classes(answer).variation_ratio
    assert ratio is not None
    np.testing.assert_array_equal(answer.abstain, ratio > found.selective.threshold)


# --- What is refused ---


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"method": "noise_scale"}, "method"),
        ({"conformal": "cqr"}, "conformal"),
        ({"map_share": 1.5}, "map_share"),
        ({"condition": "group"}, "grouping"),
        ({"abstaining": Abstaining(0.0)}, "risk"),
        ({"abstaining": Abstaining(0.1, "total_deviation")}, "quantity"),
        ({"abstaining": Abstaining(0.1, error=2.0)}, "error"),
        ({"sampling": SamplingSpec(estimator=Estimator.LINEARIZED)}, "estimator"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(version: ModelVersion, asked: dict[str, object], field: str) -> None:
    if field == "estimator":
        version.engine.refiner._expansion = None
    with pytest.raises(InvalidArgument, match=field):
        calibrated(version, **asked)
    assert version.calibration is None


def test_many_rows_are_answered_in_blocks_as_at_once(version: ModelVersion) -> None:
    inputs = version.read_inputs(rows(2500))
    blocks = predict_rows(version.engine, inputs, SamplingSpec(), None)
    whole = version.engine.predict(inputs)
    np.testing.assert_allclose(classes(blocks).probabilities, classes(whole).probabilities, rtol=0, atol=1e-6)


def test_calibrations_can_be_listed_and_switched_back(version: ModelVersion) -> None:
    one, other = calibrated(version), calibrated(version, conformal="aps")
    assert [each.id for each in version.calibrations()] == [one.id, other.id]
    version.use_calibration(one.id)
    assert load_version(version.folder).calibration == version.calibration == one
    elsewhere = load_version(version.folder)
    version.use_calibration(None)
    assert elsewhere.refresh_calibration()
    assert elsewhere.calibration is None
    assert not elsewhere.refresh_calibration()
    with pytest.raises(InvalidArgument, match=f"calibration: got f00; accepted: {one.id}, {other.id}"):
        version.use_calibration("f00")
