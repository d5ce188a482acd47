"""LSTM and GRU with dropout that is locked in time, and with dropped recurrent weights.

Gal & Ghahramani 2016, "A Theoretically Grounded Application of Dropout in Recurrent Neural Networks": one mask per
sequence, the same at every time step, on what a layer reads (z_x) and on its own previous state (z_h), tied over the
gates. Merity, Keskar & Socher 2018, "Regularizing and Optimizing LSTM Language Models", section 2:
DropConnect on the recurrent weight, one mask per forward pass for all rows and time steps.

The two meet. With h masked elementwise by m (H,), the recurrent product is W_hh (m * h) = (W_hh * m[None, :]) h at
every step: **a time-locked mask on the hidden state is a column mask on W_hh**, the same for all gates. The carry of
a GRU (z * h) and the cell of an LSTM read the state unmasked, so the identity is exact. A row of its own needs a mask
of its own in training, hence the loop over time below; one draw shares its masks between rows, so a packed network
holds the column mask on the weight and the stock kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dubito_models.errors import InvalidArgument
from dubito_models.layers.rates import check_rate

States = tuple[Tensor, ...]  # h of a GRU; h and c of an LSTM


def _check(x: Tensor, batch_first: bool) -> None:
    if not isinstance(x, Tensor) or x.dim() != 3:
        given = f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InvalidArgument("x", given, "a tensor (B, T, input_size)" if batch_first else "(T, B, input_size)")


def _lock(x: Tensor, rate: float) -> Tensor:
    """Multiply x (T, B, F) by one mask (1, B, F) for all time steps."""
    return x * F.dropout(x.new_ones((1, *x.shape[1:])), rate, True) if rate else x


def _weights(rnn: VariationalLSTM | VariationalGRU, layer: int, direction: int) -> list[Tensor]:
    """Return a layer's W_ih, W_hh (its entries dropped where asked) and, where it has them, b_ih and b_hh."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if rnn.bias else ("weight_ih", "weight_hh")
    weights: list[Tensor] = [getattr(rnn, f"{name}_l{layer}{'_reverse' if direction else ''}") for name in names]
    if rnn.weight_dropout:
        weights[1] = F.dropout(weights[1], rnn.weight_dropout, True)
    return weights


def _run(rnn: VariationalLSTM | VariationalGRU, x: Tensor, states: States) -> tuple[Tensor, States]:
    """Run all layers in training; states and last states are (layers * directions, B, H) each."""
    x = x.transpose(0, 1) if rnn.batch_first else x  # (T, B, F)
    directions = 2 if rnn.bidirectional else 1
    last: list[States] = []
    for layer in range(rnn.num_layers):
        x = _lock(x, rnn.input_dropout)
        outputs = []
        for direction in range(directions):
            first = tuple(state[layer * directions + direction] for state in states)  # (B, H) each
            weights = _weights(rnn, layer, direction)
            output, state = rnn.scan(x.flip(0) if direction else x, first, weights)  # (T, B, H)
            outputs.append(output.flip(0) if direction else output)
            last.append(state)
        x = torch.cat(outputs, -1)  # (T, B, H * directions)
    x = _lock(x, rnn.output_dropout)
    return x.transpose(0, 1) if rnn.batch_first else x, tuple(torch.stack(each) for each in zip(*last, strict=True))


def _loop(
    rnn: VariationalLSTM | VariationalGRU, x: Tensor, states: States, weights: list[Tensor]
) -> tuple[Tensor, States]:
    """Run one layer step by step, the state that its recurrent product reads masked by one mask (B, H)."""
    bias_ih, bias_hh = weights[2:] if rnn.bias else (None, None)
    mask = F.dropout(torch.ones_like(states[0]), rnn.hidden_dropout, True)  # (B, H)
    outputs = []
    for read in F.linear(x, weights[0], bias_ih).unbind(0):  # (B, gates * H)
        states = rnn.step(read, F.linear(states[0] * mask, weights[1], bias_hh), states)
        outputs.append(states[0])
    return torch.stack(outputs), states


def _describe(rnn: VariationalLSTM | VariationalGRU) -> str:
    rates = ("input_dropout", "hidden_dropout", "output_dropout", "weight_dropout")
    return "".join(f", {name}={getattr(rnn, name)}" for name in rates if getattr(rnn, name))


class VariationalLSTM(nn.LSTM):
    """An LSTM with one mask per sequence (Gal & Ghahramani 2016) and dropped recurrent weights (Merity et al. 2018).

    `input_dropout` masks what every layer reads, shared by the two directions; `hidden_dropout` the state that a
    layer's recurrent product reads; `output_dropout` what the last layer gives (the returned states stay unmasked);
    `weight_dropout` the entries of every W_hh. All are scaled by 1 / (1 - rate) and are drawn in training alone.
    In eval it is nn.LSTM, whose state it shares. A hidden mask equals a column mask on W_hh (see the module).
    Packed, it is the stock kernel with masks on what it reads and on its weights (`replacing`), and T may be free.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        output_dropout: float = 0.0,
        weight_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional
        )
        self.input_dropout = check_rate("input_dropout", input_dropout)
        self.hidden_dropout = check_rate("hidden_dropout", hidden_dropout)
        self.output_dropout = check_rate("output_dropout", output_dropout)
        self.weight_dropout = check_rate("weight_dropout", weight_dropout)

    def forward(  # type: ignore[override]  # packed and unbatched sequences are not taken
        self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return outputs (T, B, directions * H) and the last (h, c), each (layers * directions, B, H).

        `x` is (T, B, input_size); with `batch_first` x and outputs are (B, T, ...). `hx` is the first (h, c), else 0.
        """
        _check(x, self.batch_first)
        if not self.training:
            output, last = super().forward(x, hx)
            return output, last
        if hx is None:
            zeros = x.new_zeros(self.get_expected_hidden_size(x, None))
            hx = zeros, zeros
        self.check_forward_args(x, hx, None)
        output, (h, c) = _run(self, x, hx)
        return output, (h, c)

    def scan(self, x: Tensor, states: States, weights: list[Tensor]) -> tuple[Tensor, States]:
        """Run one direction of one layer over x (T, B, F): outputs (T, B, H) and the last states (B, H) each."""
        if self.hidden_dropout:
            return _loop(self, x, states, weights)
        first = [state[None] for state in states]  # (1, B, H) each
        output, h, c = torch.lstm(x, first, weights, self.bias, 1, 0.0, True, False, False)
        return output, (h[0], c[0])

    @staticmethod
    def step(read: Tensor, recurrent: Tensor, states: States) -> States:
        """Return the next h and c (B, H) of what a step reads and recalls, (B, 4 H) each."""
        i, f, g, o = (read + recurrent).chunk(4, -1)
        c = f.sigmoid() * states[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def extra_repr(self) -> str:
        """Return nn.LSTM's arguments and the rates above 0."""
        return super().extra_repr() + _describe(self)


class VariationalGRU(nn.GRU):
    """A GRU with one mask per sequence (Gal & Ghahramani 2016) and dropped recurrent weights (Merity et al. 2018).

    The rates mean what they mean in `VariationalLSTM`. `hidden_dropout` masks the state in the recurrent products of
    all three gates, not where it is carried over (z * h): so it equals a column mask on W_hh here too.
    In eval it is nn.GRU, whose state it shares.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        output_dropout: float = 0.0,
        weight_dropout: float = 0.0,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional
        )
        self.input_dropout = check_rate("input_dropout", input_dropout)
        self.hidden_dropout = check_rate("hidden_dropout", hidden_dropout)
        self.output_dropout = check_rate("output_dropout", output_dropout)
        self.weight_dropout = check_rate("weight_dropout", weight_dropout)

    def forward(  # type: ignore[override]  # packed and unbatched sequences are not taken
        self, x: Tensor, hx: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return outputs (T, B, directions * H) and the last h (layers * directions, B, H).

        `x` is (T, B, input_size); with `batch_first` x and outputs are (B, T, ...). `hx` is the first h, else 0.
        """
        _check(x, self.batch_first)
        if not self.training:
            output, last = super().forward(x, hx)
            return output, last
        if hx is None:
            hx = x.new_zeros(self.get_expected_hidden_size(x, None))
        self.check_forward_args(x, hx, None)
        output, (h,) = _run(self, x, (hx,))
        return output, h

    def scan(self, x: Tensor, states: States, weights: list[Tensor]) -> tuple[Tensor, States]:
        """Run one direction of one layer over x (T, B, F): outputs (T, B, H) and the last state (B, H)."""
        if self.hidden_dropout:
            return _loop(self, x, states, weights)
        output, h = torch.gru(x, states[0][None], weights, self.bias, 1, 0.0, True, False, False)
        return output, (h[0],)

    @staticmethod
    def step(read: Tensor, recurrent: Tensor, states: States) -> States:
        """Return the next h (B, H) of what a step reads and recalls, (B, 3 H) each."""
        (read_r, read_z, read_n), (r, z, n) = read.chunk(3, -1), recurrent.chunk(3, -1)
        new = (read_n + (read_r + r).sigmoid() * n).tanh()
        return (new + (read_z + z).sigmoid() * (states[0] - new),)

    def extra_repr(self) -> str:
        """Return nn.GRU's arguments and the rates above 0."""
        return super().extra_repr() + _describe(self)
