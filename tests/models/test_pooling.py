"""Max pooling by slices is torch's own, to the bit, and stands in for it where windows lie side by side."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dubito_models.pooling import max_over_windows, replace_pools

aten = torch.ops.aten


@pytest.mark.parametrize("window", [(2, 2), (3, 3), (2, 1), (1, 3)])
@pytest.mark.parametrize("sizes", [(8, 8), (7, 5), (3, 3), (4, 9)])
def test_maxima_of_slices_are_those_of_torch(window: tuple[int, int], sizes: tuple[int, int]) -> None:
    x = torch.randn(3, 4, *sizes, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, 0], x[1, 2, 1, 1], x[2, 3, 2, 0] = torch.nan, torch.inf, -torch.inf
    for given in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(-1, -2).contiguous().mT):
        found = max_over_windows(given, *window)
        torch.testing.assert_close(found, torch.max_pool2d(given, window), rtol=0, atol=0, equal_nan=True)
    vmapped = torch.vmap(lambda each: max_over_windows(each, *window))(x.unsqueeze(0))
    torch.testing.assert_close(vmapped[0], torch.max_pool2d(x, window), rtol=0, atol=0, equal_nan=True)


class Pooled(nn.Module):
    """One pool of a kind."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, **self.options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "replaced"),
    [
        ({"kernel_size": 2}, 1),
        ({"kernel_size": 2, "stride": 2}, 1),
        ({"kernel_size": (3, 2), "stride": (3, 2)}, 1),
        ({"kernel_size": 3}, 1),
        ({"kernel_size": 3, "stride": 2}, 0),
        ({"kernel_size": 2, "padding": 1}, 0),
        ({"kernel_size": 2, "dilation": 2}, 0),
        ({"kernel_size": 2, "ceil_mode": True}, 0),
        ({"kernel_size": 4}, 0),
        ({"kernel_size": 1}, 0),
    ],
)
def test_only_windows_side_by_side_are_replaced_and_the_graph_says_the_same(
    options: dict[str, object], replaced: int
) -> None:
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    module = torch.export.export(Pooled(**options), (x,)).module()
    before = module(x)
    assert replace_pools(module.graph) == replaced
    module.recompile()
    assert torch.equal(module(x), before)
    left = [node for node in module.graph.nodes if node.target is aten.max_pool2d.default]
    assert len(left) == 1 - replaced
