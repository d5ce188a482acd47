"""The scheduler: which draws the device takes next, as a pure function of who waits, a budget and the time.

The decision is taken per step, not per request. Order is by priority, and within one by date due: the deadline, or
`patience` after the ticket last had a turn, whichever comes first. So the nearest deadline goes first, a ticket that
waits overtakes in the end whatever arrives with later dates (ageing), and of many without a deadline the one that
waited longest goes first. Whom higher priorities have kept waiting for `patience`, or for half of the time to its
deadline, has starved: in every step the one that starved longest gets a turn, whatever else there is; a quarter of the
budget is kept for it. So with n starved tickets each has a turn within n steps, and a higher priority waits for no more
than one turn of a lower one.

Under overload draws are shed before requests: `shed` is the rule.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

_ROUNDING = 1e-9  # of seconds that were added up
_LEADING = 0.75  # of the budget, for the first tile of a step in which another one has to have a turn


class Priority(IntEnum):
    """Who goes first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


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
    entry: float = 0.0  # work units of a row before its first draw, the same for equal keys; 0 once that is done
    deadline: float | None = None
    priority: Priority = Priority.NORMAL
    ready: bool = False  # has drawn enough for an answer, if need be
    needs: float = 0.0  # seconds that this takes at least, where it has not
    cancelled: bool = False
    whole: int | None = None  # the request that it is a part of, by a number; None: it is no part

    @property
    def owner(self) -> int:
        """The number of its request."""
        return self.number if self.whole is None else self.whole


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
        """What it takes of a budget: rows x draws x cost, and what comes before the first draw."""
        return _work(self.tickets[0], self.rows, self.draws)


@dataclass(frozen=True, slots=True)
class Step:
    """What happens next: who leaves, and the passes to run, the most urgent first."""

    tiles: tuple[Tile, ...] = ()
    cancelled: tuple[Ticket, ...] = ()
    due: tuple[Ticket, ...] = ()  # their deadline allows no further pass, or not as many as they need
    crowded_out: tuple[tuple[Ticket, float], ...] = ()  # others go first, until so many seconds after their deadline

    @property
    def work(self) -> float:
        """The work units of all passes."""
        return sum(tile.work for tile in self.tiles)


def schedule(
    tickets: Sequence[Ticket],
    budget: float,
    now: float,
    *,
    patience: float = math.inf,
    margin: float = 0.0,
    slowness: float = 1.0,
) -> Step:
    """Choose the next step: at most `budget` work units, or one group of one ticket where that alone is more.

    So may be the turn of who has starved, above the budget by one group of its own.
    `margin`: the seconds that a step and an answer take. A ticket that could answer leaves so long before its
    deadline; one that could not tries for as long as it might still make it, unless others go first: then it is
    crowded out as soon as their work and so long a while end after its deadline. `slowness`: by how much what tickets
    need takes longer than it would at least.
    """
    waiting: list[Ticket] = []
    due: list[Ticket] = []
    for ticket in tickets:
        if not ticket.cancelled:
            (due if _is_due(ticket, now, margin) else waiting).append(ticket)
    waiting.sort(key=lambda each: turn(each.priority, each.deadline, each.since, each.number, patience))
    crowded_out = tuple(_find_crowded_out(waiting, now + margin, slowness))
    if crowded_out:
        out = {ticket.number for ticket, _ in crowded_out}
        waiting = [ticket for ticket in waiting if ticket.number not in out]
    return Step(
        tiles=tuple(_fill(waiting, budget, _find_starved(waiting, now, patience))),
        cancelled=tuple(ticket for ticket in tickets if ticket.cancelled),
        due=tuple(due),
        crowded_out=crowded_out,
    )


def _find_crowded_out(waiting: Sequence[Ticket], now: float, slowness: float) -> Iterator[tuple[Ticket, float]]:
    """Yield who will not be answered in time, as others that go first take longer, and by how many seconds."""
    before, own = 0.0, dict[int, float]()  # seconds of who goes first, and of other parts of the same request
    for ticket in waiting:
        if ticket.ready:
            continue
        late = -math.inf if ticket.deadline is None else now + slowness * before + ticket.needs - ticket.deadline
        if before > own.get(ticket.owner, 0.0) + _ROUNDING and late > _ROUNDING:
            yield ticket, late
        else:
            before += ticket.needs
            own[ticket.owner] = own.get(ticket.owner, 0.0) + ticket.needs


def _is_due(ticket: Ticket, now: float, margin: float) -> bool:
    if ticket.deadline is None:
        return False
    left = ticket.deadline - now
    return left <= margin if ticket.ready else left <= 0 or left < ticket.needs * (1 - _ROUNDING)


def turn(
    priority: Priority, deadline: float | None, since: float, number: int, patience: float
) -> tuple[Priority, float, float, int]:
    """Return what tickets are sorted by; of equal dates, as parts of a request have, the longest wait goes first."""
    return priority, min(math.inf if deadline is None else deadline, since + patience), since, number


def shed(max_draws: int, min_draws: int, group_size: int, others: float, overload: float) -> int:
    """Return how many draws a request gets where `others` seconds of work wait beside it: all up to `overload` seconds.

    Beyond, so few that all of them would be answered within about as long: whole groups, never less than `min_draws`.
    """
    if others <= overload:
        return max_draws
    groups = max(1, int(max_draws * overload / others) // group_size, -(-min_draws // group_size))
    return min(max_draws, groups * group_size)


def _find_starved(waiting: Sequence[Ticket], now: float, patience: float) -> Ticket | None:
    """Return who has starved for the longest time, and is not of the priority that leads; `waiting` is in order."""
    leading = waiting[0].priority if waiting else Priority.LOW
    starved = [each for each in waiting if each.priority > leading and _starves_at(each, patience) <= now]
    return min(starved, key=lambda each: (_starves_at(each, patience), each.number), default=None)


def _starves_at(ticket: Ticket, patience: float) -> float:
    left = math.inf if ticket.deadline is None else ticket.deadline - ticket.since
    return ticket.since + min(patience, left / 2)


def _fill(waiting: Sequence[Ticket], budget: float, starved: Ticket | None) -> list[Tile]:
    """Form a tile around the most urgent ticket, one around who has starved, then around the next that still fits."""
    mates: dict[Hashable, list[Ticket]] = {}
    for ticket in waiting:
        mates.setdefault(ticket.key, []).append(ticket)
    tiles: list[Tile] = []
    placed: set[int] = set()
    leaders = waiting if starved is None else (waiting[0], starved, *waiting[1:])
    for leader in leaders:
        if leader.number in placed or (tiles and leader is not starved and _least_work(leader) > budget):
            continue
        share = budget if starved is None or tiles else budget * _LEADING
        tile = _form(leader, mates[leader.key], share)
        tiles.append(tile)
        placed.update(ticket.number for ticket in tile.tickets)
        mates[leader.key] = [ticket for ticket in mates[leader.key] if ticket.number not in placed]
        budget -= tile.work
        if budget <= 0 and (starved is None or starved.number in placed):
            break
    return tiles


def _least_work(ticket: Ticket) -> float:
    return _work(ticket, ticket.rows, min(ticket.wanted, ticket.group_size))


def _work(ticket: Ticket, rows: int, draws: int) -> float:
    """Return the work units of so many draws for rows like a ticket's."""
    return rows * (draws * ticket.cost + ticket.entry)


def _form(leader: Ticket, mates: Sequence[Ticket], budget: float) -> Tile:
    """Give the leader the draws that the budget allows, then take in whoever the rest of the budget allows."""
    members = [leader]
    rows, least, most = leader.rows, leader.wanted, leader.wanted
    draws = _whole(least, most, leader.group_size, (budget / rows - leader.entry) / leader.cost)
    for mate in mates:
        fewest, largest = min(least, mate.wanted), max(most, mate.wanted)
        shared = min(draws, _whole(fewest, largest, leader.group_size, math.inf))
        if mate is not leader and _work(leader, rows + mate.rows, shared) <= budget:
            members.append(mate)
            rows, least, most, draws = rows + mate.rows, fewest, largest, shared
    return Tile(tuple(members), draws)


def _whole(least: int, most: int, group_size: int, affordable: float) -> int:
    """Return how many draws suit members that want `least` to `most`: whole groups, or everybody's last ones."""
    if least < group_size or least == most <= affordable:
        return least
    return max(1, int(min(least, affordable)) // group_size) * group_size
