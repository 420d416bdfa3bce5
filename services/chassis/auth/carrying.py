"""A client's token, with each of its calls: `authorization: Bearer …`.

A token lies in a file that its giver replaces before the token ends; each call carries what is there by then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc

from services.chassis.errors import ConfigurationError
from services.chassis.files import require_private
from services.chassis.threads import Threads

Token = Callable[[], str]
"""The token to send with a call now; empty sends none."""

LOOK_SECONDS_MAX = 0.05
"""A file whose disk has not answered by then is not waited for, nor looked at again before it has."""
LOOKING_MAX = 100
"""Files that are looked at at once in a process, at most."""
_THREADS = Threads("token-files", threads_max=LOOKING_MAX, waiting_max=LOOKING_MAX)


class TokenFile:
    """The token in a file (0600), read again when it has changed.

    Where there is none by now, or the disk does not answer at once, the last one holds: calls are made in event loops.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state: tuple[int, int, int] | None = None
        self._token = ""
        self._looking: Future[None] | None = None

    @classmethod
    def required(cls, path: Path) -> TokenFile:
        """As the constructor; ConfigurationError where others can read the file, or it holds no token."""
        require_private(path)
        file = cls(path)
        if not file():
            raise ConfigurationError([f"{path} must hold a token, and holds none"])
        return file

    def __call__(self) -> str:
        """The token; empty where there never was one. The first that there is is waited for."""
        if self._state is None:
            self._look()
        elif self._looking is None or self._looking.done():
            with contextlib.suppress(TimeoutError):
                self._looking = _THREADS.begin(self._look)
                self._looking.result(LOOK_SECONDS_MAX)
        return self._token

    def _look(self) -> None:
        try:
            found = self._path.stat()
            state = (found.st_mtime_ns, found.st_ino, found.st_size)
            if state != self._state:
                self._token = self._path.read_text().strip()
                self._state = state
        except OSError:
            pass


def authorization(token: Token | None) -> tuple[tuple[str, str], ...]:
    """The metadata of a call."""
    text = token() if token is not None else ""
    return (("authorization", f"Bearer {text}"),) if text else ()


class Carrying(grpc.aio.Channel):
    """A channel whose calls all carry the token. It stands around another, which it closes with itself."""

    def __init__(self, channel: grpc.aio.Channel, token: Token) -> None:
        self._channel = channel
        self._token = token

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As grpc.aio.Channel."""
        return self._carried(self._channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As grpc.aio.Channel."""
        return self._carried(self._channel.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As grpc.aio.Channel."""
        return self._carried(self._channel.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As grpc.aio.Channel."""
        return self._carried(self._channel.stream_stream(*args, **kwargs))

    def _carried(self, call: Any) -> Callable[..., Any]:
        def carry(*args: Any, metadata: Sequence[tuple[str, Any]] | None = None, **kwargs: Any) -> Any:
            return call(*args, metadata=(*(metadata or ()), *authorization(self._token)), **kwargs)

        return carry

    async def __aenter__(self) -> Carrying:
        await self._channel.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._channel.__aexit__(*exc)

    async def close(self, grace: float | None = None) -> None:
        """As grpc.aio.Channel."""
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """As grpc.aio.Channel."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """As grpc.aio.Channel."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """As grpc.aio.Channel."""
        await self._channel.channel_ready()
