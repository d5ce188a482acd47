"""Packing: a trained network becomes the next version of a model, or is refused with the reason."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dubito_models.archive import write_program
from dubito_models.audit import audit, difference
from dubito_models.engine import MAX_SEED, choose_default_draws
from dubito_models.errors import AuditFailed, InvalidArgument
from dubito_models.export import Example, export_network, free_bounds, read_example
from dubito_models.files import write_atomically
from dubito_models.heads import Head, Task, count_outputs
from dubito_models.manifest import DTYPES, NAME, DtypeName, InputSignature, Manifest
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
from dubito_models.program import StochasticProgram
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
    output: str | int | None = None,
    class_names: Sequence[str] | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    allow_nan: Sequence[str] = (),
    noise_variance: Sequence[float] | None = None,
    draws: int | None = None,
    seed: int = 0,
    version: int | None = None,
) -> ModelVersion:
    """Package a trained network that contains dropout as the next version of a model, and return it ready.

    The module is not touched. `example_inputs`: a tensor, tensors in the order of `forward`, or by name; axis 0 is
    the rows. `task`: classification or regression. `head`: what the output means (`Head`). `output` picks the
    prediction where the network returns several. `dynamic` names further free axes, `{"tokens": {1: "length"}}`.
    `allow_nan`: inputs that may hold NaN and infinity. `noise_variance` (K): a regression's constant noise.
    `draws`, `seed`: the version's defaults.

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
    if version is not None and version < 1:
        raise InvalidArgument("version", version, "a positive integer")
    example = read_example(module, example_inputs, dynamic)
    exported = export_network(module, example, output)
    onnx = export_onnx(exported.standard)
    program = StochasticProgram(exported.stochastic, _free_axes(example), exported.output)
    shapes = program.mask_shapes(_symbols(example))
    balanced = choose_balanced(program.sites, shapes)
    group_size = choose_group_size([site.rate for site in program.sites])
    masks = Masks(program, group_size=group_size, balanced=balanced)
    standard = StandardPath(onnx, program.inputs, exported.output)
    found = audit(program, standard.run, masks, [example.inputs])
    raw = _check_against_module(module, example, output, standard)
    outputs = count_outputs(meaning, tuple(raw.shape))
    _check_outputs(meaning, raw, outputs, class_names, noise_variance)
    bounds = free_bounds(exported.stochastic, example)
    archive = write_program(exported.stochastic)
    manifest = Manifest(
        name=name,
        version=version or 1,
        task=kind,
        head=meaning,
        outputs=outputs,
        class_names=None if class_names is None else tuple(class_names),
        inputs=tuple(_sign(n, v, example, bounds.get(n, {}), n in allow_nan) for n, v in example.inputs.items()),
        output_index=exported.output,
        sites=tuple(enter_site(site, even) for site, even in zip(program.sites, balanced, strict=True)),
        design=Design.BALANCED,
        group_size=group_size,
        default_draws=draws or choose_default_draws(group_size),
        default_seed=seed,
        noise_variance=None if noise_variance is None else tuple(float(v) for v in noise_variance),
        parity=found.parity,
        warnings=_warn(meaning, noise_variance, balanced, program),
        checksums={PROGRAM: digest(archive), STANDARD: digest(onnx)},
        made_with={"torch": torch.__version__, "dubito": metadata.version("dubito")},
    )
    return _commit(Path(repository), manifest, {PROGRAM: archive, STANDARD: onnx}, fixed=version is not None)


def _warn(
    head: Head, noise: Sequence[float] | None, balanced: Sequence[bool], program: StochasticProgram
) -> tuple[str, ...]:
    """Say what whoever reads the answers should know of the version."""
    warnings = list(program.remarks())
    if head is Head.MEAN and noise is None:
        warnings.append(
            "the network does not know the noise of its targets: variances and intervals cover the doubt about its "
            "mean alone; use head mean_and_log_variance, or give noise_variance"
        )
    alone = [site.name for site, even in zip(program.sites, balanced, strict=True) if not even]
    if alone:
        warnings.append(f"drawn independently even under a balanced design: {', '.join(alone)}")
    return tuple(warnings)


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


def _check_against_module(
    module: nn.Module, example: Example, output: str | int | None, standard: StandardPath
) -> NDArray[Any]:
    """Compare the ONNX network with the caller's own module in evaluation mode, whose modes are put back."""
    modes = [(part, part.training) for part in module.modules()]
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    try:
        module.eval()
        with torch.no_grad():
            answer = module(**{name: value.to(device) for name, value in example.inputs.items()})
    finally:
        for part, mode in modes:
            part.training = mode
    if output is not None:
        answer = answer[output]
    elif isinstance(answer, (tuple, list)):
        [answer] = answer
    elif isinstance(answer, Mapping):
        [answer] = answer.values()
    raw = standard.run({name: value.numpy() for name, value in example.inputs.items()})
    gap = difference(torch.as_tensor(raw), answer.cpu())
    if gap > 1e-5:
        raise AuditFailed(f"the ONNX network is off the module by {gap:.2g} of its scale (accepted 1e-5)")
    return raw


def _check_outputs(
    head: Head, raw: NDArray[Any], outputs: int, class_names: Sequence[str] | None, noise: Sequence[float] | None
) -> None:
    if class_names is not None and (head.task is not Task.CLASSIFICATION or len(class_names) != outputs):
        raise InvalidArgument("class_names", f"{len(class_names)} names", f"{outputs} names, of a classification")
    if noise is not None and (
        head is not Head.MEAN or len(noise) != outputs or not all(v >= 0 and math.isfinite(v) for v in noise)
    ):
        raise InvalidArgument("noise_variance", list(noise), f"{outputs} finite numbers >= 0, for head 'mean'")
    sums = {Head.PROBABILITIES: lambda: raw.sum(-1), Head.LOG_PROBABILITIES: lambda: np.exp(raw).sum(-1)}
    if head in sums and (np.abs(sums[head]() - 1) > 1e-3).any():
        raise InvalidArgument("head", repr(head.value), "a head whose probabilities sum to 1; or 'logits'")
    if not np.isfinite(raw).all() and head is not Head.LOG_PROBABILITIES:
        raise InvalidArgument("example_inputs", "a prediction that is not finite", "inputs the network can handle")


def _sign(
    name: str, value: Tensor, example: Example, bounds: dict[int, tuple[int, int | None]], allow_nan: bool
) -> InputSignature:
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise InvalidArgument(f"example_inputs[{name!r}]", dtype, ", ".join(DTYPES))
    free = dict(example.free.get(name, {}))
    finite = value[torch.isfinite(value)].double() if value.is_floating_point() else value.double()
    return InputSignature(
        name=name,
        dtype=cast(DtypeName, dtype),
        shape=tuple(None if axis == 0 or axis in free else size for axis, size in enumerate(value.shape)),
        free=free,
        bounds=bounds,
        allow_nan=allow_nan,
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
        ready = open_version(staging, manifest)
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
