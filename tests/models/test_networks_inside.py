"""What is particular to the residual network, the recurrent one and the transformer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.export import Dim
from torch.nn import functional as F

from dubito_models.errors import InvalidArgument
from dubito_models.layers import StochasticDepth
from dubito_models.networks import RNN, ResNet, Transformer
from dubito_models.networks.resnet import BasicBlock
from dubito_models.networks.transformer import sinusoids


@pytest.fixture(autouse=True)
def seeded() -> object:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# The residual network


def test_later_branches_are_dropped_more_often() -> None:
    """The rates rise linearly to the last branch's, and at rate 0 nothing is dropped anywhere."""
    network = ResNet((1, 8, 8), (4, 8), 2, blocks=2, stochastic_depth=0.4)
    rates = [part.rate for part in network.modules() if isinstance(part, StochasticDepth)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])
    none = ResNet((1, 8, 8), (4, 8), 2, stochastic_depth=0.0)
    assert not any(isinstance(part, StochasticDepth) for part in none.modules())


@pytest.mark.parametrize("pre_activation", [False, True])
def test_a_block_without_its_branch_is_its_shortcut(pre_activation: bool) -> None:
    """What is left is x itself in the pre-activated block, ReLU(x) in the other; so a draw may drop any block."""
    block = BasicBlock(4, 4, 1, 0.5, pre_activation).eval()
    block.depth = torch.nn.Module()
    block.depth.forward = torch.zeros_like
    x = normal(3, 4, 6, 6)
    assert torch.equal(block(x), x if pre_activation else F.relu(x))


@pytest.mark.parametrize(("size", "left"), [((8, 8), (2, 2)), ((7, 5), (2, 2)), ((32, 32), (8, 8))])
def test_stages_halve_height_and_width(size: tuple[int, int], left: tuple[int, int]) -> None:
    """Each stage but the first has half the pixels of the one before in either direction, rounded up."""
    network = ResNet((1, *size), (4, 6, 8), 2, blocks=1).eval()
    x = network.stem(normal(2, 1, *size))
    assert x.shape == (2, 4, *size)
    for block in network.blocks:
        x = block(x)
    assert x.shape == (2, 8, *left)


def test_batch_norm_learns_the_statistics_of_what_it_meets() -> None:
    """After passes in train mode the running means have left their first values in every norm."""
    network = ResNet((1, 8, 8), (4, 8), 2, pre_activation=True).train()
    for _ in range(3):
        network(normal(16, 1, 8, 8))
    norms = [part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert len(norms) == 9
    assert all(norm.running_mean.any() for norm in norms)


# Sequences


def test_images_are_read_from_top_to_bottom() -> None:
    """An image (C, H, W) is H steps, each the C * W numbers of one row: for both networks that read sequences."""
    images = normal(2, 3, 4, 5)
    steps = torch.stack([torch.cat([images[:, c, h] for c in range(3)], 1) for h in range(4)], 1)  # (B, H, C * W)
    for network in (RNN((3, 4, 5), 8, 2), Transformer((3, 4, 5), 8, 2)):
        network.eval()
        assert torch.equal(network(images), network(steps))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_last_state_is_that_of_each_direction(cell: str, bidirectional: bool) -> None:
    """In eval the head reads the top layer's last states, as the stock layer returns them; or the mean over time."""
    x = normal(3, 6, 5)
    last = RNN((6, 5), 4, 2, cell=cell, layers=2, bidirectional=bidirectional).eval()
    states, final = last.recurrent(x)
    top = (final[0] if cell == "lstm" else final)[-2 if bidirectional else -1 :]  # (directions, B, width)
    torch.testing.assert_close(last(x), last.head(torch.cat(list(top), -1)))
    mean = RNN((6, 5), 4, 2, cell=cell, layers=2, bidirectional=bidirectional, pooling="mean").eval()
    mean.load_state_dict(last.state_dict())
    torch.testing.assert_close(mean(x), last.head(states.sum(1) / 6))


def test_the_recurrent_network_reads_any_length_in_eval() -> None:
    """T of the input shape only documents; a longer and a shorter sequence are read too."""
    network = RNN((6, 5), 4, 2).eval()
    assert network(normal(3, 2, 5)).shape == network(normal(3, 9, 5)).shape == (3, 2)


# The transformer


@pytest.mark.parametrize("pooling", ["mean", "class"])
@pytest.mark.parametrize("vocabulary", [None, 11])
def test_padding_that_is_masked_does_not_matter(pooling: str, vocabulary: int | None) -> None:
    """A short sequence alone, and padded with anything under a mask, have the same outputs."""
    shape = (8, 3) if vocabulary is None else (8,)
    network = Transformer(shape, 16, 2, vocabulary=vocabulary, pooling=pooling).eval()
    whole = normal(4, 8, 3) if vocabulary is None else normal(4, 8).mul(3).long().abs()
    mask = torch.arange(8) < torch.tensor([[5]] * 4)  # (B, T)
    torch.testing.assert_close(network(whole, mask), network(whole[:, :5]))
    assert not torch.allclose(network(whole), network(whole[:, :5]), atol=1e-3)
    torch.testing.assert_close(network(whole, torch.ones(4, 8, dtype=torch.bool)), network(whole))


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_a_row_of_padding_alone_is_read_whole(pooling: str) -> None:
    """Where no step counts all do, so that no mask makes the answer a NaN."""
    network = Transformer((5, 3), 16, 2, pooling=pooling).eval()
    x = normal(2, 5, 3)
    mask = torch.tensor([[True, True, False, False, False], [False] * 5])
    torch.testing.assert_close(network(x, mask)[1], network(x)[1])


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_the_order_of_steps_matters(positions: str, pooling: str) -> None:
    """A sequence backwards is another one: the codes of the positions reach the answer."""
    network = Transformer((6, 3), 16, 2, positions=positions, pooling=pooling).eval()
    x = normal(4, 6, 3)
    assert not torch.allclose(network(x), network(x.flip(1)), atol=1e-4)


def test_sinusoids_are_those_of_the_paper() -> None:
    """Sines and cosines of pos / 10000^(2 i / width) (Vaswani et al. 2017), sines first."""
    codes = sinusoids(50, 16)
    for position, unit in ((0, 0), (7, 3), (49, 7)):
        angle = position / 10_000 ** (2 * unit / 16)
        assert float(codes[position, unit]) == pytest.approx(math.sin(angle), abs=1e-5)
        assert float(codes[position, 8 + unit]) == pytest.approx(math.cos(angle), abs=1e-5)
    assert sinusoids(4, 5).shape == (4, 5)


def test_a_sequence_longer_than_the_positions_is_refused() -> None:
    """The longest sequence is the T of the input shape."""
    with pytest.raises(InvalidArgument) as caught:
        Transformer((6, 3), 16, 2).eval()(normal(2, 7, 3))
    assert caught.value.field == "inputs"


@pytest.mark.parametrize("pooling", ["mean", "class"])
@pytest.mark.parametrize("masked", [False, True])
def test_export_keeps_the_length_free(pooling: str, masked: bool) -> None:
    """Exported with free rows and steps, the transformer agrees with the module at other sizes of both."""
    network = Transformer((9,), 16, 2, vocabulary=11, pooling=pooling).eval()

    def sample(rows: int, steps: int) -> tuple[Tensor, ...]:
        tokens = torch.arange(rows * steps).view(rows, steps) % 11
        mask = torch.arange(steps) <= torch.arange(rows)[:, None]  # (B, T)
        return (tokens, mask) if masked else (tokens,)

    rows, steps = Dim("rows"), Dim("steps", max=9)
    shapes = ({0: rows, 1: steps},) * (2 if masked else 1)
    program = torch.export.export(network, sample(2, 4), dynamic_shapes=shapes).module()
    for size in ((1, 4), (3, 9), (5, 2)):
        torch.testing.assert_close(program(*sample(*size)), network(*sample(*size)))


def test_stochastic_depth_rises_over_the_branches_of_the_transformer() -> None:
    """Attention and feed-forward are branches of their own: 2 per block, linearly up to the last one's rate."""
    network = Transformer((6, 3), 16, 2, layers=2, stochastic_depth=0.4)
    rates = [part.rate for part in network.modules() if isinstance(part, StochasticDepth)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])
