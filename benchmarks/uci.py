"""The regression table of Gal & Ghahramani (2016), "Dropout as a Bayesian Approximation", from our Monte Carlo path.

    python benchmarks/uci.py DATA_DIR --protocol {paper,long,two-layer,heteroscedastic} [--sets yacht,energy]

DATA_DIR holds a folder for each set, with the published splits. Networks of all splits are trained as stacks (see
stacks.py), chosen by the likelihood of validation rows, trained anew on the whole training split, and judged by the
engine that serves: its draws, its mean, the likelihood of its mixture. Prints a table and, with --out, writes JSON.

Protocols. `paper`: one hidden layer of 50 units, batches of 32, n_epochs x 10 epochs; dropout rate and precision tau
from the published grids. `long`: batches of 128, n_epochs x 100; tau is fitted to the validation likelihood as a
continuous number. `two-layer`: as `long` with two hidden layers. `heteroscedastic`: as `long`, the network predicting
its noise.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from stacks import Rows, Stack, Training, log_likelihood, means, train
from torch import Tensor, nn

from dubito_models.calibration import fit_noise_variance
from dubito_models.engine import Defaults, Engine, SamplingSpec
from dubito_models.export import export_network, read_example
from dubito_models.heads import Head
from dubito_models.metrics import mixture_negative_log_likelihood, root_mean_squared_error
from dubito_models.networks import MLP, BoundedLogVariance, Pipeline, Rescale, Standardize
from dubito_models.program import StochasticProgram
from dubito_models.thinning import Design, Masks, choose_balanced, choose_group_size

LENGTH_SCALE = 1e-2
VALIDATION_SHARE = 0.2
VALIDATION_DRAWS = 1000
TEST_DRAWS = 10_000


@dataclass(frozen=True, slots=True)
class Protocol:
    """How networks are trained and chosen; `factor` times n_epochs.txt epochs; `grid`: tau from the published grid."""

    hidden_layers: int
    batch: int
    factor: int
    grid: bool = False
    heteroscedastic: bool = False


PROTOCOLS = {
    "paper": Protocol(1, 32, 10, grid=True),
    "long": Protocol(1, 128, 100),
    "two-layer": Protocol(2, 128, 100),
    "heteroscedastic": Protocol(1, 128, 100, heteroscedastic=True),
}

# RMSE, its standard error, log-likelihood, its standard error, over 20 splits. Columns of the authors' own table.
Figures = tuple[float, float, float, float]
PUBLISHED: dict[str, dict[str, Figures]] = {
    "paper": {
        "concrete": (5.230, 0.118, -3.039, 0.020),
        "energy": (1.663, 0.043, -1.985, 0.020),
        "power-plant": (4.022, 0.041, -2.795, 0.010),
        "yacht": (1.109, 0.085, -1.554, 0.027),
    },
    "long": {
        "concrete": (4.826, 0.161, -2.937, 0.025),
        "energy": (0.539, 0.0135, -1.2115, 0.0053),
        "power-plant": (4.014, 0.037, -2.808, 0.009),
        "yacht": (0.666, 0.049, -1.250, 0.015),
    },
    "two-layer": {
        "concrete": (4.504, 0.179, -2.825, 0.024),
        "energy": (0.474, 0.013, -1.479, 0.003),
        "power-plant": (3.629, 0.040, -2.675, 0.007),
        "yacht": (0.657, 0.062, -1.370, 0.018),
    },
}
PUBLISHED["heteroscedastic"] = PUBLISHED["long"]


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
    validation_log_likelihood: float
    rmse: float
    log_likelihood: float
    standard_rmse: float  # of the standard path: dropout off
    draws: int


class BadInput(Exception):
    """What the caller can mend, in one line."""


def read_folder(path: Path, splits: int | None) -> Folder:
    """Read a folder; `splits` limits how many of its splits."""

    def numbers(name: str) -> np.ndarray:
        try:
            return np.loadtxt(path / name, ndmin=1)
        except OSError:
            raise BadInput(
                f"{path / name} cannot be read; accepted: a folder in the format of the UCI splits"
            ) from None

    values = torch.tensor(numbers("data.txt"), dtype=torch.float32)
    count = int(numbers("n_splits.txt")[0])
    wanted = count if splits is None else min(splits, count)
    return Folder(
        name=path.name,
        inputs=values[:, numbers("index_features.txt").astype(int)],
        targets=values[:, int(numbers("index_target.txt")[0])],
        splits=tuple(
            (numbers(f"index_train_{n}.txt").astype(int), numbers(f"index_test_{n}.txt").astype(int))
            for n in range(wanted)
        ),
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
    """What a network is trained with; without a tau of the grid one is fitted afterwards."""

    problem: int
    rate: float
    tau: float | None


def penalty(candidate: Candidate, rows: int, y_deviation: float) -> float:
    """Return l^2 (1 - p) / (2 N tau), tau being 1 / the targets' variance where none is given."""
    tau = 1 / y_deviation**2 if candidate.tau is None else candidate.tau
    return LENGTH_SCALE**2 * (1 - candidate.rate) / (2 * rows * tau)


def run_splits(folder: Folder, numbers: Sequence[int], protocol: Protocol, seed: int, tell: Any) -> list[Judged]:
    """Choose, train and judge the networks of some splits."""
    torch.set_num_threads(1)
    how = Training(
        (folder.hidden,) * protocol.hidden_layers,
        folder.epochs * protocol.factor,
        protocol.batch,
        protocol.heteroscedastic,
    )
    known = [folder.splits[n][0] for n in numbers]
    cut = [int(len(rows) * (1 - VALIDATION_SHARE)) for rows in known]
    if len({len(rows) for rows in known}) > 1:
        raise BadInput(f"{folder.name}: training splits of different sizes; accepted: all of one size")
    scales = [scale_of(folder, rows[:c]) for rows, c in zip(known, cut, strict=True)]
    taus: tuple[float | None, ...] = folder.taus if protocol.grid else (None,)
    candidates = [
        Candidate(problem, rate, tau) for problem in range(len(numbers)) for rate in folder.rates for tau in taus
    ]
    first = standardised(folder, [rows[:c] for rows, c in zip(known, cut, strict=True)], scales)
    stack = train_candidates(first, candidates, scales, how, seed, tell)
    held = standardised(folder, [rows[c:] for rows, c in zip(known, cut, strict=True)], scales)
    chosen = choose(stack, held, candidates, scales, protocol, seed)
    whole = [scale_of(folder, rows) for rows in known]
    final = train_candidates(
        standardised(folder, known, whole), [candidate for candidate, _ in chosen], whole, how, seed + 1, tell
    )
    judged = []
    for at, number in enumerate(numbers):
        candidate, validation = chosen[at]
        test = folder.splits[number][1]
        judged.append(judge(final, at, folder, test, whole[at], candidate, validation, number))
        tell(1)
    return judged


def train_candidates(
    rows: Rows, candidates: Sequence[Candidate], scales: Sequence[Scale], how: Training, seed: int, tell: Any
) -> Stack:
    count = rows.inputs.shape[1]
    penalties = [penalty(each, count, float(scales[each.problem].y_deviation)) for each in candidates]
    problems = [each.problem for each in candidates]
    return train(rows, problems, [each.rate for each in candidates], penalties, how, seed, lambda: tell(1))


def choose(
    stack: Stack, held: Rows, candidates: Sequence[Candidate], scales: Sequence[Scale], protocol: Protocol, seed: int
) -> list[tuple[Candidate, float]]:
    """Return each problem's candidate of the highest validation log-likelihood, its tau fitted, and that likelihood."""
    of = [each.problem for each in candidates]
    x, y = held.inputs[of], held.targets[of]  # (M, B, D), (M, B)
    deviation = torch.stack([scales[problem].y_deviation for problem in of])
    if protocol.heteroscedastic:
        noise = None
    elif protocol.grid:
        noise = torch.tensor([1 / each.tau for each in candidates if each.tau])
    else:
        drawn = means(stack, x, VALIDATION_DRAWS // 5, seed)  # (S, M, B)
        fitted = [fit_noise_variance(drawn[:, m, :, None], y[m, :, None].numpy())[0] for m in range(len(of))]
        noise = torch.tensor(fitted) * deviation.square()
        candidates = [replace(each, tau=1 / float(v)) for each, v in zip(candidates, noise, strict=True)]
    found = log_likelihood(stack, x, y, deviation, noise, VALIDATION_DRAWS, seed).tolist()
    best = []
    for problem in sorted(set(of)):
        own = [(value, index) for index, value in enumerate(found) if of[index] == problem]
        value, index = max(own)
        best.append((candidates[index], value))
    return best


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


def judge(
    stack: Stack,
    at: int,
    folder: Folder,
    test: np.ndarray,
    scale: Scale,
    candidate: Candidate,
    validation: float,
    number: int,
) -> Judged:
    network = network_of(stack, at, scale)
    inputs, targets = folder.inputs[test], folder.targets[test].numpy().astype(np.float64)
    head = Head.MEAN if candidate.tau is not None else Head.MEAN_AND_LOG_VARIANCE
    engine = engine_of(network, head, None if candidate.tau is None else 1 / candidate.tau, inputs[:2])
    drawn = engine.draws({"inputs": inputs}, SamplingSpec(max_draws=TEST_DRAWS))
    assert drawn.mean is not None
    assert drawn.variance is not None
    mean, variance = drawn.mean[..., 0].numpy(), drawn.variance[..., 0].numpy()
    with torch.inference_mode():
        standard = network(inputs)[:, 0].numpy()
    return Judged(
        split=number,
        rate=candidate.rate,
        tau=candidate.tau,
        validation_log_likelihood=validation,
        rmse=root_mean_squared_error(mean.mean(0), targets),
        log_likelihood=-mixture_negative_log_likelihood(mean, variance, targets),
        standard_rmse=root_mean_squared_error(standard, targets),
        draws=len(mean),
    )


# --- The whole ---


def work(queue: Queue[int], folder: Folder, numbers: Sequence[int], protocol: Protocol, seed: int) -> list[Judged]:
    return run_splits(folder, numbers, protocol, seed, queue.put)


def run_set(folder: Folder, protocol: Protocol, processes: int, seed: int, bar: Progress) -> list[Judged]:
    """Run the splits of a set, dealt out over processes."""
    shares = [list(range(len(folder.splits)))[start::processes] for start in range(processes)]
    shares = [share for share in shares if share]
    steps = 2 * folder.epochs * protocol.factor * len(shares) + len(folder.splits)
    task = bar.add_task(folder.name, total=steps)
    if len(shares) == 1:
        return run_splits(folder, shares[0], protocol, seed, lambda count: bar.advance(task, count))
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(len(shares), context) as pool:
        queue: Any = manager.Queue()
        futures = [
            pool.submit(work, queue, folder, share, protocol, seed + 1000 * number)
            for number, share in enumerate(shares)
        ]
        while not all(future.done() for future in futures) or not queue.empty():
            if queue.empty():
                time.sleep(0.1)
            else:
                bar.advance(task, queue.get())
        judged = [each for future in futures for each in future.result()]
    return sorted(judged, key=lambda each: each.split)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over splits and its standard error."""
    array = np.asarray(values)
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else math.nan


def summarise(judged: Sequence[Judged], published: Figures | None) -> dict[str, Any]:
    """Return means, standard errors and, where there is a published figure, z of the differences (positive: better)."""
    rmse, rmse_error = mean_and_error([each.rmse for each in judged])
    ll, ll_error = mean_and_error([each.log_likelihood for each in judged])
    found: dict[str, Any] = {"rmse": rmse, "rmse_error": rmse_error, "ll": ll, "ll_error": ll_error}
    if published is not None:
        found["published"] = published
        found["rmse_z"] = (published[0] - rmse) / math.hypot(published[1], rmse_error)
        found["ll_z"] = (ll - published[2]) / math.hypot(published[3], ll_error)
    return found


def print_table(console: Console, protocol: str, results: dict[str, dict[str, Any]]) -> None:
    table = Table(title=f"Protocol {protocol}: test rows, mean ± standard error over splits", title_justify="left")
    table.add_column("set", no_wrap=True)
    for heading in ("RMSE", "published", "z", "log-likelihood", "published", "z"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, found in results.items():
        summary = found["summary"]
        published = summary.get("published")
        cells = []
        for key, at in (("rmse", 0), ("ll", 2)):
            cells.append(f"{summary[key]:.3f} ± {summary[f'{key}_error']:.3f}")
            cells.append("-" if published is None else f"{published[at]:.3f} ± {published[at + 1]:.3f}")
            cells.append("-" if published is None else f"{summary[f'{key}_z']:+.1f}")
        table.add_row(name, *cells)
    console.print(table)
    console.print("z: difference over both standard errors; positive is better than published")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="paper")
    parser.add_argument("--sets", help="comma-separated; by default every folder of DATA_DIR")
    parser.add_argument("--splits", type=int, help="so many of each set; by default all")
    parser.add_argument("--epochs-factor", type=int, help="times n_epochs.txt; by default the protocol's")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON; sets already in it are kept")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    try:
        run(given)
    except BadInput as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def run(given: argparse.Namespace) -> None:
    if not given.data.is_dir():
        raise BadInput(f"{given.data} is no folder; accepted: a folder with one folder for each set")
    there = sorted(path.name for path in given.data.iterdir() if (path / "data.txt").exists())
    names = there if given.sets is None else given.sets.split(",")
    unknown = [name for name in names if name not in there]
    if unknown or not names:
        raise BadInput(f"--sets {', '.join(unknown) or 'empty'}; accepted: {', '.join(there)}")
    for option in ("splits", "epochs_factor", "processes"):
        value = getattr(given, option)
        if value is not None and value < 1:
            raise BadInput(f"--{option.replace('_', '-')} {value}; accepted: at least 1")
    protocol = PROTOCOLS[given.protocol]
    if given.epochs_factor is not None:
        protocol = replace(protocol, factor=given.epochs_factor)
    console = Console(width=max(110, Console().width))
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    results: dict[str, Any] = {}
    if given.out is not None and given.out.exists():
        results = json.loads(given.out.read_text())["sets"]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        for name in names:
            folder, began = read_folder(given.data / name, given.splits), time.perf_counter()
            judged = run_set(folder, protocol, given.processes, given.seed, bar)
            results[name] = {
                "summary": summarise(judged, PUBLISHED[given.protocol].get(name)),
                "epochs": folder.epochs * protocol.factor,
                "seconds": round(time.perf_counter() - began, 1),
                "splits": [asdict(each) for each in judged],
            }
            if given.out is not None:
                settings = {"protocol": given.protocol, **asdict(protocol), "seed": given.seed}
                machine = {"torch": torch.__version__, "processor": platform.processor() or platform.machine()}
                report = {"settings": settings, "made_with": machine, "sets": results}
                given.out.parent.mkdir(parents=True, exist_ok=True)
                given.out.write_text(json.dumps(report, indent=1) + "\n")
    print_table(console, given.protocol, {name: results[name] for name in names})


if __name__ == "__main__":
    main()
