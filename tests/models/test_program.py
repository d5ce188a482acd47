"""What is found in a network, how it is cut, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dubito_models.errors import InvalidArgument, NoDropout, UnknownRandomness, UnsupportedNetwork
from dubito_models.export import export_network, read_example
from dubito_models.package import ModelVersion
from dubito_models.packing import pack
from dubito_models.program import StochasticProgram
from dubito_models.sites import SiteKind
from networks import sample

Packed = Callable[[str], ModelVersion]


def program_of(module: nn.Module, inputs: Tensor) -> StochasticProgram:
    example = read_example(module, inputs)
    exported = export_network(module, example)
    return StochasticProgram(exported.stochastic, {name: {} for name in example.inputs}, exported.output)


def function(forward: Callable[..., Tensor]) -> nn.Module:
    """Make a module of one linear layer followed by `forward(hidden, training)`."""

    class Made(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return forward(self.linear(x), self.training)

    return Made()


def test_sites_have_their_modules_names_kinds_rates_and_shapes(packed: Packed) -> None:
    found = [(s.name, s.kind, s.rate, s.shape) for s in packed("encoder").engine.program.sites]
    block = [
        ("self_attn.attention_dropout", SiteKind.ATTENTION, 0.1, ("2", "length", "length")),
        ("dropout1", SiteKind.ELEMENT, 0.1, ("length", "16")),
        ("dropout", SiteKind.ELEMENT, 0.1, ("length", "32")),
        ("dropout2", SiteKind.ELEMENT, 0.1, ("length", "16")),
    ]
    assert found == [(f"encoder.layers.{i}.{name}", *rest) for i in (0, 1) for name, *rest in block]


def test_rows_stand_elsewhere_in_a_sequence_first_network_and_in_folded_heads(packed: Packed) -> None:
    assert packed("encoder-sequence-first").engine.program.sites[1].shape == ("5", "16")
    assert packed("weighted-attention").engine.program.sites[0].shape == ("2", "5", "5")


def test_what_no_mask_reaches_is_prefix_and_runs_once(packed: Packed) -> None:
    program = packed("head-only").engine.program
    boundary = program.prefix(sample("head-only", 3))
    assert [tuple(value.shape) for value in boundary.values] == [(3, 128)]
    targets = [str(node.target) for node in program._suffix.module.graph.nodes]
    assert not any("conv" in target for target in targets)


def test_joined_boundaries_split_back(packed: Packed) -> None:
    program = packed("weighted-attention").engine.program
    parts = [program.prefix(sample("weighted-attention", rows, seed=rows)) for rows in (1, 4, 2)]
    back = program.split(program.join(parts), [1, 4, 2])
    for one, other in zip(parts, back, strict=True):
        assert one.symbols == other.symbols
        assert all(torch.equal(a, b) for a, b in zip(one.values, other.values, strict=True))


@pytest.mark.parametrize(
    "forward",
    [
        lambda h, training: h * torch.rand_like(h),
        lambda h, training: h + torch.randn(h.shape[0], 1),
        lambda h, training: F.rrelu(h, training=training),
        lambda h, training: h * torch.bernoulli(torch.full_like(h, 0.5)),
        lambda h, training: h[:, torch.randperm(4)],
    ],
)
def test_randomness_that_is_not_dropout_is_refused_with_node_and_line(forward: Callable[..., Tensor]) -> None:
    module = function(lambda h, training: F.dropout(forward(h, training), 0.5, training))
    with pytest.raises(UnknownRandomness, match=r"node \w+, test_program\.py:\d+"):
        program_of(module, torch.randn(3, 4))


@pytest.mark.parametrize(("draw", "name"), [(random.random, r"Python's random"), (np.random.rand, r"numpy\.random")])
def test_a_layer_that_is_dropped_by_a_generator_outside_of_torch_is_refused(
    draw: Callable[[], float], name: str
) -> None:
    """Whichever way it went, the graph would hold it for ever."""
    layer = nn.Linear(4, 4)

    def forward(h: Tensor, training: bool) -> Tensor:
        return F.dropout(h if training and draw() < 0.5 else layer(h), 0.5, training)

    with pytest.raises(UnknownRandomness, match=f"draws from {name} in training mode"):
        program_of(function(forward), torch.randn(3, 4))


@pytest.mark.parametrize("choose", [lambda h: h[h > 0], lambda h: h[: int((h[:, 0] > 0).sum())]])
def test_a_size_that_depends_on_the_data_is_refused(choose: Callable[[Tensor], Tensor]) -> None:
    module = function(lambda h, training: F.dropout(h, 0.5, training) + choose(h).sum())
    with pytest.raises(
        UnsupportedNetwork, match=r"depends on (the )?data.*test_program\.py:\d+|test_program\.py:\d+\): a size"
    ):
        program_of(module, torch.randn(3, 4))


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(4, 2),
        nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0), nn.Linear(4, 2)),
        function(lambda h, training: F.dropout(h, 0.5, False)),
    ],
)
def test_a_network_without_active_dropout_is_refused(module: nn.Module) -> None:
    with pytest.raises(NoDropout, match="no active dropout"):
        program_of(module, torch.randn(3, 4))


def test_dropout_that_does_not_reach_the_prediction_is_refused() -> None:
    class Loose(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, F.dropout(x, 0.5, self.training)

    example = read_example(Loose(), torch.randn(3, 4))
    exported = export_network(Loose(), example, 0)
    with pytest.raises(NoDropout, match="reaches the prediction"):
        StochasticProgram(exported.stochastic, {"x": {}}, exported.output)


def test_randomness_that_does_not_reach_the_prediction_does_not_matter() -> None:
    class Beside(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return F.dropout(x, 0.5, self.training), F.dropout(x, 0.2, self.training) * torch.rand_like(x)

    example = read_example(Beside(), torch.randn(3, 4))
    exported = export_network(Beside(), example, 0)
    program = StochasticProgram(exported.stochastic, {"x": {}}, exported.output)
    assert [site.rate for site in program.sites] == [0.5]


def test_rate_one_is_refused() -> None:
    with pytest.raises(UnsupportedNetwork, match=r"rate 1\.0"):
        program_of(nn.Sequential(nn.Linear(4, 4), nn.Dropout(1.0)), torch.randn(3, 4))


def test_control_flow_that_depends_on_data_is_refused_with_the_reason() -> None:
    def forward(h: Tensor, training: bool) -> Tensor:
        if h.sum() > 0:
            h = h + 1
        return F.dropout(h, 0.5, training)

    with pytest.raises(UnsupportedNetwork, match="depends on data"):
        program_of(function(forward), torch.randn(3, 4))


def test_a_fixed_number_of_rows_is_refused() -> None:
    module = function(lambda h, training: F.dropout(h.reshape(3, 4), 0.5, training))
    with pytest.raises(UnsupportedNetwork):
        program_of(module, torch.randn(3, 4))


def test_writing_in_place_across_the_cut_is_refused_and_elsewhere_made_functional() -> None:
    def across(h: Tensor, training: bool) -> Tensor:
        kept = h.clone()
        kept[:, 0] = F.dropout(h, 0.5, training)[:, 0]
        return kept

    with pytest.raises(UnsupportedNetwork, match="in place"):
        program_of(function(across), torch.randn(3, 4))

    def later_write(h: Tensor, training: bool) -> Tensor:
        drawn = F.dropout(h, 0.5, training)
        h.add_(1.0)  # after the draw has read h
        return drawn + h

    module = function(later_write)
    inputs = torch.randn(3, 4)
    program = program_of(module, inputs)
    with torch.inference_mode():
        boundary = program.prefix({"x": inputs})
        answer = program.suffix(boundary, [torch.zeros(4)])
        torch.testing.assert_close(answer, module.linear(inputs) + 1.0)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        (torch.tensor(1.0), "example_inputs"),
        ({"x": "text"}, "example_inputs"),
        ({"y": torch.ones(2, 4)}, "example_inputs"),
        (torch.ones(0, 4), "example_inputs"),
    ],
)
def test_example_inputs_that_are_not_rows_of_tensors_are_refused(inputs: object, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_example(function(lambda h, training: h), inputs)  # type: ignore[arg-type]
    assert caught.value.field.startswith(field)


@pytest.mark.parametrize("dynamic", [{"z": {1: "n"}}, {"x": {0: "n"}}, {"x": {1: "rows"}}, {"x": {5: "n"}}])
def test_free_axes_that_do_not_exist_are_refused(dynamic: dict[str, dict[int, str]]) -> None:
    with pytest.raises(InvalidArgument, match="dynamic"):
        read_example(function(lambda h, training: h), torch.ones(2, 4), dynamic)


def test_one_example_row_is_enough() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    assert program_of(module, torch.randn(1, 4)).prefix({"input": torch.randn(5, 4)}).rows == 5


@pytest.mark.parametrize(
    ("name", "kinds", "bypass"),
    [
        ("self-normalizing", [SiteKind.CHANNEL_ALPHA, SiteKind.ALPHA], [2.0, 2.0]),
        ("path-bernoulli", [SiteKind.BRANCH] * 3, [0.9, 0.7, 0.5]),
        ("path-floor", [SiteKind.BRANCH] * 3, [0.9, 0.7, 0.5]),
        ("path-unscaled", [SiteKind.BRANCH] * 3, [1.0, 1.0, 1.0]),
        ("dropped-weights", [SiteKind.WEIGHT], [1.0]),
        ("lstm", [SiteKind.ELEMENT] * 2, [1.0, 1.0]),
    ],
)
def test_each_kind_of_site_has_the_mask_value_that_does_nothing(
    packed: Packed, name: str, kinds: list[SiteKind], bypass: list[float]
) -> None:
    sites = packed(name).engine.program.sites
    assert [site.kind for site in sites] == kinds
    assert [site.bypass for site in sites] == pytest.approx(bypass)


def test_memory_that_is_made_from_sizes_and_then_written_is_not_made_anew() -> None:
    class Written(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            table = torch.zeros(x.shape[0], 4)
            table[:, :2] = x[:, 2:]
            return F.dropout(x, 0.5, self.training) + table

    module, inputs = Written(), torch.randn(3, 4)
    program = program_of(module, inputs)
    with torch.inference_mode():
        boundary = program.prefix({"x": inputs})
        calm = program.suffix(boundary, program.bypass(boundary.symbols))
    torch.testing.assert_close(calm, module.eval()(inputs))


def test_bounds_of_a_free_axis_are_taken_over_and_checked(tmp_path: Path) -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Parameter(torch.randn(12, 4)), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = F.dropout(x + self.table[: x.shape[1]], 0.3, self.training)
            return self.head(hidden.mean(1))

    version = pack(
        Positions(), torch.randn(2, 5, 4), repository=tmp_path, name="m", task="classification", head="logits",
        dynamic={"x": {1: "length"}},
    )  # fmt: skip
    assert version.predict(np.zeros((1, 12, 4), np.float32)).draws.tolist() == [40]
    with pytest.raises(InvalidArgument, match=r"length = 13; accepted: \d+ to 12"):
        version.predict(np.zeros((1, 13, 4), np.float32))


def test_batch_norm_after_dropout_and_dropout_at_the_output_are_remarked_on(packed: Packed) -> None:
    after = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2), nn.BatchNorm1d(4), nn.Linear(4, 2))
    [remark] = program_of(after, torch.randn(3, 4)).remarks()
    assert "batch norm after dropout" in remark
    assert "Li et al. 2019" in remark
    [remark] = program_of(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.2)), torch.randn(3, 4)).remarks()
    assert "dropout at the output" in remark
    assert packed("mlp").engine.program.remarks() == ()
    assert packed("cnn").engine.program.remarks() == ()  # its batch norm stands before the dropout
