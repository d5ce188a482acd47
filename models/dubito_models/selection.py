"""The dropout rate and the noise precision chosen by what they are worth: the likelihood of validation rows.

Gal & Ghahramani 2016 choose both from a grid. The rate decides how a network is trained, so each candidate is trained;
the precision decides nothing in training, so it is fitted afterwards, as a continuous number.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from dubito_models.calibration import fit_noise_variance, negative_log_likelihood
from dubito_models.data import Splits
from dubito_models.heads import Decoded, Head
from dubito_models.metrics import mixture_negative_log_likelihood
from dubito_models.package import ModelVersion
from dubito_models.packing import pack
from dubito_models.preparing import choose_head
from dubito_models.recipes import Recipe
from dubito_models.recipes.sections import PackingSection
from dubito_models.sampling import SamplingSpec
from dubito_models.training import Epoch, Started, TrainedNetwork, train

DRAWS = 256  # by which candidates are compared
EXAMPLE_ROWS = 16  # of the inputs that packing looks at
_PLAIN = PackingSection()


@dataclass(frozen=True, slots=True)
class Trying:
    """Training of a candidate starts, the `number`-th of `of` (from 1); no rate where there is but one."""

    rate: float | None
    number: int
    of: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained network; where they were needed, its noise variances (K,) and its validation NLL in nats."""

    trained: TrainedNetwork
    rate: float | None
    noise_variance: tuple[float, ...] | None
    validation_nll: float | None


Progress = Callable[[Trying | Started | Epoch], None]


def train_candidates(
    recipe: Recipe,
    data: Splits,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    run_directory: Path,
    progress: Progress | None = None,
    fresh: bool = False,
) -> tuple[Candidate, ...]:
    """Train one network at each rate of the recipe's selection, or the recipe's own; the best one comes first.

    Each candidate has a run directory of its own within `run_directory`, so that a killed selection goes on too.
    """
    tell = progress or (lambda event: None)
    rates: tuple[float | None, ...] = (None,) if recipe.selection is None else recipe.selection.rates
    found = []
    for number, rate in enumerate(rates, 1):
        tell(Trying(rate, number, len(rates)))
        candidate = recipe if rate is None else recipe.at_rate(rate)
        folder = run_directory if rate is None else run_directory / f"rate-{rate:g}"
        trained = train(candidate, data, device=device, run_directory=folder, progress=tell, fresh=fresh)
        found.append(_judge(trained, rate, data))
    return tuple(sorted(found, key=lambda candidate: candidate.validation_nll or 0.0))


def _judge(trained: TrainedNetwork, rate: float | None, data: Splits) -> Candidate:
    head = choose_head(trained.recipe, data.task)
    if rate is None and head is not Head.MEAN:
        return Candidate(trained, None, None, None)  # nothing to choose and nothing to fit
    decoded = draw(trained.network, data, head)
    targets = data.validation.targets
    if decoded.log_probabilities is not None:
        return Candidate(trained, rate, None, negative_log_likelihood(decoded.log_probabilities.numpy(), targets, 1.0))
    assert decoded.mean is not None
    means = decoded.mean.numpy()
    numbers = targets.astype(np.float64)
    if head is Head.MEAN:
        noise = fit_noise_variance(means, numbers)
        variances = np.broadcast_to(noise, means.shape)
        return Candidate(trained, rate, noise, mixture_negative_log_likelihood(means, variances, numbers))
    assert decoded.variance is not None
    nll = mixture_negative_log_likelihood(means, decoded.variance.numpy(), numbers)
    return Candidate(trained, rate, None, nll)


def draw(network: nn.Module, data: Splits, head: Head) -> Decoded:
    """Return what the draws of a network, packed plainly, say of the validation rows, by the engine that serves it."""
    with tempfile.TemporaryDirectory() as folder:
        version = pack_trained(network, data, head, repository=Path(folder), name="candidate")
        inputs = version.read_inputs(data.validation.inputs)
        return version.engine.draws(inputs, SamplingSpec(max_draws=DRAWS))


def pack_trained(
    network: nn.Module,
    data: Splits,
    head: Head,
    *,
    repository: Path,
    name: str,
    noise_variance: tuple[float, ...] | None = None,
    packing: PackingSection = _PLAIN,
) -> ModelVersion:
    """Package a network that was trained on these data, with what they say of its inputs and outputs."""
    [parameter] = inspect.signature(network.forward).parameters
    return pack(
        network,
        torch.tensor(data.train.inputs[:EXAMPLE_ROWS]),
        repository=repository,
        name=name,
        task=data.task,
        head=head,
        class_names=data.class_names,
        noise_variance=noise_variance,
        columns=None if data.columns is None else {parameter: data.columns},
        precision=packing.precision,
        fan_out=packing.fan_out,
    )
