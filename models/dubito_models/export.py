"""From any `nn.Module` to exported graphs: one with its dropout active, one with it off.

The caller's module is never touched: a deep copy is exported. In the copy every module is in training mode
except those that would change their statistics (batch norm and its kind, spectral norm).
"""

from __future__ import annotations

import copy
import inspect
import itertools
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram
from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes
from torch.utils import _pytree as pytree

from dubito_models.errors import InvalidArgument, UnsupportedNetwork
from dubito_models.rewriting import find_written, share_memory

ROWS = "rows"
EXPORTING = threading.RLock()  # torch.export and torch.onnx keep state that threads share


@dataclass(frozen=True, slots=True)
class Example:
    """Example inputs by name, each (B, ...), and the names of the axes that are free besides the rows."""

    inputs: Mapping[str, Tensor]
    free: Mapping[str, Mapping[int, str]]

    @property
    def rows(self) -> int:
        """The number of rows, B."""
        return next(iter(self.inputs.values())).shape[0]


@dataclass(frozen=True, slots=True)
class Exported:
    """A network as graphs: `stochastic` with dropout nodes, `standard` without; `output` picks the prediction."""

    stochastic: ExportedProgram
    standard: ExportedProgram
    output: int


def read_example(
    module: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> Example:
    """Bind example inputs to the names of the module's forward parameters; at least two rows come out.

    `dynamic` names free axes besides the rows, for example `{"tokens": {1: "length"}}`.
    Raises `InvalidArgument` for what is not a batch of tensors with one common number of rows.
    """
    positional: tuple[Any, ...] = ()
    named: Mapping[str, Any] = {}
    if isinstance(example_inputs, Tensor):
        positional = (example_inputs,)
    elif isinstance(example_inputs, Mapping):
        named = example_inputs
    else:
        positional = tuple(example_inputs)
    try:
        bound = inspect.signature(module.forward).bind(*positional, **named)
    except TypeError as error:
        raise InvalidArgument("example_inputs", str(error), "the parameters of the module's forward") from None
    inputs: dict[str, Tensor] = {}
    for name, value in bound.arguments.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            raise InvalidArgument(f"example_inputs[{name!r}]", _describe(value), "a tensor whose axis 0 is the rows")
        inputs[name] = value.detach().cpu()
    rows = {name: value.shape[0] for name, value in inputs.items()}
    if not rows or min(rows.values()) == 0 or len(set(rows.values())) > 1:
        raise InvalidArgument("example_inputs", f"rows {rows}", "at least one input; as many rows in each")
    if next(iter(rows.values())) == 1:  # export would take a single row for a constant
        inputs = {name: torch.cat([value, value]) for name, value in inputs.items()}
    return Example(inputs, _check_free(inputs, dynamic or {}))


def _describe(value: object) -> str:
    return f"a tensor of rank {value.dim()}" if isinstance(value, Tensor) else type(value).__name__


def _check_free(inputs: Mapping[str, Tensor], dynamic: Mapping[str, Mapping[int, str]]) -> dict[str, dict[int, str]]:
    free: dict[str, dict[int, str]] = {}
    for name, axes in dynamic.items():
        if name not in inputs:
            raise InvalidArgument("dynamic", repr(name), f"the names of inputs: {', '.join(inputs)}")
        for axis, label in axes.items():
            accepted = f"axes 1..{inputs[name].dim() - 1}, named by identifiers other than {ROWS!r}"
            if not 0 < axis < inputs[name].dim() or not label.isidentifier() or label == ROWS:
                raise InvalidArgument(f"dynamic[{name!r}]", f"{axis}: {label!r}", accepted)
            if inputs[name].shape[axis] < 2:
                raise InvalidArgument(
                    f"example_inputs[{name!r}]",
                    f"size {inputs[name].shape[axis]} on free axis {axis}",
                    "2 or more",
                )
        free[name] = dict(axes)
    return free


def export_network(module: nn.Module, example: Example, output: str | int | None = None) -> Exported:
    """Export the network twice, with dropout active and off, with free rows and free named axes.

    `output` picks the prediction where the network returns a mapping (a key) or a sequence (an index).
    Raises `UnsupportedNetwork` with the reason where the network cannot be exported.
    """
    network = copy.deepcopy(module).cpu()
    for part in network.modules():
        part.training = not _keeps_statistics(part)
    with EXPORTING:
        stochastic = _export(network, example, "with dropout active")
        network.eval()
        standard = _export(network, example, "with dropout off")
    _refuse_changes(stochastic, "with dropout active")
    _refuse_changes(standard, "with dropout off")
    return Exported(stochastic, standard, _pick_output(stochastic, output))


def _keeps_statistics(part: nn.Module) -> bool:
    tracks = getattr(part, "track_running_stats", False) and hasattr(part, "running_mean")
    return bool(tracks) or type(part).__name__ in {"_SpectralNorm", "SpectralNorm"}


def _export(network: nn.Module, example: Example, mode: str) -> ExportedProgram:
    dims: dict[str, Dim] = {}

    def dim(label: str) -> Dim:
        return dims.setdefault(label, Dim(label))

    shapes = {
        name: {0: dim(ROWS), **{axis: dim(label) for axis, label in example.free.get(name, {}).items()}}
        for name in example.inputs
    }

    def export(these: Any) -> ExportedProgram:
        return torch.export.export(network, (), dict(example.inputs), dynamic_shapes=these, strict=False)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return export(shapes)
            except (
                UserError
            ) as error:  # torch says within which bounds a free axis works; where it stays free, so be it
                refined = _refine(str(error), shapes)
                if refined is None:
                    raise
                return export(refined)
    except Exception as error:  # torch.export raises many kinds; all mean "not this network"
        raise UnsupportedNetwork(f"torch.export cannot export the network {mode}: {_reason(error)}") from error


def _refine(message: str, shapes: dict[str, dict[int, Dim]]) -> dict[str, dict[int, Any]] | None:
    """Take over the bounds that torch suggests for free axes; None where it suggests to fix one, or nothing."""
    head, found, tail = message.partition("Suggested fixes:")
    fixes = list(itertools.takewhile(lambda line: " = " in line, tail.strip().splitlines()))
    if not found or not fixes:
        return None
    suggested = head + found + "\n" + "\n".join(fixes)
    refined: Any = refine_dynamic_shapes_from_suggested_fixes(suggested, shapes)
    return None if any(isinstance(size, int) for axes in refined.values() for size in axes.values()) else refined


def free_bounds(program: ExportedProgram, example: Example) -> dict[str, dict[int, tuple[int, int | None]]]:
    """Return the smallest and the largest size of each named free axis, by input and axis; None: no largest."""
    bounds: dict[str, dict[int, tuple[int, int | None]]] = {}
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for name, given in zip(example.inputs, program.graph_signature.user_inputs, strict=True):
        for axis in example.free.get(name, {}):
            size = placeholders[str(given)].meta["val"].shape[axis]
            span = program.range_constraints.get(size.node.expr) if isinstance(size, torch.SymInt) else None
            if span is not None:
                most = int(span.upper) if span.upper.is_Integer else None
                bounds.setdefault(name, {})[axis] = (max(1, int(span.lower)), most)
    return bounds


def _refuse_changes(program: ExportedProgram, mode: str) -> None:
    """Refuse a network that writes its own parameters or buffers: served answers must not change it."""
    signature = program.graph_signature
    weights = signature.inputs_to_parameters | signature.inputs_to_buffers
    changed = set(signature.buffers_to_mutate.values())
    for node in program.graph.nodes:
        written = find_written(node)
        if written is not None:
            changed.update(weights[other.name] for other in share_memory(written) if other.name in weights)
    if changed:
        raise UnsupportedNetwork(f"the network {mode} changes its own buffers: {', '.join(sorted(changed))}")


def _reason(error: Exception) -> str:
    """Say in one or two lines why export failed, with the place in the user's own code where there is one."""
    text = str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    if re.search(r"data.dependent|GuardOnDataDependent|u\d+", text):
        first = f"control flow that depends on data ({first})"
    places = re.findall(r'File "([^"]+)", line (\d+)', text)
    own = [(name, line) for name, line in places if "/torch/" not in name]
    return first + (f" at {own[-1][0].rsplit('/', 1)[-1]}:{own[-1][1]}" if own else "")


def _pick_output(program: ExportedProgram, output: str | int | None) -> int:
    """Find the flat index of the output that is the prediction."""
    spec = program.call_spec.out_spec
    if spec is None:
        raise UnsupportedNetwork("the network returns nothing")
    index = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    if isinstance(index, int) and output is None:
        return index
    if isinstance(index, int):
        raise InvalidArgument("output", repr(output), "nothing: the network returns one tensor")
    keys = list(index.keys()) if isinstance(index, Mapping) else list(range(len(index)))
    if output is None and len(keys) == 1:
        output = keys[0]
    if output not in keys:
        raise InvalidArgument("output", repr(output), f"one of {keys}: it names the prediction")
    picked = index[output]
    if not isinstance(picked, int):
        raise InvalidArgument("output", repr(output), "an output that is one tensor")
    return picked
