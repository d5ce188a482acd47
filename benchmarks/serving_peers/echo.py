"""A bare grpc.aio server on uvloop: what a request costs where nothing is done for it.

`/echo/bytes` gives a reply back that was read from a file, without a look at the request; `/echo/messages` parses the
request and writes the reply, as any server must that has something to say.

    python -m serving_peers.echo PORT REPLY
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import uvloop

from dubito_protos import uncertainty_pb2 as pb


async def serve(port: int, reply: bytes) -> None:
    message = pb.PredictResponse.FromString(reply)

    async def give_bytes(request: bytes, context: Any) -> bytes:
        return reply

    async def give_message(request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        return message

    methods = {
        "bytes": grpc.unary_unary_rpc_method_handler(give_bytes),
        "messages": grpc.unary_unary_rpc_method_handler(
            give_message, pb.PredictRequest.FromString, pb.PredictResponse.SerializeToString
        ),
    }
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("echo", methods)])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), Path(sys.argv[2]).read_bytes()))
