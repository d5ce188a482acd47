"""Law 1: one draw is the original module under the same forced masks; all sites bypassed is the standard path."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dubito_models.package import ModelVersion
from dubito_models.thinning import Design
from networks import CASES, build, sample, thinned

ALL = sorted(CASES)
Packed = Callable[[str], ModelVersion]


def draws_of(version: ModelVersion, inputs: dict[str, Tensor], count: int) -> tuple[object, list[Tensor]]:
    boundary = version.engine.program.prefix(inputs)
    return boundary, version.engine.masks.draws(boundary.symbols, 5, Design.BALANCED, 0, count)


@pytest.mark.parametrize("name", ALL)
@torch.inference_mode()
def test_one_draw_unbatched_is_the_original_module_under_the_same_masks_bit_for_bit(packed: Packed, name: str) -> None:
    version, network = packed(name), build(name)
    inputs = sample(name, 1)
    boundary, masks = draws_of(version, inputs, 4)
    for draw in range(4):
        chosen = [mask[draw] for mask in masks]
        ours = version.engine.program.suffix(boundary, chosen)
        theirs = thinned(name, network, inputs, chosen)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ALL)
@torch.inference_mode()
def test_draws_vmapped_and_in_a_batch_are_the_original_module_to_rounding(packed: Packed, name: str) -> None:
    version, network = packed(name), build(name)
    inputs = sample(name, 6)
    boundary, masks = draws_of(version, inputs, 10)
    batched = version.engine.program.many(boundary, masks) if version.engine.vmaps else None
    for draw in range(10):
        one = [mask[draw] for mask in masks]
        ours = version.engine.program.suffix(boundary, one) if batched is None else batched[draw]
        theirs = thinned(name, network, inputs, one)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
@torch.inference_mode()
def test_all_sites_bypassed_is_the_module_in_evaluation_mode_and_the_onnx_output(packed: Packed, name: str) -> None:
    version, network = packed(name), build(name).eval()
    inputs = sample(name, 5, seed=9)
    boundary = version.engine.program.prefix(inputs)
    calm = version.engine.program.suffix(boundary, version.engine.program.bypass(boundary.symbols))
    expected = network(**inputs)
    output = CASES[name].options.get("output")
    expected = expected if output is None else expected[output]
    torch.testing.assert_close(calm, expected, rtol=1e-5, atol=1e-6)
    onnx = version.evaluate({key: value.numpy() for key, value in inputs.items()}).output
    np.testing.assert_allclose(onnx, expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "axis"), [("encoder", "series"), ("two-inputs", "tokens"), ("last-token", "tokens")])
@torch.inference_mode()
def test_a_free_length_runs_at_other_lengths_and_rows(packed: Packed, name: str, axis: str) -> None:
    version, network = packed(name), build(name)
    for rows, length in ((1, 2), (4, 33), (3, 9)):
        inputs = sample(name, rows)
        repeats = -(-length // inputs[axis].shape[1])
        inputs[axis] = inputs[axis].repeat(1, repeats, *(1,) * (inputs[axis].dim() - 2))[:, :length]
        boundary, masks = draws_of(version, inputs, 1)
        chosen = [mask[0] for mask in masks]
        ours = version.engine.program.suffix(boundary, chosen)
        torch.testing.assert_close(ours, thinned(name, network, inputs, chosen), rtol=0, atol=1e-6)


def test_packing_leaves_the_module_as_it_was(packed: Packed) -> None:
    before = build("cnn").state_dict()
    packed("cnn")
    after = build("cnn").state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
