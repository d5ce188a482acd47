"""Draws in bfloat16: which products are rounded, by how much that moves a draw, and what is refused."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dubito_models import audit, package, packing, precision
from dubito_models.audit import ROUNDING, audit_rounding
from dubito_models.engine import wants
from dubito_models.errors import AuditFailed, InvalidArgument
from dubito_models.export import export_network, read_example
from dubito_models.package import ModelVersion, load_version, open_version
from dubito_models.packing import pack
from dubito_models.precision import Precision, has_bfloat16_products
from dubito_models.predictive import Validity
from dubito_models.program import StochasticProgram
from dubito_models.sampling import SamplingSpec
from dubito_models.thinning import Design, Masks
from networks import Residual, mlp, under_masks

UNIT = 2.0**-8  # the largest relative error of rounding to bfloat16, which has 8 significant bits


class Images(nn.Module):
    """Channel and element dropout between convolutions of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Conv2d(1, 16, 3), nn.Dropout2d(0.25)
        self.same = nn.Conv2d(16, 32, 3, padding="same")
        self.norm = nn.BatchNorm2d(32)
        self.grouped = nn.Conv2d(32, 64, 3, groups=2, stride=2, bias=False)
        self.depthwise = nn.Conv2d(64, 64, 2, groups=64)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norm(self.same(self.drop(F.relu(self.first(x))))))
        hidden = F.dropout(self.depthwise(F.relu(self.grouped(hidden))), 0.1, self.training)
        return self.head(hidden.mean((2, 3)))


class Series(nn.Module):
    """Alpha dropout of channels and of elements, around a convolution over time and a wide linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.channels = nn.Conv1d(2, 32, 3), nn.FeatureAlphaDropout(0.2)
        self.second, self.linear = nn.Conv1d(32, 32, 3), nn.Linear(128, 64)
        self.drop, self.head = nn.AlphaDropout(0.1), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.channels(F.selu(self.first(x)))
        hidden = F.selu(self.second(hidden)).flatten(1)
        return self.head(self.drop(F.selu(self.linear(hidden))))


class Encoder(nn.Module):
    """A stock transformer encoder with every dropout it has."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 96, 0.1, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Masked(nn.Module):
    """Dropout on a weight, and on the values that a wide layer of the network's own weights reads."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.second = nn.Parameter(torch.randn(64, 6)), nn.Linear(64, 64)
        self.third, self.head = nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(F.linear(x, F.dropout(self.weight, 0.3, self.training)))
        hidden = torch.tanh(F.linear(hidden, F.dropout(self.second.weight, 0.1, self.training)))
        return self.head(torch.relu(self.third(hidden)))


class ByHand(nn.Module):
    """Products that are written out, with one weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 64), nn.Linear(64, 3)
        self.weight, self.bias = nn.Parameter(torch.randn(64, 64) / 8), nn.Parameter(torch.randn(64))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(torch.addmm(self.bias, F.dropout(self.first(x), 0.3, self.training), self.weight))
        hidden = torch.tanh(torch.mm(hidden, self.weight))
        return self.head(F.dropout(hidden @ self.weight, 0.2, self.training))


class Recurrent(nn.Module):
    """An LSTM of two directions and a GRU, between dropouts, after a recurrent layer that no mask reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GRU(2, 16, batch_first=True)
        self.second, self.third = nn.LSTM(16, 48, bidirectional=True, batch_first=True), nn.GRU(96, 64, bias=False)
        self.narrow, self.head = nn.RNN(64, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.second(F.dropout(self.first(x)[0], 0.3, self.training))
        hidden, _ = self.third(F.dropout(hidden, 0.2, self.training).transpose(0, 1))
        return self.head(self.narrow(hidden)[0][-1])


def wide_residual(form: str) -> nn.Module:
    network = Residual(form)
    network.stem, network.head = nn.Linear(6, 64), nn.Linear(64, 3)
    network.branches = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
    return network


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rounded: tuple[str, ...]  # the weights of the products that are, in order


_LAYER = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
CASES = {
    "mlp": Case(lambda: mlp(64, 0.1), (6,), ("3.weight",)),
    "images": Case(Images, (1, 12, 12), ("same.weight", "grouped.weight")),
    "series": Case(Series, (2, 8), ("second.weight", "linear.weight")),
    "encoder": Case(
        Encoder,
        (5, 64),
        tuple(f"encoder.layers.{i}.{name}" for i in (0, 1) for name in _LAYER)[1:],
    ),
    "path-bernoulli": Case(lambda: wide_residual("bernoulli"), (6,), ("branches.1.weight", "branches.2.weight")),
    "path-floor": Case(lambda: wide_residual("floor"), (6,), ("branches.1.weight", "branches.2.weight")),
    "path-unscaled": Case(lambda: wide_residual("unscaled"), (6,), ("branches.1.weight", "branches.2.weight")),
    "recurrent": Case(Recurrent, (7, 2), ("second.weight_hh_l0", "third.weight_hh_l0")),
    "dropped-weights": Case(Masked, (6,), ("third.weight",)),
    "by-hand": Case(ByHand, (6,), ("weight", "weight", "weight")),
}


def build(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return CASES[name].build()


def rows(name: str, count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *CASES[name].shape, generator=torch.Generator().manual_seed(seed))


def programs(module: nn.Module, x: Tensor) -> tuple[StochasticProgram, StochasticProgram]:
    """Return the program of a module in float32, and in bfloat16."""
    example = read_example(module, x)
    exported = export_network(module, example)
    free = {name: {} for name in example.inputs}
    exact, rounded = (StochasticProgram(exported.stochastic, free, exported.output, each) for each in Precision)
    return exact, rounded


def masks_of(program: StochasticProgram, group_size: int = 10) -> Masks:
    return Masks(program, group_size=group_size, balanced=[True] * len(program.sites))


@contextlib.contextmanager
def rounded_products(weights: Sequence[Tensor]) -> Iterator[list[int]]:
    """Let the products with these weights, and no others, round what they multiply and what they give to bfloat16.

    Of recurrent layers they are the weights of the states. An account of its own, inside the module's forward; yields
    a list that gets the place of each weight as it is used.
    """
    used: list[int] = []
    form = torch.bfloat16 if has_bfloat16_products() else torch.float32

    def wrap(function: Callable[..., Tensor], value: int, weight: int, bias: int | None) -> Callable[..., Tensor]:
        def product(*arguments: object) -> Tensor:
            places = [place for place, own in enumerate(weights) if own is arguments[weight]]
            if not places:
                return function(*arguments)
            used.append(places[0])
            operands = [arguments[i].bfloat16().to(form) for i in (value, weight)]
            if bias == 0:
                return torch.matmul(*operands).bfloat16().float() + arguments[0]
            settings = () if bias is None else (None, *arguments[3:])
            found = function(*operands, *settings).bfloat16().float()
            own = None if bias is None or len(arguments) <= bias else arguments[bias]
            return found if own is None else found + own.reshape(-1, *(1,) * (arguments[weight].dim() - 2))

        return product

    def wrap_recurrent(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
        def layer(x: Tensor, states: Tensor | tuple[Tensor, ...], own: list[Tensor], *settings: object) -> object:
            places = [place for place, known in enumerate(weights) if known is own[1]]
            if not places:
                return function(x, states, own, *settings)
            used.append(places[0])
            several = isinstance(states, tuple)
            first, *rest = (value.bfloat16().to(form) for value in (x, *(states if several else (states,)), *own))
            begin = tuple(rest[:2]) if several else rest[0]
            return tuple(value.float() for value in function(first, begin, rest[2 if several else 1 :], *settings))

        return layer

    patches = [(F, "linear", 0, 1, 2), (F, "conv1d", 0, 1, 2), (F, "conv2d", 0, 1, 2), (torch, "addmm", 1, 2, 0),
               (torch, "mm", 0, 1, None), (Tensor, "__matmul__", 0, 1, None)]  # fmt: skip
    with contextlib.ExitStack() as stack:
        for owner, name, *places in patches:
            stack.enter_context(mock.patch.object(owner, name, wrap(getattr(owner, name), *places)))
        for name in ("lstm", "gru"):
            stack.enter_context(mock.patch.object(torch._VF, name, wrap_recurrent(getattr(torch._VF, name))))
        yield used


# --- Law 1: what a draw is ---


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_one_draw_is_the_original_module_with_these_products_rounded_bit_for_bit(name: str) -> None:
    module, x = build(name).eval(), rows(name, 2)
    _, rounded = programs(module, x)
    own = dict(module.named_parameters())
    weights = [own[each] for each in CASES[name].rounded]
    assert rounded.rounded_products == len(weights)
    boundary = rounded.prefix({rounded.inputs[0]: x})
    masks = masks_of(rounded).draws(boundary.symbols, 5, Design.BALANCED, 0, 4)
    for draw in range(4):
        chosen = [mask[draw] for mask in masks]
        with rounded_products(weights) as used:
            theirs = under_masks(module, {rounded.inputs[0]: x}, chosen)
        assert len(used) == len(weights)
        assert torch.equal(rounded.suffix(boundary, chosen), theirs)


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_draws_at_once_are_draws_one_by_one_and_as_far_from_float32_as_is_accepted(name: str) -> None:
    """Float32 sums may be taken in another order, which turns a last bit here and there."""
    module, x = build(name).eval(), rows(name, 4)
    exact, rounded = programs(module, x)
    assert rounded._led is not None or exact._led is None
    boundary = rounded.prefix({rounded.inputs[0]: x})
    masks = masks_of(rounded).draws(boundary.symbols, 5, Design.BALANCED, 0, 20)
    truth = torch.stack([exact.suffix(boundary, [mask[i] for mask in masks]) for i in range(20)])
    looped = torch.stack([rounded.suffix(boundary, [mask[i] for mask in masks]) for i in range(20)])
    spread = truth.std(0)
    for found in (looped, rounded.many(boundary, masks)):
        assert found.dtype == torch.float32
        errors = (found - truth).square().mean(0).sqrt()
        assert (errors <= ROUNDING * spread).all()
        assert (errors > 0).any()
    assert ((rounded.many(boundary, masks) - looped).square().mean(0).sqrt() <= ROUNDING * spread).all()


def bound_of(module: nn.Sequential, x: Tensor, masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return a draw of an MLP in float64, and the most that rounding its middle product can move it (forward error).

    With unit roundoff u, |fl(w) fl(v) - w v| <= |w| (e + u (|v| + e)) (1 + u) + u |w| |v| for a value v known to e,
    and the sum y of such terms gets u (|y| + error) more. ReLU and masks do not stretch errors but by a mask's factor.
    """
    first, _, _, middle, _, _, last = (layer.double() for layer in module)
    slack = 1e-5  # float32's own rounding, here and in the sums
    value = F.relu(first(x.double())) * masks[0]
    error = slack * value.abs()
    weight = middle.weight.abs()
    error = F.linear(error + UNIT * (value.abs() + error), weight) * (1 + UNIT) + F.linear(value.abs(), weight) * UNIT
    product = F.linear(value, middle.weight)
    error = error + UNIT * (product.abs() + error) + slack
    value = F.relu(product + middle.bias) * masks[1]
    return last(value), F.linear(error * masks[1], last.weight.abs()) + slack


def test_no_draw_is_off_by_more_than_rounding_explains() -> None:
    module, x = build("mlp").eval(), rows("mlp", 16)
    with torch.inference_mode():
        _, rounded = programs(module, x)
        boundary = rounded.prefix({"input": x})
        masks = masks_of(rounded).draws(boundary.symbols, 1, Design.INDEPENDENT, 0, 40)
        found = rounded.many(boundary, masks)
        for draw in range(40):
            truth, most = bound_of(copy.deepcopy(module), x, [mask[draw] for mask in masks])
            assert ((found[draw] - truth).abs() <= most).all()


# --- Which products are rounded ---


class Tail(nn.Module):
    """A wide layer, dropout, and whatever `tail` makes of it with wide layers of its own."""

    def __init__(self, tail: Callable[[nn.Module, Tensor], Tensor], width: int = 64) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(width, width) for _ in range(3))
        self.recurrent, self.head = nn.LSTM(width, width, batch_first=True), nn.Linear(width, 3)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self, F.dropout(self.first(x), 0.2, self.training))


@pytest.mark.parametrize(
    ("tail", "width", "count"),
    [
        (lambda net, drawn: net.head(drawn), 64, 0),
        (lambda net, drawn: net.second(drawn), 64, 0),  # the prediction itself
        (lambda net, drawn: net.third(net.second(drawn)), 64, 1),
        (lambda net, drawn: net.third(net.second(drawn)), 63, 0),  # too narrow to gain
        (lambda net, drawn: net.third(drawn) + net.head(net.second(drawn)).sum(1, keepdim=True), 64, 1),
        (lambda net, drawn: net.head(net.recurrent(drawn.unsqueeze(1))[0][:, 0]), 64, 1),
        (lambda net, drawn: net.recurrent(drawn.unsqueeze(1))[0][:, 0], 64, 0),
        (lambda net, drawn: net.head(drawn @ drawn.T @ drawn), 64, 0),
        (lambda net, drawn: net.head(net.second(drawn.double().float())), 64, 1),
    ],
)
def test_rounded_are_products_that_masks_reach_that_are_wide_and_not_the_last(
    tail: Callable[[nn.Module, Tensor], Tensor], width: int, count: int
) -> None:
    exact, rounded = programs(Tail(tail, width), torch.randn(3, width))
    assert (exact.rounded_products, rounded.rounded_products) == (0, count)


def test_other_than_single_precision_is_left_as_it_is() -> None:
    _, rounded = programs(mlp(64).double(), torch.randn(3, 6, dtype=torch.float64))
    assert rounded.rounded_products == 0


def test_a_prefix_is_the_same_in_both() -> None:
    exact, rounded = programs(build("images"), rows("images", 3))
    with torch.inference_mode():
        one, other = (program.prefix({"x": rows("images", 3)}) for program in (exact, rounded))
    assert one.symbols == other.symbols
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one.values, other.values, strict=True))


# --- No bias ---


def slopes(seed: int, round_masks: bool) -> tuple[float, float]:
    """Return by what factor, less 1, rounded draws of a fresh network follow exact ones, and their variance its own."""
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        layers = [nn.Linear(6, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1)]
        for layer in (layers[0], layers[3], layers[5]):
            nn.init.zeros_(layer.bias)
        module, x = nn.Sequential(*layers).eval(), torch.randn(16, 6)
        exact, rounded = programs(module, x)
        boundary = exact.prefix({"input": x})
        masks = masks_of(exact).draws(boundary.symbols, seed, Design.INDEPENDENT, 0, 64)
        truth = exact.many(boundary, masks).double()
        naive = [mask.bfloat16().float() for mask in masks]
        found = rounded.many(rounded.prefix({"input": x}), naive if round_masks else masks).double()
    follows = float((truth * found).sum() / truth.square().sum()) - 1
    return follows, float(found.var(0).mean() / truth.var(0).mean()) - 1


def z_scores(round_masks: bool) -> list[float]:
    found = np.array([slopes(seed, round_masks) for seed in range(24)])
    return list(found.mean(0) / (found.std(0, ddof=1) / np.sqrt(len(found))))


def test_draws_and_their_variance_have_no_bias_over_networks() -> None:
    """Two z-scores within 4.5: a false alarm in 70,000."""
    assert all(abs(z) < 4.5 for z in z_scores(round_masks=False))


def test_scaling_kept_units_in_bfloat16_would_be_seen_as_a_bias() -> None:
    """1 / .9 is 1.1094 there, not 1.1111: draws shrink by .16 percent, and their variance by .31."""
    assert all(z < -4.5 for z in z_scores(round_masks=True))


# --- Versions ---


def packed_as(kind: str, folder: Path, name: str = "mlp") -> ModelVersion:
    options = {"repository": folder, "name": "m", "task": "classification", "head": "logits", "precision": kind}
    return pack(build(name).eval(), rows(name, 8), **options)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    return packed_as("bfloat16", tmp_path_factory.mktemp("repository"))


def raw_draws(version: ModelVersion, x: Tensor) -> Tensor:
    found = version.engine.draws({"input": x}, SamplingSpec(max_draws=20)).log_probabilities
    assert found is not None
    return found


def test_a_version_comes_back_from_disk_with_its_precision_and_its_draws(version: ModelVersion) -> None:
    again = load_version(version.folder)
    assert again.manifest.precision is Precision.BFLOAT16
    assert again.engine.program.rounded_products == 1
    assert 0 < again.manifest.rounding < ROUNDING
    assert any("bfloat16" in warning for warning in again.manifest.warnings)
    x = rows("mlp", 5, seed=1)
    assert torch.equal(raw_draws(again, x), raw_draws(version, x))


def test_a_manifest_from_before_there_was_a_choice_means_float32(version: ModelVersion, tmp_path: Path) -> None:
    exact = packed_as("float32", tmp_path)
    assert (exact.manifest.precision, exact.manifest.rounding) == (Precision.FLOAT32, 0.0)
    path = exact.folder / "manifest.json"
    stored = json.loads(path.read_text())
    del stored["precision"], stored["rounding"]
    path.write_text(json.dumps(stored))
    x = rows("mlp", 5, seed=1)
    older = load_version(exact.folder)
    assert torch.equal(raw_draws(older, x), raw_draws(exact, x))
    gap = (raw_draws(version, x) - raw_draws(exact, x)).square().mean(0).sqrt()
    assert (gap <= ROUNDING * raw_draws(exact, x).std(0)).all()
    assert (gap > 0).all()


def test_neighbours_and_the_way_through_the_draws_do_not_matter(version: ModelVersion) -> None:
    """Within what turned last bits may do: the same bound as for a draw's distance from float32."""
    engine, g = version.engine, version.engine.masks.group_size
    plan = engine.plan(SamplingSpec(max_draws=2 * g, raw_draws=True))
    strangers = [({"input": rows("mlp", count, seed=count)}, plan) for count in (2, 7, 1)]
    together = engine.start(strangers, None)
    for _ in range(2):
        together = engine.advance(together, g)
    assert all(wants(run) == 0 for run in together)
    for (inputs, _), answer in zip(strangers, engine.finish(together), strict=True):
        alone = engine.predict(inputs, plan.spec).raw_draws
        assert alone is not None
        assert answer.raw_draws is not None
        gap = np.sqrt(np.square(answer.raw_draws - alone).mean(0))
        assert (gap <= ROUNDING * alone.std(0)).all()


def test_a_processor_without_such_products_gives_the_same_draws_and_says_so(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    x = rows("mlp", 16, seed=1)
    found = []
    for able in (True, False):
        with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "dubito_models"):
            patched.setattr(precision, "has_bfloat16_products", lambda able=able: able)
            patched.setattr(package, "has_bfloat16_products", lambda able=able: able)
            caplog.clear()
            loaded = load_version(version.folder)
        assert ("m version 1 is in bfloat16" in caplog.text) != able
        [held] = [each for name, each in loaded.engine.program._suffix.module.named_buffers() if "rounded" in name]
        assert held.dtype == (torch.bfloat16 if able else torch.float32)
        found.append(raw_draws(loaded, x))
    assert ((found[0] - found[1]).square().mean(0).sqrt() <= ROUNDING * found[0].std(0)).all()


class Drowned(nn.Module):
    """What dropout moves is a thousandth of what the wide product adds up."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 64), nn.Linear(64, 64), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.head(torch.tanh(self.second(1000 + F.dropout(hidden, 0.2, self.training)) / 1000))


DROWNED = {"name": "m", "task": "regression", "head": "mean", "noise_variance": (0.1,) * 2}


def test_a_network_that_cannot_take_it_is_refused_with_the_figures_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"repository": tmp_path, "precision": "bfloat16", **DROWNED}
    with pytest.raises(AuditFailed, match=r"a draw is off by \S+ of the draws' standard deviation.*accepted 0.05"):
        pack(Drowned(), rows("mlp", 8), **options)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(packing, "_audit_precision", lambda *known: 0.01)  # which may see easier rows than the load's
    with pytest.raises(AuditFailed, match=r"a draw is off by"):
        pack(Drowned(), rows("mlp", 8), **options)
    assert list((tmp_path / "m").iterdir()) == []


def test_where_a_packed_precision_fails_draws_are_float32_and_the_version_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a device that rounds otherwise than that of packing. Its calibration was fitted to other draws."""
    exact, x = pack(Drowned(), rows("mlp", 8), repository=tmp_path, **DROWNED), rows("mlp", 5, seed=1)
    fitted = exact.calibrate(rows("mlp", 60).numpy(), np.zeros((60, 2), np.float32))
    assert (exact.fallback, exact.predict(x.numpy()).calibration_validity) == ("", Validity.EXACT)
    path = exact.folder / "manifest.json"
    path.write_text(path.read_text().replace('"float32",\n  "rounding"', '"bfloat16",\n  "rounding"'))
    exact.use_calibration(None)
    with caplog.at_level(logging.WARNING, "dubito_models"):
        found = load_version(exact.folder)
    assert found.engine.program.precision is Precision.FLOAT32
    assert re.match(r"draws are float32 here, not bfloat16 as packed: .*is off by \S+ of the draws'", found.fallback)
    assert found.warnings == (*found.manifest.warnings, found.fallback)
    assert f"m version 1: {found.fallback}" in caplog.text
    found.save_calibration(replace(fitted, precision="bfloat16"))
    given, expected = found.predict(x.numpy()), exact.engine.predict({"x": x}, None, fitted)
    np.testing.assert_array_equal(given.answer.mean, expected.answer.mean)
    assert given.calibration_validity is Validity.APPROXIMATE
    with pytest.raises(InvalidArgument, match=r"draws are float32 here.*accepted: a device that keeps the packed"):
        found.calibrate(rows("mlp", 60).numpy(), np.zeros((60, 2), np.float32))


def test_a_version_is_audited_on_the_device_that_serves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's meta device stands for a GPU."""
    options = {"task": "classification", "head": "logits", "precision": "bfloat16", "fan_out": 2}
    made = pack(build("mlp").eval(), rows("mlp", 8), repository=tmp_path, name="m", **options)
    seen: list[tuple[str, str]] = []

    def watch(name: str, verdict: object) -> None:
        def instead(*given: object) -> object:
            seen.extend((name, each.device.type) for each in given if isinstance(each, StochasticProgram))
            return verdict

        monkeypatch.setattr(package, name, instead)

    watch("audit", audit.Audit(0.0, True))
    watch("audit_rounding", audit.Rounding(0.0, 0.0, True))
    watch("audit_fan", True)
    found = open_version(made.folder, made.manifest, device=torch.device("meta"))
    assert seen == [("audit", "meta"), ("audit_rounding", "meta"), ("audit_rounding", "meta"), ("audit_fan", "meta")]
    assert (found.engine.program.device.type, found.engine.vmaps) == ("meta", True)
    assert found.engine.program.precision is Precision.BFLOAT16


@pytest.mark.parametrize(("offset", "vmapped"), [(0.0, False), (3000.0, True)])
def test_many_draws_at_once_may_be_off_by_what_rounding_does_to_the_network(
    monkeypatch: pytest.MonkeyPatch, offset: float, vmapped: bool
) -> None:
    """As on a GPU, which takes sums in another order: what is left of a difference of numbers around 3000 is rough."""

    class Near(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(6, 64), nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.dropout(self.first(x) + offset, 0.2, self.training) - offset)

    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = Near().eval()
    program, _ = programs(module, rows("mlp", 3))
    run = program.many
    monkeypatch.setattr(program, "many", lambda boundary, masks: run(boundary, masks) * (1 + 5e-5))

    def standard(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return module(torch.from_numpy(inputs["x"])).numpy()

    found = audit.audit(program, standard, masks_of(program), [{"x": rows("mlp", 3)}])
    assert found.vmapped is vmapped


def test_an_output_that_hardly_moves_in_a_row_is_held_to_a_tenth_of_its_usual_spread() -> None:
    truth = torch.zeros(32, 2, 2)
    truth[::2, 1, 0] = 2.0  # the first output moves in the second row alone, the second output nowhere
    usual = float((truth[:, 1, 0].var() / 2).sqrt())
    moved = truth.clone()
    moved[:, 0, 0] += 0.004 * usual
    moved[::2, 0, 1], moved[1::2, 0, 1] = 2e-7, -2e-7  # of float32's own size
    assert audit._measure_errors(truth, moved) == pytest.approx((0.04, 0.04), rel=1e-5)


def test_draws_that_are_not_finite_are_refused() -> None:
    exact, rounded = programs(build("mlp").eval(), rows("mlp", 2))
    samples = [{"input": rows("mlp", 3)}, {"input": torch.full((2, 6), torch.nan)}]
    with pytest.raises(AuditFailed, match="off by nan"):
        audit_rounding(exact, rounded, masks_of(exact), samples)


@pytest.mark.parametrize(
    ("kind", "accepted"), [("bfloat16", "float32: after its dropout"), ("half", "float32, bfloat16")]
)
def test_a_precision_that_is_unknown_or_gains_nothing_is_refused(tmp_path: Path, kind: str, accepted: str) -> None:
    options = {"repository": tmp_path, "name": "m", "task": "classification", "head": "logits"}
    with pytest.raises(InvalidArgument, match=f"precision: got .*{kind}.* accepted: {accepted}"):
        pack(mlp(32), torch.randn(4, 6), precision=kind, **options)
    assert list(tmp_path.iterdir()) == []
