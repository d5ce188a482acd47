"""Scaling inside a network: raw numbers in, raw numbers out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dubito_models.heads import Head
from dubito_models.networks import Forecaster, Pipeline, Rescale, Standardize


def test_standardising_is_undone_by_rescaling() -> None:
    x = torch.randn(50, 3) * torch.tensor([1.0, 100.0, 1e-3]) + torch.tensor([0.0, -7.0, 0.02])
    before, after = Standardize(x.mean(0), x.std(0)), Rescale(x.mean(0), x.std(0), Head.MEAN)
    torch.testing.assert_close(before(x).mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(before(x).std(0), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(Pipeline(before, nn.Identity(), after)(x), x, rtol=1e-4, atol=1e-4)


def test_what_never_varies_stays_finite() -> None:
    x = torch.full((4, 1), 3.0)
    assert torch.equal(Standardize(x.mean(0), x.std(0))(x), torch.zeros(4, 1))


def test_log_variances_move_with_the_square_of_the_unit() -> None:
    """A Gaussian of standardised targets becomes the one of the targets."""
    mean, scale = torch.tensor([5.0, -1.0]), torch.tensor([3.0, 0.1])
    raw = torch.randn(7, 4)
    found = Rescale(mean, scale, Head.MEAN_AND_LOG_VARIANCE)(raw)
    torch.testing.assert_close(found[:, :2], raw[:, :2] * scale + mean)
    torch.testing.assert_close(found[:, 2:].exp().sqrt(), raw[:, 2:].exp().sqrt() * scale)


@pytest.mark.parametrize("head", [Head.MEAN, Head.MEAN_AND_LOG_VARIANCE])
def test_a_forecast_moves_with_the_level_of_its_window(head: Head) -> None:
    """A window that is higher by 100 is continued higher by 100; its spread is the same."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3 if head is Head.MEAN else 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.flatten(1))

    network = Forecaster(Flat(), 2.0, Rescale(torch.zeros(3), torch.ones(3), head), steps=3)
    window = torch.randn(5, 6, 1)
    low, high = network(window), network(window + 100)
    torch.testing.assert_close(high[:, :3], low[:, :3] + 100, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(high[:, 3:], low[:, 3:], rtol=1e-3, atol=1e-3)
