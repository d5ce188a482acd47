"""Modules that are wrapped, hooked, tied, compiled, of other precisions, or none at all: served or refused by name."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from dubito_models.errors import InvalidArgument, UnsupportedNetwork
from dubito_models.original import pick
from dubito_models.packing import pack
from networks import assert_draws_are_the_original, program_for, random_masks

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # what torch.compile itself imports

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


class By(nn.Module):
    """A network whose forward is given: `forward(parts, hidden)` between two linear layers."""

    def __init__(self, forward: Callable[[By, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.drop, self.head = nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 3)
        for name, part in parts.items():
            setattr(self, name, part)
        self.between = forward

    def forward(self, x: Tensor) -> Any:
        return self.between(self, self.first(x))


class Given(nn.Module):
    """Takes its input by keyword alone, leaves others unsaid, and takes more."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain()

    def forward(self, *, x: Tensor, mask: Tensor | None = None, labels: Tensor | None = None, **more: Tensor) -> Tensor:
        hidden: Tensor = self.inner(x if mask is None else x * mask)
        return hidden + more["shift"] if more else hidden


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other, self.drop = nn.Linear(6, 6), nn.Linear(6, 6), nn.Dropout(0.3)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.drop(torch.tanh(self.one(x))))


def changed(change: Callable[[nn.Sequential], object]) -> nn.Sequential:
    module = plain()
    change(module)
    return module


def hooked() -> nn.Module:
    module, seen = plain(), []
    module[0].register_forward_pre_hook(lambda part, inputs: (inputs[0] * 2,))
    module[0].register_forward_hook(lambda part, inputs, output: seen.append(output) or output + 1)
    module.register_forward_hook(lambda part, inputs, output: output * 3)
    module(X)  # the hook keeps an output, which has a history
    return module


SERVED: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: changed(lambda m: parametrizations.weight_norm(m[0])),
    "spectral norm": lambda: changed(lambda m: parametrizations.spectral_norm(m[0])),
    "spectral norm, old": lambda: changed(lambda m: nn.utils.spectral_norm(m[0])),
    "pruned": lambda: changed(lambda m: prune.random_unstructured(m[0], "weight", 0.3)),
    "frozen": lambda: changed(lambda m: m.requires_grad_(False)),
    "hooks": hooked,
    "tied": Tied,
    "traced by fx": lambda: torch.fx.symbolic_trace(plain()),
    "compiled in place": lambda: changed(lambda m: m.compile()),
    "weights that are not contiguous": lambda: changed(
        lambda m: setattr(m[0], "weight", nn.Parameter(torch.randn(6, 8).t()))
    ),
    "an instance norm": lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2), nn.Flatten(), plain()),
}


@pytest.mark.parametrize("name", SERVED)
def test_a_module_that_is_more_than_it_seems_is_served_as_it_is(name: str) -> None:
    module = SERVED[name]()
    with torch.no_grad():
        before = copy.deepcopy(module.state_dict())
    program = program_for(module, X)
    assert len(program.sites) == 1
    for key, value in module.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    assert_draws_are_the_original(program, module, dict.fromkeys(program.inputs, torch.randn(5, 6)))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda m: nn.Sequential(nn.DataParallel(m))])
def test_wrappers_are_taken_off(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    bare = plain()
    packed = {
        name: pack(module, X, repository=tmp_path, name=name, task="classification", head="logits")
        for name, module in {"bare": bare, "wrapped": wrap(bare)}.items()
    }
    ours, theirs = (packed[name].predict(X.numpy()) for name in ("wrapped", "bare"))
    assert ours.answer.probabilities.tolist() == theirs.answer.probabilities.tolist()
    assert ours.draws.tolist() == theirs.draws.tolist()


@pytest.mark.parametrize("inputs", [
    {"x": X},
    {"x": X, "mask": (X > 0).float()},
    {"x": X, "shift": torch.randn(3, 3)},
])  # fmt: skip
def test_inputs_by_keyword_some_left_unsaid(inputs: Mapping[str, Tensor]) -> None:
    module = Given()
    assert_draws_are_the_original(program_for(module, inputs), module, inputs)


@pytest.mark.parametrize("given", [X.t().contiguous().t(), X[:1].expand(3, 6), X.clone().requires_grad_()])
def test_example_inputs_of_any_make(given: Tensor) -> None:
    module = plain()
    assert_draws_are_the_original(program_for(module, given), module, {"input": X})


class Answer(NamedTuple):
    mean: Tensor
    log_variance: Tensor


@dataclasses.dataclass
class Record:
    score: Tensor
    hidden: Tensor


RETURNS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Any]] = {
    "a mapping": (lambda y, h: {"hidden": h, "score": y}, "score"),
    "a tuple": (lambda y, h: (h, y), 1),
    "a named tuple": (lambda y, h: Answer(y, h), "mean"),
    "a dataclass": (lambda y, h: Record(y, h), "score"),
    "a tensor and nothing": (lambda y, h: (y, None), None),
    "several, joined": (lambda y, h: (y, h[:, 0]), (0, 1)),
}


@pytest.mark.parametrize("name", RETURNS)
def test_one_of_several_outputs_is_the_prediction(name: str) -> None:
    make, output = RETURNS[name]
    module = By(lambda parts, h: make(parts.head(parts.drop(h)), h))
    program = program_for(module, {"x": X}, output=output)
    with torch.inference_mode():
        boundary = program.prefix({"x": X})
        calm = program.suffix(boundary, program.bypass(boundary.symbols))
        drawn = program.many(boundary, random_masks(program, boundary.symbols, 3))
    torch.testing.assert_close(calm, pick(module.eval()(X), output))
    assert drawn.shape == (3, *calm.shape)
    assert drawn.std(0).max() > 0


def with_noise(noise: Callable[[Tensor], Tensor]) -> nn.Module:
    return By(lambda parts, h: parts.head(parts.drop(noise(h) if parts.training else h)))


def quantized() -> nn.Module:
    module = plain()
    module[1] = torch.ao.nn.quantized.ReLU6()
    return module


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a function": (lambda: X.tanh, "got builtin_function_or_method; accepted: a torch.nn.Module"),
    "half precision": (lambda: plain().half(), r"0\.weight is float16; .*copy\.deepcopy\(module\)\.float\(\)"),
    "without values": (lambda: plain().to("meta"), r"0\.weight on the meta device"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(8), nn.Dropout(0.2)), r"0\.weight, which has no shape yet"),
    "quantized": (quantized, r"part '1'\) is quantized; pack the module before"),
    "a lock": (lambda: By(lambda parts, h: parts.head(parts.drop(h)), lock=threading.Lock()), "cannot be copied"),
    "counts its calls": (lambda: Counting(), "changes its own buffers: calls"),
    "noise": (lambda: with_noise(lambda h: h + torch.randn_like(h)), r"aten\.randn_like.*draws random numbers"),
    "sampled classes": (lambda: with_noise(F.gumbel_softmax), r"aten\.exponential.*draws random numbers"),
    "noise by a mask": (
        lambda: with_noise(lambda h: h + F.dropout(torch.ones_like(h), 0.5)),
        "something besides dropout behaves differently in training mode",
    ),
    "rows that look at each other": (
        lambda: By(lambda parts, h: parts.head(parts.drop(h - h.mean(0)))),
        "rows influence each other",
    ),
    "statistics of the batch": (
        lambda: nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), plain()),
        "rows influence each other",
    ),
    "a loop over rows": (
        lambda: By(lambda parts, h: parts.head(parts.drop(torch.stack(list(h))))),
        "fixes the free axis 'rows' at 3 .*write it for any size",
    ),
    "a branch on values": (
        lambda: By(lambda parts, h: parts.head(parts.drop(h if h.sum() > 0 else -h))),
        r"control flow that depends on data.*torch\.where.*test_strange_modules\.py:\d+",
    ),
    "numpy inside": (
        lambda: By(lambda parts, h: parts.head(parts.drop(torch.from_numpy(h.detach().numpy() * 2)))),
        r"torch\.export cannot export.*test_strange_modules\.py:\d+",
    ),
    "another precision inside": (
        lambda: By(lambda parts, h: autocast(parts, h)),
        r"a graph of its own \(torch\.autocast, near test_strange_modules\.py:\d+\)",
    ),
    "rate 1": (lambda: nn.Sequential(plain(), nn.Dropout(1.0)), r"dropout rate 1\.0; accepted: 0 <= rate < 1"),
    "a decision": (lambda: By(lambda parts, h: parts.head(parts.drop(h)).argmax(1)), "logits, not a decision"),
    "a sum over rows": (lambda: By(lambda parts, h: parts.head(parts.drop(h)).sum()), "axis 0 is the rows"),
    "a number": (lambda: By(lambda parts, h: 3.0), "the network returns float; accepted: a tensor"),
    "two, unsaid": (lambda: By(lambda parts, h: (h, parts.head(parts.drop(h)))), r"output: got None; .*\[0, 1\]"),
    "not finite": (lambda: By(lambda parts, h: parts.head(parts.drop(h)) / 0), "a prediction that is not finite"),
}


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = plain()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls = self.calls + 1
        return self.inner(x)


def autocast(parts: By, h: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        h = parts.drop(h)
        return parts.head(h).float()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_with_what_to_change(name: str, tmp_path: Path) -> None:
    make, reason = REFUSED[name]
    with pytest.raises((UnsupportedNetwork, InvalidArgument), match=reason) as caught:
        pack(make(), X, repository=tmp_path, name="m", task="classification", head="logits")
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("inputs", "reason"), [
    ([X, X], "too many positional arguments"),
    ({"input": X.to("meta")}, r"'input'\].*on meta"),
    (X.to_sparse(), "torch.sparse_coo"),
    (X.to(torch.complex64), r"got complex64; accepted: bool, uint8"),
    (X.long(), "a failure of the module: RuntimeError: mat1 and mat2 must have the same dtype"),
    (X[:, :5], "a failure of the module: RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
    ({"input": [1.0, 2.0]}, r"example_inputs\['input'\]: got list"),
])  # fmt: skip
def test_example_inputs_that_the_module_cannot_take(inputs: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        pack(plain(), inputs, repository=tmp_path, name="m", task="classification", head="logits")
