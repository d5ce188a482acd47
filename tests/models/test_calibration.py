"""Temperature of Monte Carlo draws: found where there is one, left alone where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize, special

from dubito_models.calibration import Calibration, fit_temperature, negative_log_likelihood
from dubito_models.calibration.calibration import fingerprint
from dubito_models.errors import InvalidArgument
from dubito_models.heads import Decoded


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
    best = negative_log_likelihood(logs, labels, fit.temperature)
    assert negative_log_likelihood(logs, labels, temperature) - best < 8.0 / len(labels)
    assert abs(np.log(fit.temperature / temperature)) < 0.15


def test_the_temperature_is_the_optimum_that_a_peer_finds() -> None:
    logs, labels = draws(2.0, rows=300)
    found = optimize.minimize_scalar(
        lambda tau: negative_log_likelihood(logs, labels, tau) + np.log(tau) ** 2 / 600,
        bounds=(0.1, 10),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert fit_temperature(logs, labels).temperature == pytest.approx(found.x, rel=1e-4)


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
    assert np.isfinite([fit.temperature, fit.nll_before, fit.nll_after]).all()
    assert 0.2 < fit.temperature < 1


@pytest.mark.parametrize("rows", [1, 9])
def test_too_few_rows_are_refused(rows: int) -> None:
    with pytest.raises(InvalidArgument, match="at least 10 rows"):
        fit_temperature(np.zeros((2, rows, 3)), np.zeros(rows, np.int64))


def calibration(**changes: object) -> Calibration:
    values: dict[str, object] = {
        "method": "temperature", "temperature": 2.0, "draws": 40, "seed": 0, "design": "balanced", "group_size": 10,
        "program": "ab", "data_fingerprint": "cd", "rows": 100, "nll_before": 0.2, "nll_after": 0.1,
    }  # fmt: skip
    return Calibration(**(values | changes))  # type: ignore[arg-type]


def test_a_temperature_acts_on_each_draw_and_leaves_its_argmax() -> None:
    logs = torch.log_softmax(torch.randn(6, 5, 3, dtype=torch.float64), -1)
    tempered = calibration().apply(Decoded(log_probabilities=logs)).log_probabilities
    assert tempered is not None
    torch.testing.assert_close(tempered, torch.log_softmax(logs / 2.0, -1))
    assert torch.equal(tempered.argmax(-1), logs.argmax(-1))
    identity = calibration(method="identity").apply(Decoded(log_probabilities=logs))
    assert identity.log_probabilities is logs


def test_a_calibrations_name_is_its_content() -> None:
    assert calibration().id == calibration().id
    assert calibration(temperature=2.1).id != calibration().id


def test_a_fingerprint_tells_values_shapes_types_and_names_apart() -> None:
    base = np.arange(6, dtype=np.float32)
    variants = [
        {"x": base}, {"y": base}, {"x": base.reshape(2, 3)}, {"x": base.astype(np.float64)}, {"x": base + 1},
        {"x": base, "y": base},
    ]  # fmt: skip
    assert len({fingerprint(variant) for variant in variants}) == len(variants)
    assert fingerprint({"x": base}) == fingerprint({"x": base.copy()})
