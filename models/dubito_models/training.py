"""Training by recipe: seeded, stopped early, resumable after any kill.

All randomness of an epoch (order, augmentation, dropout) is a pure function of (seed, epoch). So a checkpoint needs no
generator states, and on a CPU a run that was killed and resumed ends with the very weights of an unbroken one.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from dubito_models.data import Split, Splits
from dubito_models.errors import InvalidArgument
from dubito_models.files import write_atomically
from dubito_models.layers import ConcreteDropout, Penalized
from dubito_models.objectives import Objective
from dubito_models.preparing import build_network, build_objective
from dubito_models.recipes import Recipe
from dubito_models.recipes.sections import AugmentationSection, CosineSection
from dubito_models.seeding import randomness, seeded

CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"
VALIDATION_BATCH = 4096


@dataclass(frozen=True, slots=True)
class Started:
    """Training starts, or goes on after the `epochs_done` epochs of a checkpoint; `metric` names an epoch's."""

    device: str
    epochs: int
    epochs_done: int
    metric: str


@dataclass(frozen=True, slots=True)
class Epoch:
    """One finished epoch, numbered from 1, and one line of the log; what losses and metric are, the objective says."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_metric: float
    learning_rate: float
    seconds: float


Progress = Callable[[Started | Epoch], None]


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """The network with the weights of its best epoch, on the CPU and in eval, and all epochs that were trained."""

    network: nn.Module
    recipe: Recipe
    history: tuple[Epoch, ...]
    best: Epoch


# --- Augmentation ---


def augment(images: Tensor, table: AugmentationSection, random: np.random.Generator) -> Tensor:
    """Return images (B, C, H, W), each turned about its centre and moved by amounts of its own."""
    B, _, H, W = images.shape
    bound = math.radians(table.rotation_degrees)
    angle = random.uniform(-bound, bound, B)
    # Coordinates run from -1 to 1 along both axes: a pixel is 2 / W wide, and turning must not stretch an oblong.
    move = random.uniform(-table.shift_pixels, table.shift_pixels, (B, 2)) * 2 / np.array([W, H])
    affine = np.empty((B, 2, 3), np.float32)
    affine[:, 0, 0], affine[:, 0, 1] = np.cos(angle), -np.sin(angle) * H / W
    affine[:, 1, 0], affine[:, 1, 1] = np.sin(angle) * W / H, np.cos(angle)
    affine[:, :, 2] = move
    grid = F.affine_grid(torch.from_numpy(affine).to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)  # (B, C, H, W)


# --- One epoch ---


@dataclass(slots=True)
class _Fit:
    # What the next epoch needs; a checkpoint is this on disk.
    network: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: CosineAnnealingLR | ReduceLROnPlateau
    history: list[Epoch]
    best_weights: dict[str, Tensor]


def _fresh_fit(recipe: Recipe, data: Splits, device: torch.device) -> _Fit:
    network = build_network(recipe, data).to(device)
    objective = build_objective(recipe, data, network)
    if objective.scale is not None:
        objective = replace(objective, scale=objective.scale.to(device))
    optimizer = torch.optim.AdamW(_groups(network, recipe.weight_decay), lr=recipe.learning_rate)
    table = recipe.schedule
    schedule: CosineAnnealingLR | ReduceLROnPlateau
    if isinstance(table, CosineSection):
        schedule = CosineAnnealingLR(optimizer, recipe.epochs, eta_min=table.floor)
    else:
        schedule = ReduceLROnPlateau(optimizer, factor=table.factor, patience=table.patience, min_lr=table.floor)
    return _Fit(network, objective, optimizer, schedule, history=[], best_weights={})


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Keep learned rates out of weight decay, which would draw them to 1/2."""
    learned = [part.logit for part in network.modules() if isinstance(part, ConcreteDropout)]
    others = [parameter for parameter in network.parameters() if not any(parameter is rate for rate in learned)]
    groups = [{"params": others, "weight_decay": weight_decay}]
    return [*groups, {"params": learned, "weight_decay": 0.0}] if learned else groups


def _tensors(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(split.inputs, device=device), torch.tensor(split.targets, device=device)


def _train_epoch(fit: _Fit, recipe: Recipe, rows: tuple[Tensor, Tensor], random: np.random.Generator) -> float:
    inputs, targets = rows
    order = torch.from_numpy(random.permutation(len(targets))).to(targets.device)
    total = torch.zeros((), device=targets.device)
    penalties = [part for part in fit.network.modules() if isinstance(part, Penalized)]
    fit.network.train()
    for batch in torch.split(order, recipe.batch_size):
        chosen = inputs[batch]
        if recipe.augmentation.changes:
            chosen = augment(chosen, recipe.augmentation, random)
        loss = fit.objective.loss(fit.network(chosen), targets[batch])
        for part in penalties:
            loss = loss + part.penalty(len(targets)) / fit.objective.targets
        fit.optimizer.zero_grad()
        torch.autograd.backward(loss)
        fit.optimizer.step()
        total += loss.detach() * len(batch)
    return float(total) / len(targets)


@torch.inference_mode()
def _validate(fit: _Fit, rows: tuple[Tensor, Tensor]) -> tuple[float, float]:
    fit.network.eval()
    raw = torch.cat([fit.network(inputs) for inputs in torch.split(rows[0], VALIDATION_BATCH)])  # (N, ...)
    return fit.objective.validate(raw, rows[1])


def _best(history: list[Epoch]) -> Epoch:
    return min(history, key=lambda epoch: epoch.validation_loss)


def _ended(history: list[Epoch], recipe: Recipe) -> bool:
    if not history:
        return False
    return len(history) >= recipe.epochs or len(history) - _best(history).epoch >= recipe.patience


def _advance(
    fit: _Fit,
    recipe: Recipe,
    train_rows: tuple[Tensor, Tensor],
    validation_rows: tuple[Tensor, Tensor],
    clock: Callable[[], float],
) -> Epoch:
    began, number = clock(), len(fit.history) + 1
    random = randomness(recipe.seed, number)
    with seeded(random, train_rows[0].device):
        train_loss = _train_epoch(fit, recipe, train_rows, random)
    validation_loss, metric = _validate(fit, validation_rows)
    learning_rate = float(fit.optimizer.param_groups[0]["lr"])
    if not (math.isfinite(train_loss) and math.isfinite(validation_loss)):
        given = f"{recipe.learning_rate}, with which the loss of epoch {number} is not finite"
        raise InvalidArgument("recipe.learning_rate", given, "a lower one")
    if isinstance(fit.schedule, ReduceLROnPlateau):
        fit.schedule.step(validation_loss)
    else:
        fit.schedule.step()
    epoch = Epoch(number, train_loss, validation_loss, metric, learning_rate, clock() - began)
    fit.history.append(epoch)
    if _best(fit.history) is epoch:
        fit.best_weights = {key: value.cpu().clone() for key, value in fit.network.state_dict().items()}
    return epoch


# --- What stands on disk ---


def _fingerprint(recipe: Recipe, data: Splits) -> str:
    digest = hashlib.sha256(recipe.model_dump_json(exclude={"packing"}).encode())  # which moves no weight
    for split in (data.train, data.validation):
        digest.update(split.inputs.tobytes() + split.targets.tobytes())
    return digest.hexdigest()


def _save(fit: _Fit, path: Path, fingerprint: str) -> None:
    state = {
        "fingerprint": fingerprint,
        "network": fit.network.state_dict(),
        "optimizer": fit.optimizer.state_dict(),
        "schedule": fit.schedule.state_dict(),
        "best_weights": fit.best_weights,
        "history": [asdict(epoch) for epoch in fit.history],
    }
    file = io.BytesIO()
    torch.save(state, file)
    write_atomically(path, file.getvalue())


def _restore(fit: _Fit, path: Path, fingerprint: str) -> None:
    remedy = "--fresh to start over, or another --run-directory"
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = state["fingerprint"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, OSError):
        raise InvalidArgument("run_directory", f"{path}, which is no checkpoint", remedy) from None
    if found != fingerprint:
        given = f"{path}, a checkpoint of another recipe or other data"
        raise InvalidArgument("run_directory", given, f"the recipe that it was started with, {remedy}")
    fit.network.load_state_dict(state["network"])
    fit.optimizer.load_state_dict(state["optimizer"])
    fit.schedule.load_state_dict(state["schedule"])
    fit.best_weights = state["best_weights"]
    fit.history = [Epoch(**epoch) for epoch in state["history"]]


def _write_log(path: Path, history: list[Epoch]) -> None:
    # Whole, from the checkpoint's history: whenever a kill comes, no epoch is doubled, missing or torn after resume.
    text = io.StringIO()
    log = csv.DictWriter(text, [field.name for field in fields(Epoch)], lineterminator="\n")
    log.writeheader()
    log.writerows(asdict(epoch) for epoch in history)
    write_atomically(path, text.getvalue().encode())


# --- The whole ---


def _device(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise InvalidArgument("device", "cuda, and no GPU can be used here", "auto, cpu")
    return torch.device("cuda" if device != "cpu" and available else "cpu")


def train(
    recipe: Recipe,
    data: Splits,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    run_directory: Path,
    progress: Progress | None = None,
    fresh: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> TrainedNetwork:
    """Train a network by a recipe, with AdamW, to the epoch of its lowest validation loss.

    After each epoch `run_directory` holds a checkpoint, from which the next call goes on (unless `fresh`), and a log.
    The caller's global generators are left as they were. Raises `InvalidArgument` for a device that is not there, a
    checkpoint of another recipe, and a loss that is not finite.
    """
    chosen, fingerprint = _device(device), _fingerprint(recipe, data)
    fit = _fresh_fit(recipe, data, chosen)
    checkpoint, log = run_directory / CHECKPOINT, run_directory / LOG
    try:
        run_directory.mkdir(parents=True, exist_ok=True)
        if fresh:
            checkpoint.unlink(missing_ok=True)
            log.unlink(missing_ok=True)
    except OSError as error:
        given = f"{run_directory} ({error.strerror})"
        raise InvalidArgument("run_directory", given, "a directory that can be written") from None
    if checkpoint.exists():
        _restore(fit, checkpoint, fingerprint)
        _write_log(log, fit.history)
    tell = progress or (lambda event: None)
    tell(Started(chosen.type, recipe.epochs, len(fit.history), fit.objective.metric))
    train_rows, validation_rows = _tensors(data.train, chosen), _tensors(data.validation, chosen)
    while not _ended(fit.history, recipe):
        epoch = _advance(fit, recipe, train_rows, validation_rows, clock)
        _save(fit, checkpoint, fingerprint)
        _write_log(log, fit.history)
        tell(epoch)
    fit.network.load_state_dict(fit.best_weights)
    return TrainedNetwork(fit.network.cpu().eval(), recipe, tuple(fit.history), _best(fit.history))
