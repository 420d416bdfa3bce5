"""The two transports: one blocks the thread that calls, one awaits in the loop that runs. Both keep one channel an
address, ask the scheduler where a service is that nobody named, and send the token along.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, ClassVar, cast

import grpc

from services.chassis.connection import channel_options
from services.chassis.endpoints import Endpoints
from services.chassis.status import error_from_rpc
from services.client.call import Item, Method, Operation, Reading, Result, Transport, installed


class _Connections(Transport):
    """Channels by address, opened with the first use."""

    _module: ClassVar[Any]
    """What makes its channels."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints
        self._channels: dict[str, Any] = {}
        self._opening = threading.Lock()

    async def _called(self, kind: str, method: Method, request: Any, seconds: float | None) -> Any:
        """Begin a call of this kind."""
        while (address := self.endpoints.address(method.service)) is None:
            self.endpoints.learn((await installed(self)).addresses)
        token = self.endpoints.token(address)  # first: it raises where it is not known now how the address is called
        making = getattr(self._channel(address), kind)
        call = making(method.path, request_serializer=method.serialize, response_deserializer=method.deserialize)
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        return call(request, timeout=seconds, metadata=metadata)

    def _channel(self, address: str) -> Any:
        with self._opening:
            if address not in self._channels:
                options = channel_options()
                tls = self.endpoints.tls(address)
                self._channels[address] = (
                    self._module.insecure_channel(address, options=options)
                    if tls is None
                    else self._module.secure_channel(address, tls.credentials(), options=options)
                )
            return self._channels[address]


class BlockingDriver(_Connections):
    """Blocks: its coroutines never suspend, so one step runs an operation to its end. Threads may share it."""

    _module: ClassVar = grpc

    def run(self, operation: Operation[Result]) -> Result:
        """The operation's result."""
        try:
            operation.send(None)
        except StopIteration as end:
            return cast(Result, end.value)
        raise AssertionError("what never suspends has suspended")

    def iterate(self, reading: Reading[Item]) -> Iterator[Item]:
        """What the reading gives, as it comes."""
        try:
            while True:
                yield self.run(reading.__anext__())
        except StopAsyncIteration:
            return
        finally:
            self.run(reading.aclose())

    def close(self) -> None:
        """Close all channels."""
        while self._channels:
            self._channels.popitem()[1].close()

    async def ask(self, method: Method, request: Any, seconds: float) -> Any:
        """The answer of a call that has one."""
        with _our_errors():
            return await self._called("unary_unary", method, request, seconds)

    async def read(self, method: Method, request: Any, seconds: float | None) -> AsyncGenerator[Any, None]:
        """The answers of a call that has many."""
        call = await self._called("unary_stream", method, request, seconds)
        try:
            with _our_errors():
                for answer in call:
                    yield answer
        finally:
            call.cancel()  # who stops reading early leaves no call behind

    async def sleep(self, seconds: float) -> None:
        """A pause."""
        time.sleep(seconds)  # noqa: ASYNC251  # it blocks

    async def work(self, function: Callable[[], Result]) -> Result:
        """The result of a piece of work on files."""
        return function()


class AwaitingDriver(_Connections):
    """Awaits in the event loop that runs; belongs to that one."""

    _module: ClassVar = grpc.aio

    def run(self, operation: Operation[Result]) -> Operation[Result]:
        """The operation as it is: the loop runs it."""
        return operation

    def iterate(self, reading: Reading[Item]) -> Reading[Item]:
        """The reading as it is: the loop runs it."""
        return reading

    async def close(self) -> None:
        """Close all channels."""
        while self._channels:
            await self._channels.popitem()[1].close()

    async def ask(self, method: Method, request: Any, seconds: float) -> Any:
        """The answer of a call that has one."""
        with _our_errors():
            return await (await self._called("unary_unary", method, request, seconds))

    async def read(self, method: Method, request: Any, seconds: float | None) -> AsyncGenerator[Any, None]:
        """The answers of a call that has many."""
        call = await self._called("unary_stream", method, request, seconds)
        try:
            with _our_errors():
                while (answer := await call.read()) is not grpc.aio.EOF:
                    yield answer
        finally:
            call.cancel()  # who stops reading early leaves no call behind

    async def sleep(self, seconds: float) -> None:
        """A pause."""
        await asyncio.sleep(seconds)

    async def work(self, function: Callable[[], Result]) -> Result:
        """The result of a piece of work on files."""
        return await asyncio.to_thread(function)


@contextlib.contextmanager
def _our_errors() -> Iterator[None]:
    """Errors of gRPC become ours."""
    try:
        yield
    except grpc.RpcError as error:
        raise error_from_rpc(error) from None
