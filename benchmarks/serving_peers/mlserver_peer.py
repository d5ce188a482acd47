"""MLServer, with its adaptive batching: `python -m serving_peers.mlserver_peer SUBJECT`, in its own environment.

Set up for speed: no debug mode, no compression, no metrics, uvloop. With no workers the network runs in the server's
own process, between requests; else in processes that are sent whole batches.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse

from serving_peers import free_port
from serving_peers.subject import own, read


class Model(MLModel):
    """One network and one kind of call."""

    async def load(self) -> bool:
        """Make ready what answers batches."""
        extra: dict[str, Any] = self.settings.parameters.extra
        self._answer = read(extra["subject"]).answer()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer the rows (B, 1, 8, 8) of a batch by probabilities (B, K)."""
        rows = NumpyCodec.decode_input(payload.inputs[0])
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("output", self._answer(rows))]
        )  # fmt: skip


async def main() -> None:
    subject = own()
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        http_port=free_port(),
        grpc_port=subject.port,
        metrics_endpoint=None,
        gzip_enabled=False,
        parallel_workers=subject.tuning.workers,
    )
    model = ModelSettings(
        name="digits",
        implementation="serving_peers.mlserver_peer.Model",
        max_batch_size=subject.tuning.batch,
        max_batch_time=subject.tuning.delay,
        parameters=ModelParameters(extra={"subject": sys.argv[1]}),
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(main())
