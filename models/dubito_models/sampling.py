"""What is asked of the draws: by a caller, and with nothing left open."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dubito_models.errors import InvalidArgument
from dubito_models.stopping import ALL_DRAWS, Stopping, StoppingRule, next_look
from dubito_models.thinning import Design, MaskScope

MAX_SEED = 2**64 - 1


class Estimator(StrEnum):
    """How draws become an answer: their mean, or their mean corrected by linear logits (see `linearized`)."""

    PLAIN = "plain"
    LINEARIZED = "linearized"


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """What a caller asks of the draws; None stands for what the version was calibrated with, else for its default.

    `interval_level` and `quantiles` are of a regression's predictive distribution, `coverage` of conformal prediction
    sets or intervals.
    """

    max_draws: int | None = None
    min_draws: int | None = None
    seed: int | None = None
    design: Design | None = None
    scope: MaskScope = MaskScope.DRAW
    stopping: Stopping | None = None
    estimator: Estimator | None = None
    interval_level: float = 0.9
    quantiles: tuple[float, ...] = ()
    coverage: float | None = None
    raw_draws: bool = False
    joint: bool = False
    uncalibrated: bool = False

    def __post_init__(self) -> None:
        if self.max_draws is not None and self.max_draws < 1:
            raise InvalidArgument("max_draws", self.max_draws, "at least 1; absent for the version's default")
        if self.min_draws is not None and self.min_draws < 1:
            raise InvalidArgument("min_draws", self.min_draws, "at least 1")
        if self.max_draws is not None and self.min_draws is not None and self.min_draws > self.max_draws:
            raise InvalidArgument("min_draws", self.min_draws, f"at most max_draws, {self.max_draws}")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise InvalidArgument("seed", self.seed, f"0..{MAX_SEED}")
        if self.design is Design.MIXED:
            raise InvalidArgument("design", self.design, "balanced or independent")
        if self.joint and self.stops:
            raise InvalidArgument(
                "joint", "true with a stopping rule", "a fixed number of draws, the same for all rows"
            )
        if self.joint and self.scope is MaskScope.ROW:
            raise InvalidArgument(
                "joint", "true with masks of its own for each row", "mask_scope draw: rows move together"
            )
        coverage = () if self.coverage is None else (self.coverage,)
        shares = {"interval_level": (self.interval_level,), "quantiles": self.quantiles, "coverage": coverage}
        for name, levels in shares.items():
            for level in levels:
                if not 0.0 < level < 1.0:
                    raise InvalidArgument(name, level, "between 0 and 1, both excluded")

    @property
    def stops(self) -> bool:
        """Whether rows may end before max_draws."""
        return self.stopping is not None and self.stopping.rule is not StoppingRule.NONE

    @property
    def keeps_draws(self) -> bool:
        """Whether every draw of a classification is needed until the end, beside the moments."""
        return self.raw_draws or self.joint or self.stops or self.estimator is Estimator.LINEARIZED


@dataclass(frozen=True, slots=True)
class Plan:
    """A specification with nothing left open, its rule and estimator too: what a run does."""

    max_draws: int
    min_draws: int
    seed: int
    design: Design
    group_size: int
    spec: SamplingSpec

    @property
    def stopping(self) -> Stopping:
        """The rule, `ALL_DRAWS` for none."""
        return self.spec.stopping or ALL_DRAWS

    @property
    def thinning(self) -> tuple[int, Design, MaskScope]:
        """What, with a draw's number, fixes all masks."""
        return self.seed, self.design, self.spec.scope

    @property
    def first_look(self) -> int:
        """After how many groups a rule may look first."""
        return max(self.stopping.least_groups, -(-self.min_draws // self.group_size))

    def look_after(self, draws: int, *, watched: bool = False) -> int:
        """Return after how many draws a rule looks next, so many having been made; whoever watches looks at once."""
        skipped = 0 if watched else self.first_look - 1
        looks = next_look(max(draws // self.group_size, skipped))
        return min(self.max_draws, looks * self.group_size)
