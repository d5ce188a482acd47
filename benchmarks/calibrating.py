"""What calibration is worth: digits by several seeds, and the coverage of intervals on the UCI sets.

*digits*: of all rows 359 are the test, 500 calibrate, the others train (a tenth of them says when to stop). NLL and ECE
of the standard path, the Monte Carlo path and the calibrated one, means over seeds; the differences by a paired
bootstrap over the test rows. *coverage*: the network of the recipe `uci` on the published splits; how many test targets
lie within the conformal intervals, and within those of the predictive distribution, at 90 %.

    python benchmarks/calibrating.py [--seeds 5] [--data DIR --sets yacht,energy --splits 20] [--out FILE]

DIR holds a folder for each set with the published splits (see uci.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dubito_models.data import Splits, digits, uci
from dubito_models.data.splits import take
from dubito_models.heads import Head
from dubito_models.metrics import expected_calibration_error, negative_log_likelihood, paired_difference
from dubito_models.package import ModelVersion
from dubito_models.predictive import Classification, Regression
from dubito_models.preparing import choose_head
from dubito_models.recipes import read_recipe
from dubito_models.sampling import SamplingSpec
from dubito_models.selection import pack_trained, train_candidates

SETS = ("concrete", "energy", "power-plant", "yacht")
CALIBRATION_ROWS, VALIDATION_SHARE = 500, 0.1
LEVEL = 0.9
PATHS = ("standard", "Monte Carlo", "calibrated")
Measure = Callable[[NDArray[np.float64], NDArray[np.int64]], float]


def redistribute(splits: Splits, seed: int) -> Splits:
    """Keep the test rows, and take 500 of the others to calibrate."""
    others = (splits.train, splits.validation, splits.calibration)
    inputs, targets = (np.concatenate([getattr(part, name) for part in others]) for name in ("inputs", "targets"))
    order = np.random.default_rng(seed).permutation(len(targets))
    held, rest = order[:CALIBRATION_ROWS], order[CALIBRATION_ROWS:]
    stop = round(len(rest) * VALIDATION_SHARE)
    return replace(
        splits,
        calibration=take(inputs, targets, held),
        validation=take(inputs, targets, rest[:stop]),
        train=take(inputs, targets, rest[stop:]),
    )


def make_version(name: str, data: Splits, seed: int, folder: Path) -> ModelVersion:
    """Train by a recipe, pack and calibrate."""
    recipe = read_recipe(name).revised({}, seed=seed)
    best = train_candidates(recipe, data, device="cpu", run_directory=folder / "run")[0]
    head = choose_head(recipe, data.task)
    noise = best.noise_variance if head is Head.MEAN else None
    version = pack_trained(best.trained.network, data, head, repository=folder, name="m", noise_variance=noise)
    version.calibrate(data.calibration.inputs, data.calibration.targets)
    return version


# --- Digits ---


def judge_digits(seeds: Sequence[int]) -> dict[str, Any]:
    """Return scores by seed and path, and how the calibrated path differs from the better of the others."""
    every: dict[str, list[NDArray[np.float64]]] = {path: [] for path in PATHS}
    labels: list[NDArray[np.int64]] = []
    runs = []
    for seed in seeds:
        data = redistribute(digits(seed), seed)
        with tempfile.TemporaryDirectory() as folder:
            version = make_version("digits-mlp", data, seed, Path(folder))
            found = answer_digits(version, data)
        labels.append(data.test.targets)
        for path, probabilities in found.items():
            every[path].append(probabilities)
        assert version.calibration is not None
        scores = {path: score(p, data.test.targets) for path, p in found.items()}
        runs.append({"seed": seed, "calibration": version.calibration.method, "scores": scores})
        print(json.dumps(runs[-1]), file=sys.stderr)
    counts = {len(truth) for truth in labels}
    assert len(counts) == 1
    [count] = counts
    measures = {"NLL": negative_log_likelihood, "ECE": expected_calibration_error}
    compared = {}
    for name, measure in measures.items():

        def mean(path: str, rows: NDArray[np.int64], measure: Measure = measure) -> float:
            """Return the mean over seeds, the same rows of each."""
            return statistics.mean(measure(p[rows], truth[rows]) for p, truth in zip(every[path], labels, strict=True))

        values = {path: mean(path, np.arange(count)) for path in PATHS}
        best = min(PATHS[:2], key=values.__getitem__)
        difference = paired_difference(partial(mean, "calibrated"), partial(mean, best), count, level=0.9)
        compared[name] = {
            **values,
            "best uncalibrated": best,
            "calibrated less best, 90 %": [difference.value, difference.low, difference.high],
        }
    return {"rows": count, "seeds": runs, "all seeds": compared}


def answer_digits(version: ModelVersion, data: Splits) -> dict[str, NDArray[np.float64]]:
    found = version.predict(data.test.inputs, SamplingSpec(uncalibrated=True))
    drawn = found.uncalibrated or found.answer
    assert isinstance(found.answer, Classification)
    assert isinstance(drawn, Classification)
    standard = version.evaluate(data.test.inputs).probabilities
    assert standard is not None
    return dict(zip(PATHS, (standard, drawn.probabilities, found.answer.probabilities), strict=True))


def score(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    return {
        "NLL": negative_log_likelihood(probabilities, labels),
        "ECE": expected_calibration_error(probabilities, labels),
    }


# --- Coverage ---


def judge_coverage(folder: Path, splits: Sequence[int]) -> dict[str, Any]:
    """Return how many test targets of a set lie within intervals, over all splits."""
    inside: dict[str, list[float]] = {"conformal": [], "predictive distribution": []}
    widths: dict[str, list[float]] = {name: [] for name in inside}
    rows = scored = 0
    for split in splits:
        data = uci(folder, split, seed=split)
        with tempfile.TemporaryDirectory() as repository:
            version = make_version("uci", data, split, Path(repository))
            answer = version.predict(data.test.inputs, SamplingSpec(coverage=LEVEL, interval_level=LEVEL)).answer
        assert isinstance(answer, Regression)
        assert version.calibration is not None
        scored, rows = version.calibration.score_rows, rows + len(data.test)
        for name, interval in zip(inside, (answer.prediction_interval, answer.interval), strict=True):
            assert interval is not None
            low, high = interval[:, 0, 0], interval[:, 0, 1]
            y = data.test.targets[:, 0]
            inside[name].append(float(((low <= y) & (y <= high)).mean()))
            widths[name].append(float((high - low).mean()))
    return {
        "splits": len(splits),
        "test rows": rows,
        "score rows of a split": scored,
        "coverage": {name: summarise(values) for name, values in inside.items()},
        "width": {name: statistics.mean(values) for name, values in widths.items()},
    }


def summarise(values: Sequence[float]) -> dict[str, float]:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return {"mean": statistics.mean(values), "standard error": error}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="of the digits; 0 leaves them out")
    parser.add_argument("--data", type=Path, help="folder of the UCI sets; without it they are left out")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=list(SETS))
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    document: dict[str, Any] = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    if options.seeds:
        document["digits"] = judge_digits(range(options.seeds))
        write(document, options.out)
    for name in options.sets if options.data else ():
        found: dict[str, Any] = document.setdefault("coverage", {})
        found[name] = judge_coverage(options.data / name, range(options.splits))
        write(document, options.out)
    if not options.out:
        print(json.dumps(document, indent=2))


def write(document: Mapping[str, Any], out: Path | None) -> None:
    if out:
        out.write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
