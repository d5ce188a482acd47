"""Regressions whose calibration found that control variates pay: the same answer, its variance far steadier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dubito_models.calibrating import CalibrationSpec
from dubito_models.engine import wants
from dubito_models.package import ModelVersion, load_version
from dubito_models.packing import pack
from dubito_models.predictive import Regression, Validity
from dubito_models.sampling import SamplingSpec
from dubito_models.stopping import Stopping, StoppingRule
from dubito_models.thinning import Design, MaskScope

KINDS: Mapping[str, Mapping[str, object]] = {"plain": {"fan_out": 1}, "fan": {"fan_out": 4}, "integrated": {}}


class Net(nn.Module):
    """Wide and smooth: nearly linear in its masks."""

    def __init__(self, outputs: int = 1, rate: float = 0.1) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 64), nn.Linear(64, 64), nn.Linear(64, outputs)
        self.drop = nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(torch.tanh(self.first(x)))
        return self.last(self.drop(torch.tanh(self.second(hidden))))


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


Make = Callable[[str], ModelVersion]


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Versions of one network, each calibrated on the same rows."""
    folder = tmp_path_factory.mktemp("repository")
    found: dict[str, ModelVersion] = {}

    def get(kind: str) -> ModelVersion:
        if kind not in found:
            with torch.random.fork_rng():
                torch.manual_seed(2)
                network = Net().eval()
            version = pack(
                network, rows(8), repository=folder, name=kind, task="regression", head="mean", noise_variance=(0.01,),
                **KINDS[kind],
            )  # fmt: skip
            x = rows(150, 1)
            noise = 0.1 * torch.randn(150, 1, generator=torch.Generator().manual_seed(3))
            with torch.no_grad():
                plain = CalibrationSpec(method="identity")  # a map would stretch the variances that are compared
                version.calibrate(x.numpy(), (network(x) + noise).numpy(), plain)
            found[kind] = version
        return found[kind]

    return get


def answer(version: ModelVersion, x: Tensor, control: bool = True, **asked: object) -> Regression:
    assert version.calibration is not None
    calibration = replace(version.calibration, control_variate=control)
    found = version.engine.predict({"x": x}, SamplingSpec(**asked), calibration).answer
    assert isinstance(found, Regression)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_calibration_finds_that_they_pay_and_writes_it_down(calibrated: Make, kind: str) -> None:
    version = calibrated(kind)
    assert version.calibration is not None
    assert version.calibration.control_variate
    assert load_version(version.folder).calibration == version.calibration
    found = version.predict(rows(3).numpy())
    assert found.calibration_validity is Validity.EXACT


def test_where_they_do_not_pay_they_stay_off(tmp_path: Path) -> None:
    class Rough(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(3, 16), nn.Linear(16, 16), nn.Linear(16, 1)
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(4 * self.second(self.drop(torch.relu(self.first(x)))))
            return torch.sin(4 * self.third(self.drop(hidden)))

    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = Rough().eval()
    options = {"task": "regression", "head": "mean", "noise_variance": (0.01,)}
    version = pack(network, rows(8), repository=tmp_path, name="rough", **options)
    x = rows(60, 1)
    assert not version.calibrate(x.numpy(), x[:, :1].numpy()).control_variate


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("design", [Design.BALANCED, Design.INDEPENDENT])
def test_the_variance_is_unbiased_and_steadier(calibrated: Make, kind: str, design: Design) -> None:
    """150 seeds, 4 rows: |z| < 4.5, 48 numbers in all; noise falls to less than half (an F of 2 has p = 2e-5)."""
    version, x = calibrated(kind), rows(4, 5)
    truth = answer(calibrated("plain"), x, False, max_draws=100_000, seed=10**6, design=Design.INDEPENDENT)
    draws = 4 * version.manifest.group_size
    asked = [{"max_draws": draws, "seed": seed, "design": design} for seed in range(150)]
    with_them = [answer(version, x, True, **each) for each in asked]
    without = [answer(version, x, False, **each) for each in asked]
    for name, error in (
        ("mean", np.sqrt(truth.epistemic_variance / 1e5)),
        ("epistemic_variance", truth.epistemic_variance * (3 / 1e5) ** 0.5),
    ):
        values = np.stack([getattr(each, name) for each in with_them])
        noise = np.hypot(values.std(0, ddof=1) / len(asked) ** 0.5, error)
        assert (np.abs(values.mean(0) - getattr(truth, name)) / noise).max() < 4.5, name
    steady, usual = (np.var([each.epistemic_variance for each in some], 0).mean() for some in (with_them, without))
    assert steady < 0.5 * usual


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_follow_the_variance(calibrated: Make, kind: str) -> None:
    version, x = calibrated(kind), rows(4, 5)
    found = answer(version, x, max_draws=40, quantiles=(0.5,))
    assert found.interval is not None
    assert found.quantiles is not None
    width = (found.interval[..., 1] - found.interval[..., 0]) / np.sqrt(found.total_variance)
    np.testing.assert_allclose(width, 2 * 1.645, rtol=0.03)  # 90 %, all but Gaussian
    np.testing.assert_allclose(
        found.quantiles[..., 0], found.mean, rtol=0, atol=0.1 * np.sqrt(found.total_variance.min())
    )


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_and_blocks_do_not_matter(calibrated: Make, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    version, x = calibrated(kind), rows(9, 5)
    engine = version.engine
    plan = engine.plan(SamplingSpec(max_draws=40))
    together = engine.start([({"x": x[:4]}, plan), ({"x": x[4:]}, plan)], version.calibration)
    while wants(together[0]):
        together = engine.advance(together, 10)
    answers = engine.finish(together)
    monkeypatch.setattr("dubito_models.refining.GRADIENT_LIMIT", 300)  # rows one by one
    monkeypatch.setattr("dubito_models.refining._MASKS", 1)  # draws group by group
    for part, found in zip((x[:4], x[4:]), answers, strict=True):
        alone = engine.predict({"x": part}, SamplingSpec(max_draws=40), version.calibration).answer
        assert isinstance(alone, Regression)
        assert isinstance(found.answer, Regression)
        for name in ("mean", "epistemic_variance", "interval"):
            np.testing.assert_allclose(getattr(found.answer, name), getattr(alone, name), rtol=1e-4, atol=1e-6)


def test_rows_that_stopped_are_adjusted_at_their_own_draws(calibrated: Make) -> None:
    version, x = calibrated("plain"), rows(12, 5)
    base = answer(version, x, max_draws=40)
    middle = float(np.median(base.mean)) + 0.001
    rule = Stopping(StoppingRule.THRESHOLD, target=middle)
    stopped = version.engine.predict({"x": x}, SamplingSpec(max_draws=160, stopping=rule), version.calibration)
    assert len(set(stopped.draws.tolist())) > 1
    assert isinstance(stopped.answer, Regression)
    for row, used in enumerate(stopped.draws.tolist()):
        alone = answer(version, x[row : row + 1], max_draws=used)
        np.testing.assert_allclose(stopped.answer.epistemic_variance[row], alone.epistemic_variance[0], rtol=1e-4)


def test_raw_draws_and_uncalibrated_answers_and_rows_apart_are_as_drawn(calibrated: Make) -> None:
    version, x = calibrated("plain"), rows(4, 5)
    spec = SamplingSpec(max_draws=40, raw_draws=True, uncalibrated=True)
    found = version.engine.predict({"x": x}, spec, version.calibration)
    plain = version.engine.predict({"x": x}, replace(spec, uncalibrated=False))
    np.testing.assert_allclose(found.raw_draws, plain.raw_draws, rtol=0, atol=1e-6)
    assert isinstance(found.uncalibrated, Regression)
    assert isinstance(plain.answer, Regression)
    np.testing.assert_allclose(found.uncalibrated.epistemic_variance, plain.answer.epistemic_variance, rtol=1e-5)
    apart = {"max_draws": 40, "scope": MaskScope.ROW}
    one, other = (answer(version, x, control, **apart) for control in (True, False))
    np.testing.assert_array_equal(one.epistemic_variance, other.epistemic_variance)


def test_one_draw_still_has_a_mean_and_no_variance(calibrated: Make) -> None:
    found = answer(calibrated("plain"), rows(3), max_draws=1, design=Design.INDEPENDENT)
    assert np.isfinite(found.mean).all()
    assert found.epistemic_variance is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_joint_covariance_keeps_that_variance_on_its_diagonal(calibrated: Make, kind: str) -> None:
    version, x = calibrated(kind), rows(4, 5)
    found = version.engine.predict({"x": x}, SamplingSpec(max_draws=40, joint=True), version.calibration)
    assert isinstance(found.answer, Regression)
    assert found.joint_covariance is not None
    diagonal = np.einsum("iik->ik", found.joint_covariance)
    np.testing.assert_allclose(diagonal, found.answer.epistemic_variance, rtol=1e-9)
    plain = version.engine.predict({"x": x}, SamplingSpec(max_draws=40, joint=True)).joint_covariance
    assert plain is not None
    own = np.sqrt(np.einsum("iik->ik", plain))
    correlation = plain / (own[:, None] * own[None])
    scale = np.sqrt(diagonal)
    np.testing.assert_allclose(found.joint_covariance / (scale[:, None] * scale[None]), correlation, atol=1e-6)
