"""What gRPC would refuse in its own words is refused in ours."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.chassis import errors, rpc
from services.chassis import log as logs
from services.chassis.auth.guard import Admission, Guard, OpenGuard
from services.chassis.auth.principal import Principal
from services.chassis.config import ServerConfig
from services.chassis.errors import Reason, SihlaiError

NAME = "sihlai.test.Echo"
OTHER = "sihlai.test.Other"
RUNNERS = "sihlai.test.Runners"
KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
WORK_SECONDS = 0.02
NO_MESSAGE = b"\x0a\xff"  # a text of 255 bytes, of which there is none


class Echo:
    """Four methods that answer what they are sent: first they wait for `held` where the text is `wait`, and use the
    processor where it is `work`.
    """

    def __init__(self) -> None:
        self.held = asyncio.Event()
        self.waiting: asyncio.Queue[str] = asyncio.Queue()

    async def said(self, request: StringValue) -> StringValue:
        if request.value == "wait":
            self.waiting.put_nowait(request.value)
            await self.held.wait()
        if request.value == "work":
            began = time.thread_time()
            while time.thread_time() - began < WORK_SECONDS:
                pass
        return request

    async def unary_unary(self, request: StringValue, context: Any) -> StringValue:
        return await self.said(request)

    async def unary_stream(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield await self.said(request)

    async def stream_unary(self, requests: AsyncIterator[StringValue], context: Any) -> StringValue:
        return [await self.said(request) async for request in requests][-1]

    async def stream_stream(self, requests: AsyncIterator[StringValue], context: Any) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield await self.said(request)

    def add_to(self, name: str) -> Callable[[grpc.aio.Server], None]:
        handlers = {
            kind: getattr(grpc, f"{kind}_rpc_method_handler")(
                getattr(self, kind), StringValue.FromString, StringValue.SerializeToString
            )
            for kind in KINDS
        }
        return lambda server: server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, handlers)])


@contextlib.asynccontextmanager
async def served(guard: Guard | None = None, **settings: Any) -> AsyncIterator[tuple[Echo, grpc.aio.Channel]]:
    echo = Echo()
    server = rpc.Server(ServerConfig(drain_seconds=0.2, **settings), guard or OpenGuard())
    for name in (NAME, OTHER):
        server.add(name, echo.add_to(name))
    server.add(RUNNERS, echo.add_to(RUNNERS), for_runners=True)
    address = await server.start()
    channel = rpc.channel(address, retry_attempts_max=1)
    try:
        yield echo, channel
    finally:
        echo.held.set()
        await channel.close()
        await server.stop()


async def called(channel: grpc.aio.Channel, kind: str, data: bytes, method: str = "", subject: str = "") -> list[bytes]:
    """The raw answers to a raw request."""
    call = getattr(channel, kind)(method or f"/{NAME}/{kind}")
    given = iter([data]) if kind.startswith("stream_") else data
    async with asyncio.timeout(30):
        running = call(given, metadata=(("subject", subject),))
        return [await running] if kind.endswith("unary") else [item async for item in running]


async def refused(
    channel: grpc.aio.Channel, kind: str, data: bytes, method: str = "", subject: str = ""
) -> SihlaiError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await called(channel, kind, data, method, subject)
    return rpc.error_from_rpc(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_are_no_message_are_an_invalid_argument(kind: str) -> None:
    async def scenario() -> None:
        async with served() as (_, channel):
            assert await called(channel, kind, StringValue(value="hello").SerializeToString())
            error = await refused(channel, kind, NO_MESSAGE)
            assert isinstance(error, errors.InvalidArgument)
            assert (error.reason, [v.field for v in error.violations]) == (Reason.INVALID_FIELDS, ["request"])

    asyncio.run(scenario())


def test_a_request_that_is_too_large_is_not_read_but_for_runners() -> None:
    data = StringValue(value="x" * 100).SerializeToString()

    async def scenario() -> None:
        async with served(request_bytes_max=100) as (_, channel):
            for kind in ("unary_unary", "unary_stream"):
                error = await refused(channel, kind, data)
                assert isinstance(error, errors.InvalidArgument)
                assert (error.reason, error.metadata["bytes_max"]) == (Reason.MESSAGE_TOO_LARGE, "100")
                assert await called(channel, kind, data, f"/{RUNNERS}/{kind}") == [data]
            assert await called(channel, "stream_unary", data) == [data]

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_a_method_that_nobody_serves_is_named(kind: str) -> None:
    async def scenario() -> None:
        async with served() as (_, channel):
            for method in (f"{NAME}/Forget", "nobody.knows/It"):
                error = await refused(channel, kind, b"", f"/{method}")
                assert isinstance(error, errors.Unimplemented)
                assert (error.reason, dict(error.metadata)) == (Reason.NOT_IMPLEMENTED, {"method": method})

    asyncio.run(scenario())


def test_calls_of_users_have_a_limit_that_is_none_for_runners_and_streams() -> None:
    async def scenario() -> None:
        async with served(user_calls_max=1) as (echo, channel):
            data = StringValue(value="wait").SerializeToString()
            first = asyncio.ensure_future(called(channel, "unary_unary", data))
            async with asyncio.timeout(30):
                await echo.waiting.get()
            for kind in ("unary_unary", "stream_unary"):
                error = await refused(channel, kind, b"")
                assert isinstance(error, errors.ResourceExhausted)
                assert dict(error.metadata) == {"what": "user_calls_max", "limit": "1", "service": NAME}
                assert error.retry_after_seconds > 0
            assert await called(channel, "unary_stream", b"") == [b""]
            of_runners = [asyncio.ensure_future(called(channel, "unary_unary", data, f"/{RUNNERS}/unary_unary"))]
            of_runners.append(asyncio.ensure_future(called(channel, "unary_unary", data, f"/{RUNNERS}/unary_unary")))
            async with asyncio.timeout(30):
                for _ in of_runners:
                    await echo.waiting.get()
            echo.held.set()
            await asyncio.gather(first, *of_runners)
            assert await called(channel, "unary_unary", b"") == [b""]

    asyncio.run(scenario())


class ByName(OpenGuard):
    """Believes who a caller says that it is."""

    async def admit(self, metadata: Mapping[str, str], *, method: str) -> Admission:
        return Admission(principal=Principal(subject=metadata["subject"]), method=method)


@pytest.mark.parametrize(
    ("kind", "other_kind", "what"),
    [
        ("unary_unary", "unary_stream", "principal_calls_max"),
        ("stream_unary", "stream_stream", "principal_calls_max"),
        ("unary_stream", "unary_unary", "principal_streams_max"),
        ("stream_stream", "stream_unary", "principal_streams_max"),
    ],
)
def test_one_user_takes_no_more_than_a_share_and_no_runners(kind: str, other_kind: str, what: str) -> None:
    async def scenario() -> None:
        limits = {"principal_calls_max": 2, "principal_streams_max": 2}
        async with served(guard=ByName(), **limits) as (echo, channel):
            data = StringValue(value="wait").SerializeToString()

            def held(subject: str) -> asyncio.Future[list[bytes]]:
                return asyncio.ensure_future(called(channel, kind, data, subject=subject))

            waiting = [held("users/flood"), held("users/flood")]
            waiting += [held(subject) for subject in ("users/ada", *["runners/-"] * 5, *["services/metrics"] * 5)]
            async with asyncio.timeout(30):
                for _ in waiting:
                    await echo.waiting.get()
            error = await refused(channel, kind, b"", subject="users/flood")
            assert isinstance(error, errors.ResourceExhausted)
            assert (dict(error.metadata), error.reason) == (
                {"what": what, "limit": "2", "service": NAME},
                Reason.LIMIT_REACHED,
            )
            assert error.retry_after_seconds > 0
            assert "by users/flood" in error.message
            assert await called(channel, other_kind, b"", subject="users/flood") == [b""]
            assert await called(channel, kind, b"", f"/{OTHER}/{kind}", subject="users/flood") == [b""]
            assert await called(channel, kind, b"", subject="users/ada") == [b""]
            echo.held.set()
            await asyncio.gather(*waiting)
            assert await called(channel, kind, b"", subject="users/flood") == [b""]

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_whose_calls_take_too_much_waits_once_others_call_and_runners_do_not(kind: str) -> None:
    async def scenario() -> None:
        async with served(guard=ByName(), principal_processor_share=0.02) as (_, channel):

            async def seconds(subject: str, count: int) -> float:
                data = StringValue(value="work").SerializeToString()
                began = asyncio.get_running_loop().time()
                await asyncio.gather(*(called(channel, kind, data, subject=subject) for _ in range(count)))
                return asyncio.get_running_loop().time() - began

            alone = [await seconds("users/flood", 1) for _ in range(3)]
            await seconds("users/ada", 1)
            taken = [await seconds("users/flood", 1) for _ in range(3)]
            assert max(taken) >= 0.9 * WORK_SECONDS / 0.02, taken
            assert max(await seconds("runners/-", 2), await seconds("users/ada", 1), *alone) < max(taken)

    asyncio.run(scenario())


def test_who_is_one_too_many_is_told_so_at_a_pace() -> None:
    """Refused at once, he asks again at once: a flood of refusals holds up a process as well as one of answers."""

    async def scenario() -> None:
        limits = {"principal_calls_max": 1, "principal_refusals_per_second": 2.0}
        async with served(guard=ByName(), **limits) as (echo, channel):
            data = StringValue(value="wait").SerializeToString()
            first = asyncio.ensure_future(called(channel, "unary_unary", data, subject="users/flood"))
            await asyncio.wait_for(echo.waiting.get(), 30)
            began = asyncio.get_running_loop().time()
            refusals = [refused(channel, "unary_unary", b"", subject="users/flood") for _ in range(5)]
            await asyncio.gather(*refusals)
            assert asyncio.get_running_loop().time() - began >= 0.9
            echo.held.set()
            await first

    asyncio.run(scenario())


class Nobodys(OpenGuard):
    """Knows nobody."""

    async def admit(self, metadata: Mapping[str, str], *, method: str) -> Admission:
        raise errors.Unauthenticated(Reason.TOKEN_MISSING, "who is it?")


def test_a_stranger_is_refused_at_a_pace() -> None:
    async def scenario() -> None:
        async with served(guard=Nobodys(), principal_refusals_per_second=2.0) as (_, channel):
            began = asyncio.get_running_loop().time()
            refusals = await asyncio.gather(*(refused(channel, "unary_unary", b"") for _ in range(5)))
            assert asyncio.get_running_loop().time() - began >= 0.9
            assert {error.reason for error in refusals} == {Reason.TOKEN_MISSING}

    asyncio.run(scenario())


def test_too_many_calls_of_one_service_are_refused_and_take_nobody_elses_place() -> None:
    async def scenario() -> None:
        async with served(concurrent_calls_max=3) as (echo, channel):
            data = StringValue(value="wait").SerializeToString()
            waiting = [asyncio.ensure_future(called(channel, kind, data)) for kind in KINDS[:3]]
            async with asyncio.timeout(30):
                for _ in waiting:
                    await echo.waiting.get()
            error = await refused(channel, "unary_stream", b"")
            assert isinstance(error, errors.ResourceExhausted)
            assert dict(error.metadata) == {"what": "concurrent_calls_max", "limit": "3", "service": NAME}
            assert await called(channel, "unary_unary", b"", f"/{OTHER}/unary_unary") == [b""]
            health = health_pb2_grpc.HealthStub(channel)
            checks = [health.Check(health_pb2.HealthCheckRequest()) for _ in range(8)]
            assert {(await check).status for check in checks} == {health_pb2.HealthCheckResponse.SERVING}
            echo.held.set()
            await asyncio.gather(*waiting)
            assert await called(channel, "unary_unary", b"") == [b""]

    asyncio.run(scenario())


@pytest.fixture
def log_lines() -> Callable[[], list[dict[str, Any]]]:
    stream = io.StringIO()
    logs.configure("example", format="json", stream=stream)

    def lines() -> list[dict[str, Any]]:
        logs.flush()
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    return lines


def test_ids_that_are_none_do_not_reach_the_log(log_lines: Callable[[], list[dict[str, Any]]]) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async def scenario() -> None:
        async with served() as (_, channel):
            for request_id, traceparent in (("mine-1", trace), ("x" * 4_000, "no trace"), ("a b", trace.upper())):
                metadata = (("x-request-id", request_id), ("traceparent", traceparent))
                with pytest.raises(grpc.aio.AioRpcError):
                    await channel.unary_unary(f"/{NAME}/unary_unary")(NO_MESSAGE, metadata=metadata)

    asyncio.run(scenario())
    lines = [line for line in log_lines() if line["event"] == "call_refused"]
    assert [line.get("trace_parent") for line in lines] == [trace, None, None]
    assert lines[0]["request_id"] == "mine-1"
    assert all(len(line["request_id"]) == 32 for line in lines[1:])
