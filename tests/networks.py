"""Small networks of many kinds, and the oracle: the original module under forced masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Convolutional(nn.Module):
    """Spatial dropout as a module, element dropout as a function, batch norm before both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout2d(0.25)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.drop(F.relu(self.norm(self.conv1(images))))
        hidden = F.max_pool2d(F.relu(self.conv2(hidden)), 2).flatten(1)
        return self.head(F.dropout(hidden, 0.5, self.training))


class HeadOnly(nn.Module):
    """One dropout before the head: everything else is prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten())
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8 * 16, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.drop(self.body(images)))


class Encoder(nn.Module):
    """A stock transformer encoder: attention's own dropout_p, element dropout in the blocks."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)
        self.batch_first = batch_first

    def forward(self, series: Tensor) -> Tensor:
        inner = series if self.batch_first else series.transpose(0, 1)
        hidden = self.encoder(inner)
        return self.head(hidden.mean(1 if self.batch_first else 0))


class WeightedAttention(nn.Module):
    """nn.MultiheadAttention with weights: its site has heads folded into the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, series: Tensor) -> Tensor:
        hidden, _ = self.attention(series, series, series, need_weights=True)
        return self.head(hidden.mean(1))


class Causal(nn.Module):
    """scaled_dot_product_attention, causal, with a scale of its own; in-place activations and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.drop = nn.Dropout(0.3, inplace=True)
        self.head = nn.Linear(8, 2)

    def forward(self, series: Tensor) -> Tensor:
        query, key, value = self.qkv(series).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        hidden = F.scaled_dot_product_attention(
            query, key, value, dropout_p=0.2 if self.training else 0.0, is_causal=True, scale=0.3
        )
        hidden = hidden.transpose(1, 2).flatten(2).mean(1)
        return self.head(self.drop(F.relu_(hidden)))


class TwoInputs(nn.Module):
    """Token ids and features in, a mapping out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.mix = nn.Linear(8 + 3, 16)
        self.drop = nn.Dropout1d(0.2)
        self.head = nn.Linear(16, 1)

    def forward(self, tokens: Tensor, features: Tensor) -> dict[str, Tensor]:
        embedded = self.drop(self.embedding(tokens).transpose(1, 2)).mean(-1)
        hidden = torch.tanh(self.mix(torch.cat([embedded, features], -1)))
        return {"hidden": hidden, "price": self.head(F.dropout(hidden, 0.1, self.training))}


@dataclass(frozen=True)
class Case:
    """A network, how to make inputs for it, and how it is packed."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], dict[str, Tensor]]
    task: str
    head: str
    options: Mapping[str, Any] = field(default_factory=dict)


def mlp(width: int = 32, rate: float = 0.2, classes: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, width), nn.ReLU(), nn.Dropout(rate), nn.Linear(width, width), nn.ReLU(), nn.Dropout(rate),
        nn.Linear(width, classes),
    )  # fmt: skip


def _images(rows: int) -> dict[str, Tensor]:
    return {"images": torch.randn(rows, 1, 8, 8)}


def _series(rows: int) -> dict[str, Tensor]:
    return {"series": torch.randn(rows, 5, 16)}


CASES: dict[str, Case] = {
    "mlp": Case(mlp, lambda n: {"input": torch.randn(n, 6)}, "classification", "logits"),
    "cnn": Case(Convolutional, _images, "classification", "logits"),
    "head-only": Case(HeadOnly, _images, "classification", "logits"),
    "encoder": Case(lambda: Encoder(True), _series, "classification", "logits", {"dynamic": {"series": {1: "length"}}}),
    "encoder-sequence-first": Case(lambda: Encoder(False), _series, "classification", "logits"),
    "weighted-attention": Case(
        WeightedAttention, lambda n: {"series": torch.randn(n, 5, 8)}, "classification", "logits"
    ),
    "causal": Case(Causal, lambda n: {"series": torch.randn(n, 5, 8)}, "classification", "logits"),
    "two-inputs": Case(
        TwoInputs,
        lambda n: {"tokens": torch.randint(0, 20, (n, 7)), "features": torch.randn(n, 3)},
        "regression",
        "mean",
        {"output": "price", "dynamic": {"tokens": {1: "length"}}},
    ),
}


def build(name: str) -> nn.Module:
    """Build a case's network with fixed weights and batch statistics that are not trivial."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = CASES[name].build()
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2.0)
        return network


def sample(name: str, rows: int, seed: int = 2) -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CASES[name].inputs(rows)


@contextmanager
def forced_masks(masks: Sequence[Tensor], *, sequence_first: bool = False) -> Iterator[list[int]]:
    """Run modules with every active dropout replaced by a product with the next given mask.

    Patches torch.nn.functional, so that modules, functions and attention all pass through; attention is written out
    as the textbook has it. Yields a list that gets the number of masks used.
    """
    queue = list(masks)
    used: list[int] = []
    attend = F.scaled_dot_product_attention

    def spread(mask: Tensor, value: Tensor) -> Tensor:
        if mask.dim() == value.dim():  # heads folded into the rows, row by row
            return mask.repeat(value.shape[0] // mask.shape[0], *(1,) * (mask.dim() - 1))
        return mask.unsqueeze(1 if sequence_first and value.dim() == 3 else 0)

    def take() -> Tensor:
        used.append(len(used))
        return queue.pop(0)

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return input * spread(take(), input) if training and p > 0 else input

    def channels(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return input
        mask = take()
        return input * mask.reshape(1, -1, *(1,) * (input.dim() - 2))

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        if dropout_p == 0.0:
            return attend(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        scores = (query * factor) @ key.transpose(-2, -1)
        if is_causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        if attn_mask is not None:
            scores = scores + attn_mask
        weights = torch.softmax(scores, -1)
        return (weights * spread(take(), weights)) @ value

    patches = {"dropout": dropout, "dropout1d": channels, "dropout2d": channels, "dropout3d": channels,
               "scaled_dot_product_attention": attention}  # fmt: skip
    originals = {name: getattr(F, name) for name in patches}
    try:
        for name, patch in patches.items():
            setattr(F, name, patch)
        yield used
    finally:
        for name, original in originals.items():
            setattr(F, name, original)


def thinned(name: str, network: nn.Module, inputs: Mapping[str, Tensor], masks: Sequence[Tensor]) -> Tensor:
    """Return what the original module says of inputs under forced masks; norm layers keep their statistics."""
    network.train()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    with torch.no_grad(), forced_masks(masks, sequence_first=name == "encoder-sequence-first") as used:
        answer = network(**inputs)
    assert len(used) == len(masks), "every mask was used"
    output = CASES[name].options.get("output")
    return answer if output is None else answer[output]
