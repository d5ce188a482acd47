"""The version policy: the newest good ones, or those that are pinned; nothing goes before what takes over is there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dubito_models.repository import Found
from dubito_service.versions.policy import Decision, Policy, Record, Standing, decide


def standing(number: int, kind: str = "new") -> Standing:
    """A version that is new, ready, failed, changed while it is ready, gone while it is ready, or held."""
    return Standing(
        number=number,
        there=kind != "gone",
        ready=kind in ("ready", "changed", "gone"),
        stale=kind in ("new", "changed", "held"),
        asked=False,
        held=kind == "held",
    )


def decided(policy: Policy, *kinds: str) -> Decision:
    return decide(policy, "m", [standing(number, kind) for number, kind in enumerate(kinds, 1)])


@pytest.mark.parametrize(
    ("kinds", "load", "drop"),
    [
        (("new", "new", "new"), (3, 2), ()),
        (("ready", "ready", "new"), (3,), ()),
        (("ready", "ready", "ready"), (), (1,)),
        (("new", "ready", "failed"), (1,), ()),
        (("ready", "ready", "failed"), (), ()),
        (("ready", "changed", "ready"), (2,), ()),
        (("new", "ready", "gone"), (1,), ()),
        (("ready", "ready", "gone"), (), (3,)),
        (("new", "ready", "held"), (), ()),
        (("held", "held", "held"), (), ()),
        (("held", "held", "new"), (3,), ()),
        (("gone",), (), ()),
        (("gone", "gone"), (), ()),
        (("failed", "gone"), (), ()),
        (("failed", "failed"), (), ()),
    ],
)
def test_of_two_newest_versions_the_good_ones_are_loaded_and_then_the_others_dropped(
    kinds: Sequence[str], load: tuple[int, ...], drop: tuple[int, ...]
) -> None:
    assert decided(Policy(newest=2), *kinds) == Decision(load, drop)


def test_pinned_versions_are_served_instead_of_the_newest() -> None:
    policy = Policy(newest=1, pins={"m": (1, 3)})
    assert decided(policy, "new", "new", "new", "new").load == (3, 1)
    assert decided(policy, "ready", "ready", "ready", "new") == Decision((), (2,))


def test_a_version_that_was_asked_for_is_kept_beside_those_of_the_policy() -> None:
    asked = Standing(number=1, there=True, ready=True, stale=False, asked=True, held=False)
    assert decide(Policy(newest=1), "m", [asked, standing(2, "new")]).load == (2,)
    assert decide(Policy(newest=1), "m", [asked, standing(2, "ready"), standing(3, "ready")]).drop == (2,)


KINDS = ("new", "ready", "failed", "changed", "gone", "held")


@given(st.lists(st.sampled_from(KINDS), max_size=6), st.integers(1, 4), st.booleans())
def test_whatever_there_is_nothing_is_dropped_while_something_is_to_be_loaded_and_never_the_last(
    kinds: list[str], newest: int, succeed: bool
) -> None:
    """Loads that succeed or fail lead to rest in as many steps as there are versions, and to no gap in between."""
    standings = {number: standing(number, kind) for number, kind in enumerate(kinds, 1)}
    policy = Policy(newest)
    for steps in itertools.count():
        decision = decide(policy, "m", list(standings.values()))
        assert not (decision.load and decision.drop)
        ready = {number for number, each in standings.items() if each.ready}
        assert not ready or ready - set(decision.drop)
        if not decision.load:
            break
        first = decision.load[0]
        standings[first] = standing(first, "ready" if succeed or standings[first].ready else "failed")
        assert steps <= len(kinds)
    kept = {number for number in ready - set(decision.drop) if standings[number].there}
    assert len(kept) <= newest or "held" in kinds  # a place that is kept empty may leave nothing to take over


def found(files: str) -> Found:
    return Found(True, files, "")


def test_a_version_is_tried_at_first_sight_and_when_its_change_has_come_to_rest() -> None:
    record = Record(found=found("a"))
    assert record.is_stale()
    record.tried = "a"
    record.before, record.found = record.found, found("b")
    assert not record.is_stale()  # somebody may be writing it
    record.before, record.found = record.found, found("b")
    assert record.is_stale()
    record.tried = "b"
    assert not record.is_stale()
    record.before, record.found = record.found, None
    assert not record.is_stale()
