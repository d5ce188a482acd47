"""Small networks of many kinds, and the oracle: the original module under forced masks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dubito_models.export import as_served, export_network, read_example
from dubito_models.original import pick
from dubito_models.program import StochasticProgram


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


class SelfNormalizing(nn.Module):
    """Alpha dropout of elements and of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 6, 3)
        self.channels = nn.FeatureAlphaDropout(0.2)
        self.linear = nn.Linear(36, 16)
        self.drop = nn.AlphaDropout(0.1)
        self.head = nn.Linear(16, 3)

    def forward(self, series: Tensor) -> Tensor:
        hidden = self.channels(F.selu(self.conv(series))).flatten(1)
        return self.head(self.drop(F.selu(self.linear(hidden))))


class DropPath(nn.Module):
    """A residual branch that is dropped, in the forms that are found in the wild."""

    def __init__(self, rate: float, form: str) -> None:
        super().__init__()
        self.rate, self.form = rate, form

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training:
            return branch
        keep, shape = 1 - self.rate, (branch.shape[0],) + (1,) * (branch.dim() - 1)
        if self.form == "floor":
            return branch.div(keep) * (keep + torch.rand(shape)).floor_()
        decision = branch.new_empty(shape).bernoulli_(keep)
        if self.form == "bernoulli":
            decision.div_(keep)
        return branch * decision


class Residual(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.branches = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.paths = nn.ModuleList(DropPath(rate, form) for rate in (0.1, 0.3, 0.5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        for branch, path in zip(self.branches, self.paths, strict=True):
            hidden = hidden + path(torch.tanh(branch(hidden)))
        return self.head(hidden)


class Recurrent(nn.Module):
    """Stacked LSTM or GRU with dropout between the layers; reads outputs and final states."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], bidirectional: bool) -> None:
        super().__init__()
        self.layers = kind(6, 8, 3, dropout=0.3, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(8 * (2 if bidirectional else 1) + 8, 3)

    def forward(self, series: Tensor) -> Tensor:
        outputs, final = self.layers(series)
        hidden = final[0] if isinstance(final, tuple) else final
        return self.head(torch.cat([outputs.mean(1), hidden[-1]], 1))

    def under(self, series: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Return the answer layer by layer, each a module of its own, with these masks between them."""
        whole = self.layers
        directions = 2 if whole.bidirectional else 1
        current = series
        for layer in range(whole.num_layers):
            single = type(whole)(
                current.shape[-1], whole.hidden_size, 1, batch_first=True, bidirectional=whole.bidirectional
            ).eval()
            names = [name for name, _ in whole.named_parameters() if f"_l{layer}" in name]
            single.load_state_dict({name.replace(f"_l{layer}", "_l0"): getattr(whole, name) for name in names})
            current, final = single(current)
            hidden = final[0] if isinstance(final, tuple) else final
            if layer < whole.num_layers - 1:
                current = current * masks[layer]
        assert hidden.shape[0] == directions
        return self.head(torch.cat([current.mean(1), hidden[-1]], 1))


class LastToken(nn.Module):
    """Picks each row's last token by row number, as GPT-style classifiers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.drop = nn.Dropout(0.2)

    def forward(self, tokens: Tensor) -> Tensor:
        scores = self.head(self.drop(self.embedding(tokens)))
        last = (tokens != 0).sum(1).clamp_min(1) - 1
        return scores[torch.arange(tokens.shape[0]), last]


class DroppedWeights(nn.Module):
    """Dropout on a weight (DropConnect): a site without rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 6))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(F.linear(x, F.dropout(self.weight, 0.3, self.training))))


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


def _rows(rows: int) -> dict[str, Tensor]:
    return {"x": torch.randn(rows, 6)}


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
    "self-normalizing": Case(SelfNormalizing, lambda n: {"series": torch.randn(n, 2, 8)}, "classification", "logits"),
    "path-bernoulli": Case(lambda: Residual("bernoulli"), _rows, "classification", "logits"),
    "path-floor": Case(lambda: Residual("floor"), _rows, "classification", "logits"),
    "path-unscaled": Case(lambda: Residual("unscaled"), _rows, "classification", "logits"),
    "lstm": Case(
        lambda: Recurrent(nn.LSTM, False), lambda n: {"series": torch.randn(n, 5, 6)}, "classification", "logits"
    ),
    "gru-bidirectional": Case(
        lambda: Recurrent(nn.GRU, True), lambda n: {"series": torch.randn(n, 5, 6)}, "classification", "logits"
    ),
    "last-token": Case(
        LastToken,
        lambda n: {"tokens": torch.randint(0, 20, (n, 7))},
        "classification",
        "logits",
        {"dynamic": {"tokens": {1: "length"}}},
    ),
    "dropped-weights": Case(DroppedWeights, _rows, "classification", "logits"),
    "two-inputs": Case(
        TwoInputs,
        lambda n: {"tokens": torch.randint(0, 20, (n, 7)), "features": torch.randn(n, 3)},
        "regression",
        "mean",
        {"output": "price", "dynamic": {"tokens": {1: "length"}}, "fan_out": 1},
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


@contextlib.contextmanager
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
        if mask.dim() == 1 and value.dim() == 3:  # features that are dropped for all time steps alike
            return mask
        return mask.unsqueeze(1 if sequence_first and value.dim() == 3 else 0)

    def take() -> Tensor:
        used.append(len(used))
        return queue.pop(0)

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return input
        mask = spread(take(), input)
        return input.mul_(mask) if inplace else input * mask

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
            return attend(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if enable_gqa:
            key, value = (heads.repeat_interleave(query.shape[-3] // key.shape[-3], -3) for heads in (key, value))
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        scores = (query * factor) @ key.transpose(-2, -1)
        if is_causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        elif attn_mask is not None:
            scores = scores + attn_mask
        weights = torch.softmax(scores, -1)
        blind = (scores == float("-inf")).all(-1, keepdim=True)  # a query that may look at nothing
        weights = torch.where(blind, 0.0, weights)
        return (weights * spread(take(), weights)) @ value

    def alpha(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """As torch orders it: input * (a d) + b, where b also holds what dropped units take."""
        if not training:
            return input
        mask, limit = take(), 1.7580993408473766
        mask = mask.reshape(1, *mask.shape, *(1,) * (input.dim() - 1 - mask.dim()))
        a = 1.0 / ((limit**2 * p + 1) * (1 - p)) ** 0.5
        return input * (mask * a) + ((mask - 1) * (limit * a) + limit * a * p)

    def bernoulli_(decision: Tensor, p: float) -> Tensor:
        return decision.copy_(spread(take(), decision))

    def rand(shape: tuple[int, ...], **_: object) -> Tensor:
        """Lands keep + rand above 1 where the mask keeps, below where it drops, for any rate that is used here."""
        return (take() * 0.95).unsqueeze(0).expand(shape).clone()

    patches = {"dropout": dropout, "dropout1d": channels, "dropout2d": channels, "dropout3d": channels,
               "scaled_dot_product_attention": attention, "alpha_dropout": alpha,
               "feature_alpha_dropout": alpha}  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name, patch in patches.items():
            stack.enter_context(mock.patch.object(F, name, patch))
        stack.enter_context(mock.patch.object(Tensor, "bernoulli_", bernoulli_))
        stack.enter_context(mock.patch.object(torch, "rand", rand))
        yield used


def thinned(name: str, network: nn.Module, inputs: Mapping[str, Tensor], masks: Sequence[Tensor]) -> Tensor:
    """Return what the original module says of inputs under forced masks; norm layers keep their statistics."""
    if isinstance(network, Recurrent):
        with torch.no_grad():
            return network.under(inputs["series"], masks)
    network.train()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    with torch.no_grad(), forced_masks(masks, sequence_first=name == "encoder-sequence-first") as used:
        answer = network(**inputs)
    assert len(used) == len(masks), "every mask was used"
    output = CASES[name].options.get("output")
    return answer if output is None else answer[output]


def program_for(
    module: nn.Module,
    inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    *,
    output: Any = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    **options: Any,
) -> StochasticProgram:
    """Cut a module into prefix and suffix without packing it; `options` of the program."""
    example = read_example(module, inputs, dynamic)
    exported = export_network(module, example, output)
    free = {name: example.free.get(name, {}) for name in example.inputs}
    return StochasticProgram(exported.stochastic, free, exported.output, **options)


def under_masks(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    masks: Sequence[Tensor],
    *,
    output: Any = None,
    sequence_first: bool = False,
) -> Tensor:
    """Return what any module says in training mode under forced masks; norm layers keep their statistics."""
    modes = [(part, part.training) for part in module.modules()]
    for part, _ in modes:
        part.training = not _keeps_statistics(part)
    with torch.no_grad(), forced_masks(masks, sequence_first=sequence_first) as used:
        answer = module(**inputs)
    for part, mode in modes:
        part.training = mode
    assert len(used) == len(masks), "every mask was used"
    return pick(answer, output)


def _keeps_statistics(part: nn.Module) -> bool:
    """Tell whether training mode would change what the part does at the next call."""
    hooks = [type(hook).__name__ for hook in part._forward_pre_hooks.values()]
    return hasattr(part, "running_mean") or "SpectralNorm" in hooks or type(part).__name__ == "_SpectralNorm"


def random_masks(program: StochasticProgram, symbols: Mapping[str, int], draws: int, seed: int = 0) -> list[Tensor]:
    """Return masks (S, ...) of independent units, of torch's own generator, for every site."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.rand((draws, *shape), generator=generator) >= site.rate) * torch.tensor(site.kept)
        for site, shape in zip(program.sites, program.mask_shapes(symbols), strict=True)
    ]


def assert_draws_are_the_original(
    program: StochasticProgram,
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    output: Any = None,
    sequence_first: bool = False,
    draws: int = 3,
) -> None:
    """Hold draws, one by one and at once, to the module under the same masks; all bypassed to its evaluation mode."""
    with torch.inference_mode():
        boundary = program.prefix(inputs)
        masks = random_masks(program, boundary.symbols, draws)
        together = program.many(boundary, masks)
        calm = program.suffix(boundary, program.bypass(boundary.symbols))
    for draw in range(draws):
        chosen = [mask[draw] for mask in masks]
        with torch.inference_mode():
            alone = program.suffix(boundary, chosen)
        theirs = under_masks(module, inputs, chosen, output=output, sequence_first=sequence_first)
        torch.testing.assert_close(alone, theirs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together[draw], theirs, rtol=1e-5, atol=1e-6)
    was = module.training
    with as_served():
        expected = pick(module.eval()(**inputs), output)
    module.train(was)
    torch.testing.assert_close(calm, expected, rtol=1e-5, atol=1e-6)
