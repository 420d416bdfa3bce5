"""nats-py's client, whose look at a name that hangs holds up nobody else.

By itself it resolves a name anew with each attempt to connect, in the threads that all of the process share: with a
name server that does not answer they are soon all taken, and whoever else needs one waits for minutes.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import time
from urllib.parse import ParseResult

from nats.aio.client import DEFAULT_BUFFER_SIZE, Client, Srv
from nats.aio.transport import TcpTransport

from services.chassis.threads import in_own_thread


class Names:
    """Resolves names: each in one thread at a time, however often it is asked for."""

    def __init__(self) -> None:
        self._asked: dict[str, asyncio.Future[list[str]]] = {}

    async def addresses(self, name: str) -> list[str]:
        """The addresses of the name, or OSError. Where somebody waits for the same already, what that one gets."""
        asked = self._asked.get(name)
        if asked is None:
            asked = self._asked[name] = in_own_thread("names", functools.partial(_addresses, name))
            asked.add_done_callback(lambda _: self._asked.pop(name))
        return await asyncio.shield(asked)


class NatsClient(Client):
    """The client; `names` outlives it."""

    def __init__(self, names: Names) -> None:
        super().__init__()
        self._names = names

    async def _connect_to_server(self, s: Srv) -> None:
        if s.uri.scheme in ("ws", "wss"):
            await super()._connect_to_server(s)
            return
        s.last_attempt = time.monotonic()
        if not self._transport:
            self._transport = _Transport(self._names)
        await self._transport.connect(s.uri, DEFAULT_BUFFER_SIZE, self.options["connect_timeout"])


class _Transport(TcpTransport):
    def __init__(self, names: Names) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nats-py's
        self._names = names

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Connect to the first address of the name that answers. OSError or TimeoutError where none does."""
        problem: OSError | None = None
        async with asyncio.timeout(connect_timeout):
            for address in await self._names.addresses(uri.hostname or ""):
                try:
                    await super().connect(_at(uri, address), buffer_size, connect_timeout)
                except OSError as error:
                    problem = error
                else:
                    return
        raise problem or OSError(f"{uri.hostname} has no address")


def _addresses(name: str) -> list[str]:
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _at(uri: ParseResult, address: str) -> ParseResult:
    host = f"[{address}]" if ":" in address else address
    return uri._replace(netloc=f"{host}:{uri.port}")
