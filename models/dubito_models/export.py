"""From any `nn.Module` to exported graphs: one with its dropout active, one with it off.

The caller's module is never touched: a deep copy is exported. In the copy every module is in training mode
except those that would change their statistics (batch norm and its kind, spectral norm).
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import pickle
import random
import re
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram
from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes
from torch.nn.utils.rnn import PackedSequence

from dubito_models.errors import DubitoError, InvalidArgument, UnknownRandomness, UnsupportedNetwork
from dubito_models.kernels import OurKernels
from dubito_models.original import Output, duplicate, pick, set_mode
from dubito_models.replacing import replace_layers
from dubito_models.rewriting import find_written, inline_blocks, share_memory

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
    """A network as graphs that return its prediction: `stochastic` with dropout nodes, `standard` without."""

    stochastic: ExportedProgram
    standard: ExportedProgram
    output: int = 0  # the flat index of the prediction


def read_example(
    module: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> Example:
    """Bind example inputs to the names of the module's forward parameters; at least two rows come out.

    `dynamic` names free axes besides the rows, for example `{"tokens": {1: "length"}}`.
    Raises `InvalidArgument` for what is not a batch of tensors with one common number of rows.
    """
    signature = inspect.signature(module.forward)
    positional: tuple[Any, ...] = ()
    named: Mapping[str, Any] = {}
    if isinstance(example_inputs, Tensor):
        positional = (example_inputs,)
    elif isinstance(example_inputs, Mapping):
        named = example_inputs
    else:
        positional = tuple(example_inputs)
    try:
        bound = signature.bind(*positional, **named)
    except TypeError as error:
        accepted = f"the parameters of the module's forward{signature}"
        raise InvalidArgument("example_inputs", str(error), accepted) from None
    given: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        parameter = signature.parameters[name]
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise InvalidArgument("module", f"forward{signature}", "a forward whose inputs have names")
        given |= value if parameter.kind is parameter.VAR_KEYWORD else {name: value}
    inputs: dict[str, Tensor] = {}
    for name, value in given.items():
        dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        if not dense or value.dim() == 0:
            raise InvalidArgument(f"example_inputs[{name!r}]", _describe(value), "a dense tensor, axis 0 the rows")
        inputs[name] = value.detach().cpu()
    rows = {name: value.shape[0] for name, value in inputs.items()}
    if not rows or min(rows.values()) == 0 or len(set(rows.values())) > 1:
        raise InvalidArgument("example_inputs", f"rows {rows}", "at least one input; as many rows in each")
    if next(iter(rows.values())) == 1:  # export would take a single row for a constant
        inputs = {name: torch.cat([value, value]) for name, value in inputs.items()}
    return Example(inputs, _check_free(inputs, dynamic or {}))


def _describe(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"a tensor of rank {value.dim()}, {value.layout}, on {value.device}"


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


def export_network(module: nn.Module, example: Example, output: Output = None) -> Exported:
    """Export the network twice, with dropout active and off, with free rows and free named axes.

    `output` picks the prediction where the network returns several tensors (`original.pick`); only that is exported.
    Raises `UnsupportedNetwork` with the reason where the network cannot be exported.
    """
    network = replace_layers(duplicate(module))
    _name_inputs(network, example.inputs)
    network.register_forward_hook(lambda _network, _inputs, answer: pick(answer, output))
    for part in network.modules():
        part.training = not _keeps_statistics(part)
    with as_served():
        with _refuse_other_generators():
            stochastic, shapes = _export(network, example, _free_shapes(example), "with dropout active")
        set_mode(network, training=False)
        standard, _ = _export(network, example, shapes, "with dropout off")
    _refuse_changes(stochastic, "with dropout active")
    _refuse_changes(standard, "with dropout off")
    return Exported(stochastic, standard)


@contextlib.contextmanager
def _refuse_other_generators() -> Iterator[None]:
    """Refuse a network that draws from Python's or NumPy's generator: the graph would hold one outcome of it."""
    generators: dict[str, Callable[[], Any]] = {"Python's random": random.getstate, "numpy.random": np.random.get_state}
    before = {name: pickle.dumps(state()) for name, state in generators.items()}
    try:
        yield
    finally:
        used = [name for name, state in generators.items() if pickle.dumps(state()) != before[name]]
        if used:
            raise UnknownRandomness(
                f"the network draws from {' and '.join(used)} in training mode, which would be drawn once, here, and "
                "never again; draw from torch (F.dropout of a branch, say), or switch it off before packing"
            )


def _name_inputs(network: nn.Module, names: Iterable[str]) -> None:
    """Let a forward that takes any keywords say which ones it is given: torch names free axes by them."""
    forward: Any = network.forward
    parameters = inspect.signature(forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):

        def named(**inputs: Tensor) -> Any:
            return forward(**inputs)

        keywords = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
        named.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        network.forward = named


@contextlib.contextmanager
def as_served() -> Iterator[None]:
    """Run networks as a server does: without gradients, so that `torch.no_grad` inside forward is nothing special.

    Torch's fused encoder layers are off: they have no ONNX form, and round and pad otherwise than training does. That
    switch is the process's, so one thread at a time comes in.
    """
    with EXPORTING, torch.no_grad():
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)


def _keeps_statistics(part: nn.Module) -> bool:
    tracks = getattr(part, "track_running_stats", False) and hasattr(part, "running_mean")
    updates = any(type(hook).__name__ == "SpectralNorm" for hook in part._forward_pre_hooks.values())
    return bool(tracks) or updates or type(part).__name__ == "_SpectralNorm"


Shapes = dict[str, dict[int, Any]]  # by input and axis, the free sizes as torch names and bounds them


def _free_shapes(example: Example) -> Shapes:
    dims: dict[str, Any] = {}
    shapes: Shapes = {}
    for name in example.inputs:
        labels = {0: ROWS, **example.free.get(name, {})}
        shapes[name] = {axis: dims.setdefault(label, Dim(label)) for axis, label in labels.items()}
    return shapes


def _export(network: nn.Module, example: Example, shapes: Shapes, mode: str) -> tuple[ExportedProgram, Shapes]:
    """Export; also the shapes within which that went."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # torch prints half-made graphs
            warnings.simplefilter("ignore")
            exported, within = _export_within(network, example, shapes)
            inline_blocks(exported)
            return exported, within
    except DubitoError:
        raise
    except Exception as error:  # torch.export raises many kinds; all mean "not this network"
        raise UnsupportedNetwork(f"torch.export cannot export the network {mode}: {_reason(error)}") from error


def _export_within(network: nn.Module, example: Example, shapes: Shapes) -> tuple[ExportedProgram, Shapes]:
    """Export; where torch says within which bounds a free axis works, and it stays free, within those."""

    def export(within: Any) -> ExportedProgram:
        with OurKernels():
            return torch.export.export(network, (), dict(example.inputs), dynamic_shapes=within, strict=False)

    for _ in range(3):
        try:
            return export(shapes), shapes
        except UserError as error:
            refined = _refine(str(error), shapes) or _start_at_example(str(error), shapes, example)
            if refined is None:
                raise
            shapes = refined
    return export(shapes), shapes


def _refine(message: str, shapes: Shapes) -> Shapes | None:
    """Take over the bounds that torch suggests for free axes; None where it suggests to fix one, or nothing."""
    head, found, tail = message.partition("Suggested fixes:")
    fixes = list(itertools.takewhile(lambda line: " = " in line, tail.strip().splitlines()))
    if not found or not fixes:
        return None
    suggested = head + found + "\n" + "\n".join(fixes)
    refined: Any = refine_dynamic_shapes_from_suggested_fixes(suggested, shapes)
    return None if any(isinstance(size, int) for axes in refined.values() for size in axes.values()) else refined


def _start_at_example(message: str, shapes: Shapes, example: Example) -> Shapes | None:
    """Let a free axis begin at the example's size where single smaller sizes do not work (a shift by one, say)."""
    labels = set(re.findall(r"Not all values of (\w+) =", message)) - {ROWS}
    started: dict[str, Any] = {}
    for name, axes in shapes.items():
        for axis, size in axes.items():
            least = example.inputs[name].shape[axis]
            if getattr(size, "__name__", None) in labels and size.min < least:
                started[size.__name__] = Dim(size.__name__, min=least, max=size.max)
    if not started:
        return None
    return {
        name: {axis: started.get(getattr(size, "__name__", ""), size) for axis, size in axes.items()}
        for name, axes in shapes.items()
    }


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
    lines = [line.strip().removeprefix("- ") for line in text.splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    fixed = re.search(r"You marked (\w+) as dynamic but your code specialized it to be a constant \((\d+)\)", text)
    frames = list(traceback.walk_tb(error.__traceback__))
    if fixed:
        first = (
            f"the network fixes the free axis {fixed[1]!r} at {fixed[2]} (a reshape to a constant, a loop over the "
            "axis, an int() of its size); write it for any size"
        )
    elif "Constraints violated" in first and len(lines) > 1:
        first = f"{lines[1]}; leave that axis out of `dynamic`, or change the network"
    elif re.search(r"data.dependent|GuardOnDataDependent|\bu\d+\b", text):
        first = f"control flow that depends on data ({first}); write it with torch.where, or decide it before packing"
    elif any(isinstance(value, PackedSequence) for frame, _ in frames for value in frame.f_locals.values()):
        first = (
            "packed sequences have no graph; run the recurrent layers on the padded series and select each row's "
            "last step by its length"
        )
    places = re.findall(r'File "([^"]+)", line (\d+)', text)
    places += [(frame.f_code.co_filename, line) for frame, line in frames] if not places else []
    own = [(name, line) for name, line in places if not _FOREIGN.search(name)]
    return first + (f" at {own[-1][0].rsplit('/', 1)[-1]}:{own[-1][1]}" if own else "")


_FOREIGN = re.compile(r"/torch/|/dubito_models/|^<|/contextlib\.py$")
