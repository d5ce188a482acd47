"""Draws as a leading axis: the same numbers as vmap, and only where every operator allows it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dubito_models.export import export_network, read_example
from dubito_models.leading import lead_with_draws
from dubito_models.package import ModelVersion
from dubito_models.program import StochasticProgram
from networks import sample

Packed = Callable[[str], ModelVersion]


class Made(nn.Module):
    """A linear layer, dropout, and whatever `tail` makes of the draw and the layer's own output."""

    def __init__(self, tail: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.tail = nn.Linear(6, 6), tail
        self.second = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.linear(x)
        return self.tail(F.dropout(hidden, 0.5, self.training), hidden) + 0 * self.norm(self.second(x))


def program_of(tail: Callable[[Tensor, Tensor], Tensor]) -> StochasticProgram:
    module = Made(tail)
    example = read_example(module, torch.randn(3, 6))
    exported = export_network(module, example)
    return StochasticProgram(exported.stochastic, {"x": {}}, exported.output)


@pytest.mark.parametrize(
    ("tail", "leads"),
    [
        (lambda drawn, hidden: F.relu(drawn), True),
        (lambda drawn, hidden: drawn + hidden, True),
        (lambda drawn, hidden: hidden - drawn * drawn, True),
        (lambda drawn, hidden: F.layer_norm(drawn, (6,)).softmax(-1), True),
        (lambda drawn, hidden: F.gelu(drawn) * 2.0, True),
        (lambda drawn, hidden: drawn.softmax(0), False),
        (lambda drawn, hidden: drawn.mean(0), False),
        (lambda drawn, hidden: drawn.reshape(-1, 2, 3).sum(-1).repeat(1, 3), False),
        (lambda drawn, hidden: drawn.sum(1).unsqueeze(1) + hidden, False),
        (lambda drawn, hidden: drawn @ drawn.T @ hidden, False),
    ],
)
def test_a_suffix_leads_only_where_every_operator_keeps_leading_axes(
    tail: Callable[[Tensor, Tensor], Tensor], leads: bool
) -> None:
    assert (lead_with_draws(program_of(tail)._suffix.module) is not None) == leads


@pytest.mark.parametrize("name", ["mlp", "head-only"])
@torch.inference_mode()
def test_leading_draws_are_the_loops_draws_and_leave_the_boundary_as_it_was(packed: Packed, name: str) -> None:
    program = packed(name).engine.program
    assert program._led is not None
    for rows, draws in ((1, 1), (4, 7), (7, 4)):
        boundary = program.prefix(sample(name, rows))
        before = [value.clone() for value in boundary.values]
        masks = [(torch.rand(draws, *shape) > 0.4).float() / 0.6 for shape in program.mask_shapes(boundary.symbols)]
        kept = [mask.clone() for mask in masks]
        led = program.many(boundary, masks)
        looped = torch.stack([program.suffix(boundary, [mask[draw] for mask in masks]) for draw in range(draws)])
        torch.testing.assert_close(led, looped, rtol=0, atol=1e-6)
        assert all(torch.equal(one, other) for one, other in zip(before, boundary.values, strict=True))
        assert all(torch.equal(one, other) for one, other in zip(kept, masks, strict=True))


@pytest.mark.parametrize("name", ["cnn", "encoder", "weighted-attention"])
def test_other_networks_are_left_to_vmap(packed: Packed, name: str) -> None:
    assert packed(name).engine.program._led is None
