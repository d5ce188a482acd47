"""LitServe, with its batching: `python -m serving_peers.litserve_peer SUBJECT`, in its own environment.

It speaks JSON over HTTP, by uvicorn on uvloop and httptools; requests are decoded where the network runs, in processes
of its own.
"""

from __future__ import annotations

from typing import Any

import litserve
import numpy as np

from serving_peers.subject import Rows, own


class API(litserve.LitAPI):
    """One network and one kind of call."""

    def setup(self, device: str) -> None:
        """Make ready what answers batches."""
        self._answer = own().answer()

    def decode_request(self, request):  # type: ignore[no-untyped-def] # LitServe makes a form of what is annotated
        """Return the row (1, 8, 8) of a request."""
        return np.asarray(request["input"], np.float32)

    def batch(self, inputs: list[Rows]) -> Rows:
        """Return rows (B, 1, 8, 8)."""
        return np.stack(inputs)

    def predict(self, x: Rows) -> Rows:
        """Return probabilities (B, K)."""
        return self._answer(x)

    def unbatch(self, output: Rows) -> list[Rows]:
        """Return probabilities (K,) of each row."""
        return list(output)

    def encode_response(self, output: Rows) -> dict[str, Any]:
        """Return what is sent as JSON."""
        return {"output": output.tolist()}


def main() -> None:
    subject = own()
    server = litserve.LitServer(
        API(max_batch_size=subject.tuning.batch, batch_timeout=subject.tuning.delay),
        accelerator="cpu",
        workers_per_device=subject.tuning.workers,
        fast_queue=True,
    )
    server.run(host="127.0.0.1", port=subject.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
