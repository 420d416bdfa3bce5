"""The least that one Python process can do for followers: gRPC's asyncio server, and ready bytes to every stream.

`python -m tests.bench.metrics.fan_out ADDRESS_FILE`. Each tick of a client's choice goes to all streams of the server.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

SERVICE = "bench.FanOut"


class FanOut:
    """A queue of bytes for each stream."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[bytes]] = set()

    async def follow(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._queues.add(queue)
        try:
            yield b""
            while True:
                yield await queue.get()
        finally:
            self._queues.discard(queue)

    async def tell(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        for queue in self._queues:
            queue.put_nowait(request)
        return b""


async def main(address_file: Path) -> None:
    fan_out = FanOut()
    server = grpc.aio.server()
    handlers = {
        "Follow": grpc.unary_stream_rpc_method_handler(fan_out.follow),
        "Tell": grpc.unary_unary_rpc_method_handler(fan_out.tell),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    draft = address_file.with_suffix(".draft")
    draft.write_text(f"127.0.0.1:{port}")
    draft.replace(address_file)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
