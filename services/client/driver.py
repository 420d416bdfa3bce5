"""Runs operations: one driver blocks the thread that calls, one awaits in the loop that runs. Both keep one channel an
address, ask the scheduler where a service is that nobody named, and send the token along.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Generic, TypeVar

import grpc

from services.chassis.connection import channel_options
from services.chassis.status import error_from_rpc
from services.client.call import Ask, Emit, Next, Open, Operation, Reading, Sleep, Step, Work
from services.client.endpoints import Endpoints
from services.client.installation import installed

Result = TypeVar("Result")
Item = TypeVar("Item")


class _Course(Generic[Item, Result]):
    """An operation on its way: what the last step gave is what the next one gets."""

    def __init__(self, steps: Operation[Result] | Reading[Item]) -> None:
        self._steps: Any = steps
        self._error: BaseException | None = None
        self.given: Any = None
        self.result: Any = None

    def next(self) -> Step | Emit[Item] | None:
        """The next step, or None at the end; then there is a result."""
        given, error = self.given, self._error
        self.given = self._error = None
        try:
            step: Step | Emit[Item] = self._steps.send(given) if error is None else self._steps.throw(error)
        except StopIteration as end:
            self.result = end.value
            return None
        return step

    def failed(self, error: Exception) -> None:
        """The step raised this: the operation gets it, of gRPC's errors as one of ours."""
        self._error = error_from_rpc(error) if isinstance(error, grpc.RpcError) else error

    def close(self) -> None:
        """Whoever listened has gone."""
        self._steps.close()


class _Connections:
    """Channels by address, opened with the first use."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints
        self._channels: dict[str, Any] = {}
        self._opening = threading.Lock()

    def _channel(self, address: str, module: Any) -> Any:
        with self._opening:
            if address not in self._channels:
                options = channel_options()
                certificates = self.endpoints.authority(address)
                if certificates is None:
                    self._channels[address] = module.insecure_channel(address, options=options)
                else:
                    credentials = grpc.ssl_channel_credentials(certificates.expanduser().read_bytes())
                    self._channels[address] = module.secure_channel(address, credentials, options=options)
            return self._channels[address]

    def _call(self, step: Ask | Open, address: str, module: Any) -> Any:
        """Begin the call of a step."""
        channel, method = self._channel(address, module), step.method
        kind = channel.unary_unary if isinstance(step, Ask) else channel.unary_stream
        callable_ = kind(method.path, request_serializer=method.serialize, response_deserializer=method.deserialize)
        token = self.endpoints.token(address)
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        return callable_(step.request, timeout=step.seconds, metadata=metadata)


class BlockingDriver(_Connections):
    """Runs operations in the thread that calls. Threads may share it."""

    def run(self, operation: Operation[Result]) -> Result:
        """The operation's result."""
        driving = self._drive(operation)
        while True:
            try:
                next(driving)
            except StopIteration as end:
                result: Result = end.value
                return result

    def iterate(self, reading: Reading[Item]) -> Iterator[Item]:
        """What the reading emits, as it comes."""
        yield from self._drive(reading)

    def close(self) -> None:
        """Close all channels."""
        while self._channels:
            self._channels.popitem()[1].close()

    def _drive(self, steps: Any) -> Any:
        course: _Course[Any, Any] = _Course(steps)
        try:
            while (step := course.next()) is not None:
                if isinstance(step, Emit):
                    yield step.item
                    continue
                try:
                    course.given = self._do(step)
                except Exception as error:  # noqa: BLE001  # the operation decides
                    course.failed(error)
            return course.result
        finally:
            course.close()

    def _do(self, step: Step) -> Any:
        match step:
            case Ask() | Open():
                address = self.endpoints.address(step.method.service)
                if address is None:
                    self.endpoints.learn(self.run(installed()).addresses)
                    return self._do(step)
                return self._call(step, address, grpc)
            case Next():
                return next(step.stream, None)
            case Sleep():
                return time.sleep(step.seconds)
            case Work():
                return step.function()


class AwaitingDriver(_Connections):
    """Runs operations in the event loop that runs; belongs to that one."""

    async def run(self, operation: Operation[Result]) -> Result:
        """The operation's result."""
        course: _Course[Any, Result] = _Course(operation)
        try:
            while (step := course.next()) is not None:
                assert not isinstance(step, Emit), "what emits is iterated"
                await self._do_for(course, step)
            result: Result = course.result
            return result
        finally:
            course.close()

    async def iterate(self, reading: Reading[Item]) -> AsyncGenerator[Item, None]:
        """What the reading emits, as it comes."""
        course: _Course[Item, None] = _Course(reading)
        try:
            while (step := course.next()) is not None:
                if isinstance(step, Emit):
                    yield step.item
                else:
                    await self._do_for(course, step)
        finally:
            course.close()

    async def close(self) -> None:
        """Close all channels."""
        while self._channels:
            await self._channels.popitem()[1].close()

    async def _do_for(self, course: _Course[Any, Any], step: Step) -> None:
        try:
            course.given = await self._do(step)
        except Exception as error:  # noqa: BLE001  # the operation decides
            course.failed(error)

    async def _do(self, step: Step) -> Any:
        match step:
            case Ask() | Open():
                address = self.endpoints.address(step.method.service)
                if address is None:
                    self.endpoints.learn((await self.run(installed())).addresses)
                    return await self._do(step)
                call = self._call(step, address, grpc.aio)
                return await call if isinstance(step, Ask) else call
            case Next():
                answer = await step.stream.read()
                return None if answer is grpc.aio.EOF else answer
            case Sleep():
                return await asyncio.sleep(step.seconds)
            case Work():
                return await asyncio.to_thread(step.function)
