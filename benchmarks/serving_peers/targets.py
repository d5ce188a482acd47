"""What the serving benchmark aims at: ratios of requests per second at the most callers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

OURS = "dubito"
INDEPENDENT = "dubito, independent draws"
ECHO = "echo"  # the network that computes next to nothing


def find_rate(cells: Sequence[Mapping[str, Any]], **wanted: object) -> float:
    """Return the requests per second of the one cell that is so described."""
    [found] = [cell for cell in cells if all(cell.get(name) == value for name, value in wanted.items())]
    value: float = found["requests per second"]
    return value


def judge(what: str, found: float, aimed: float) -> dict[str, Any]:
    """Tell whether a ratio reaches what was aimed at."""
    return {"what": what, "found": round(found, 2), "aimed at": aimed, "reached": found >= aimed}


def judge_beside(
    cells: Sequence[Mapping[str, Any]], peers: Sequence[str], network: str, most: int
) -> list[dict[str, Any]]:
    """Compare rates at the most callers with those of the peers."""

    def rates(call: str, names: Sequence[str]) -> dict[str, float]:
        return {name: find_rate(cells, network=network, call=call, callers=most, server=name) for name in names}

    predict, evaluate = rates("Predict", [OURS, INDEPENDENT, *peers]), rates("Evaluate", [OURS, *peers])
    best = max(peers, key=lambda name: predict[name])
    found = [
        judge(f"{network}, Predict: {ours} / {best}, the best of them", predict[ours] / predict[best], 3.0)
        for ours in (OURS, INDEPENDENT)
    ]
    aims = {"mlserver": 2.0, "litserve": 1.0}
    found += [
        judge(f"{network}, Evaluate: dubito / {name}", evaluate[OURS] / evaluate[name], aim)
        for name, aim in aims.items()
        if name in peers
    ]
    return found


def judge_bare(cells: Sequence[Mapping[str, Any]], most: int) -> list[dict[str, Any]]:
    """Compare rates at the most callers with those of a bare server, and of a stream with those of single calls."""
    echo = {
        name: find_rate(cells, network=ECHO, callers=most, server=name)
        for name in ("grpc.aio, bytes", "grpc.aio, messages", "Predict", "PredictBulk")
    }
    mlp = {name: find_rate(cells, network="mlp", callers=most, server=name) for name in ("Predict", "PredictBulk")}
    return [
        judge("echo, Predict / bare grpc.aio, bytes", echo["Predict"] / echo["grpc.aio, bytes"], 0.6),
        judge("echo, Predict / bare grpc.aio, messages", echo["Predict"] / echo["grpc.aio, messages"], 0.6),
        judge("echo, PredictBulk / Predict", echo["PredictBulk"] / echo["Predict"], 2.0),
        judge("mlp, PredictBulk / Predict", mlp["PredictBulk"] / mlp["Predict"], 2.0),
    ]
