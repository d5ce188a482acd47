"""The tables of results/engine.json, which `benchmarks/engine.py --out` wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markdown_table import figure, table, times

Document = Mapping[str, Any]

OURS, OWN_SEED, ROUNDED, FANNED = "dubito", "dubito, own seed", "dubito, bfloat16", "dubito, fan-out 4"
LOOP, REPEAT = "loop", "repeated batch"
EQUAL_DRAWS = "times faster at equal draws"
EQUAL_MEAN = "times faster at equal accuracy of the mean"
EQUAL_INFORMATION = "times faster at equal accuracy of the mutual information"
ASKED, ROWS = 64, 8  # draws and rows of what is held to an aim
NETWORKS = {
    "mlp-.2": "MLP 16-512-512-10, p .2",
    "mlp-.5": "MLP 16-512-512-10, p .5",
    "cnn-head": "CNN, one dropout before its head",
    "cnn-spatial": "CNN, spatial dropout throughout",
    "resnet-depth": "ResNet, stochastic depth",
    "lstm": "LSTM, 2 layers of 64, 16 steps",
    "transformer": "Transformer, 2 layers of 64, 16 steps",
    "vit": "ViT, 4 layers of 64, 64 patches",
}
AIMED_SPEED = {"mlp-.2": 3, "mlp-.5": 4, "cnn-head": 60, "cnn-spatial": 2, "lstm": 2, "transformer": 3}
AIMED_ACCURACY, AIMED_SETTLED, AIMED_MEMORY = 8, 20, 0.25


def speed(document: Document) -> Iterator[str]:
    """Yield times and ratios of each network, at the number of draws that is held to an aim."""
    headings = (
        *("network", "rows", "draws", LOOP, "fastest other", "dubito", "own seed", "bfloat16"),
        *("mean as accurate", "mutual information as accurate"),
    )
    yield from table(headings, (_speed(network, cell) for network in _networks(document) for cell in _cells(network)))


def _speed(network: Document, cell: Document) -> Sequence[object]:
    spent, gain = cell["milliseconds"], cell[EQUAL_DRAWS]
    ours = [f"{figure(spent[way])} ({times(gain[way])})" if way in spent else "-" for way in (OURS, OWN_SEED, ROUNDED)]
    return (
        *(NETWORKS[network["network"]], cell["rows"], cell["draws"]),
        *(figure(spent[way]) for way in (LOOP, cell["fastest other"])),
        *ours,
        *(_by_way(cell[equal]) for equal in (EQUAL_MEAN, EQUAL_INFORMATION)),
    )


def _by_way(gains: Mapping[str, float]) -> str:
    """Return the ratios of the plain version, with bfloat16 and with a fan-out, of those that there are."""
    return times(*(gains[way] for way in (OURS, ROUNDED, FANNED) if way in gains))


def aims(document: Document) -> Iterator[str]:
    """Yield what was aimed at beside what was found, at 8 rows; bold: not reached by either."""
    headings = (
        *("at 8 rows", "speed: aimed at", "fp32", "bfloat16"),
        *("mean as accurate: aimed at", "fp32", "bfloat16", "fan-out 4"),
        *("mutual information as accurate: fp32", "bfloat16", "fan-out 4"),
    )
    yield from table(headings, (_aim(network) for network in _networks(document)))


def _aim(network: Document) -> Sequence[object]:
    [cell] = [cell for cell in _cells(network) if cell["rows"] == ROWS]
    name = network["network"]
    aimed = AIMED_SPEED.get(name)
    fast, mean, information = (cell[equal] for equal in (EQUAL_DRAWS, EQUAL_MEAN, EQUAL_INFORMATION))
    return (
        NETWORKS[name],
        *_held_to(aimed, [fast.get(way) for way in (OURS, ROUNDED)]),
        *_held_to(AIMED_ACCURACY, [mean.get(way) for way in (OURS, ROUNDED, FANNED)]),
        *(_times_or_none(information.get(way)) for way in (OURS, ROUNDED, FANNED)),
    )


def _held_to(aimed: float | None, found: Sequence[float | None]) -> Iterator[str]:
    missed = aimed is not None and max(value for value in found if value is not None) < aimed
    yield _bold(_times_or_none(aimed), missed)
    for value in found:
        yield _times_or_none(value)


def settled(document: Document) -> Iterator[str]:
    """Yield what settling the class of every test row takes, beside draws that leave the others' labels as steady."""
    headings = (
        *("network", "rows", "draws a row", "labels off", "draws of the others", "their labels off", "loop, ms"),
        *("dubito, ms", "times faster", "aimed at"),
    )
    yield from table(
        headings,
        (_settled(network, network["settled decisions"]) for network in _networks(document) if _decides(network)),
    )


def _decides(network: Document) -> bool:
    return network.get("settled decisions") is not None


def _settled(network: Document, found: Document) -> Sequence[object]:
    spent = found["milliseconds"]
    return (
        *(NETWORKS[network["network"]], found["rows"], figure(found["draws, mean over rows"])),
        f"{figure(100 * found['labels that differ from 4,096 draws'], 2)}%",
        *(found["draws of the others"], f"{figure(100 * found['of their labels'], 2)}%"),
        *(figure(spent[LOOP]), figure(spent[OURS]), times(found["times faster"]), times(AIMED_SETTLED)),
    )


def accuracy(document: Document) -> Iterator[str]:
    """Yield by how much balance, then a fan-out, make the mean squared error of as many draws smaller."""
    headings = (
        "network",
        "draws",
        "mean: balanced",
        "with fan-out 4",
        "mutual information: balanced",
        "with fan-out 4",
    )
    yield from table(headings, (_accuracy(network) for network in _networks(document)))


def _accuracy(network: Document) -> Sequence[object]:
    draws = _cells(network)[0]["draws"]
    [errors] = [each for each in network["errors"] if each["draws"] == draws]
    gains = [
        None if way not in errors else (errors[REPEAT][measure]["rms"] / errors[way][measure]["rms"]) ** 2
        for measure in ("mean", "mutual information")
        for way in (OURS, FANNED)
    ]
    return NETWORKS[network["network"]], draws, *map(_times_or_none, gains)


def rounding(document: Document) -> Iterator[str]:
    """Yield how many times faster bfloat16 is than float32, by rows."""
    rounded = [network for network in _networks(document) if ROUNDED in _cells(network)[0]["milliseconds"]]
    rows = [cell["rows"] for cell in _cells(rounded[0])]
    lines = (
        (
            NETWORKS[network["network"]],
            *(times(cell["milliseconds"][OURS] / cell["milliseconds"][ROUNDED]) for cell in _cells(network)),
        )
        for network in rounded
    )
    yield from table(("bfloat16 beside float32", *(_count(count) for count in rows)), lines)


def memory(document: Document) -> Iterator[str]:
    """Yield the peaks of each way as shares of the repeated batch's, by rows; bold: above what was aimed at."""
    networks = _networks(document)
    ways = {"fp32": OURS, "own seed": OWN_SEED, "bfloat16": ROUNDED, "fan-out 4": FANNED}
    headings = ("network", "rows", "repeated batch, MB", "dubito, MB", *(f"share, {way}" for way in ways))
    lines = (_memory(network, cell, list(ways.values())) for network in networks for cell in network["memory"])
    yield from table(headings, lines)


def _memory(network: Document, cell: Document, ways: Sequence[str]) -> Sequence[object]:
    peak, share = cell["peak megabytes"], cell["share of the repeated batch's"]
    return (
        *(NETWORKS[network["network"]], cell["rows"], figure(peak[REPEAT]), figure(peak[OURS])),
        *(_bold(figure(share.get(way)), share.get(way, 0.0) > AIMED_MEMORY) for way in ways),
    )


def _networks(document: Document) -> list[Document]:
    """Return the networks in the order of the tables."""
    found = {network["network"]: network for network in document["networks"]}
    return [found[name] for name in NETWORKS if name in found]


def _cells(network: Document) -> list[Document]:
    """Return the cells, by rows, of the number of draws that is held to an aim."""
    return [cell for cell in network["speed"] if cell["draws asked"] == ASKED]


def _count(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"


def _times_or_none(value: float | None) -> str:
    return "-" if value is None else times(value)


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text
