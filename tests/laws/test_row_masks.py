"""Masks of its own for each row: the laws of shared masks, row by row, and independence between rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from calibrations import calibration
from dubito_models.engine import wants
from dubito_models.errors import InvalidArgument
from dubito_models.package import ModelVersion
from dubito_models.predictive import Classification, Validity
from dubito_models.sampling import SamplingSpec
from dubito_models.sites import Site, SiteKind
from dubito_models.stopping import Stopping, StoppingRule
from dubito_models.thinning import Design, MaskScope, drop_bits, row_keys
from networks import CASES, sample

Packed = Callable[[str], ModelVersion]
CPU = torch.device("cpu")
DESIGNS = [Design.BALANCED, Design.INDEPENDENT]
ROW = MaskScope.ROW
WEIGHTED = {"dropped-weights"}


# --- Masks ---


def bits(
    seed: int, rows: list[int], design: Design = Design.BALANCED, units: int = 64, groups: int = 30
) -> torch.Tensor:
    site = Site("site", SiteKind.ELEMENT, 0.3, (str(units),), "here:1", 1 / 0.7)
    return drop_bits(site, 1, (units,), design, seed, range(groups), 10, CPU, torch.tensor(rows))


@pytest.mark.parametrize("design", DESIGNS)
def test_a_rows_masks_depend_on_its_number_alone(design: Design) -> None:
    whole = bits(3, [0, 1, 2, 3], design)
    assert torch.equal(bits(3, [2], design)[:, 0], whole[:, 2])
    assert torch.equal(bits(3, [3, 1], design), whole[:, [3, 1]])


@pytest.mark.parametrize("design", DESIGNS)
def test_rows_and_seeds_are_independent_of_each_other(design: Design) -> None:
    """28 pairs, |z| < 4.5 each: a false alarm in 5,000."""
    several = [*bits(5, [0, 1, 2, 2**33], design, 512).unbind(1), *bits(6, [0, 1, 2, 2**33], design, 512).unbind(1)]
    masks = [((part & 1) > 0).flatten() for part in several]  # one draw of each group
    for first, second in itertools.combinations(masks, 2):
        trials = first.numel()
        both = float((first & second).sum())
        assert abs(both - trials * 0.09) / (trials * 0.09 * 0.91) ** 0.5 < 4.5


def test_a_row_keeps_the_balance_of_its_groups() -> None:
    found = bits(0, [4, 9])
    counts = sum((found >> draw) & 1 for draw in range(10))
    assert (counts == 3).all()


def test_the_key_of_a_row_is_not_a_seeds_own() -> None:
    low, high = row_keys(7, torch.arange(1000))
    assert len(set(zip(low.tolist(), high.tolist(), strict=True))) == 1000
    assert (7, 0) not in set(zip(low.tolist(), high.tolist(), strict=True))


# --- Answers ---


@pytest.mark.parametrize("name", sorted(set(CASES) - WEIGHTED))
def test_every_row_is_drawn_as_one_row_under_its_own_masks(packed: Packed, name: str) -> None:
    """The suffix of a single row, draw by draw, is the oracle."""
    version = packed(name)
    program, engine = version.engine.program, version.engine
    inputs = sample(name, 3)
    plan = engine.plan(SamplingSpec(max_draws=engine.masks.group_size, seed=4, scope=ROW))
    with torch.inference_mode():
        boundary = program.prefix(inputs)
        masks = engine.masks.draws(boundary.symbols, 4, plan.design, 0, plan.max_draws, torch.arange(3))
        rows = program.split(boundary, [1, 1, 1])
        expected = torch.stack(
            [
                torch.cat([program.suffix(row, [mask[d, n] for mask in masks]) for n, row in enumerate(rows)])
                for d in range(3)
            ]
        )
        found = engine._passes_by_row(boundary, np.arange(3), plan, 0, plan.max_draws)
        assert len(found) == plan.max_draws
        torch.testing.assert_close(found[:3], expected, rtol=1e-5, atol=1e-5)
        engine.vmaps, vmaps = False, engine.vmaps
        try:
            looped = engine._passes_by_row(boundary, np.arange(3), plan, 0, plan.max_draws)
        finally:
            engine.vmaps = vmaps
        torch.testing.assert_close(looped[:3], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder", "lstm"])
@pytest.mark.parametrize("design", DESIGNS)
def test_neighbours_and_blocks_do_not_matter(
    packed: Packed, name: str, design: Design, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = packed(name).engine
    plan = engine.plan(SamplingSpec(max_draws=25, seed=3, design=design, scope=ROW, raw_draws=True))
    strangers = [(sample(name, rows, seed=rows), plan) for rows in (2, 5, 1)]
    together = engine.start(strangers, None)
    together = engine.advance(together, wants(together[0]))
    monkeypatch.setattr("dubito_models.engine._ROW_MASKS", 1)  # a row at a time
    for (inputs, _), answer in zip(strangers, engine.finish(together), strict=True):
        np.testing.assert_allclose(answer.raw_draws, engine.predict(inputs, plan.spec).raw_draws, rtol=0, atol=1e-6)


def test_equal_rows_get_draws_of_their_own_with_one_law(packed: Packed) -> None:
    """Rows of one input: their means over draws scatter as the standard error says, and do not move together."""
    version = packed("mlp")
    one = sample("mlp", 1)["input"]
    same = {"input": one.expand(200, -1).contiguous()}
    spec = SamplingSpec(max_draws=40, seed=1, scope=ROW, design=Design.INDEPENDENT, raw_draws=True)
    answer = version.engine.predict(same, spec)
    draws = answer.raw_draws
    assert draws is not None
    assert answer.standard_error is not None
    assert answer.scope == "row"
    scatter = draws.mean(0).std(0, ddof=1)  # over rows: 200 of them, so known to 1 / sqrt(398) = 5 %; 4.5 of those
    np.testing.assert_allclose(scatter, np.sqrt((answer.standard_error**2).mean(0)), rtol=0.23)
    shared = version.engine.predict(same, SamplingSpec(max_draws=40, seed=1, raw_draws=True)).raw_draws
    assert shared is not None
    assert np.ptp(shared, axis=1).max() < 1e-6
    first, second = draws[:, ::2, 0], draws[:, 1::2, 0]  # 4,000 pairs of independent draws: z of their correlation
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) * np.sqrt(4000) < 4.5


def test_rows_that_stop_leave_the_others_their_own_masks(packed: Packed) -> None:
    engine, inputs = packed("mlp").engine, sample("mlp", 12)
    spec = SamplingSpec(max_draws=80, seed=2, scope=ROW, stopping=Stopping(StoppingRule.DECISION), raw_draws=True)
    stopped = engine.predict(inputs, spec)
    assert len(set(stopped.draws.tolist())) > 1
    fixed = engine.predict(inputs, SamplingSpec(max_draws=80, seed=2, scope=ROW, raw_draws=True)).raw_draws
    assert fixed is not None
    assert stopped.raw_draws is not None
    for row, used in enumerate(stopped.draws):
        np.testing.assert_allclose(stopped.raw_draws[:used, row], fixed[:used, row], rtol=0, atol=1e-6)


def test_the_mean_over_many_draws_is_that_of_shared_masks(packed: Packed) -> None:
    """Both within their standard errors of each other: 48 numbers, |z| < 5, a false alarm in 35,000."""
    engine, inputs = packed("mlp").engine, sample("mlp", 12)
    answers = [
        engine.predict(inputs, SamplingSpec(max_draws=2000, seed=9, design=Design.INDEPENDENT, scope=scope))
        for scope in MaskScope
    ]
    one, other = (answer.answer for answer in answers)
    assert isinstance(one, Classification)
    assert isinstance(other, Classification)
    errors = [answer.standard_error for answer in answers]
    assert all(error is not None for error in errors)
    assert (np.abs(one.probabilities - other.probabilities) / np.hypot(*errors)).max() < 5


# --- What is said and refused ---


def test_a_calibration_of_shared_masks_is_close_to_it_not_exact(packed: Packed) -> None:
    engine = packed("mlp").engine
    rows = sample("mlp", 60)
    plan = engine.plan(SamplingSpec())
    made = {"draws": plan.max_draws, "seed": plan.seed, "design": plan.design.value, "group_size": plan.group_size}
    found = calibration(**made, min_draws=plan.min_draws)
    for scope, validity in ((MaskScope.DRAW, Validity.EXACT), (ROW, Validity.APPROXIMATE)):
        answer = engine.predict(rows, SamplingSpec(scope=scope), found)
        assert answer.calibration_validity is validity


def test_weights_have_no_rows(packed: Packed) -> None:
    engine = packed("dropped-weights").engine
    with pytest.raises(InvalidArgument, match=r"mask_scope: got row, where weights are dropped .* accepted: draw"):
        engine.predict(sample("dropped-weights", 2), SamplingSpec(scope=ROW))


def test_rows_that_share_nothing_have_no_joint_covariance() -> None:
    with pytest.raises(InvalidArgument, match="joint: got true with masks of its own"):
        SamplingSpec(scope=ROW, joint=True)
