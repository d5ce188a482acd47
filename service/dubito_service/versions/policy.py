"""The version policy: which versions of a model are to be served, as a pure function of what is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from dubito_models.repository import Found


class ModelControl(StrEnum):
    """Who says what is loaded, once the server runs."""

    POLL = "poll"  # the repository: what is new there is taken in
    EXPLICIT = "explicit"  # LoadModel and UnloadModel alone
    NONE = "none"  # nobody: what was there at the start is served


@dataclass(frozen=True, slots=True)
class Policy:
    """How many of the newest versions of a model are served, or which ones by number."""

    newest: int = 1
    pins: Mapping[str, Sequence[int]] = field(default_factory=dict)
    control: ModelControl = ModelControl.POLL

    def candidates(self, model: str, numbers: Sequence[int]) -> list[int]:
        """Return those of the version numbers that may be served, the newest first."""
        pinned = self.pins.get(model)
        return sorted((number for number in numbers if pinned is None or number in pinned), reverse=True)

    def places(self, model: str) -> int:
        """Return how many versions of a model are served at most."""
        return len(self.pins[model]) if model in self.pins else self.newest


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of one version."""

    number: int
    there: bool  # in the repository
    ready: bool  # some content of it is served
    stale: bool  # the repository holds what has not been tried yet
    asked: bool  # somebody loaded it by name
    held: bool  # somebody unloaded it


@dataclass(slots=True)
class Record:
    """What is remembered of one version from look to look: marks of its files in the repository."""

    found: Found | None = None
    before: Found | None = None  # one look earlier
    tried: str | None = None  # the files of the last attempt to load it
    held: str | None = None  # the files when somebody unloaded it
    asked: bool = False  # somebody loaded it by name
    calibrations: str = ""  # that are taken up

    def has_changed(self, files: str) -> bool:
        """Tell whether its files are others than these, and at rest since the look before: nobody is writing them."""
        return self.found is not None and self.before is not None and files != self.found.files == self.before.files

    def is_stale(self) -> bool:
        """Tell whether it is worth a try: at first sight, and when it has changed."""
        return self.found is not None and (self.tried is None or self.has_changed(self.tried))

    def standing(self, number: int, *, ready: bool) -> Standing:
        """Return how the version stands."""
        return Standing(
            number=number,
            there=self.found is not None,
            ready=ready,
            stale=self.is_stale(),
            asked=self.asked,
            held=self.held is not None,
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do next: load the first of `load` and decide again, or where there is none, give `drop` up."""

    load: tuple[int, ...]
    drop: tuple[int, ...]


def decide(policy: Policy, model: str, standings: Sequence[Standing]) -> Decision:
    """Decide what is to be loaded and dropped of a model.

    A version that failed leaves its place to the next older one until it changes; one that was unloaded by hand keeps
    its place empty. Nothing is dropped before all that takes over is there; and never the last one that is ready, as
    a repository that lost it is more likely out of order than meant so.
    """
    known = {standing.number: standing for standing in standings}
    chosen: list[Standing] = []
    for number in policy.candidates(model, [each.number for each in standings if each.there]):
        standing = known[number]
        if (standing.ready or standing.stale or standing.held) and len(chosen) < policy.places(model):
            chosen.append(standing)
    chosen += [each for each in standings if each.asked and each.there and each not in chosen]
    load = [each.number for each in chosen if each.stale and not each.held]
    if load:
        return Decision(tuple(load), ())
    kept = {each.number for each in chosen}
    if not any(each.ready for each in chosen):
        return Decision((), ())
    return Decision((), tuple(each.number for each in standings if each.ready and each.number not in kept))
