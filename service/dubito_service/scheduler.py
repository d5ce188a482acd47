"""The scheduler: which draws the device takes next, as a pure function of who waits, a budget and the time.

The decision is taken per step, not per request. Order is by date due: the deadline, or `patience` after the ticket
last had a turn, whichever comes first. So the nearest deadline goes first, a ticket that waits overtakes in the end
whatever arrives with later dates (ageing), and of many without a deadline the one that waited longest goes first.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request as the scheduler sees it; times are seconds on one clock.

    Tickets with equal keys can share a pass; those that want fewer draws than a group all want as many.
    """

    number: int  # unique, in order of arrival
    key: Hashable
    rows: int
    wanted: int  # draws, at least 1
    group_size: int  # draws are taken in whole groups, but for the last ones
    since: float  # when it arrived, or last had a turn
    cost: float = 1.0  # work units of one row and draw, the same for equal keys
    deadline: float | None = None
    ready: bool = False  # has drawn enough for an answer, if need be
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Tile:
    """One pass: so many draws for all rows of these tickets."""

    tickets: tuple[Ticket, ...]
    draws: int

    @property
    def rows(self) -> int:
        """The rows of all tickets, N."""
        return sum(ticket.rows for ticket in self.tickets)

    @property
    def work(self) -> float:
        """What it takes of a budget: rows x draws x cost."""
        return self.rows * self.draws * self.tickets[0].cost


@dataclass(frozen=True, slots=True)
class Step:
    """What happens next: who leaves, and the passes to run, the most urgent first."""

    tiles: tuple[Tile, ...] = ()
    cancelled: tuple[Ticket, ...] = ()
    due: tuple[Ticket, ...] = ()  # their deadline allows no further pass

    @property
    def work(self) -> float:
        """The work units of all passes."""
        return sum(tile.work for tile in self.tiles)


def schedule(
    tickets: Sequence[Ticket], budget: float, now: float, *, patience: float = math.inf, margin: float = 0.0
) -> Step:
    """Choose the next step: at most `budget` work units, or one group of one ticket where that alone is more.

    `margin`: the seconds that a step and an answer take. A ticket that could answer leaves so long before its
    deadline; one that could not tries until the deadline itself.
    """
    waiting: list[Ticket] = []
    due: list[Ticket] = []
    for ticket in tickets:
        if not ticket.cancelled:
            (due if _is_due(ticket, now, margin) else waiting).append(ticket)
    waiting.sort(key=lambda ticket: (_date(ticket, patience), ticket.number))
    return Step(
        tiles=tuple(_fill(waiting, budget)),
        cancelled=tuple(ticket for ticket in tickets if ticket.cancelled),
        due=tuple(due),
    )


def _is_due(ticket: Ticket, now: float, margin: float) -> bool:
    return ticket.deadline is not None and ticket.deadline - (margin if ticket.ready else 0.0) <= now


def _date(ticket: Ticket, patience: float) -> float:
    return min(math.inf if ticket.deadline is None else ticket.deadline, ticket.since + patience)


def _fill(waiting: Sequence[Ticket], budget: float) -> list[Tile]:
    """Form a tile around the most urgent ticket, then around the next that still fits."""
    mates: dict[Hashable, list[Ticket]] = {}
    for ticket in waiting:
        mates.setdefault(ticket.key, []).append(ticket)
    tiles: list[Tile] = []
    placed: set[int] = set()
    for leader in waiting:
        if leader.number in placed or (tiles and _least_work(leader) > budget):
            continue
        tile = _form(leader, mates[leader.key], budget)
        tiles.append(tile)
        placed.update(ticket.number for ticket in tile.tickets)
        mates[leader.key] = [ticket for ticket in mates[leader.key] if ticket.number not in placed]
        budget -= tile.work
        if budget <= 0:
            break
    return tiles


def _least_work(ticket: Ticket) -> float:
    return ticket.rows * min(ticket.wanted, ticket.group_size) * ticket.cost


def _form(leader: Ticket, mates: Sequence[Ticket], budget: float) -> Tile:
    """Give the leader the draws that the budget allows, then take in whoever the rest of the budget allows."""
    members = [leader]
    rows, least, most = leader.rows, leader.wanted, leader.wanted
    draws = _whole(least, most, leader.group_size, budget / (rows * leader.cost))
    for mate in mates:
        fewest, largest = min(least, mate.wanted), max(most, mate.wanted)
        shared = min(draws, _whole(fewest, largest, leader.group_size, math.inf))
        if mate is not leader and (rows + mate.rows) * shared * leader.cost <= budget:
            members.append(mate)
            rows, least, most, draws = rows + mate.rows, fewest, largest, shared
    return Tile(tuple(members), draws)


def _whole(least: int, most: int, group_size: int, affordable: float) -> int:
    """Return how many draws suit members that want `least` to `most`: whole groups, or everybody's last ones."""
    if least < group_size or least == most <= affordable:
        return least
    return max(1, int(min(least, affordable)) // group_size) * group_size
