"""Networks of `transformers` as they are, with random weights: packed, exported to ONNX, held to the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dubito_models.errors import UnsupportedNetwork
from dubito_models.packing import pack
from networks import assert_draws_are_the_original, program_for

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.third_party

WORDS, PAD = 50, 0
BLOCKS = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "hidden_size": 16}
TEXT = {**BLOCKS, "vocab_size": WORDS, "max_position_embeddings": 24, "pad_token_id": PAD}
PICTURE = {**BLOCKS, "image_size": 16, "patch_size": 4}
RATES = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24, "vocab_size": WORDS, "pad_token_id": PAD}
DISTILLED = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 24}

Inputs = Callable[[int, int], dict[str, Tensor]]


def masked_text(rows: int, length: int) -> dict[str, Tensor]:
    """Token ids, the later rows padded at their end, and which are no padding."""
    tokens = plain_text(rows, length)["input_ids"]
    return {"input_ids": tokens, "attention_mask": (tokens != PAD).long()}


def plain_text(rows: int, length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    tokens = torch.randint(3, WORDS, (rows, length), generator=generator)
    for row in range(1, rows):
        tokens[row, length - row :] = PAD
    return {"input_ids": tokens}


def pictures(rows: int, length: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(rows))}


def sound(rows: int, length: int) -> dict[str, Tensor]:
    return {"input_values": torch.randn(rows, 400)}


@dataclass(frozen=True)
class Case:
    """A class, its configuration, and the sites (kind, rate) that follow from it."""

    name: str
    config: str
    sites: list[tuple[str, float]]
    inputs: Inputs = masked_text
    options: Mapping[str, Any] = field(default_factory=dict)
    labels: int = 3

    def build(self, attention: str | None) -> nn.Module:
        more = {} if attention is None else {"attn_implementation": attention}
        settings = getattr(transformers, self.config)(num_labels=self.labels, **self.options, **more)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network: nn.Module = getattr(transformers, self.name)(settings)
            for parameter in network.parameters():  # what starts as zeros or ones, and all of it large enough to matter
                nn.init.normal_(parameter, std=0.3)
        return network

    @property
    def dynamic(self) -> dict[str, dict[int, str]]:
        return {name: {1: "length"} for name, value in self.inputs(2, 5).items() if value.dim() == 2}


def block(attention: float, *others: float) -> list[tuple[str, float]]:
    return [("attention", attention), *(("element", rate) for rate in others)]


BERT = [("element", 0.1), *2 * block(0.2, 0.1, 0.1), ("element", 0.1)]
CASES = {
    "bert": Case("BertForSequenceClassification", "BertConfig", BERT, options={**TEXT, **RATES}),
    "bert, regression": Case("BertForSequenceClassification", "BertConfig", BERT, options={**TEXT, **RATES}, labels=1),
    "distilbert": Case(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        [("element", 0.1), *2 * block(0.2, 0.1), ("element", 0.3)],
        options={**DISTILLED, "vocab_size": WORDS, "attention_dropout": 0.2, "seq_classif_dropout": 0.3},
    ),
    "vit": Case(
        "ViTForImageClassification",
        "ViTConfig",
        [("element", 0.1), *2 * block(0.2, 0.1, 0.1)],
        pictures,
        {**PICTURE, **RATES},
    ),
    "gpt2": Case(
        "GPT2ForSequenceClassification",
        "GPT2Config",
        [("element", 0.1), *2 * block(0.2, 0.1, 0.1)],
        plain_text,
        {**GPT2, "attn_pdrop": 0.2, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False},
    ),
}


SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 2}
BART = {"vocab_size": WORDS, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
SPEECH = {
    **BLOCKS,
    "conv_dim": (8, 8),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
CONVNEXT = {"image_size": 16, "hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2, "drop_path_rate": 0.3}
MORE = {
    "albert: one layer used twice": Case(
        "AlbertForSequenceClassification",
        "AlbertConfig",
        [("element", 0.1), *2 * block(0.2, 0.1), ("element", 0.3)],
        options={**TEXT, **RATES, "embedding_size": 8, "classifier_dropout_prob": 0.3},
    ),
    "llama: causal, shared keys, rotary positions": Case(
        "LlamaForSequenceClassification",
        "LlamaConfig",
        2 * block(0.2),
        plain_text,
        {**TEXT, "num_key_value_heads": 1, "attention_dropout": 0.2, "use_cache": False},
    ),
    "convnext: dropped branches alone": Case(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        [("branch", rate) for rate in (0.1, 0.2, 0.3)],
        pictures,
        CONVNEXT,
    ),
    "swin: windows folded into the rows": Case(
        "SwinForImageClassification",
        "SwinConfig",
        [
            ("element", 0.1),
            *block(0.2, 0.1, 0.1),
            *block(0.2, 0.1),
            *[("branch", 0.1), ("element", 0.1)],
            *block(0.2, 0.1),
            *[("branch", 0.2), ("element", 0.1)],
            *block(0.2, 0.1),
            *[("branch", 0.3), ("element", 0.1)],
        ],
        pictures,
        {**SWIN, **RATES, "drop_path_rate": 0.3},
    ),
}


@pytest.fixture(scope="module")
def built() -> dict[str, nn.Module]:
    return {name: case.build("sdpa") for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_draws_are_the_original_under_the_same_masks(name: str, built: dict[str, nn.Module]) -> None:
    case, module = CASES[name], built[name]
    program = program_for(module, case.inputs(2, 7), output="logits", dynamic=case.dynamic)
    assert [(site.kind, site.rate) for site in program.sites] == case.sites
    for rows, length in [(1, 7), (4, 11), (3, 5)]:
        assert_draws_are_the_original(program, module, case.inputs(rows, length), output="logits")


@pytest.mark.parametrize("name", CASES)
def test_the_standard_path_is_the_original_in_evaluation_mode_by_onnxruntime(
    name: str, built: dict[str, nn.Module], tmp_path: Path
) -> None:
    case, module = CASES[name], built[name]
    task, head = ("regression", "mean") if case.labels == 1 else ("classification", "logits")
    version = pack(
        module,
        case.inputs(2, 7),
        repository=tmp_path,
        name="m",
        task=task,
        head=head,
        output="logits",
        dynamic=case.dynamic,
    )
    assert [(site.kind, site.rate) for site in version.manifest.sites] == case.sites
    for rows, length in [(1, 7), (4, 11)]:
        inputs = case.inputs(rows, length)
        with torch.no_grad():
            expected = module.eval()(**inputs).logits
        found = version.evaluate({key: value.numpy() for key, value in inputs.items()})
        theirs = expected.double().softmax(-1) if case.labels > 1 else expected
        ours = found.probabilities if case.labels > 1 else found.mean
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "distilbert", "vit", "gpt2"])
def test_attention_that_is_written_out_is_found_too(name: str) -> None:
    """Eager attention drops by the function, on weights (B, heads, L, L)."""
    case = CASES[name]
    module = case.build("eager")
    program = program_for(module, case.inputs(2, 7), output="logits", dynamic=case.dynamic)
    assert [site.rate for site in program.sites] == [rate for _, rate in case.sites]
    assert {site.kind for site in program.sites} == {"element"}
    assert_draws_are_the_original(program, module, case.inputs(3, 9), output="logits")


@pytest.mark.parametrize("name", MORE)
def test_others(name: str) -> None:
    case = MORE[name]
    module = case.build(None)
    program = program_for(module, case.inputs(2, 7), output="logits", dynamic=case.dynamic)
    assert [site.kind for site in program.sites] == [kind for kind, _ in case.sites]
    assert [site.rate for site in program.sites] == pytest.approx([rate for _, rate in case.sites], abs=1e-7)
    assert_draws_are_the_original(program, module, case.inputs(3, 9), output="logits")


REFUSED = {
    "no dropout": (
        Case("ResNetForImageClassification", "ResNetConfig", [], pictures, {"depths": [1], "hidden_sizes": [8]}),
        "no active dropout",
    ),
    "reads at a token that the data tell": (
        Case("BartForSequenceClassification", "BartConfig", [], options=BART),
        r"modeling_bart\.py:\d+\): a size that depends on the data",
    ),
    "masks its series by numpy": (
        Case("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", [], sound, SPEECH),
        r"draws from numpy\.random in training mode",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name: str) -> None:
    case, reason = REFUSED[name]
    with pytest.raises(UnsupportedNetwork, match=reason):
        program_for(case.build(None), case.inputs(2, 7), output="logits")
