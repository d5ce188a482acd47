"""The reference architectures: shapes, where their dropout stands, and that they export."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from dubito_models.errors import InvalidArgument
from dubito_models.networks import CNN, MLP

DIGITS, COLOURS = (1, 8, 8), (3, 32, 32)


def images(rows: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.rand((rows, *shape), generator=torch.Generator().manual_seed(0))


def build(name: str, shape: tuple[int, int, int], outputs: int = 10) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if name == "mlp":
            return MLP(shape[0] * shape[1] * shape[2], (32, 16), outputs, 0.3)
        return CNN(shape, (8, 16), outputs, channel_dropout=0.2, head_width=16, head_dropout=0.4)


CASES = [(name, shape) for name in ("mlp", "cnn") for shape in (DIGITS, COLOURS)]


@pytest.mark.parametrize(("name", "shape"), CASES)
@pytest.mark.parametrize("outputs", [1, 10])
def test_rows_of_images_become_rows_of_outputs(name: str, shape: tuple[int, int, int], outputs: int) -> None:
    """A network maps (B, C, H, W) to (B, K), whether K is classes or a single regression target."""
    network = build(name, shape, outputs).eval()
    for rows in (1, 5):
        assert network(images(rows, shape)).shape == (rows, outputs)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_only_training_is_random(name: str) -> None:
    """Two passes differ in train mode and agree to the bit in eval mode."""
    network, x = build(name, DIGITS), images(4, DIGITS)
    with torch.random.fork_rng(devices=[]):
        assert not torch.equal(network.train()(x), network(x))
    assert torch.equal(network.eval()(x), network(x))


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_export_keeps_the_rows_free(name: str, shape: tuple[int, int, int]) -> None:
    """The exported network agrees with the module at numbers of rows that it was not exported with."""
    network = build(name, shape).eval()
    program = torch.export.export(network, (images(2, shape),), dynamic_shapes=({0: Dim("rows")},)).module()
    for rows in (1, 3, 7):
        torch.testing.assert_close(program(images(rows, shape)), network(images(rows, shape)))


def test_dropout_stands_where_it_shifts_least() -> None:
    """In the CNN dropout follows a whole block, never a batch norm of the same block, and the last meets no norm."""
    program = torch.export.export(build("cnn", DIGITS).train(), (images(2, DIGITS),))
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
    mlp = MLP(4, (8, 8), 2, (0.1, 0.4))
    assert [part.p for part in mlp.modules() if isinstance(part, nn.Dropout)] == [0.1, 0.4]
    cnn = CNN(DIGITS, (8, 8), 2, channel_dropout=(0.0, 0.2), head_dropout=0.0)
    assert [part.p for part in cnn.modules() if isinstance(part, nn.Dropout2d)] == [0.2]
    assert not any(isinstance(part, nn.Dropout) for part in cnn.modules())


def test_spatial_dropout_drops_whole_maps() -> None:
    """A map of the CNN's block falls out as a whole or not at all."""
    network = build("cnn", COLOURS).train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)
        features = network.blocks[0](images(64, COLOURS))  # (B, C, H, W)
    # After ReLU and pooling a map that was not dropped is practically never 0 everywhere.
    dropped = (features == 0).all(dim=3).all(dim=2)
    assert 0.1 < dropped.double().mean() < 0.3


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
        ("widths", lambda: CNN(DIGITS, (), 2)),
        ("widths", lambda: CNN(DIGITS, (8,), 2, convolutions=0)),
        ("input_shape", lambda: CNN(DIGITS, (8, 8, 8, 8), 2)),
        ("channel_dropout", lambda: CNN(DIGITS, (8, 8), 2, channel_dropout=(0.1, 0.2, 0.3))),
        ("head_dropout", lambda: CNN(DIGITS, (8, 8), 2, head_dropout=1.0)),
    ],
)
def test_impossible_networks_are_refused(field: str, make: object) -> None:
    """Sizes below 1, too many poolings and rates outside [0, 1) are refused by name."""
    assert callable(make)
    with pytest.raises(InvalidArgument) as caught:
        make()
    assert caught.value.field == field
