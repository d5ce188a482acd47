"""Two fidelities of a classification: few draws of the network, and very many of its logits made linear in the masks.

The linear logits z~(m) = z(mu) + sum_i g_i (m_i - mu_i) cost a product of masks and gradients, so their average over
masks is as good as known. What a draw adds is only how the network differs from them under the same masks: for each of
phi = p, p^2 and H(p), E phi(z) = mean over draws of [phi(z) - phi(z~)] + E phi(z~), a control variate with coefficient
1 (multilevel Monte Carlo of two levels; Giles 2008, "Multilevel Monte Carlo path simulation").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dubito_models.heads import Decoded
from dubito_models.predictive import (
    Array,
    Classification,
    Moments,
    ballot,
    entropy,
    expected_entropy,
    gather,
    margin_of,
    spread,
    to_numpy,
)
from dubito_models.stopping import Quantity, influence, standard_error

_GAIN, _BIAS = 8.0, 0.03


@dataclass(frozen=True, slots=True)
class Levels:
    """Draws of the network, of its linear logits under the same masks, and of these under very many others.

    The linear ones are on the program's device; the network's may have been taken to the CPU.
    """

    draws: Moments
    near: Moments
    far: Moments


def correct(levels: Levels, balanced: bool) -> tuple[Classification, Array]:
    """End the levels of some rows as an answer, and return the standard error of its probabilities (B, K) too.

    Probabilities that leave the simplex by chance are brought back to it. All moments keep their draws, but `far`.
    """
    draws, near, far = levels.draws, levels.near, levels.far
    assert draws.draws is not None
    assert near.draws is not None
    gap = draws.draws.to(near.draws.device) - near.draws
    rest = gather(Decoded(mean=gap), draws.count, keep_draws=False)
    off, known = spread(rest, balanced), spread(far, balanced)
    assert known.standard_error is not None
    error = known.standard_error if off.standard_error is None else np.hypot(off.standard_error, known.standard_error)
    mean = np.clip(off.mean + known.mean, 0.0, 1.0)
    mean = mean / mean.sum(-1, keepdims=True)
    square = _mean_square(draws) - _mean_square(near) + _mean_square(far)
    variance = np.maximum(square - mean**2 + error**2, 0.0)  # the mean's own square is too large by its error's
    most = np.log(mean.shape[-1])
    expected = np.clip(expected_entropy(draws) - expected_entropy(near) + expected_entropy(far), 0.0, most)
    plain = entropy(mean)
    information = np.maximum(plain - expected, 0.0)
    ratio, disagreement = ballot(draws)
    answer = Classification(
        probabilities=mean,
        label=mean.argmax(-1),
        predictive_entropy=np.minimum(expected + information, most),
        expected_entropy=expected,
        mutual_information=information,
        plain_mutual_information=information,
        standard_deviation=np.sqrt(variance),
        variation_ratio=ratio,
        disagreement=disagreement,
        margin=margin_of(mean),
    )
    return answer, error


@dataclass(frozen=True, slots=True)
class Merit:
    """What linear logits gain a mutual information, the measure that balance helps least."""

    gain: float  # by how much they divide its squared error
    bias: float  # how far they put it, on the average over rows, in its own size

    @property
    def enough(self) -> bool:
        """Whether it outweighs the cost of very many linear draws, and the bias is none to speak of."""
        return self.gain >= _GAIN and abs(self.bias) <= _BIAS


def judge(levels: Levels, balanced: bool, known: Array) -> Merit:
    """Judge them by levels of many draws in groups; `known`: the mutual information (B,) that the draws alone say."""
    draws = levels.draws
    middle = to_numpy(draws.draws).mean(0)
    own, near = (influence(Quantity.MUTUAL_INFORMATION, each, middle) for each in (draws, levels.near))
    error, left = (float((standard_error(each, draws.count, balanced) ** 2).sum()) for each in (own, own - near))
    found, _ = correct(levels, balanced)
    assert found.mutual_information is not None
    total = float(known.mean())
    bias = float(found.mutual_information.mean()) / total - 1.0 if total > 0.0 else 0.0
    return Merit(error / left if left > 0.0 else np.inf, bias)


def _mean_square(moments: Moments) -> Array:
    """Return the mean over draws of p^2, (B, K)."""
    weights = np.asarray(moments.count, dtype=np.float64).reshape(-1, 1, 1)
    means, m2 = to_numpy(moments.mean), to_numpy(moments.m2)
    found: Array = (m2 + weights * means**2).sum(0) / weights.sum()
    return found
