"""From a recipe to its data, and to the network that fits both."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dubito_models.data import Splits, co2, diabetes, digits, uci
from dubito_models.errors import InvalidArgument
from dubito_models.heads import Head, Task
from dubito_models.layers import Penalized
from dubito_models.networks import (
    CNN,
    MLP,
    RNN,
    BoundedLogVariance,
    Forecaster,
    Pipeline,
    Rescale,
    ResNet,
    Standardize,
    Transformer,
)
from dubito_models.networks.tabular import TableEncoder
from dubito_models.objectives import Objective
from dubito_models.recipes import Recipe
from dubito_models.recipes.sections import (
    CNNSection,
    CO2Section,
    DiabetesSection,
    DigitsSection,
    MLPSection,
    ResNetSection,
    RNNSection,
    TableSection,
    TransformerSection,
    UCISection,
)
from dubito_models.seeding import randomness, seeded
from dubito_models.tables import read_table, split_table


def load_splits(recipe: Recipe) -> Splits:
    """Load the recipe's data; the recipe's seed decides the splits, where the data do not."""
    section = recipe.data
    match section:
        case DigitsSection():
            return digits(recipe.seed)
        case DiabetesSection():
            return diabetes(recipe.seed)
        case UCISection():
            return uci(Path(_given(section.path, "path", "--data FOLDER")), section.split, recipe.seed)
        case CO2Section():
            return co2(section.window, section.horizon)
        case TableSection():
            target = _given(section.target, "target", "--target COLUMN")
            path = _given(section.path, "path", "--data FILE")
            return split_table(read_table(path, target=target, task=section.task, drop=section.drop), recipe.seed)


def _given(value: str | None, key: str, option: str) -> str:
    if value is None:
        raise InvalidArgument(f"recipe.data.{key}", "nothing", f"a value; {option} gives one")
    return value


def choose_head(recipe: Recipe, task: Task) -> Head:
    """Return the recipe's head, or the plain one of the data's task."""
    fits = {Task.CLASSIFICATION: [Head.LOGITS], Task.REGRESSION: [Head.MEAN, Head.MEAN_AND_LOG_VARIANCE]}[task]
    head = fits[0] if recipe.head is None else Head(recipe.head)
    if head not in fits:
        raise InvalidArgument("recipe.head", head.value, f"for {task.value}: {', '.join(fits)}")
    return head


def build_objective(recipe: Recipe, data: Splits, network: nn.Module) -> Objective:
    """Return what the network is to be trained by."""
    head = choose_head(recipe, data.task)
    if head is Head.LOGITS:
        return Objective(head, label_smoothing=recipe.label_smoothing)
    penalised = any(isinstance(part, Penalized) for part in network.modules())
    return Objective(head, torch.tensor(data.train.targets).std(0), likelihood=penalised)


def build_network(recipe: Recipe, data: Splits) -> nn.Module:
    """Return the recipe's network for these data, initialised by the recipe's seed.

    It takes the inputs as the data have them and predicts in the targets' own units: scaling stands inside.
    """
    head = choose_head(recipe, data.task)
    inputs = torch.tensor(data.train.inputs)
    with seeded(randomness(recipe.seed, 0), torch.device("cpu")):
        if data.task is Task.CLASSIFICATION:
            assert data.class_names is not None
            before = _before(data, inputs)
            network = _reference(recipe, _shape(before, inputs), len(data.class_names))
            return network if before is None else Pipeline(before, network, nn.Identity())
        targets = torch.tensor(data.train.targets)
        steps = targets.shape[1]
        outputs = steps * (2 if head is Head.MEAN_AND_LOG_VARIANCE else 1)
        if isinstance(recipe.data, CO2Section):
            last = inputs[:, -1]  # (N, 1)
            network = _reference(recipe, tuple(inputs.shape[1:]), outputs)
            after = _after(targets - last, head)
            return Forecaster(network, float((inputs - last[:, None]).std()), after, steps)
        before = _before(data, inputs)
        assert before is not None
        return Pipeline(before, _reference(recipe, _shape(before, inputs), outputs), _after(targets, head))


def _before(data: Splits, inputs: Tensor) -> nn.Module | None:
    """Return what the inputs go through first; None for images, whose pixels are scaled already."""
    if data.columns is not None:
        return TableEncoder(data.columns, data.train.inputs)
    return Standardize(inputs.mean(0), inputs.std(0)) if data.task is Task.REGRESSION else None


def _after(targets: Tensor, head: Head) -> nn.Module:
    rescale = Rescale(targets.mean(0), targets.std(0), head)
    return nn.Sequential(BoundedLogVariance(), rescale) if head is Head.MEAN_AND_LOG_VARIANCE else rescale


def _shape(before: nn.Module | None, inputs: Tensor) -> tuple[int, ...]:
    return tuple(inputs.shape[1:] if before is None else before(inputs[:1]).shape[1:])


def _reference(recipe: Recipe, shape: tuple[int, ...], outputs: int) -> nn.Module:
    section = recipe.network
    arguments: dict[str, Any] = section.model_dump(exclude={"kind"})
    match section:
        case MLPSection():
            return MLP(math.prod(shape), outputs=outputs, **arguments)
        case CNNSection():
            return CNN(_ranked(recipe, shape, 3), outputs=outputs, **arguments)
        case ResNetSection():
            return ResNet(_ranked(recipe, shape, 3), outputs=outputs, **arguments)
        case RNNSection():
            return RNN(_ranked(recipe, shape, 2, 3), outputs=outputs, **arguments)
        case TransformerSection():
            return Transformer(_ranked(recipe, shape, 2, 3), outputs=outputs, **arguments)


def _ranked(recipe: Recipe, shape: tuple[int, ...], *ranks: int) -> Any:
    if len(shape) not in ranks:
        given = f"{recipe.network.kind!r} for rows of shape {shape}"
        accepted = f"rows of {' or '.join(map(str, ranks))} axes for this kind of network; or 'mlp'"
        raise InvalidArgument("recipe.network.kind", given, accepted)
    return shape
