"""The recurrent kernel of ours in ONNX's own operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnxscript

_ONNX_GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn_tanh": (0,), "rnn_relu": (0,)}  # torch's: ifgo, rzn


def as_onnx(
    kind: str,
    x: Any,
    states: Sequence[Any],
    weights: Sequence[Any],
    has_biases: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Sequence[Any]:
    """Write `recurrent` with ONNX's own operators, whose gates come in another order and whose time comes first."""
    op: Any = onnxscript.opset18
    directions, parts = (2 if bidirectional else 1), (4 if has_biases else 2)
    hidden = states[0].shape[-1]

    def gather(place: int) -> Any:
        stacked = [_in_onnx_order(op, kind, weights[d * parts + place], hidden) for d in range(directions)]
        return op.Concat(*[op.Unsqueeze(part, op.Constant(value_ints=[0])) for part in stacked], axis=0)

    biases = op.Concat(gather(2), gather(3), axis=1) if has_biases else None
    time_first = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
    settings = {"hidden_size": hidden, "direction": "bidirectional" if bidirectional else "forward"}
    common = (time_first, gather(0), gather(1), biases, None)
    if kind == "lstm":
        outputs, *ends = op.LSTM(*common, states[0], states[1], **settings)
    elif kind == "gru":
        outputs, *ends = op.GRU(*common, states[0], linear_before_reset=1, **settings)
    else:
        activation = "Tanh" if kind == "rnn_tanh" else "Relu"
        outputs, *ends = op.RNN(*common, states[0], activations=[activation] * directions, **settings)
    # (T, D, B, H) to (B, T, D, H) or (T, B, D, H), and the last two axes to one
    apart = op.Transpose(outputs, perm=[2, 0, 1, 3] if batch_first else [0, 2, 1, 3])
    return [op.Reshape(apart, op.Constant(value_ints=[0, 0, directions * hidden])), *ends]


def _in_onnx_order(op: Any, kind: str, weight: Any, hidden: int) -> Any:
    gates = [
        op.Slice(
            weight,
            op.Constant(value_ints=[gate * hidden]),
            op.Constant(value_ints=[(gate + 1) * hidden]),
            op.Constant(value_ints=[0]),
        )
        for gate in _ONNX_GATES[kind]
    ]
    return gates[0] if len(gates) == 1 else op.Concat(*gates, axis=0)
