"""Recurrent layers over many draws at once: the same as one draw after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dubito_models.errors import UnsupportedNetwork
from dubito_models.kernels import OurKernels
from dubito_models.layers import VariationalGRU, VariationalLSTM
from dubito_models.packing import pack
from dubito_models.predictive import Classification
from networks import assert_draws_are_the_original, program_for, random_masks

KINDS = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
}


class Tagger(nn.Module):
    """Dropout on what a recurrent layer reads; its outputs and its last states are read, too."""

    def __init__(self, rnn: nn.RNNBase, *, given: bool) -> None:
        super().__init__()
        self.rnn, self.given = rnn, given
        self.head = nn.Linear(rnn.hidden_size * (2 if rnn.bidirectional else 1) + rnn.hidden_size, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(x, 0.4, self.training)
        x = x if self.rnn.batch_first else x.transpose(0, 1)
        first = None
        if self.given:
            zeros = x.new_ones(self.rnn.num_layers * (2 if self.rnn.bidirectional else 1), x.shape[1], 5)
            first = (zeros, zeros * 0.5) if isinstance(self.rnn, nn.LSTM) else zeros
        out, last = self.rnn(x, first)
        out = (out if self.rnn.batch_first else out.transpose(0, 1)).mean(1)
        state = last[1] if isinstance(self.rnn, nn.LSTM) else last
        return self.head(torch.cat([out, state[-1]], -1))


def assert_together_as_alone(module: nn.Module, rows: Tensor) -> None:
    program = program_for(module, rows)
    with torch.inference_mode():
        boundary = program.prefix({"x": rows})
        masks = random_masks(program, boundary.symbols, draws=6)
        together = program.many(boundary, masks)
        alone = torch.stack([program.suffix(boundary, [mask[draw] for mask in masks]) for draw in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert alone.std(0).min() > 0


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("options", [
    {"batch_first": True}, {"batch_first": False, "bidirectional": True}, {"batch_first": True, "num_layers": 2},
])  # fmt: skip
def test_draws_that_share_the_weights_ride_the_rows(name: str, options: dict[str, bool | int]) -> None:
    torch.manual_seed(0)
    kind, more = KINDS[name]
    given = not options["batch_first"]
    assert_together_as_alone(Tagger(kind(4, 5, **more, **options), given=given), torch.randn(3, 7, 4))


@pytest.mark.parametrize("kind", [VariationalLSTM, VariationalGRU])
def test_masks_locked_in_time_ride_the_rows(kind: type[VariationalLSTM] | type[VariationalGRU]) -> None:
    torch.manual_seed(0)
    locked = kind(4, 5, num_layers=2, batch_first=True, bidirectional=True, input_dropout=0.2, output_dropout=0.1)
    assert_together_as_alone(Tagger(locked, given=False), torch.randn(3, 7, 4))


@pytest.mark.parametrize("kind", [VariationalLSTM, VariationalGRU])
def test_masked_recurrent_weights_are_looped(kind: type[VariationalLSTM] | type[VariationalGRU]) -> None:
    """A version whose draws have weights of their own says so at its audit, and is served draw by draw."""
    network = Tagger(kind(4, 5, batch_first=True, hidden_dropout=0.2), given=False)
    program = program_for(network, torch.randn(3, 7, 4))
    boundary = program.prefix({"x": torch.randn(3, 7, 4)})
    with pytest.raises(RuntimeError):
        program.many(boundary, random_masks(program, boundary.symbols, draws=2))


def test_dropout_between_the_layers_of_a_stack() -> None:
    torch.manual_seed(0)
    rnn = nn.LSTM(4, 5, num_layers=3, dropout=0.5, batch_first=True)
    assert_together_as_alone(Tagger(rnn, given=False), torch.randn(3, 7, 4))


class Folding(nn.Module):
    """Folds time into the rows by a view, which only takes values that lie in memory as their axes say."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(x, 0.4, self.training)
        out, last = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))
        outer, inner, width = out.shape
        steps = self.head(out.contiguous().view(-1, width)).view(outer, inner, 2)
        state = last[0] if isinstance(self.rnn, nn.LSTM) else last
        both = torch.tanh(state.contiguous().view(-1, 5)).view(2, -1, 5).sum((0, 2))
        return steps.mean(1 if self.rnn.batch_first else 0) + both.unsqueeze(1)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("batch_first", [True, False])
def test_what_a_layer_returns_lies_in_memory_as_the_graph_thinks(
    kind: type[nn.LSTM] | type[nn.GRU], batch_first: bool
) -> None:
    """While exporting, `contiguous` of a value that is so already vanishes; a view behind it must do without."""
    torch.manual_seed(0)
    module, rows = Folding(kind(4, 5, batch_first=batch_first, bidirectional=True)), torch.randn(3, 7, 4)
    assert_together_as_alone(module, rows)
    assert_draws_are_the_original(program_for(module, rows), module, {"x": rows})


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("options", [
    {"batch_first": True, "bias": False},
    {"batch_first": False, "bidirectional": True, "num_layers": 2, "dropout": 0.2},
])  # fmt: skip
def test_sequences_of_any_length(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Packed at 7 steps, served at 2 and 30: ONNX is torch's own layer there, and masks grow with the sequence."""
    torch.manual_seed(0)
    kind, more = KINDS[name]
    module = Tagger(kind(4, 5, **more, **options), given=not options["batch_first"])
    version = pack(
        module, torch.randn(3, 7, 4), repository=tmp_path, name=name, task="classification", head="logits",
        dynamic={"x": {1: "steps"}},
    )  # fmt: skip
    for steps in (2, 30):
        rows = torch.randn(4, steps, 4)
        with torch.no_grad():
            expected = module.eval()(rows).softmax(-1)
        np.testing.assert_allclose(version.evaluate(rows.numpy()).probabilities, expected, rtol=1e-5, atol=1e-6)
        answer = version.predict(rows.numpy()).answer
        assert isinstance(answer, Classification)
        assert answer.mutual_information is not None
        assert answer.mutual_information.max() > 1e-5
    assert ("steps", "4") in {site.shape for site in version.manifest.sites}


@pytest.mark.parametrize(("network", "dtype", "reason"), [
    (nn.GRU(4, 5), torch.float64, "a recurrent layer of float64, which onnxruntime cannot run"),
    (nn.LSTM(4, 5, proj_size=3), torch.float32, r"proj_size=\.\.\.\) has no ONNX form"),
])  # fmt: skip
def test_what_onnx_cannot_run_is_refused_with_advice(network: nn.Module, dtype: torch.dtype, reason: str) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = network.to(dtype)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.rnn(x.transpose(0, 1))[0][-1], 0.5, self.training)

    with pytest.raises(UnsupportedNetwork, match=reason):
        program_for(Last(), torch.randn(3, 7, 4, dtype=dtype))


def test_packed_sequences_are_left_to_torch() -> None:
    """And a stack that is not exported is torch's own."""
    lengths, x = torch.tensor([3, 2]), torch.randn(2, 3, 4)
    rnn = nn.GRU(4, 5, batch_first=True)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    with OurKernels():
        found, _ = rnn(packed)
    torch.testing.assert_close(found.data, rnn(packed)[0].data)
