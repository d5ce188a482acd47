"""Every variant of dropout, packed: its sites, draws that differ, a default seed that repeats, the original's masks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dubito_models.errors import UnsupportedNetwork
from dubito_models.export import ROWS
from dubito_models.layers import (
    ConcreteDropout,
    DropConnectConv1d,
    DropConnectConv2d,
    DropConnectLinear,
    StochasticDepth,
    VariationalGRU,
    VariationalLSTM,
)
from dubito_models.package import ModelVersion, load_version
from dubito_models.packing import pack
from dubito_models.replacing import replace_layers
from dubito_models.sampling import SamplingSpec
from dubito_models.thinning import Design
from networks import program_for, random_masks, under_masks

SEQUENCE, IMAGE, VECTOR = (6, 4), (3, 8, 8), (12,)


class Net(nn.Module):
    """Something before and behind the layer in question, so that its draws reach the prediction."""

    def __init__(self, shape: tuple[int, ...], layer: nn.Module, *, recurrent: bool = False) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.first: nn.Module = nn.Identity()
        if len(shape) == 1:
            self.first = nn.Linear(shape[0], 12)
        elif len(shape) > 2:
            self.first = (nn.Conv2d if len(shape) == 3 else nn.Conv3d)(shape[0], 3, 3, padding=1)
        self.layer = layer
        with torch.no_grad():
            width = self._read(torch.zeros(2, *shape)).shape[1]
        self.head = nn.Linear(width, 3)

    def _read(self, x: Tensor) -> Tensor:
        x = self.layer(self.first(x))
        return (x[0] if self.recurrent else x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 3)."""
        return self.head(self._read(x))


class Residual(nn.Module):
    def __init__(self, depth: nn.Module) -> None:
        super().__init__()
        self.branch, self.depth = nn.Linear(12, 12), depth

    def forward(self, x: Tensor) -> Tensor:
        return x + self.depth(torch.relu(self.branch(x)))


def rnn(kind: type[VariationalLSTM] | type[VariationalGRU], **options: Any) -> Callable[[], Net]:
    return lambda: Net(SEQUENCE, kind(4, 5, batch_first=True, **options), recurrent=True)


ALL_RATES = {"input_dropout": 0.2, "hidden_dropout": 0.3, "output_dropout": 0.1, "weight_dropout": 0.4}
INPUT, OUTPUT = ("channel", 0.2, ("4",)), ("channel", 0.1, ("5",))
Sites = Sequence[tuple[str, float, tuple[str, ...]]]

VARIANTS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...], Sites]] = {
    "standard": (lambda: Net(VECTOR, nn.Dropout(0.3)), VECTOR, [("element", 0.3, ("12",))]),
    "spatial-1d": (lambda: Net(SEQUENCE, nn.Dropout1d(0.3)), SEQUENCE, [("channel", 0.3, ("6",))]),
    "spatial-2d": (lambda: Net(IMAGE, nn.Dropout2d(0.3)), IMAGE, [("channel", 0.3, ("3",))]),
    "spatial-3d": (lambda: Net((2, 4, 4, 4), nn.Dropout3d(0.3)), (2, 4, 4, 4), [("channel", 0.3, ("3",))]),
    "alpha": (lambda: Net(VECTOR, nn.AlphaDropout(0.2)), VECTOR, [("alpha", 0.2, ("12",))]),
    "channel-alpha": (lambda: Net(IMAGE, nn.FeatureAlphaDropout(0.2)), IMAGE, [("channel_alpha", 0.2, ("3",))]),
    "dropconnect": (
        lambda: Net(VECTOR, DropConnectLinear(12, 7, 0.4, drop_bias=True)), VECTOR,
        [("weight", 0.4, ("7",)), ("weight", 0.4, ("7", "12"))],
    ),
    "dropconnect-1d": (
        lambda: Net(SEQUENCE, DropConnectConv1d(6, 5, 3, 0.4)), SEQUENCE, [("weight", 0.4, ("5", "6", "3"))]
    ),
    "dropconnect-2d": (
        lambda: Net(IMAGE, DropConnectConv2d(3, 5, 3, 0.4)), IMAGE, [("weight", 0.4, ("5", "3", "3", "3"))]
    ),
    "depth-row": (lambda: Net(VECTOR, Residual(StochasticDepth(0.3))), VECTOR, [("branch", 0.3, ("1",))]),
    "depth-batch": (
        lambda: Net(VECTOR, Residual(StochasticDepth(0.3, mode="batch"))), VECTOR, [("branch", 0.3, ("1", "1"))]
    ),
    "concrete": (lambda: Net(VECTOR, ConcreteDropout(0.25)), VECTOR, [("element", 0.25, ("12",))]),
    "concrete-1d": (lambda: Net(SEQUENCE, ConcreteDropout(0.25, spatial=True)), SEQUENCE, [("channel", 0.25, ("6",))]),
    "concrete-2d": (lambda: Net(IMAGE, ConcreteDropout(0.25, spatial=True)), IMAGE, [("channel", 0.25, ("3",))]),
    "lstm-input": (rnn(VariationalLSTM, input_dropout=0.2), SEQUENCE, [INPUT]),
    "lstm-hidden": (rnn(VariationalLSTM, hidden_dropout=0.3), SEQUENCE, [("weight", 0.3, ("5",))]),
    "lstm-output": (rnn(VariationalLSTM, output_dropout=0.1), SEQUENCE, [OUTPUT]),
    "lstm-weight": (rnn(VariationalLSTM, weight_dropout=0.4), SEQUENCE, [("weight", 0.4, ("20", "5"))]),
    "gru-hidden": (rnn(VariationalGRU, hidden_dropout=0.3), SEQUENCE, [("weight", 0.3, ("5",))]),
    "gru-all": (
        rnn(VariationalGRU, **ALL_RATES), SEQUENCE,
        [INPUT, ("weight", 0.4, ("15", "5")), ("weight", 0.3, ("5",)), OUTPUT],
    ),
    "lstm-stack": (
        rnn(VariationalLSTM, num_layers=2, bidirectional=True, **ALL_RATES), SEQUENCE,
        [INPUT, *[("weight", 0.4, ("20", "5")), ("weight", 0.3, ("5",))] * 2,
         ("channel", 0.2, ("10",)), *[("weight", 0.4, ("20", "5")), ("weight", 0.3, ("5",))] * 2,
         ("channel", 0.1, ("10",))],
    ),
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, Tensor]:
    make, shape, _ = VARIANTS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(), torch.randn(5, *shape)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelVersion]:
    versions: dict[str, ModelVersion] = {}
    repository = tmp_path_factory.mktemp("repository")

    def get(name: str) -> ModelVersion:
        if name not in versions:
            network, rows = build(name)
            version = pack(network, rows, repository=repository, name=name, task="classification", head="logits")
            versions[name] = load_version(version.folder)
        return versions[name]

    return get


@pytest.mark.parametrize("name", VARIANTS)
def test_sites_are_found_with_kind_rate_and_shape(packed: Callable[[str], ModelVersion], name: str) -> None:
    found = [(site.kind, pytest.approx(site.rate), site.shape) for site in packed(name).manifest.sites]
    assert sorted(map(str, found)) == sorted(str((k, pytest.approx(r, rel=1e-6), s)) for k, r, s in VARIANTS[name][2])


@pytest.mark.parametrize("name", VARIANTS)
def test_draws_differ_and_the_default_seed_repeats(packed: Callable[[str], ModelVersion], name: str) -> None:
    """Two calls agree bit for bit; no two draws of a group are all alike; another seed draws others."""
    version, (_, rows) = packed(name), build(name)
    first, again = (version.predict(rows.numpy(), SamplingSpec(raw_draws=True)) for _ in range(2))
    assert first.raw_draws is not None
    np.testing.assert_array_equal(first.raw_draws, again.raw_draws)
    spread = first.raw_draws.std(0)
    assert (spread.max(-1) > 1e-4).all(), "every row's prediction varies over draws"
    other = version.predict(rows.numpy(), SamplingSpec(raw_draws=True, seed=7)).raw_draws
    assert not np.array_equal(other, first.raw_draws)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_standard_path_is_the_modules_own(packed: Callable[[str], ModelVersion], name: str) -> None:
    """By onnxruntime, on rows that packing has not seen, and as many as it has not seen."""
    network, rows = build(name)
    more = torch.cat([rows, rows.flip(0) * 0.5])
    with torch.no_grad():
        expected = network.eval()(more).softmax(-1).numpy()
    np.testing.assert_allclose(packed(name).evaluate(more.numpy()).probabilities, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_each_draw_has_a_mask_of_its_own_that_keeps_the_layers_share(
    packed: Callable[[str], ModelVersion], name: str
) -> None:
    """Weights too: every unit is kept in some draws and dropped in others.

    |z| < 4.5, two-sided, is a false alarm of 7e-6 for each of 35 sites; a unit is never dropped by .9**256 = 2e-12.
    """
    engine = packed(name).engine
    masks = engine.masks.draws({ROWS: 5}, 0, Design.INDEPENDENT, 0, 256)
    for site, mask in zip(engine.program.sites, masks, strict=True):
        kept = mask != 0
        assert kept.any(0).all()
        assert not kept.all(0).any()
        trials = kept.numel()
        z = (float(kept.sum()) - trials * (1 - site.rate)) / (trials * site.rate * (1 - site.rate)) ** 0.5
        assert abs(z) < 4.5
        torch.testing.assert_close(mask[kept].unique(), torch.tensor([site.kept]))


RECURRENT = {
    "lstm": lambda: VariationalLSTM(4, 5, num_layers=2, batch_first=True, bidirectional=True, **ALL_RATES),
    "gru": lambda: VariationalGRU(4, 5, num_layers=2, batch_first=True, bidirectional=True, **ALL_RATES),
    "lstm-no-bias": lambda: VariationalLSTM(4, 5, batch_first=True, bias=False, hidden_dropout=0.5),
    "gru-weights": lambda: VariationalGRU(4, 5, batch_first=True, weight_dropout=0.5, output_dropout=0.3),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_a_draw_is_the_original_in_training_under_the_same_masks(name: str) -> None:
    """Law 1: stepped through time by the layer itself, each row's mask being the draw's."""
    torch.manual_seed(1)
    network, rows = Net(SEQUENCE, RECURRENT[name](), recurrent=True), torch.randn(5, *SEQUENCE)
    program = program_for(network, rows)
    with torch.inference_mode():
        boundary = program.prefix({"x": rows})
        masks = random_masks(program, boundary.symbols, draws=4)
        for draw in range(4):
            chosen = [mask[draw] for mask in masks]
            own = program.suffix(boundary, chosen)
            theirs = under_masks(network, {"x": rows}, chosen, sequence_first=True)
            torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [VariationalLSTM, VariationalGRU])
def test_a_draw_is_the_original_where_time_comes_first_and_states_are_given(
    kind: type[VariationalLSTM] | type[VariationalGRU],
) -> None:
    class Started(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.start, self.head = kind(4, 5, num_layers=2, **ALL_RATES), nn.Linear(4, 10), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.start(x.mean(1)).unflatten(1, (2, 5)).transpose(0, 1)
            out, _ = self.rnn(x.transpose(0, 1), (h, h.tanh()) if isinstance(self.rnn, nn.LSTM) else h)
            return self.head(out[-1])

    torch.manual_seed(1)
    network, rows = Started(), torch.randn(5, *SEQUENCE)
    program = program_for(network, rows, dynamic={"x": {1: "steps"}})
    for steps in (6, 11):
        x = torch.randn(3, steps, 4)
        with torch.inference_mode():
            boundary = program.prefix({"x": x})
            masks = [mask[0] for mask in random_masks(program, boundary.symbols, draws=1)]
            own = program.suffix(boundary, masks)
        torch.testing.assert_close(own, under_masks(network, {"x": x}, masks), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_replaced_layer_takes_and_gives_what_the_original_does(name: str, batch_first: bool) -> None:
    """In eval: outputs and last states, with first states given or not, whichever axis comes first; bit for bit."""
    layer = RECURRENT[name]().eval()
    layer.batch_first = batch_first
    replaced = replace_layers(nn.Sequential(copy.deepcopy(layer)))[0]
    x = torch.randn((5, 6, 4) if batch_first else (6, 5, 4))
    directions = 2 if layer.bidirectional else 1
    h = torch.randn(layer.num_layers * directions, 5, 5)
    first = (h, torch.randn_like(h)) if isinstance(layer, VariationalLSTM) else h
    with torch.no_grad():
        for given in ((), (first,)):
            expected, found = layer(x, *given), replaced(x, *given)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_network_may_ask_a_replaced_layer_for_its_sizes() -> None:
    layer = RECURRENT["lstm"]()
    replaced = replace_layers(nn.Sequential(layer))[0]
    assert isinstance(replaced, VariationalLSTM)
    assert (replaced.hidden_size, replaced.batch_first, replaced.weight_hh_l0.shape) == (5, True, (20, 5))


def test_a_layer_with_a_forward_of_its_own_is_refused(tmp_path: Path) -> None:
    class Mine(ConcreteDropout):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    network = nn.Sequential(nn.Linear(4, 4), Mine(0.3), nn.Linear(4, 3))
    with pytest.raises(UnsupportedNetwork, match="Mine is a ConcreteDropout with a forward of its own"):
        pack(network, torch.randn(2, 4), repository=tmp_path, name="mine", task="classification", head="logits")
    assert not list(tmp_path.iterdir())


def test_packing_leaves_the_callers_layers_alone(tmp_path: Path) -> None:
    network, rows = build("concrete")
    pack(network, rows, repository=tmp_path, name="kept", task="classification", head="logits")
    assert isinstance(network.layer, ConcreteDropout)
    assert network.training
