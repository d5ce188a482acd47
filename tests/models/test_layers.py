"""The dropout variants: the laws of their masks, equality with torch's own, gradients, eval, export.

A share of kept units is compared with 1 - rate by |z| < 4.5: each such comparison errs with probability 6.8e-6 over
seeds, and the seeds are fixed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from dubito_models.errors import InvalidArgument
from dubito_models.export import export_network, read_example
from dubito_models.layers import (
    ConcreteDropout,
    DropConnectConv1d,
    DropConnectConv2d,
    DropConnectLinear,
    StochasticDepth,
    VariationalGRU,
    VariationalLSTM,
    linear_decay,
)
from dubito_models.program import StochasticProgram

Recurrent = type[VariationalLSTM] | type[VariationalGRU]
RECURRENT = [VariationalLSTM, VariationalGRU]
STOCK = {VariationalLSTM: nn.LSTM, VariationalGRU: nn.GRU}


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def make(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with seeded(seed):
        return build()


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def assert_kept_share(kept: Tensor, rate: float) -> None:
    """The number of kept units is binomial: |z| < 4.5."""
    n = kept.numel()
    z = (float(kept.sum()) - n * (1 - rate)) / math.sqrt(n * rate * (1 - rate))
    assert abs(z) < 4.5, f"z = {z:.1f}"


def assert_scaled_mask(mask: Tensor, rate: float) -> None:
    """A mask holds 0 and 1 / (1 - rate) alone, and keeps a share of 1 - rate."""
    kept = mask != 0
    torch.testing.assert_close(mask[kept], torch.full_like(mask[kept], 1 / (1 - rate)))
    assert_kept_share(kept, rate)


# What every layer promises

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: DropConnectLinear(6, 4, 0.3, drop_bias=True), (5, 6)),
    "conv1d": (lambda: DropConnectConv1d(3, 4, 3, 0.3, padding="same", padding_mode="circular"), (5, 3, 8)),
    "conv2d": (lambda: DropConnectConv2d(2, 4, 3, 0.3, stride=2, groups=2, bias=False), (5, 2, 7, 7)),
    "depth-row": (lambda: StochasticDepth(0.3), (5, 3, 4)),
    "depth-batch": (lambda: StochasticDepth(0.3, "batch"), (5, 3, 4)),
    "lstm": (
        lambda: VariationalLSTM(
            3, 4, 2, batch_first=True, bidirectional=True,
            input_dropout=0.2, hidden_dropout=0.3, output_dropout=0.1, weight_dropout=0.2,
        ),
        (5, 6, 3),
    ),
    "lstm-weights": (lambda: VariationalLSTM(3, 4, batch_first=True, input_dropout=0.2, weight_dropout=0.4), (5, 6, 3)),
    "gru": (
        lambda: VariationalGRU(
            3, 4, 2, batch_first=True, bidirectional=True,
            input_dropout=0.2, hidden_dropout=0.3, output_dropout=0.1, weight_dropout=0.2,
        ),
        (5, 6, 3),
    ),
    "gru-weights": (lambda: VariationalGRU(3, 4, batch_first=True, input_dropout=0.2, weight_dropout=0.4), (5, 6, 3)),
    "concrete": (lambda: ConcreteDropout(0.3), (5, 6)),
    "concrete-spatial": (lambda: ConcreteDropout(0.3, spatial=True), (5, 3, 8)),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", LAYERS)


def first(output: Tensor | tuple[Tensor, object]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@EVERY
def test_training_draws_from_the_global_generator_and_eval_draws_nothing(name: str) -> None:
    """In training two passes differ and the global seed repeats them; in eval the generator is not touched."""
    build, shape = LAYERS[name]
    layer, x = make(build), normal(*shape)
    with seeded(3):
        one, two = first(layer(x)), first(layer(x))
    with seeded(3):
        again = first(layer(x))
    assert torch.equal(one, again)
    assert not torch.equal(one, two) or name == "depth-batch"
    layer.eval()
    before = torch.get_rng_state()
    assert torch.equal(first(layer(x)), first(layer(x)))
    assert torch.equal(before, torch.get_rng_state())


@EVERY
def test_gradients_reach_inputs_and_parameters(name: str) -> None:
    """Backward in training gives finite gradients of the input and of every parameter, not all zero."""
    build, shape = LAYERS[name]
    layer, x = make(build), normal(*shape).requires_grad_()
    with seeded(2):
        for _ in range(4):  # so that a branch is not dropped every time
            first(layer(x)).square().sum().backward()
    for value in (x, *layer.parameters()):
        assert value.grad is not None
        assert bool(value.grad.isfinite().all())
        assert float(value.grad.abs().sum()) > 0


@EVERY
def test_copies_and_loaded_states_are_the_same_layer(name: str) -> None:
    """A deep copy, and a fresh layer with the state loaded, give the same outputs under the same seed."""
    build, shape = LAYERS[name]
    layer, x = make(build), normal(*shape)
    fresh = make(build, seed=9)
    fresh.load_state_dict(layer.state_dict())
    for other in (copy.deepcopy(layer), fresh):
        with seeded(4):
            expected = first(layer(x))
        with seeded(4):
            torch.testing.assert_close(first(other(x)), expected, rtol=0, atol=0)


@EVERY
def test_layers_export_in_training_mode_with_free_rows(name: str) -> None:
    """The graph exported in training runs at other numbers of rows and is the layer's under the same global seed."""
    build, shape = LAYERS[name]
    layer = make(build)
    example = (normal(2, *shape[1:]),)
    program = torch.export.export(layer, example, dynamic_shapes=({0: Dim("rows")},))
    for rows in (2, 5, 7):
        x = normal(rows, *shape[1:])
        with seeded(5):
            expected = first(layer(x))
        with seeded(5):
            found = first(program.module(check_guards=False)(x))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (DropConnectLinear(2, 3, 0.25), "in_features=2, out_features=3, bias=True, rate=0.25, drop_bias=False"),
        (StochasticDepth(0.2, "batch"), "rate=0.2, mode='batch'"),
        (VariationalLSTM(2, 3, 2, hidden_dropout=0.3), "2, 3, num_layers=2, hidden_dropout=0.3"),
        (VariationalGRU(2, 3, batch_first=True), "2, 3, batch_first=True"),
        (ConcreteDropout(0.125, spatial=True), "rate=0.125, temperature=0.1, spatial=True"),
    ],
)
def test_layers_print_what_they_were_given(layer: nn.Module, expected: str) -> None:
    """A printed layer shows its sizes and rates."""
    assert layer.extra_repr() == expected


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_rates_outside_0_to_1_are_refused(rate: float) -> None:
    """Every layer refuses a rate outside [0, 1) and names the argument."""
    builders: list[tuple[str, Callable[[], object]]] = [
        ("rate", lambda: DropConnectLinear(2, 2, rate)),
        ("rate", lambda: DropConnectConv1d(2, 2, 3, rate)),
        ("rate", lambda: DropConnectConv2d(2, 2, 3, rate)),
        ("rate", lambda: StochasticDepth(rate)),
        ("last_rate", lambda: linear_decay(1, 2, rate)),
        ("rate", lambda: ConcreteDropout(rate)),
    ]
    for field in ("input_dropout", "hidden_dropout", "output_dropout", "weight_dropout"):
        builders.append((field, lambda field=field: VariationalLSTM(2, 2, **{field: rate})))
        builders.append((field, lambda field=field: VariationalGRU(2, 2, **{field: rate})))
    for field, build in builders:
        with pytest.raises(InvalidArgument) as caught:
            build()
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "use"),
    [
        ("mode", lambda: StochasticDepth(0.1, "rows")),
        ("depth_index", lambda: linear_decay(0, 4, 0.5)),
        ("depth_index", lambda: linear_decay(5, 4, 0.5)),
        ("rate", lambda: ConcreteDropout(0.0)),
        ("temperature", lambda: ConcreteDropout(0.1, temperature=0.0)),
        ("x", lambda: ConcreteDropout(0.1, spatial=True)(normal(4, 3))),
        ("weights", lambda: ConcreteDropout().regularizer(features=1, rows=1)),
        ("features, rows", lambda: ConcreteDropout().regularizer(normal(2, 2), features=0, rows=1)),
        ("length_scale", lambda: ConcreteDropout().regularizer(normal(2, 2), features=2, rows=1, length_scale=-1.0)),
        ("x", lambda: VariationalLSTM(3, 2)(normal(4, 3))),
        ("x", lambda: VariationalGRU(3, 2).eval()(nn.utils.rnn.pack_sequence([normal(4, 3)]))),
    ],
)
def test_other_impossible_arguments_are_refused(field: str, use: Callable[[], object]) -> None:
    """What cannot be meant is refused by name."""
    with pytest.raises(InvalidArgument) as caught:
        use()
    assert caught.value.field == field


# DropConnect

PLAIN = [
    (lambda: DropConnectLinear(40, 50, 0.3), nn.Linear(40, 50), (3, 40)),
    (lambda: DropConnectConv1d(20, 30, 3, 0.3, padding=1), nn.Conv1d(20, 30, 3, padding=1), (3, 20, 9)),
    (
        lambda: DropConnectConv2d(8, 10, (3, 5), 0.3, dilation=2, padding=(1, 2), padding_mode="reflect"),
        nn.Conv2d(8, 10, (3, 5), dilation=2, padding=(1, 2), padding_mode="reflect"),
        (3, 8, 12, 12),
    ),
]


@pytest.mark.parametrize(("build", "plain", "shape"), PLAIN)
def test_dropconnect_in_eval_is_the_plain_layer(build: Callable[[], nn.Module], plain: nn.Module, shape: tuple) -> None:
    """In eval, and at rate 0 in training, DropConnect is torch's layer with the same state, to the bit."""
    layer, x = build(), normal(*shape)
    layer.load_state_dict(plain.state_dict())
    assert torch.equal(layer.eval()(x), plain(x))
    layer.rate = 0.0
    assert torch.equal(layer.train()(x), plain(x))


@pytest.mark.parametrize(("build", "plain", "shape"), PLAIN)
def test_dropconnect_is_the_plain_layer_with_a_dropped_weight(
    build: Callable[[], nn.Module], plain: nn.Module, shape: tuple
) -> None:
    """A training pass is torch's layer whose weight went through torch's own dropout under the same seed."""
    layer, x = build(), normal(*shape)
    layer.load_state_dict(plain.state_dict())
    with seeded():
        found = layer(x)
    with seeded():
        mask = F.dropout(torch.ones_like(plain.weight), 0.3)
    assert_scaled_mask(mask, 0.3)
    thinned = copy.deepcopy(plain)
    with torch.no_grad():
        thinned.weight.mul_(mask)
    torch.testing.assert_close(found, thinned(x))


def test_dropconnect_masks_weights_not_inputs() -> None:
    """Each weight entry is kept alone with 1 - rate, scaled, and one mask serves all rows; the bias only if asked."""
    for drop_bias in (False, True):
        layer = DropConnectLinear(100, 120, 0.2, drop_bias=drop_bias)
        nn.init.ones_(layer.weight)
        nn.init.ones_(layer.bias)
        rows = torch.cat([torch.eye(100), torch.eye(100), torch.zeros(1, 100)])
        with seeded():
            output = layer(rows)  # (201, 120)
        bias = output[-1]
        assert torch.equal(output[:100], output[100:200])
        mask = output[:100] - bias
        assert_scaled_mask(mask.where(mask.abs() > 1e-3, 0), 0.2)
        assert bool((bias == 1).all()) != drop_bias
    assert_scaled_mask(bias, 0.2)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: DropConnectLinear(4, 3, 0.3), (2, 4)),
        (lambda: DropConnectConv1d(4, 3, 2, 0.3), (2, 4, 5)),
        (lambda: DropConnectConv2d(4, 3, 2, 0.3), (2, 4, 5, 5)),
    ],
)
def test_dropconnect_exports_one_dropout_on_the_weight(build: Callable[[], nn.Module], shape: tuple) -> None:
    """The graph holds one dropout node, and it reads the weight: a site without rows when packed."""
    layer = build()
    program = torch.export.export(layer, (normal(*shape),), dynamic_shapes=({0: Dim("rows")},))
    found = dropouts(program)
    assert [tuple(node.args[0].meta["val"].shape) for node in found] == [tuple(layer.weight.shape)]
    assert program.graph_signature.inputs_to_parameters[found[0].args[0].name] == "weight"


def dropouts(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    return [node for node in program.graph.nodes if node.target is torch.ops.aten.dropout.default]


# Stochastic depth


def test_stochastic_depth_decides_for_each_row() -> None:
    """In mode "row" a row's branch is 0 or scaled as a whole; rows are decided apart."""
    x = torch.ones(20_000, 2, 3)
    with seeded():
        output = StochasticDepth(0.3)(x)
    assert torch.equal(output, output[:, :1, :1].expand_as(output))
    assert_scaled_mask(output[:, 0, 0], 0.3)


def test_stochastic_depth_decides_once_for_the_batch() -> None:
    """In mode "batch" all rows share a pass's decision, and passes are decided apart."""
    depth, x = StochasticDepth(0.3, "batch"), torch.ones(4, 2)
    with seeded():
        outputs = torch.stack([depth(x) for _ in range(3000)])  # (passes, 4, 2)
    assert torch.equal(outputs, outputs[:, :1, :1].expand_as(outputs))
    assert_scaled_mask(outputs[:, 0, 0], 0.3)


@pytest.mark.parametrize("layer", [StochasticDepth(0.3), StochasticDepth(0.3, "batch"), ConcreteDropout(0.3)])
def test_eval_is_the_identity(layer: nn.Module) -> None:
    """In eval the input itself comes back."""
    x = normal(3, 4)
    assert layer.eval()(x) is x


def test_linear_decay_falls_from_the_first_block_to_the_last() -> None:
    """Survival is 1 - l / L (1 - p_L): equal steps, the last block at the last rate."""
    rates = [linear_decay(index, 4, 0.5) for index in (1, 2, 3, 4)]
    assert rates == [0.125, 0.25, 0.375, 0.5]


@pytest.mark.parametrize(("mode", "shape"), [("row", ("1", "1")), ("batch", ("1", "1", "1"))])
def test_stochastic_depth_packs_as_one_decision_per_draw(mode: str, shape: tuple[str, ...]) -> None:
    """Its site is one number per draw in both modes, which mask 1 bypasses and mask 0 cuts off."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.depth = nn.Linear(4, 4), StochasticDepth(0.3, mode)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.depth(self.linear(x))

    module, x = make(Residual), normal(3, 2, 4)
    example = read_example(module, x)
    exported = export_network(module, example)
    program = StochasticProgram(exported.stochastic, {"x": {}}, exported.output)
    assert [(site.rate, site.shape) for site in program.sites] == [(0.3, shape)]
    boundary = program.prefix({"x": x})
    torch.testing.assert_close(program.suffix(boundary, program.bypass({"rows": 3})), module.eval()(x))
    off = [torch.zeros(sizes) for sizes in program.mask_shapes({"rows": 3})]
    torch.testing.assert_close(program.suffix(boundary, off), x)


# Recurrent


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_recurrent_eval_is_torchs(kind: Recurrent, bidirectional: bool, bias: bool) -> None:
    """In eval, outputs and states equal nn.LSTM's and nn.GRU's with the same state, to the bit."""
    options = {"bidirectional": bidirectional, "bias": bias, "batch_first": True}
    layer = kind(3, 5, 2, input_dropout=0.3, hidden_dropout=0.3, output_dropout=0.3, weight_dropout=0.3, **options)
    stock = STOCK[kind](3, 5, 2, **options)
    layer.load_state_dict(stock.state_dict())
    found, expected = layer.eval()(normal(4, 7, 3)), stock(normal(4, 7, 3))
    for one, other in zip(flat(found), flat(expected), strict=True):
        assert torch.equal(one, other)


def flat(values: Tensor | tuple) -> list[Tensor]:
    return [values] if isinstance(values, Tensor) else [leaf for value in values for leaf in flat(value)]


def first_state(kind: Recurrent, *shape: int) -> Tensor | tuple[Tensor, Tensor]:
    h = normal(*shape)
    return (h, -h) if kind is VariationalLSTM else h


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("rates", [("hidden_dropout",), ("input_dropout", "output_dropout", "weight_dropout")])
@pytest.mark.parametrize("bias", [False, True])
def test_recurrent_training_without_drops_is_torchs(
    kind: Recurrent, batch_first: bool, bidirectional: bool, rates: tuple[str, ...], bias: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Where every mask is 1, both ways of training (loop and kernel) give torch's outputs and states (to 1e-6)."""
    options = {"bidirectional": bidirectional, "bias": bias, "batch_first": batch_first}
    layer = make(lambda: kind(3, 5, 2, **dict.fromkeys(rates, 0.5), **options))
    stock = STOCK[kind](3, 5, 2, **options)
    stock.load_state_dict(layer.state_dict())
    x, hx = normal(4, 6, 3), first_state(kind, 4 if bidirectional else 2, 4 if batch_first else 6, 5)
    monkeypatch.setattr(F, "dropout", lambda x, *_: x)
    for given in ((x,), (x, hx)):
        for one, other in zip(flat(layer(*given)), flat(stock(*given)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", RECURRENT)
def test_output_masks_are_tied_over_time_and_free_over_rows_and_units(kind: Recurrent) -> None:
    """An output mask holds for a whole sequence, is drawn per row and unit, and leaves the returned state alone."""
    layer = make(lambda: kind(2, 40, output_dropout=0.3))
    x = normal(5, 100, 2)
    with seeded():
        thinned, last = layer(x)
    plain, expected = layer.eval()(x)
    mask = thinned / plain  # (T, B, H)
    torch.testing.assert_close(mask, mask[:1].expand_as(mask))
    assert_scaled_mask(mask[0], 0.3)
    for one, other in zip(flat(last), flat(expected), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", RECURRENT)
def test_input_masks_are_tied_over_time_and_directions(kind: Recurrent) -> None:
    """Training with an input mask is eval on inputs times one mask (B, F) for all steps and both directions."""
    layer = make(lambda: kind(30, 4, input_dropout=0.3, bidirectional=True))
    x = normal(5, 60, 30)
    with seeded():
        found = layer(x)
    with seeded():
        mask = F.dropout(torch.ones(1, 60, 30), 0.3)
    assert_scaled_mask(mask, 0.3)
    for one, other in zip(flat(found), flat(layer.eval()(x * mask)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_locked_mask_on_the_hidden_state_is_a_column_mask_on_the_recurrent_weight(kind: Recurrent) -> None:
    """For each row, training with its hidden mask m is torch's layer with W_hh * m[None, :], to 1e-6."""
    layer = make(lambda: kind(3, 8, hidden_dropout=0.4))
    x, hx = normal(9, 5, 3), first_state(kind, 1, 5, 8)
    with seeded(), torch.no_grad():
        found, _ = layer(x, hx)
    with seeded():
        masks = F.dropout(torch.ones(5, 8), 0.4)  # (B, H)
    for row, mask in enumerate(masks):
        stock = STOCK[kind](3, 8)
        stock.load_state_dict(layer.state_dict())
        state = tuple(s[:, row : row + 1] for s in hx) if isinstance(hx, tuple) else hx[:, row : row + 1]
        with torch.no_grad():
            stock.weight_hh_l0.mul_(mask[None, :])
            expected, _ = stock(x[:, row : row + 1], state)
        torch.testing.assert_close(found[:, row : row + 1], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", RECURRENT)
def test_hidden_masks_keep_their_share_per_row_and_unit(kind: Recurrent) -> None:
    """A hidden mask is drawn per row and unit and scaled: seen by a step whose recurrent product is the identity."""
    layer = make(lambda: kind(1, 30, hidden_dropout=0.25, bias=False))
    gates = layer.weight_hh_l0.shape[0] // 30
    nn.init.zeros_(layer.weight_ih_l0)
    with torch.no_grad():
        layer.weight_hh_l0.copy_(torch.eye(30).repeat(gates, 1))
    seen: list[Tensor] = []
    step = layer.step

    def watch(read: Tensor, recurrent: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append((recurrent / states[0].repeat(1, gates)).unflatten(-1, (gates, 30)))  # (B, gates, H)
        return step(read, recurrent, states)

    layer.step = watch
    hx = first_state(kind, 1, 100, 30)
    with seeded(), torch.no_grad():
        layer(torch.zeros(3, 100, 1), hx)
    masks = torch.stack(seen)  # (T, B, gates, H)
    torch.testing.assert_close(masks, masks[:1, :, :1].expand_as(masks), rtol=1e-4, atol=1e-5)
    assert_scaled_mask(masks[0, :, 0], 0.25)


@pytest.mark.parametrize("kind", RECURRENT)
def test_dropped_recurrent_weights_are_shared_by_rows_and_steps(kind: Recurrent) -> None:
    """Training with weight dropout is torch's layer whose every W_hh went through torch's dropout, and no other."""
    layer = make(lambda: kind(3, 40, 2, weight_dropout=0.4))
    stock = STOCK[kind](3, 40, 2)
    stock.load_state_dict(layer.state_dict())
    x = normal(6, 5, 3)
    with seeded(), torch.no_grad():
        found = layer(x)
    with seeded(), torch.no_grad():
        for weight in (stock.weight_hh_l0, stock.weight_hh_l1):
            mask = F.dropout(torch.ones_like(weight), 0.4)
            assert_scaled_mask(mask, 0.4)
            weight.mul_(mask)
        expected = stock(x)
    for one, other in zip(flat(found), flat(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", RECURRENT)
def test_the_loop_and_the_kernel_have_the_same_gradients(kind: Recurrent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every mask is 1, the gradients of the loop over time are those of torch's kernel."""
    layer = make(lambda: kind(3, 4, 2, hidden_dropout=0.5))
    stock = STOCK[kind](3, 4, 2)
    stock.load_state_dict(layer.state_dict())
    monkeypatch.setattr(F, "dropout", lambda x, *_: x)
    for module in (layer, stock):
        module(normal(5, 2, 3))[0].square().sum().backward()
    for one, other in zip(layer.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


# Concrete


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_concrete_masks_keep_more_than_half_with_one_minus_the_rate(rate: float, temperature: float) -> None:
    """A relaxed mask is above half of 1 / (1 - rate) with probability 1 - rate, whatever the temperature."""
    with seeded(), torch.no_grad():
        mask = ConcreteDropout(rate, temperature=temperature)(torch.ones(100, 200)) * (1 - rate)
    assert 0 <= float(mask.min()) <= float(mask.max()) <= 1 + 1e-6
    assert_kept_share(mask > 0.5, rate)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_concrete_masks_have_the_moments_of_the_relaxation(rate: float) -> None:
    """The mean of a mask is that of the relaxation, by quadrature (|z| < 4.5); it is within 0.3 % of dropout's 1."""
    u = (np.arange(200_000) + 0.5) / 200_000
    kept = 1 / (1 + np.exp((np.log(rate / (1 - rate)) + np.log(u / (1 - u))) / 0.1))
    expected, deviation = kept.mean() / (1 - rate), kept.std() / (1 - rate)
    with seeded(), torch.no_grad():
        mask = ConcreteDropout(rate)(torch.ones(200, 200, dtype=torch.float64))
    assert abs(float(mask.mean()) - expected) < 4.5 * deviation / 200
    assert abs(expected - 1) < 0.003


def test_concrete_masks_become_dropouts_as_the_temperature_falls() -> None:
    """At a temperature near 0 a mask is 0 or 1 / (1 - rate), as nn.Dropout's."""
    with seeded(), torch.no_grad():
        mask = ConcreteDropout(0.3, temperature=1e-6)(torch.ones(100, 100))
    assert_scaled_mask(mask.round(decimals=6), 0.3)


def test_spatial_concrete_dropout_is_tied_over_a_channel() -> None:
    """With `spatial` one number multiplies a whole channel of a row; channels and rows are drawn apart."""
    with seeded(), torch.no_grad():
        mask = ConcreteDropout(0.3, spatial=True)(torch.ones(100, 50, 3, 2)) * 0.7
    assert torch.equal(mask, mask[:, :, :1, :1].expand_as(mask))
    assert_kept_share(mask[:, :, 0, 0] > 0.5, 0.3)


def test_the_learned_rate_has_the_relaxations_gradient() -> None:
    """Autograd's derivative by the logit is the finite difference under the same noise."""
    layer, x = ConcreteDropout(0.3, temperature=0.5).double(), normal(4, 3, dtype=torch.float64)

    def loss(logit: Tensor) -> Tensor:
        with seeded():
            return torch.func.functional_call(layer, {"logit": logit}, (x,)).square().sum()

    assert torch.autograd.gradcheck(loss, (layer.logit,))


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_the_regularizer_is_the_papers(rate: float) -> None:
    """It is [l^2 (1 - p) / 2 ||M||^2 - K H(p)] / N with M = W / (1 - p), summed over the weights."""
    layer = ConcreteDropout(rate).double()
    one, two = normal(5, 7, dtype=torch.float64), normal(3, 7, dtype=torch.float64)
    p = 1 / (1 + math.exp(-float(layer.logit.detach())))
    squares = sum(float((weight / (1 - p)).square().sum()) for weight in (one, two))
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    expected = (0.3**2 * (1 - p) / 2 * squares - 7 * entropy) / 40
    found = layer.regularizer(one, two, features=7, rows=40, length_scale=0.3)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-12)


def test_the_regularizer_is_finite_at_extreme_rates() -> None:
    """Where a rate rounds to 0 or 1 in float32, term and gradient are finite."""
    for logit in (-60.0, 60.0):
        layer = ConcreteDropout()
        with torch.no_grad():
            layer.logit.fill_(logit)
        term = layer.regularizer(torch.zeros(2, 2), features=2, rows=1)
        term.backward()
        assert bool(term.isfinite())
        assert bool(layer.logit.grad.isfinite())


def learn(weights: Tensor, length_scale: float) -> float:
    layer = ConcreteDropout(0.2)
    optimizer = torch.optim.Adam(layer.parameters(), 0.05)
    for _ in range(300):
        optimizer.zero_grad()
        layer.regularizer(weights, features=4, rows=10, length_scale=length_scale).backward()
        optimizer.step()
    return layer.rate


def test_entropy_alone_learns_a_half_and_large_weights_learn_less() -> None:
    """The entropy term alone is least at 1/2; a weight term moves the rate to where its derivative is 0."""
    assert learn(torch.zeros(4, 4), 1.0) == pytest.approx(0.5, abs=1e-3)
    rate = learn(torch.ones(4, 4), 1.0)
    # d/dp [16 / (2 (1 - p)) - 4 H(p)] = 8 / (1 - p)^2 - 4 log((1 - p) / p) = 0
    assert 8 / (1 - rate) ** 2 == pytest.approx(4 * math.log((1 - rate) / rate), rel=1e-2)


# Torch's own, which need no layer of ours


def test_torchs_spatial_dropout_drops_whole_channels() -> None:
    """nn.Dropout1d/2d/3d keep or drop a channel of a row as a whole, scaled, with 1 - rate."""
    for kind, axes in ((nn.Dropout1d, 1), (nn.Dropout2d, 2), (nn.Dropout3d, 3)):
        with seeded():
            mask = kind(0.3)(torch.ones(100, 50, *(2,) * axes)).flatten(2)
        assert torch.equal(mask, mask[:, :, :1].expand_as(mask))
        assert_scaled_mask(mask[:, :, 0], 0.3)


def test_torchs_alpha_dropout_keeps_mean_and_variance() -> None:
    """nn.AlphaDropout leaves mean 0 and variance 1 of standard normal units as they are (|z| < 4.5), drops with rate.

    A dropped unit holds the one value a * alpha' + b of Klambauer et al. 2017.
    """
    n, rate, saturated = 200_000, 0.1, -1.7580993408473766  # -lambda alpha
    with seeded():
        x = torch.randn(n, dtype=torch.float64)
        y = nn.AlphaDropout(rate)(x)
    a = ((1 - rate) * (1 + rate * saturated**2)) ** -0.5
    b = -a * rate * saturated
    assert_kept_share((y - (a * saturated + b)).abs() > 1e-9, rate)
    assert abs(float(y.mean())) < 4.5 / math.sqrt(n)
    assert abs(float(y.square().mean()) - 1) < 4.5 * float(y.square().std()) / math.sqrt(n)
