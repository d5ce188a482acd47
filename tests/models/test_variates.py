"""Control variates, alone and under an integrated last site: right gradients, known moments, unbiased estimates."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dubito_models.errors import UnsupportedNetwork
from dubito_models.fanning import POINTS
from dubito_models.heads import Decoded
from dubito_models.predictive import gather, spread
from dubito_models.program import StochasticProgram
from dubito_models.sites import mask_variance, mean_mask
from dubito_models.thinning import Design, Masks, choose_balanced, choose_group_size
from dubito_models.variates import (
    adjusted_spread,
    controls,
    expand,
    known_variance,
    mask_gradients,
    measure_gain,
)
from networks import CASES, build, mlp, program_for, random_masks, sample, thinned

# Statistics over many draws are held to 4.5 standard errors: a false alarm in 150,000 for each number. The tests below
# look at fewer than 200 numbers, so one choice of seeds in 700 would fail.
LIMIT = 4.5


def mean_masks(program: StochasticProgram, symbols: Mapping[str, int]) -> list[Tensor]:
    shapes = program.mask_shapes(symbols)
    return [torch.full(shape, mean_mask(site)) for site, shape in zip(program.sites, shapes, strict=True)]


def regression(width: int = 24, rate: float = 0.2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return mlp(width, rate, classes=2)


def along(gradients: Sequence[Tensor | None], steps: Sequence[Tensor]) -> Tensor:
    """Return the derivatives (B, K) along a step of all masks."""
    parts = [g.flatten(2) @ d.flatten() for g, d in zip(gradients, steps, strict=True) if g is not None]
    return torch.stack(parts).sum(0)


@pytest.mark.parametrize(
    "name",
    [
        "mlp", "cnn", "head-only", "encoder", "encoder-sequence-first", "weighted-attention", "causal",
        "self-normalizing", "path-bernoulli", "path-unscaled", "lstm", "gru-bidirectional", "last-token", "two-inputs",
    ],
)  # fmt: skip
def test_gradients_are_those_of_the_original_module_under_forced_masks(name: str) -> None:
    """Central differences of the module itself along a random step of all masks, in double precision where it can."""
    network, inputs, options = build(name), sample(name, 3), CASES[name].options
    program = program_for(network, inputs, output=options.get("output"), dynamic=options.get("dynamic"))
    boundary = program.prefix(inputs)
    expansion = expand(program)
    assert expansion is not None
    assert all(expansion.by_row)
    outputs = 2 if name != "two-inputs" else 1
    gradients = mask_gradients(expansion, boundary, outputs)
    assert gradients is not None
    middle = mean_masks(program, boundary.symbols)
    generator = torch.Generator().manual_seed(4)
    steps = [torch.randn(mask.shape, generator=generator) for mask in middle]
    single = name in ("lstm", "gru-bidirectional")  # smooth, and rebuilt in float32
    size, near = (3e-2, 1e-2) if single else (1e-6, 1e-4)
    exact = copy.deepcopy(network) if single else copy.deepcopy(network).double()
    given = {
        key: value.double() if value.is_floating_point() and not single else value for key, value in inputs.items()
    }

    def shifted(by: float) -> Tensor:
        masks = [mask + by * step for mask, step in zip(middle, steps, strict=True)]
        if not single:
            masks = [mask.double() + by * step.double() for mask, step in zip(middle, steps, strict=True)]
        return thinned(name, exact, given, masks).reshape(3, -1)[:, :outputs].double()

    difference = (shifted(size) - shifted(-size)) / (2 * size)
    scale = float(difference.abs().max())
    assert scale > 1e-3, "the step moves the prediction"
    torch.testing.assert_close(along(gradients, steps).double(), difference, rtol=0.0, atol=near * scale)


def test_every_rows_gradient_is_its_own_and_the_same_alone() -> None:
    inputs = sample("cnn", 4)
    program = program_for(build("cnn"), inputs)
    expansion = expand(program)
    assert expansion is not None
    together = mask_gradients(expansion, program.prefix(inputs), 3)
    assert together is not None
    for row in range(4):
        alone = mask_gradients(expansion, program.prefix({"images": inputs["images"][row : row + 1]}), 3)
        assert alone is not None
        for one, other in zip(together, alone, strict=True):
            assert one is not None
            assert other is not None
            torch.testing.assert_close(one[row : row + 1], other, rtol=1e-4, atol=1e-6)


def test_gradients_can_be_taken_of_boundaries_made_in_inference_mode_and_inside_it() -> None:
    inputs = sample("mlp", 3)
    program = program_for(build("mlp"), inputs)
    expansion = expand(program)
    assert expansion is not None
    expected = mask_gradients(expansion, program.prefix(inputs), 2)
    with torch.inference_mode():
        boundary = program.prefix(inputs)
        found = mask_gradients(expansion, boundary, 2)
    assert expected is not None
    assert found is not None
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other)
    assert all(value.is_inference() for value in boundary.values), "the boundary is left as it was"


def test_dropped_weights_have_no_rows_and_are_left_out() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.head, self.drop = nn.Parameter(torch.randn(8, 6)), nn.Linear(8, 1), nn.Dropout(0.2)

        def forward(self, x: Tensor) -> Tensor:
            weight = nn.functional.dropout(self.weight, 0.3, self.training)
            return self.head(self.drop(torch.tanh(nn.functional.linear(x, weight))))

    assert expand(program_for(build("dropped-weights"), sample("dropped-weights", 3))) is None
    inputs = {"x": torch.randn(3, 6)}
    program = program_for(Both(), inputs)
    boundary, expansion = program.prefix(inputs), expand(program)
    assert expansion is not None
    assert expansion.by_row == (False, True)
    gradients = mask_gradients(expansion, boundary, 1)
    assert gradients is not None
    assert gradients[0] is None
    masks = random_masks(program, boundary.symbols, 5)
    assert gradients[1] is not None
    expected = torch.einsum("su,bku->sbk", masks[1] - 1.0, gradients[1])
    torch.testing.assert_close(controls(gradients, masks, program.sites), expected.double(), rtol=1e-5, atol=1e-6)


def test_one_decision_for_each_row_and_no_rows_at_all() -> None:
    class Depth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.stem(x)
            decision = nn.functional.dropout(torch.ones_like(x[:, 0]), 0.25, self.training)
            return self.head(hidden + torch.tanh(hidden) * decision.unsqueeze(1)).squeeze(1)

    network, inputs = Depth(), {"x": torch.randn(3, 6)}
    program = program_for(network, inputs)
    expansion = expand(program)
    assert expansion is not None
    for rows in (3, 0):
        boundary = program.prefix({"x": inputs["x"][:rows]})
        gradients = mask_gradients(expansion, boundary, 1)
        assert gradients is not None
        masks = random_masks(program, boundary.symbols, 40)
        found = controls(gradients, masks, program.sites)
        assert found.shape == (40, rows, 1)
        assert known_variance(gradients, program.sites).shape == (rows, 1)
        calm = program.suffix(boundary, program.bypass(boundary.symbols))
        torch.testing.assert_close(
            program.many(boundary, masks).double(), (calm + found[..., 0]).double(), rtol=0, atol=1e-5
        )


def test_too_many_gradients_are_not_made() -> None:
    inputs = sample("mlp", 3)
    program = program_for(build("mlp"), inputs)
    expansion = expand(program)
    assert expansion is not None
    assert mask_gradients(expansion, program.prefix(inputs), 2, limit=3 * 2 * 64 - 1) is None
    assert mask_gradients(expansion, program.prefix(inputs), 2, limit=3 * 2 * 64) is not None


def test_a_gradient_that_is_not_finite_counts_as_zero() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.2)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(x).sqrt().sum(-1)

    inputs = {"x": torch.tensor([[4.0, 0.0], [1.0, 9.0]])}
    program = program_for(Root(), inputs)
    expansion = expand(program)
    assert expansion is not None
    gradients = mask_gradients(expansion, program.prefix(inputs), 1)
    assert gradients is not None
    torch.testing.assert_close(gradients[0], torch.tensor([[[1.0, 0.0]], [[0.5, 1.5]]]))


def test_a_suffix_without_a_gradient_is_refused_by_name() -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.argsort(self.drop(x), -1).float().sum(-1)

    inputs = {"x": torch.randn(3, 6)}
    program = program_for(Rounded(), inputs)
    expansion = expand(program)
    assert expansion is not None
    with pytest.raises(UnsupportedNetwork, match="no gradient"):
        mask_gradients(expansion, program.prefix(inputs), 1)


@pytest.mark.parametrize("name", ["mlp", "self-normalizing", "path-unscaled", "weighted-attention"])
def test_controls_have_mean_zero_and_the_known_variance(name: str) -> None:
    """z-tests over 4000 independent draws, for every row and output; masks of each row's own among them."""
    inputs, draws = sample(name, 3), 4000
    program = program_for(build(name), inputs)
    boundary, expansion = program.prefix(inputs), expand(program)
    assert expansion is not None
    gradients = mask_gradients(expansion, boundary, 2)
    assert gradients is not None
    known = known_variance(gradients, program.sites)
    masks = random_masks(program, boundary.symbols, draws)
    found = controls(gradients, masks, program.sites)
    own = [torch.stack([mask, mask.roll(1, 0), mask.roll(2, 0)], 1) for mask in masks]
    by_row = controls(gradients, own, program.sites)
    for row in range(3):
        torch.testing.assert_close(by_row[:, row], found[:, row].roll(row, 0), rtol=1e-4, atol=1e-5)
    assert float((found.mean(0) / (known / draws).sqrt()).abs().max()) < LIMIT
    squares = found.square()
    assert float(((squares.mean(0) - known) / (squares.std(0) / math.sqrt(draws))).abs().max()) < LIMIT


def drawn(
    program: StochasticProgram, inputs: Mapping[str, Tensor], seed: int, design: Design, draws: int
) -> list[Tensor]:
    symbols = program.prefix(inputs).symbols
    shapes = program.mask_shapes(symbols)
    size = choose_group_size([site.rate for site in program.sites])
    masks = Masks(program, group_size=size, balanced=choose_balanced(program.sites, shapes), kept_seed=-1)
    return masks.draws(symbols, seed, design, 0, draws)


@pytest.mark.parametrize("design", [Design.BALANCED, Design.INDEPENDENT])
@torch.no_grad()
def test_mean_and_variance_stay_unbiased_and_vary_less(design: Design) -> None:
    """300 estimates of 4 groups each against 200,000 draws, by z-tests for every row and output."""
    inputs = {"input": torch.randn(3, 6, generator=torch.Generator().manual_seed(5))}
    program = program_for(regression(), inputs)
    exact = program_for(regression(), inputs, integrated=True)
    boundary, expansion = program.prefix(inputs), expand(program)
    assert expansion is not None
    gradients = mask_gradients(expansion, boundary, 2)
    assert gradients is not None
    known = known_variance(gradients, program.sites)
    earlier = (*gradients[:1], None)
    known_earlier = known_variance(earlier, program.sites)
    truth = torch.cat([
        program.many(boundary, random_masks(program, boundary.symbols, 5000, seed)).double() for seed in range(40)
    ])  # fmt: skip
    size, times, balanced = 10, 300, design is Design.BALANCED
    masks = drawn(program, inputs, 6, design, 4 * size * times)
    raw = program.many(boundary, masks).double()
    linear = controls(gradients, masks, program.sites)
    linear_earlier = controls(earlier, masks, program.sites)
    points = exact.many(boundary, masks).double().reshape(len(raw), POINTS, 3, 2)
    expected, within = points.mean(1), points.var(1, correction=0)
    ways: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"plain": [], "control": [], "integrated": [], "both": []}
    for start in range(0, len(raw), 4 * size):
        part = slice(start, start + 4 * size)
        moments = gather(Decoded(mean=raw[part]), [size] * 4, True)
        moments_integrated = gather(Decoded(mean=points[part].flatten(0, 1)), [size] * 4, True)
        whole = spread(moments, balanced)
        adjusted = adjusted_spread(moments, linear[part], known, balanced)
        integrated = spread(moments_integrated, balanced)
        both = adjusted_spread(moments_integrated, linear_earlier[part], known_earlier, balanced)
        for name, found in (("plain", whole), ("control", adjusted), ("integrated", integrated), ("both", both)):
            assert found.variance is not None
            ways[name].append((found.mean, found.variance))
    true_mean, true_variance = truth.mean(0).numpy(), truth.var(0).numpy()
    deviations = (truth - truth.mean(0)).square()
    sure = (true_variance / len(truth), deviations.var(0).numpy() / len(truth))
    errors = {}
    for name, found in ways.items():
        for which, (values, right, own) in enumerate(
            zip(map(np.stack, zip(*found, strict=True)), (true_mean, true_variance), sure, strict=True)
        ):
            z = (values.mean(0) - right) / np.sqrt(values.var(0, ddof=1) / times + own)
            assert np.abs(z).max() < LIMIT, (name, which)
            errors[name, which] = values.var(0).sum()
    # Of 300 estimates each: a ratio of variances is off by a factor of 1.6 in fewer than one of 10,000.
    assert errors["plain", 1] > 2.0 * errors["control", 1]
    assert errors["control", 1] > 1.3 * errors["both", 1]
    assert errors["plain", 1] > 1.3 * errors["integrated", 1]
    assert errors["plain", 0] > 1.3 * errors["integrated", 0]
    if balanced:
        np.testing.assert_allclose(errors["control", 0], errors["plain", 0], rtol=1e-3)
    else:
        assert errors["plain", 0] > 2.0 * errors["control", 0]
    predicted = measure_gain(raw[:2000].numpy(), linear[:2000].numpy())
    assert 0.5 < predicted / (errors["plain", 1] / errors["control", 1]) < 2.0
    predicted = measure_gain(expected[:2000].numpy(), linear_earlier[:2000].numpy(), within[:2000].numpy())
    assert 0.5 < predicted / (errors["integrated", 1] / errors["both", 1]) < 2.0


@pytest.mark.parametrize("design", [Design.BALANCED, Design.INDEPENDENT])
@torch.no_grad()
def test_a_network_that_is_linear_in_its_masks_is_known_exactly(design: Design) -> None:
    network = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Dropout(0.2), nn.Linear(12, 2))
    inputs = {"input": torch.randn(3, 6)}
    program = program_for(network, inputs)
    boundary, expansion = program.prefix(inputs), expand(program)
    assert expansion is not None
    gradients = mask_gradients(expansion, boundary, 2)
    assert gradients is not None
    masks = drawn(program, inputs, 7, design, 20)
    known = known_variance(gradients, program.sites)
    moments = gather(Decoded(mean=program.many(boundary, masks).double()), [10, 10], True)
    found = adjusted_spread(moments, controls(gradients, masks, program.sites), known, design is Design.BALANCED)
    assert found.variance is not None
    assert found.standard_error is not None
    calm = program.suffix(boundary, program.bypass(boundary.symbols)).double().numpy()
    hidden = torch.tanh(network[0](inputs["input"])).double()
    exact = (hidden.square() @ network[3].weight.double().square().T * mask_variance(program.sites[0])).numpy()
    np.testing.assert_allclose(found.mean, calm, atol=1e-6)
    np.testing.assert_allclose(found.variance, exact, rtol=1e-5)
    assert found.standard_error.max() < 1e-6


def test_a_variance_that_few_draws_leave_below_zero_is_the_one_without_controls() -> None:
    draws, linear = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([-9.0, 9.0, 9.0, -9.0])
    moments = gather(Decoded(mean=draws.reshape(4, 1, 1).double()), [2, 2], True)
    found = adjusted_spread(moments, linear.reshape(4, 1, 1).double(), torch.tensor([[1.0]]), False)
    np.testing.assert_allclose(found.variance, spread(moments, False).variance)
    np.testing.assert_allclose(found.mean, [[2.5]])


def test_one_draw_has_a_mean_and_no_variance() -> None:
    moments = gather(Decoded(mean=torch.ones(1, 2, 1).double()), [1], True)
    found = adjusted_spread(moments, torch.full((1, 2, 1), 0.25).double(), torch.ones(2, 1), True)
    np.testing.assert_allclose(found.mean, np.full((2, 1), 0.75))
    assert found.variance is None


def test_the_gain_is_one_without_controls_and_infinite_where_they_are_all() -> None:
    draws = np.random.default_rng(0).normal(size=(50, 3, 2)) * [1.0, 100.0]
    assert measure_gain(draws, np.zeros_like(draws)) == pytest.approx(1.0)
    assert measure_gain(draws, draws - 5.0) > 1e12
    assert measure_gain(draws, draws * [1.0, 0.0]) == pytest.approx(2.0, rel=0.25), "each output in its own scale"
