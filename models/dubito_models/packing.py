"""Packing: a trained network becomes the next version of a model, or is refused with the reason."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dubito_models.archive import write_program
from dubito_models.audit import audit, audit_rounding, difference
from dubito_models.columns import Column
from dubito_models.engine import choose_default_draws
from dubito_models.errors import AuditFailed, CorruptVersion, InvalidArgument, UnsupportedNetwork
from dubito_models.export import Example, Exported, as_served, export_network, free_bounds, read_example
from dubito_models.files import write_atomically
from dubito_models.heads import Head, Task, count_outputs
from dubito_models.manifest import DTYPES, MAX_FAN_OUT, NAME, ColumnEntry, DtypeName, InputSignature, Manifest
from dubito_models.original import Output, ask, check_module, duplicate, unwrap
from dubito_models.package import (
    MANIFEST,
    PROGRAM,
    STANDARD,
    ModelVersion,
    digest,
    enter_site,
    open_version,
    version_numbers,
)
from dubito_models.precision import Precision
from dubito_models.program import StochasticProgram
from dubito_models.rewriting import write_out_attention
from dubito_models.sampling import MAX_SEED
from dubito_models.sites import switch_off
from dubito_models.standard import StandardPath, export_onnx
from dubito_models.thinning import Design, Masks, choose_balanced, choose_group_size


def pack(
    module: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    *,
    repository: str | Path,
    name: str,
    task: str,
    head: str,
    output: Output = None,
    class_names: Sequence[str] | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    allow_nan: Sequence[str] = (),
    columns: Mapping[str, Sequence[Column]] | None = None,
    noise_variance: Sequence[float] | None = None,
    draws: int | None = None,
    seed: int = 0,
    precision: str = "float32",
    fan_out: int | None = None,
    version: int | None = None,
) -> ModelVersion:
    """Package a trained network that contains dropout as the next version of a model, and return it ready.

    The module is not touched. `example_inputs`: a tensor, tensors in the order of `forward`, or by name; axis 0 is
    the rows. `task`: classification or regression. `head`: what the output means (`Head`). `output` picks the
    prediction where the network returns several tensors: a key, a number, a field; or several that are joined, as
    `(0, 1)` for a mean and a log variance. `dynamic` names further free axes, `{"tokens": {1: "length"}}`.
    `allow_nan`: inputs that may hold NaN and infinity. `columns`: of inputs that are tables (B, C), what each of the C
    numbers is; they say themselves where NaN may stand. `noise_variance` (K): a regression's constant noise.
    `draws`, `seed`: the version's defaults. `precision`: "bfloat16" lets the products and recurrent layers of the draws
    be rounded, where that moves no draw by more than a twentieth of the draws' standard deviation. `fan_out`: so many
    masks of the last site for each draw of the others, which pays where little is computed after it; a draw then says
    their mean. Where nothing is said, a regression that ends in dropout and one linear layer has all of them, in closed
    form.

    Raises `UnsupportedNetwork` (no dropout, randomness that is not dropout, a law that fails) or `InvalidArgument`;
    nothing is left on disk then.
    """
    kind, meaning = _read_task(task, head)
    if not NAME.fullmatch(name):
        raise InvalidArgument("name", repr(name), "1 to 128 of A-Z a-z 0-9 _ -")
    if draws is not None and draws < 1:
        raise InvalidArgument("draws", draws, "at least 1")
    if not 0 <= seed <= MAX_SEED:
        raise InvalidArgument("seed", seed, f"0..{MAX_SEED}")
    if precision not in [each.value for each in Precision]:
        raise InvalidArgument("precision", repr(precision), ", ".join(Precision))
    if fan_out is not None and not 1 <= fan_out <= MAX_FAN_OUT:
        raise InvalidArgument("fan_out", fan_out, f"1..{MAX_FAN_OUT}")
    if version is not None and version < 1:
        raise InvalidArgument("version", version, "a positive integer")
    module = unwrap(module)
    check_module(module)
    example = read_example(module, example_inputs, dynamic)
    _check_dtypes(example)
    with as_served():
        own = ask(duplicate(module), example.inputs, output)
    outputs = _count_outputs(meaning, own, example)
    _check_outputs(meaning, own.numpy(), outputs, class_names, noise_variance)
    tables = columns or {}
    _check_tables(tables, example, allow_nan)
    exported = export_network(module, example, output)
    program = StochasticProgram(exported.stochastic, _free_axes(example), exported.output)
    always_on = switch_off(exported.standard.graph)
    with as_served():
        onnx = export_onnx(write_out_attention(exported.standard))
        calm = exported.standard.module()(**example.inputs) if always_on else own
    shapes = program.mask_shapes(_symbols(example))
    balanced = choose_balanced(program.sites, shapes)
    group_size = choose_group_size([site.rate for site in program.sites])
    masks = Masks(program, group_size=group_size, balanced=balanced)
    standard = _open_standard(onnx, program.inputs, example, calm)
    found = audit(program, standard.run, masks, [example.inputs])
    rounding = _audit_precision(Precision(precision), exported, example, program, masks)
    fan_out, integrated = _choose_fan_out(fan_out, exported, example, meaning)
    _check_missing(tables, example, standard)
    bounds = free_bounds(exported.stochastic, example)
    archive = write_program(exported.stochastic)
    manifest = Manifest(
        name=name,
        version=version or 1,
        task=kind,
        head=meaning,
        outputs=outputs,
        class_names=None if class_names is None else tuple(class_names),
        inputs=tuple(
            _sign(name, value, example, bounds.get(name, {}), name in allow_nan, tables.get(name))
            for name, value in example.inputs.items()
        ),
        output_index=exported.output,
        sites=tuple(enter_site(site, even) for site, even in zip(program.sites, balanced, strict=True)),
        design=Design.BALANCED,
        group_size=group_size,
        default_draws=draws or choose_default_draws(group_size),
        default_seed=seed,
        noise_variance=None if noise_variance is None else tuple(float(v) for v in noise_variance),
        fan_out=fan_out,
        integrated=integrated,
        precision=Precision(precision),
        rounding=rounding,
        parity=found.parity,
        warnings=_warn(meaning, noise_variance, balanced, program, always_on, rounding),
        checksums={PROGRAM: digest(archive), STANDARD: digest(onnx)},
        made_with={"torch": torch.__version__, "dubito": metadata.version("dubito")},
    )
    return _commit(Path(repository), manifest, {PROGRAM: archive, STANDARD: onnx}, fixed=version is not None)


def _warn(
    head: Head,
    noise: Sequence[float] | None,
    balanced: Sequence[bool],
    program: StochasticProgram,
    always_on: Sequence[str],
    rounding: float,
) -> tuple[str, ...]:
    """Say what whoever reads the answers should know of the version."""
    warnings = list(program.remarks())
    if always_on:
        warnings.append(
            f"dropout that the module keeps on in evaluation mode too ({', '.join(always_on)}): the standard path is "
            "the network with it off"
        )
    if head is Head.MEAN and noise is None:
        warnings.append(
            "the network does not know the noise of its targets: variances and intervals cover the doubt about its "
            "mean alone; use head mean_and_log_variance, or give noise_variance"
        )
    alone = [site.name for site, even in zip(program.sites, balanced, strict=True) if not even]
    if alone:
        warnings.append(f"drawn independently even under a balanced design: {', '.join(alone)}")
    if rounding:
        warnings.append(
            "products of the draws are rounded to bfloat16: on the example inputs a draw is off by "
            f"{rounding:.2g} of the draws' standard deviation"
        )
    return tuple(warnings)


def _choose_fan_out(asked: int | None, exported: Exported, example: Example, head: Head) -> tuple[int, bool]:
    """Return the fan-out, and whether it stands for a last site that is integrated."""
    known = exported.stochastic, _free_axes(example), exported.output
    if asked is None:
        if head is not Head.MEAN:
            return 1, False
        try:
            return StochasticProgram(*known, integrated=True).fan_out, True
        except UnsupportedNetwork:
            return 1, False
    try:
        return StochasticProgram(*known, fan_out=asked).fan_out, False
    except UnsupportedNetwork as error:
        raise InvalidArgument("fan_out", asked, f"1: {error}") from None


def _audit_precision(
    precision: Precision, exported: Exported, example: Example, program: StochasticProgram, masks: Masks
) -> float:
    """Return what rounding moves a draw by, once it is known to gain something and to move none too far."""
    if precision is Precision.FLOAT32:
        return 0.0
    rounded = StochasticProgram(exported.stochastic, _free_axes(example), exported.output, precision)
    if not rounded.rounded_products:
        accepted = "float32: after its dropout the network multiplies little but what gives the prediction"
        raise InvalidArgument("precision", f"{precision.value}, by which nothing gains", accepted)
    return audit_rounding(program, rounded, masks, [example.inputs]).draw


def _read_task(task: str, head: str) -> tuple[Task, Head]:
    heads = {kind: [h.value for h in Head if h.task is kind] for kind in Task}
    if task not in [kind.value for kind in Task]:
        raise InvalidArgument("task", repr(task), ", ".join(Task))
    if head not in heads[Task(task)]:
        raise InvalidArgument("head", repr(head), f"for {task}: {', '.join(heads[Task(task)])}")
    return Task(task), Head(head)


def _free_axes(example: Example) -> dict[str, Mapping[int, str]]:
    return {name: example.free.get(name, {}) for name in example.inputs}


def _symbols(example: Example) -> dict[str, int]:
    sizes = {"rows": example.rows}
    for name, axes in example.free.items():
        sizes.update({label: example.inputs[name].shape[axis] for axis, label in axes.items()})
    return sizes


def _open_standard(onnx: bytes, inputs: Sequence[str], example: Example, expected: Tensor) -> StandardPath:
    """Open the ONNX network and hold it to what the caller's own module says of the example inputs."""
    try:
        standard = StandardPath(onnx, inputs, 0)
        raw = standard.run({name: value.numpy() for name, value in example.inputs.items()})
    except Exception as error:  # onnxruntime raises kinds of its own
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UnsupportedNetwork(f"onnxruntime cannot run the network on the example inputs: {first}") from error
    gap = difference(torch.as_tensor(raw), expected)
    if gap > 1e-5:
        raise AuditFailed(
            f"the ONNX network is off the module in evaluation mode by {gap:.2g} of its scale (accepted 1e-5): "
            "something in it is random then, changes from call to call, or is another operation in ONNX"
        )
    return standard


def _check_dtypes(example: Example) -> None:
    for name, value in example.inputs.items():
        if _dtype(value) not in DTYPES:
            raise InvalidArgument(f"example_inputs[{name!r}]", _dtype(value), ", ".join(DTYPES))


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _count_outputs(head: Head, prediction: Tensor, example: Example) -> int:
    """Return K, once the prediction is known to be numbers for each row."""
    if not prediction.is_floating_point():
        raise InvalidArgument("prediction", _dtype(prediction), f"floating point: {head.value}, not a decision")
    if prediction.dim() == 0 or prediction.shape[0] != example.rows:
        given = f"shape {tuple(prediction.shape)} for {example.rows} rows"
        raise InvalidArgument("prediction", given, "a prediction for each row: axis 0 is the rows")
    return count_outputs(head, tuple(prediction.shape))


def _are_variances(found: object, count: int) -> bool:
    try:
        values = np.asarray(found, np.float64)
    except (TypeError, ValueError):
        return False
    return values.shape == (count,) and bool(np.isfinite(values).all() and (values >= 0).all())


def _check_outputs(
    head: Head, raw: NDArray[Any], outputs: int, class_names: Sequence[str] | None, noise: Sequence[float] | None
) -> None:
    if class_names is not None and (head.task is not Task.CLASSIFICATION or len(class_names) != outputs):
        raise InvalidArgument("class_names", f"{len(class_names)} names", f"{outputs} names, of a classification")
    if noise is not None and not (head is Head.MEAN and _are_variances(noise, outputs)):
        raise InvalidArgument("noise_variance", noise, f"a list of {outputs} finite numbers >= 0, for head 'mean'")
    sums = {Head.PROBABILITIES: lambda: raw.sum(-1), Head.LOG_PROBABILITIES: lambda: np.exp(raw).sum(-1)}
    if head in sums and (np.abs(sums[head]() - 1) > 1e-3).any():
        raise InvalidArgument("head", repr(head.value), "a head whose probabilities sum to 1; or 'logits'")
    if not np.isfinite(raw).all() and head is not Head.LOG_PROBABILITIES:
        raise InvalidArgument("example_inputs", "a prediction that is not finite", "inputs the network can handle")


def _check_tables(tables: Mapping[str, Sequence[Column]], example: Example, allow_nan: Sequence[str]) -> None:
    for name, columns in tables.items():
        field = f"columns[{name!r}]"
        if name not in example.inputs:
            raise InvalidArgument("columns", repr(name), f"the names of inputs: {', '.join(example.inputs)}")
        if name in allow_nan:
            raise InvalidArgument("allow_nan", repr(name), "inputs without columns: a table's say it themselves")
        value = example.inputs[name]
        if value.dim() != 2 or not value.is_floating_point() or example.free.get(name):
            given = f"columns of an input of shape {tuple(value.shape)}, {value.dtype}"
            raise InvalidArgument(field, given, "an input of floats (rows, columns), of which only the rows are free")
        if len(columns) != value.shape[1]:
            raise InvalidArgument(field, f"{len(columns)} columns", f"{value.shape[1]}, as the example has")
        twice = [column for column, times in Counter(column.name for column in columns).items() if times > 1]
        if twice:
            raise InvalidArgument(field, f"two columns {twice[0]!r}", "columns whose names differ")


def _check_missing(tables: Mapping[str, Sequence[Column]], example: Example, standard: StandardPath) -> None:
    """Hold a table to its word: with every value gone that may be missing, there still is a prediction."""
    inputs = {name: value.numpy().copy() for name, value in example.inputs.items()}
    for name, columns in tables.items():
        inputs[name][:, [column.allow_nan for column in columns]] = np.nan
    if tables and np.isnan(standard.run(inputs)).any():
        given = "columns with allow_nan, and a prediction of NaN where they are missing"
        raise InvalidArgument("columns", given, "allow_nan where the network itself replaces NaN")


def _sign(
    name: str,
    value: Tensor,
    example: Example,
    bounds: dict[int, tuple[int, int | None]],
    allow_nan: bool,
    columns: Sequence[Column] | None,
) -> InputSignature:
    free = dict(example.free.get(name, {}))
    finite = value[torch.isfinite(value)].double() if value.is_floating_point() else value.double()
    return InputSignature(
        name=name,
        dtype=cast(DtypeName, _dtype(value)),
        shape=tuple(None if axis == 0 or axis in free else size for axis, size in enumerate(value.shape)),
        free=free,
        bounds=bounds,
        allow_nan=allow_nan or any(column.allow_nan for column in columns or ()),
        columns=None if columns is None else tuple(ColumnEntry(**asdict(column)) for column in columns),
        example_shape=tuple(value.shape),
        low=float(finite.min()) if finite.numel() else 0.0,
        high=float(finite.max()) if finite.numel() else 1.0,
    )


def _commit(repository: Path, manifest: Manifest, files: Mapping[str, bytes], *, fixed: bool) -> ModelVersion:
    """Write a version beside the others, load it, and rename it into place; its number is the next unless fixed."""
    parent = repository / manifest.name
    parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".incoming-", dir=parent))
    try:
        staging.chmod(0o755)
        for name, data in files.items():
            write_atomically(staging / name, data)
        try:
            ready = open_version(staging, manifest)
        except CorruptVersion as error:
            raise UnsupportedNetwork(f"the packed network cannot be loaded again: {error}") from error
        if ready.fallback:
            raise AuditFailed(ready.fallback)
        while True:
            number = manifest.version if fixed else max([0, *version_numbers(parent)]) + 1
            final = manifest.model_copy(update={"version": number})
            write_atomically(staging / MANIFEST, final.model_dump_json(indent=2).encode())
            target = parent / str(number)
            try:
                staging.rename(target)
            except OSError:
                if not target.exists():
                    raise
                if fixed:
                    raise InvalidArgument("version", number, f"a number that {manifest.name!r} does not have") from None
                continue  # another packer was faster; take the next number
            return ModelVersion(target, final, ready.engine, ready.standard)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
