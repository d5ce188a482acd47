"""What a network's raw output means: its head, and the one decoding of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from dubito_models.errors import InvalidArgument


class Task(StrEnum):
    """What the network predicts."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"


class Head(StrEnum):
    """What the network's output is.

    `logits`, `probabilities`, `log_probabilities`: (N, K), K >= 2. `logit`: (N,) or (N, 1), of class 1 of two.
    `mean`: (N,) or (N, K). `mean_and_log_variance`: (N, 2 K), the means first.
    """

    LOGITS = "logits"
    LOGIT = "logit"
    PROBABILITIES = "probabilities"
    LOG_PROBABILITIES = "log_probabilities"
    MEAN = "mean"
    MEAN_AND_LOG_VARIANCE = "mean_and_log_variance"

    @property
    def task(self) -> Task:
        """The task that this head belongs to."""
        regression = (Head.MEAN, Head.MEAN_AND_LOG_VARIANCE)
        return Task.REGRESSION if self in regression else Task.CLASSIFICATION


@dataclass(frozen=True, slots=True)
class Decoded:
    """Draws of a predictive distribution, float64: what one thinned network says of each row.

    Classification: `log_probabilities` (S, N, K). Regression: `mean` (S, N, K), and `variance` (S, N, K) of the
    noise where the network knows it. `calibrated`: whether a calibration has had them.
    """

    log_probabilities: Tensor | None = None
    mean: Tensor | None = None
    variance: Tensor | None = None
    calibrated: bool = False


def count_outputs(head: Head, shape: tuple[int, ...]) -> int:
    """Return K for a raw prediction of this shape, (N,) or (N, width); `InvalidArgument` where the head cannot be."""
    accepted = {
        Head.LOGITS: "(rows, classes), at least 2 classes; one logit of two classes is head 'logit'",
        Head.PROBABILITIES: "(rows, classes), at least 2 classes",
        Head.LOG_PROBABILITIES: "(rows, classes), at least 2 classes",
        Head.LOGIT: "(rows,) or (rows, 1)",
        Head.MEAN: "(rows,) or (rows, targets)",
        Head.MEAN_AND_LOG_VARIANCE: "(rows, 2 x targets), the means first",
    }[head]
    width = shape[1] if len(shape) == 2 else 1
    fits = {
        Head.LOGIT: width == 1,
        Head.MEAN: width >= 1,
        Head.MEAN_AND_LOG_VARIANCE: len(shape) == 2 and width >= 2 and width % 2 == 0,
    }.get(head, len(shape) == 2 and width >= 2)
    if len(shape) not in (1, 2) or not fits:
        advice = "; pool or select one prediction per row first" if len(shape) > 2 else ""
        raise InvalidArgument(f"prediction for head {head.value!r}", f"shape {shape}", accepted + advice)
    return {Head.LOGIT: 2, Head.MEAN_AND_LOG_VARIANCE: width // 2}.get(head, width)


def decode(head: Head, raw: Tensor) -> Decoded:
    """Decode raw predictions (S, N) or (S, N, width) by the head."""
    values = raw.double()
    if values.dim() == 2:
        values = values.unsqueeze(-1)
    match head:
        case Head.LOGITS:
            return Decoded(log_probabilities=F.log_softmax(values, -1))
        case Head.LOGIT:
            return Decoded(log_probabilities=torch.cat([F.logsigmoid(-values), F.logsigmoid(values)], -1))
        case Head.PROBABILITIES:
            return Decoded(log_probabilities=values.log())
        case Head.LOG_PROBABILITIES:
            return Decoded(log_probabilities=values)
        case Head.MEAN:
            return Decoded(mean=values)
        case Head.MEAN_AND_LOG_VARIANCE:
            mean, log_variance = values.chunk(2, -1)
            return Decoded(mean=mean, variance=log_variance.exp())
