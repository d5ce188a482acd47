"""Law 8: the scheduler keeps its budget, starves nobody, drops the cancelled, and goes by deadline with ageing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dubito_service.scheduling.scheduler import Priority, Step, Ticket, schedule, shed

GROUP = 10


def ticket(number: int, *, rows: int = 1, wanted: int = 40, name: str = "a", **more: object) -> Ticket:
    fields: dict[str, object] = {"group_size": GROUP, "since": 0.0, **more}
    return Ticket(number=number, key=(name, min(wanted, GROUP)), rows=rows, wanted=wanted, **fields)  # type: ignore[arg-type]


@st.composite
def crowds(draw: st.DrawFn) -> list[Ticket]:
    times = st.floats(0, 10, allow_nan=False)
    costs = {"a": 1.0, "b": draw(st.sampled_from([1.0, 1.7, 40.0]))}
    entries = {"a": 0.0, "b": draw(st.sampled_from([0.0, 3.0, 100.0]))}
    return [
        ticket(
            number,
            rows=draw(st.integers(1, 300)),
            wanted=draw(st.integers(1, 120)),
            name=(name := draw(st.sampled_from("ab"))),
            cost=costs[name],
            entry=entries[name],
            since=draw(times),
            deadline=draw(st.none() | times),
            priority=draw(st.sampled_from(Priority)),
            ready=draw(st.booleans()),
            cancelled=draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 25)))
    ]


steps = given(
    tickets=crowds(),
    budget=st.integers(1, 9000),
    now=st.floats(0, 10),
    patience=st.sampled_from([0.0, 1.0, math.inf]),
)


def placed(step: Step) -> list[Ticket]:
    return [member for tile in step.tiles for member in tile.tickets]


@steps
def test_never_exceeds_its_budget_but_for_one_group_of_one_ticket_and_one_of_who_has_starved(
    tickets: list[Ticket], budget: int, now: float, patience: float
) -> None:
    step = schedule(tickets, budget, now, patience=patience)
    smallest = [tile for tile in step.tiles if len(tile.tickets) == 1 and tile.draws <= GROUP]
    above = 0 if step.work <= budget * (1 + 1e-12) else step.work - budget
    assert above <= sum(sorted((tile.work for tile in smallest), reverse=True)[:2]) + 1e-6
    if len({tile.tickets[0].priority for tile in step.tiles}) == 1 and above:
        [tile] = step.tiles
        assert tile in smallest


@steps
def test_takes_whole_groups_or_the_last_draws_of_everybody(
    tickets: list[Ticket], budget: int, now: float, patience: float
) -> None:
    for tile in schedule(tickets, budget, now, patience=patience).tiles:
        assert len({member.key for member in tile.tickets}) == 1
        assert 1 <= tile.draws <= min(member.wanted for member in tile.tickets)
        assert tile.draws % GROUP == 0 or all(member.wanted == tile.draws for member in tile.tickets)


@steps
def test_drops_the_cancelled_lets_the_due_go_and_gives_nobody_two_turns(
    tickets: list[Ticket], budget: int, now: float, patience: float
) -> None:
    step = schedule(tickets, budget, now, patience=patience, margin=0.5)
    turns = placed(step)
    assert len(set(turns)) == len(turns)
    assert set(step.cancelled) == {each for each in tickets if each.cancelled}
    for each in tickets:
        left = math.inf if each.deadline is None else each.deadline - now
        due = not each.cancelled and left <= (0.5 if each.ready else 0.0)
        assert (each in step.due) == due
        if each.cancelled or due:
            assert each not in turns


@steps
def test_of_the_highest_priority_the_earliest_date_is_in_the_first_tile(
    tickets: list[Ticket], budget: int, now: float, patience: float
) -> None:
    step = schedule(tickets, budget, now, patience=patience)
    waiting = [each for each in tickets if not each.cancelled and each not in step.due]
    if waiting:

        def date(each: Ticket) -> tuple[int, float, float, int]:
            due = min(math.inf if each.deadline is None else each.deadline, each.since + patience)
            return each.priority, due, each.since, each.number

        assert min(waiting, key=date) is step.tiles[0].tickets[0]


@steps
def test_is_a_pure_function_of_the_set_of_tickets(
    tickets: list[Ticket], budget: int, now: float, patience: float
) -> None:
    one = schedule(tickets, budget, now, patience=patience)
    assert schedule(list(reversed(tickets)), budget, now, patience=patience).tiles == one.tiles


@steps
def test_leaves_out_only_what_does_not_fit(tickets: list[Ticket], budget: int, now: float, patience: float) -> None:
    step = schedule(tickets, budget, now, patience=patience)
    left = budget - step.work
    for each in tickets:
        if not each.cancelled and each not in step.due and each not in placed(step):
            assert each.rows * (min(each.wanted, GROUP) * each.cost + each.entry) > left - 1e-6


def test_the_nearest_deadline_goes_first() -> None:
    far, near, none = ticket(0, deadline=9.0), ticket(1, deadline=3.0, name="b"), ticket(2, name="c")
    step = schedule([far, near, none], 40, 0.0, patience=5.0)
    assert placed(step) == [near]


@pytest.mark.parametrize("rows", [1, 100], ids=["small", "larger than the budget"])
def test_nobody_starves_under_a_stream_of_nearer_deadlines(rows: int) -> None:
    """One ticket without a deadline, and in every step newcomers with nearer dates that could fill the budget."""
    patient = ticket(0, rows=rows)
    urgent: list[Ticket] = []
    now, number, turns = 0.0, 1, 0
    while patient.wanted and now < 60.0:
        for _ in range(3):
            urgent.append(ticket(number, rows=10, wanted=20, name="b", since=now, deadline=now + 0.5))
            number += 1
        step = schedule([patient, *urgent], 200, now, patience=2.0)
        gone = set(step.due)
        for tile in step.tiles:
            if patient in tile.tickets:
                turns += 1
                patient = replace(patient, wanted=patient.wanted - tile.draws, since=now)
            gone.update(tile.tickets)
        urgent = [each for each in urgent if each not in gone]
        now += 0.1
    assert patient.wanted == 0
    assert turns <= 4


def test_a_higher_priority_overtakes_whatever_waits() -> None:
    low, normal = ticket(0, deadline=1.0, priority=Priority.LOW), ticket(1, name="b")
    high = ticket(2, deadline=9.0, name="c", priority=Priority.HIGH)
    assert placed(schedule([low, normal, high], 40, 0.0, patience=5.0)) == [high]
    assert placed(schedule([low, normal, high], 120, 0.0, patience=5.0)) == [high, normal, low]


def test_a_lower_priority_rides_along_where_it_costs_the_higher_one_nothing() -> None:
    high, low = ticket(0, priority=Priority.HIGH), ticket(1, priority=Priority.LOW)
    [tile] = schedule([low, high], 80, 0.0).tiles
    assert set(tile.tickets) == {high, low}


@pytest.mark.parametrize("rows", [1, 100], ids=["small", "larger than the budget"])
@pytest.mark.parametrize("patients", [1, 7])
def test_a_lower_priority_has_a_turn_within_patience_and_a_step_for_each_that_waits_like_it(
    rows: int, patients: int
) -> None:
    """In every step newcomers of a higher priority could fill the budget; each step still serves some of them."""
    patience, pace = 2.0, 0.125
    waiting = [ticket(n, rows=rows, name=f"p{n}", wanted=50, priority=Priority.LOW) for n in range(patients)]
    last = dict.fromkeys(range(patients), 0.0)
    now, number = 0.0, patients
    while waiting and now < 300.0:
        urgent = [ticket(number + i, rows=10, wanted=20, name="u", since=now, priority=Priority.HIGH) for i in range(3)]
        number += 3
        step = schedule([*waiting, *urgent], 200, now, patience=patience)
        assert step.tiles[0].tickets[0].priority is Priority.HIGH
        now += pace
        for tile in step.tiles:
            for member in tile.tickets:
                if member.priority is Priority.LOW:
                    assert now - last[member.number] <= patience + (patients + 1) * pace
                    last[member.number] = now
                    waiting.remove(member)
                    if member.wanted > tile.draws:
                        waiting.append(replace(member, wanted=member.wanted - tile.draws, since=now))
    assert not waiting


draws = given(
    most=st.integers(1, 500),
    least=st.integers(1, 500),
    group=st.integers(1, 20),
    others=st.floats(0, 1e6),
    overload=st.floats(1e-3, 1e3),
)


@draws
def test_shed_leaves_whole_groups_between_the_least_and_the_most(
    most: int, least: int, group: int, others: float, overload: float
) -> None:
    least = min(least, most)
    left = shed(most, least, group, others, overload)
    assert least <= left <= most
    assert left % group == 0 or left == most
    if others <= overload or least == most:
        assert left == most


@draws
def test_shed_leaves_no_more_the_more_there_waits(
    most: int, least: int, group: int, others: float, overload: float
) -> None:
    least = min(least, most)
    assert shed(most, least, group, 2 * others, overload) <= shed(most, least, group, others, overload)


def test_what_is_left_of_many_requests_takes_about_as_long_as_a_queue_may_be() -> None:
    """Thirty requests that take .1 s each, 160 draws, where one second may wait: a third of the draws."""
    left = shed(160, 10, 10, 29 * 0.1, 1.0)
    assert left == 50
    assert 30 * 0.1 * left / 160 <= 1.0


def test_tickets_without_deadline_take_turns() -> None:
    """A request of very many draws does not hold up one that comes while it is drawn."""
    long, short = ticket(0, wanted=100_000, since=1.0), ticket(1, wanted=40, since=0.5)
    assert placed(schedule([long, short], 400, 1.0, patience=5.0))[0] is short


def test_a_mate_is_taken_in_where_the_budget_allows_and_ends_the_tile_where_it_wants_less() -> None:
    [tile] = schedule([ticket(0, wanted=45), ticket(1, wanted=25)], 1000, 0.0).tiles
    assert ([member.number for member in tile.tickets], tile.draws) == ([0, 1], 20)
    [tile] = schedule([ticket(0, wanted=45), ticket(1, wanted=45)], 1000, 0.0).tiles
    assert tile.draws == 45


def test_a_tile_larger_than_the_budget_is_cut_in_whole_groups() -> None:
    [tile] = schedule([ticket(0, rows=10, wanted=1000)], 256, 0.0).tiles
    assert tile.draws == 20


def test_whoever_comes_too_late_behind_those_that_go_first_is_crowded_out_and_makes_room_for_the_next() -> None:
    first = ticket(0, deadline=1.0, needs=0.6)
    long = ticket(1, deadline=1.1, needs=0.6)
    short = ticket(2, deadline=1.2, needs=0.3)
    step = schedule([short, long, first], 1000, 0.0)
    [(out, late)] = step.crowded_out
    assert out is long
    assert late == pytest.approx(0.1)
    assert placed(step) == [first, short]
    assert [each for each, _ in schedule([short, long, first], 1000, 0.0, slowness=1.6).crowded_out] == [long, short]


def test_who_is_behind_others_needs_the_time_of_a_step_and_an_answer_too() -> None:
    first = ticket(0, deadline=1.0, needs=0.6)
    second = ticket(1, deadline=1.1, needs=0.4)
    assert not schedule([first, second], 1000, 0.0, margin=0.05).crowded_out
    [(out, late)] = schedule([first, second], 1000, 0.0, margin=0.2).crowded_out
    assert out is second
    assert late == pytest.approx(0.1)


def test_who_goes_first_has_an_answer_or_has_no_deadline_is_never_crowded_out() -> None:
    alone = ticket(0, deadline=1.0, needs=0.9)
    ready = ticket(1, deadline=1.1, needs=0.0, ready=True)
    patient = ticket(2, needs=5.0)
    assert not schedule([alone, ready, patient], 1000, 0.0, slowness=3.0).crowded_out
