"""The regression table of Gal & Ghahramani (2016), "Dropout as a Bayesian Approximation", from our Monte Carlo path.

    python benchmarks/uci.py DATA_DIR --protocol {paper,long,two-layer,heteroscedastic} [--sets yacht,energy]

DATA_DIR holds a folder for each set, with the published splits. Networks of all splits are trained as stacks (see
stacks.py), chosen by the likelihood of validation rows, trained anew on the whole training split, and judged by the
engine that serves: its draws, its mean, the likelihood of its mixture. Prints a table and, with --out, writes JSON.

Protocols. `paper`: one hidden layer of 50 units, batches of 32, n_epochs x 10 epochs; dropout rate and precision tau
from the published grids. `long`: batches of 128, n_epochs x 100; trained once per rate, tau fitted to the validation
likelihood as a continuous number under a weak prior. `two-layer`: as `long` with two hidden layers. `heteroscedastic`:
as `long`, the network predicting its noise; in training each row's likelihood counts by its predicted variance to the
power beta (Seitzer et al. 2022), 0 or 1/2, chosen as the rate is.

The weight decay l^2 (1 - p) / (2 N tau) takes tau from the grid in `paper`. Where tau is fitted afterwards, the decay
has to be fixed before: there it takes tau = 1 / the variance of the training targets, in both trainings.

Splits are trained five to a stack, whatever the number of processes, so that the seed alone decides the figures (on one
kind of processor: rounding differs between kinds, and thousands of steps make it visible).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from stacks import Rows, Stack, Training, log_likelihood, means, train
from torch import Tensor, nn
from uci_table import print_table, summarise

from dubito_models.calibration import fit_noise_variance
from dubito_models.engine import Defaults, Engine
from dubito_models.export import export_network, read_example
from dubito_models.heads import Head
from dubito_models.metrics import mixture_negative_log_likelihood, root_mean_squared_error
from dubito_models.networks import MLP, BoundedLogVariance, Pipeline, Rescale, Standardize
from dubito_models.program import StochasticProgram
from dubito_models.sampling import SamplingSpec
from dubito_models.thinning import Design, Masks, choose_balanced, choose_group_size

LENGTH_SCALE = 1e-2
VALIDATION_SHARE = 0.2
VALIDATION_DRAWS = 1000
FITTING_DRAWS = 200
TEST_DRAWS = 10_000
SPLITS_PER_STACK = 5


@dataclass(frozen=True, slots=True)
class Protocol:
    """How networks are trained and chosen; `factor` times n_epochs.txt epochs; `grid`: tau from the published grid.

    `betas`: the weightings of the likelihood to choose from (see `data_loss`).
    """

    hidden_layers: int
    batch: int
    factor: int
    grid: bool = False
    heteroscedastic: bool = False
    betas: tuple[float, ...] = (0.0,)


PROTOCOLS = {
    "paper": Protocol(1, 32, 10, grid=True),
    "long": Protocol(1, 128, 100),
    "two-layer": Protocol(2, 128, 100),
    "heteroscedastic": Protocol(1, 128, 100, heteroscedastic=True, betas=(0.0, 0.5)),
}


@dataclass(frozen=True, slots=True)
class Folder:
    """A set as its folder has it."""

    name: str
    inputs: Tensor  # (N, D)
    targets: Tensor  # (N,)
    splits: tuple[tuple[np.ndarray, np.ndarray], ...]  # rows to train with and to test by
    rates: tuple[float, ...]
    taus: tuple[float, ...]
    epochs: int
    hidden: int


@dataclass(frozen=True, slots=True)
class Judged:
    """One split's network: what was chosen, and what came of it on its test rows."""

    split: int
    rate: float
    tau: float | None
    beta: float
    validation_log_likelihood: float
    rmse: float
    log_likelihood: float
    standard_rmse: float  # of the standard path: dropout off
    draws: int


class BadInput(Exception):
    """What the caller can mend, in one line."""


def read_folder(path: Path, splits: int | None) -> Folder:
    """Read a folder; `splits` limits how many of its splits.

    Raises `BadInput` for a file that is missing or holds no numbers, and for training splits of different sizes.
    """

    def numbers(name: str) -> np.ndarray:
        try:
            return np.loadtxt(path / name, ndmin=1)
        except (OSError, ValueError) as error:
            raise BadInput(f"{path / name}: {error}; accepted: a folder in the format of the UCI splits") from None

    values = torch.tensor(numbers("data.txt"), dtype=torch.float32)
    count = int(numbers("n_splits.txt")[0])
    wanted = count if splits is None else min(splits, count)
    pairs = [
        (numbers(f"index_train_{n}.txt").astype(int), numbers(f"index_test_{n}.txt").astype(int)) for n in range(wanted)
    ]
    sizes = sorted({len(training) for training, _ in pairs})
    if len(sizes) > 1:
        raise BadInput(f"{path.name}: training splits of {sizes} rows; accepted: all of one size")
    return Folder(
        name=path.name,
        inputs=values[:, numbers("index_features.txt").astype(int)],
        targets=values[:, int(numbers("index_target.txt")[0])],
        splits=tuple(pairs),
        rates=tuple(numbers("dropout_rates.txt").tolist()),
        taus=tuple(numbers("tau_values.txt").tolist()),
        epochs=int(numbers("n_epochs.txt")[0]),
        hidden=int(numbers("n_hidden.txt")[0]),
    )


@dataclass(frozen=True, slots=True)
class Scale:
    """Means and deviations of some rows; inputs (D,) and targets ()."""

    x_mean: Tensor
    x_deviation: Tensor
    y_mean: Tensor
    y_deviation: Tensor


def scale_of(folder: Folder, rows: np.ndarray) -> Scale:
    x, y = folder.inputs[rows], folder.targets[rows]
    deviation = x.std(0, correction=0)
    return Scale(
        x.mean(0), torch.where(deviation > 0, deviation, torch.ones_like(deviation)), y.mean(), y.std(correction=0)
    )


def standardised(folder: Folder, rows: Sequence[np.ndarray], scales: Sequence[Scale]) -> Rows:
    inputs = [(folder.inputs[r] - s.x_mean) / s.x_deviation for r, s in zip(rows, scales, strict=True)]
    targets = [(folder.targets[r] - s.y_mean) / s.y_deviation for r, s in zip(rows, scales, strict=True)]
    return Rows(torch.stack(inputs), torch.stack(targets))


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a network is trained with; `tau` of the grid, None where there is none."""

    problem: int
    rate: float
    tau: float | None
    beta: float = 0.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """A candidate, the tau that it is judged with (None: the network predicts its noise), and its worth."""

    candidate: Candidate
    tau: float | None
    validation_log_likelihood: float


Tell = Callable[[int], None]


def run_splits(folder: Folder, numbers: Sequence[int], protocol: Protocol, seed: int, tell: Tell) -> list[Judged]:
    """Choose, train and judge the networks of some splits, as one stack; `tell` hears of every epoch and split."""
    how = Training(
        (folder.hidden,) * protocol.hidden_layers,
        folder.epochs * protocol.factor,
        protocol.batch,
        protocol.heteroscedastic,
    )
    known = [folder.splits[n][0] for n in numbers]
    shown = int(len(known[0]) * (1 - VALIDATION_SHARE))
    scales = [scale_of(folder, rows[:shown]) for rows in known]
    taus: tuple[float | None, ...] = folder.taus if protocol.grid else (None,)
    options = itertools.product(range(len(numbers)), folder.rates, taus, protocol.betas)
    candidates = [Candidate(*option) for option in options]
    first = standardised(folder, [rows[:shown] for rows in known], scales)
    held = standardised(folder, [rows[shown:] for rows in known], scales)
    own_seed = derive(seed, numbers[0], 0)
    stack = train_candidates(first, candidates, scales, how, own_seed, tell)
    chosen = choose(stack, held, candidates, scales, protocol, own_seed)
    whole = [scale_of(folder, rows) for rows in known]
    rows, picked = standardised(folder, known, whole), [each.candidate for each in chosen]
    final = train_candidates(rows, picked, whole, how, derive(seed, numbers[0], 1), tell)
    judged = []
    for at, number in enumerate(numbers):
        judged.append(judge(final, at, folder, number, whole[at], chosen[at]))
        tell(1)
    return judged


def derive(*numbers: int) -> int:
    """Return a seed of its own for a place in the whole."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def train_candidates(
    rows: Rows, candidates: Sequence[Candidate], scales: Sequence[Scale], how: Training, seed: int, tell: Tell
) -> Stack:
    count = rows.inputs.shape[1]
    penalties = [penalty(each, count, float(scales[each.problem].y_deviation)) for each in candidates]
    problems, rates = [each.problem for each in candidates], [each.rate for each in candidates]
    return train(rows, problems, rates, penalties, [each.beta for each in candidates], how, seed, lambda: tell(1))


def penalty(candidate: Candidate, rows: int, y_deviation: float) -> float:
    """Return l^2 (1 - p) / (2 N tau), tau being 1 / the targets' variance where there is no grid."""
    tau = 1 / y_deviation**2 if candidate.tau is None else candidate.tau
    return LENGTH_SCALE**2 * (1 - candidate.rate) / (2 * rows * tau)


def choose(
    stack: Stack, held: Rows, candidates: Sequence[Candidate], scales: Sequence[Scale], protocol: Protocol, seed: int
) -> list[Chosen]:
    """Return each problem's candidate of the highest validation log-likelihood, its tau fitted where not of a grid."""
    of = [each.problem for each in candidates]
    x, y = held.inputs[of], held.targets[of]  # (M, B, D), (M, B)
    deviation = torch.stack([scales[problem].y_deviation for problem in of])  # (M,)
    taus = [each.tau for each in candidates]
    if not protocol.grid and not protocol.heteroscedastic:
        drawn = means(stack, x, FITTING_DRAWS, seed)  # (S, M, B)
        fitted = [fit_noise_variance(drawn[:, m, :, None], y[m, :, None].numpy())[0] for m in range(len(of))]
        taus = [1 / (v * float(d) ** 2) for v, d in zip(fitted, deviation, strict=True)]
    noise = None if protocol.heteroscedastic else torch.tensor([1 / tau for tau in taus if tau is not None])
    found = log_likelihood(stack, x, y, deviation, noise, VALIDATION_DRAWS, seed).tolist()
    options = [Chosen(*each) for each in zip(candidates, taus, found, strict=True)]
    return [
        max((each for each in options if each.candidate.problem == problem), key=_worth) for problem in sorted(set(of))
    ]


def _worth(chosen: Chosen) -> float:
    return chosen.validation_log_likelihood


# --- The Monte Carlo path ---


def network_of(stack: Stack, at: int, scale: Scale) -> nn.Module:
    """Return one network of a stack as a module that takes and gives numbers in their own units."""
    outputs = stack.weights[-1].shape[2]
    rate = float(stack.rates[at])
    features, widths = stack.weights[0].shape[1], [weight.shape[2] for weight in stack.weights[:-1]]
    network = MLP(features, widths, outputs, rate, input_dropout=rate)
    linears = [*network.hidden, network.head]
    with torch.no_grad():
        for linear, weight, bias in zip(linears, stack.weights, stack.biases, strict=True):
            linear.weight.copy_(weight[at].T)
            linear.bias.copy_(bias[at, 0])
    head = Head.MEAN if outputs == 1 else Head.MEAN_AND_LOG_VARIANCE
    rescale: nn.Module = Rescale(scale.y_mean[None], scale.y_deviation[None], head)
    after = rescale if outputs == 1 else nn.Sequential(BoundedLogVariance(), rescale)
    return Pipeline(Standardize(scale.x_mean, scale.x_deviation), network, after).eval()


def engine_of(network: nn.Module, head: Head, noise: float | None, example: Tensor) -> Engine:
    """Return the engine that a packaged version of this network would be served by."""
    exported = export_network(network, read_example(network, example))
    program = StochasticProgram(exported.stochastic, {"inputs": {}}, exported.output)
    size = choose_group_size([site.rate for site in program.sites])
    balanced = choose_balanced(program.sites, program.mask_shapes({"rows": len(example)}))
    masks = Masks(program, group_size=size, balanced=balanced)
    variance = None if noise is None else np.array([noise])
    return Engine(program, masks, head, Defaults(size, 0, Design.BALANCED), noise_variance=variance)


def judge(stack: Stack, at: int, folder: Folder, number: int, scale: Scale, chosen: Chosen) -> Judged:
    """Return what the draws of the engine say of the test rows of split `number`, whose network is the `at`-th."""
    test = folder.splits[number][1]
    network = network_of(stack, at, scale)
    inputs, targets = folder.inputs[test], folder.targets[test].numpy().astype(np.float64)
    head = Head.MEAN_AND_LOG_VARIANCE if chosen.tau is None else Head.MEAN
    engine = engine_of(network, head, None if chosen.tau is None else 1 / chosen.tau, inputs[:2])
    drawn = engine.draws({"inputs": inputs}, SamplingSpec(max_draws=TEST_DRAWS))
    assert drawn.mean is not None
    assert drawn.variance is not None
    mean, variance = drawn.mean[..., 0].numpy(), drawn.variance[..., 0].numpy()
    with torch.inference_mode():
        standard = network(inputs)[:, 0].numpy()
    return Judged(
        split=number,
        rate=chosen.candidate.rate,
        tau=chosen.tau,
        beta=chosen.candidate.beta,
        validation_log_likelihood=chosen.validation_log_likelihood,
        rmse=root_mean_squared_error(mean.mean(0), targets),
        log_likelihood=-mixture_negative_log_likelihood(mean, variance, targets),
        standard_rmse=root_mean_squared_error(standard, targets),
        draws=len(mean),
    )


# --- The whole ---


def work(queue: Queue[int], folder: Folder, numbers: Sequence[int], protocol: Protocol, seed: int) -> list[Judged]:
    torch.set_num_threads(1)
    return run_splits(folder, numbers, protocol, seed, queue.put)


def run_set(folder: Folder, protocol: Protocol, processes: int, seed: int, bar: Progress) -> list[Judged]:
    """Run the splits of a set, stack by stack, dealt out over processes."""
    numbers = range(len(folder.splits))
    stacks = [list(numbers[start : start + SPLITS_PER_STACK]) for start in numbers[::SPLITS_PER_STACK]]
    epochs = folder.epochs * protocol.factor
    task = bar.add_task(folder.name, total=2 * epochs * len(stacks) + len(folder.splits))
    if processes == 1:
        with one_thread():
            return [
                judged
                for stack in stacks
                for judged in run_splits(folder, stack, protocol, seed, lambda count: bar.advance(task, count))
            ]
    context = multiprocessing.get_context("spawn")
    workers = min(processes, len(stacks))
    with context.Manager() as manager, ProcessPoolExecutor(workers, context, end_with, (os.getpid(),)) as pool:
        queue: Any = manager.Queue()
        futures = [pool.submit(work, queue, folder, stack, protocol, seed) for stack in stacks]
        while not all(future.done() for future in futures) or not queue.empty():
            if queue.empty():
                time.sleep(0.1)
            else:
                bar.advance(task, queue.get())
        return [judged for future in futures for judged in future.result()]


def end_with(parent: int) -> None:
    """Let a worker end where its parent was killed, rather than work on for nobody."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Small matrices gain nothing from threads, and sums over threads would round otherwise than in the processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def processor() -> str:
    """Return the processor's name, and the widest vectors that torch uses on it."""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return f"{found[1]}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="paper")
    parser.add_argument("--sets", help="comma-separated; by default every folder of DATA_DIR")
    parser.add_argument("--splits", type=int, help="so many of each set; by default all")
    parser.add_argument("--epochs-factor", type=int, help="times n_epochs.txt; by default the protocol's")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON; other sets already in it are kept")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    try:
        run(given)
    except BadInput as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def run(given: argparse.Namespace) -> None:
    names = sets_of(given.data, given.sets)
    for option in ("splits", "epochs_factor", "processes"):
        value = getattr(given, option)
        if value is not None and value < 1:
            raise BadInput(f"--{option.replace('_', '-')} {value}; accepted: at least 1")
    if given.seed < 0:
        raise BadInput(f"--seed {given.seed}; accepted: at least 0")
    protocol = PROTOCOLS[given.protocol]
    if given.epochs_factor is not None:
        protocol = replace(protocol, factor=given.epochs_factor)
    results: dict[str, Any] = earlier(given.out, given.protocol)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    folders = [read_folder(given.data / name, given.splits) for name in names]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        for name, folder in zip(names, folders, strict=True):
            began = time.perf_counter()
            judged = run_set(folder, protocol, given.processes, given.seed, bar)
            lls = [each.log_likelihood for each in judged]
            results[name] = {
                "summary": summarise(name, [each.rmse for each in judged], lls, given.protocol),
                "settings": {
                    **asdict(protocol),
                    "epochs": folder.epochs * protocol.factor,
                    "epochs_of_the_protocol": folder.epochs * PROTOCOLS[given.protocol].factor,
                    "hidden": folder.hidden,
                    "rates": folder.rates,
                    "taus": folder.taus if protocol.grid else None,
                    "length_scale": LENGTH_SCALE,
                    "splits_per_stack": SPLITS_PER_STACK,
                    "seed": given.seed,
                },
                "made_with": {"torch": torch.__version__, "processor": processor(), "processes": given.processes},
                "seconds": round(time.perf_counter() - began, 1),
                "splits": [asdict(each) for each in judged],
            }
            if given.out is not None:
                given.out.parent.mkdir(parents=True, exist_ok=True)
                given.out.write_text(json.dumps({"protocol": given.protocol, "sets": results}, indent=1) + "\n")
    console = Console(width=max(120, Console().width))
    print_table(console, given.protocol, {name: results[name] for name in names})


def sets_of(data: Path, wanted: str | None) -> list[str]:
    """Return the names of the sets to run; raises `BadInput` where there are none of that name."""
    if not data.is_dir():
        raise BadInput(f"{data} is no folder; accepted: a folder with one folder for each set")
    there = sorted(path.name for path in data.iterdir() if (path / "data.txt").exists())
    names = there if wanted is None else wanted.split(",")
    unknown = [name for name in names if name not in there]
    if not there:
        raise BadInput(f"{data} holds no set; accepted: a folder with one folder for each set, each with a data.txt")
    if unknown:
        raise BadInput(f"--sets {', '.join(unknown)}; accepted: {', '.join(there)}")
    return names


def earlier(path: Path | None, protocol: str) -> dict[str, Any]:
    """Return the sets that a file of results holds already; raises `BadInput` for any other file."""
    if path is None or not path.exists():
        return {}
    try:
        report = json.loads(path.read_text())
        if report["protocol"] == protocol:
            return dict(report["sets"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise BadInput(f"--out {path}; accepted: a new file, or one with results of protocol {protocol}")


if __name__ == "__main__":
    main()
