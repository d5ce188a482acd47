"""Selective prediction and detection: whether uncertainty is higher where it should be.

Uncertainty and scores matter by their order alone. Where they are equal the order does not say who comes first: every
order then counts the same, so that no result depends on how rows are arranged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from dubito_models.arrays import Array
from dubito_models.errors import InvalidArgument
from dubito_models.metrics.checks import listed


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """The mean loss of the k most certain of N rows, for every k from 1 to N."""

    coverage: Array  # (N,): k / N
    risk: Array  # (N,): expected over the orders of equally uncertain rows


def risk_coverage_curve(losses: ArrayLike, uncertainty: ArrayLike) -> RiskCoverage:
    """Return the risk at every coverage, for losses (N,) (0 or 1, or any) and uncertainty (N,): the lowest first.

    El-Yaniv & Wiener 2010, Geifman & El-Yaniv 2017.
    """
    loss, doubt = listed("losses", losses), listed("uncertainty", uncertainty)
    if loss.shape != doubt.shape:
        raise InvalidArgument("uncertainty", f"shape {doubt.shape} for losses of shape {loss.shape}", "equal shapes")
    _, group = np.unique(doubt, return_inverse=True)
    # Of equally uncertain rows each comes at each place as often: their mean loss stands for each of them.
    ordered = (np.bincount(group, weights=loss) / np.bincount(group))[np.sort(group)]
    taken = np.arange(1, len(loss) + 1)
    return RiskCoverage(coverage=taken / len(loss), risk=np.cumsum(ordered) / taken)


def area_under_risk_coverage_curve(losses: ArrayLike, uncertainty: ArrayLike) -> float:
    """Return the mean over k of the risk of the k most certain rows (AURC).

    A mean over the N coverages, not the trapezoid rule that some libraries use, which differs by a term in 1 / N.
    """
    return float(risk_coverage_curve(losses, uncertainty).risk.mean())


def excess_area_under_risk_coverage_curve(losses: ArrayLike, uncertainty: ArrayLike) -> float:
    """Return the area less that of the best possible order, which is by the losses themselves (E-AURC).

    Geifman et al. 2019, with these rows' own best area in place of its approximation.
    """
    best = area_under_risk_coverage_curve(losses, losses)
    return max(area_under_risk_coverage_curve(losses, uncertainty) - best, 0.0)


def area_under_generalized_risk_coverage_curve(losses: ArrayLike, uncertainty: ArrayLike) -> float:
    """Return the area under coverage times risk, from coverage 0 to 1 by the trapezoid rule (AUGRC).

    Coverage times risk is the loss of the rows that are answered over all rows (Traub et al. 2024). For losses of 0 and
    1 the area is (1 - A) a (1 - a) + (1 - a)^2 / 2: accuracy a, and A the area under the ROC of uncertainty for errors.
    """
    curve = risk_coverage_curve(losses, uncertainty)
    height = np.concatenate([[0.0], curve.coverage * curve.risk])
    return float((height[1:] + height[:-1]).mean() / 2)


def area_under_roc(scores_in: ArrayLike, scores_out: ArrayLike) -> float:
    """Return the probability that a row from outside scores higher than one from inside, equals counting 1/2.

    In-distribution scores (N,) and out-of-distribution ones (M,), which should be the higher (Mann & Whitney 1947).
    """
    inside, outside = listed("scores_in", scores_in), listed("scores_out", scores_out)
    ranks = stats.rankdata(np.concatenate([inside, outside]))[len(inside) :]
    above = ranks.sum() - len(outside) * (len(outside) + 1) / 2
    return float(above / (len(inside) * len(outside)))


def false_positive_rate_at(scores_in: ArrayLike, scores_out: ArrayLike, true_positive_rate: float = 0.95) -> float:
    """Return the share of in-distribution rows that are taken for outsiders where that share of outsiders is found.

    Out-of-distribution is positive, and the higher score: the threshold is the highest that at least
    `true_positive_rate` of `scores_out` (M,) reach, and a row of `scores_in` (N,) that reaches it too is a false alarm.
    """
    inside, outside = listed("scores_in", scores_in), listed("scores_out", scores_out)
    if not 0 < true_positive_rate <= 1:
        raise InvalidArgument("true_positive_rate", true_positive_rate, "above 0 and at most 1")
    found = max(1, math.ceil(true_positive_rate * len(outside) - 1e-9))  # .95 of 100 are 95, whatever rounding says
    threshold = np.sort(outside)[-found]
    return float((inside >= threshold).mean())
