"""Tables scored by `dubito score`'s engines, and by the loop that one writes by hand.

*speed*: a table of digits (unseen ones, turned and shifted as in training) by the digits networks, trained for a
moment: the local engine on two cores, and a loop that runs the network S times over each batch with its dropout in
train mode, in eager torch, for the mean alone. Both read the same Parquet file and write Parquet. The loop gets the
best of six ways, tried first: batches of 256, 1024 or 4096 rows (where the table has one for each core), in one thread
with two of torch's or in two with one each. What a job does once (loading, tracing; a second or two) is left out, by
timing it from its second block on. Where Ray is installed, two actors on a Ray of this machine do the same.
*adaptive*: the first CNN by stopping rules, beside S draws a row; which classes differ from those of 1,024 draws.
*memory*: peak resident memory of a job over 5 million rows of 16 floats, in a process of its own.

Ratios are medians over rounds in which the ways take turns; seconds of the processor count what all threads took, and
are less disturbed by others on the machine.

    python benchmarks/batch.py [--quick] [--rows 8192] [--rounds 3] [--million 5.0] [--out FILE]

Where others use the machine too, OMP_WAIT_POLICY=passive keeps torch's threads from waiting for each other in vain.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import torch
from numpy.typing import NDArray
from pyarrow import dataset, parquet
from serving_peers.subject import drop_out
from torch import nn

from dubito_batch.answers import Asked
from dubito_batch.job import Job, run_job
from dubito_batch.local import open_local
from dubito_batch.memory import peak_memory
from dubito_batch.ray_engine import Opening, RayModel, connected, open_on_ray
from dubito_batch.running import Progress
from dubito_batch.scoring import Scorer
from dubito_client.stopping import Stopping
from dubito_models.data import Splits, digits
from dubito_models.errors import InvalidArgument
from dubito_models.memory import keep_pages
from dubito_models.packing import pack
from dubito_models.precision import Precision
from dubito_models.recipes import Recipe, read_recipe
from dubito_models.selection import train_candidates
from dubito_models.training import augment

CORES = 2
DRAWS, TRUTH_DRAWS = 32, 1024
BATCHES = (256, 1024, 4096)
LOOP = "loop"
SAME, PACKED, BFLOAT = "independent, 32 draws", "balanced, 40 draws", "bfloat16, independent, 32 draws"
LOCAL, RAY = "local", "ray"


@dataclass(frozen=True, slots=True)
class Network:
    """What is trained, and how much of the table it scores."""

    recipe: str
    inputs: str  # what the network calls them
    share: int  # of so many rows it scores one
    changes: Mapping[str, object] = field(default_factory=dict)  # of the recipe


CNN = "digits cnn"  # spatial dropout after each block, so that all but the first convolutions are drawn
NETWORKS = {
    "digits mlp": Network("digits-mlp", "inputs", 1),
    CNN: Network("digits-cnn", "images", 4),
    "digits cnn, dropout before its head": Network("digits-cnn", "images", 4, {"network.channel_dropout": 0.0}),
}


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast rows came out."""

    rows_per_second: float
    rows_per_cpu_second: float | None  # None where other processes compute


@dataclass(frozen=True, slots=True)
class Subject:
    """A network, the repository that it is packed into by the names of its precisions, and a table for it."""

    network: nn.Module
    repository: Path
    precisions: tuple[Precision, ...]
    source: Path
    rows: int
    columns: Mapping[str, tuple[str, ...]]


# --- Networks and tables ---


def train(recipe: Recipe, data: Splits, folder: Path) -> nn.Module:
    return train_candidates(recipe, data, device="cpu", run_directory=folder)[0].trained.network.eval()


def write_digits(path: Path, data: Splits, recipe: Recipe, rows: int) -> None:
    """Write unseen digits over and over, each time turned and shifted otherwise."""
    table = recipe.augmentation
    assert table is not None
    unseen = np.concatenate([data.test.inputs, data.calibration.inputs, data.validation.inputs])
    chosen = np.resize(np.arange(len(unseen)), rows)
    images = augment(torch.from_numpy(unseen[chosen]), table, np.random.default_rng(0)).numpy()
    values = arrow.FixedSizeListArray.from_arrays(arrow.array(images.reshape(-1)), 64)
    parquet.write_table(arrow.table({"id": np.arange(rows), "image": values}), path)


def prepare(chosen: Network, rows: int, epochs: int | None, folder: Path) -> Subject:
    data = digits()
    recipe = read_recipe(chosen.recipe).revised(chosen.changes, epochs=epochs)
    folder.mkdir()
    network = train(recipe, data, folder / "run")
    example = torch.tensor(data.train.inputs[:2])
    precisions: list[Precision] = []
    for precision in Precision:
        with contextlib.suppress(InvalidArgument):  # where little is multiplied after the dropout, nothing is rounded
            pack(network, example, repository=folder / "models", name=precision, task="classification", head="logits",
                 precision=precision)  # fmt: skip
            precisions.append(precision)
    write_digits(folder / "rows.parquet", data, recipe, rows)
    columns = {chosen.inputs: ("image",)}
    return Subject(drop_out(network), folder / "models", tuple(precisions), folder / "rows.parquet", rows, columns)


# --- Ways to score a table ---


def loop(subject: Subject, output: Path, batch_rows: int, threads: int) -> Speed:
    """Score by hand; `threads`: of Python, which share the cores."""

    @torch.inference_mode()
    def score(batch: arrow.RecordBatch) -> arrow.RecordBatch:
        torch.set_num_threads(CORES // threads)
        rows = torch.from_numpy(batch["image"].flatten().to_numpy().copy()).reshape(-1, 1, 8, 8)
        total = torch.zeros(1)
        for _ in range(DRAWS):
            total = total + subject.network(rows).softmax(-1)
        mean = arrow.FixedSizeListArray.from_arrays(arrow.array((total / DRAWS).numpy().reshape(-1)), 10)
        return arrow.RecordBatch.from_arrays([*batch.columns, mean], names=["id", "image", "probabilities"])

    wall, cpu = time.perf_counter(), time.process_time()
    with parquet.ParquetFile(subject.source) as source, ThreadPoolExecutor(threads) as pool:
        answers = pool.map(score, source.iter_batches(batch_rows))
        first = next(answers)
        with parquet.ParquetWriter(output, first.schema, compression="zstd") as writer:
            writer.write_batch(first)
            for answer in answers:
                writer.write_batch(answer)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    torch.set_num_threads(1)
    return Speed(subject.rows / wall, subject.rows / cpu)


def job(subject: Subject, output: Path, asked: Asked, model: str = Precision.FLOAT32, engine: str = LOCAL) -> Speed:
    """Score by a job; time runs to its last block from when there is one for each core, that is without the start."""
    times: list[tuple[int, float, float]] = []

    def report(progress: Progress) -> None:
        times.append((progress.scored, time.perf_counter(), time.process_time()))

    def open_scorer(passes: Mapping[str, Any] | None) -> Scorer | RayModel:
        if engine == RAY:
            return open_on_ray(
                Opening(repository=str(subject.repository), model=model, version=None, asked=asked), passes
            )
        return open_local(str(subject.repository), model, asked, threads=CORES, passes=passes)

    batch_rows = max(32, min(2048, subject.rows // 16))  # some for each core
    asked_for = Job(source=str(subject.source), output=str(output), columns=subject.columns, batch_rows=batch_rows)
    run_job(asked_for, open_scorer, report)
    (start, wall, cpu), (end, wall_end, cpu_end) = times[CORES], times[-1]
    rows = end - start
    return Speed(rows / (wall_end - wall), None if engine == RAY else rows / (cpu_end - cpu))


# --- Measuring ---


def take_turns(ways: Mapping[str, Callable[[], Speed]], rounds: int) -> dict[str, list[Speed]]:
    """Measure each way once in every round."""
    found: dict[str, list[Speed]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way())
            print(name, found[name][-1], file=sys.stderr)
    return found


def compare(found: Mapping[str, Sequence[Speed]], other: str) -> dict[str, Any]:
    """Return medians over rounds, and how many times more rows each way made than the other one did."""

    def ratio(name: str, what: Callable[[Speed], float | None]) -> float | None:
        pairs = [(what(mine), what(its)) for mine, its in zip(found[name], found[other], strict=True)]
        ratios = [mine / its for mine, its in pairs if mine is not None and its is not None]
        return statistics.median(ratios) if ratios else None

    return {
        "rows per second": {
            name: round(statistics.median(speed.rows_per_second for speed in speeds)) for name, speeds in found.items()
        },
        f"times the {other}'s rows per second": {
            name: rounded(ratio(name, lambda speed: speed.rows_per_second)) for name in found if name != other
        },
        f"times the {other}'s rows per second of the processor": {
            name: rounded(ratio(name, lambda speed: speed.rows_per_cpu_second)) for name in found if name != other
        },
    }


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def numbered(folder: Path) -> Iterator[Path]:
    """Yield names of outputs, none twice."""
    number = 0
    while True:
        number += 1
        yield folder / f"out-{number}"


def measure_speed(subject: Subject, rounds: int, engines: Iterable[str], outputs: Iterator[Path]) -> dict[str, Any]:
    settings = {(batch, threads): partial(loop, subject, batch_rows=batch, threads=threads)
                for batch in BATCHES for threads in (1, CORES)
                if batch * CORES <= max(subject.rows, CORES * BATCHES[0])}  # fmt: skip
    tried = {setting: way(next(outputs)).rows_per_second for setting, way in settings.items()}
    best = max(tried, key=tried.__getitem__)
    independent, plain = Asked(draws=DRAWS, design="independent"), Asked(draws=DRAWS)
    ways: dict[str, Callable[[], Speed]] = {
        LOOP: lambda: settings[best](next(outputs)),
        SAME: lambda: job(subject, next(outputs), independent),
        PACKED: lambda: job(subject, next(outputs), plain),
    }
    if Precision.BFLOAT16 in subject.precisions:
        ways[BFLOAT] = lambda: job(subject, next(outputs), independent, Precision.BFLOAT16)
    if RAY in engines:
        ways[RAY] = lambda: job(subject, next(outputs), independent, engine=RAY)
    tries = [
        {"batch rows": batch, "threads": threads, "rows per second": round(rate)}
        for (batch, threads), rate in tried.items()
    ]
    return {"rows": subject.rows, "the loop, tried": tries, **compare(take_turns(ways, rounds), LOOP)}


def measure_adaptive(subject: Subject, rounds: int, outputs: Iterator[Path]) -> dict[str, Any]:
    """Compare stopping rules with S draws for every row, and their classes with those of many draws."""
    rules = {
        "decision": Asked(draws=DRAWS, stopping=Stopping.decision()),
        "tolerance 0.05": Asked(draws=DRAWS, tolerance=0.05),
    }
    made: dict[str, Path] = {}

    def scored(name: str, asked: Asked) -> Speed:
        made[name] = next(outputs)
        return job(subject, made[name], asked)

    fixed = Asked(draws=DRAWS, stopping=Stopping.none())
    ways = {name: partial(scored, name, asked) for name, asked in {PACKED: fixed, **rules}.items()}
    found = take_turns(ways, rounds)
    scored("truth", Asked(draws=TRUTH_DRAWS, stopping=Stopping.none()))
    truth = read(made["truth"], "dubito_label")
    said = {
        name: {
            "mean draws": round(float(read(made[name], "dubito_draws").mean()), 1),
            f"classes as by {TRUTH_DRAWS} draws": round(float((read(made[name], "dubito_label") == truth).mean()), 4),
        }
        for name in ways
    }
    return {"rows": subject.rows, **compare(found, PACKED), "answers": said}


def read(folder: Path, column: str) -> NDArray[Any]:
    found = dataset.dataset(folder, format="parquet").to_table(columns=[column])[column]
    values: NDArray[Any] = found.to_numpy()
    return values


# --- Memory ---


def write_floats(path: Path, rows: int) -> None:
    random = np.random.default_rng(0)
    schema = arrow.schema([(f"x{place}", arrow.float32()) for place in range(16)])
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 1_000_000):
            values = random.normal(size=(16, min(1_000_000, rows - start))).astype(np.float32)
            writer.write_table(arrow.table(list(values), schema=schema))


def measure_memory(rows: int, folder: Path) -> dict[str, Any]:
    """Score a large table in a process of its own, and return what it took."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1))
    pack(network, torch.randn(2, 16), repository=folder / "models", name="m", task="regression", head="mean")
    write_floats(folder / "rows.parquet", rows)
    command = [sys.executable, __file__, "--score", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return {"rows": rows, "bytes of the table": (folder / "rows.parquet").stat().st_size, **json.loads(done.stdout)}


def score_floats(folder: Path) -> None:
    """Score the table of a folder, and print what this process took."""
    torch.set_num_threads(CORES)
    outcome = run_job(
        Job(source=str(folder / "rows.parquet"), output=str(folder / "scored"), columns={"input": ("x*",)}),
        lambda passes: open_local(str(folder / "models"), "m", Asked(draws=10), threads=CORES, passes=passes),
    )
    summary = outcome.summary
    print(json.dumps({
        "rows scored": summary.rows,
        "rows per second": round(summary.rows_per_second),
        "peak resident MiB": round(peak_memory() / 2**20),
    }))  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192, help="of the table of digits, for the CNNs a quarter")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--million", type=float, default=5.0, help="rows of the table of floats; 0 leaves it out")
    parser.add_argument("--quick", action="store_true", help="few rows, one round, barely trained networks")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--score", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    keep_pages()  # as `dubito score` does; here the loop gains by it too
    if options.score:
        score_floats(options.score)
        return
    rows, rounds, million, epochs = options.rows, options.rounds, options.million, None
    if options.quick:
        rows, rounds, million, epochs = 1024, 1, 0.02, 3
    torch.set_num_threads(1)
    document: dict[str, Any] = {"torch": torch.__version__, "cores": CORES, "draws": DRAWS, "rounds": rounds}
    engines = [LOCAL, *([RAY] if importlib.util.find_spec("ray") else [])]
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        folder = Path(place)
        outputs = numbered(folder)
        if RAY in engines:
            stack.enter_context(connected(None))
        subjects = {
            name: prepare(network, rows // network.share, epochs, folder / name) for name, network in NETWORKS.items()
        }
        document["speed"] = {
            name: measure_speed(subject, rounds, engines, outputs) for name, subject in subjects.items()
        }
        document[f"adaptive, {CNN}"] = measure_adaptive(subjects[CNN], rounds, outputs)
        if million:
            document["memory"] = measure_memory(round(million * 1e6), folder)
    text = json.dumps(document, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
