"""Connections as bad networks have them: cut, slow, or open with nothing coming through.

All relays of a stand live in the event loop of one thread; they are told what to do from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

PIECE_BYTES = 64 * 2**10
Result = TypeVar("Result")


class Network:
    """The loop of all relays."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self._thread.start()

    def relay(self, target: str) -> Link:
        """A new address that leads to the target."""
        return self.run(_opened(Link(self, target)))

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


class Link:
    """A relay from an address of its own to a target."""

    def __init__(self, network: Network, target: str) -> None:
        self._network = network
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._server: asyncio.Server | None = None
        self._own_port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self._delay_seconds = 0.0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._own_port}"

    def cut(self) -> None:
        """End all connections, and refuse new ones."""
        self._network.run(self._cut())

    def hold(self) -> None:
        """Nothing passes in either direction; no side is told."""
        self._network.run(self._set(passing=False))

    def slow(self, seconds: float) -> None:
        """Everything comes so much later."""
        self._network.run(self._set(delay_seconds=seconds))

    def mend(self) -> None:
        """All passes again. What was held does not: a network that comes back has forgotten its connections."""
        self._network.run(self._mend())

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._own_port)
        self._own_port = self._server.sockets[0].getsockname()[1]

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    async def _set(self, *, passing: bool = True, delay_seconds: float = 0.0) -> None:
        self._delay_seconds = delay_seconds
        if passing:
            self._passing.set()
        else:
            self._passing.clear()

    async def _mend(self) -> None:
        held = not self._passing.is_set()
        await self._set()
        if held:
            for writer in list(self._writers):
                writer.transport.abort()
        if self._server is None:
            await self.open()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, onward = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, onward}
        self._writers |= pair
        try:
            ways = {asyncio.create_task(self._pass(reader, onward)), asyncio.create_task(self._pass(there, writer))}
            _, left = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in left:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._writers -= pair
            for each in pair:
                each.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(PIECE_BYTES):
                await self._passing.wait()
                if self._delay_seconds:
                    await asyncio.sleep(self._delay_seconds)
                writer.write(piece)
                await writer.drain()


async def _opened(link: Link) -> Link:
    await link.open()
    return link
