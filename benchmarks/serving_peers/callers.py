"""Callers in a process of their own: each asks again as soon as it is answered, and all share one client.

Reads one job a line from standard input, writes what came of it to standard output; both are JSON. Clients are
`grpc.aio` on uvloop, for HTTP aiohttp on uvloop (which keeps a connection for each caller, where those of gRPC share
one). Requests are written before, one row in each, and are the same for all servers of a protocol; each answer is read
to the array in it.

    python -m serving_peers.callers ROWS.npy
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from numpy.typing import NDArray

Ask = Callable[[int], Awaitable[NDArray[Any]]]
TIMEOUT = 10.0  # seconds for the first answers
CHANNEL = [("grpc.use_local_subchannel_pool", 1)]  # no connection is shared between jobs


@dataclass(slots=True)
class Session:
    """What a job has seen: seconds that answers took which came in its time, and the least draws made for one."""

    since: float
    until: float
    seconds: list[float] = field(default_factory=list)
    least_draws: int | None = None

    def note(self, asked: float) -> bool:
        """Count an answer, where it comes in time; tell whether to ask again."""
        now = time.perf_counter()
        if self.since <= now <= self.until:
            self.seconds.append(now - asked)
        return now < self.until

    def drawn(self, draws: int) -> None:
        self.least_draws = draws if self.least_draws is None else min(draws, self.least_draws)


def dubito_requests(job: dict[str, Any], rows: NDArray[np.float32]) -> list[bytes]:
    from dubito_protos import tensors
    from dubito_protos import uncertainty_pb2 as pb

    requests = []
    for number, row in enumerate(rows):
        inputs = [tensors.encode(row[None], job["input"])]
        if job["way"] == "dubito Evaluate":
            requests.append(pb.EvaluateRequest(model=job["model"], inputs=inputs))
        else:
            design = pb.DESIGN_INDEPENDENT if job.get("independent") else pb.DESIGN_UNSPECIFIED
            sampling = pb.SamplingSpec(max_draws=job["draws"], design=design)
            requests.append(
                pb.PredictRequest(model=job["model"], inputs=inputs, sampling=sampling, id=str(number))
            )  # fmt: skip
    return [request.SerializeToString() for request in requests]


def open_inference_requests(job: dict[str, Any], rows: NDArray[np.float32]) -> list[bytes]:
    from dubito_protos import open_inference_pb2 as pb

    return [
        pb.ModelInferRequest(
            model_name=job["model"],
            inputs=[pb.ModelInferRequest.InferInputTensor(name="input", datatype="FP32", shape=(1, *row.shape))],
            raw_input_contents=[row.tobytes()],
        ).SerializeToString()
        for row in rows
    ]


@contextlib.asynccontextmanager
async def dubito(job: dict[str, Any], rows: NDArray[np.float32], session: Session) -> AsyncIterator[Ask]:
    """Ask dubito, by Predict or Evaluate; an answer of fewer draws than were asked is no answer."""
    import grpc.aio

    from dubito_protos import tensors
    from dubito_protos import uncertainty_pb2 as pb

    requests, predicts = dubito_requests(job, rows), job["way"] == "dubito Predict"
    async with grpc.aio.insecure_channel(job["target"], CHANNEL) as channel:
        path = f"/dubito.v1.UncertaintyService/{'Predict' if predicts else 'Evaluate'}"
        ask = channel.unary_unary(path)

        async def predict(number: int) -> NDArray[Any]:
            reply = pb.PredictResponse.FromString(await ask(requests[number % len(requests)]))
            session.drawn(int(tensors.decode(reply.draws)[0]))
            return tensors.decode(reply.classification.probabilities)

        async def evaluate(number: int) -> NDArray[Any]:
            reply = pb.EvaluateResponse.FromString(await ask(requests[number % len(requests)]))
            return tensors.decode(reply.probabilities)

        yield predict if predicts else evaluate


@contextlib.asynccontextmanager
async def open_inference(job: dict[str, Any], rows: NDArray[np.float32], session: Session) -> AsyncIterator[Ask]:
    """Ask a server of the Open Inference Protocol."""
    import grpc.aio

    from dubito_protos import open_inference_pb2 as pb

    requests = open_inference_requests(job, rows)
    async with grpc.aio.insecure_channel(job["target"], CHANNEL) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

        async def infer(number: int) -> NDArray[Any]:
            reply = pb.ModelInferResponse.FromString(await ask(requests[number % len(requests)]))
            return np.frombuffer(reply.raw_output_contents[0], "<f4").reshape(tuple(reply.outputs[0].shape))

        yield infer


@contextlib.asynccontextmanager
async def http(job: dict[str, Any], rows: NDArray[np.float32], session: Session) -> AsyncIterator[Ask]:
    """Ask a server of JSON over HTTP."""
    import aiohttp

    requests = [json.dumps({"input": row.tolist()}).encode() for row in rows]
    headers = {"Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as client:

        async def post(number: int) -> NDArray[Any]:
            async with client.post(job["target"], data=requests[number % len(requests)]) as reply:
                text = await reply.read()
                if reply.status != 200:
                    raise RuntimeError(f"HTTP {reply.status}: {text[:200]!r}")
                return np.array([json.loads(text)["output"]])

        yield post


@contextlib.asynccontextmanager
async def echo(job: dict[str, Any], rows: NDArray[np.float32], session: Session) -> AsyncIterator[Ask]:
    """Ask a bare echo for messages of dubito's; read them where the server writes them too."""
    import grpc.aio

    from dubito_protos import tensors
    from dubito_protos import uncertainty_pb2 as pb

    requests, reads = dubito_requests(job, rows), job["way"] == "echo of messages"
    async with grpc.aio.insecure_channel(job["target"], CHANNEL) as channel:
        ask = channel.unary_unary("/echo/messages" if reads else "/echo/bytes")

        async def echoed(number: int) -> NDArray[Any]:
            payload = await ask(requests[number % len(requests)])
            return tensors.decode(pb.PredictResponse.FromString(payload).classification.probabilities)

        yield echoed


WAYS = {
    "dubito Predict": dubito,
    "dubito Evaluate": dubito,
    "open-inference": open_inference,
    "http": http,
    "echo of bytes": echo,
    "echo of messages": echo,
}


async def ask_in_turn(ask: Ask, callers: int, session: Session) -> None:
    numbers = count()

    async def call() -> None:
        going = True
        while going:
            asked = time.perf_counter()
            await ask(next(numbers))
            going = session.note(asked)

    await asyncio.gather(*(call() for _ in range(callers)))


async def ask_in_bulk(job: dict[str, Any], rows: NDArray[np.float32], session: Session) -> None:
    """Keep as many requests in flight over one PredictBulk as there would be callers."""
    import grpc.aio

    from dubito_protos import tensors
    from dubito_protos import uncertainty_pb2 as pb

    requests = dubito_requests(job, rows)
    asked: dict[str, float] = {}
    room = asyncio.Queue[str]()  # ids that are free; those of the requests, one for each in flight
    for number in range(job["callers"]):
        room.put_nowait(str(number))

    async def write(call: Any) -> None:
        going = True
        while going:
            name = await room.get()
            asked[name] = time.perf_counter()
            await call.write(requests[int(name)])
            going = asked[name] < session.until
        await call.done_writing()

    async with grpc.aio.insecure_channel(job["target"], CHANNEL) as channel:
        call = channel.stream_stream("/dubito.v1.UncertaintyService/PredictBulk")()
        writing = asyncio.create_task(write(call))
        while (payload := await call.read()) is not grpc.aio.EOF:
            reply = pb.PredictBulkResponse.FromString(payload)
            if reply.HasField("error"):
                raise RuntimeError(reply.error.message)
            session.drawn(int(tensors.decode(reply.response.draws)[0]))
            tensors.decode(reply.response.classification.probabilities)
            session.note(asked[reply.id])
            room.put_nowait(reply.id)
        await writing


async def run(job: dict[str, Any], rows: NDArray[np.float32]) -> dict[str, Any]:
    """Ask for a while, then count; returns how many answers came, and the quantiles of their seconds."""
    since = time.perf_counter() + job["warm"]
    session = Session(since, since + job["seconds"])
    if job["way"] == "dubito PredictBulk":
        await ask_in_bulk(job, rows, session)
    else:
        async with WAYS[job["way"]](job, rows, session) as ask:
            await ask_in_turn(ask, job["callers"], session)
    if not session.seconds:
        raise RuntimeError(f"no answer within {job['seconds']} s")
    p50, p99 = np.quantile(session.seconds, [0.5, 0.99])
    return {
        "rate": len(session.seconds) / job["seconds"],
        "p50": float(p50),
        "p99": float(p99),
        "draws": session.least_draws,
    }


async def show(job: dict[str, Any], rows: NDArray[np.float32]) -> dict[str, Any]:
    """Return the answers to the first rows."""
    async with WAYS[job["way"]](job, rows, Session(0.0, 0.0)) as ask, asyncio.timeout(TIMEOUT):
        return {"answers": [(await ask(number)).reshape(-1).tolist() for number in range(job["rows"])]}


def jobs() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def main() -> None:
    rows = np.load(Path(sys.argv[1]))
    for job in jobs():
        try:
            found = uvloop.run((show if job["do"] == "show" else run)(job, rows))
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
