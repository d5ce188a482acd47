"""Masks as a pure function of (seed, draw, site, position, design): nothing else moves them.

Bits come from Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a counter-based
generator: the counter holds position, draw or group, and site; the key is the seed. So any mask can be made
anywhere, in any order, on any device, and is always the same. Where each row has masks of its own, its key is made of
the seed and the row's number in the request.

A balanced design draws in groups of g: in each group every unit is dropped in floor(g p) or ceil(g p) draws, at
random with expectation g p, in draws chosen without replacement (Floyd's sampling; Bentley & Floyd 1987). Each
single mask is still a plain product-Bernoulli mask; only draws of one group depend on each other.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from dubito_models.errors import InvalidArgument
from dubito_models.program import StochasticProgram
from dubito_models.sites import Site, SiteKind, Symbols

UNIT_BUDGET = 65_536  # a site with more units than this is drawn independently
_MASK32 = 0xFFFFFFFF
_LANES = 8  # 16-bit words of one Philox call
_FREE_CAPACITY = 1 << 16  # of each free axis but the most significant, in a position
_KEYS = 0xFFFFFFFF  # the last counter word of keys, which no mask has

Key = tuple[int | Tensor, int | Tensor]


class Design(StrEnum):
    """How the masks of many draws hang together."""

    BALANCED = "balanced"
    INDEPENDENT = "independent"
    MIXED = "mixed"  # balanced, but some sites above the unit budget are drawn independently


class MaskScope(StrEnum):
    """Who shares a mask: all rows of a draw, which is then one thinned network, or none."""

    DRAW = "draw"
    ROW = "row"


def philox(counter: Sequence[Tensor | int], key: Key, rounds: int = 10) -> tuple[Any, Any, Any, Any]:
    """Return the four 32-bit words of Philox4x32 for each counter, in [0, 2**32).

    `counter`: four words, `key`: two, of 32 bits; tensors (int64, broadcastable, on one device) or numbers. Numbers
    stay numbers, since a tensor of one would lie on the CPU; the words are numbers where all of them are.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # of tensors modulo 2**64: int64 wraps
        high0, high1 = (product0 >> 32) & _MASK32, (product1 >> 32) & _MASK32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, product1 & _MASK32, high0 ^ c3 ^ k1, product0 & _MASK32
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return c0, c1, c2, c3


@dataclass(frozen=True, slots=True)
class _Lattice:
    """The positions of a mask's elements: `outer` numbers the leading axes, `inner` counts along the last ones.

    A free axis never changes the number of an element that was there before it grew.
    """

    shape: tuple[int, ...]
    outer: Tensor  # (n_outer,) int64, in row-major order of the leading axes
    inner: int


def _lattice(site: Site, shape: tuple[int, ...], device: torch.device) -> _Lattice:
    free = [not size.isdigit() for size in site.shape]
    split = len(shape)
    if shape and free[-1]:
        split -= 1
    while split > 0 and not any(free[split - 1 :]):
        split -= 1
    leading = list(zip(shape[:split], free[:split], strict=True))
    stride, strides = 1, [0] * split
    for axis in [i for i in range(split) if not free[i]] + [i for i in range(split) if free[i]]:
        size, is_free = leading[axis]
        if is_free and size > _FREE_CAPACITY:
            raise InvalidArgument(f"free axis of {site.name}", size, f"at most {_FREE_CAPACITY}")
        strides[axis] = stride
        if stride * size > 1 << 32:
            raise InvalidArgument(
                f"site {site.name}", f"mask of shape {shape}", "at most 2**32 positions outside its last axis"
            )
        stride *= _FREE_CAPACITY if is_free else size
    outer = torch.zeros((1,) * split, dtype=torch.int64, device=device)
    for axis, (size, _) in enumerate(leading):
        steps = torch.arange(size, device=device).reshape([-1 if i == axis else 1 for i in range(split)])
        outer = outer + strides[axis] * steps
    return _Lattice(shape, outer.reshape(-1), math.prod(shape[split:]))


def _key(seed: int) -> tuple[int, int]:
    return seed & _MASK32, seed >> 32 & _MASK32


def row_keys(seed: int, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the keys (R,) of rows by their numbers (R,): Philox of the number, under the seed."""
    low, high, *_ = philox((rows, 0, 0, _KEYS), _key(seed))
    return low, high


def _words(lattice: _Lattice, index: Tensor, site: int, design: int, key: Key, per_unit: int) -> Tensor:
    """Return 16-bit words (len(index), units, per_unit) for each draw or group number in `index`."""
    calls = -(-lattice.inner * per_unit // _LANES)
    device = lattice.outer.device
    counter = (
        torch.arange(calls, device=device).reshape(1, 1, -1),
        lattice.outer.reshape(1, -1, 1),
        index.reshape(-1, 1, 1),
        site | design << 24,
    )
    words = philox(counter, key)
    lanes = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], -1)
    flat = lanes.reshape(len(index), len(lattice.outer), -1)[..., : lattice.inner * per_unit]
    return flat.reshape(len(index), -1, per_unit).to(torch.int32)


def _numbers(groups: Sequence[int], device: torch.device) -> Tensor:
    """Return numbers as a tensor; a range is counted where it is wanted, a list has to be sent there."""
    if len(groups) and groups[-1] - groups[0] == len(groups) - 1:
        return torch.arange(groups[0], groups[-1] + 1, device=device)
    return torch.as_tensor(groups, dtype=torch.int64, device=device)


def _drop_list(words: Tensor, group_size: int, rate: float) -> Tensor:
    """Choose per unit which draws of a group drop it; returns bits (G, units) int32, bit d for draw d.

    `words`: (G, units, w). The last word rounds g p up or down at random, the others are Floyd's choices.
    """
    wanted = group_size * rate
    most = math.ceil(wanted - 1e-9)
    surplus = wanted - math.floor(wanted + 1e-9)
    bits = torch.zeros_like(words[..., 0])
    one = torch.ones_like(bits)
    skips_first = words[..., most] >= round(surplus * 65536) if surplus > 1e-9 else None
    for step in range(most):
        top = group_size - most + step
        chosen = one << (words[..., step] * (top + 1) >> 16)
        fresh = torch.where((bits & chosen) == 0, chosen, one << top)
        if step == 0 and skips_first is not None:
            fresh = torch.where(skips_first, torch.zeros_like(fresh), fresh)
        bits = bits | fresh
    return bits


def _words_per_unit(group_size: int, rate: float) -> int:
    wanted = group_size * rate
    needed = math.ceil(wanted - 1e-9) + (abs(wanted - round(wanted)) > 1e-9)
    return 1 << max(needed - 1, 0).bit_length()


def drop_bits(
    site: Site,
    number: int,
    shape: tuple[int, ...],
    design: Design,
    seed: int,
    groups: Sequence[int],
    group_size: int,
    device: torch.device,
    rows: Tensor | None = None,
) -> Tensor:
    """Return which draws of each group drop each unit: bits (G, *shape) int32, bit d for draw d of the group.

    `number` is the site's place in the program; `design` BALANCED or INDEPENDENT. With the numbers of `rows` (R,), each
    of which has masks of its own: (G, R, *shape).
    """
    lattice = _lattice(site, shape, device)
    index = _numbers(groups, device)
    key: Key = _key(seed)
    shape = (len(groups), *shape) if rows is None else (len(groups), len(rows), *shape)
    if rows is not None:
        index = index.repeat_interleave(len(rows))
        low, high = (word.repeat(len(groups)).reshape(-1, 1, 1) for word in row_keys(seed, rows.to(device)))
        key = low, high
    if design is Design.BALANCED:
        few = min(site.rate, 1 - site.rate)  # the shorter list: of dropped, or of kept draws
        words = _words(lattice, index, number, 1, key, _words_per_unit(group_size, few))
        bits = _drop_list(words, group_size, few)
        if few != site.rate:
            bits = bits ^ ((1 << group_size) - 1)
        return bits.reshape(shape)
    threshold = round(site.rate * 65536)
    bits = torch.zeros(len(index), lattice.outer.numel() * lattice.inner, dtype=torch.int32, device=device)
    for draw in range(group_size):
        words = _words(lattice, index * group_size + draw, number, 0, key, 1)[..., 0]
        bits |= (words < threshold).to(torch.int32) << draw
    return bits.reshape(shape)


def choose_group_size(rates: Sequence[float]) -> int:
    """Return g: the smallest of 8..20 for which every g p is whole, to what float32 knows of p; else 16."""
    for size in range(8, 21):
        if all(abs(size * rate - round(size * rate)) < 1e-6 for rate in rates):
            return size
    return 16


def choose_balanced(sites: Sequence[Site], shapes: Sequence[tuple[int, ...]]) -> tuple[bool, ...]:
    """Tell for each site whether a balanced design balances it: not attention, and not above the unit budget."""
    return tuple(
        site.kind is not SiteKind.ATTENTION and math.prod(shape) <= UNIT_BUDGET
        for site, shape in zip(sites, shapes, strict=True)
    )


class Masks:
    """Makes the masks of a program's draws; keeps those of `kept_seed` as bytes, up to a memory budget."""

    def __init__(
        self,
        program: StochasticProgram,
        *,
        group_size: int,
        balanced: Sequence[bool],
        kept_seed: int = 0,
        budget_bytes: int = 64 << 20,
    ) -> None:
        self._program = program
        self.group_size = group_size
        self.balanced = tuple(balanced)
        self._kept_seed = kept_seed
        self._budget = budget_bytes
        self._kept: OrderedDict[tuple[object, ...], list[Tensor]] = OrderedDict()
        self._kept_bytes = 0
        self._recent: dict[tuple[object, ...], list[Tensor]] = {}
        self._lock = threading.Lock()  # of what is kept: several threads may draw at once

    def balances(self, design: Design) -> bool:
        """Tell whether a design balances anything in this program."""
        return design is Design.BALANCED and any(self.balanced)

    def keeps(self, size: int) -> bool:
        """Tell whether so many bytes of masks are kept, for the default seed."""
        return size <= self._budget

    def design_of(self, design: Design) -> Design:
        """Say what a design comes to for this program: MIXED where some sites cannot be balanced."""
        if design is Design.BALANCED and not all(self.balanced):
            return Design.MIXED if any(self.balanced) else Design.INDEPENDENT
        return design

    def draws(
        self, symbols: Symbols, seed: int, design: Design, first: int, count: int, rows: Tensor | None = None
    ) -> list[Tensor]:
        """Return the masks of draws first..first+count-1, one float32 tensor (count, *shape) per site.

        With the numbers of `rows` (R,), each of which has masks of its own: (count, R, *shape). With a fan-out the last
        site has so many masks for each draw: (count * fan_out, ...).
        """
        g = self.group_size
        groups = range(first // g, -(-(first + count) // g))
        shapes = self._program.mask_shapes(symbols)
        kept = (
            self._groups(shapes, seed, design, groups)
            if rows is None
            else self._make(shapes, seed, design, groups, rows)
        )
        start = first - groups.start * g
        masks = []
        for number, (site, repeats) in enumerate(zip(self._program.sites, self._repeats(rows), strict=True)):
            parts = [group[number] for group in kept]
            several = torch.cat(parts) if len(parts) > 1 else parts[0]
            masks.append(several[start * repeats : (start + count) * repeats] * site.kept)
        return masks

    def _repeats(self, rows: Tensor | None) -> list[int]:
        """Return how many masks each site has in a draw; rows that share none are not integrated, but fanned."""
        last = 1 if self._program.integrated and rows is None else self._program.fan_out
        return [1] * (len(self._program.sites) - 1) + [last]

    def _groups(
        self, shapes: tuple[tuple[int, ...], ...], seed: int, design: Design, groups: Sequence[int]
    ) -> list[list[Tensor]]:
        """Return what each group keeps: per site (g, *shape) uint8, 1 where a draw keeps a unit."""
        found = {}
        with self._lock:
            for group in groups:
                key = (design, group, shapes)
                if seed == self._kept_seed and key in self._kept:
                    found[group] = self._kept[key]
                    self._kept.move_to_end(key)
                elif (*key, seed) in self._recent:  # where a pass takes less than a group, the next one goes on with it
                    found[group] = self._recent[*key, seed]
        missing = [group for group in groups if group not in found]
        if missing:
            found.update(zip(missing, self._make(shapes, seed, design, missing), strict=True))
        with self._lock:
            if found:
                self._recent = {(design, groups[-1], shapes, seed): found[groups[-1]]}
            if seed == self._kept_seed:
                for group in missing:
                    self._keep((design, group, shapes), found[group])
        return [found[group] for group in groups]

    def _make(
        self,
        shapes: tuple[tuple[int, ...], ...],
        seed: int,
        design: Design,
        groups: Sequence[int],
        rows: Tensor | None = None,
    ) -> list[list[Tensor]]:
        device, g = self._program.device, self.group_size
        places = torch.arange(g, dtype=torch.int32, device=device)
        sites = []
        for number, (site, shape, repeats) in enumerate(
            zip(self._program.sites, shapes, self._repeats(rows), strict=True)
        ):
            even = design is Design.BALANCED and self.balanced[number]
            how = Design.BALANCED if even else Design.INDEPENDENT
            own = [group * repeats + part for group in groups for part in range(repeats)]
            bits = drop_bits(site, number, shape, how, seed, own, g, device, rows).unsqueeze(1)
            kept = (bits >> places.reshape(-1, *(1,) * (bits.dim() - 2)) & 1 ^ 1).to(torch.uint8)
            sites.append(kept.reshape(len(groups), repeats * g, *kept.shape[2:]))  # (G, g, ...)
        return [list(group) for group in zip(*sites, strict=True)]

    def _keep(self, key: tuple[object, ...], masks: list[Tensor]) -> None:
        """Keep a group; the least lately used of other shapes make way: those of one shape are wanted together."""
        if key in self._kept:  # another thread made it meanwhile
            return
        size = sum(mask.nbytes for mask in masks)
        while self._kept_bytes + size > self._budget:
            other = next((old for old in self._kept if old[0] != key[0] or old[2] != key[2]), None)
            if other is None:
                return
            self._kept_bytes -= sum(mask.nbytes for mask in self._kept.pop(other))
        self._kept[key] = masks
        self._kept_bytes += size
