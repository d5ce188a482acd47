"""Temperature of Monte Carlo draws: found where there is one, left alone where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize, special

from calibrations import calibration
from dubito_models.calibration import (
    fit_noise_scale,
    fit_noise_variance,
    fit_temperature,
    negative_log_likelihood,
)
from dubito_models.calibration.calibration import fingerprint
from dubito_models.calibration.class_maps import Temperature
from dubito_models.calibration.target_maps import NoiseScale
from dubito_models.errors import CalibrationMismatch, InvalidArgument
from dubito_models.heads import Decoded
from dubito_models.metrics import mixture_negative_log_likelihood


def draws(temperature: float, rows: int = 2000, count: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make draws whose labels follow mean_s softmax(z_s); the draws are then made too sharp by `temperature`."""
    generator = np.random.default_rng(seed)
    center = 2.0 * generator.normal(size=(1, rows, 4))
    logits = center + 0.5 * generator.normal(size=(count, rows, 4))
    truth = special.softmax(logits, -1).mean(0)
    labels = (truth.cumsum(-1) > generator.random((rows, 1))).argmax(-1)
    return special.log_softmax(logits * temperature, -1), labels


@pytest.mark.parametrize("temperature", [0.5, 1.6, 4.0])
def test_the_temperature_that_spoilt_the_draws_is_found(temperature: float) -> None:
    logs, labels = draws(temperature)
    fit = fit_temperature(logs, labels)
    assert fit.helps
    # The likelihood's own width: a half unit of log-likelihood over all rows, four times over.
    best = negative_log_likelihood(logs, labels, fit.value)
    assert negative_log_likelihood(logs, labels, temperature) - best < 8.0 / len(labels)
    assert abs(np.log(fit.value / temperature)) < 0.15


def test_the_temperature_is_the_optimum_that_a_peer_finds() -> None:
    logs, labels = draws(2.0, rows=300)
    found = optimize.minimize_scalar(
        lambda tau: negative_log_likelihood(logs, labels, tau) + np.log(tau) ** 2 / 600,
        bounds=(0.1, 10),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert fit_temperature(logs, labels).value == pytest.approx(found.x, rel=1e-4)


def test_a_temperature_that_only_fits_noise_is_not_kept() -> None:
    kept = [fit_temperature(*draws(1.0, rows=60, seed=seed)).helps for seed in range(40)]
    assert sum(kept) < 30  # draws are calibrated: cross-validation refuses most of what is fitted


def test_the_likelihood_is_that_of_the_mean_of_probabilities() -> None:
    logs, labels = draws(1.0, rows=5)
    mean = np.exp(logs).mean(0)
    expected = -np.log(mean[np.arange(5), labels]).mean()
    assert negative_log_likelihood(logs, labels, 1.0) == pytest.approx(expected, rel=1e-12)


def test_rows_that_are_all_right_sharpen_the_draws_a_little_and_not_without_end() -> None:
    logs = special.log_softmax(np.tile(np.eye(3)[[0, 1, 2] * 20] * 5.0, (4, 1, 1)), -1)
    fit = fit_temperature(logs, np.array([0, 1, 2] * 20))
    assert np.isfinite([fit.value, fit.nll_before, fit.nll_after]).all()
    assert 0.2 < fit.value < 1


@pytest.mark.parametrize("rows", [1, 9])
def test_too_few_rows_are_refused(rows: int) -> None:
    with pytest.raises(InvalidArgument, match="at least 10 rows"):
        fit_temperature(np.zeros((2, rows, 3)), np.zeros(rows, np.int64))


def noisy(noise: float, rows: int = 1000, count: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make draws (S, N, 2) whose targets are one draw more, plus noise of this variance (the second's 9 times)."""
    generator = np.random.default_rng(seed)
    center = generator.normal(size=(1, rows, 2))
    every = center + generator.normal(size=(count + 1, rows, 2)) * 0.3
    return every[:-1], every[-1] + generator.normal(size=(rows, 2)) * np.sqrt([noise, 9 * noise])


@pytest.mark.parametrize("noise", [0.02, 1.0])
def test_the_noise_that_was_added_is_found(noise: float) -> None:
    """Per target; the estimate's own deviation is about sqrt(2 / rows) = 4.5 %, so 4 of them (and the draws' 30)."""
    means, targets = noisy(noise, count=300)
    found = fit_noise_variance(means, targets)
    np.testing.assert_allclose(found, [noise, 9 * noise], rtol=0.25)


def test_the_noise_is_the_optimum_that_a_grid_finds() -> None:
    means, targets = noisy(0.1, rows=60)
    [found, _] = fit_noise_variance(means, targets)
    squared = ((means[..., 0].mean(0) - targets[:, 0]) ** 2).mean()

    def penalised(variance: float) -> float:
        loss = mixture_negative_log_likelihood(means[..., 0], np.full_like(means[..., 0], variance), targets[:, 0])
        return loss + np.log(variance / squared) ** 2 / 120

    grid = np.geomspace(0.01, 1, 4001)
    assert found == pytest.approx(grid[np.argmin([penalised(value) for value in grid])], rel=2e-3)


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_a_noise_that_is_off_by_a_factor_is_put_right(factor: float) -> None:
    means, targets = noisy(0.5)
    variances = np.broadcast_to(np.array([0.5, 4.5]) / factor, means.shape)
    fit = fit_noise_scale(means, variances, targets)
    assert fit.helps
    assert fit.value == pytest.approx(factor, rel=0.2)  # deviation sqrt(2 / 2000) = 3 %


def test_a_noise_scale_that_only_fits_noise_is_not_kept() -> None:
    kept = []
    for seed in range(40):
        means, targets = noisy(0.5, rows=40, seed=seed)
        kept.append(fit_noise_scale(means, np.broadcast_to([0.5, 4.5], means.shape), targets).helps)
    assert sum(kept) < 30


def test_windows_that_overlap_count_as_one() -> None:
    """Twenty-four windows in each of which one error is seen: five such tell nothing, five hundred do."""
    generator = np.random.default_rng(0)
    for stretches, helps in ((5, False), (500, True)):
        errors = np.repeat(2 * generator.normal(size=(stretches, 1)), 24, 0)  # deviation 2 where 1 is claimed
        means, variances = np.zeros((1, len(errors), 1)), np.ones((1, len(errors), 1))
        fit = fit_noise_scale(means, variances, errors, overlap=24)
        assert fit.helps == helps
        assert (fit.value == 1.0) != helps
        assert fit_noise_scale(means, variances, errors).value != 1.0
    assert fit.value == pytest.approx(4, rel=0.3)  # deviation sqrt(2 / 500) = 6 %


def test_noise_is_refused_where_there_is_none_to_find() -> None:
    means, targets = noisy(0.5, rows=20)
    with pytest.raises(InvalidArgument, match="targets: got no error at all"):
        fit_noise_variance(np.ones((1, 20, 1)), np.ones((20, 1)))
    with pytest.raises(InvalidArgument, match=r"shape \(20, 1\); accepted: shape \(20, 2\)"):
        fit_noise_variance(means, targets[:, :1])
    with pytest.raises(InvalidArgument, match="targets: got NaN"):
        fit_noise_scale(means, np.ones_like(means), np.full_like(targets, np.nan))


def test_a_noise_scale_acts_on_the_variance_alone() -> None:
    decoded = Decoded(mean=torch.randn(4, 3, 1).double(), variance=torch.rand(4, 3, 1).double())
    scale = calibration(map=NoiseScale(3.0))
    scaled = scale.apply(decoded)
    assert scaled.mean is decoded.mean
    assert scaled.variance is not None
    assert decoded.variance is not None
    torch.testing.assert_close(scaled.variance, 3 * decoded.variance)
    assert (scale.method, scale.parameters) == ("noise_scale", {"factor": 3.0})
    assert (calibration().method, calibration().parameters) == ("identity", {})


def test_a_temperature_acts_on_each_draw_and_leaves_its_argmax() -> None:
    logs = torch.log_softmax(torch.randn(6, 5, 3, dtype=torch.float64), -1)
    tempered = calibration(map=Temperature(2.0)).apply(Decoded(log_probabilities=logs)).log_probabilities
    assert tempered is not None
    torch.testing.assert_close(tempered, torch.log_softmax(logs / 2.0, -1))
    assert torch.equal(tempered.argmax(-1), logs.argmax(-1))
    assert calibration().apply(Decoded(log_probabilities=logs)).log_probabilities is logs


def test_draws_are_calibrated_once() -> None:
    once = calibration().apply(Decoded(log_probabilities=torch.zeros(2, 1, 3)))
    with pytest.raises(CalibrationMismatch, match="calibrated already"):
        calibration(map=Temperature(2.0)).apply(once)


def test_a_calibrations_name_is_its_content() -> None:
    assert calibration().id == calibration().id
    assert calibration(map=Temperature(2.1)).id != calibration(map=Temperature(2.0)).id != calibration().id


def test_a_fingerprint_tells_values_shapes_types_and_names_apart() -> None:
    base = np.arange(6, dtype=np.float32)
    variants = [
        {"x": base}, {"y": base}, {"x": base.reshape(2, 3)}, {"x": base.astype(np.float64)}, {"x": base + 1},
        {"x": base, "y": base},
    ]  # fmt: skip
    assert len({fingerprint(variant) for variant in variants}) == len(variants)
    assert fingerprint({"x": base}) == fingerprint({"x": base.copy()})
