"""Concrete dropout: a rate that is learned with the weights (Gal, Hron & Kendall 2017, "Concrete Dropout")."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dubito_models.errors import InvalidArgument


class ConcreteDropout(nn.Module):
    """Dropout of (B, ...) whose rate p is a parameter, held as its logit so that any step keeps it inside (0, 1).

    In training each element (with `spatial` each channel of (B, C, ...)) is multiplied by (1 - z) / (1 - p), with
    z = sigmoid((log p - log(1 - p) + log u - log(1 - u)) / temperature), u uniform (the paper's relaxation of
    Bernoulli(p), section 3): differentiable in p, above 1/2 with probability p exactly, nearly always close to 0
    or 1. In eval it is the identity. Once trained it is plain dropout of `rate`, which is what a packed network draws.

    Without `regularizer` in the loss the rate falls to 0, since noise never helps to fit. Keep the logit out of
    weight decay, which would draw the rate to 1/2.
    """

    def __init__(self, rate: float = 0.1, *, temperature: float = 0.1, spatial: bool = False) -> None:
        super().__init__()
        if not 0 < rate < 1:
            raise InvalidArgument("rate", rate, "a rate above 0 and below 1 to learn from")
        if not 0 < temperature < math.inf:
            raise InvalidArgument("temperature", temperature, "a finite number above 0")
        self.temperature, self.spatial = float(temperature), spatial
        self.logit = nn.Parameter(torch.tensor(math.log(rate) - math.log1p(-rate)))  # ()

    @property
    def rate(self) -> float:
        """The rate as it is now learned."""
        return float(torch.sigmoid(self.logit.detach()))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, ...), thinned in training."""
        if self.spatial and x.dim() < 3:
            raise InvalidArgument("x", f"shape {tuple(x.shape)}", "(B, C, ...) with at least one axis after channels")
        if not self.training:
            return x
        shape = (*x.shape[:2], *(1,) * (x.dim() - 2)) if self.spatial else x.shape
        # In the parameter's precision: half-precision noise would be too coarse for small rates.
        noise = torch.rand(shape, dtype=self.logit.dtype, device=x.device)
        kept = torch.sigmoid(-(self.logit + torch.logit(noise)) / self.temperature)
        return x * (kept / torch.sigmoid(-self.logit)).to(x.dtype)

    def regularizer(self, *weights: Tensor, features: int, rows: int, length_scale: float = 1e-2) -> Tensor:
        """Return KL(q || prior) / N of the weights that read this layer's output, in nats: a scalar to add to the loss.

        The loss is then the *mean* negative log-likelihood plus one such term per layer,
        with N = `rows` of the training set. Up to a constant

            KL = length_scale^2 (1 - p) / 2 ||M||^2 - K H(p),   H(p) = -p log p - (1 - p) log(1 - p),

        where K = `features` is the number of units (with `spatial` channels) that are dropped and M the weight that a
        kept unit meets: here W / (1 - p), for the layer scales what it keeps. So the weight term is
        length_scale^2 ||W||^2 / (2 (1 - p)). For a squared error of noise precision tau, scale that error by tau / 2.
        Raises `InvalidArgument` without weights and for sizes that are not positive.
        """
        if not weights:
            raise InvalidArgument("weights", "none", "the weights that read this layer's output")
        if features < 1 or rows < 1:
            raise InvalidArgument("features, rows", f"{features}, {rows}", "counts of at least 1")
        if not 0 <= length_scale < math.inf:
            raise InvalidArgument("length_scale", length_scale, "a finite number of at least 0")
        dropped, kept = torch.sigmoid(self.logit), torch.sigmoid(-self.logit)
        squares = torch.stack([weight.square().sum() for weight in weights]).sum()
        # -log p = softplus(-logit): exact where 1 - p or p rounds to 0.
        entropy = dropped * F.softplus(-self.logit) + kept * F.softplus(self.logit)
        return (length_scale**2 * squares / (2 * kept) - features * entropy) / rows

    def extra_repr(self) -> str:
        """Return the rate as it stands, the temperature and what is dropped."""
        return f"rate={self.rate:.4g}, temperature={self.temperature}, spatial={self.spatial}"
