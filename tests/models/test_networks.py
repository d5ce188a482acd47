"""The reference architectures: what all of them promise, and where MLP and CNN have their dropout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from dubito_models.errors import InvalidArgument
from dubito_models.heads import Head, count_outputs
from dubito_models.layers import ConcreteDropout, DropConnectLinear, Penalized
from dubito_models.networks import CNN, MLP, RNN, BoundedLogVariance, ConcreteLayer, ResNet, Transformer

Shape = tuple[int, ...]
DIGITS, COLOURS = (1, 8, 8), (3, 32, 32)
TOKENS = 11  # the vocabulary


def mlp(variant: str) -> Callable[[Shape, int], nn.Module]:
    return lambda shape, outputs: MLP(math.prod(shape), (32, 16), outputs, 0.3, input_dropout=0.1, variant=variant)


def cnn(variant: str) -> Callable[[Shape, int], nn.Module]:
    return lambda shape, outputs: CNN(
        shape, (8, 16), outputs, channel_dropout=0.2, head_width=16, head_dropout=0.4, variant=variant
    )


def resnet(pre: bool) -> Callable[[Shape, int], nn.Module]:
    return lambda shape, outputs: ResNet(
        shape, (8, 16), outputs, blocks=1, pre_activation=pre, stochastic_depth=0.4, head_dropout=0.1
    )


def rnn(**options: object) -> Callable[[Shape, int], nn.Module]:
    return lambda shape, outputs: RNN(shape, 12, outputs, **options)


def transformer(**options: object) -> Callable[[Shape, int], nn.Module]:
    return lambda shape, outputs: Transformer(shape, 16, outputs, feedforward=24, **options)


# Of every architecture each choice at least once, with every kind of row that it reads.
CASES: dict[str, tuple[Callable[[Shape, int], nn.Module], Shape]] = {
    "mlp": (mlp("standard"), DIGITS),
    "mlp-colours": (mlp("standard"), COLOURS),
    "mlp-alpha": (mlp("alpha"), DIGITS),
    "mlp-dropconnect": (mlp("dropconnect"), DIGITS),
    "mlp-concrete": (mlp("concrete"), DIGITS),
    "cnn": (cnn("standard"), DIGITS),
    "cnn-colours": (cnn("standard"), COLOURS),
    "cnn-concrete": (cnn("concrete"), DIGITS),
    "resnet": (resnet(False), DIGITS),
    "resnet-colours": (resnet(False), COLOURS),
    "resnet-pre": (resnet(True), DIGITS),
    "lstm": (rnn(), DIGITS),
    "lstm-colours": (rnn(hidden_dropout=0.0, weight_dropout=0.2, pooling="mean"), COLOURS),
    "lstm-both": (rnn(layers=2, bidirectional=True), (6, 3)),
    "gru": (rnn(cell="gru", bidirectional=True, pooling="mean"), (6, 3)),
    "transformer": (transformer(stochastic_depth=0.3), DIGITS),
    "transformer-class": (transformer(pooling="class", positions="sinusoidal"), (6, 3)),
    "transformer-tokens": (transformer(vocabulary=TOKENS), (6,)),
}


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def rows(count: int, shape: Shape) -> Tensor:
    """Numbers (count, ...); tokens where a row is one sequence."""
    generator = torch.Generator().manual_seed(0)
    if len(shape) == 1:
        return torch.randint(TOKENS, (count, *shape), generator=generator)
    return torch.rand((count, *shape), generator=generator)


def build(case: str, outputs: int = 10) -> tuple[nn.Module, Shape]:
    make, shape = CASES[case]
    with seeded():
        return make(shape, outputs), shape


# What every architecture promises


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("head", "outputs", "predicted"),
    [(Head.LOGITS, 10, 10), (Head.LOGIT, 1, 2), (Head.MEAN, 3, 3), (Head.MEAN_AND_LOG_VARIANCE, 6, 3)],
)
def test_raw_outputs_fit_every_head(case: str, head: Head, outputs: int, predicted: int) -> None:
    """Rows (B, ...) become raw outputs (B, K), or (B, 2 K), that the head can read."""
    network, shape = build(case, outputs)
    for count in (1, 5):
        raw = network.eval()(rows(count, shape))
        assert raw.shape == (count, outputs)
        assert count_outputs(head, tuple(raw.shape)) == predicted


@pytest.mark.parametrize("case", CASES)
def test_only_training_is_random(case: str) -> None:
    """Two passes differ in train mode and agree to the bit in eval mode."""
    network, shape = build(case)
    x = rows(4, shape)
    with seeded():
        assert not torch.equal(network.train()(x), network(x))
    assert torch.equal(network.eval()(x), network(x))


@pytest.mark.parametrize("case", CASES)
def test_gradients_reach_every_parameter(case: str) -> None:
    """Training moves each parameter, learned rates among them."""
    network, shape = build(case)
    with seeded():
        loss = network.train()(rows(32, shape)).square().mean()
    loss.backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
    assert all(p.grad.isfinite().all() for p in network.parameters())


# torch takes the flat weights of its own nn.LSTM for tensors that were assigned.
@pytest.mark.filterwarnings("ignore:The tensor attributes self.recurrent._flat_weights")
@pytest.mark.parametrize("case", CASES)
def test_export_keeps_the_rows_free(case: str) -> None:
    """The exported network agrees with the module at numbers of rows that it was not exported with."""
    network, shape = build(case)
    network.eval()
    program = torch.export.export(network, (rows(2, shape),), dynamic_shapes=({0: Dim("rows")},)).module()
    for count in (1, 3, 7):
        torch.testing.assert_close(program(rows(count, shape)), network(rows(count, shape)))


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        # 64 x 32 + 32 x 16 + 16 x 10 weights, and 32 + 16 + 10 biases
        (lambda: MLP(64, (32, 16), 10), 2_778),
        # He et al. 2016, table 6: 0.27M for 20 layers. 269 722 with shortcuts free of parameters, as there; here two of
        # them are 1x1 convolutions with batch norm: 16 x 32 + 2 x 32 and 32 x 64 + 2 x 64 more
        (lambda: ResNet(COLOURS, (16, 32, 64), 10, blocks=3), 272_474),
        # each direction 4 gates of 12 units, which read 8 numbers and 12 states, with two biases; 24 x 10 + 10
        (lambda: RNN(DIGITS, 12, 10, bidirectional=True), 2 * 4 * 12 * (8 + 12 + 2) + 250),
        # 3 gates
        (lambda: RNN((5, 8), 12, 10, cell="gru"), 3 * 12 * (8 + 12 + 2) + 130),
        # a block: attention 4 D^2 + 4 D, feed-forward 8 D^2 + 5 D, norms 4 D; then embedding, positions, norm, head
        (
            lambda: Transformer((6,), 16, 10, vocabulary=11, layers=3),
            3 * (12 * 16**2 + 13 * 16) + 11 * 16 + 6 * 16 + 2 * 16 + 170,
        ),
        # sines are not learned; a class token is
        (
            lambda: Transformer((6, 3), 16, 10, layers=1, positions="sinusoidal", pooling="class"),
            12 * 16**2 + 13 * 16 + (3 * 16 + 16) + 16 + 2 * 16 + 170,
        ),
    ],
)
def test_parameters_are_as_many_as_the_papers_count(network: Callable[[], nn.Module], parameters: int) -> None:
    """The number of parameters is that of the architecture, counted by hand."""
    assert sum(p.numel() for p in network().parameters()) == parameters


# Where dropout stands


def test_dropout_stands_where_it_shifts_least() -> None:
    """In the CNN dropout follows a whole block, never a batch norm of the same block, and the last meets no norm."""
    network, shape = build("cnn")
    program = torch.export.export(network.train(), (rows(2, shape),))
    names = {"conv2d": "convolution", "batch_norm": "norm", "feature_dropout": "maps", "dropout": "elements"}
    order = [
        names[target]
        for node in program.graph.nodes
        if (target := str(node.target).removeprefix("aten.").split(".")[0]) in names
    ]
    block = ["convolution", "norm", "convolution", "norm", "maps"]
    assert order == [*block, *block, "elements"]


def test_a_rate_per_layer() -> None:
    """One rate serves all layers, several are one per layer, and a rate of 0 puts no dropout there."""
    network = MLP(4, (8, 8), 2, (0.1, 0.4))
    assert [part.p for part in network.modules() if isinstance(part, nn.Dropout)] == [0.1, 0.4]
    network = CNN(DIGITS, (8, 8), 2, channel_dropout=(0.0, 0.2), head_dropout=0.0)
    assert [part.p for part in network.modules() if isinstance(part, nn.Dropout2d)] == [0.2]
    assert not any(isinstance(part, nn.Dropout) for part in network.modules())


@pytest.mark.parametrize(
    ("variant", "kind", "rate"),
    [
        ("standard", nn.Dropout, lambda part: part.p),
        ("alpha", nn.AlphaDropout, lambda part: part.p),
        ("dropconnect", DropConnectLinear, lambda part: part.rate),
        ("concrete", ConcreteDropout, lambda part: round(part.rate, 6)),
    ],
)
def test_every_variant_of_the_mlp_has_its_dropout_at_the_same_places(
    variant: str, kind: type[nn.Module], rate: Callable[[nn.Module], float]
) -> None:
    """Inputs, then each hidden layer: the rates are the given ones in this order, and a rate of 0 puts none there."""

    def rates(**arguments: object) -> list[float]:
        network = MLP(4, (8, 6), 2, variant=variant, **arguments)
        return [rate(part) for part in network.modules() if isinstance(part, kind)]

    assert rates(dropout=(0.2, 0.3), input_dropout=0.1) == [0.1, 0.2, 0.3]
    assert rates(dropout=(0.0, 0.3)) == [0.3]
    assert rates(dropout=0.0) == []


def test_dropconnect_drops_the_weights_that_read_what_is_dropped() -> None:
    """With one hidden layer `input_dropout` is that of its weight, and `dropout` that of the head's."""
    network = MLP(4, (8,), 2, 0.3, input_dropout=0.1, variant="dropconnect")
    assert (network.hidden[0].rate, network.head.rate) == (0.1, 0.3)
    assert type(MLP(4, (8,), 2, 0.3, variant="dropconnect").hidden[0]) is nn.Linear


def test_spatial_dropout_drops_whole_maps() -> None:
    """A map of the CNN's block falls out as a whole or not at all."""
    network, _ = build("cnn-colours")
    with seeded(), torch.no_grad():
        features = network.train().blocks[0](rows(64, COLOURS))  # (B, C, H, W)
    # After ReLU and pooling a map that was not dropped is practically never 0 everywhere.
    dropped = (features == 0).all(dim=3).all(dim=2)
    # Binomial, 512 maps at rate 0.2: 5 standard deviations are 0.09; 6e-7 of seeds would fail, and the seed is fixed.
    assert 0.11 < dropped.double().mean() < 0.29


# The self-normalising variant


@pytest.mark.parametrize("training", [True, False])
def test_alpha_keeps_mean_0_and_variance_1_through_depth(training: bool) -> None:
    """With standardised inputs the activations of eight layers stay near mean 0 and variance 1, dropped or not."""
    seen: list[Tensor] = []
    with seeded(), torch.no_grad():
        network = MLP(256, (512,) * 8, 10, 0.1, input_dropout=0.1, variant="alpha").train(training)
        for dropout in network.dropout:
            dropout.register_forward_hook(lambda _module, _inputs, activations: seen.append(activations))
        network(torch.randn(256, 256))
    assert len(seen) == 8
    # Over 20 initialisations the standard deviation was 0.004 of a mean and 0.009 of a variance: more than 7 of them.
    assert max(abs(float(x.mean())) for x in seen) < 0.03
    assert max(abs(float(x.var()) - 1) for x in seen) < 0.07


def test_relu_does_not_keep_the_variance() -> None:
    """The same depth of the standard variant loses it: what the test above sees is the alpha variant's doing."""
    with seeded(), torch.no_grad():
        network = MLP(256, (512,) * 8, 10, 0.1).eval()
        x = torch.randn(256, 256)
        for linear in network.hidden:
            x = F.relu(linear(x))
    assert x.var() < 0.01


# Learned rates


@pytest.mark.parametrize(
    ("case", "rates"), [("mlp-concrete", [0.1, 0.3, 0.3]), ("cnn-concrete", [0.2, 0.2, 0.4]), ("mlp", []), ("cnn", [])]
)
def test_learned_rates_are_penalised_and_nothing_else_is(case: str, rates: list[float]) -> None:
    """Every learned rate starts as given and stands in one penalised module; other variants have no penalty at all."""
    network, _ = build(case)
    penalised = [part for part in network.modules() if isinstance(part, Penalized)]
    assert [round(part.dropout.rate, 6) for part in penalised] == rates
    assert sum(isinstance(part, ConcreteDropout) for part in network.modules()) == len(rates)


def test_the_penalty_weighs_the_weights_that_read_the_units() -> None:
    """It is the sum of `ConcreteDropout.regularizer` of each site and of the weight behind it, with its units."""
    network, _ = build("cnn-concrete")
    second, hidden, head = network.blocks[1].convolutions[0], network.hidden, network.head
    by_hand = (
        second.dropout.regularizer(second.layer.weight, features=8, rows=100)  # 8 maps of the first block
        + hidden.dropout.regularizer(hidden.layer[1].weight, features=16, rows=100)  # 16 maps, 2 x 2 pixels each
        + head.dropout.regularizer(head.layer.weight, features=16, rows=100)
    )
    assert hidden.layer[1].weight.shape == (16, 64)
    penalty = sum(part.penalty(100) for part in network.modules() if isinstance(part, Penalized))
    torch.testing.assert_close(penalty, by_hand)
    network, _ = build("mlp-concrete")
    features = [part.features for part in network.modules() if isinstance(part, ConcreteLayer)]
    assert features == [64, 32, 16]


def test_a_noisy_fit_learns_rates() -> None:
    """Trained with its penalty on targets that are noise, the network comes to drop more than at first."""
    with seeded():
        network = MLP(8, (32,), 1, 0.05, variant="concrete").train()
        x, y = torch.randn(100, 8), torch.randn(100, 1)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(300):
            loss = (network(x) - y).square().mean() / 2
            for part in network.modules():
                if isinstance(part, Penalized):
                    loss = loss + part.penalty(len(x))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert network.head.dropout.rate > 0.15


# Log-variances within bounds


def test_log_variances_are_bounded_and_means_are_not() -> None:
    """Means pass unchanged; log-variances keep their order, stay within the bounds, and nearly themselves between."""
    bounded = BoundedLogVariance(-14.0, 8.0)
    logs = torch.cat([torch.tensor([-1e6]), torch.linspace(-30, 20, 101), torch.tensor([1e6])])
    means = torch.linspace(-1e6, 1e6, len(logs))
    out = bounded(torch.stack([means, logs], 1))
    assert torch.equal(out[:, 0], means)
    # The upper bound is exceeded by log(1 + exp(-22)), less than float32 resolves.
    assert (out[:, 1] >= -14).all()
    assert (out[:, 1] <= 8).all()
    assert (out[:, 1].diff() >= 0).all()
    inner = logs.abs() <= 3
    torch.testing.assert_close(out[inner, 1], logs[inner], rtol=0, atol=0.01)


def test_bounded_log_variances_keep_a_gradient_beyond_the_bounds() -> None:
    """A log-variance that strayed out of the bounds can be trained back, unlike a clamped one."""
    raw = torch.tensor([[0.0, -20.0], [0.0, 14.0]], requires_grad=True)
    BoundedLogVariance(-14.0, 8.0)(raw).sum().backward()
    assert (raw.grad[:, 1] > 1e-3).all()


# Refusals


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("widths", lambda: MLP(4, (), 2)),
        ("widths", lambda: MLP(4, (8, 0), 2)),
        ("widths", lambda: MLP(0, (8,), 2)),
        ("dropout", lambda: MLP(4, (8, 8), 2, 1.0)),
        ("dropout", lambda: MLP(4, (8, 8), 2, -0.1)),
        ("dropout", lambda: MLP(4, (8, 8), 2, float("nan"))),
        ("dropout", lambda: MLP(4, (8, 8), 2, (0.1, 0.1, 0.1))),
        ("input_dropout", lambda: MLP(4, (8,), 2, input_dropout=1.0)),
        ("variant", lambda: MLP(4, (8,), 2, variant="gaussian")),
        ("widths", lambda: CNN(DIGITS, (), 2)),
        ("widths", lambda: CNN(DIGITS, (8,), 2, convolutions=0)),
        ("input_shape", lambda: CNN(DIGITS, (8, 8, 8, 8), 2)),
        ("input_shape", lambda: CNN((64,), (8,), 2)),
        ("channel_dropout", lambda: CNN(DIGITS, (8, 8), 2, channel_dropout=(0.1, 0.2, 0.3))),
        ("head_dropout", lambda: CNN(DIGITS, (8, 8), 2, head_dropout=1.0)),
        ("variant", lambda: CNN(DIGITS, (8,), 2, variant="alpha")),
        ("widths", lambda: ResNet(DIGITS, (), 2)),
        ("widths", lambda: ResNet(DIGITS, (8,), 2, blocks=0)),
        ("widths", lambda: ResNet(DIGITS, (8,), 0)),
        ("input_shape", lambda: ResNet(DIGITS, (8,) * 5, 2)),
        ("input_shape", lambda: ResNet((0, 8, 8), (8,), 2)),
        ("stochastic_depth", lambda: ResNet(DIGITS, (8,), 2, stochastic_depth=1.0)),
        ("head_dropout", lambda: ResNet(DIGITS, (8,), 2, head_dropout=-0.1)),
        ("width", lambda: RNN((5, 3), 0, 2)),
        ("width", lambda: RNN((5, 3), 4, 2, layers=0)),
        ("input_shape", lambda: RNN((5,), 4, 2)),
        ("input_shape", lambda: RNN((5, 0), 4, 2)),
        ("cell", lambda: RNN((5, 3), 4, 2, cell="elman")),
        ("pooling", lambda: RNN((5, 3), 4, 2, pooling="class")),
        *[(name, lambda name=name: RNN((5, 3), 4, 2, **{name: 1.0})) for name in
          ("input_dropout", "hidden_dropout", "output_dropout", "weight_dropout")],
        ("width", lambda: Transformer((5, 3), 10, 2, heads=4)),
        ("width", lambda: Transformer((5, 3), 8, 2, heads=0)),
        ("width", lambda: Transformer((5, 3), 8, 2, layers=0)),
        ("width", lambda: Transformer((5, 3), 8, 2, feedforward=0)),
        ("input_shape", lambda: Transformer((5,), 8, 2)),
        ("input_shape", lambda: Transformer((5, 3), 8, 2, vocabulary=11)),
        ("vocabulary", lambda: Transformer((5,), 8, 2, vocabulary=0)),
        ("positions", lambda: Transformer((5, 3), 8, 2, positions="rotary")),
        ("pooling", lambda: Transformer((5, 3), 8, 2, pooling="last")),
        *[(name, lambda name=name: Transformer((5, 3), 8, 2, **{name: 1.0})) for name in
          ("dropout", "attention_dropout", "embedding_dropout", "stochastic_depth")],
        ("low, high", lambda: BoundedLogVariance(1.0, 1.0)),
    ],
)  # fmt: skip
def test_impossible_networks_are_refused(field: str, make: Callable[[], object]) -> None:
    """Sizes below 1, shapes of another rank, unknown choices and rates outside [0, 1) are refused by name."""
    with pytest.raises(InvalidArgument) as caught:
        make()
    assert caught.value.field == field
