"""Law 3: masks obey their site. Law 4 in part: each single mask is a plain product-Bernoulli mask.

Fixed seeds; every z-test is two-sided at |z| < 4.5, a false-alarm rate of 7e-6 each, below 1e-3 for the file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dubito_models.package import ModelVersion
from dubito_models.rewriting import ALPHA_BYPASS, alpha_masked
from dubito_models.sites import Site, SiteKind
from dubito_models.thinning import Design, Masks, choose_group_size, drop_bits, philox
from networks import sample

Packed = Callable[[str], ModelVersion]
CPU = torch.device("cpu")
RATES = [0.05, 0.1, 0.2, 0.3, 0.5, 0.8]
DESIGNS = [Design.BALANCED, Design.INDEPENDENT]


def dropped(rate: float, shape: tuple[int, ...], design: Design, groups: int, g: int, seed: int = 11) -> Tensor:
    """Return which draws drop which units: (groups * g, *shape) bool."""
    site = Site("site", SiteKind.ELEMENT, rate, tuple(map(str, shape)), "here:1", 1 / (1 - rate))
    bits = drop_bits(site, 0, shape, design, seed, list(range(groups)), g, CPU)
    return torch.stack([(bits >> draw) & 1 for draw in range(g)], 1).flatten(0, 1).bool()


def z(count: float, trials: int, rate: float) -> float:
    return (count - trials * rate) / (trials * rate * (1 - rate)) ** 0.5


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert tuple(int(word) for word in philox(counter, key)) == expected


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("design", DESIGNS)
def test_the_share_of_dropped_units_is_the_rate_in_every_place_of_a_group(rate: float, design: Design) -> None:
    g = choose_group_size([rate])
    masks = dropped(rate, (512,), design, 200, g).reshape(200, g, 512)
    for place in range(g):
        assert abs(z(float(masks[:, place].sum()), 200 * 512, rate)) < 4.5


@pytest.mark.parametrize("design", DESIGNS)
def test_units_of_one_draw_are_independent_of_each_other(design: Design) -> None:
    masks = dropped(0.3, (24,), design, 400, 10).reshape(400, 10, 24)
    for place in (0, 4, 9):  # one draw of each group, so that the 400 are independent
        for first, second in itertools.combinations(range(0, 24, 3), 2):
            both = float((masks[:, place, first] & masks[:, place, second]).sum())
            assert abs(z(both, 400, 0.09)) < 4.5


@pytest.mark.parametrize(("rate", "g"), [(0.2, 10), (0.5, 8), (0.3, 16), (0.9, 10), (0.15, 12)])
def test_balance_drops_each_unit_in_floor_or_ceil_of_g_p_draws_with_the_right_mean(rate: float, g: int) -> None:
    counts = dropped(rate, (64,), Design.BALANCED, 300, g).reshape(300, g, 64).sum(1)
    allowed = {int(np.floor(g * rate + 1e-9)), int(np.ceil(g * rate - 1e-9))}
    assert set(counts.unique().tolist()) <= allowed
    share = g * rate - min(allowed)
    if len(allowed) > 1:
        assert abs(z(float((counts == max(allowed)).sum()), counts.numel(), share)) < 4.5


def test_groups_of_a_balanced_design_are_independent_of_each_other() -> None:
    masks = dropped(0.5, (2048,), Design.BALANCED, 9, 8).reshape(9, 8, 2048)
    for first, second in itertools.combinations(range(9), 2):
        both = float((masks[first, 0] & masks[second, 0]).sum())
        assert abs(z(both, 2048, 0.25)) < 4.5


@pytest.mark.parametrize("design", DESIGNS)
def test_sites_seeds_and_draws_do_not_share_bits(design: Design) -> None:
    def one(number: int, seed: int, group: int) -> Tensor:
        site = Site("site", SiteKind.ELEMENT, 0.5, ("4096",), "here:1", 2.0)
        return (drop_bits(site, number, (4096,), design, seed, [group], 8, CPU)[0] & 1).bool()

    masks = [one(*arguments) for arguments in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 2**32, 0), (0, 0, 1), (2, 0, 3))]
    for first, second in itertools.combinations(masks, 2):
        assert abs(z(float((first & second).sum()), 4096, 0.25)) < 4.5


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("shape", [("length", "6"), ("3", "length", "length"), ("4", "length"), ("length",)])
def test_a_longer_sequence_extends_the_mask_of_a_shorter_one(design: Design, shape: tuple[str, ...]) -> None:
    site = Site("site", SiteKind.ELEMENT, 0.3, shape, "here:1", 1 / 0.7)

    def at(length: int) -> Tensor:
        sizes = tuple(length if size == "length" else int(size) for size in shape)
        return drop_bits(site, 2, sizes, design, 5, [0, 1], 10, CPU)

    short, long = at(7), at(19)
    inside = tuple(slice(0, 7 if size == "length" else int(size)) for size in shape)
    assert torch.equal(short, long[:, *inside])


def test_a_mask_is_zero_or_one_over_the_kept_share_and_bypass_is_one(packed: Packed) -> None:
    engine = packed("cnn").engine
    boundary = engine.program.prefix(sample("cnn", 2))
    masks = engine.masks.draws(boundary.symbols, 0, Design.BALANCED, 0, 40)
    for site, mask in zip(engine.program.sites, masks, strict=True):
        assert set(mask.unique().tolist()) == {0.0, float(torch.tensor(1 / (1 - site.rate)))}
        assert site.bypass == 1.0


def test_channel_masks_are_one_value_per_channel(packed: Packed) -> None:
    sites = packed("cnn").engine.program.sites
    assert [(site.kind, site.shape) for site in sites] == [(SiteKind.CHANNEL, ("8",)), (SiteKind.ELEMENT, ("128",))]


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_moments_agree_with_torch_dropout(rate: float) -> None:
    rows = 20_000
    with torch.random.fork_rng():
        torch.manual_seed(4)
        theirs = F.dropout(torch.ones(rows, 16), rate).double()
    g = choose_group_size([rate])
    ours = (~dropped(rate, (16,), Design.INDEPENDENT, rows // g, g)).double() / (1 - rate)
    error = (2 * rate / (1 - rate) / rows / 16) ** 0.5
    assert abs(float(ours.mean() - theirs.mean())) < 4.5 * error
    assert ours.unique().tolist() == pytest.approx(theirs.unique().tolist())


@pytest.mark.parametrize(
    ("rates", "g"),
    [
        ([0.1], 10),
        ([0.2], 10),
        ([0.25], 8),
        ([0.5], 8),
        ([0.1, 0.25], 20),
        ([0.3], 10),
        ([0.37], 16),
        ([0.05], 20),
        ([float(np.float32(0.1))], 10),
    ],
)
def test_the_group_size_makes_every_count_whole_where_it_can(rates: list[float], g: int) -> None:
    assert choose_group_size(rates) == g


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("by_channel", [False, True])
def test_alpha_dropout_with_a_given_mask_is_torchs_own_with_that_mask_bit_for_bit(
    rate: float, by_channel: bool
) -> None:
    value = torch.rand(64, 16, 5, generator=torch.Generator().manual_seed(1)) + 0.5  # so that what is dropped shows
    own = F.feature_alpha_dropout if by_channel else F.alpha_dropout
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = own(value, rate, training=True)
    dropped_value = theirs.min()
    for row in range(64):
        kept = (theirs[row] != dropped_value).float()
        mask = kept[:, 0] if by_channel else kept
        ours = alpha_masked(value[row : row + 1], mask, 0, int(by_channel), rate)
        assert torch.equal(ours[0], theirs[row])
    assert torch.equal(alpha_masked(value, torch.full((16, 5), ALPHA_BYPASS), 0, 0, rate), value)


def test_alpha_dropout_keeps_mean_zero_and_variance_one_of_selu_activations() -> None:
    generator = torch.Generator().manual_seed(2)
    value = F.selu(torch.randn(2000, 512, generator=generator, dtype=torch.float64))
    value = (value - value.mean()) / value.std()
    masks = (~dropped(0.2, (512,), Design.INDEPENDENT, 200, 10)).double()  # one draw per row here
    out = torch.cat([alpha_masked(value[i : i + 1], masks[i], 0, 0, 0.2) for i in range(2000)])
    assert abs(float(out.mean())) < 4.5 / out.numel() ** 0.5 * 2
    assert abs(float(out.var()) - 1) < 0.02


def test_masks_past_the_memory_budget_are_the_same_masks(packed: Packed) -> None:
    engine = packed("mlp").engine
    symbols = engine.program.prefix(sample("mlp", 1)).symbols
    options = {"group_size": 10, "balanced": engine.masks.balanced}
    kept, tiny = Masks(engine.program, **options), Masks(engine.program, **options, budget_bytes=300)
    for first in (0, 20, 0, 10):
        pair = zip(
            kept.draws(symbols, 0, Design.BALANCED, first, 20),
            tiny.draws(symbols, 0, Design.BALANCED, first, 20),
            strict=True,
        )
        assert all(torch.equal(one, other) for one, other in pair)


def test_past_the_budget_the_first_groups_stay_and_other_shapes_make_way(
    packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = packed("encoder").engine
    masks = Masks(engine.program, group_size=10, balanced=engine.masks.balanced)
    made: list[int] = []
    make = masks._make

    def counted(*arguments: object) -> list[list[Tensor]]:
        found = make(*arguments)  # type: ignore[arg-type]
        made.append(len(found))
        return found

    monkeypatch.setattr(masks, "_make", counted)
    short = engine.program.prefix(sample("encoder", 1)).symbols
    size = sum(mask.nbytes for mask in make(engine.program.mask_shapes(short), 0, Design.BALANCED, [0])[0])
    monkeypatch.setattr(masks, "_budget", 3 * size)
    for _ in range(2):
        masks.draws(short, 0, Design.BALANCED, 0, 50)
    assert made == [5, 1]  # three stay, and the last one made
    masks.draws(short, 0, Design.INDEPENDENT, 0, 10)
    masks.draws(short, 0, Design.BALANCED, 0, 30)
    assert made == [5, 1, 1, 1]  # the least lately used of them made way


def test_passes_smaller_than_a_group_do_not_make_it_again(packed: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = packed("mlp").engine
    symbols = engine.program.prefix(sample("mlp", 1)).symbols
    masks = Masks(engine.program, group_size=10, balanced=engine.masks.balanced)
    made: list[int] = []
    make = masks._make

    def counted(shapes: object, seed: int, design: Design, groups: list[int], *rest: object) -> list[list[Tensor]]:
        made.extend(groups)
        return make(shapes, seed, design, groups, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(masks, "_make", counted)
    parts = [masks.draws(symbols, 77, Design.BALANCED, first, 3) for first in range(0, 30, 3)]
    assert made == [0, 1, 2]
    whole = masks.draws(symbols, 78, Design.BALANCED, 0, 30)
    assert made == [0, 1, 2, 0, 1, 2]
    again = masks.draws(symbols, 77, Design.BALANCED, 0, 30)
    for site, mask in enumerate(again):
        assert torch.equal(torch.cat([part[site] for part in parts]), mask)
        assert not torch.equal(whole[site], mask)
