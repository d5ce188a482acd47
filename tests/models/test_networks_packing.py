"""The reference architectures packed: every dropout that trained is a site that serves, of its kind and rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dubito_models.export import export_network, read_example
from dubito_models.layers import ConcreteDropout
from dubito_models.networks import CNN, MLP, RNN, ResNet, Transformer
from dubito_models.packing import pack
from dubito_models.program import StochasticProgram
from dubito_models.sampling import SamplingSpec

DIGITS = (1, 8, 8)
Sites = list[tuple[str, float, int]]  # kind, rate, units of a mask; in the graph's order


def build(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return make()


def rows(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def sites(network: nn.Module, inputs: Tensor) -> Sites:
    example = read_example(network, inputs)
    exported = export_network(network, example)
    found = StochasticProgram(exported.stochastic, {name: {} for name in example.inputs}, exported.output).sites
    return [(site.kind.value, round(site.rate, 6), math.prod(map(int, site.shape))) for site in found]


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Sites]] = {
    "mlp": (
        lambda: MLP(64, (16, 8), 3, (0.2, 0.3), input_dropout=0.1),
        DIGITS,
        [("element", 0.1, 64), ("element", 0.2, 16), ("element", 0.3, 8)],
    ),
    "mlp-alpha": (
        lambda: MLP(64, (16, 8), 3, (0.2, 0.3), input_dropout=0.1, variant="alpha"),
        DIGITS,
        [("alpha", 0.1, 64), ("alpha", 0.2, 16), ("alpha", 0.3, 8)],
    ),
    "mlp-dropconnect": (
        lambda: MLP(64, (16, 8), 3, (0.2, 0.3), input_dropout=0.1, variant="dropconnect"),
        DIGITS,
        [("weight", 0.1, 64 * 16), ("weight", 0.2, 16 * 8), ("weight", 0.3, 8 * 3)],
    ),
    "mlp-concrete": (
        lambda: MLP(64, (16, 8), 3, (0.2, 0.3), input_dropout=0.1, variant="concrete"),
        DIGITS,
        [("element", 0.1, 64), ("element", 0.2, 16), ("element", 0.3, 8)],
    ),
    "cnn": (
        lambda: CNN(DIGITS, (4, 6), 3, channel_dropout=(0.1, 0.2), head_width=8, head_dropout=0.3),
        DIGITS,
        [("channel", 0.1, 4), ("channel", 0.2, 6), ("element", 0.3, 8)],
    ),
    "cnn-concrete": (
        lambda: CNN(
            DIGITS, (4, 6), 3, channel_dropout=(0.1, 0.2), head_width=8, head_dropout=0.3, variant="concrete"
        ),
        DIGITS,
        [("channel", 0.1, 4), ("channel", 0.2, 6), ("element", 0.3, 8)],
    ),
    "resnet": (
        lambda: ResNet(DIGITS, (4, 6), 3, blocks=1, stochastic_depth=0.4, head_dropout=0.1),
        DIGITS,
        [("branch", 0.2, 1), ("branch", 0.4, 1), ("element", 0.1, 6)],
    ),
    "resnet-pre": (
        lambda: ResNet(DIGITS, (4, 6), 3, blocks=1, stochastic_depth=0.4, pre_activation=True),
        DIGITS,
        [("branch", 0.2, 1), ("branch", 0.4, 1)],
    ),
    "lstm-weights": (
        lambda: RNN((4, 5), 6, 3, input_dropout=0.1, hidden_dropout=0.0, output_dropout=0.2, weight_dropout=0.3),
        (4, 5),
        [("channel", 0.1, 5), ("weight", 0.3, 4 * 6 * 6), ("channel", 0.2, 6)],
    ),
    "transformer": (
        lambda: Transformer(
            (4, 5), 8, 3, layers=1, heads=2, feedforward=12,
            embedding_dropout=0.05, attention_dropout=0.1, dropout=0.2, stochastic_depth=0.3,
        ),
        (4, 5),
        [
            ("element", 0.05, 4 * 8), ("attention", 0.1, 2 * 4 * 4), ("element", 0.2, 4 * 8), ("branch", 0.15, 1),
            ("element", 0.2, 4 * 12), ("element", 0.2, 4 * 8), ("branch", 0.3, 1),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_dropout_becomes_a_site_of_its_kind_and_rate(case: str) -> None:
    """In the order of the forward pass; learned rates are those that the parameters hold."""
    make, shape, expected = CASES[case]
    assert sites(build(make), rows(2, *shape)) == expected


@pytest.mark.parametrize("variant", ["mlp", "cnn"])
def test_a_learned_rate_is_packed_as_it_was_learned(variant: str, tmp_path: Path) -> None:
    """Not as it was given; and the packed network predicts."""
    network = build(CASES[f"{variant}-concrete"][0])
    learned = [0.11, 0.22, 0.33]
    with torch.no_grad():
        for part, rate in zip((p for p in network.modules() if isinstance(p, ConcreteDropout)), learned, strict=True):
            part.logit.copy_(torch.logit(torch.tensor(rate)))
    version = pack(
        network, rows(2, *DIGITS), repository=tmp_path, name="network", task="classification", head="logits"
    )  # fmt: skip
    assert [site.rate for site in version.manifest.sites] == pytest.approx(learned)
    answer = version.predict(rows(3, *DIGITS).numpy(), SamplingSpec(max_draws=8)).answer
    assert answer.probabilities.shape == (3, 3)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_time_locked_dropout_becomes_one_mask_for_all_steps(cell: str) -> None:
    """Inputs and outputs lose whole channels of their series, a state the columns of the weight that reads it."""

    def make() -> nn.Module:
        return RNN(
            (4, 5), 6, 3, cell=cell, layers=2, bidirectional=True,
            input_dropout=0.1, hidden_dropout=0.2, output_dropout=0.3,
        )  # fmt: skip

    layer = [("weight", 0.2, 6)] * 2  # one per direction
    expected = [("channel", 0.1, 5), *layer, ("channel", 0.1, 12), *layer, ("channel", 0.3, 12)]
    assert sites(build(make), rows(2, 4, 5)) == expected


def test_a_masked_transformer_serves_sequences_of_any_length(tmp_path: Path) -> None:
    """Tokens and their padding mask are inputs with a free axis, bounded by the longest; padding does not matter."""
    network = build(lambda: Transformer((9,), 8, 3, vocabulary=11, layers=1, heads=2, stochastic_depth=0.2))
    tokens = torch.arange(8).view(2, 4)
    example = {"inputs": tokens, "mask": torch.ones(2, 4, dtype=torch.bool)}
    free = {name: {1: "steps"} for name in example}
    version = pack(
        network, example, repository=tmp_path, name="network", task="classification", head="logits", dynamic=free
    )  # fmt: skip
    assert [entry.bounds for entry in version.manifest.inputs] == [{1: (1, 9)}] * 2
    short = {name: value.numpy() for name, value in example.items()}
    padding = torch.cat([tokens, tokens], 1), torch.arange(8) < torch.tensor([[4], [4]])
    padded = {name: value.numpy() for name, value in zip(example, padding, strict=True)}
    spec = SamplingSpec(max_draws=8)
    one, other = (version.predict(inputs, spec).answer.probabilities for inputs in (short, padded))
    assert one == pytest.approx(other, abs=1e-5)
