"""A TCP relay that stands between a client and a server, and does to their connections what networks do.

It runs in the event loop of the test. What passes is not changed, so that signatures stay valid.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

from tests.object_server import free_ports

PIECE_BYTES = 64 * 2**10


class Relay:
    """Forwards to a port of this machine until it is told otherwise."""

    def __init__(self, target: int, port: int = 0) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pattern: re.Pattern[bytes] | None = None
        self._answer_bytes_max: int | None = None
        self._break_bytes = 0
        self._request_bytes_per_second = 0.0
        self._free_at = 0.0
        self._answer_delay_seconds = 0.0
        self._released = asyncio.Event()
        self._released.set()
        self.held = asyncio.Event()
        """Set once something was held back."""
        self.left = asyncio.Event()
        """Set once a client whose request was held back has gone away."""
        self.port = port

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def hold_requests(self, pattern: bytes) -> None:
        """From now on hold back a request that has this pattern in it, and with it its connection."""
        self._hold(pattern)

    def hold_answers(self, pattern: bytes, after_bytes: int) -> None:
        """From now on pass only so many bytes of the answer to a request that has this pattern in it."""
        self._hold(pattern)
        self._answer_bytes_max = after_bytes

    def break_answers(self, after_bytes: int) -> None:
        """From now on end each connection once so many bytes of answers have passed; 0: none any more."""
        self._break_bytes = after_bytes

    def slow_requests(self, bytes_per_second: float) -> None:
        """From now on requests pass at this rate, all connections together."""
        self._request_bytes_per_second = bytes_per_second

    def delay_answers(self, seconds: float) -> None:
        """From now on each piece of an answer comes so much later, as from far away."""
        self._answer_delay_seconds = seconds

    def release(self) -> None:
        """Let pass what was held back."""
        self._pattern = None
        self._answer_bytes_max = None
        self._released.set()

    async def cut(self) -> None:
        """End all connections, and refuse new ones."""
        assert self._server is not None, "it was opened"
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def open(self) -> None:
        """Accept connections, at the same port as before."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def _hold(self, pattern: bytes) -> None:
        self._pattern = re.compile(pattern)
        self._answer_bytes_max = None
        self._released.clear()
        self.held.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, upstream_writer}
        self._writers |= pair
        marked = asyncio.Event()
        try:
            # Whichever side ends first ends the other.
            directions = {
                asyncio.create_task(self._pass_requests(reader, upstream_writer, marked)),
                asyncio.create_task(self._pass_answers(upstream_reader, writer, marked)),
            }
            _, left = await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            for task in left:
                task.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
        finally:
            self._writers -= pair
            for each in pair:
                each.transport.abort()

    async def _pass_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, marked: asyncio.Event
    ) -> None:
        while piece := await reader.read(PIECE_BYTES):
            if self._pattern is not None and self._pattern.search(piece):
                if self._answer_bytes_max is not None:
                    marked.set()
                else:
                    self.held.set()
                    if not await self._until_released(reader):
                        return
            await self._slowed(len(piece))
            writer.write(piece)
            await writer.drain()

    async def _slowed(self, size_bytes: int) -> None:
        if self._request_bytes_per_second:
            now = asyncio.get_running_loop().time()
            self._free_at = max(self._free_at, now) + size_bytes / self._request_bytes_per_second
            await asyncio.sleep(self._free_at - now)

    async def _until_released(self, reader: asyncio.StreamReader) -> bool:
        """Hold; False where the client has gone away before. It waits for an answer, and sends nothing until then."""
        gone, released = asyncio.create_task(reader.read(1)), asyncio.create_task(self._released.wait())
        await asyncio.wait({gone, released}, return_when=asyncio.FIRST_COMPLETED)
        if released.done():
            gone.cancel()
            await asyncio.wait({gone})
        else:
            released.cancel()
            self.left.set()
        return released.done() and not released.cancelled()

    async def _pass_answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, marked: asyncio.Event
    ) -> None:
        passed = sent = 0
        while piece := await reader.read(PIECE_BYTES):
            sent += len(piece)
            if 0 < self._break_bytes < sent:
                return
            if marked.is_set() and self._answer_bytes_max is not None:
                room = max(0, self._answer_bytes_max - passed)
                if len(piece) > room:
                    writer.write(piece[:room])
                    await writer.drain()
                    self.held.set()
                    await self._released.wait()
                    piece = piece[room:]
                passed += len(piece)
            await asyncio.sleep(self._answer_delay_seconds)
            writer.write(piece)
            await writer.drain()


@contextlib.asynccontextmanager
async def relay_to(target: int, port: int = 0) -> AsyncIterator[Relay]:
    """A relay at a port (0: a free one, which nobody else gets while it is cut) that is open, and gone afterwards."""
    relay = Relay(target, port or free_ports(1)[0])
    await relay.open()
    try:
        yield relay
    finally:
        relay.release()
        await relay.cut()
