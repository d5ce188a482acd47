"""What paths say of rows: the very answers that are served, and scores of the very distributions that are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, stats

from dubito_models.answering import (
    CALIBRATED,
    DRAWN,
    LEVELS,
    PROMISED,
    STANDARD,
    ClassAnswers,
    TargetAnswers,
    ask,
    row_by_row,
)
from dubito_models.calibrating import CalibrationSpec
from dubito_models.calibration.target_maps import DeviationScale, NoiseScale, PitMap, StandardizedResiduals, TargetMap
from dubito_models.data import Split
from dubito_models.metrics import (
    gaussian_negative_log_likelihood,
    mixture_negative_log_likelihood,
    negative_log_likelihood,
)
from dubito_models.package import ModelVersion
from dubito_models.rows import Labelled
from dubito_models.sampling import SamplingSpec
from dubito_models.scoring import score_paths
from judged import houses, labelled, line

Packed = Callable[[str], ModelVersion]


def calibrated(version: ModelVersion, rows: Labelled, served: TargetMap | None) -> ModelVersion:
    """Return the version with a calibration of this map, and conformal scores, in memory alone."""
    fresh = ModelVersion(version.folder, version.manifest, version.engine, version.standard)
    fresh.save_calibration = lambda found: setattr(fresh, "calibration", found)  # type: ignore[method-assign]
    fresh.calibrate(rows.inputs, rows.targets, CalibrationSpec(method="identity"))
    assert fresh.calibration is not None
    fresh.calibration = replace(fresh.calibration, map=served, control_variate=False)
    return fresh


def test_classes_are_answered_as_they_are_served(packed: Packed) -> None:
    """In blocks of rows as all at once: probabilities and uncertainties of both paths."""
    version = packed("mlp")
    rows = labelled(version, 600)
    told: list[int] = []
    answers = ask(version, rows, told.append)
    assert sum(told) == 600
    assert len(told) > 1
    assert list(answers) == [STANDARD, DRAWN]
    standard, drawn = answers[STANDARD], answers[DRAWN]
    assert isinstance(standard, ClassAnswers)
    assert isinstance(drawn, ClassAnswers)
    served = version.predict(rows.inputs).answer
    np.testing.assert_allclose(drawn.probabilities, served.probabilities, atol=1e-6)
    np.testing.assert_allclose(drawn.doubt, served.predictive_entropy, atol=1e-5)
    np.testing.assert_allclose(drawn.epistemic, served.mutual_information, atol=1e-5)
    np.testing.assert_allclose(standard.probabilities, version.evaluate(rows.inputs).probabilities, atol=1e-6)
    np.testing.assert_array_equal(standard.doubt, 1 - standard.probabilities.max(-1))
    assert standard.epistemic is None


def test_a_regression_is_answered_as_it_is_served(tmp_path: Path) -> None:
    """Means, variances, central intervals, and the likelihood that the metrics tell of every draw."""
    version, rows = houses(tmp_path)
    answers = ask(version, rows)
    standard, drawn = answers[STANDARD], answers[DRAWN]
    assert isinstance(standard, TargetAnswers)
    assert isinstance(drawn, TargetAnswers)
    for place, level in enumerate(LEVELS):
        served = version.predict(rows.inputs, SamplingSpec(interval_level=level)).answer
        np.testing.assert_allclose(drawn.intervals[..., place], served.interval, rtol=1e-9)
    decoded, plain = version.engine.draws(version.read_inputs(rows.inputs)), version.evaluate(rows.inputs)
    expected = mixture_negative_log_likelihood(decoded.mean.numpy(), decoded.variance.numpy(), rows.targets)
    assert drawn.negative_log_likelihood.mean() == pytest.approx(expected)
    expected = gaussian_negative_log_likelihood(plain.mean, plain.aleatoric_variance, rows.targets)
    assert standard.negative_log_likelihood.mean() == pytest.approx(expected)
    told = score_paths(version, Split(rows.inputs["inputs"], rows.targets))[DRAWN]
    low, high = np.moveaxis(drawn.intervals[..., LEVELS.index(told.interval_level)], -1, 0)
    assert told.interval_coverage == ((low <= rows.targets) & (rows.targets <= high)).mean()
    np.testing.assert_allclose(drawn.doubt, np.sqrt(served.total_variance[:, 0]))
    np.testing.assert_allclose(drawn.epistemic, np.sqrt(served.epistemic_variance[:, 0]))
    assert (ask(version, rows, crps=False)[DRAWN].crps, standard.epistemic) == (None, None)


def test_the_score_of_a_row_is_the_integral_that_defines_it(tmp_path: Path) -> None:
    """CRPS of either path by quadrature of (F(y) - [y >= truth])^2, of a version that predicts its noise."""
    version, rows = houses(tmp_path)
    few = Labelled({name: array[:3] for name, array in rows.inputs.items()}, rows.targets[:3])
    answers = ask(version, few)
    decoded = version.engine.draws(version.read_inputs(few.inputs))
    means, deviations = decoded.mean.numpy()[..., 0], np.sqrt(decoded.variance.numpy()[..., 0])
    standard = version.evaluate(few.inputs)
    for row, truth in enumerate(few.targets[:, 0]):
        for path, mu, sigma in (
            (STANDARD, standard.mean[row], np.sqrt(standard.aleatoric_variance[row])),
            (DRAWN, means[:, row], deviations[:, row]),
        ):

            def off(y: float, mu: np.ndarray = mu, sigma: np.ndarray = sigma, truth: float = truth) -> float:
                return (stats.norm.cdf(y, mu, sigma).mean() - (y >= truth)) ** 2

            low, high = min(truth, (mu - 9 * sigma).min()), max(truth, (mu + 9 * sigma).max())
            expected = integrate.quad(off, low, truth, limit=300)[0] + integrate.quad(off, truth, high, limit=300)[0]
            assert answers[path].crps[row] == pytest.approx(expected, rel=1e-6)
            assert answers[path].pit[row, 0] == pytest.approx(stats.norm.cdf(truth, mu, sigma).mean())


MAPS: tuple[TargetMap, ...] = (
    NoiseScale(1.7),
    DeviationScale((1.3,), "variance_scale"),
    DeviationScale((0.8,), "crps_scale"),
    PitMap(((0.0, 0.2, 0.7, 1.0),), ((0.0, 0.3, 0.6, 1.0),)),
    StandardizedResiduals((tuple(np.linspace(-2.1, 1.9, 400).tolist()),)),
)


@pytest.mark.parametrize("served", MAPS, ids=[served.kind for served in MAPS])
def test_what_is_scored_is_what_is_served(tmp_path: Path, served: TargetMap) -> None:
    """Where the truth is the served quantile at a level, its PIT is that level, whatever map calibrates.

    Exactly where the map leaves a mixture, else to the spacing of the quantiles that stand for the distribution.
    """
    version, rows = houses(tmp_path)
    version = calibrated(version, rows, served)
    exact = isinstance(served, NoiseScale | DeviationScale)
    for level in (0.1, 0.35, 0.8):
        truth = version.predict(rows.inputs, SamplingSpec(quantiles=(level,))).answer.quantiles[..., 0]
        found = ask(version, Labelled(rows.inputs, truth), crps=False)[CALIBRATED]
        np.testing.assert_allclose(found.pit, level, atol=1e-6 if exact else 0.004)
        assert (found.negative_log_likelihood is not None) == exact
    whole = ask(version, rows)[CALIBRATED]
    assert np.isfinite(whole.crps).all()
    covered = version.predict(rows.inputs, SamplingSpec(interval_level=LEVELS[2])).answer.interval
    np.testing.assert_allclose(whole.intervals[..., 2], covered, rtol=1e-9)


def test_a_stretched_mixture_is_likely_as_its_quantiles_say(tmp_path: Path) -> None:
    """The density is the slope of the distribution function: by a difference of PITs about the truth."""
    version, rows = houses(tmp_path)
    version = calibrated(version, rows, DeviationScale((1.6,), "variance_scale"))
    step = 1e-3 * np.abs(rows.targets).mean()
    below, above = (
        ask(version, Labelled(rows.inputs, rows.targets + sign * step), crps=False)[CALIBRATED].pit for sign in (-1, 1)
    )
    density = (above - below)[:, 0] / (2 * step)
    log_loss = ask(version, rows, crps=False)[CALIBRATED].negative_log_likelihood
    near = density > 1e-9
    np.testing.assert_allclose(-np.log(density[near]), log_loss[near], rtol=1e-3)


def test_sets_and_intervals_are_those_of_the_calibration(packed: Packed, tmp_path: Path) -> None:
    """Also where no map helps; none without a calibration."""
    version, rows = houses(tmp_path)
    assert ask(version, rows, crps=False)[DRAWN].promised is None
    fitted = calibrated(version, rows, None)
    answers = ask(fitted, rows, crps=False)
    assert list(answers) == [STANDARD, DRAWN]
    expected = fitted.predict(rows.inputs, SamplingSpec(coverage=PROMISED)).answer.prediction_interval
    np.testing.assert_allclose(answers[DRAWN].promised, expected)
    classes = packed("mlp")
    fitted = calibrated(classes, labelled(classes, 60), None)
    answers = ask(fitted, labelled(classes, 30, seed=1))
    assert answers[DRAWN].promised.shape == (30, 4)
    assert answers[DRAWN].promised.dtype == np.bool_


def test_a_path_without_noise_says_only_what_it_knows(tmp_path: Path) -> None:
    """A point is scored by its absolute error; draws without noise by themselves, with intervals but no density."""
    version, rows = line(tmp_path)
    answers = ask(version, rows)
    standard, drawn = answers[STANDARD], answers[DRAWN]
    np.testing.assert_allclose(standard.crps, np.abs(standard.mean - rows.targets).mean(-1))
    assert (standard.intervals, standard.pit, standard.negative_log_likelihood) == (None, None, None)
    assert drawn.negative_log_likelihood is None
    assert drawn.intervals.shape == (60, 2, 2, len(LEVELS))
    assert ((drawn.pit >= 0) & (drawn.pit <= 1)).all()
    np.testing.assert_array_equal(standard.doubt, 0)


def test_scores_row_by_row_have_the_score_of_all_as_their_mean() -> None:
    random = np.random.default_rng(0)
    p, y = random.dirichlet(np.ones(4), 50), random.integers(4, size=50)
    each = row_by_row(lambda i: negative_log_likelihood(p[i], y[i]), 50)
    assert each.mean() == pytest.approx(negative_log_likelihood(p, y))
