"""What a server answers, as a caller reads it.

Axes: B rows, S draws, K outputs (classes or regression targets), Q quantiles. Arrays are read-only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from dubito_client.errors import refused

Design = Literal["balanced", "independent"]
MaskScope = Literal["draw", "row"]
Estimator = Literal["plain", "linearized"]
Priority = Literal["high", "normal", "low"]
Validity = Literal["none", "approximate", "exact"]


class Replay(TypedDict):
    """The arguments of `predict` that make a server draw the same masks again."""

    version: int
    seed: int
    min_draws: int
    draws: int
    design: Design
    mask_scope: MaskScope
    estimator: Estimator


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a request's time went, in seconds."""

    queue_seconds: float  # from arrival to the first pass
    compute_seconds: float  # in passes that the request shared
    total_seconds: float  # from arrival to the answer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Answer:
    """What the draws say of each row: a classifier fills the first block, a regressor the second, the rest is None.

    A measure that needs two draws is None where one was drawn. Entropies are in nats.
    """

    label: NDArray[np.int64] | None = None  # (B,): the most probable class
    probabilities: NDArray[np.float64] | None = None  # (B, K): predictive mean
    predictive_entropy: NDArray[np.float64] | None = None  # (B,): total uncertainty
    expected_entropy: NDArray[np.float64] | None = None  # (B,): its aleatoric part
    mutual_information: NDArray[np.float64] | None = None  # (B,): its epistemic part
    plain_mutual_information: NDArray[np.float64] | None = None  # (B,): without the correction of its bias
    standard_deviation: NDArray[np.float64] | None = None  # (B, K): of the probabilities, over draws
    variation_ratio: NDArray[np.float64] | None = None  # (B,): share of draws not for the class that most are for
    disagreement: NDArray[np.float64] | None = None  # (B,): how often two draws differ in their first class
    margin: NDArray[np.float64] | None = None  # (B,): the highest probability less the second highest
    prediction_set: NDArray[np.bool_] | None = None  # (B, K): the classes at the asked coverage

    mean: NDArray[np.float64] | None = None  # (B, K): predictive mean
    total_variance: NDArray[np.float64] | None = None  # (B, K): epistemic + aleatoric
    epistemic_variance: NDArray[np.float64] | None = None  # (B, K): over draws
    aleatoric_variance: NDArray[np.float64] | None = None  # (B, K): of the noise, where the network knows it
    interval: NDArray[np.float64] | None = None  # (B, K, 2): central, at `interval_level`
    interval_level: float | None = None
    quantiles: NDArray[np.float64] | None = None  # (B, K, Q): in the order asked
    prediction_interval: NDArray[np.float64] | None = None  # (B, K, 2): at the asked coverage


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Prediction(Answer):
    """A Monte Carlo prediction, how far to trust it, and how it was made."""

    model: str
    version: int
    id: str
    draws: NDArray[np.int64]  # (B,): draws used
    standard_error: NDArray[np.float64] | None  # (B, K): Monte Carlo error of the mean, over seeds
    stop_reason: tuple[str, ...]  # one per row: "max_draws", "tolerance", "deadline", "load", ...
    seed: int
    design: str  # "balanced", "independent", or "mixed": balanced where that was affordable
    group_size: int  # draws come in whole groups of this size under a balanced design
    mask_scope: str
    estimator: str
    calibration_id: str | None
    calibration_validity: Validity
    warnings: tuple[str, ...]
    timings: Timings | None
    raw_draws: NDArray[np.float64] | None  # (S, B, K): every draw's prediction, where asked; NaN after a row's last
    joint_covariance: NDArray[np.float64] | None  # (B, B, K): of the predictions between rows, where asked
    coverage: float | None  # of the prediction sets or intervals, as asked
    served_coverage: float | None = None  # at which they were made: in a stream from 0 (nothing) to 1 (everything)
    prediction_id: str | None = None  # with the receipt, what `observe` takes; None where no labels are taken back
    receipt: bytes | None = None
    abstain: NDArray[np.bool_] | None  # (B,): too uncertain for the calibrated risk; None where there is none
    uncalibrated: Answer | None  # where asked
    final: bool  # False: a better answer follows in the stream

    @property
    def rows(self) -> int:
        """B."""
        return len(self.draws)

    @property
    def replay(self) -> Replay:
        """The arguments for asking again: `client.predict(p.model, inputs, **p.replay)` draws the same masks.

        Raises `InvalidArgument` where rows stopped after different numbers of draws: `replay_row` replays each alone.
        """
        used = np.unique(self.draws)
        if len(used) != 1:
            given = f"rows that used {', '.join(map(str, used))} draws" if len(used) else "no rows"
            raise refused("draws", given, "rows that all used as many draws; replay_row(row) replays one row")
        return self.replay_row(0)

    def replay_row(self, row: int) -> Replay:
        """Return the arguments for asking again for the row of that number alone.

        Where each row has masks of its own, these depend on its place: ask for all rows again, and read this one.
        """
        used = int(self.draws[row])
        return Replay(
            version=self.version,
            seed=self.seed,
            min_draws=used,
            draws=used,
            # "mixed" is only ever answered: it is what a balanced design becomes where some sites are too large.
            design="independent" if self.design == "independent" else "balanced",
            mask_scope="row" if self.mask_scope == "row" else "draw",
            estimator="linearized" if self.estimator == "linearized" else "plain",
        )

    def __repr__(self) -> str:
        task = "classification" if self.mean is None else "regression"
        return f"<Prediction of {self.model} version {self.version}: {task}, {self.rows} rows, seed {self.seed}>"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Evaluation:
    """What the standard path says: dropout off, one pass. Fields of the other task are None."""

    model: str
    version: int
    id: str
    output: NDArray[Any]  # what the network itself returns
    label: NDArray[np.int64] | None = None  # (B,)
    probabilities: NDArray[np.float64] | None = None  # (B, K)
    mean: NDArray[np.float64] | None = None  # (B, K)
    aleatoric_variance: NDArray[np.float64] | None = None  # (B, K): where the network knows it
    timings: Timings | None = None

    def __repr__(self) -> str:
        task = "classification" if self.mean is None else "regression"
        return f"<Evaluation of {self.model} version {self.version}: {task}, output {self.output.shape}>"


@dataclass(frozen=True, slots=True)
class StreamState:
    """What a stream asks of conformal prediction now, and what came of it."""

    stream: str
    coverage: float  # wanted in the long run
    served_coverage: float  # of the next answer
    labels: int
    covered: float | None  # share of them; None before the first


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What came of labels that were brought back."""

    rows: int
    duplicate: bool  # they had come before; nothing was changed
    covered: NDArray[np.bool_] | None  # (B,), of a regression (B, K): whether the set or interval held the label
    stream: StreamState | None  # after these labels


@dataclass(frozen=True, slots=True)
class Banded:
    """A number and its band of 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class DriftState:
    """A test of whether what is observed is still exchangeable with its reference."""

    of: str  # "conformal_score" or "epistemic_uncertainty"
    reference_rows: int  # 0 while they are gathered
    rows: int
    evidence: float  # decimal logarithm of the odds against exchangeability
    false_alarm: float  # probability of any false alarm
    alarm: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What the newest labels say of a version under one calibration; None where they do not tell."""

    calibration_id: str | None
    rows: int
    first_seconds: float  # since 1970
    last_seconds: float
    negative_log_likelihood: Banded | None
    accuracy: Banded | None
    brier_score: Banded | None
    expected_calibration_error: Banded | None
    root_mean_squared_error: Banded | None
    coverage: Banded | None  # of the rows at a coverage and of no stream
    served_coverage: float | None  # of these, on average
    covered_rows: int  # how many these are
    drift: tuple[DriftState, ...]
    streams: tuple[StreamState, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """One version that a server holds, or failed to load."""

    model: str
    version: int
    state: str  # "ready", "failed", "loading" or "unloaded"
    reason: str  # of a failure
    task: str  # "classification" or "regression"
    calibration_id: str | None


@dataclass(frozen=True, slots=True)
class Column:
    """One column of an input that is a table: a number, or the code k of `categories[k - 1]`; 0 is any other text."""

    name: str
    kind: str  # "number" or "category"
    categories: tuple[str, ...] = ()
    allow_nan: bool = False  # whether a value may be missing


@dataclass(frozen=True, slots=True)
class InputSignature:
    """One input of a model: axis 0 is the rows; a size of None is free."""

    name: str
    dtype: str  # numpy's name; "unspecified" for one that this client does not know
    shape: tuple[int | None, ...]
    allow_nan: bool = False
    dimension_names: tuple[str, ...] = ()  # one per axis; empty where fixed
    columns: tuple[Column, ...] = ()  # of a table, in their order


@dataclass(frozen=True, slots=True)
class Site:
    """One dropout operation of the network."""

    name: str
    kind: str
    rate: float
    shape: tuple[str, ...]  # per draw, without rows; symbols where free
    balanced: bool


@dataclass(frozen=True, slots=True)
class Selective:
    """From which uncertainty on a version abstains, so that of accepted rows at most `risk` are wrong."""

    quantity: str
    threshold: float  # accepted up to it
    risk: float
    confidence: float  # with which that holds
    accepted: float  # share of the calibration rows


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the answers of a version are calibrated with."""

    id: str
    method: str
    parameters: dict[str, float]
    draws: int
    seed: int
    design: str
    rows: int
    data_fingerprint: str
    stopping: str  # the rule by which its draws ended
    estimator: str
    conformal: str | None  # the method of prediction sets or intervals
    condition: str | None  # within what their coverage holds: "none", "class" or "group"
    score_rows: int  # that these were fitted to
    selective: Selective | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo(ModelStatus):
    """One version in full: what it takes, how it draws, how it is calibrated."""

    inputs: tuple[InputSignature, ...]
    head: str
    class_names: tuple[str, ...]
    outputs: int  # K
    sites: tuple[Site, ...]
    design: str
    group_size: int
    default_draws: int
    default_seed: int
    calibration: Calibration | None
    onnx_parity: float  # largest relative difference of the ONNX network, measured at packing
    warnings: tuple[str, ...]
    checksums: dict[str, str]
    max_rows: int
    max_draws: int
    observed: tuple[Observed, ...] = ()  # by calibration, the one in use first
