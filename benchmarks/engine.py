"""Time, memory and accuracy of the Monte Carlo path beside the usual ways to draw, in one process.

The others: the loop (S passes in train mode, batch norm in eval), the repeated batch (one pass of the rows S times
over), and the packages that work by either, baal and torch-uncertainty, where they are installed and draw the whole
network. Ours: the packed network by the version's own seed, by a new seed each time, with bfloat16 products and with a
fan-out of 4 where these can be packed. All return the mean of the probabilities and their mutual information.

*Equal draws*: S of the balanced design are rounded up to whole groups, and everybody makes as many. The ways take
turns; a short one runs once more, untimed, before it is timed, since the caches are the others'. Medians.

*Equal accuracy*: the truth is independent draws of our own, many of them; an error is the root of the mean, over seeds,
rows and classes, of the squared difference, less the truth's own variance. The others draw alike, masks of their own
for every row and draw, so their errors are measured once, by the repeated batch. As their mean squared error falls as
1 / S, they would need S * MSE(other, S) / MSE(dubito, S) draws for our error at S, and as much more time. In the mutual
information this favours us where draws are few: the others' is biased by about 1 / S, and a squared bias falls faster.

*Settled decisions*: all test digits at once, until each row's class is settled (DECISION, at most 1,024 draws); beside
it the fastest other with the least S of a ladder at which its labels differ from those of 4,096 draws no oftener than
ours. Others have no rule by which to stop, so all rows pay for the hardest.

*Memory*: in a process of its own for every way and number of rows: after one call of a single draw the heap is trimmed
and the high-water mark of the resident memory reset; then one call of all draws, and how far the mark rises above what
was resident. So what the version keeps of its masks counts as ours, and the weights count for nobody. Linux only.

    python benchmarks/engine.py [--quick] [--threads 1] [--only mlp-.2,lstm] [--out FILE]
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import importlib
import importlib.metadata
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_networks import CASES, Case, choose_rows, train
from numpy.typing import NDArray
from torch import Tensor, nn

from dubito_models.errors import AuditFailed, InvalidArgument
from dubito_models.package import ModelVersion, load_version
from dubito_models.packing import pack
from dubito_models.predictive import Classification
from dubito_models.sampling import SamplingSpec
from dubito_models.stopping import Stopping, StoppingRule
from dubito_models.thinning import Design

Array = NDArray[np.float64]

LOOP, REPEAT, OURS, OWN_SEED, ROUNDED = "loop", "repeated batch", "dubito", "dubito, own seed", "dubito, bfloat16"
FANNED = "dubito, fan-out 4"
PACKED_AS: dict[str, dict[str, Any]] = {OURS: {}, ROUNDED: {"precision": "bfloat16"}, FANNED: {"fan_out": 4}}
ALL_OURS = (OURS, OWN_SEED, ROUNDED, FANNED)
MEASURES = ("mean", "mutual information")
TRUTH_BLOCKS = 16
TRUTH_SEED, ERROR_SEED = 10_000, 20_000  # where each starts; the version's own seed is 0
SHORT = 0.05  # seconds; a call that takes less feels whose turn it was before


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured."""

    rows: tuple[int, ...] = (1, 8, 32)
    draws: tuple[int, ...] = (16, 64, 256)
    steps: int = 150  # of training
    rounds: tuple[int, int] = (3, 25)  # at least, at most
    seconds: float = 6.0  # after which a cell starts no further round
    seeds: int = 32
    judged: int = 8  # rows of which errors are taken
    truth: int = 16_384
    memory_rows: tuple[int, ...] = (1, 8, 32)
    memory_ways: tuple[str, ...] = (LOOP, REPEAT, *ALL_OURS)
    settled: tuple[str, ...] = ("mlp-.2", "mlp-.5")  # the networks whose decisions are settled
    ladder: tuple[int, ...] = (10, 20, 40, 80, 160, 320, 640, 1280)  # draws of the others
    settled_seeds: int = 5
    settled_rows: int = 360  # of the test digits


QUICK = Settings(
    rows=(1, 8), draws=(16, 64), steps=40, rounds=(2, 2), seeds=8, truth=2048, memory_rows=(8,),
    memory_ways=(REPEAT, OURS), settled=("mlp-.2",), ladder=(20, 160), settled_seeds=2,
    settled_rows=100,
)  # fmt: skip
QUICK_CASES = ("mlp-.2", "lstm")


# --- The ways to draw ---


@dataclass(frozen=True, slots=True)
class Answer:
    """What a way says of B rows: the mean of the probabilities (B, K) and the mutual information (B,) in nats."""

    mean: Array
    mutual_information: Array

    def measures(self) -> dict[str, Array]:
        return dict(zip(MEASURES, (self.mean, self.mutual_information), strict=True))


Way = Callable[[Tensor, int, int], Answer]  # of rows (B, ...), S draws and a seed


def summarise(logits: Tensor) -> Answer:
    """Return what draws of logits (S, B, K) come to, as everybody computes it."""
    probabilities = logits.softmax(-1)
    mean = probabilities.mean(0)
    doubt = torch.special.entr(mean).sum(-1) - torch.special.entr(probabilities).sum(-1).mean(0)
    return Answer(mean.double().numpy(), doubt.double().numpy())


def active(network: nn.Module) -> nn.Module:
    """Return the network in train mode, batch norm in eval."""
    network.train()
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
    return network


def draw_by_loop(network: nn.Module) -> Way:
    @torch.inference_mode()
    def run(x: Tensor, draws: int, seed: int) -> Answer:
        torch.manual_seed(seed)
        return summarise(torch.stack([network(x) for _ in range(draws)]))

    return run


def draw_by_repeating(network: nn.Module) -> Way:
    @torch.inference_mode()
    def run(x: Tensor, draws: int, seed: int) -> Answer:
        torch.manual_seed(seed)
        return summarise(network(x.repeat(draws, *(1,) * (x.dim() - 1))).unflatten(0, (draws, len(x))))

    return run


def draw_by_dubito(version: ModelVersion, *, own_seed: bool) -> Way:
    def run(x: Tensor, draws: int, seed: int) -> Answer:
        found = version.predict(x.numpy(), SamplingSpec(max_draws=draws, seed=seed if own_seed else None)).answer
        assert isinstance(found, Classification)
        assert found.mutual_information is not None
        return Answer(found.probabilities, found.mutual_information)

    return run


def draw_by_baal(network: nn.Module) -> Way:
    modelwrapper = importlib.import_module("baal.modelwrapper")
    patched = importlib.import_module("baal.bayesian.dropout").MCDropoutModule(network)
    wrapper = modelwrapper.ModelWrapper(patched, modelwrapper.TrainingArgs(use_cuda=False))
    wrapper.eval()

    @torch.inference_mode()
    def run(x: Tensor, draws: int, seed: int) -> Answer:
        torch.manual_seed(seed)
        return summarise(wrapper.predict_on_batch(x, iterations=draws).permute(2, 0, 1))  # from (B, K, S)

    return run


def draw_by_torch_uncertainty(network: nn.Module) -> Way:
    wrapper = importlib.import_module("torch_uncertainty.methods").mc_dropout(network, num_estimators=1).eval()

    @torch.inference_mode()
    def run(x: Tensor, draws: int, seed: int) -> Answer:
        torch.manual_seed(seed)
        wrapper.num_estimators = draws
        return summarise(wrapper(x).unflatten(0, (draws, len(x))))

    return run


# --- The packages beside which we stand ---


@dataclass(frozen=True, slots=True)
class Peer:
    """A package that draws; `module`: what has to import; `drops`: the parts of a network that it lets drop."""

    module: str
    drops: tuple[type[nn.Module], ...]
    wrap: Callable[[nn.Module], Way]

    def covers(self, network: nn.Module) -> int:
        """Return how many dropouts of a network it draws."""
        return sum(isinstance(part, self.drops) and part.p > 0 for part in network.modules())


PEERS = {
    "baal": Peer("baal.modelwrapper", (nn.Dropout, nn.Dropout2d), draw_by_baal),
    "torch-uncertainty": Peer("torch_uncertainty.methods", (nn.modules.dropout._DropoutNd,), draw_by_torch_uncertainty),
}


def find_peers() -> dict[str, str]:
    """Return the version of every peer, or why it is not measured."""
    found = {}
    for name, peer in PEERS.items():
        try:
            found[name] = importlib.metadata.version(name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(peer.module)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
        except Exception as error:  # whatever its own imports raise
            found[name] = f"cannot be imported: {type(error).__name__}: {str(error).splitlines()[0]}"
    return found


def is_usable(state: str) -> bool:
    """Tell whether what `find_peers` says of a peer is a version."""
    return state[0].isdigit()


# --- What is measured ---


@dataclass(frozen=True, slots=True)
class Subject:
    """A network, its packed versions, and all ways to draw it; `notes`: why some are not among them."""

    network: nn.Module
    versions: Mapping[str, ModelVersion]  # OURS, and of ROUNDED and FANNED what can be packed
    ways: Mapping[str, Way]
    notes: Mapping[str, str]

    @property
    def version(self) -> ModelVersion:
        return self.versions[OURS]

    def whole_groups(self, draws: int) -> int:
        """Return how many draws the balanced design makes where so many are asked."""
        return self.version.engine.plan(SamplingSpec(max_draws=draws)).max_draws


def pack_versions(network: nn.Module, example: Tensor, folder: Path) -> tuple[dict[str, ModelVersion], dict[str, str]]:
    """Pack plainly and, where that can be, with bfloat16 products and with a fan-out; else say why not."""
    versions, notes = {}, {}
    for number, (name, options) in enumerate(PACKED_AS.items(), start=1):
        kind = {"repository": folder, "name": "m", "task": "classification", "head": "logits", "version": number}
        try:
            versions[name] = pack(network, example, **kind, **options)
            versions[name].tune()
        except (AuditFailed, InvalidArgument) as error:
            notes[name] = str(error)
    return versions, notes


def gather_ways(network: nn.Module, versions: Mapping[str, ModelVersion], notes: dict[str, str]) -> Subject:
    """Set up every way that can draw the whole network; add to `notes` why others cannot."""
    noisy = active(copy.deepcopy(network))
    ways = {LOOP: draw_by_loop(noisy), REPEAT: draw_by_repeating(noisy)}
    sites = len(versions[OURS].engine.program.sites)
    for name, state in find_peers().items():
        covered = PEERS[name].covers(network)
        if covered < sites:
            notes[name] = f"draws {covered} of {sites} dropouts, so another network"
        elif is_usable(state):
            ways[name] = PEERS[name].wrap(copy.deepcopy(network).eval())
    ways[OURS] = draw_by_dubito(versions[OURS], own_seed=False)
    ways[OWN_SEED] = draw_by_dubito(versions[OURS], own_seed=True)
    for name in (ROUNDED, FANNED):
        if name in versions:
            ways[name] = draw_by_dubito(versions[name], own_seed=False)
    return Subject(network, versions, ways, notes)


def prepare(case: Case, steps: int, folder: Path) -> Subject:
    """Train, pack and set up a case."""
    network = train(case, steps)
    return gather_ways(network, *pack_versions(network, choose_rows(case, network, 2), folder))


# --- Accuracy ---


@dataclass(frozen=True, slots=True)
class Truth:
    """What very many draws say, and `noise`: how far that is off itself, as a mean squared error of each measure."""

    answer: Answer
    noise: Mapping[str, float]


def find_truth(version: ModelVersion, x: Tensor, draws: int) -> Truth:
    """Make so many independent draws of our own, in blocks of seeds of their own, whose scatter tells the noise."""
    blocks, inputs = [], version.read_inputs(x.numpy())
    for block in range(TRUTH_BLOCKS):
        spec = SamplingSpec(draws // TRUTH_BLOCKS, seed=TRUTH_SEED + block, design=Design.INDEPENDENT)
        found = version.engine.draws(inputs, spec).log_probabilities
        assert found is not None
        values = found.exp()  # (S, B, K)
        blocks.append((values.mean(0).numpy(), torch.special.entr(values).sum(-1).mean(0).numpy()))
    means, entropies = (np.stack(part) for part in zip(*blocks, strict=True))  # (blocks, B, K) and (blocks, B)
    scatter = Answer(means, entropy_of(means) - entropies).measures()
    noise = {name: float(values.var(0, ddof=1).mean()) / TRUTH_BLOCKS for name, values in scatter.items()}
    mean = means.mean(0)
    return Truth(Answer(mean, entropy_of(mean) - entropies.mean(0)), noise)


def entropy_of(probabilities: Array) -> Array:
    return torch.special.entr(torch.from_numpy(probabilities)).sum(-1).numpy()


@dataclass(frozen=True, slots=True)
class Error:
    """A mean squared error, and its standard error over seeds."""

    square: float
    deviation: float

    def describe(self) -> dict[str, float]:
        return {"rms": round_to(self.square**0.5, 4), "of the square, +-": round_to(self.deviation / self.square, 2)}


def find_errors(way: Way, truth: Truth, x: Tensor, draws: int, seeds: int) -> dict[str, Error]:
    """Return the error of each measure at so many draws."""
    expected = truth.answer.measures()
    squares: dict[str, list[float]] = {name: [] for name in MEASURES}
    for seed in range(ERROR_SEED, ERROR_SEED + seeds):
        for name, value in way(x, draws, seed).measures().items():
            squares[name].append(float(((value - expected[name]) ** 2).mean()))
    return {
        name: Error(statistics.mean(values) - truth.noise[name], statistics.stdev(values) / seeds**0.5)
        for name, values in squares.items()
    }


def judge(subject: Subject, x: Tensor, settings: Settings) -> dict[int, dict[str, dict[str, Error]]]:
    """Return, by draws asked and way, the errors; the version's own seed errs as any seed does."""
    truth = find_truth(subject.version, x, settings.truth)
    judged = {REPEAT: subject.ways[REPEAT], OURS: subject.ways[OWN_SEED]}
    for name in (ROUNDED, FANNED):
        if name in subject.versions:
            judged[name] = draw_by_dubito(subject.versions[name], own_seed=True)
    return {
        draws: {
            name: find_errors(way, truth, x, subject.whole_groups(draws), settings.seeds)
            for name, way in judged.items()
        }
        for draws in settings.draws
    }


# --- Time ---


def time_ways(
    ways: Mapping[str, Callable[[], object]], rounds: tuple[int, int], seconds: float
) -> dict[str, list[float]]:
    """Return the seconds of every timed call of each way."""
    last = {way: clock(run) for way, run in ways.items()}
    times: dict[str, list[float]] = {way: [] for way in ways}
    least, most = rounds
    start = time.perf_counter()
    for done in range(most):
        if done >= least and time.perf_counter() - start > seconds:
            break
        for way, run in ways.items():
            if last[way] < SHORT:
                run()
            last[way] = clock(run)
            times[way].append(last[way])
    return times


def clock(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def bind(way: Way, x: Tensor, draws: int) -> Callable[[], Answer]:
    """Return a call of a way with another seed each time."""
    seeds = itertools.count(1)
    return lambda: way(x, draws, next(seeds))


def measure(
    subject: Subject, x: Tensor, draws: int, errors: Mapping[str, Mapping[str, Error]], settings: Settings
) -> dict[str, Any]:
    """Return one cell of the table: these rows at so many draws."""
    whole = subject.whole_groups(draws)
    calls = {name: bind(way, x, whole) for name, way in subject.ways.items()}
    times = time_ways(calls, settings.rounds, settings.seconds)
    medians = {way: statistics.median(values) for way, values in times.items()}
    fastest = min((way for way in medians if way not in ALL_OURS), key=medians.__getitem__)
    gains = {way: medians[fastest] / medians[way] for way in medians if way in ALL_OURS}
    cell = {
        "rows": len(x),
        "draws asked": draws,
        "draws": whole,
        "rounds": len(times[OURS]),
        "milliseconds": {way: round_to(value * 1e3, 4) for way, value in medians.items()},
        "fastest other": fastest,
        "times faster at equal draws": {way: round_to(gain, 3) for way, gain in gains.items()},
    }
    for name in MEASURES:
        squares = {way: errors[OURS if way == OWN_SEED else way][name].square for way in gains}
        cell[f"times faster at equal accuracy of the {name}"] = {
            way: round_to(gain * errors[REPEAT][name].square / squares[way], 3) for way, gain in gains.items()
        }
    return cell


def round_to(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


# --- Settled decisions ---


def find_settled(subject: Subject, x: Tensor, settings: Settings) -> dict[str, Any]:
    """Return what settling the class of every row costs, beside as many draws for all of them."""
    version, inputs = subject.version, x.numpy()
    most = SamplingSpec(4096, seed=TRUTH_SEED, design=Design.INDEPENDENT)
    truth = labels_of(version, inputs, most)
    rule = Stopping(StoppingRule.DECISION)
    seeds = range(ERROR_SEED, ERROR_SEED + settings.settled_seeds)
    ours = [version.predict(inputs, SamplingSpec(1024, seed=seed, stopping=rule)) for seed in seeds]
    wrong = statistics.mean(float(np.mean(found.answer.label != truth)) for found in ours)
    needed, theirs = settings.ladder[-1], 1.0
    for draws in settings.ladder:
        found = [subject.ways[LOOP](x, draws, seed).mean.argmax(-1) for seed in seeds]
        theirs = statistics.mean(float(np.mean(labels != truth)) for labels in found)
        if theirs <= wrong:
            needed = draws
            break
    calls: dict[str, Callable[[], object]] = {
        name: bind(subject.ways[name], x, needed)
        for name in (LOOP, REPEAT)
        if name == LOOP or needed * len(x) <= 100_000
    }
    calls[OURS] = lambda: version.predict(inputs, SamplingSpec(1024, stopping=rule))
    times = time_ways(calls, settings.rounds, settings.seconds)
    medians = {way: statistics.median(values) for way, values in times.items()}
    fastest = min(value for way, value in medians.items() if way != OURS)
    return {
        "rows": len(x),
        "draws, mean over rows": round_to(statistics.mean(float(found.draws.mean()) for found in ours), 3),
        "labels that differ from 4,096 draws": round_to(wrong, 2),
        "draws of the others": needed,
        "of their labels": round_to(theirs, 2),
        "milliseconds": {way: round_to(value * 1e3, 4) for way, value in medians.items()},
        "times faster": round_to(fastest / medians[OURS], 3),
    }


def labels_of(version: ModelVersion, inputs: NDArray[Any], spec: SamplingSpec) -> NDArray[np.int64]:
    found = version.predict(inputs, spec).answer
    assert isinstance(found, Classification)
    return found.label


# --- Memory ---


def find_peak(case: str, folder: str, way: str, rows: int, draws: int, threads: int) -> int:
    """Return by how many bytes one call raises this process's peak; the network is untrained, which costs as much."""
    torch.set_num_threads(threads)
    network = CASES[case].build()
    versions = {
        name: load_version(Path(folder, "m", str(number))) for name, number in VERSION_OF.items() if name == way
    }
    versions.setdefault(OURS, load_version(Path(folder, "m", str(VERSION_OF[OURS]))))
    subject = gather_ways(network, versions, {})
    run, x = subject.ways[way], torch.randn(rows, *CASES[case].shape)
    run(x, 1, 1)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    run(x, subject.whole_groups(draws), 2)
    return high_water() - before


VERSION_OF = {name: number for number, name in enumerate(PACKED_AS, start=1)}


def high_water() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


def find_memory(case: str, subject: Subject, settings: Settings, threads: int) -> list[dict[str, Any]]:
    """Return the peaks of each way at the most draws, a fresh process each."""
    folder, draws = subject.version.folder.parent.parent, max(settings.draws)
    context, found = multiprocessing.get_context("spawn"), []
    for rows in settings.memory_rows:
        peaks = {}
        for way in settings.memory_ways:
            if way in subject.ways:
                with context.Pool(1) as pool:
                    peaks[way] = pool.apply(find_peak, (case, str(folder), way, rows, draws, threads))
        found.append(
            {
                "rows": rows,
                "draws": subject.whole_groups(draws),
                "peak megabytes": {way: round_to(size / 2**20, 3) for way, size in peaks.items()},
                "share of the repeated batch's": {
                    way: round_to(size / peaks[REPEAT], 3) for way, size in peaks.items() if way in ALL_OURS
                },
            }
        )
    return found


# --- The document ---


def measure_case(name: str, settings: Settings, threads: int) -> dict[str, Any]:
    """Return all that is said of one network."""
    with tempfile.TemporaryDirectory() as folder:
        subject = prepare(CASES[name], settings.steps, Path(folder))
        rows = choose_rows(CASES[name], subject.network, max(settings.judged, *settings.rows))
        errors = judge(subject, rows[: settings.judged], settings)
        return {
            "network": name,
            "parameters": sum(weight.numel() for weight in subject.network.parameters()),
            "sites": len(subject.version.engine.program.sites),
            "group size": subject.version.manifest.group_size,
            "not measured": dict(subject.notes),
            "errors": [{"draws": subject.whole_groups(draws), **describe(ways)} for draws, ways in errors.items()],
            "speed": [
                measure(subject, rows[:count], draws, errors[draws], settings)
                for count, draws in itertools.product(settings.rows, settings.draws)
            ],
            **(
                {
                    "settled decisions": find_settled(
                        subject, choose_rows(CASES[name], subject.network, settings.settled_rows), settings
                    )
                }
                if name in settings.settled
                else {}
            ),
            "memory": find_memory(name, subject, settings, threads),
        }


def describe(ways: Mapping[str, Mapping[str, Error]]) -> dict[str, Any]:
    return {way: {name: error.describe() for name, error in found.items()} for way, found in ways.items()}


def describe_machine(threads: int) -> dict[str, Any]:
    known = torch.cpu.get_capabilities()
    return {
        "torch": torch.__version__,
        "processor": known.get("cpu_name", "unknown"),
        "capabilities": {name: bool(known.get(name)) for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")},
        "threads": threads,
    }


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two networks, few rounds: to see that it runs")
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"of {', '.join(CASES)}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the document there; after each network, what there is")
    options = parser.parse_args(arguments)
    if unknown := set(options.only or ()) - set(CASES):
        parser.error(f"--only: got {', '.join(sorted(unknown))}; accepted: {', '.join(CASES)}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(arguments)
    torch.set_num_threads(options.threads)
    settings = QUICK if options.quick else Settings()
    document = {**describe_machine(options.threads), "peers": find_peers(), "networks": []}
    for name in options.only or (QUICK_CASES if options.quick else CASES):
        print(name, file=sys.stderr)
        document["networks"].append(measure_case(name, settings, options.threads))
        if options.out:
            options.out.write_text(json.dumps(document, indent=2))
    if not options.out:
        print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
