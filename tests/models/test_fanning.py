"""The last site apart: fan-outs are draws as ever, integrals are exact, and what they say is unbiased and steadier."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dubito_models.engine import Engine
from dubito_models.errors import CalibrationMismatch, InvalidArgument, UnsupportedNetwork
from dubito_models.fanning import POINTS
from dubito_models.package import ModelVersion, load_version
from dubito_models.packing import pack
from dubito_models.predictive import Classification, Regression
from dubito_models.program import StochasticProgram
from dubito_models.sampling import SamplingSpec
from dubito_models.stopping import Quantity, Stopping, StoppingRule
from dubito_models.thinning import Design, Masks, MaskScope
from networks import CASES, build, program_for, sample

DESIGNS = [Design.BALANCED, Design.INDEPENDENT]
ONE_SITE = {"head-only", "weighted-attention", "last-token", "dropped-weights"}
F = 4


class Deep(nn.Module):
    """Two masks, then a linear layer: alone, behind a view, or with more after it."""

    def __init__(self, end: str = "linear", width: int = 12) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.early, self.late, self.end = nn.Dropout(0.2), nn.Dropout(0.3), end

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.late(torch.tanh(self.second(self.early(torch.tanh(self.first(x))))))
        found = self.last(hidden)
        if self.end == "tanh":
            return torch.tanh(found)
        if self.end == "skip":
            return found + x[:, :1]
        return found.squeeze(1) if self.end == "view" else found


class Shallow(nn.Module):
    """One mask before the last layer: everything is known."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(3, 8), nn.Dropout(0.25), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(torch.tanh(self.first(x))))


def deep(end: str = "linear", width: int = 12) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Deep(end, width).eval()


def rows(count: int) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(count))


def packed_as(network: nn.Module, folder: Path, **options: object) -> ModelVersion:
    given = {"repository": folder, "name": "m", "task": "regression", "head": "mean", **options}
    return pack(network, rows(8), **given)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, ModelVersion]:
    """One network three times: as it is, with a fan-out, and integrated."""
    kinds: dict[str, dict[str, object]] = {"plain": {"fan_out": 1}, "fan": {"fan_out": F}, "integrated": {}}
    folder = tmp_path_factory.mktemp("repository")
    return {name: packed_as(deep(), folder, name=name, **options) for name, options in kinds.items()}


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, ModelVersion]:
    """A classifier without and with a fan-out."""
    folder, network, x = tmp_path_factory.mktemp("repository"), build("mlp"), sample("mlp", 2)
    kind = {"repository": folder, "task": "classification", "head": "logits"}
    return {fan: pack(network, x, name=f"fan{fan}", fan_out=fan, **kind) for fan in (1, F)}


# --- What is computed ---


def program_of(name: str, **options: object) -> StochasticProgram:
    chosen = CASES[name].options
    named = {key: chosen[key] for key in ("output", "dynamic") if key in chosen}
    return program_for(build(name), sample(name, 2), **named, **options)


@pytest.mark.parametrize("name", sorted(set(CASES) - ONE_SITE))
@torch.inference_mode()
def test_a_fan_is_the_same_draws_of_the_other_sites_under_masks_of_the_last(name: str) -> None:
    plain, fan = program_of(name), program_of(name, fan_out=3)
    inputs = sample(name, 5)
    boundary = plain.prefix(inputs)
    masks = Masks(fan, group_size=10, balanced=[True] * len(fan.sites)).draws(boundary.symbols, 3, DESIGNS[0], 0, 7)
    assert [len(mask) for mask in masks] == [7] * (len(masks) - 1) + [21]
    found = fan.many(fan.prefix(inputs), masks)
    assert len(found) == 21
    for number, value in enumerate(found):
        one = [*(mask[number // 3] for mask in masks[:-1]), masks[-1][number]]
        torch.testing.assert_close(value, plain.suffix(boundary, one), rtol=0, atol=1e-6)
    torch.testing.assert_close(fan.loop(boundary, masks), found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("design", DESIGNS)
def test_masks_of_the_last_site_go_on_where_the_draw_before_ended(design: Design) -> None:
    plain, fan = program_of("mlp"), program_of("mlp", fan_out=3)
    options = {"group_size": 10, "balanced": [True, True]}
    ours, theirs = Masks(fan, **options), Masks(plain, **options)
    early, last = ours.draws({"rows": 1}, 5, design, 13, 9)
    assert torch.equal(early, theirs.draws({"rows": 1}, 5, design, 13, 9)[0])
    assert torch.equal(last, theirs.draws({"rows": 1}, 5, design, 39, 27)[1])


@pytest.mark.parametrize("end", ["linear", "view"])
@torch.inference_mode()
def test_an_integral_is_the_mean_and_variance_over_every_last_mask(end: str) -> None:
    """All 2**8 of them, weighted by what they occur with."""
    network, x = deep(end, 8), rows(4)
    exact, integrated = (program_for(network, x, **how) for how in ({}, {"integrated": True}))
    boundary = exact.prefix({"x": x})
    masks = Masks(exact, group_size=10, balanced=[True, True]).draws(boundary.symbols, 1, DESIGNS[0], 0, 3)
    bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)))
    weights = (0.7**bits * 0.3 ** (1 - bits)).prod(1).double()
    for found in (integrated.many(boundary, masks), integrated.loop(boundary, masks)):
        assert found.shape == (3 * POINTS, 4, 1) if end == "linear" else (3 * POINTS, 4)
        for draw, points in enumerate(found.double().reshape(3, POINTS, 4)):
            every = torch.stack([exact.suffix(boundary, [masks[0][draw], bit / 0.7]) for bit in bits]).double()
            every = every.reshape(len(bits), 4)
            mean = weights @ every
            torch.testing.assert_close(points.mean(0), mean, rtol=0, atol=1e-6)
            torch.testing.assert_close(points.var(0, correction=0), weights @ (every - mean) ** 2, rtol=1e-5, atol=1e-7)


class Ends(nn.Module):
    """Dropout, a linear layer, and an end of many kinds."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.stem, self.drop, self.end = nn.Linear(6, 8), nn.Dropout(0.3), end
        self.head = nn.Linear(8, 2 if end == "one of two" else 1)
        self.register_buffer("mean", torch.tensor([20.0]))
        self.register_buffer("deviation", torch.tensor([5.0]))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(torch.relu(self.stem(self.drop(x))))
        raw: Tensor = self.head(hidden)
        ends = {"squeezed": raw.squeeze(-1), "selected": raw[:, 0], "flat": raw.reshape(-1), "as it is": raw,
                "one of two": raw[:, 0], "softplus": nn.functional.softplus(raw),
                "read twice": raw + hidden.mean(-1, keepdim=True), "scaled": 3.0 - raw * 2.0,
                "standardised": raw * self.deviation + self.mean, "square": raw * raw,
                "turned over": 1.0 / raw, "by the input": raw * x[:, :1]}  # fmt: skip
        return ends[self.end]


@pytest.mark.parametrize("end", ["squeezed", "selected", "flat", "as it is", "one of two", "scaled", "standardised"])
@torch.inference_mode()
def test_views_and_constants_may_follow_the_last_layer(end: str) -> None:
    """Mean and variance are those over all 256 masks, weighted by what they occur with."""
    with torch.random.fork_rng():
        torch.manual_seed(8)
        network, x = Ends(end).eval(), torch.randn(3, 6)
    exact, integrated = (program_for(network, x, **how) for how in ({}, {"integrated": True}))
    boundary = exact.prefix({"x": x})
    masks = Masks(exact, group_size=10, balanced=[True, True]).draws(boundary.symbols, 0, DESIGNS[0], 0, 2)
    bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)))
    weights = (0.7**bits * 0.3 ** (1 - bits)).prod(1).double()
    found = integrated.many(boundary, masks)
    assert found.shape[1:] == exact.suffix(boundary, [mask[0] for mask in masks]).shape
    for draw, points in enumerate(found.double().reshape(2, POINTS, 3)):
        every = torch.stack([exact.suffix(boundary, [masks[0][draw], bit / 0.7]).reshape(3) for bit in bits]).double()
        mean = weights @ every
        torch.testing.assert_close(points.mean(0), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(points.var(0, correction=0), weights @ (every - mean) ** 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("end", ["softplus", "read twice", "square", "turned over", "by the input"])
def test_nothing_else_may_follow_it(end: str) -> None:
    with pytest.raises(UnsupportedNetwork, match="one linear layer"):
        program_for(Ends(end), torch.randn(3, 6), integrated=True)


@pytest.mark.parametrize("end", ["tanh", "skip"])
def test_what_does_not_end_in_one_linear_layer_is_drawn(end: str, tmp_path: Path) -> None:
    assert (version := packed_as(deep(end), tmp_path)).manifest.fan_out == 1
    assert not version.manifest.integrated
    with pytest.raises(UnsupportedNetwork, match="one linear layer"):
        program_for(deep(end), rows(3), integrated=True)


def test_one_site_before_the_last_layer_leaves_nothing_to_chance(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = Shallow().eval()
    version = packed_as(network, tmp_path)
    x = rows(3)
    with torch.inference_mode():
        hidden = torch.tanh(network.first(x)).double()
        mean = network(x).double()
        variance = hidden**2 @ (network.last.weight.double() ** 2).T * 0.25 / 0.75
    for seed in (0, 1):
        found = version.predict(x.numpy(), SamplingSpec(seed=seed))
        assert isinstance(found.answer, Regression)
        np.testing.assert_allclose(found.answer.mean, mean, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.answer.epistemic_variance, variance, rtol=1e-5)
        assert found.standard_error is not None
        assert found.standard_error.max() < 1e-6
    first = version.predict(
        x.numpy(), SamplingSpec(max_draws=800, stopping=Stopping(StoppingRule.TOLERANCE, target=1e-4))
    )
    assert set(first.draws) == {version.manifest.group_size}


# --- What it says ---


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("kind", ["plain", "fan", "integrated"])
def test_mean_and_variance_are_unbiased_and_the_error_is_what_it_says(
    versions: Mapping[str, ModelVersion], kind: str, design: Design
) -> None:
    """200 seeds, 4 rows: |z| < 4.5 each, 48 in all, a false alarm in 3,000; errors within 25 % of what is said.

    A standard deviation over 200 seeds is known to 5 %; the stated one pools 4 groups, or is conservative.
    """
    x = rows(4).numpy()
    truth = versions["plain"].predict(x, SamplingSpec(max_draws=60_000, seed=10**6, design=Design.INDEPENDENT)).answer
    assert isinstance(truth, Regression)
    draws = 4 * versions[kind].manifest.group_size
    means, variances, errors = [], [], []
    for seed in range(200):
        found = versions[kind].predict(x, SamplingSpec(max_draws=draws, seed=seed, design=design))
        assert isinstance(found.answer, Regression)
        assert found.draws.tolist() == [draws] * 4
        means.append(found.answer.mean)
        variances.append(found.answer.epistemic_variance)
        errors.append(found.standard_error)
    scatter = np.std(means, 0, ddof=1)
    of_truth = np.sqrt(truth.epistemic_variance / 60_000)
    assert (np.abs(np.mean(means, 0) - truth.mean) / np.hypot(scatter / 200**0.5, of_truth)).max() < 4.5
    noise = np.hypot(np.std(variances, 0, ddof=1) / 200**0.5, truth.epistemic_variance * (2 / 60_000) ** 0.5)
    assert (np.abs(np.mean(variances, 0) - truth.epistemic_variance) / noise).max() < 4.5
    said = np.sqrt(np.mean(np.square(errors), 0))
    assert (scatter < 1.25 * said).all()
    assert (scatter > 0.75 * said).all()


def test_each_is_steadier_than_the_one_before(versions: Mapping[str, ModelVersion]) -> None:
    """The variances over 200 seeds of mean and variance fall by a third and more: an F of 1.5 has p = .002."""
    x = rows(4).numpy()
    noise = {}
    for kind, version in versions.items():
        found = [version.predict(x, SamplingSpec(max_draws=40, seed=seed)).answer for seed in range(200)]
        assert all(isinstance(answer, Regression) for answer in found)
        noise[kind] = [
            np.var([a.mean for a in found], 0).mean(),
            np.var([a.epistemic_variance for a in found], 0).mean(),
        ]
    assert noise["plain"][0] > 1.5 * noise["fan"][0]
    assert noise["plain"][1] > 1.5 * noise["fan"][1]
    assert noise["fan"][0] >= noise["integrated"][0]
    assert noise["fan"][1] > noise["integrated"][1]


def test_a_fanned_classifier_says_the_same_more_steadily(classifiers: Mapping[int, ModelVersion]) -> None:
    x = sample("mlp", 8)["input"].numpy()
    truth = classifiers[1].predict(x, SamplingSpec(max_draws=40_000, seed=10**6, design=Design.INDEPENDENT)).answer
    assert isinstance(truth, Classification)
    assert truth.mutual_information is not None
    squares: dict[int, list[list[float]]] = {fan: [] for fan in classifiers}
    for fan, version in classifiers.items():
        for seed in range(150):
            found = version.predict(x, SamplingSpec(max_draws=40, seed=seed)).answer
            assert isinstance(found, Classification)
            assert found.mutual_information is not None
            np.testing.assert_allclose(
                found.predictive_entropy, found.expected_entropy + found.mutual_information, rtol=1e-9
            )
            gaps = (found.probabilities - truth.probabilities, found.mutual_information - truth.mutual_information)
            squares[fan].append([float(np.mean(gap**2)) for gap in gaps])
    plain, fanned = (np.mean(squares[fan], 0) for fan in (1, F))
    assert (plain > 1.2 * fanned).all()


@pytest.mark.parametrize("kind", ["fan", "integrated"])
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("groups", [1, 4])
def test_a_joint_covariance_has_the_variances_on_its_diagonal(
    versions: Mapping[str, ModelVersion], kind: str, design: Design, groups: int
) -> None:
    version = versions[kind]
    draws = groups * version.manifest.group_size
    found = version.predict(rows(5).numpy(), SamplingSpec(max_draws=draws, design=design, joint=True))
    assert isinstance(found.answer, Regression)
    assert found.joint_covariance is not None
    diagonal = np.einsum("iik->ik", found.joint_covariance)
    np.testing.assert_allclose(diagonal, found.answer.epistemic_variance, rtol=1e-6)


def test_rows_move_together_in_a_fan_as_in_its_draws(versions: Mapping[str, ModelVersion]) -> None:
    """Covariances from 20,000 draws each, to 6 of their standard errors."""
    x = rows(3).numpy()
    many = SamplingSpec(max_draws=20_000, design=Design.INDEPENDENT, joint=True)
    plain, fan = (versions[kind].predict(x, many).joint_covariance for kind in ("plain", "fan"))
    assert plain is not None
    assert fan is not None
    scale = np.sqrt(np.einsum("iik->ik", plain))
    assert np.abs((plain - fan) / (scale[:, None] * scale[None])).max() < 6 * (2 / 20_000) ** 0.5


def test_intervals_are_those_of_the_draws(versions: Mapping[str, ModelVersion]) -> None:
    """Quantiles of 20,000 draws, to a tenth of the deviation: the sum of 12 units is not quite a Gaussian."""
    x = rows(3).numpy()
    spec = SamplingSpec(max_draws=20_000, design=Design.INDEPENDENT, quantiles=(0.1, 0.5, 0.9))
    answers = {kind: version.predict(x, spec).answer for kind, version in versions.items()}
    assert all(isinstance(answer, Regression) for answer in answers.values())
    plain = answers["plain"]
    deviation = np.sqrt(plain.epistemic_variance)[..., None]
    for kind in ("fan", "integrated"):
        assert (np.abs(answers[kind].quantiles - plain.quantiles) / deviation).max() < 0.1
        assert (np.abs(answers[kind].interval - plain.interval) / deviation).max() < 0.1


# --- The laws ---


@pytest.mark.parametrize("kind", ["fan", "integrated"])
@pytest.mark.parametrize("limit", [1, 1 << 12, 1 << 30])
def test_passes_and_neighbours_do_not_matter(versions: Mapping[str, ModelVersion], kind: str, limit: int) -> None:
    source = versions[kind].engine
    engine = Engine(source.program, source.masks, source.head, source.defaults)
    engine.use_pass_bytes({1: limit})
    x = rows(6)
    spec = SamplingSpec(max_draws=27, raw_draws=True)
    whole = source.predict({"x": x}, spec).raw_draws
    assert whole is not None
    assert len(whole) == source.plan(spec).max_draws
    np.testing.assert_allclose(engine.predict({"x": x}, spec).raw_draws, whole, rtol=0, atol=1e-6)
    np.testing.assert_allclose(engine.predict({"x": x[2:4]}, spec).raw_draws, whole[:, 2:4], rtol=0, atol=1e-6)
    engine.vmaps = False
    np.testing.assert_allclose(engine.predict({"x": x}, spec).raw_draws, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["fan", "integrated"])
def test_rows_may_have_masks_of_their_own(versions: Mapping[str, ModelVersion], kind: str) -> None:
    """Means of 4,000 draws agree with those of shared masks: 4 numbers, |z| < 4.5."""
    x = rows(4).numpy()
    spec = {"max_draws": 4000, "design": Design.INDEPENDENT}
    own, shared = (
        versions[kind].predict(x, SamplingSpec(scope=scope, **spec)) for scope in (MaskScope.ROW, MaskScope.DRAW)
    )
    assert isinstance(own.answer, Regression)
    assert isinstance(shared.answer, Regression)
    error = np.hypot(own.standard_error, shared.standard_error)
    assert (np.abs(own.answer.mean - shared.answer.mean) / error).max() < 4.5


@pytest.mark.parametrize("quantity", list(Quantity))
def test_a_tolerance_is_kept_with_a_fan_out(classifiers: Mapping[int, ModelVersion], quantity: Quantity) -> None:
    """Errors over 60 seeds and 8 rows are at most what was tolerated, to 15 %; and rows do stop."""
    x, target = sample("mlp", 8)["input"].numpy(), 0.004
    version = classifiers[F]
    truth = classifiers[1].predict(x, SamplingSpec(max_draws=40_000, seed=10**6, design=Design.INDEPENDENT)).answer
    assert isinstance(truth, Classification)
    rule = Stopping(StoppingRule.TOLERANCE, quantity, target)
    gaps, draws = [], []
    for seed in range(60):
        found = version.predict(x, SamplingSpec(max_draws=1600, seed=seed, stopping=rule))
        assert isinstance(found.answer, Classification)
        name = "probabilities" if quantity is Quantity.MEAN else quantity.value
        gaps.append(getattr(found.answer, name) - getattr(truth, name))
        draws.append(found.draws.mean())
    assert np.sqrt(np.square(gaps).mean(0)).max() < 1.15 * target
    assert np.mean(draws) < 800


# --- Versions ---


@pytest.mark.parametrize("kind", ["plain", "fan", "integrated"])
def test_a_version_comes_back_from_disk_as_it_was(versions: Mapping[str, ModelVersion], kind: str) -> None:
    version = versions[kind]
    again = load_version(version.folder)
    expected = {"plain": (1, False), "fan": (F, False), "integrated": (POINTS, True)}[kind]
    assert (again.manifest.fan_out, again.manifest.integrated) == expected
    spec = SamplingSpec(raw_draws=True)
    first, second = (each.predict(rows(3).numpy(), spec).raw_draws for each in (version, again))
    assert np.array_equal(first, second)


def test_a_manifest_from_before_there_was_a_choice_means_every_mask_is_drawn(
    versions: Mapping[str, ModelVersion], tmp_path: Path
) -> None:
    version = packed_as(deep(), tmp_path, fan_out=1)
    path = version.folder / "manifest.json"
    stored = json.loads(path.read_text())
    del stored["fan_out"], stored["integrated"]
    path.write_text(json.dumps(stored))
    assert load_version(version.folder).engine.program.fan_out == 1


def test_a_calibration_of_draws_made_otherwise_is_refused(versions: Mapping[str, ModelVersion], tmp_path: Path) -> None:
    options = {"noise_variance": (0.1,), "name": "m"}
    fitted = packed_as(deep(), tmp_path / "one", **options)
    plain = packed_as(deep(), tmp_path / "two", fan_out=1, **options)
    x = rows(40)
    calibration = fitted.calibrate(x.numpy(), x[:, 0].numpy())
    assert (calibration.integrated, calibration.fan_out) == (True, POINTS)
    with pytest.raises(CalibrationMismatch, match="fitted for"):
        plain.save_calibration(calibration)


@pytest.mark.parametrize(
    ("fan_out", "accepted"), [(0, "1..64"), (65, "1..64"), (4, "1: a fan-out needs a site before the last one")]
)
def test_a_fan_out_that_cannot_be_is_refused_and_leaves_nothing(tmp_path: Path, fan_out: int, accepted: str) -> None:
    with pytest.raises(InvalidArgument, match=f"fan_out: got {fan_out}; accepted: {accepted}"):
        packed_as(Shallow().eval(), tmp_path, fan_out=fan_out)
    assert list(tmp_path.iterdir()) == []


def test_a_fan_out_goes_with_bfloat16(tmp_path: Path) -> None:
    network = Deep(width=96).eval()
    version = packed_as(network, tmp_path, precision="bfloat16", fan_out=F)
    assert load_version(version.folder).engine.vmaps
    plain = packed_as(network, tmp_path, name="plain", fan_out=F)
    x = rows(5).numpy()
    one, other = (each.predict(x, SamplingSpec(raw_draws=True)).raw_draws for each in (version, plain))
    assert one is not None
    assert other is not None
    gap = np.sqrt(np.square(one - other).mean(0))
    assert (gap <= 0.05 * other.std(0)).all()
    assert (gap > 0).all()
