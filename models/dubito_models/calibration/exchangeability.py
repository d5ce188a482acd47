"""A test of drift that may be looked at after every score: a conformal test martingale (Vovk et al. 2003).

The smoothed rank of a score among the reference and all scores before it is a p-value. As long as all are exchangeable
these are independent and uniform, so a gambler who bets against that makes nothing of it: by Ville's inequality his
wealth, 1 at first, ever reaches 1 / a with probability at most a. Here he bets as the Composite Jumper does (Vovk et
al. 2021): on scores that are too high, too low or neither, at five rates of changing his mind.

Memory is bounded by periods. When a period has no room left, the next begins with the reference alone and wealth 1.
Period k alarms at the wealth k (k + 1) / false_alarm; as the 1 / (k (k + 1)) sum to 1, the probability of any false
alarm at all, however long the test runs, is at most `false_alarm`.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dubito_models.errors import InvalidArgument

CAPACITY = 10_000  # scores kept, those of the reference included
MOST_REFERENCE = CAPACITY // 2

_RATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of changing the bet, for each score
_BETS = (-1.0, 0.0, 1.0)  # slopes of the density that is bet on
_EVEN = (1.0 / (len(_RATES) * len(_BETS)),) * (len(_RATES) * len(_BETS))
_HIGHEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True, slots=True)
class Exchangeability:
    """Scores so far, and the wealth of betting against their exchangeability with a reference.

    `alarm` stays once it is raised. The numbers that break ties are a hash of `seed` and the score's number: a replica
    that sees the same scores in the same order is in the same state.
    """

    reference: tuple[float, ...]  # ascending
    false_alarm: float
    seed: int
    count: int = 0  # of all scores after the reference
    period: int = 1
    scores: tuple[float, ...] = ()  # of this period, ascending
    log_wealth: float = 0.0  # of this period, natural logarithm
    shares: tuple[float, ...] = _EVEN  # of the wealth: by rate, then by bet
    alarm: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.false_alarm < 1.0:
            raise InvalidArgument("false_alarm", self.false_alarm, "a probability between 0 and 1, both excluded")
        if not 0 <= self.seed < 2**64:
            raise InvalidArgument("seed", self.seed, "from 0 to 2^64 - 1")

    @classmethod
    def start(cls, reference_scores: ArrayLike, false_alarm: float, seed: int) -> Exchangeability:
        """Start from the scores of reference rows, (R,) in any order: those of a calibration.

        Of more than `MOST_REFERENCE`, so many are chosen at random, by the seed.
        """
        scores = np.asarray(reference_scores, dtype=np.float64)
        if scores.ndim != 1:
            raise InvalidArgument("reference_scores", f"shape {scores.shape}", "shape (R,)")
        scores = np.sort([_bounded(score) for score in scores.tolist()])
        if len(scores) > MOST_REFERENCE:
            random = np.random.default_rng(np.random.SeedSequence(seed))
            scores = np.sort(random.choice(scores, MOST_REFERENCE, replace=False))
        return cls(tuple(scores.tolist()), false_alarm, seed)

    def after(self, score: float) -> Exchangeability:
        """Return the state after one score; `InvalidArgument` for NaN."""
        value = _bounded(score)
        fresh = self if len(self.reference) + len(self.scores) < CAPACITY else self._renewed()
        gained, shares = _bet(fresh.shares, fresh._p_value(value))
        log_wealth = fresh.log_wealth + gained
        place = bisect_right(fresh.scores, value)
        return replace(
            fresh,
            count=fresh.count + 1,
            scores=(*fresh.scores[:place], value, *fresh.scores[place:]),
            log_wealth=log_wealth,
            shares=shares,
            alarm=fresh.alarm or log_wealth >= math.log(fresh.period * (fresh.period + 1) / fresh.false_alarm),
        )

    @property
    def evidence(self) -> float:
        """The decimal logarithm of this period's wealth: 2 is 100 to 1 against exchangeability."""
        return self.log_wealth / math.log(10)

    def _p_value(self, score: float) -> float:
        """Return the smoothed share of the scores, this one included, that are as high or higher."""
        higher = ties = 0
        for known in (self.reference, self.scores):
            end = bisect_right(known, score)
            higher += len(known) - end
            ties += end - bisect_left(known, score)
        among = len(self.reference) + len(self.scores) + 1
        return (higher + _uniform(self.seed, self.count) * (ties + 1)) / among

    def _renewed(self) -> Exchangeability:
        return replace(self, period=self.period + 1, scores=(), log_wealth=0.0, shares=_EVEN)


def _bounded(score: float) -> float:
    if math.isnan(score):
        raise InvalidArgument("score", score, "a number")
    return min(max(float(score), -_HIGHEST), _HIGHEST)


def _uniform(seed: int, number: int) -> float:
    """Return a number of the open unit interval for each seed and number, the same everywhere."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + number.to_bytes(8, "little"), digest_size=8).digest()
    return ((int.from_bytes(digest, "little") >> 11) + 0.5) * 2.0**-53


def _bet(shares: Sequence[float], p_value: float) -> tuple[float, tuple[float, ...]]:
    """Return by how much the logarithm of the wealth grows, and the shares after it.

    At each rate J, a share J of the wealth is first spread evenly over the bets; a bet of slope e then multiplies its
    own by 1 + e (p - 1/2), which is 1 on average over uniform p (Vovk et al. 2021, algorithm 1).
    """
    down, level, up = (1.0 + bet * (p_value - 0.5) for bet in _BETS)
    grown: list[float] = []
    for place, rate in enumerate(_RATES):
        on_down, on_level, on_up = shares[len(_BETS) * place : len(_BETS) * (place + 1)]
        kept, even = 1.0 - rate, rate * (on_down + on_level + on_up) / len(_BETS)
        grown += ((kept * on_down + even) * down, (kept * on_level + even) * level, (kept * on_up + even) * up)
    whole = sum(grown)
    return math.log(whole), tuple([one / whole for one in grown])


def exchangeability_from(document: Mapping[str, Any]) -> Exchangeability:
    """Return what `dataclasses.asdict` made of a state, also by way of JSON; `InvalidArgument` if it did not."""
    known = {field.name for field in fields(Exchangeability)}
    if set(document) != known:
        raise InvalidArgument("exchangeability", ", ".join(sorted(map(str, document))), ", ".join(sorted(known)))
    try:
        state = Exchangeability(
            reference=tuple(map(float, document["reference"])),
            false_alarm=float(document["false_alarm"]),
            seed=int(document["seed"]),
            count=int(document["count"]),
            period=int(document["period"]),
            scores=tuple(map(float, document["scores"])),
            log_wealth=float(document["log_wealth"]),
            shares=tuple(map(float, document["shares"])),
            alarm=bool(document["alarm"]),
        )
    except (TypeError, ValueError) as error:
        given = f"a document that cannot be read ({error})"
        raise InvalidArgument("exchangeability", given, "one of a state") from None
    columns = (state.reference, state.scores)
    ascending = all(tuple(sorted(column)) == column for column in columns)
    finite = all(map(math.isfinite, (*state.reference, *state.scores, *state.shares, state.log_wealth)))
    fits = sum(map(len, columns)) <= CAPACITY and len(state.shares) == len(_EVEN)
    fits = fits and min(state.shares) >= 0.0 and abs(sum(state.shares) - 1.0) < 1e-6
    started = state.count >= len(state.scores) and state.period >= 1
    if not (ascending and finite and fits and started):
        raise InvalidArgument("exchangeability", "numbers that do not fit each other", "those of a state")
    return state
