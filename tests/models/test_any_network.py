"""However a network writes its dropout, it is found, and a draw is that network under the same masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import Recurrent, assert_draws_are_the_original, build, program_for, random_masks, sample

Found = list[tuple[str, float, tuple[str, ...]]]


class Around(nn.Module):
    """A linear layer, what is tried, the mean over time where there is time, and a linear head."""

    def __init__(self, core: Callable[..., Tensor] | nn.Module, width: int = 8) -> None:
        super().__init__()
        self.first, self.core, self.head = nn.Linear(6, 8), core, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        core = self.core(hidden) if isinstance(self.core, nn.Module) else self.core(hidden, self.training)
        return self.head(core if core.dim() == 2 else core.mean(1))


class Attention(nn.Module):
    """Attention by the functional operator: `options(x)` are its further arguments."""

    def __init__(self, options: Callable[[Tensor], dict[str, Any]], heads: int = 2, shared: int = 1) -> None:
        super().__init__()
        self.queries, self.keys, self.values = nn.Linear(8, 8), nn.Linear(8, 8 // shared), nn.Linear(8, 8 // shared)
        self.options, self.heads, self.shared = options, heads, shared

    def forward(self, x: Tensor) -> Tensor:
        def split(value: Tensor, heads: int) -> Tensor:
            return value.unflatten(-1, (heads, -1)).transpose(1, 2) if heads else value

        query = split(self.queries(x), self.heads)
        key, value = (split(layer(x), self.heads // self.shared) for layer in (self.keys, self.values))
        rate = 0.2 if self.training else 0.0
        hidden = F.scaled_dot_product_attention(query, key, value, dropout_p=rate, **self.options(x))
        return hidden.transpose(1, 2).flatten(2) if self.heads else hidden


class SelfAttention(nn.Module):
    """torch's own module, with padding told by which inputs are 0."""

    def __init__(self, need_weights: bool, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True, **options)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        padding = x[..., 0] > 1.0
        return self.attention(x, x, x, key_padding_mask=padding, need_weights=self.need_weights)[0]


class Encoder(nn.Module):
    """torch's encoder with a padding mask, a causal mask or both; rows first or second."""

    def __init__(self, causal: str = "", padded: bool = False, batch_first: bool = True, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=batch_first, **options)
        fused = batch_first and not options  # what torch would run in one operator, over nested tensors
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=fused)
        self.causal, self.padded, self.batch_first = causal, padded, batch_first

    def forward(self, x: Tensor) -> Tensor:
        named: dict[str, Any] = {}
        if self.causal:
            floats = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            named["mask"] = floats if "float" in self.causal else floats < 0
        if "said" in self.causal:
            named["is_causal"] = True
        if self.padded:
            padding = x[..., 0] > 1.0
            named["src_key_padding_mask"] = padding & ~padding.all(1, keepdim=True)
        if self.batch_first:
            return self.encoder(x, **named)
        return self.encoder(x.transpose(0, 1), **named).transpose(0, 1)


class Decoder(nn.Module):
    """torch's whole transformer: a decoder with a causal mask that nobody says is causal."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Transformer(8, 2, 1, 1, 16, 0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        later = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.whole(x, x[:, :3], tgt_mask=later[:3, :3])


def kept(shape: tuple[int, ...], like: Tensor, keep: float) -> Tensor:
    return torch.empty(shape, dtype=like.dtype).bernoulli_(keep)


def stochastic_depth(mode: str) -> Callable[[Tensor, bool], Tensor]:
    """A residual branch that is dropped, per row or for the whole batch: `bernoulli_`, `div_`, product."""

    def branch(h: Tensor, training: bool) -> Tensor:
        value = torch.tanh(h)
        if training:
            rows = h.shape[0] if mode == "row" else 1
            decision = kept((rows, *(1,) * (h.dim() - 1)), h, 0.7)
            decision.div_(0.7)
            value = value * decision
        return h + value

    return branch


def locked(h: Tensor, training: bool) -> Tensor:
    """One mask for all time steps, as language models have it."""
    return h * (kept((h.shape[0], 1, h.shape[2]), h, 0.75) / 0.75).expand_as(h) if training else h


def by_hand(h: Tensor, training: bool) -> Tensor:
    return h * kept(tuple(h.shape), h, 0.75) / 0.75 if training else h


def by_hand_scaled(h: Tensor, training: bool) -> Tensor:
    return h * kept(tuple(h.shape), h, 0.75).mul_(1 / 0.75) if training else h


def loop(h: Tensor, training: bool) -> Tensor:
    for _ in range(3):
        h = F.dropout(torch.tanh(h), 0.3, training)
    return h


class DroppedWeight(nn.Module):
    """DropConnect by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if self.training:
            weight = weight * kept((8, 8), weight, 0.75) / 0.75
        return F.linear(x, weight)


class Twice(nn.Module):
    """One nn.Dropout, used in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(torch.tanh(self.drop(x)))


def inplace(h: Tensor, training: bool) -> Tensor:
    F.dropout(h, 0.3, training, inplace=True)
    return h + 1


def folded(h: Tensor, training: bool) -> Tensor:
    """Time folded into the rows, and back."""
    flat = F.dropout(torch.tanh(h.flatten(0, 1)), 0.3, training)
    return flat.unflatten(0, (h.shape[0], h.shape[1]))


def channels(h: Tensor, training: bool) -> Tensor:
    return F.feature_alpha_dropout(h.transpose(1, 2), 0.2, training).transpose(1, 2)


def no_gradients(h: Tensor, training: bool) -> Tensor:
    with torch.no_grad():
        h = torch.tanh(h)
        with torch.enable_grad():
            h = F.dropout(h, 0.3, training)
    with torch.autocast("cpu", enabled=False):
        return F.dropout(h * 2, 0.3, training)


def checkpointed(h: Tensor, training: bool) -> Tensor:
    def inside(value: Tensor) -> Tensor:
        return F.dropout(torch.tanh(value), 0.3, training)

    return torch.utils.checkpoint.checkpoint(inside, h, use_reentrant=False)


@dataclass(frozen=True)
class Form:
    """A way to write dropout, for rows or for series of rows; the sites that it must give."""

    core: Callable[[], Any]
    sites: Found
    series: bool = True
    free: bool = False  # whether the length is left free
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return Around(self.core())

    def inputs(self, rows: int, length: int = 5) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(rows)
        return {"x": torch.randn((rows, length, 6) if self.series else (rows, 6), generator=generator)}


def attention(heads: int, length: str = "5") -> Found:
    return [("attention", 0.2, (*([str(heads)] if heads else []), length, length))]


BLOCK: Found = [
    ("attention", 0.1, ("2", "5", "5")),
    ("element", 0.1, ("5", "8")),
    ("element", 0.1, ("5", "16")),
    ("element", 0.1, ("5", "8")),
]
FREE_BLOCK: Found = [(kind, rate, tuple("length" if s == "5" else s for s in shape)) for kind, rate, shape in BLOCK]


def said_nothing(x: Tensor) -> dict[str, Any]:
    return {}


def told(**options: Any) -> Callable[[Tensor], dict[str, Any]]:
    return lambda x: options


FORMS: dict[str, Form] = {
    "used twice": Form(Twice, [("element", 0.25, ("8",))] * 2, series=False),
    "loop": Form(lambda: loop, [("element", 0.3, ("8",))] * 3, series=False),
    "in place": Form(lambda: inplace, [("element", 0.3, ("8",))], series=False),
    "rate 0 beside": Form(
        lambda: nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.3)), [("element", 0.3, ("8",))], series=False
    ),
    "folded": Form(lambda: folded, [("element", 0.3, ("length", "8"))], free=True),
    "feature alpha": Form(lambda: channels, [("channel_alpha", 0.2, ("8",))]),
    "by hand": Form(lambda: by_hand, [("element", 0.25, ("length", "8"))], free=True),
    "by hand, scaled": Form(lambda: by_hand_scaled, [("element", 0.25, ("8",))], series=False),
    "locked": Form(lambda: locked, [("element", 0.25, ("1", "8"))], free=True),
    "weight by hand": Form(DroppedWeight, [("weight", 0.25, ("8", "8"))], series=False),
    "depth by row": Form(lambda: stochastic_depth("row"), [("branch", 0.3, ("1", "1"))], free=True),
    "depth by batch": Form(lambda: stochastic_depth("batch"), [("branch", 0.3, ("1", "1", "1"))]),
    "gradients switched": Form(lambda: no_gradients, [("element", 0.3, ("8",))] * 2, series=False),
    "checkpointed": Form(lambda: checkpointed, [("element", 0.3, ("8",))], series=False),
    "attention": Form(lambda: Attention(said_nothing), attention(2, "length"), free=True),
    "attention, boolean mask": Form(
        lambda: Attention(lambda x: {"attn_mask": (x[..., 0] < 1.0)[:, None, None]}), attention(2)
    ),
    "attention, nothing to see": Form(
        lambda: Attention(lambda x: {"attn_mask": (x[..., 0] < -9.0)[:, None, None]}), attention(2)
    ),
    "attention, float mask": Form(
        lambda: Attention(lambda x: {"attn_mask": (x @ x.transpose(1, 2))[:, None]}), attention(2)
    ),
    "attention, causal and scaled": Form(
        lambda: Attention(told(is_causal=True, scale=0.1)), attention(2, "length"), free=True
    ),
    "attention, shared keys": Form(lambda: Attention(told(enable_gqa=True), 4, 2), attention(4)),
    "attention without heads": Form(lambda: Attention(said_nothing, 0), attention(0)),
    "module": Form(lambda: SelfAttention(False), attention(2)),
    "module with weights": Form(lambda: SelfAttention(True), [("element", 0.2, ("2", "5", "5"))]),
    "module with added keys": Form(
        lambda: SelfAttention(True, add_bias_kv=True, add_zero_attn=True), [("element", 0.2, ("2", "5", "7"))]
    ),
    "encoder, padded": Form(lambda: Encoder(padded=True), FREE_BLOCK, free=True),
    "encoder, rows second, padded": Form(
        lambda: Encoder(padded=True, batch_first=False), BLOCK, options={"sequence_first": True}
    ),
    "encoder, causal, not said": Form(lambda: Encoder("boolean"), BLOCK),
    "encoder, causal, said": Form(lambda: Encoder("float, said"), FREE_BLOCK, free=True),
    "encoder, causal and padded": Form(lambda: Encoder("boolean", padded=True, norm_first=True), BLOCK),
    "decoder": Form(
        Decoder,
        [
            *BLOCK,
            *[("attention", 0.1, ("2", "3", "3")), ("element", 0.1, ("3", "8"))],
            *[("attention", 0.1, ("2", "3", "5")), ("element", 0.1, ("3", "8"))],
            *[("element", 0.1, ("3", "16")), ("element", 0.1, ("3", "8"))],
        ],
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_way_to_write_dropout_is_found_and_draws_are_the_network_under_the_same_masks(name: str) -> None:
    form, module = FORMS[name], FORMS[name].build()
    dynamic = {"x": {1: "length"}} if form.free else None
    program = program_for(module, form.inputs(3), dynamic=dynamic)
    assert [(site.kind, site.rate, site.shape) for site in program.sites] == form.sites
    for rows, length in [(1, 5), (4, 5), *([(2, 9), (3, 2)] if form.free else [])]:
        assert_draws_are_the_original(program, module, form.inputs(rows, length), **form.options)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_between_recurrent_layers_of_every_kind(kind: type[nn.LSTM], bidirectional: bool) -> None:
    module, inputs = Recurrent(kind, bidirectional).eval(), {"series": torch.randn(3, 5, 6)}
    program = program_for(module, inputs)
    assert [(site.rate, site.shape) for site in program.sites] == [(0.3, ("5", str(8 * (1 + bidirectional))))] * 2
    with torch.inference_mode():
        boundary = program.prefix(inputs)
        for draw in zip(*random_masks(program, boundary.symbols, 3), strict=True):
            torch.testing.assert_close(program.suffix(boundary, draw), module.under(inputs["series"], draw))


@pytest.mark.parametrize("frozen", [False, True])
def test_the_fused_encoder_swallows_no_dropout_and_its_switch_is_put_back(frozen: bool) -> None:
    """In evaluation mode, or frozen, torch would run the whole layer as one operator, which has no dropout."""
    module = build("encoder").eval()
    for parameter in module.parameters():
        parameter.requires_grad_(not frozen)
    fused = torch.backends.mha.get_fastpath_enabled()
    program = program_for(module, sample("encoder", 2))
    assert len(program.sites) == 8
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert torch.is_grad_enabled()
    assert_draws_are_the_original(program, module, sample("encoder", 3))


def test_draws_do_not_depend_on_a_padded_input_s_padding() -> None:
    """Masks are cut by position, so a row that is padded and masked says what it says alone."""
    form = FORMS["encoder, padded"]
    module = form.build()

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            inner: Any = self.inner
            hidden = inner.core.encoder(inner.first(x), src_key_padding_mask=padding)
            shown = (~padding).unsqueeze(-1)
            return inner.head((hidden * shown).sum(1) / shown.sum(1))

    network = Masked()
    x, padding = torch.randn(2, 7, 6), torch.zeros(2, 7, dtype=torch.bool)
    padding[:, 5:] = True
    program = program_for(network, {"x": x, "padding": padding}, dynamic={"x": {1: "length"}, "padding": {1: "length"}})
    with torch.inference_mode():
        padded = program.prefix({"x": x, "padding": padding})
        alone = program.prefix({"x": x[:, :5], "padding": padding[:, :5]})
        masks = [mask[0] for mask in random_masks(program, padded.symbols, 1)]
        cut = [
            mask[..., :5, :5] if site.kind == "attention" else mask[:5]
            for mask, site in zip(masks, program.sites, strict=True)
        ]
        torch.testing.assert_close(program.suffix(padded, masks), program.suffix(alone, cut), rtol=0, atol=1e-5)
