"""The caller's own module: what it must be to be packed, a copy to work on, and what it says in evaluation mode."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from dubito_models.errors import DubitoError, InvalidArgument, UnsupportedNetwork

Output = str | int | Sequence[str | int] | None
_PRECISIONS = {torch.float32, torch.float64}


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside of what only changes how it runs: DataParallel and its kind, `torch.compile`."""
    inner = module
    while True:
        if isinstance(inner, OptimizedModule):
            inner = inner._orig_mod
        elif isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = inner.module
        else:
            return inner


def check_module(module: nn.Module) -> None:
    """Refuse what is no network in Python whose weights can be read and served."""
    if not isinstance(module, nn.Module):
        raise InvalidArgument("module", type(module).__name__, "a torch.nn.Module")
    for name, part in module.named_modules():
        kind, place = type(part), f" (part {name!r})" if name else ""
        if isinstance(part, torch.jit.ScriptModule):
            raise UnsupportedNetwork(f"TorchScript hides its dropout{place}; pack the module that it was made from")
        if ".nn.quantized" in kind.__module__:
            raise UnsupportedNetwork(f"{kind.__name__}{place} is quantized; pack the module before quantization")
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(value):
            raise InvalidArgument("module", f"{name}, which has no shape yet", "a lazy module that has run once")
        if value.is_meta:
            raise InvalidArgument("module", f"{name} on the meta device", "weights that hold values")
        if value.is_floating_point() and value.dtype not in _PRECISIONS:
            raise UnsupportedNetwork(
                f"{name} is {str(value.dtype).removeprefix('torch.')}; served are float32 and float64, so pack "
                "copy.deepcopy(module).float(), with example inputs to match"
            )


def duplicate(module: nn.Module) -> nn.Module:
    """Return a deep copy on the CPU, its parts unwrapped too.

    A tensor that has a history (what old-style weight norm and pruning keep, an output that was stored) is copied as
    a value.
    """
    copied: dict[int, Any] = {}
    for part in module.modules():
        for value in pytree.tree_leaves(vars(part)):
            if isinstance(value, Tensor) and not value.is_leaf:
                copied[id(value)] = value.detach().clone()
    try:
        network = copy.deepcopy(module, copied).cpu()
    except Exception as error:  # whatever an attribute of the module raises
        raise UnsupportedNetwork(
            f"the module cannot be copied ({_first_line(error)}); keep locks, files and the like outside of it"
        ) from error
    for part in list(network.modules()):
        for name, child in list(part.named_children()):
            if unwrap(child) is not child:
                setattr(part, name, unwrap(child))
    for part in network.modules():
        if type(part) in _CAUSAL:
            part.register_forward_pre_hook(_say_whether_causal, with_kwargs=True)
    return network


_CAUSAL = {nn.TransformerEncoder: ("is_causal", 3), nn.TransformerDecoder: ("tgt_is_causal", 6)}  # name and place


def _say_whether_causal(part: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Keep torch's encoder from reading its mask to see whether it is causal, which no graph can: the mask says it."""
    name, place = _CAUSAL[type(part)]
    if len(args) <= place and named.get(name) is None:
        named = {**named, name: False}
    return args, named


def ask(network: nn.Module, inputs: Mapping[str, Tensor], output: Output) -> Tensor:
    """Return what a copy of the module predicts in evaluation mode; `InvalidArgument` where it fails."""
    set_mode(network, training=False)
    try:
        with torch.compiler.set_stance("force_eager"):
            answer = network(**inputs)
    except Exception as error:  # whatever the caller's code raises
        accepted = "inputs that the module can run on, in evaluation mode, on the CPU"
        raise InvalidArgument("example_inputs", f"a failure of the module: {_first_line(error)}", accepted) from error
    return pick(answer, output)


def set_mode(module: nn.Module, *, training: bool) -> None:
    """Set the mode of every part, also where a part's `train` does something else (keeps its dropout on)."""
    for part in module.modules():
        part.training = training


def pick(answer: Any, output: Output) -> Tensor:
    """Return the prediction among what a network returns.

    `output`: a key, a number, a field; or several, which are joined along their last axis, (B,) as (B, 1): so
    a mean and a log variance that are returned apart are (B, 2 K). None where there is one tensor alone.
    """
    if isinstance(output, (tuple, list)):
        parts = [_pick_one(answer, one) for one in output]
        rows = [part.unsqueeze(-1) if part.dim() == 1 else part for part in parts]
        if any(part.shape[:-1] != rows[0].shape[:-1] for part in rows):
            raise InvalidArgument("output", f"shapes {[tuple(p.shape) for p in parts]}", "outputs of as many rows")
        return torch.cat(rows, -1)
    return _pick_one(answer, output)


def _pick_one(answer: Any, output: Any) -> Tensor:
    if isinstance(answer, Tensor):
        if output is not None:
            raise InvalidArgument("output", repr(output), "nothing: the network returns one tensor")
        return answer
    every = _choices(answer)
    choices = {key: value for key, value in every.items() if isinstance(value, Tensor)}
    leaves = {id(leaf) for leaf in pytree.tree_leaves(list(every.values())) if isinstance(leaf, Tensor)}
    if output is None and len(leaves) == 1 and choices:
        return next(iter(choices.values()))
    if output not in choices:
        accepted = f"one of {list(choices)}, which names the prediction; or several of them, joined"
        raise InvalidArgument("output", repr(output), accepted)
    return choices[output]


def _choices(answer: Any) -> dict[Any, Any]:
    """Return what a network returns by every name that it goes by."""
    if isinstance(answer, Mapping):
        return dict(answer)
    if isinstance(answer, (tuple, list)):
        names = getattr(answer, "_fields", ())
        return dict(enumerate(answer)) | {name: getattr(answer, name) for name in names}
    if dataclasses.is_dataclass(answer):
        return {entry.name: getattr(answer, entry.name) for entry in dataclasses.fields(answer)}
    raise UnsupportedNetwork(
        f"the network returns {type(answer).__name__}; accepted: a tensor, or a mapping, sequence or dataclass of them"
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, DubitoError):
        return str(error)
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
