"""Max pooling over windows that lie side by side, as maxima of slices.

Torch's own kernel of the CPU is not vectorised for channels that come first, and takes as long as the convolution
before it. The maximum of a window is that of its rows' maxima, whatever the order: the same numbers, to the bit.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, fx

_WIDEST = 3  # of a window, for which slices were found faster
_OPTIONS = ("stride", "padding", "dilation", "ceil_mode")


def max_over_windows(x: Tensor, height: int, width: int) -> Tensor:
    """Return the maxima of windows of (..., H, W); what is left over at the ends is dropped."""
    H, W = (size // window * window for size, window in zip(x.shape[-2:], (height, width), strict=True))
    down = functools.reduce(torch.maximum, [x[..., place:H:height, :] for place in range(height)])
    return functools.reduce(torch.maximum, [down[..., place:W:width] for place in range(width)])


def replace_pools(graph: fx.Graph) -> int:
    """Replace torch's operator where windows lie side by side; returns how often."""
    found = 0
    for node in graph.nodes:
        window = _window(node) if node.target is torch.ops.aten.max_pool2d.default else None
        if window is not None:
            node.target, node.args, node.kwargs = max_over_windows, (node.args[0], *window), {}
            found += 1
    return found


def _window(node: fx.Node) -> tuple[int, int] | None:
    """Return height and width of windows that lie side by side; None for others."""
    size, *rest = node.args[1:]
    options: dict[str, Any] = {**dict(zip(_OPTIONS, rest, strict=False)), **node.kwargs}
    window = _pair(size)
    beside = _pair(options.get("stride") or size) == window
    plain = not any(_pair(options.get("padding", 0))) and _pair(options.get("dilation", 1)) == (1, 1)
    fits = beside and plain and not options.get("ceil_mode", False) and 1 < max(window) <= _WIDEST
    return window if fits else None


def _pair(value: Any) -> tuple[int, int]:
    several = list(value) if isinstance(value, list | tuple) else [value]
    return (several[0], several[-1])
