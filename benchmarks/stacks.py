"""Many small dropout networks trained at once: a stack of matrices, each network as it would be alone.

A network of 50 units is so small that a training step is all overhead. A stack of them shares it: the same layers are
batched matrix products, one Adam updates all parameters. Networks of a stack share nothing else: each has its own
rows, order, masks, rate and weight decay.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dubito_models.networks import BoundedLogVariance

Progress = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Rows:
    """Training rows of P problems, standardised: inputs (P, n, D) and targets (P, n)."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True, slots=True)
class Training:
    """How a stack is trained; `heteroscedastic`: K = 2 outputs, mean and log-variance, by their likelihood."""

    hidden: tuple[int, ...]
    epochs: int
    batch: int
    heteroscedastic: bool = False
    learning_rate: float = 1e-3


class Stack:
    """M networks: ReLU layers with dropout on the inputs and on every hidden layer, and a linear one.

    `weights[i]` is (M, in, out), `biases[i]` (M, 1, out). Weights start by Glorot & Bengio's uniform law, biases at 0.
    """

    def __init__(self, sizes: Sequence[int], rates: Sequence[float], generator: torch.Generator) -> None:
        count = len(rates)
        self.rates = torch.tensor(rates)  # (M,)
        self.weights: list[Tensor] = []
        self.biases: list[Tensor] = []
        for inputs, outputs in itertools.pairwise(sizes):
            bound = math.sqrt(6 / (inputs + outputs))
            weight = (torch.rand(count, inputs, outputs, generator=generator) * 2 - 1) * bound
            self.weights.append(weight.requires_grad_())
            self.biases.append(torch.zeros(count, 1, outputs, requires_grad=True))
        self.bound = BoundedLogVariance() if sizes[-1] == 2 else None

    def forward(self, x: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Return outputs (M, B, K) of x (M, B, D); `masks` of 0 and 1 are (M, B or 1, in) for each layer."""
        scale = (1 / (1 - self.rates))[:, None, None]
        for layer, (weight, bias, mask) in enumerate(zip(self.weights, self.biases, masks, strict=True)):
            x = torch.baddbmm(bias, x * mask, weight * scale)
            if layer < len(self.weights) - 1:
                x = torch.relu(x)
        if self.bound is None:
            return x
        return self.bound(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def masks(self, source: MaskSource, rows: int) -> list[Tensor]:
        """Return masks (M, rows, in) for each layer."""
        return [source.draw(self.rates, rows, weight.shape[1]) for weight in self.weights]


class MaskSource:
    """Independent Bernoulli masks, from 16 random bits an element: a rate is met to 1 / 65536.

    Of one seed, the masks of training (`stream` 0) and those of judging (1) are different ones.
    """

    def __init__(self, seed: int, stream: int = 0) -> None:
        self._bits = np.random.SFC64([seed, stream])

    def draw(self, rates: Tensor, rows: int, width: int) -> Tensor:
        """Return masks (M, rows, width) that are 0 with probability `rates` (M,), else 1."""
        count = len(rates) * rows * width
        raw = self._bits.random_raw(-(-count // 4)).view(np.int16)[:count]
        threshold = (torch.round(rates * 65536) - 32768).clamp(-32768, 32767).to(torch.int16)
        kept = torch.empty(len(rates), rows, width)
        return torch.ge(torch.from_numpy(raw).view(len(rates), rows, width), threshold[:, None, None], out=kept)


def train(
    rows: Rows,
    problem: Sequence[int],
    rates: Sequence[float],
    penalties: Sequence[float],
    betas: Sequence[float],
    how: Training,
    seed: int,
    progress: Progress | None = None,
) -> Stack:
    """Train M networks, the m-th on problem `problem[m]` at rate `rates[m]`, by Adam.

    The loss of each is its batch's mean squared error (or, heteroscedastic, its mean negative log-likelihood, each row
    weighted by its predicted variance to the power `betas[m]`) plus `penalties[m]` times the sum of its squared weights
    (not biases), as Keras adds an l2 regulariser.
    """
    source, generator = MaskSource(seed), torch.Generator().manual_seed(seed)
    stack = Stack((rows.inputs.shape[2], *how.hidden, 2 if how.heteroscedastic else 1), rates, generator)
    parameters = [*stack.weights, *stack.biases]
    optimizer = torch.optim.Adam(parameters, lr=how.learning_rate, eps=1e-8, fused=True)
    of = torch.tensor(problem)[:, None]  # (M, 1)
    factors = torch.tensor(penalties)[:, None, None]  # (M, 1, 1)
    powers = torch.tensor(betas)  # (M,)
    for _ in range(how.epochs):
        order = torch.rand(len(problem), rows.inputs.shape[1], generator=generator).argsort(1)  # (M, n)
        for chosen in torch.split(order, how.batch, dim=1):
            x, y = rows.inputs[of, chosen], rows.targets[of, chosen]  # (M, B, D), (M, B)
            loss = data_loss(stack.forward(x, stack.masks(source, chosen.shape[1])), y, powers).sum()
            decay = sum((factors * weight.square()).sum() for weight in stack.weights)
            optimizer.zero_grad()
            torch.autograd.backward(loss + decay)
            optimizer.step()
        if progress is not None:
            progress()
    return stack


def data_loss(outputs: Tensor, targets: Tensor, betas: Tensor) -> Tensor:
    """Return each network's mean loss (M,) of outputs (M, B, K) at targets (M, B).

    Without `betas` (M,) a network that predicts its noise may explain far-off rows by noise alone and never learn them;
    the weights, which have no gradient, prevent that (Seitzer et al. 2022, equation 5).
    """
    squared = (outputs[..., 0] - targets).square()
    if outputs.shape[-1] == 1:
        return squared.mean(1)
    log_variance = outputs[..., 1]
    weights = torch.exp(betas[:, None] * log_variance.detach())
    return (weights * (log_variance + squared * torch.exp(-log_variance))).mean(1) / 2


@torch.inference_mode()
def draws(stack: Stack, x: Tensor, count: int, seed: int, chunk: int = 50) -> Iterator[Tensor]:
    """Yield outputs (s, M, B, K) of `count` thinned networks of each in all, whose masks all rows x (M, B, D) share."""
    source = MaskSource(seed, stream=1)
    for start in range(0, count, chunk):
        some = min(chunk, count - start)
        outputs = [stack.forward(x, stack.masks(source, 1)) for _ in range(some)]
        yield torch.stack(outputs)


@torch.inference_mode()
def log_likelihood(
    stack: Stack,
    x: Tensor,
    targets: Tensor,
    scale: Tensor,
    noise: Tensor | None,
    count: int,
    seed: int,
) -> Tensor:
    """Return the mean log-likelihood of each network (M,) under the mixture of `count` draws, in the targets' unit.

    `x` (M, B, D) and `targets` (M, B) are standardised, `scale` (M,) is the targets' deviation, `noise` (M,) the noise
    variance in the targets' unit squared; None where the networks predict it.
    """
    total: Tensor | None = None
    for outputs in draws(stack, x, count, seed):
        squared = (outputs[..., 0] - targets).double().square()
        if noise is None:
            log_variance = outputs[..., 1].double()
        else:
            log_variance = (noise / scale.square()).double().log()[:, None].expand_as(targets)
        each = -(squared * torch.exp(-log_variance) + log_variance) / 2  # (s, M, B)
        part = torch.logsumexp(each, 0)
        total = part if total is None else torch.logaddexp(total, part)
    assert total is not None
    constant = math.log(count) + math.log(2 * math.pi) / 2
    return (total - constant).mean(1) - scale.double().log()


def means(stack: Stack, x: Tensor, count: int, seed: int) -> NDArray[np.float32]:
    """Return the draws of the mean output, (S, M, B)."""
    return np.concatenate([outputs[..., 0].numpy() for outputs in draws(stack, x, count, seed)])
