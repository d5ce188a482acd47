"""Temperature scaling of Monte Carlo draws (Guo et al. 2017; per draw, Laves et al. 2019).

The temperature is the maximum a posteriori under log tau ~ N(0, 1). On rows that are all classified right the plain
likelihood has no optimum: it asks for ever sharper draws, and would take from strange inputs the doubt that they are
owed. The prior weighs as much as half a nat at a factor of e, over all rows together: a few dozen rows that say
otherwise outweigh it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

from dubito_models.calibration.fitting import Fit, fit_value
from dubito_models.errors import InvalidArgument

Array = NDArray[np.float64]


def fit_temperature(log_probabilities: Array, labels: NDArray[np.int64], seed: int = 0) -> Fit:
    """Fit tau to the likelihood of mean_s softmax(log p_s / tau) under its prior, and cross-validate it in 5 folds.

    `log_probabilities` (S, N, K), of every draw; `labels` (N,) in 0..K-1. `seed` shuffles the folds.
    Raises `InvalidArgument` for fewer than 10 rows or labels that are not classes.
    """
    _, rows, classes = log_probabilities.shape
    if labels.shape != (rows,):
        raise InvalidArgument("labels", f"shape {labels.shape}", f"shape ({rows},), one class number per row")
    if rows and (labels.min() < 0 or labels.max() >= classes):
        raise InvalidArgument("labels", f"{labels.min()}..{labels.max()}", f"class numbers 0..{classes - 1}")
    return fit_value(
        lambda chosen, tau: negative_log_likelihood(log_probabilities[:, chosen], labels[chosen], tau), rows, seed=seed
    )


def negative_log_likelihood(log_probabilities: Array, labels: NDArray[np.int64], temperature: float) -> float:
    """Return the mean NLL in nats of the draws' mean at a temperature; (S, N, K) and (N,)."""
    tempered = special.log_softmax(log_probabilities / temperature, axis=-1)
    chosen = tempered[:, np.arange(len(labels)), labels]  # (S, N)
    return float(-(special.logsumexp(chosen, axis=0) - np.log(len(chosen))).mean())
