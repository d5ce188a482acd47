"""Pounding: bytes on the socket that are no call, calls that lie or break off, and messages that are packed to burst.

python -m reliability.pounding HOST:PORT --cases 5000 --seed 1
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from typing import Any

import grpc
import psutil

from .calling import OWN_CONNECTION
from .frames import Ending, bomb, call, cases, message, throw
from .fuzz import INSIDES, OWN_FAULTS, Fuzzed
from .questions import probe

BURST = 2**30  # bytes, of a message that comes in a thousandth of them
# gRPC itself answers these before any handler sees them, with INTERNAL, as its protocol has it.
BY_GRPC = frozenset(
    (
        "packed, it says, by nothing", "packed, it says, and is not", "packed by what nobody knows",
        "half of a packed one", "a timeout that is none",
    )
)  # fmt: skip
SECRET = "not for the log"
NO_TEXT = b"\xff\xfe " + SECRET.encode()  # metadata that are no text
GOOD = probe(0).requests[0].SerializeToString()


def _codes() -> dict[int, str]:
    return {code.value[0]: code.name for code in grpc.StatusCode}


def named(ending: Ending) -> str:
    """Return the name of the status that a call was ended with; CLOSED where there was none."""
    return "CLOSED" if ending.status is None else _codes().get(ending.status, str(ending.status))


def place(address: str) -> tuple[str, int]:
    """Return where to connect to."""
    host, port = address.rsplit(":", 1)
    return host, int(port)


def lies() -> dict[str, dict[str, Any]]:
    """Return calls that are wrong between HTTP/2 and protobuf."""
    return {
        "longer than it says": {"data": message(GOOD, length=3)},
        "shorter than it says": {"data": message(GOOD, length=len(GOOD) + 100)},
        "four gigabytes, it says": {"data": message(b"abc", length=2**32 - 1)},
        "no prefix": {"data": b"\x00\x00"},
        "nothing": {"data": b""},
        "two messages for one": {"data": message(GOOD) + message(GOOD)},
        "packed, it says, by nothing": {"data": message(GOOD, packed=True)},
        "packed, it says, and is not": {"data": message(GOOD, packed=True), "grpc_encoding": "gzip"},
        "packed by what nobody knows": {"data": message(GOOD, packed=True), "grpc_encoding": "zstd"},
        "half of a packed one": {"data": message(bomb(2**20)[:400], packed=True), "grpc_encoding": "gzip"},
        "a flag of 7": {"data": b"\x07" + message(GOOD)[1:]},
        "a timeout that is none": {"data": message(GOOD), "grpc_timeout": "soon"},
        "metadata that are no text": {"data": message(GOOD), "x_request_id": NO_TEXT, "authorization": NO_TEXT},
        "a method that is not there": {"data": message(GOOD), "method": "/dubito.v1.UncertaintyService/Guess"},
        "a path that is none": {"data": message(GOOD), "method": "//"},
        "broken off": {"data": message(GOOD)[:40], "end": False},
    }


def pound(address: str, count: int, seed: int) -> dict[str, Any]:
    """Send so many pieces of garbage and every lie, with a good call after every few."""
    endings: dict[str, Ending] = {}
    wrong = 0
    began = time.perf_counter()
    with grpc.insecure_channel(address, options=OWN_CONNECTION) as channel:
        fuzzed = Fuzzed(channel)
        for number, data in enumerate(cases(count, seed * 10**6)):
            throw(place(address), data)
            if number % 20 == 0:
                wrong += not fuzzed.is_right()
        for name, lie in lies().items():
            endings[name] = call(place(address), **lie)
            wrong += not fuzzed.is_right()
    return {
        "phase": "pounding",
        "seed": seed,
        "cases": count,
        "seconds": round(time.perf_counter() - began, 1),
        "endings": {name: named(ending) for name, ending in endings.items()},
        "faults": [name for name, ending in endings.items() if _is_fault(name, ending)],
        "wrong_after": wrong,
    }


def _is_fault(name: str, ending: Ending) -> bool:
    """Tell whether a call was ended by a fault of the server's own, or with words that tell of its insides."""
    own = named(ending) in OWN_FAULTS and name not in BY_GRPC
    return own or any(word in ending.message for word in INSIDES)


def burst(address: str, pid: int, size: int = BURST) -> dict[str, Any]:
    """Send a message that is packed to burst, and watch the server's memory; `pid`: of the server."""
    process, ended = psutil.Process(pid), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    data = message(bomb(size), packed=True)
    watching = threading.Thread(target=watch)
    watching.start()
    try:
        ending = call(place(address), data, grpc_encoding="gzip")
    finally:
        ended.set()
        watching.join()
    with grpc.insecure_channel(address, options=OWN_CONNECTION) as channel:
        right = Fuzzed(channel).is_right()
    return {"phase": "burst", "status": named(ending), "peak_bytes": peak - before, "right_after": right}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="HOST:PORT")
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    print(json.dumps(pound(options.target, options.cases, options.seed), indent=1))


if __name__ == "__main__":
    main()
