"""A version on disk: `<repository>/<model>/<version>/`.

`manifest.json` is written last and commits a version. A version never changes afterwards; calibrations are added
beside it, content-addressed, and `calibrations/current` names the one in use.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.export import ExportedProgram

from dubito_models.archive import read_program
from dubito_models.audit import ROUNDING, TOLERANCE, audit, audit_fan, audit_rounding
from dubito_models.calibrating import CalibrationSpec, Identity, Rows, calibrate_engine
from dubito_models.calibration import Calibration
from dubito_models.calibration.calibration import fingerprint
from dubito_models.engine import Defaults, Engine, choose_pass_bytes
from dubito_models.errors import AuditFailed, CalibrationMismatch, CorruptVersion, InvalidArgument
from dubito_models.files import write_atomically
from dubito_models.heads import Task
from dubito_models.manifest import InputSignature, Manifest, SiteEntry, read_inputs
from dubito_models.precision import Precision, has_bfloat16_products
from dubito_models.predictive import Predictive
from dubito_models.program import StochasticProgram
from dubito_models.recording import CudaGraphs, Recorder
from dubito_models.sampling import SamplingSpec
from dubito_models.sites import Site
from dubito_models.standard import Evaluation, StandardPath, interpret
from dubito_models.thinning import Masks
from dubito_models.tuning import Timing, tune

PROGRAM, STANDARD, MANIFEST = "program.pt2", "standard.onnx", "manifest.json"
CALIBRATIONS, CURRENT = "calibrations", "current"
_AUDIT_ROWS = 3
log = logging.getLogger(__name__)


class ModelVersion:
    """A version that is ready to answer: the Monte Carlo path, the standard path, and its calibration."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        engine: Engine,
        standard: StandardPath,
        others: Sequence[Engine] = (),
        *,
        fallback: str = "",
    ) -> None:
        """Put it together; `others`: engines of the same network, on other devices.

        `fallback`: why draws are float32 here though they were packed otherwise; "" where they are as packed.
        """
        self.folder = folder
        self.manifest = manifest
        self.engine = engine
        self._others = tuple(others)
        self.standard = standard
        self.fallback = fallback
        self.calibration = _read_current(folder, manifest)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def version(self) -> int:
        """The version's number."""
        return self.manifest.version

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engines of the Monte Carlo path, one for each device that it is on."""
        return self.engine, *self._others

    @property
    def warnings(self) -> tuple[str, ...]:
        """What whoever reads the answers should know: what packing found, and how they are drawn here."""
        return (*self.manifest.warnings, self.fallback) if self.fallback else self.manifest.warnings

    def read_inputs(self, inputs: ArrayLike | Mapping[str, ArrayLike]) -> dict[str, Tensor]:
        """Check inputs against the signature; `InvalidArgument` names what is wrong. One input needs no name."""
        return read_inputs(self.manifest.inputs, inputs)

    def predict(self, inputs: ArrayLike | Mapping[str, ArrayLike], spec: SamplingSpec | None = None) -> Predictive:
        """Answer by the Monte Carlo path, with the current calibration."""
        return self.engine.predict(self.read_inputs(inputs), spec, self.calibration)

    def evaluate(self, inputs: ArrayLike | Mapping[str, ArrayLike]) -> Evaluation:
        """Answer by the standard path."""
        return self.evaluate_tensors(self.read_inputs(inputs))

    def evaluate_tensors(self, tensors: Mapping[str, Tensor]) -> Evaluation:
        """Answer by the standard path, of inputs that `read_inputs` returned."""
        output = self.standard.run({name: value.numpy() for name, value in tensors.items()})
        noise = self.manifest.noise_variance
        return interpret(self.manifest.head, output, None if noise is None else np.asarray(noise))

    def calibrate(
        self, inputs: ArrayLike | Mapping[str, ArrayLike], targets: ArrayLike, spec: CalibrationSpec | None = None
    ) -> Calibration:
        """Fit a calibration through the serving engine, with the version's own seed and design (see `calibrating`).

        `targets`: class numbers (N,), or numbers (N,) or (N, K) of a regression. Saved beside the version, and used
        from now on. Draws that are not those of the packed precision would not be what is served elsewhere.
        """
        if self.fallback:
            accepted = "a device that keeps the packed precision, or a version packed with precision float32"
            raise InvalidArgument("calibrate", self.fallback, accepted)
        tensors = self.read_inputs(inputs)
        rows = Rows(tensors, self._read_targets(np.asarray(targets), len(next(iter(tensors.values())))))
        named = {**{name: tensor.numpy() for name, tensor in tensors.items()}, "labels": rows.targets}
        calibration = calibrate_engine(
            self.engine, _identity(self.manifest), rows, spec or CalibrationSpec(), fingerprint(named)
        )
        self.save_calibration(calibration)
        return calibration

    def _read_targets(self, targets: NDArray[Any], rows: int) -> NDArray[Any]:
        """Check targets against the task; class numbers (N,), or numbers (N, K)."""
        if self.manifest.task is Task.CLASSIFICATION:
            return read_labels(targets, rows, self.manifest.outputs)
        if not np.issubdtype(targets.dtype, np.number):
            raise InvalidArgument("targets", f"dtype {targets.dtype}", "numbers")
        columns = targets[:, None] if targets.ndim == 1 else targets
        if columns.shape != (rows, self.manifest.outputs):
            accepted = f"shape ({rows}, {self.manifest.outputs}), (rows, targets)"
            raise InvalidArgument("targets", f"shape {targets.shape}", accepted)
        if not np.isfinite(columns).all():
            raise InvalidArgument("targets", "NaN or infinity", "finite numbers")
        return columns.astype(np.float64)

    def tune(self, seconds: float = 0.3) -> tuple[Timing, ...]:
        """Choose by the clock how many draws ride a pass, on made-up rows (see `tuning.tune`)."""
        return tune(self.engine, lambda rows: make_rows(self.manifest.inputs, rows), seconds, self._others)

    def calibrations(self) -> tuple[Calibration, ...]:
        """Return every calibration that is stored beside the version, the oldest first."""
        files = sorted((self.folder / CALIBRATIONS).glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path))
        return tuple(_read_calibration(self.folder, path.stem, self.manifest) for path in files)

    def use_calibration(self, name: str | None) -> None:
        """Switch to a stored calibration by its id, or to none."""
        pointer = self.folder / CALIBRATIONS / CURRENT
        if name is None:
            pointer.unlink(missing_ok=True)
            self.calibration = None
            return
        known = [calibration.id for calibration in self.calibrations()]
        if name not in known:
            raise InvalidArgument("calibration", name, ", ".join(known) or "none: no calibration is stored")
        self.calibration = _read_calibration(self.folder, name, self.manifest)
        write_atomically(pointer, name.encode())

    def refresh_calibration(self) -> bool:
        """Take up the calibration that the disk says is current; tell whether that is another one."""
        before = "" if self.calibration is None else self.calibration.id
        if _read_pointer(self.folder) == before:
            return False
        self.calibration = _read_current(self.folder, self.manifest)
        return True

    def save_calibration(self, calibration: Calibration) -> None:
        """Store a calibration beside the version and switch to it."""
        _check_fits(calibration, self.manifest)
        folder = self.folder / CALIBRATIONS
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"{calibration.id}.json", json.dumps(_finite(asdict(calibration)), indent=1).encode())
        write_atomically(folder / CURRENT, calibration.id.encode())
        self.calibration = calibration


def enter_site(site: Site, balanced: bool) -> SiteEntry:
    """Write a site of a program as a manifest has it."""
    return SiteEntry(**asdict(site), balanced=balanced)


def digest(data: bytes) -> str:
    """Return the checksum that a manifest holds of a file."""
    return hashlib.sha256(data).hexdigest()


def version_numbers(folder: Path) -> list[int]:
    """Every version number that a folder's names take, committed or not."""
    return sorted(int(entry.name) for entry in folder.iterdir() if re.fullmatch(r"[1-9]\d{0,17}", entry.name))


def load_version(folder: Path, *, pass_bytes: int | None = None, device: str = "cpu") -> ModelVersion:
    """Load a committed version: checksums, archive tables, sites and the audit must all hold.

    `pass_bytes`: what the largest value of a pass may take; None: what `choose_pass_bytes` says. `device`: "cpu", or
    "cuda" for the Monte Carlo path to run on each GPU, "auto" where there is one. Raises `CorruptVersion` or
    `UnsupportedNetwork` with the reason.
    """
    first, *others = choose_devices(device)
    return open_version(folder, _read_manifest(folder), pass_bytes, first, others)


def choose_device(name: str) -> torch.device:
    """Return the device that "cpu", "cuda" or "auto" means here; on a GPU, float32 then means float32."""
    if name not in ("auto", "cpu", "cuda"):
        raise InvalidArgument("device", name, "auto, cpu, cuda")
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise InvalidArgument("device", name, "cpu or auto: torch finds no GPU here")
    if name == "cpu" or not there:
        return torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False  # or convolutions keep 10 of 23 bits
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    return torch.device("cuda")


def choose_devices(name: str) -> tuple[torch.device, ...]:
    """Return every device that "cpu", "cuda" or "auto" means here: the CPU, or each GPU."""
    device = choose_device(name)
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    return (device,) if count == 1 else tuple(torch.device(device.type, number) for number in range(count))


def open_version(
    folder: Path,
    manifest: Manifest,
    pass_bytes: int | None = None,
    device: torch.device | None = None,
    others: Sequence[torch.device] = (),
) -> ModelVersion:
    """Load what a manifest describes from a folder, committed or not yet; audited on the device.

    `others`: devices like it that have an engine of the network too, in this order. Where the packed precision fails
    its audit there, draws are float32 on all of them, and the version says so.
    """
    exported = read_program(_read_checked(folder, PROGRAM, manifest))
    names = [entry.name for entry in manifest.inputs]
    standard = StandardPath(_read_checked(folder, STANDARD, manifest), names, manifest.output_index)
    found = _open_program(exported, manifest, standard, device or torch.device("cpu"))
    engine = make_engine(found.program, manifest, pass_bytes, found.vmapped)
    copies = []
    for other in others:
        exported = read_program(_read_checked(folder, PROGRAM, manifest))
        program = _make_program(exported, manifest, found.program.precision).to(other)
        copies.append(make_engine(program, manifest, pass_bytes, found.vmapped))
    return ModelVersion(folder, manifest, engine, standard, copies, fallback=found.fallback)


def make_engine(program: StochasticProgram, manifest: Manifest, pass_bytes: int | None, vmapped: bool) -> Engine:
    """Return an engine of a version's program that nobody has tuned; `vmapped`: whether its draws may be vmapped."""
    balanced = tuple(entry.balanced for entry in manifest.sites)
    noise = manifest.noise_variance
    return Engine(
        program,
        Masks(program, group_size=manifest.group_size, balanced=balanced, kept_seed=manifest.default_seed),
        manifest.head,
        Defaults(manifest.default_draws, manifest.default_seed, manifest.design),
        noise_variance=None if noise is None else np.asarray(noise),
        pass_bytes=choose_pass_bytes(program.device) if pass_bytes is None else pass_bytes,
        vmapped=vmapped,
        recorder=Recorder(CudaGraphs(program.device), program.select) if program.device.type == "cuda" else None,
    )


def _make_program(exported: ExportedProgram, manifest: Manifest, precision: Precision) -> StochasticProgram:
    """Return the program in a precision and with the manifest's fan-out."""
    axes = {entry.name: entry.free for entry in manifest.inputs}
    return StochasticProgram(
        exported, axes, manifest.output_index, precision, manifest.fan_out, integrated=manifest.integrated
    )


@dataclass(frozen=True, slots=True)
class _Opened:
    """A program on its device that keeps the laws there, and whether it vmaps; `fallback`: see `ModelVersion`."""

    program: StochasticProgram
    vmapped: bool
    fallback: str = ""


def _open_program(
    exported: ExportedProgram, manifest: Manifest, standard: StandardPath, device: torch.device
) -> _Opened:
    """Open the program in the manifest's precision, or float32 where that fails; the laws are held to in float32."""
    axes = {entry.name: entry.free for entry in manifest.inputs}
    program = StochasticProgram(exported, axes, manifest.output_index).to(device)
    balanced = tuple(entry.balanced for entry in manifest.sites)
    if len(balanced) != len(program.sites) or manifest.sites != tuple(map(enter_site, program.sites, balanced)):
        raise CorruptVersion(f"{MANIFEST}: its sites are not those of {PROGRAM}")
    masks = Masks(program, group_size=manifest.group_size, balanced=balanced)
    samples = _make_samples(manifest.inputs)
    found = _Opened(program, audit(program, standard.run, masks, samples).vmapped)
    if manifest.precision is not Precision.FLOAT32:
        rounded = StochasticProgram(exported, axes, manifest.output_index, manifest.precision).to(device)
        found = _round(found, rounded, masks, samples, f"{manifest.name} version {manifest.version}")
    if manifest.fan_out == 1:
        return found
    precision = found.program.precision
    program = _make_program(exported, manifest, precision).to(device)
    masks = Masks(program, group_size=manifest.group_size, balanced=balanced)
    accepted = TOLERANCE if precision is Precision.FLOAT32 else ROUNDING
    return replace(found, program=program, vmapped=found.vmapped and audit_fan(program, masks, samples, accepted))


def _round(
    exact: _Opened, rounded: StochasticProgram, masks: Masks, samples: Sequence[Mapping[str, Tensor]], label: str
) -> _Opened:
    """Take the rounded program where it does what packing accepted, else the exact one, which says so."""
    if rounded.device.type == "cpu" and not has_bfloat16_products():
        log.warning("%s is in bfloat16, which this processor does not multiply: same numbers, not faster", label)
    try:
        return _Opened(rounded, audit_rounding(exact.program, rounded, masks, samples).vmapped)
    except AuditFailed as error:
        fallback = f"draws are float32 here, not {rounded.precision.value} as packed: {error}"
        log.warning("%s: %s", label, fallback)
        return replace(exact, fallback=fallback)


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
    if manifest.checksums.get(name) != digest(data):
        raise CorruptVersion(f"{name}: its checksum is not the manifest's; the file was changed or cut off")
    return data


def _make_samples(signature: Sequence[InputSignature]) -> list[dict[str, Tensor]]:
    """Make audit inputs: at the packing example's sizes, and with free axes one longer."""
    longer = [0, 1] if any(entry.free for entry in signature) else [0]
    return [make_rows(signature, _AUDIT_ROWS, more) for more in longer]


def make_rows(signature: Sequence[InputSignature], rows: int, longer: int = 0) -> dict[str, Tensor]:
    """Make inputs of so many rows, of the packing example's range and sizes, its free axes longer by so much."""
    generator = np.random.default_rng(0)
    sample = {}
    for entry in signature:
        shape = [size + longer if axis in entry.free else size for axis, size in enumerate(entry.example_shape)]
        shape[0] = rows
        if entry.dtype.startswith("float"):
            values = generator.uniform(entry.low, entry.high, shape)
        else:
            values = generator.integers(int(entry.low), int(entry.high) + 1, shape).astype(np.float64)
        sample[entry.name] = torch.from_numpy(values.astype(entry.dtype))
    return sample


def _finite(value: Any) -> Any:
    """Return a document with its infinities as texts, which JSON knows and the reader takes for numbers."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _read_pointer(folder: Path) -> str:
    """Return the id of the current calibration; "" where there is none."""
    try:
        return (folder / CALIBRATIONS / CURRENT).read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise CorruptVersion(f"{CALIBRATIONS}/{CURRENT} cannot be read ({error.strerror})") from None


def _read_current(folder: Path, manifest: Manifest) -> Calibration | None:
    name = _read_pointer(folder)
    return _read_calibration(folder, name, manifest) if name else None


def _read_calibration(folder: Path, name: str, manifest: Manifest) -> Calibration:
    if not re.fullmatch(r"[0-9a-f]{16}", name):
        raise CorruptVersion(f"{CALIBRATIONS}/{CURRENT} names no calibration")
    try:
        stored = (folder / CALIBRATIONS / f"{name}.json").read_bytes()
        calibration = TypeAdapter(Calibration).validate_json(stored, strict=False)
    except (OSError, ValidationError, InvalidArgument) as error:
        raise CorruptVersion(f"{CALIBRATIONS}/{name}.json cannot be read ({type(error).__name__})") from None
    if calibration.id != name:
        raise CorruptVersion(f"{CALIBRATIONS}/{name}.json: its content is not what its name says")
    _check_fits(calibration, manifest)
    return calibration


def read_labels(labels: NDArray[Any], rows: int, classes: int) -> NDArray[np.int64]:
    """Check class numbers (N,) of so many rows."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise InvalidArgument("labels", f"dtype {labels.dtype}", "integers, class numbers")
    if labels.shape != (rows,):
        raise InvalidArgument("labels", f"shape {labels.shape}", f"shape ({rows},), one class number per row")
    if rows and not 0 <= labels.min() <= labels.max() < classes:
        raise InvalidArgument("labels", f"{labels.min()}..{labels.max()}", f"class numbers 0..{classes - 1}")
    return labels.astype(np.int64)


def _identity(manifest: Manifest) -> Identity:
    return Identity(manifest.checksums[PROGRAM], manifest.precision.value, manifest.fan_out, manifest.integrated)


def _check_fits(calibration: Calibration, manifest: Manifest) -> None:
    """Raise `CalibrationMismatch` where a calibration was fitted for another program, or for draws made otherwise."""
    served = _identity(manifest)
    for what, fitted, own in (
        ("program", calibration.program[:12], served.program[:12]),
        ("precision", calibration.precision, served.precision),
        ("integral", calibration.integrated, served.integrated),
        ("fan-out", calibration.fan_out, served.fan_out),
    ):
        if fitted != own:
            label = f"{manifest.name} version {manifest.version}"
            raise CalibrationMismatch(
                f"calibration {calibration.id} was fitted for {what} {fitted}, not for {own} of {label}"
            )
