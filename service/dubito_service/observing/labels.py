"""Labels that came back, scored by the receipt of their prediction: row by row, with no model at hand."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dubito_models.calibration.nonconformity import FLOOR, class_scores, target_scores
from dubito_models.errors import InvalidArgument
from dubito_models.predictive import Validity
from dubito_service.observing.receipts import Classified, Receipt, Regressed

Array = NDArray[np.float64]

_LEAST = float(np.finfo(np.float64).tiny)
_MOST = 1e200  # so that sums of rows stay finite


@dataclass(frozen=True, slots=True)
class Scored:
    """What labels say of the B rows of one prediction; None where the answer does not tell.

    `negative_log_likelihood` is finite: a probability counts as at least 2.2e-308 (708 nats), a deviation as at least
    1e-12, and both it and a squared error as at most 1e200. Of a regression it is that of a Gaussian of mean and total
    variance, on average over targets.
    """

    labels: Array  # (B, 1) class numbers, or (B, K)
    negative_log_likelihood: Array | None  # (B,) nats
    brier_score: Array | None  # (B,), in [0, 2]: classification
    correct: NDArray[np.bool_] | None  # (B,): classification
    confidence: Array | None  # (B,): the highest probability
    squared_error: Array | None  # (B,): mean over targets, in their unit squared
    scores: Array | None  # (B, 1 or K): nonconformity, of the label or of every target
    covered: NDArray[np.bool_] | None  # (B, 1 or K): whether the set or interval holds the label
    epistemic: Array | None  # (B,)
    exact: bool  # whether it was drawn as those answers that the calibration was fitted to

    @property
    def digest(self) -> str:
        """What tells these labels from others."""
        return hashlib.sha256(repr(self.labels.shape).encode() + self.labels.tobytes()).hexdigest()


def read_label(label: NDArray[Any], receipt: Receipt) -> NDArray[Any]:
    """Check labels against the prediction that they are of: class numbers (B,), or finite numbers (B, K).

    A regression of one target takes (B,) too. Raises `InvalidArgument`, which names `label`.
    """
    B, K = receipt.rows, receipt.outputs
    classifies = isinstance(receipt.answer, Classified)
    shapes: tuple[tuple[int, ...], ...] = ((B,),) if classifies or K == 1 else ()
    shapes += () if classifies else ((B, K),)
    if label.shape not in shapes:
        accepted = " or ".join(map(str, shapes)) + ", a label for every row of the prediction"
        raise InvalidArgument("label.shape", f"shape {label.shape}", accepted)
    if classifies:
        if not np.issubdtype(label.dtype, np.integer):
            raise InvalidArgument("label.dtype", label.dtype.name, "integers, class numbers")
        if not 0 <= label.min() <= label.max() < K:
            raise InvalidArgument("label", f"{label.min()}..{label.max()}", f"class numbers 0..{K - 1}")
        return label.astype(np.int64)
    if not np.issubdtype(label.dtype, np.number):
        raise InvalidArgument("label.dtype", label.dtype.name, "numbers")
    if not np.isfinite(label).all():
        raise InvalidArgument("label", "NaN or infinity", "finite numbers")
    return label.astype(np.float64).reshape(B, K)


def score(receipt: Receipt, label: NDArray[Any]) -> Scored:
    """Score the labels that `read_label` returned."""
    answer = receipt.answer
    if isinstance(answer, Classified):
        return _score_classes(receipt, answer, label)
    return _score_targets(receipt, answer, label)


def _score_classes(receipt: Receipt, answer: Classified, label: NDArray[np.int64]) -> Scored:
    p, at = answer.probabilities, (np.arange(len(label)), label)
    scoring, held = receipt.scoring, answer.prediction_set
    scores = None
    if scoring is not None:
        scores = class_scores(scoring.method, p, scoring.penalty, scoring.regular_rank)[at][:, None]
    return Scored(
        labels=label[:, None].astype(np.float64),
        negative_log_likelihood=-np.log(np.maximum(p[at], _LEAST)),
        brier_score=((p - np.eye(p.shape[1])[label]) ** 2).sum(-1),
        correct=p.argmax(-1) == label,
        confidence=p.max(-1),
        squared_error=None,
        scores=scores,
        covered=None if held is None else _at_the_ends(receipt, held[at][:, None]),
        epistemic=receipt.epistemic,
        exact=receipt.validity is Validity.EXACT,
    )


def _score_targets(receipt: Receipt, answer: Regressed, label: Array) -> Scored:
    mean, variance, bounds, scoring = answer.mean, answer.total_variance, answer.prediction_interval, receipt.scoring
    with np.errstate(over="ignore"):
        squared = np.minimum((label - mean) ** 2, _MOST)
        likelihood = scores = covered = None
        if variance is not None:
            spread = np.maximum(variance, FLOOR**2)
            each = 0.5 * (math.log(2 * math.pi) + np.log(spread) + squared / spread)
            likelihood = np.minimum(each, _MOST).mean(-1)
    if scoring is not None:
        deviation = None if variance is None or scoring.method != "normalized" else np.sqrt(variance)
        base = answer.base_interval if scoring.method == "cqr" else None
        if (scoring.method == "cqr") == (base is not None) and (scoring.method == "normalized") == (
            deviation is not None
        ):
            scores = target_scores(label, mean, deviation, base, scoring.floor)
    if bounds is not None:
        covered = _at_the_ends(receipt, (bounds[..., 0] <= label) & (label <= bounds[..., 1]))
    return Scored(
        labels=label,
        negative_log_likelihood=likelihood,
        brier_score=None,
        correct=None,
        confidence=None,
        squared_error=squared.mean(-1),
        scores=scores,
        covered=covered,
        epistemic=receipt.epistemic,
        exact=receipt.validity is Validity.EXACT,
    )


def _at_the_ends(receipt: Receipt, covered: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Count everything as holding every label, and nothing as holding none: a point may equal its label."""
    if receipt.served_coverage is None or 0.0 < receipt.served_coverage < 1.0:
        return covered
    return np.full_like(covered, receipt.served_coverage >= 1.0)
