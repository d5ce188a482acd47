"""A transformer encoder with all its dropouts (Vaswani et al. 2017), its branches normalised first.

Blocks are pre-norm (Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture"), which trains without
a warm-up. Dropout stands on the embeddings, on the attention weights, in the feed-forward layer and on each branch
before it is added; stochastic depth (Huang et al. 2016) may drop whole branches, the later the more often.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dubito_models.errors import InvalidArgument
from dubito_models.layers import StochasticDepth
from dubito_models.layers.rates import check_rate
from dubito_models.networks.rates import decayed, site
from dubito_models.networks.sequences import as_sequence, sequence_shape

Positions = Literal["learned", "sinusoidal"]
Pooling = Literal["mean", "class"]

INITIAL_SCALE = 0.02  # of embeddings, of learned positions and of the class token


def sinusoids(length: int, width: int) -> Tensor:
    """Return position codes (length, width), sines first: wavelengths from 2 pi to 20000 pi (Vaswani et al. 2017)."""
    halves = (width + 1) // 2
    frequency = torch.exp(torch.arange(halves) * (-math.log(10_000.0) / halves))  # (width / 2,)
    angle = torch.arange(length)[:, None] * frequency  # (T, width / 2)
    return torch.cat([angle.sin(), angle.cos()], 1)[:, :width]


class Attention(nn.Module):
    """Self-attention of several heads, its weights dropped at `rate`."""

    def __init__(self, width: int, heads: int, rate: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, rate
        self.read = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return (B, T, width) of x (B, T, width); `mask` (B, 1, 1, T) is true at the steps that may be read."""
        query, key, value = self.read(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, T, d)
        rate = self.rate if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
        merged: Tensor = self.merge(found.transpose(1, 2).flatten(2))  # (B, T, width)
        return merged


class EncoderBlock(nn.Module):
    """Attention, then a feed-forward layer; each a branch that reads the normalised sum so far and is added to it."""

    def __init__(
        self, width: int, heads: int, feedforward: int, rate: float, attention_rate: float, depth: tuple[float, float]
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, attention_rate)
        self.feedforward = nn.Sequential(
            nn.Linear(width, feedforward), nn.GELU(), site(nn.Dropout, rate), nn.Linear(feedforward, width)
        )
        self.dropout1, self.dropout2 = site(nn.Dropout, rate), site(nn.Dropout, rate)
        self.depth1, self.depth2 = site(StochasticDepth, depth[0]), site(StochasticDepth, depth[1])

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return (B, T, width) of x (B, T, width) and a mask (B, 1, 1, T) of the steps that may be read."""
        x = x + self.depth1(self.dropout1(self.attention(self.norm1(x), mask)))
        total: Tensor = x + self.depth2(self.dropout2(self.feedforward(self.norm2(x))))
        return total


class Transformer(nn.Module):
    """An encoder of `layers` blocks over a sequence; the mean over its steps, or a class token; a linear head.

    `input_shape` is (T, F) for sequences of numbers; (C, H, W) for images, read row by row as T = H steps of F = C * W
    numbers; (T,) with a `vocabulary` for token numbers int64 in 0..vocabulary - 1. T is the longest sequence: shorter
    ones run too. `stochastic_depth` is the rate of the last branch, from which those before it decay linearly.
    The `outputs` are raw: the logits of K classes, the means of K targets, or what else the head reads.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        width: int,
        outputs: int,
        *,
        vocabulary: int | None = None,
        layers: int = 2,
        heads: int = 4,
        feedforward: int | None = None,
        positions: Positions = "learned",
        pooling: Pooling = "mean",
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        embedding_dropout: float = 0.1,
        stochastic_depth: float = 0.0,
    ) -> None:
        super().__init__()
        inner = 4 * width if feedforward is None else feedforward
        if min(width, outputs, layers, heads, inner) < 1 or width % heads:
            given = f"{width}, {heads} heads, {layers} layers of {inner}, {outputs} outputs"
            raise InvalidArgument("width", given, "a multiple of the heads, and sizes of at least 1")
        if positions not in get_args(Positions):
            raise InvalidArgument("positions", repr(positions), ", ".join(get_args(Positions)))
        if pooling not in get_args(Pooling):
            raise InvalidArgument("pooling", repr(pooling), ", ".join(get_args(Pooling)))
        check_rate("dropout", dropout)
        check_rate("attention_dropout", attention_dropout)
        depths = decayed("stochastic_depth", stochastic_depth, 2 * layers)
        self.embedding, length = _embedding(input_shape, vocabulary, width)
        self.positions: Tensor
        if positions == "learned":
            self.positions = nn.Parameter(INITIAL_SCALE * torch.randn(length, width))
        else:
            self.register_buffer("positions", sinusoids(length, width))
        self.token = nn.Parameter(INITIAL_SCALE * torch.randn(width)) if pooling == "class" else None
        self.dropout = site(nn.Dropout, check_rate("embedding_dropout", embedding_dropout))
        self.blocks = nn.ModuleList(
            EncoderBlock(width, heads, inner, dropout, attention_dropout, depth)
            for depth in zip(depths[::2], depths[1::2], strict=True)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the raw outputs (B, K) of sequences (B, T, F), images (B, C, H, W) or tokens (B, T).

        `mask` (B, T) is true at the steps that count, and false at padding; a row without any that count is read whole.
        """
        x = self.embedding(inputs if inputs.dim() == 2 else as_sequence(inputs))  # (B, T, width)
        B, T, width = x.shape
        if len(self.positions) < T:
            raise InvalidArgument("inputs", f"{T} steps", f"at most {len(self.positions)}, the T of input_shape")
        x = x + self.positions[:T]
        if mask is not None:
            mask = mask | ~mask.any(1, keepdim=True)  # (B, T); a softmax over nothing is no number
        if self.token is not None:
            x = torch.cat([self.token.expand(B, 1, width), x], 1)  # (B, 1 + T, width)
            mask = None if mask is None else F.pad(mask, (1, 0), value=True)  # (B, 1 + T)
        x = self.dropout(x)
        readable = None if mask is None else mask[:, None, None]  # (B, 1, 1, T)
        for block in self.blocks:
            x = block(x, readable)
        raw: Tensor = self.head(self._pool(self.norm(x), mask))  # (B, K)
        return raw

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.token is not None:
            return x[:, 0]
        if mask is None:
            return x.mean(1)
        weight = mask[..., None].to(x.dtype)  # (B, T, 1)
        return (x * weight).sum(1) / weight.sum(1)


def _embedding(input_shape: tuple[int, ...], vocabulary: int | None, width: int) -> tuple[nn.Module, int]:
    """Return what embeds a step, and the number of steps."""
    if vocabulary is None:
        length, features = sequence_shape(input_shape)
        return nn.Linear(features, width), length
    if vocabulary < 1:
        raise InvalidArgument("vocabulary", vocabulary, "at least 1 token")
    if len(input_shape) != 1 or input_shape[0] < 1:
        raise InvalidArgument("input_shape", tuple(input_shape), "(T,) for tokens of a vocabulary, T at least 1")
    table = nn.Embedding(vocabulary, width)
    nn.init.normal_(table.weight, std=INITIAL_SCALE)
    return table, input_shape[0]
