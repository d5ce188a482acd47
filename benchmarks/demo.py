"""The main job, end to end: handwritten digits trained, packaged, calibrated, served, and asked over gRPC.

    python benchmarks/demo.py [--output demo]

Trains `digits-cnn`, serves it on a free port, asks about clean, turned, blurred and pure-noise images, prints what the
answers say, and ends with the scores of the three paths on the test split and one picture.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import numpy as np
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

from dubito_client import Client, Prediction
from dubito_models.command import score_table
from dubito_models.data import Images, Splits, blur, digits, pure_noise, rotate
from dubito_models.metrics import classification_scores

MODEL = "digits-cnn"
DUBITO = [str(Path(sys.executable).with_name("dubito"))]
SHOWN = 6
SEED = 1  # a split with a few hard digits in its test images
console = Console()


@contextlib.contextmanager
def server(repository: Path, folder: Path) -> Iterator[str]:
    """Run `dubito serve` on a free port; yields its address, and stops it as an operator would."""
    port_file = folder / "port"
    command = [*DUBITO, "serve", "--repository", str(repository), "--port", "0", "--port-file", str(port_file),
               "--log-level", "warning"]  # fmt: skip
    process = subprocess.Popen(command)
    try:
        while not port_file.exists():
            if process.poll() is not None:
                raise SystemExit(f"the server ended with {process.returncode}")
            time.sleep(0.05)
        yield f"127.0.0.1:{port_file.read_text().strip()}"
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        console.print(f"the server drained and ended with {code}")


def kinds_of(images: Images) -> dict[str, Images]:
    return {
        "clean": images,
        "rotated 60°": rotate(images, 60),
        "blurred 1.5 px": blur(images, 1.5),
        "pure noise": pure_noise(images.shape, seed=7),
    }


def answer_table(answers: dict[str, Prediction], labels: np.ndarray) -> Table:
    table = Table(title="What the server says of single images", title_justify="left")
    for heading in ("image", "truth", "label", "confidence", "epistemic", "aleatoric", "total"):
        table.add_column(heading, justify="left" if heading == "image" else "right", no_wrap=True)
    for kind, answer in answers.items():
        for row in range(SHOWN):
            table.add_row(
                kind if row == 0 else "",
                "-" if kind == "pure noise" else str(labels[row]),
                str(answer.label[row]),
                f"{answer.probabilities[row].max():.3f}",
                f"{answer.mutual_information[row]:.3f}",
                f"{answer.expected_entropy[row]:.3f}",
                f"{answer.predictive_entropy[row]:.3f}",
            )
        table.add_section()
    return table


def summary_table(answers: dict[str, Prediction], labels: np.ndarray) -> Table:
    table = Table(title=f"The same over {len(labels)} images of each kind (means, nats)", title_justify="left")
    for heading in ("kind", "accuracy", "confidence", "epistemic", "aleatoric", "total"):
        table.add_column(heading, justify="left" if heading == "kind" else "right", no_wrap=True)
    for kind, answer in answers.items():
        right = "-" if kind == "pure noise" else f"{(answer.label == labels).mean():.3f}"
        table.add_row(
            kind,
            right,
            f"{answer.probabilities.max(-1).mean():.3f}",
            f"{answer.mutual_information.mean():.3f}",
            f"{answer.expected_entropy.mean():.3f}",
            f"{answer.predictive_entropy.mean():.3f}",
        )
    return table


def draw_picture(kinds: dict[str, Images], answers: dict[str, Prediction], path: Path) -> None:
    """Show some images of each kind, and under each its label, and its uncertainty as a bar in two parts."""
    limit = np.log(10)
    figure, axes = plt.subplots(
        3 * len(kinds), SHOWN, figsize=(1.55 * SHOWN, 2.05 * len(kinds)), height_ratios=[6, 0.8, 1] * len(kinds)
    )
    for place, (kind, images) in enumerate(kinds.items()):
        answer = answers[kind]
        for column in range(SHOWN):
            image, bar, gap = axes[3 * place : 3 * place + 3, column]
            gap.set_visible(False)
            image.imshow(images[column, 0], cmap="gray_r", vmin=0, vmax=1)
            confidence = answer.probabilities[column].max()
            image.set_title(f"{answer.label[column]}  ({confidence:.2f})", fontsize=10)
            aleatoric, epistemic = answer.expected_entropy[column], answer.mutual_information[column]
            bar.barh([0], [aleatoric], color="#4c78a8")
            bar.barh([0], [epistemic], left=[aleatoric], color="#e45756")
            bar.set_xlim(0, limit)
            for axis in (image, bar):
                axis.set_xticks([])
                axis.set_yticks([])
        axes[3 * place, 0].set_ylabel(kind, fontsize=10)
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in ("#4c78a8", "#e45756")]
    names = ["aleatoric: the image is unclear", "epistemic: the network has not learned such images"]
    figure.legend(handles, names, loc="lower center", ncols=2, frameon=False, fontsize=10)
    figure.suptitle("Label (confidence); bars: uncertainty out of log 10 nats", fontsize=11)
    figure.subplots_adjust(left=0.05, right=0.98, top=0.92, bottom=0.04, wspace=0.25, hspace=0.08)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def ask(target: str, data: Splits, folder: Path) -> None:
    images, labels = data.test.inputs, data.test.targets
    kinds = kinds_of(images)
    with Client(target) as client:
        answers = {kind: client.predict(MODEL, batch) for kind, batch in kinds.items()}
        both = client.predict(MODEL, images, uncalibrated=True)
        standard = client.evaluate(MODEL, images)
    console.print(answer_table(answers, labels))
    console.print(summary_table(answers, labels))
    noise, clean = answers["pure noise"], answers["clean"]
    comparisons = [
        f"{name} {ours.mean():.3f} against {theirs.mean():.3f} nats ({ours.mean() / theirs.mean():.0f} times)"
        for name, ours, theirs in (
            ("total", noise.predictive_entropy, clean.predictive_entropy),
            ("epistemic", noise.mutual_information, clean.mutual_information),
        )
    ]
    console.print(f"Noise is more uncertain than clean digits: {'; '.join(comparisons)}.\n")
    scores = {"standard path": classification_scores(standard.probabilities, labels)}
    if both.uncalibrated is not None:
        scores["Monte Carlo path"] = classification_scores(both.uncalibrated.probabilities, labels)
    scores["calibrated Monte Carlo path"] = classification_scores(both.probabilities, labels)
    console.print(score_table(scores, f"Over gRPC, on the {len(labels)} images of the test split"))
    console.print(
        f"every answer: {int(both.draws[0])} draws, seed {both.seed}, design {both.design}, "
        f"calibration {both.calibration_id} ({both.calibration_validity})"
    )
    draw_picture(kinds, answers, folder / "digits.png")
    console.print(f"picture: {folder / 'digits.png'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"))
    folder = parser.parse_args().output
    start = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    repository = folder / "repository"
    train = [*DUBITO, "train", MODEL, "--seed", str(SEED), "--repository", str(repository)]
    subprocess.run([*train, "--run-directory", str(folder / "run")], check=True)
    with server(repository, folder) as target:
        ask(target, digits(SEED), folder)
    console.print(f"all of it took {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
