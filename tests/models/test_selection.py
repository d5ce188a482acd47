"""The choice of a rate and of the noise: by the likelihood of validation rows, through the path that will serve."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dubito_models.calibrating import CalibrationSpec
from dubito_models.calibration.target_maps import NoiseScale
from dubito_models.data import Splits, diabetes, digits
from dubito_models.errors import InvalidArgument
from dubito_models.heads import Head
from dubito_models.metrics import mixture_negative_log_likelihood
from dubito_models.package import ModelVersion
from dubito_models.packing import pack
from dubito_models.predictive import Regression
from dubito_models.preparing import build_network, choose_head, load_splits
from dubito_models.recipes import Recipe
from dubito_models.scoring import score_paths
from dubito_models.selection import Candidate, Trying, draw, train_candidates
from dubito_models.training import Epoch, Started


def recipe(**changes: Any) -> Recipe:
    tables = {
        "name": "tiny", "epochs": 8, "patience": 8, "batch_size": 32, "learning_rate": 0.01,
        "data": {"kind": "diabetes"}, "network": {"kind": "mlp", "widths": (16,), "dropout": (0.2,)},
    }  # fmt: skip
    return Recipe.model_validate({**tables, **changes})


@pytest.fixture(scope="module")
def data() -> Splits:
    return diabetes(0)


@pytest.fixture(scope="module")
def chosen(data: Splits, tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    [candidate] = train_candidates(recipe(), data, device="cpu", run_directory=tmp_path_factory.mktemp("run"))
    return candidate


@pytest.fixture(scope="module")
def version(chosen: Candidate, data: Splits, tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    found = pack(
        chosen.trained.network, torch.tensor(data.train.inputs[:2]), repository=tmp_path_factory.mktemp("repository"),
        name="tiny", task="regression", head="mean", noise_variance=chosen.noise_variance,
    )  # fmt: skip
    found.calibrate(data.calibration.inputs, data.calibration.targets)
    return found


def test_rates_are_tried_in_turn_and_the_most_likely_comes_first(data: Splits, tmp_path: Path) -> None:
    """A rate of 0.9 on 16 units is worse than one of 0.1; each candidate's run has a folder of its own."""
    events: list[Trying | Started | Epoch] = []
    several = recipe(selection={"rates": (0.9, 0.1)}, epochs=40, patience=40)
    found = train_candidates(several, data, device="cpu", run_directory=tmp_path, progress=events.append)
    assert [candidate.rate for candidate in found] == [0.1, 0.9]
    losses = [candidate.validation_nll for candidate in found]
    assert losses == sorted(losses, key=lambda loss: loss or math.inf)
    assert [event for event in events if isinstance(event, Trying)] == [Trying(0.9, 1, 2), Trying(0.1, 2, 2)]
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["rate-0.1", "rate-0.9"]
    assert found[0].trained.recipe.network.rates[0] == 0.1


def test_the_validation_loss_is_that_of_the_draws_under_the_fitted_noise(chosen: Candidate, data: Splits) -> None:
    means = draw(chosen.trained.network, data, Head.MEAN).mean
    assert means is not None
    assert chosen.noise_variance is not None
    variances = np.broadcast_to(chosen.noise_variance, means.shape)
    targets = data.validation.targets
    assert chosen.validation_nll == pytest.approx(mixture_negative_log_likelihood(means, variances, targets))
    # It is near the squared error of the mean, at which its prior is centred.
    squared = ((means.mean(0).numpy() - targets) ** 2).mean()
    assert 0.5 < chosen.noise_variance[0] / squared < 2


def test_a_classification_selects_by_the_likelihood_of_the_mean(tmp_path: Path) -> None:
    several = recipe(data={"kind": "digits"}, selection={"rates": (0.2, 0.5)}, epochs=2)
    found = train_candidates(several, digits(0), device="cpu", run_directory=tmp_path)
    assert [candidate.noise_variance for candidate in found] == [None, None]
    assert {candidate.rate for candidate in found} == {0.2, 0.5}
    assert found[0].validation_nll <= found[1].validation_nll


def test_nothing_is_drawn_where_nothing_is_chosen(tmp_path: Path) -> None:
    [candidate] = train_candidates(
        recipe(data={"kind": "digits"}, epochs=1), digits(0), device="cpu", run_directory=tmp_path
    )
    assert (candidate.rate, candidate.noise_variance, candidate.validation_nll) == (None, None, None)


def test_a_regression_is_scored_on_all_paths(version: ModelVersion, data: Splits) -> None:
    """Errors in the targets' own unit; a calibration moves what is said of the noise, not the mean."""
    scores = score_paths(version, data.test)
    assert list(scores) == ["standard", "Monte Carlo", "Monte Carlo, calibrated"]
    errors = {score.root_mean_squared_error for score in scores.values()}
    assert 30 < min(errors) < max(errors) < 77  # 77 is the deviation of the target
    drawn, calibrated = (scores[path].root_mean_squared_error for path in ("Monte Carlo", "Monte Carlo, calibrated"))
    assert drawn == pytest.approx(calibrated, rel=1e-6)


def test_the_noise_of_a_calibration_is_served(version: ModelVersion, data: Splits) -> None:
    """Total variance is the spread of the draws and the noise times its factor, in answers and in their intervals."""
    assert version.calibration is not None
    assert version.manifest.noise_variance is not None
    scaled = replace(version.calibration, map=NoiseScale(3.0))
    inputs = version.read_inputs(data.test.inputs)
    answer, plain = (version.engine.predict(inputs, None, each).answer for each in (scaled, None))
    assert isinstance(answer, Regression)
    assert isinstance(plain, Regression)
    np.testing.assert_allclose(answer.aleatoric_variance, 3.0 * version.manifest.noise_variance[0])
    np.testing.assert_allclose(answer.epistemic_variance, plain.epistemic_variance)
    assert answer.interval is not None
    assert plain.interval is not None
    assert (np.diff(answer.interval) > np.diff(plain.interval)).all()


def test_a_version_without_noise_is_calibrated_by_its_draws(chosen: Candidate, data: Splits, tmp_path: Path) -> None:
    bare = pack(
        chosen.trained.network, torch.tensor(data.train.inputs[:2]), repository=tmp_path, name="bare",
        task="regression", head="mean",
    )  # fmt: skip
    scores = score_paths(bare, data.test)
    assert scores["standard"].interval_coverage is None
    assert scores["Monte Carlo"].negative_log_likelihood is None
    before = scores["Monte Carlo"].interval_coverage
    assert before is not None
    found = bare.calibrate(data.calibration.inputs, data.calibration.targets, CalibrationSpec(method="variance_scale"))
    after = score_paths(bare, data.test)["Monte Carlo, calibrated"]
    assert found.method == "variance_scale"
    assert after.interval_coverage is not None
    assert before + 0.3 < after.interval_coverage


def test_a_head_must_fit_the_data() -> None:
    with pytest.raises(InvalidArgument, match=r"recipe\.head: got logits; accepted: for regression: mean, mean_and"):
        choose_head(recipe(head="logits"), load_splits(recipe()).task)
    cnn = {"kind": "cnn", "widths": (4,), "channel_dropout": (0.1,), "head_dropout": 0.1}
    images, data = recipe(network=cnn), load_splits(recipe())
    with pytest.raises(InvalidArgument, match=r"recipe\.network\.kind: got 'cnn' for rows of shape \(10,\)"):
        build_network(images, data)


def test_data_that_need_a_path_say_so() -> None:
    with pytest.raises(InvalidArgument, match=r"recipe\.data\.path: got nothing; accepted: a value; --data FOLDER"):
        load_splits(recipe(data={"kind": "uci"}))
