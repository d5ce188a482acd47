"""What training minimises and what it is watched by, for each head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dubito_models.heads import Head, decode


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of a head's raw outputs, a mean per row (and target).

    `logits`: cross-entropy, in nats. `mean_and_log_variance`: the negative log-likelihood of a Gaussian, in nats.
    `mean`: the squared error over the variance of the training targets; or, where a penalty in nats is added to it,
    half its logarithm, which is the likelihood at its best noise precision up to a constant.
    `scale` (K,): the standard deviation of a regression's training targets.
    """

    head: Head
    scale: Tensor | None = None
    label_smoothing: float = 0.0
    likelihood: bool = False

    @property
    def targets(self) -> int:
        """The number of targets that the loss is a mean over; a penalty per row is to be shared out over them."""
        return 1 if self.scale is None else len(self.scale)

    @property
    def metric(self) -> str:
        """The name of what validation is watched by, beside the loss."""
        return "accuracy" if self.head is Head.LOGITS else "RMSE"

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of raw outputs (B, ...) at targets (B,) or (B, K)."""
        if self.head is Head.LOGITS:
            return F.cross_entropy(raw, targets, label_smoothing=self.label_smoothing)
        assert self.scale is not None
        if self.head is Head.MEAN:
            squared = ((raw - targets) / self.scale).square().mean()
            return squared.clamp_min(1e-12).log() / 2 if self.likelihood else squared
        mean, log_variance = raw.chunk(2, -1)
        relative = log_variance - 2 * self.scale.log()
        each = relative + ((mean - targets) / self.scale).square() * torch.exp(-relative)
        return (each / 2 + self.scale.log()).mean() + math.log(2 * math.pi) / 2

    def validate(self, raw: Tensor, targets: Tensor) -> tuple[float, float]:
        """Return the plain loss, without smoothing, and the metric: accuracy, or RMSE in the targets' unit."""
        plain = Objective(self.head, None if self.scale is None else self.scale.double(), likelihood=self.likelihood)
        loss = float(plain.loss(raw.double(), targets if self.head is Head.LOGITS else targets.double()))
        if self.head is Head.LOGITS:
            return loss, float((raw.argmax(1) == targets).double().mean())
        mean = decode(self.head, raw[None]).mean
        assert mean is not None
        return loss, float((mean[0] - targets).square().mean().sqrt())
