"""A version on disk, and the repository: `<repository>/<model>/<version>/`.

`manifest.json` is written last and commits a version. A version never changes afterwards; calibrations are added
beside it, content-addressed, and `calibrations/current` names the one in use.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from dubito_models.archive import read_program, write_program
from dubito_models.audit import audit, difference
from dubito_models.calibration import Calibration, fit_temperature
from dubito_models.calibration.calibration import fingerprint
from dubito_models.engine import MAX_SEED, Defaults, Engine, SamplingSpec, choose_default_draws
from dubito_models.errors import AuditFailed, CalibrationMismatch, CorruptVersion, InvalidArgument, UnknownModel
from dubito_models.export import Example, export_network, read_example
from dubito_models.heads import Head, Task, count_outputs
from dubito_models.manifest import DTYPES, NAME, DtypeName, InputSignature, Manifest, SiteEntry, read_inputs
from dubito_models.predictive import Predictive
from dubito_models.program import StochasticProgram
from dubito_models.sites import Site
from dubito_models.standard import Evaluation, StandardPath, export_onnx, interpret
from dubito_models.thinning import Design, Masks, choose_balanced, choose_group_size

PROGRAM, STANDARD, MANIFEST = "program.pt2", "standard.onnx", "manifest.json"
CALIBRATIONS, CURRENT = "calibrations", "current"
_AUDIT_ROWS = 3


class ModelVersion:
    """A version that is ready to answer: the Monte Carlo path, the standard path, and its calibration."""

    def __init__(self, folder: Path, manifest: Manifest, engine: Engine, standard: StandardPath) -> None:
        self.folder = folder
        self.manifest = manifest
        self.engine = engine
        self.standard = standard
        self.calibration = _read_current(folder, manifest)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def version(self) -> int:
        """The version's number."""
        return self.manifest.version

    def read_inputs(self, inputs: ArrayLike | Mapping[str, ArrayLike]) -> dict[str, Tensor]:
        """Check inputs against the signature; `InvalidArgument` names what is wrong. One input needs no name."""
        return read_inputs(self.manifest.inputs, inputs)

    def predict(self, inputs: ArrayLike | Mapping[str, ArrayLike], spec: SamplingSpec | None = None) -> Predictive:
        """Answer by the Monte Carlo path, with the current calibration."""
        return self.engine.predict(self.read_inputs(inputs), spec, self.calibration)

    def evaluate(self, inputs: ArrayLike | Mapping[str, ArrayLike]) -> Evaluation:
        """Answer by the standard path."""
        tensors = self.read_inputs(inputs)
        output = self.standard.run({name: value.numpy() for name, value in tensors.items()})
        noise = self.manifest.noise_variance
        return interpret(self.manifest.head, output, None if noise is None else np.asarray(noise))

    def calibrate(self, inputs: ArrayLike | Mapping[str, ArrayLike], labels: ArrayLike) -> Calibration:
        """Fit a temperature through the serving engine, with the version's own seed, design and draws.

        It is kept only where the cross-validated likelihood improves; else the calibration is the identity.
        Saved beside the version and used from now on. Classification only.
        """
        if self.manifest.task is not Task.CLASSIFICATION:
            raise InvalidArgument("task", self.manifest.task.value, "classification: it has a temperature")
        tensors = self.read_inputs(inputs)
        classes = np.asarray(labels)
        if not np.issubdtype(classes.dtype, np.integer):
            raise InvalidArgument("labels", f"dtype {classes.dtype}", "integers, class numbers")
        fitted = fit_temperature(self.engine.log_probabilities(tensors), classes.astype(np.int64))
        plan = self.engine.plan(SamplingSpec())
        calibration = Calibration(
            method="temperature" if fitted.helps else "identity",
            temperature=fitted.temperature if fitted.helps else 1.0,
            draws=plan.max_draws,
            seed=plan.seed,
            design=plan.design.value,
            group_size=plan.group_size,
            program=self.manifest.checksums[PROGRAM],
            data_fingerprint=fingerprint({**{n: t.numpy() for n, t in tensors.items()}, "labels": classes}),
            rows=len(classes),
            nll_before=fitted.nll_before,
            nll_after=fitted.nll_after,
        )
        self.save_calibration(calibration)
        return calibration

    def save_calibration(self, calibration: Calibration) -> None:
        """Store a calibration beside the version and switch to it."""
        if calibration.program != self.manifest.checksums[PROGRAM]:
            raise CalibrationMismatch(
                f"calibration {calibration.id} was fitted for program {calibration.program[:12]}, not for "
                f"{self.manifest.checksums[PROGRAM][:12]} of {self.name} version {self.version}"
            )
        folder = self.folder / CALIBRATIONS
        folder.mkdir(exist_ok=True)
        _write_atomically(folder / f"{calibration.id}.json", json.dumps(asdict(calibration), indent=2).encode())
        _write_atomically(folder / CURRENT, calibration.id.encode())
        self.calibration = calibration


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
    archive = write_program(exported.stochastic)
    manifest = Manifest(
        name=name,
        version=version or 1,
        task=kind,
        head=meaning,
        outputs=outputs,
        class_names=None if class_names is None else tuple(class_names),
        inputs=tuple(_sign(n, v, example, n in allow_nan) for n, v in example.inputs.items()),
        output_index=exported.output,
        sites=tuple(_enter(site, even) for site, even in zip(program.sites, balanced, strict=True)),
        design=Design.BALANCED,
        group_size=group_size,
        default_draws=draws or choose_default_draws(group_size),
        default_seed=seed,
        noise_variance=None if noise_variance is None else tuple(float(v) for v in noise_variance),
        parity=found.parity,
        checksums={PROGRAM: _digest(archive), STANDARD: _digest(onnx)},
        made_with={"torch": torch.__version__, "dubito": metadata.version("dubito")},
    )
    return _commit(Path(repository), manifest, {PROGRAM: archive, STANDARD: onnx}, fixed=version is not None)


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


def _sign(name: str, value: Tensor, example: Example, allow_nan: bool) -> InputSignature:
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
        allow_nan=allow_nan,
        example_shape=tuple(value.shape),
        low=float(finite.min()) if finite.numel() else 0.0,
        high=float(finite.max()) if finite.numel() else 1.0,
    )


def _enter(site: Site, balanced: bool) -> SiteEntry:
    return SiteEntry(**asdict(site), balanced=balanced)


def _commit(repository: Path, manifest: Manifest, files: Mapping[str, bytes], *, fixed: bool) -> ModelVersion:
    """Write a version beside the others, load it, and rename it into place; its number is the next unless fixed."""
    parent = repository / manifest.name
    parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".incoming-", dir=parent))
    try:
        staging.chmod(0o755)
        for name, data in files.items():
            _write_atomically(staging / name, data)
        ready = _open(staging, manifest)
        while True:
            number = manifest.version if fixed else max([0, *_numbers(parent)]) + 1
            final = manifest.model_copy(update={"version": number})
            _write_atomically(staging / MANIFEST, final.model_dump_json(indent=2).encode())
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


def _write_atomically(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _numbers(folder: Path) -> list[int]:
    """Every version number that a folder's names take, committed or not."""
    return sorted(int(entry.name) for entry in folder.iterdir() if re.fullmatch(r"[1-9]\d{0,17}", entry.name))


def load_version(folder: Path) -> ModelVersion:
    """Load a committed version: checksums, archive tables, sites and the audit must all hold.

    Raises `CorruptVersion` or `UnsupportedNetwork` with the reason.
    """
    return _open(folder, _read_manifest(folder))


def _open(folder: Path, manifest: Manifest) -> ModelVersion:
    program = StochasticProgram(
        read_program(_read_checked(folder, PROGRAM, manifest)),
        {entry.name: entry.free for entry in manifest.inputs},
        manifest.output_index,
    )
    balanced = tuple(entry.balanced for entry in manifest.sites)
    if len(balanced) != len(program.sites) or manifest.sites != tuple(map(_enter, program.sites, balanced)):
        raise CorruptVersion(f"{MANIFEST}: its sites are not those of {PROGRAM}")
    masks = Masks(program, group_size=manifest.group_size, balanced=balanced, kept_seed=manifest.default_seed)
    names = [entry.name for entry in manifest.inputs]
    standard = StandardPath(_read_checked(folder, STANDARD, manifest), names, manifest.output_index)
    found = audit(program, standard.run, masks, _make_samples(manifest.inputs))
    noise = manifest.noise_variance
    engine = Engine(
        program,
        masks,
        manifest.head,
        Defaults(manifest.default_draws, manifest.default_seed, manifest.design),
        noise_variance=None if noise is None else np.asarray(noise),
        vmapped=found.vmapped,
    )
    return ModelVersion(folder, manifest, engine, standard)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise CorruptVersion(f"{MANIFEST} is missing: the version was not written to its end") from None
    except (ValidationError, OSError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(str(part) for part in first["loc"])
        raise CorruptVersion(f"{MANIFEST}: {where + ': ' if where else ''}{first['msg']}") from None
    if (manifest.name, str(manifest.version)) != (folder.parent.name, folder.name):
        raise CorruptVersion(f"{MANIFEST}: says {manifest.name} version {manifest.version}, its folder says otherwise")
    return manifest


def _read_checked(folder: Path, name: str, manifest: Manifest) -> bytes:
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise CorruptVersion(f"{name}: cannot be read ({error.strerror})") from None
    if manifest.checksums.get(name) != _digest(data):
        raise CorruptVersion(f"{name}: its checksum is not the manifest's; the file was changed or cut off")
    return data


def _make_samples(signature: Sequence[InputSignature]) -> list[dict[str, Tensor]]:
    """Make audit inputs of the range that the packing example had: at its sizes, and with free axes one longer."""
    longer = [0, 1] if any(entry.free for entry in signature) else [0]
    generator = np.random.default_rng(0)
    samples = []
    for more in longer:
        sample = {}
        for entry in signature:
            shape = [size + more if axis in entry.free else size for axis, size in enumerate(entry.example_shape)]
            shape[0] = _AUDIT_ROWS
            if entry.dtype.startswith("float"):
                values = generator.uniform(entry.low, entry.high, shape)
            else:
                values = generator.integers(int(entry.low), int(entry.high) + 1, shape).astype(np.float64)
            sample[entry.name] = torch.from_numpy(values.astype(entry.dtype))
        samples.append(sample)
    return samples


def _read_current(folder: Path, manifest: Manifest) -> Calibration | None:
    pointer = folder / CALIBRATIONS / CURRENT
    if not pointer.exists():
        return None
    name = pointer.read_text(errors="replace").strip()
    try:
        if not re.fullmatch(r"[0-9a-f]{16}", name):
            raise CorruptVersion(f"{CALIBRATIONS}/{CURRENT} names no calibration")
        stored = (folder / CALIBRATIONS / f"{name}.json").read_bytes()
        calibration = TypeAdapter(Calibration).validate_json(stored, strict=False)
    except (OSError, ValidationError) as error:
        raise CorruptVersion(f"{CALIBRATIONS}/{name}.json cannot be read ({type(error).__name__})") from None
    if calibration.id != name:
        raise CorruptVersion(f"{CALIBRATIONS}/{name}.json: its content is not what its name says")
    if calibration.program != manifest.checksums[PROGRAM]:
        raise CalibrationMismatch(f"calibration {name} was fitted for another program")
    return calibration


class Repository:
    """A folder of `<model>/<version>/`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise InvalidArgument("repository", str(self.path), "an existing folder")

    def scan(self) -> dict[str, list[int]]:
        """Return the version numbers of each model, ascending; versions not written to their end are listed too."""
        return {
            entry.name: _numbers(entry)
            for entry in sorted(self.path.iterdir())
            if entry.is_dir() and NAME.fullmatch(entry.name) and _numbers(entry)
        }

    def load(self, model: str, version: int | None = None) -> ModelVersion:
        """Load one version, or the newest; `UnknownModel` or what `load_version` raises."""
        numbers = self.scan().get(model, [])
        if not numbers or (version is not None and version not in numbers):
            wanted = model if version is None else f"{model} version {version}"
            raise UnknownModel(f"no {wanted} in {self.path}")
        return load_version(self.path / model / str(version or numbers[-1]))
