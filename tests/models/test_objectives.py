"""What training minimises, against torch's own losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dubito_models.heads import Head
from dubito_models.objectives import Objective

SCALE = torch.tensor([2.0, 50.0])


def rows(outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, outputs, generator=generator), torch.randn(6, 2, generator=generator) * SCALE


def test_the_squared_error_is_over_the_targets_own_variance() -> None:
    """Each target counts alike whatever its unit; the metric is in the unit."""
    raw, targets = rows(2)
    objective = Objective(Head.MEAN, SCALE)
    expected = ((raw - targets) ** 2 / SCALE**2).mean()
    torch.testing.assert_close(objective.loss(raw, targets), expected)
    loss, metric = objective.validate(raw, targets)
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert metric == pytest.approx(math.sqrt(float(F.mse_loss(raw, targets))), rel=1e-6)
    assert objective.metric == "RMSE"


def test_the_gaussian_likelihood_is_torchs() -> None:
    """In nats and in the targets' units, whatever the scale that it is computed in."""
    raw, targets = rows(4)
    mean, log_variance = raw.chunk(2, -1)
    expected = nn.GaussianNLLLoss(full=True)(mean, targets, log_variance.exp())
    torch.testing.assert_close(Objective(Head.MEAN_AND_LOG_VARIANCE, SCALE).loss(raw, targets), expected)
    plain, _ = Objective(Head.MEAN_AND_LOG_VARIANCE, SCALE).validate(raw, targets)
    assert plain == pytest.approx(float(expected), rel=1e-6)


def test_a_likelihood_beside_a_penalty_is_at_its_best_precision() -> None:
    """Half the logarithm of the squared error is max over tau of the Gaussian likelihood, up to a constant."""
    raw, targets = rows(2)
    squared = ((raw - targets) / SCALE).square().mean()
    tau = 1 / squared
    expected = (tau * squared - tau.log()) / 2 - 0.5
    torch.testing.assert_close(Objective(Head.MEAN, SCALE, likelihood=True).loss(raw, targets), expected)


def test_validation_is_without_smoothing() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    objective = Objective(Head.LOGITS, label_smoothing=0.2)
    smoothed = F.cross_entropy(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(objective.loss(logits, labels), smoothed)
    loss, metric = objective.validate(logits, labels)
    assert loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)
    assert metric == float((logits.argmax(1) == labels).double().mean())
    assert objective.metric == "accuracy"
