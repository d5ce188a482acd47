"""Triton's Python back end, by PyTriton: `python -m serving_peers.pytriton_peer SUBJECT`, in its own environment.

Requests are received and batched by Triton, in C++; batches come to this process through shared memory.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from serving_peers import free_port
from serving_peers.subject import Rows, own


def main() -> None:
    subject = own()
    answer = subject.answer()
    # Triton's own process loads the library of Python by its name, and must not get another release than this one.
    known = [os.environ["LD_LIBRARY_PATH"]] if "LD_LIBRARY_PATH" in os.environ else []
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join([sysconfig.get_config_var("LIBDIR"), *known])

    @batch
    def infer(input: Rows) -> dict[str, Rows]:  # noqa: A002 - PyTriton passes inputs by their names
        return {"output": answer(input)}

    config = TritonConfig(
        grpc_address="127.0.0.1",
        grpc_port=subject.port,
        http_address="127.0.0.1",
        http_port=free_port(),
        allow_metrics=False,
    )
    with Triton(config=config, workspace=Path.cwd() / f"workspace-{os.getpid()}") as triton:
        triton.bind(
            model_name="digits",
            infer_func=[infer] * subject.tuning.workers,
            inputs=[Tensor(name="input", dtype=np.float32, shape=(1, 8, 8))],
            outputs=[Tensor(name="output", dtype=np.float32, shape=(10,))],
            config=ModelConfig(
                max_batch_size=subject.tuning.batch,
                batcher=DynamicBatcher(max_queue_delay_microseconds=round(subject.tuning.delay * 1e6)),
            ),
        )
        triton.serve()


if __name__ == "__main__":
    main()
