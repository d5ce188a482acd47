"""What the command line shows: tables for a person, one JSON document for a program."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dubito_client.answers import Evaluation, ModelInfo, ModelStatus, Prediction

ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: numbers stand to the right, words to the left, and neither is ever cut; prose is wrapped."""

    head: str
    cells: Sequence[str]
    kind: Literal["numbers", "words", "prose"] = "numbers"

    @property
    def least(self) -> int:
        """Characters below which it loses something."""
        longest = max(len(line) for cell in [self.head, *self.cells] for line in cell.split("\n"))
        return min(8, longest) if self.kind == "prose" else longest


def show(columns: Sequence[Column]) -> None:
    """Print columns as a table to standard output: as wide as the terminal, wider where numbers would not fit."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(
            column.head,
            justify="right" if column.kind == "numbers" else "left",
            no_wrap=column.kind != "prose",
            overflow="fold",
            min_width=column.least,
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, cells))
    console = Console(highlight=False)
    console.width = max(console.width, sum(column.least + 2 for column in columns) - 2)
    console.print(table)


def answer_columns(answer: Prediction | Evaluation, info: ModelInfo, limit: int | None) -> list[Column]:
    """Lay out an answer, one line per row (and target); `limit`: at most so many lines, None for all."""
    if answer.mean is not None:
        return _regression(answer, answer.mean, limit)
    # Long class names get what the numbers leave of the terminal, shared with the sets where there are any.
    left = Console().width - 58
    sets = isinstance(answer, Prediction) and answer.prediction_set is not None
    return _classification(answer, info.class_names, limit, max(12, left // 2 if sets else left))


def lines_of(answer: Prediction | Evaluation) -> int:
    """Return how many lines a table of the whole answer has."""
    if answer.mean is not None:
        return int(answer.mean.size)
    return 0 if answer.label is None else len(answer.label)


def caption(answer: Prediction | Evaluation) -> str:
    """Say what was asked of whom, and what the answer rests on; a few lines."""
    if isinstance(answer, Evaluation):
        return f"{plain(answer.model)} version {answer.version}, standard path: dropout off, one pass"
    design = answer.design if answer.group_size < 2 else f"{answer.design} in groups of {answer.group_size}"
    stopped = ", ".join(sorted(set(answer.stop_reason))) or "unknown"
    calibration = "not calibrated"
    if answer.calibration_id is not None:
        calibration = f"calibration {plain(answer.calibration_id)} ({answer.calibration_validity})"
    lines = [
        f"{plain(answer.model)} version {answer.version}, seed {answer.seed}, {_draws(answer)}, design {design}",
        f"{calibration}; stopped by: {stopped}",
    ]
    if answer.mean is None:
        lines.append("entropies in nats: epistemic = mutual information, aleatoric = expected entropy")
    return "\n".join(lines)


def models_columns(models: Sequence[ModelStatus]) -> list[Column]:
    """Lay out what a server holds."""
    columns = [
        Column("model", [plain(status.model) for status in models], "prose"),
        Column("version", [str(status.version) for status in models]),
        Column("state", [status.state for status in models], "words"),
        Column("task", [plain(status.task) for status in models], "words"),
        Column("calibration", [plain(status.calibration_id or ABSENT) for status in models], "words"),
    ]
    if any(status.reason for status in models):
        columns.append(Column("reason", [plain(status.reason) for status in models], "prose"))
    return columns


def document(answer: object, **more: object) -> str:
    """Return one JSON document: arrays as lists, bytes in base64, what is absent as null, others by their names."""
    content = _jsonable(answer)
    return json.dumps({**content, **more} if more else content, allow_nan=False)


def arrays_of(answer: Prediction | Evaluation) -> dict[str, NDArray[Any]]:
    """Return the arrays of an answer by name."""
    fields = {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
    return {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}


def plain(text: str) -> str:
    """Return a server's text without what would steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _classification(
    answer: Prediction | Evaluation, class_names: Sequence[str], limit: int | None, label_width: int
) -> list[Column]:
    if answer.label is None or answer.probabilities is None:
        return []
    labels: list[int] = answer.label[:limit].tolist()
    numbered = [_cut(f"{k} {_name(k, class_names)}".rstrip(), label_width) for k in labels]
    confidence = answer.probabilities[:limit].max(axis=1, initial=0.0)
    columns = [Column("row", [str(row) for row in range(len(labels))]), Column("label", numbered, "words")]
    if isinstance(answer, Prediction) and answer.prediction_set is not None:
        members = [np.flatnonzero(row).tolist() for row in answer.prediction_set[:limit]]
        sets = [", ".join(_name(k, class_names) or str(k) for k in row) or "(empty)" for row in members]
        columns.append(Column("set", sets, "prose"))
    columns.append(Column("confidence", [f"{p:.3f}" for p in confidence]))
    if isinstance(answer, Prediction):
        for head, values in (
            ("predictive\nentropy", answer.predictive_entropy),
            ("epistemic\npart", answer.mutual_information),
            ("aleatoric\npart", answer.expected_entropy),
        ):
            cells = [ABSENT] * len(labels) if values is None else [f"{value:.4f}" for value in values[:limit]]
            columns.append(Column(head, cells))
        columns.append(Column("draws", [str(n) for n in answer.draws[:limit]]))
        columns += _abstained(answer, range(len(labels)))
    return columns


def _abstained(answer: Prediction, rows: Iterable[int]) -> list[Column]:
    """Say of each of these rows whether its answer should not be relied on; nothing where that was not calibrated."""
    if answer.abstain is None:
        return []
    return [Column("abstain", ["yes" if answer.abstain[row] else "" for row in rows], "words")]


def _regression(answer: Prediction | Evaluation, mean: NDArray[np.float64], limit: int | None) -> list[Column]:
    B, K = mean.shape
    lines = range(B * K)[:limit]
    columns = [Column("row", [str(line // K) for line in lines])]
    if K > 1:
        columns.append(Column("target", [str(line % K) for line in lines]))
    measures: list[tuple[str, NDArray[np.float64] | None]] = [("mean", mean)]
    if isinstance(answer, Prediction):
        bounds = answer.interval
        level = "" if answer.interval_level is None else f"\n{100 * answer.interval_level:g} %"
        measures += [
            ("standard\ndeviation", _root(answer.total_variance)),
            (f"lower{level}", None if bounds is None else bounds[:, :, 0]),
            (f"upper{level}", None if bounds is None else bounds[:, :, 1]),
        ]
        bounds, level = answer.prediction_interval, "" if answer.coverage is None else f"{100 * answer.coverage:g} %"
        if bounds is not None:
            measures += [
                (f"conformal\nlower {level}", bounds[:, :, 0]),
                (f"conformal\nupper {level}", bounds[:, :, 1]),
            ]
        measures.append(("epistemic\nst. dev.", _root(answer.epistemic_variance)))
    measures.append(("aleatoric\nst. dev.", _root(answer.aleatoric_variance)))
    for head, values in measures:
        cells = [ABSENT] * len(lines) if values is None else _figures(values.reshape(-1)[:limit])
        columns.append(Column(head, cells))
    if isinstance(answer, Prediction):
        columns += _abstained(answer, [line // K for line in lines])
    return columns


def _name(k: int, class_names: Sequence[str]) -> str:
    """Return a class's name, empty where it has none."""
    name = plain(class_names[k]) if 0 <= k < len(class_names) else ""
    return "" if name == str(k) else name


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _draws(answer: Prediction) -> str:
    least, most = int(answer.draws.min(initial=2**62)), int(answer.draws.max(initial=0))
    return f"{most} draws" if least >= most else f"{least} to {most} draws"


def _figures(values: NDArray[np.float64]) -> list[str]:
    """Return numbers to about five digits: as many decimals in all while their sizes are alike, else scientific."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if sizes.size and (sizes.max() >= 1e7 or sizes.max() < 1e-3 or sizes.max() > 1e4 * sizes.min()):
        return [f"{value:.4g}" for value in values]
    decimals = max(0, 4 - math.floor(math.log10(sizes.max()))) if sizes.size else 1
    return [f"{value:.{decimals}f}" for value in values]


def _root(variance: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    return None if variance is None else np.sqrt(np.maximum(variance, 0.0))


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, np.ndarray):
        return _jsonable(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
