"""Time, memory and launches of the Monte Carlo path on a GPU beside the usual ways to draw, and how far from the floor.

The others: the loop (S passes in train mode, batch norm in eval) and the repeated batch (one pass of the rows S times
over, in as many passes as memory asks for). Ours: by the default seed, whose masks are kept, and by a new seed each
time. Every call takes rows on the CPU and gives the mean of the probabilities and their mutual information there, so
transfers count. S draws of the balanced design are rounded up to whole groups, and everybody makes as many. In
bfloat16 ours has rounded products, the others run under autocast. Float32 is float32: TF32 is off for everybody.

*Time*: medians of device events, the ways in turn, after one untimed call. *Memory*: how far the allocator's peak rises
above what was taken before the call. *Launches*: kernels, calls that launch, copies and waits of one call, by torch's
profiler. *Floor*: prefix once and suffix S times at the rate of a large matrix product, or the weights, rows and
predictions once at the rate of a large copy, whichever takes longer; both rates are measured in the same run.

Every cell begins only while there is time; what was left out is in the document. Needs torch, numpy and scipy.

    python benchmarks/gpu.py [--minutes 6] [--tests] [--device cpu] [--small] [--only mlp,vit-b] [--out FILE]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_networks import CASES, SMALL, Case, build, make_rows
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from dubito_models.audit import ROUNDING, audit_rounding, difference
from dubito_models.engine import Defaults, Engine, choose_default_draws, choose_pass_bytes
from dubito_models.errors import AuditFailed
from dubito_models.export import Exported, export_network, read_example
from dubito_models.heads import Head
from dubito_models.precision import Precision
from dubito_models.predictive import Classification
from dubito_models.program import StochasticProgram
from dubito_models.recording import CudaGraphs, Recorder
from dubito_models.sampling import SamplingSpec
from dubito_models.thinning import Design, Masks, choose_balanced, choose_group_size

Array = NDArray[np.float64]

ROOT = Path(__file__).parents[1]
LOOP, REPEAT, OURS, OWN_SEED = "loop", "repeated batch", "dubito", "dubito, own seed"
ALL_OURS = (OURS, OWN_SEED)
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaLaunchCooperativeKernel")  # and longer names
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")
TESTS_SECONDS = 100
NO_GPU = 2  # exit status
SAME = 1e-4  # of their scale: what many draws at once may differ from the same ones by one


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured."""

    draws: tuple[int, ...] = (64, 256)
    most_rounds: int = 25
    least_rounds: int = 3
    seconds: float = 3.0  # after which a cell starts no further round
    products: tuple[int, ...] = (4096, 8192)
    copied: int = 1 << 30  # bytes
    repeats: int = 10  # of a product or a copy


SMALL_SETTINGS = Settings((16, 32), 2, 1, 1.0, (128, 256), 1 << 20, 3)


# --- The ways to draw ---


@dataclass(frozen=True, slots=True)
class Answer:
    """What a way says of B rows: the mean of the probabilities (B, K) and the mutual information (B,) in nats."""

    mean: Array
    mutual_information: Array


Way = Callable[[Tensor, int, int], Answer]  # of rows (B, ...) on the CPU, S draws and a seed


def summarise(logits: Tensor) -> Answer:
    """Return what draws of logits (S, B, K) come to, as the others compute it."""
    probabilities = logits.float().softmax(-1)
    mean = probabilities.mean(0)
    doubt = torch.special.entr(mean).sum(-1) - torch.special.entr(probabilities).sum(-1).mean(0)
    return Answer(mean.double().cpu().numpy(), doubt.double().cpu().numpy())


def active(network: nn.Module) -> nn.Module:
    """Put the network in train mode, batch norm in eval."""
    network.train()
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
    return network


def rounding(precision: Precision, device: torch.device) -> Any:
    """Return the block in which others draw in a precision."""
    return torch.autocast(device.type, torch.bfloat16) if precision is Precision.BFLOAT16 else nullcontext()


def draw_by_loop(network: nn.Module, precision: Precision, device: torch.device) -> Way:
    @torch.inference_mode()
    def run(x: Tensor, draws: int, seed: int) -> Answer:
        torch.manual_seed(seed)
        here = x.to(device)
        with rounding(precision, device):
            return summarise(torch.stack([network(here) for _ in range(draws)]))

    return run


class RepeatedBatch:
    """One pass of the rows S times over; where memory does not hold it, passes of half as many draws, and so on."""

    def __init__(self, network: nn.Module, precision: Precision, device: torch.device) -> None:
        self._network, self._precision, self._device = network, precision, device
        self._most: dict[int, int] = {}  # draws a pass, by rows, once memory has run out

    def draws_a_pass(self, rows: int, draws: int) -> int:
        """Return how many draws of so many rows go at once."""
        return min(draws, self._most.get(rows, draws))

    @torch.inference_mode()
    def __call__(self, x: Tensor, draws: int, seed: int) -> Answer:
        torch.manual_seed(seed)
        here = x.to(self._device)
        while True:
            size = self.draws_a_pass(len(x), draws)
            try:
                counts = [min(size, draws - start) for start in range(0, draws, size)]
                return summarise(torch.cat([self._pass(here, count) for count in counts]))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            self._most[len(x)] = size // 2  # outside of the handler, whose traceback holds what was made
            torch.cuda.empty_cache()

    def _pass(self, x: Tensor, draws: int) -> Tensor:
        with rounding(self._precision, self._device):
            return self._network(x.repeat(draws, *(1,) * (x.dim() - 1))).unflatten(0, (draws, len(x)))


def draw_by_dubito(engine: Engine, *, own_seed: bool) -> Way:
    def run(x: Tensor, draws: int, seed: int) -> Answer:
        spec = SamplingSpec(max_draws=draws, seed=seed if own_seed else None)
        found = engine.predict(dict.fromkeys(engine.program.inputs, x), spec).answer
        assert isinstance(found, Classification)
        assert found.mutual_information is not None
        return Answer(found.probabilities, found.mutual_information)

    return run


# --- What is measured ---


@dataclass(frozen=True, slots=True)
class Subject:
    """A network on the device in one precision: our engine, all ways to draw, and what its check found."""

    engine: Engine
    ways: Mapping[str, Way]
    check: Mapping[str, Any]

    def whole_groups(self, draws: int) -> int:
        """Return how many draws the balanced design makes where so many are asked."""
        return self.engine.plan(SamplingSpec(max_draws=draws)).max_draws


def open_program(exported: Exported, name: str, precision: Precision, device: torch.device) -> StochasticProgram:
    return StochasticProgram(exported.stochastic, {name: {}}, exported.output, precision).to(device)


def make_masks(program: StochasticProgram, rows: int) -> Masks:
    shapes = program.mask_shapes({"rows": rows})
    size = choose_group_size([site.rate for site in program.sites])
    return Masks(program, group_size=size, balanced=choose_balanced(program.sites, shapes))


@torch.inference_mode()
def compare_draws(program: StochasticProgram, masks: Masks, inputs: Mapping[str, Tensor]) -> float:
    """Return by how much three draws at once differ from the same ones by one, of their scale; inf: they cannot run."""
    boundary = program.prefix({name: value.to(program.device) for name, value in inputs.items()})
    several = masks.draws(boundary.symbols, 0, Design.INDEPENDENT, 0, 3)
    looped = torch.stack([program.suffix(boundary, [mask[i] for mask in several]) for i in range(3)])
    try:
        return difference(program.many(boundary, several), looped)
    except RuntimeError:  # an operator without a batching rule; the loop serves
        return math.inf


def check_rounding(
    exact: StochasticProgram, rounded: StochasticProgram, masks: Masks, inputs: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Say whether packing would accept bfloat16; refused for its error, it is measured all the same."""
    found: dict[str, Any] = {"rounded products": rounded.rounded_products, "accepted error": ROUNDING}
    if not rounded.rounded_products:
        return found | {"packing refuses it": "nothing gains by it"}
    try:
        report = audit_rounding(exact, rounded, masks, [inputs])
    except AuditFailed as error:
        return found | {"packing refuses it": str(error)}
    return found | {"a draw is off by": round_to(report.draw, 2), "the mean by": round_to(report.mean, 2)}


def prepare(
    network: nn.Module, exported: Exported, rows: Tensor, name: str, precision: Precision, device: torch.device
) -> Subject:
    """Set up our engine, as packing and loading would, and the others."""
    program = open_program(exported, name, precision, device)
    masks, inputs = make_masks(program, len(rows)), {name: rows}
    apart = compare_draws(program, masks, inputs)
    check: dict[str, Any] = {"many draws at once differ from one by one by": round_to(apart, 2)}
    if precision is Precision.BFLOAT16:
        exact = open_program(exported, name, Precision.FLOAT32, device)
        check |= check_rounding(exact, program, make_masks(exact, len(rows)), inputs)
        vmapped = math.isfinite(apart)  # sums in another order round to another number of eight bits
    else:
        vmapped = apart <= SAME
    check["many draws at once"] = vmapped
    size = masks.group_size
    defaults = Defaults(choose_default_draws(size), 0, Design.BALANCED)
    recorder = Recorder(CudaGraphs(device), program.select) if device.type == "cuda" else None
    passes = choose_pass_bytes(device)
    engine = Engine(program, masks, Head.LOGITS, defaults, pass_bytes=passes, vmapped=vmapped, recorder=recorder)
    ways: dict[str, Way] = {
        LOOP: draw_by_loop(network, precision, device),
        REPEAT: RepeatedBatch(network, precision, device),
    }
    if precision is Precision.FLOAT32 or program.rounded_products:  # else ours is what it is in float32
        ways[OURS] = draw_by_dubito(engine, own_seed=False)
        ways[OWN_SEED] = draw_by_dubito(engine, own_seed=True)
    return Subject(engine, ways, check)


# --- The floor ---


@dataclass(frozen=True, slots=True)
class Floor:
    """What the device does at best: multiplications and additions a second, by form, and bytes copied a second."""

    rates: Mapping[str, Mapping[int, float]]  # by form, then by size
    bandwidth: float  # read and written

    def rate(self, form: str) -> float:
        return max(self.rates[form].values())

    def describe(self) -> dict[str, Any]:
        return {
            "TFLOP/s of a product": {
                form: {f"{size}^3": round_to(rate / 1e12, 4) for size, rate in rates.items()}
                for form, rates in self.rates.items()
            },
            "GB/s of a copy, read and written": round_to(self.bandwidth / 1e9, 4),
        }


FORMS = {"float32": (torch.float32, False), "tf32": (torch.float32, True), "bfloat16": (torch.bfloat16, False)}


@contextmanager
def allow_tf32(allowed: bool) -> Iterator[None]:
    """Let a GPU round the operands of float32 products, or not, for the time of a with block.

    By torch's older switches: after the newer ones, `fp32_precision`, torch.export fails (torch 2.13).
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = allowed
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


@torch.inference_mode()
def measure_floor(settings: Settings, device: torch.device) -> Floor:
    rates: dict[str, dict[int, float]] = {}
    for form, (dtype, rounds) in FORMS.items():
        for size in settings.products:
            one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
            out = torch.empty_like(one)
            with allow_tf32(rounds):
                seconds = repeat(lambda a=one, b=other, c=out: torch.mm(a, b, out=c), settings.repeats, device)
            rates.setdefault(form, {})[size] = 2 * size**3 / seconds
    source = torch.ones(settings.copied // 4, device=device)
    target = torch.empty_like(source)
    return Floor(rates, 2 * settings.copied / repeat(lambda: target.copy_(source), settings.repeats, device))


def repeat(call: Callable[[], object], times: int, device: torch.device) -> float:
    """Return the median seconds of a call, after three untimed ones."""
    for _ in range(3):
        call()
    return statistics.median(clock(call, device) for _ in range(times))


@dataclass(frozen=True, slots=True)
class Work:
    """What a network multiplies and adds, for some rows: what all draws share, and one draw; and its masks."""

    prefix: int
    suffix: int
    mask_units: int  # of a draw
    weights: int  # numbers
    outputs: int  # numbers of a prediction of all rows

    def flops(self, draws: int) -> int:
        return self.prefix + draws * self.suffix

    def bytes(self, rows: Tensor, draws: int, precision: Precision) -> int:
        """Return what has to be read or written whatever one does: weights, rows and predictions."""
        each = 2 if precision is Precision.BFLOAT16 else 4
        return self.weights * each + rows.nbytes + draws * self.outputs * 4


@torch.inference_mode()
def find_work(network: nn.Module, engine: Engine, x: Tensor) -> Work:
    program = engine.program
    with FlopCounterMode(display=False) as shared:
        boundary = program.prefix(dict.fromkeys(program.inputs, x.to(program.device)))
    masks = [mask[0] for mask in engine.masks.draws(boundary.symbols, 1, Design.INDEPENDENT, 0, 1)]
    with FlopCounterMode(display=False) as each:
        raw = program.suffix(boundary, masks)
    weights = sum(weight.numel() for weight in network.parameters())
    units = sum(mask.numel() for mask in masks)
    return Work(shared.get_total_flops(), each.get_total_flops(), units, weights, raw.numel())


# --- Time, memory, launches ---


def clock(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call, by the device's own events where it has them."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    call()
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / 1e3


def find_peak(call: Callable[[], object], device: torch.device) -> int | None:
    """Return by how many bytes one call raises the allocator's peak; None where there is no such count."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def count_launches(call: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Return what one call makes the device do; `operators`: torch's own, nested ones among them."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=kinds) as profiler:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    events = list(profiler.events() or ())
    there = [event for event in events if event.device_type is DeviceType.CUDA]
    kernels = [event for event in there if not event.name.startswith(("Memcpy", "Memset"))]
    return {
        "kernels": len(kernels),
        "kernel milliseconds": round_to(sum(event.time_range.elapsed_us() for event in kernels) / 1e3, 4),
        "launching calls": sum(event.name.startswith(LAUNCHES) for event in events),
        "copies": sum(event.name.startswith("Memcpy") for event in there),
        "waits": sum(event.name.startswith(WAITS) for event in events),
        "operators": sum(event.name.startswith("aten::") for event in events),
    }


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop, by the clock of `time.perf_counter`."""

    end: float

    @property
    def left(self) -> float:
        return self.end - time.perf_counter()


def bind(way: Way, x: Tensor, draws: int) -> Callable[[], Answer]:
    """Return a call of a way with another seed each time."""
    seeds = itertools.count(1)
    return lambda: way(x, draws, next(seeds))


def expect(way: Way, x: Tensor, few: int, draws: int, device: torch.device) -> float:
    """Return the seconds that so many draws will take at most, from few of them, untimed once before."""
    call = bind(way, x, few)
    call()
    return clock(call, device) * draws / few


def time_ways(
    calls: Mapping[str, Callable[[], object]], expected: float, settings: Settings, budget: Budget, device: torch.device
) -> dict[str, list[float]]:
    """Return the seconds of every timed call of each way; `expected`: what a round takes."""
    for call in calls.values():
        if expected < settings.seconds:
            call()
    times: dict[str, list[float]] = {way: [] for way in calls}
    least = settings.least_rounds if expected < settings.seconds else 1
    start = time.perf_counter()
    for done in range(settings.most_rounds):
        spent = time.perf_counter() - start
        if done >= least and (spent > settings.seconds or expected > budget.left):
            break
        for way, call in calls.items():
            times[way].append(clock(call, device))
    return times


def measure(
    subject: Subject,
    x: Tensor,
    asked: int,
    work: Work,
    floor: Floor,
    precision: Precision,
    settings: Settings,
    budget: Budget,
) -> dict[str, Any]:
    """Return one cell: these rows at so many draws."""
    device, draws, few = subject.engine.program.device, subject.whole_groups(asked), subject.engine.masks.group_size
    cell: dict[str, Any] = {"rows": len(x), "precision": precision.value, "draws asked": asked, "draws": draws}
    calls, left_out, expected = {}, {}, 0.0
    for name, way in subject.ways.items():
        try:
            seconds = expect(way, x, few, draws, device)
        except torch.OutOfMemoryError:
            left_out[name] = "memory does not hold it"
            continue
        if 4 * (expected + seconds) > budget.left:  # timed, for its memory, and profiled; and some more
            left_out[name] = f"no time: about {seconds:.2g} s a call, {max(budget.left, 0):.0f} s left"
            continue
        calls[name] = bind(way, x, draws)
        expected += seconds
    times = time_ways(calls, expected, settings, budget, device)
    medians = {way: statistics.median(values) for way, values in times.items()}
    least = {
        "arithmetic": work.flops(draws) / floor.rate(precision.value),
        "transfer": work.bytes(x, draws, precision) / floor.bandwidth,
    }
    cell |= {
        "left out": left_out,
        "rounds": max(map(len, times.values()), default=0),
        "milliseconds": {way: round_to(value * 1e3, 4) for way, value in medians.items()},
        "milliseconds at least": {name: round_to(value * 1e3, 4) for name, value in least.items()},
        "share of the floor": {way: round_to(max(least.values()) / value, 3) for way, value in medians.items()},
        "draws a pass": describe_passes(subject, x, draws),
    }
    others = [medians[way] for way in medians if way not in ALL_OURS]
    if others:
        cell["times faster than the faster other"] = {
            way: round_to(min(others) / medians[way], 3) for way in ALL_OURS if way in medians
        }
    peaks = {way: find_peak(call, device) for way, call in calls.items()}
    cell["peak megabytes"] = {way: None if size is None else round_to(size / 2**20, 4) for way, size in peaks.items()}
    if asked == min(settings.draws):  # more draws launch more of the same
        cell["one call"] = {way: count_launches(call, device) for way, call in calls.items()}
    return cell


@torch.inference_mode()
def describe_passes(subject: Subject, x: Tensor, draws: int) -> dict[str, int]:
    engine, repeated = subject.engine, subject.ways[REPEAT]
    assert isinstance(repeated, RepeatedBatch)
    inputs = dict.fromkeys(engine.program.inputs, x)
    [run] = engine.start([(inputs, engine.plan(SamplingSpec()))], None)
    ours = min(draws, engine.pass_size(run.boundary)) if engine.vmaps else 1
    return {OURS: ours, REPEAT: repeated.draws_a_pass(len(x), draws)}


def round_to(value: float, digits: int) -> float | None:
    """Return a number of so many digits; None, which JSON knows, for infinity and NaN."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


# --- The document ---


def measure_case(
    name: str, case: Case, floor: Floor, settings: Settings, budget: Budget, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Yield all that is said of one network, again after every cell."""
    network, rows = build(case), make_rows(case, max(case.rows))
    example = read_example(network, rows[:2])
    [input_name] = example.inputs
    exported = export_network(network, example)
    network = active(network.to(device))
    said: dict[str, Any] = {
        "network": name,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "precisions": {},
        "cells": [],
    }
    for precision in Precision:
        subject = prepare(network, exported, rows[:2], input_name, precision, device)
        said["sites"] = len(subject.engine.program.sites)
        said["group size"] = subject.engine.masks.group_size
        said["precisions"][precision.value] = subject.check
        for count, asked in itertools.product(case.rows, settings.draws):
            x = rows[:count]
            work = find_work(network, subject.engine, x)
            cell = measure(subject, x, asked, work, floor, precision, settings, budget)
            shared, each = (round_to(flops / 1e9, 4) for flops in (work.prefix, work.suffix))
            work_said = {"GFLOP once": shared, "GFLOP a draw": each, "mask units a draw": work.mask_units}
            said["cells"].append(cell | work_said)
            yield said
        del subject
        free(device)


def free(device: torch.device) -> None:
    """Give back what nobody holds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def describe_machine(device: torch.device) -> dict[str, Any]:
    said: dict[str, Any] = {
        "device": device.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "TF32": "off",
    }
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        said |= {
            "gpu": about.name,
            "gigabytes": round_to(about.total_memory / 2**30, 4),
            "multiprocessors": about.multi_processor_count,
            "capability": f"{about.major}.{about.minor}",
            "cuda": torch.version.cuda,
        }
    return said


def run_tests() -> dict[str, Any]:
    """Run the CUDA tests in a process of their own, and say how they ended; their output is shown."""
    paths = os.pathsep.join(filter(None, [str(ROOT / "models"), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "gpu")]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=ROOT / "tests" / "gpu", env={**os.environ, "PYTHONPATH": paths}, timeout=TESTS_SECONDS,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        output, passed = done.stdout, done.returncode == 0
    except subprocess.TimeoutExpired as error:
        output = (error.stdout or b"").decode() + f"\nstopped after {TESTS_SECONDS} s"
        passed = False
    print(output, flush=True)
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "no output")
    return {"passed": passed, "summary": last, "seconds": round_to(time.perf_counter() - start, 3)}


def measure_all(
    names: Sequence[str],
    cases: Mapping[str, Case],
    settings: Settings,
    budget: Budget,
    device: torch.device,
    document: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """Yield the document, again after everything that is new in it."""
    floor = measure_floor(settings, device)
    free(device)
    document |= {"floor": floor.describe(), "networks": [], "left out": {}}
    for name in names:
        print(f"{name}: {max(budget.left, 0):.0f} s left", file=sys.stderr, flush=True)
        if budget.left <= 0:
            document["left out"][name] = "no time"
            continue
        before = list(document["networks"])
        try:
            for said in measure_case(name, cases[name], floor, settings, budget, device):
                document["networks"] = [*before, said]
                yield document
        except RuntimeError as error:  # so that one network's trouble costs none of the others
            document["left out"][name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        free(device)
    yield document


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to see that it runs")
    parser.add_argument("--small", action="store_true", help="small networks, few draws: to see that it runs")
    parser.add_argument("--minutes", type=float, default=6.0, help="after which nothing new is begun")
    parser.add_argument("--tests", action="store_true", help="run tests/gpu first; their failure is this one's")
    parser.add_argument("--only", action="append", choices=list(CASES), help="may be given several times")
    parser.add_argument("--out", type=Path, help="write the document there; after each cell, what there is")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit status: 0, 1 where a test or a network failed, 2 where there is no GPU."""
    options = read_options(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no NVIDIA GPU here: nothing was tested or measured", file=sys.stderr)
        return NO_GPU
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    cases, settings = (SMALL, SMALL_SETTINGS) if options.small else (CASES, Settings())
    document = describe_machine(device)
    if options.tests:
        document["tests"] = run_tests()
    budget = Budget(time.perf_counter() + 60 * options.minutes)
    with allow_tf32(False):
        for current in measure_all(options.only or list(cases), cases, settings, budget, device, document):
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(current, indent=2) + "\n")
    if not options.out:
        print(json.dumps(document, indent=2))
    failed = [name for name, why in document["left out"].items() if why != "no time"]
    return 1 if failed or not document.get("tests", {"passed": True})["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
