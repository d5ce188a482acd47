"""The summary of a job, read back from its parts: so that of a job in several runs is that of the whole job.

Epistemic uncertainty is the mutual information of a classifier, in nats, and of a regression the epistemic deviation,
in the target's unit: the largest, where there are several targets.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as arrow
from numpy.typing import NDArray
from pyarrow import compute

from dubito_batch.answers import INVALID, PREFIX, PROBLEM, STATUS, Described
from dubito_batch.ledger import SUMMARY, Ledger
from dubito_batch.parts import Folder, Place
from dubito_client.errors import refused

DRAWS = f"{PREFIX}draws"
BARS = 40
_FINE = 1 << 12  # bins for each bar: what quantiles are read from
_EXAMPLES = 3  # of each kind of problem
_KINDS = 50  # that are told apart
_OTHER = "other problems"
_PROBLEM = re.compile(r"(?P<what>.*?): got (?P<given>.*); accepted: (?P<accepted>.*)", re.DOTALL)
_REASON, _ABSTAIN = f"{PREFIX}stop_reason", f"{PREFIX}abstain"
_MUTUAL_INFORMATION, _VARIANCE = f"{PREFIX}mutual_information", f"{PREFIX}epistemic_variance"


@dataclass(frozen=True, slots=True)
class Example:
    """A row that could not be scored; `row` counts from 0 in its file."""

    file: str
    row: int
    given: str  # what stood there


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """Rows that could not be scored for the same reason."""

    what: str
    rows: int
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How an uncertainty is spread over the rows of which it is known."""

    quantity: str
    unit: str  # empty for that of the target
    rows: int
    mean: float
    median: float
    ninety: float  # quantile of 90 %
    ninety_nine: float
    most: float
    edges: tuple[float, ...]  # of the bars of a histogram, one more than these
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Above:
    """How many rows an uncertainty is above a threshold."""

    threshold: float
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What came of a job; a share is of the rows that were answered."""

    model: str
    version: int
    calibration: str | None
    files: int
    parts: int
    rows: int
    invalid: int
    problems: tuple[ProblemKind, ...]  # the most frequent first
    draws: int  # of all rows together
    stop_reasons: Mapping[str, int]  # rows by why their draws ended
    abstained: int | None  # by the calibration; None where it does not say when to
    above: Above | None  # where a threshold was asked
    epistemic: Spread | None  # None where no row tells
    scored: int  # rows, by the run that completed the job
    seconds: float  # that it took

    @property
    def answered(self) -> int:
        """Rows with a prediction."""
        return self.rows - self.invalid

    @property
    def mean_draws(self) -> float | None:
        """Draws of an answered row; None without one."""
        return self.draws / self.answered if self.answered else None

    @property
    def rows_per_second(self) -> float:
        """Of the run that completed the job."""
        return self.scored / self.seconds if self.seconds else 0.0

    def share(self, rows: int | None) -> float | None:
        """Return what part of the answered rows these are."""
        return None if rows is None or not self.answered else rows / self.answered

    @property
    def threshold(self) -> float | None:
        """Above which uncertain rows were counted; None where they were not."""
        return None if self.above is None else self.above.threshold

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it, with what follows from it."""
        above = self.above and {**asdict(self.above), "share": self.share(self.above.rows)}
        derived = {
            "answered": self.answered,
            "mean_draws": self.mean_draws,
            "share_abstained": self.share(self.abstained),
            "rows_per_second": self.rows_per_second,
        }
        return {**asdict(self), "above": above, **derived}

    def encode(self) -> bytes:
        """Return it as it is written."""
        return (json.dumps(self.document(), indent=1, allow_nan=False) + "\n").encode()


def read_summary(folder: Folder) -> Summary | None:
    """Read the summary of a job that is complete; None where it is not."""
    if SUMMARY not in folder.names():
        return None
    try:
        said = json.loads(folder.read(SUMMARY))
        problems = tuple(
            ProblemKind(kind["what"], kind["rows"], tuple(Example(**example) for example in kind["examples"]))
            for kind in said["problems"]
        )
        above, spread = said["above"], said["epistemic"]
        changes = {
            "problems": problems,
            "above": above and Above(above["threshold"], above["rows"]),
            "epistemic": spread and Spread(**{**spread, **{name: tuple(spread[name]) for name in ("edges", "counts")}}),
        }
        return Summary(**{name: {**said, **changes}[name] for name in Summary.__dataclass_fields__})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        given = f"{folder.root} with a {SUMMARY} that this release cannot read"
        raise refused("output", given, "what dubito score writes; without the file, --resume makes it again") from error


@dataclass(slots=True)
class _Tally:
    """What is counted part by part."""

    rows: int = 0
    invalid: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    draws: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    abstained: int | None = None
    above: int = 0
    known: int = 0  # rows whose epistemic uncertainty is
    total: float = 0.0  # of it
    least: float = np.inf
    most: float = -np.inf


def summarize(
    folder: Folder,
    ledger: Ledger,
    described: Described,
    *,
    scored: int,
    seconds: float,
    threshold: float | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Summary:
    """Read what came of a complete job from its parts; `advance` is called between them.

    `threshold`: count the rows of which epistemic uncertainty is above it.
    """
    places = sorted(folder.parts())
    column = _MUTUAL_INFORMATION if described.classifies else _VARIANCE
    columns = (STATUS, PROBLEM, DRAWS, _REASON, column, *((_ABSTAIN,) if described.abstains else ()))
    tally = _Tally(abstained=0 if described.abstains else None)
    for place, part in _read(folder, places, columns, advance):
        _count(tally, part)
        _explain(tally, part, ledger.files[place.file].url, place.block * ledger.batch_rows)
        _measure(tally, _epistemic(part[column], described.classifies), threshold)
    counts = np.zeros(BARS * _FINE, np.int64)
    edges = _edges(tally)
    if tally.known:
        for _, part in _read(folder, places, (column,), advance):
            doubt = _epistemic(part[column], described.classifies)
            counts += np.histogram(doubt, len(counts), (edges[0], edges[-1]))[0]
    kinds = [ProblemKind(what, rows, tuple(tally.examples[what])) for what, rows in tally.kinds.most_common()]
    return Summary(
        model=described.model,
        version=described.version,
        calibration=described.calibration_id,
        files=len(ledger.files),
        parts=len(places),
        rows=tally.rows,
        invalid=tally.invalid,
        problems=tuple(kinds),
        draws=tally.draws,
        stop_reasons=dict(sorted(tally.reasons.items())),
        abstained=tally.abstained,
        above=None if threshold is None else Above(threshold, tally.above),
        epistemic=_spread(tally, edges, counts, described) if tally.known else None,
        scored=scored,
        seconds=seconds,
    )


def _read(
    folder: Folder, places: Iterable[Place], columns: Sequence[str], advance: Callable[[], None]
) -> Iterator[tuple[Place, arrow.Table]]:
    for place in places:
        yield place, folder.read_part(place, columns)
        advance()


def count_invalid(part: arrow.RecordBatch | arrow.Table) -> int:
    """Count the rows of scored ones that have no answer."""
    return int(compute.sum(compute.equal(part[STATUS], INVALID)).as_py() or 0)


def first_problem(part: arrow.RecordBatch | arrow.Table) -> tuple[int, str] | None:
    """Return the position and the problem of the first row without an answer, None where there is no such row."""
    at = compute.index(part[STATUS].cast(arrow.string()), INVALID).as_py()
    return None if at < 0 else (at, str(part[PROBLEM][at].as_py()))


def _count(tally: _Tally, part: arrow.Table) -> None:
    tally.rows += part.num_rows
    tally.invalid += count_invalid(part)
    tally.draws += compute.sum(part[DRAWS]).as_py() or 0
    for counted in compute.value_counts(part[_REASON].cast(arrow.string()).drop_null()).to_pylist():
        tally.reasons[counted["values"]] += counted["counts"]
    if tally.abstained is not None:
        tally.abstained += compute.sum(part[_ABSTAIN]).as_py() or 0


def _explain(tally: _Tally, part: arrow.Table, file: str, first: int) -> None:
    """Count problems by their kind; `first`: number of the part's first row in its file."""
    problems = part[PROBLEM].combine_chunks()
    for at in np.flatnonzero(np.asarray(problems.is_valid())).tolist():
        problem = problems[at].as_py()
        found = _PROBLEM.fullmatch(problem)
        what = f"{found['what']}: not {found['accepted']}" if found else problem
        if what not in tally.kinds and len(tally.kinds) >= _KINDS:
            what = _OTHER
        tally.kinds[what] += 1
        examples = tally.examples.setdefault(what, [])
        if len(examples) < _EXAMPLES:
            examples.append(Example(file, first + at, found["given"] if found else problem))


def _epistemic(column: arrow.ChunkedArray, classifies: bool) -> NDArray[np.float64]:
    """Return the epistemic uncertainty of the rows that have it, (B,)."""
    known = column.drop_null().combine_chunks()
    nested = arrow.types.is_fixed_size_list(known.type)
    values: NDArray[np.float64] = (known.flatten() if nested else known).to_numpy(zero_copy_only=False)
    targets = known.type.list_size if nested else 1  # said, since of no rows numpy cannot tell it
    return values if classifies else np.sqrt(values.reshape(len(known), targets).max(1))


def _measure(tally: _Tally, doubt: NDArray[np.float64], threshold: float | None) -> None:
    if len(doubt):
        tally.known += len(doubt)
        tally.total += float(doubt.sum())
        tally.least, tally.most = min(tally.least, float(doubt.min())), max(tally.most, float(doubt.max()))
        tally.above += 0 if threshold is None else int((doubt > threshold).sum())


def _edges(tally: _Tally) -> NDArray[np.float64]:
    """Return the edges of fine bins from the least to the most, apart even where these are the same."""
    least, most = (tally.least, tally.most) if tally.known else (0.0, 1.0)
    most = max(most, least + max(1e-12, 1e-9 * abs(least)))
    return np.linspace(least, most, BARS * _FINE + 1)


def _spread(tally: _Tally, edges: NDArray[np.float64], counts: NDArray[np.int64], described: Described) -> Spread:
    reached = np.concatenate([[0.0], np.cumsum(counts) / tally.known])
    median, ninety, ninety_nine = (float(np.interp(share, reached, edges)) for share in (0.5, 0.9, 0.99))
    return Spread(
        quantity="mutual information" if described.classifies else "epistemic deviation",
        unit="nats" if described.classifies else "",
        rows=tally.known,
        mean=tally.total / tally.known,
        median=median,
        ninety=ninety,
        ninety_nine=ninety_nine,
        most=tally.most,
        edges=tuple(edges[::_FINE].tolist()),
        counts=tuple(counts.reshape(BARS, _FINE).sum(1).tolist()),
    )
