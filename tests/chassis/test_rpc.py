"""Servers and channels, over real connections."""

import asyncio
import contextlib
import io
import json
import os
import signal
import sys

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from services.chassis import errors, rpc
from services.chassis import log as logs
from services.chassis.auth.guard import Admission, OpenGuard
from services.chassis.auth.principal import Principal, current_principal
from services.chassis.config import ServerConfig
from services.chassis.errors import Reason, Violation
from tests.relay import relay_to

NAME = "sihlai.test.Example"
KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream", "written_stream"]
SECONDS = 60


class Example:
    """Five methods, one for each kind of handler, that all do what the request's text says."""

    def __init__(self):
        self.stopping = None
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.fails_left = 0

    async def act(self, text, context):
        self.started.set()
        if text == "refuse":
            raise errors.NotFound(Reason.JOB_NOT_FOUND, "there is no job a", {"name": "a"})
        if text == "invalid":
            raise errors.InvalidArgument(
                [Violation(field="a", description="is wrong"), Violation(field="b", description="too")]
            )
        if text == "later":
            raise errors.ResourceExhausted(Reason.LIMIT_REACHED, "too many", retry_after_seconds=1.5)
        if text == "crash":
            raise ZeroDivisionError("secret detail")
        if text == "abort":
            await context.abort(grpc.StatusCode.DATA_LOSS, "by hand")
        if text == "wait":
            await self.hang()
        if text == "flaky" and self.fails_left:
            self.fails_left -= 1
            raise errors.Unavailable(Reason.BUS_UNAVAILABLE, "not yet")
        if text == "who":
            return current_principal().subject
        if text == "ids":
            return logs.get_contextvars()["request_id"]
        return text

    async def hang(self):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def unary_unary(self, request, context):
        return StringValue(value=await self.act(request.value, context))

    async def unary_stream(self, request, context):
        if request.value == "endless":
            async for item in rpc.until_stopping(self.count(), self.stopping):
                yield item
        yield StringValue(value=await self.act(request.value, context))

    async def count(self):
        yield StringValue(value="1")
        self.started.set()
        await self.hang()

    async def stream_unary(self, requests, context):
        texts = [await self.act(request.value, context) async for request in requests]
        return StringValue(value=",".join(texts))

    async def stream_stream(self, requests, context):
        async for request in requests:
            yield StringValue(value=await self.act(request.value, context))

    async def written_stream(self, request, context):
        await context.write(StringValue(value=await self.act(request.value, context)))

    def add_to(self, server):
        makers = {
            "unary_unary": grpc.unary_unary_rpc_method_handler,
            "unary_stream": grpc.unary_stream_rpc_method_handler,
            "stream_unary": grpc.stream_unary_rpc_method_handler,
            "stream_stream": grpc.stream_stream_rpc_method_handler,
            "written_stream": grpc.unary_stream_rpc_method_handler,
        }
        handlers = {
            name: make(getattr(self, name), StringValue.FromString, StringValue.SerializeToString)
            for name, make in makers.items()
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(NAME, handlers)])
        server.add_registered_method_handlers(NAME, handlers)


@contextlib.asynccontextmanager
async def served(guard=None, **settings):
    example = Example()
    server = rpc.Server(ServerConfig(**({"drain_seconds": 0.2} | settings)), guard or OpenGuard())
    example.stopping = server.stopping
    server.add(NAME, example.add_to)
    address = await server.start()
    channel = rpc.channel(address)
    try:
        yield example, server, channel
    finally:
        if not server.stopping.is_set():
            await server.stop()
        await channel.close()


async def call(channel, kind, text, **options):
    """The answer's text, whatever kind of method it is."""
    make = channel.unary_stream if kind == "written_stream" else getattr(channel, kind)
    method = make(f"/{NAME}/{kind}", StringValue.SerializeToString, StringValue.FromString)
    request = StringValue(value=text)
    if kind.startswith("stream_"):
        request = iter([request])
    if kind in ("unary_unary", "stream_unary"):
        return (await method(request, **options)).value
    return ",".join([item.value async for item in method(request, **options)])


async def failed(channel, kind, text):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call(channel, kind, text), SECONDS)
    return caught.value


def details(error, *messages):
    status = rpc_status.from_call(error)
    for detail, message in zip(status.details, messages, strict=True):
        assert detail.Unpack(message)
    return messages


@pytest.mark.parametrize("kind", KINDS)
def test_calls_of_every_kind_are_answered(kind):
    async def scenario():
        async with served() as (_, _, channel):
            assert await call(channel, kind, "hello") == "hello"

    asyncio.run(scenario())


def test_a_server_that_is_far_away_or_slow_is_reached():
    async def scenario():
        server = rpc.Server(ServerConfig(), OpenGuard())
        server.add(NAME, Example().add_to)
        address = await server.start()
        async with relay_to(int(address.rpartition(":")[2])) as relay:
            relay.delay_answers(1.0)
            async with rpc.channel(f"127.0.0.1:{relay.port}", retry_attempts_max=1) as channel:
                assert await call(channel, "unary_unary", "hello") == "hello"
        await server.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_our_error_becomes_a_status_with_one_error_info(kind):
    async def scenario():
        async with served() as (_, _, channel):
            error = await failed(channel, kind, "refuse")
            assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "there is no job a")
            (info,) = details(error, error_details_pb2.ErrorInfo())
            assert (info.domain, info.reason, dict(info.metadata)) == ("sihlai", "JOB_NOT_FOUND", {"name": "a"})
            again = rpc.error_from_rpc(error)
            assert isinstance(again, errors.NotFound)
            assert (again.reason, again.metadata["name"]) == (Reason.JOB_NOT_FOUND, "a")

    asyncio.run(scenario())


def test_invalid_argument_carries_bad_request_and_a_limit_carries_retry_info():
    async def scenario():
        async with served() as (_, _, channel):
            _, bad = details(
                await failed(channel, "unary_unary", "invalid"),
                error_details_pb2.ErrorInfo(),
                error_details_pb2.BadRequest(),
            )
            assert [(v.field, v.description) for v in bad.field_violations] == [("a", "is wrong"), ("b", "too")]
            error = await failed(channel, "unary_stream", "later")
            _, retry = details(error, error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo())
            assert retry.retry_delay.ToMilliseconds() == 1500
            assert rpc.error_from_rpc(error).retry_after_seconds == 1.5

    asyncio.run(scenario())


@pytest.fixture
def log_lines():
    stream = io.StringIO()
    logs.configure("example", format="json", stream=stream)

    def lines():
        logs.flush()
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    return lines


@pytest.mark.parametrize("kind", KINDS)
def test_crash_becomes_internal_with_an_id_that_finds_the_traceback_in_the_log(kind, log_lines):
    async def scenario():
        async with served() as (_, _, channel):
            return await failed(channel, kind, "crash")

    error = asyncio.run(scenario())
    (info,) = details(error, error_details_pb2.ErrorInfo())
    assert (error.code(), info.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "secret detail" not in error.details() + str(error.trailing_metadata())
    (line,) = [line for line in log_lines() if line["event"] == "call_crashed"]
    assert line["error_id"] == info.metadata["error_id"]
    assert "secret detail" in line["exception"]
    assert line["method"] == f"{NAME}/{kind}"


def test_refused_call_is_logged_once_with_its_ids(log_lines):
    async def scenario():
        async with served() as (_, _, channel):
            with pytest.raises(grpc.aio.AioRpcError):
                await call(channel, "unary_unary", "refuse", metadata=[("x-request-id", "r-7")])

    asyncio.run(scenario())
    (line,) = [line for line in log_lines() if line["event"] == "call_refused"]
    assert (line["request_id"], line["reason"], line["code"]) == ("r-7", "JOB_NOT_FOUND", "NOT_FOUND")


@pytest.mark.parametrize("kind", KINDS)
def test_abort_by_hand_passes(kind):
    async def scenario():
        async with served() as (_, _, channel):
            error = await failed(channel, kind, "abort")
            assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "by hand")

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", KINDS)
def test_call_that_its_caller_cancels_is_cancelled_in_the_server(kind):
    async def scenario():
        async with served() as (example, _, channel):
            task = asyncio.create_task(call(channel, kind, "wait"))
            await asyncio.wait_for(example.started.wait(), SECONDS)
            task.cancel()
            await asyncio.wait_for(example.cancelled.wait(), SECONDS)

    asyncio.run(scenario())


class OnlyAda(OpenGuard):
    async def admit(self, metadata, *, method):
        if metadata.get("authorization") != "ada":
            raise errors.Unauthenticated(Reason.TOKEN_INVALID, f"who calls {method}?")
        return Admission(principal=Principal(subject="users/ada"), method=method)


@pytest.mark.parametrize("kind", KINDS)
def test_guard_decides_before_the_servicer_sees_the_call(kind):
    async def scenario():
        async with served(OnlyAda()) as (example, _, channel):
            error = rpc.error_from_rpc(await failed(channel, kind, "who"))
            assert isinstance(error, errors.Unauthenticated)
            assert not example.started.is_set()
            assert await call(channel, kind, "who", metadata=[("authorization", "ada")]) == "users/ada"
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())

    asyncio.run(scenario())


def test_everybody_is_anonymous_with_an_open_guard():
    async def scenario():
        async with served() as (_, _, channel):
            assert await call(channel, "unary_unary", "who") == "users/anonymous"

    asyncio.run(scenario())


def test_request_id_of_the_context_travels_with_the_call():
    async def scenario():
        async with served() as (_, _, channel):
            with logs.bound_contextvars(request_id="r-9"):
                assert await call(channel, "unary_unary", "ids") == "r-9"
            first, second = [await call(channel, "unary_unary", "ids") for _ in range(2)]
            assert first != second

    asyncio.run(scenario())


def test_a_call_costs_no_more_where_the_server_has_many_methods(monkeypatch):
    waited_for, wait = [], asyncio.wait

    def counted(tasks, **options):
        waited_for.append(len(tasks))
        return wait(tasks, **options)

    async def scenario():
        async with served() as (_, _, channel):
            monkeypatch.setattr(asyncio, "wait", counted)  # gRPC's loop takes calls by it
            for _ in range(3):
                assert await call(channel, "unary_unary", "hello") == "hello"

    asyncio.run(scenario())
    assert waited_for
    assert max(waited_for) < len(KINDS)


def test_health_and_reflection_know_the_service():
    async def scenario():
        async with served() as (_, _, channel):
            health = health_pb2_grpc.HealthStub(channel)
            for name in ("", NAME):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            names = [
                s.name
                async for a in reflection.ServerReflectionInfo(iter([request]))
                for s in a.list_services_response.service
            ]
            assert {NAME, "grpc.health.v1.Health"} <= set(names)

    asyncio.run(scenario())


def test_stop_says_not_serving_and_ends_endless_streams_before_the_drain_is_over():
    async def scenario():
        async with served(drain_seconds=30) as (example, server, channel):
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=NAME))
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            endless = asyncio.create_task(failed(channel, "unary_stream", "endless"))
            await asyncio.wait_for(example.started.wait(), SECONDS)
            await asyncio.wait_for(server.stop(), SECONDS)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            error = rpc.error_from_rpc(await endless)
            assert (type(error), error.reason) == (errors.Unavailable, Reason.SERVER_STOPPING)
            assert example.cancelled.is_set()

    asyncio.run(scenario())


def test_stop_cancels_what_the_drain_did_not_end():
    async def scenario():
        async with served(drain_seconds=0.1) as (example, server, channel):
            waiting = asyncio.create_task(failed(channel, "unary_unary", "wait"))
            await asyncio.wait_for(example.started.wait(), SECONDS)
            await asyncio.wait_for(server.stop(), SECONDS)
            await asyncio.wait_for(example.cancelled.wait(), SECONDS)
            assert (await waiting).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

    asyncio.run(scenario())


def test_address_file_holds_the_bound_address_while_the_server_runs(tmp_path):
    path = tmp_path / "run" / "example.address"

    async def scenario():
        async with served(address_file=path) as (_, server, _):
            assert path.read_text() == server.address + "\n"
            assert int(server.address.rpartition(":")[2]) > 0
        assert list(path.parent.iterdir()) == []

    asyncio.run(scenario())


def test_port_in_use_is_a_configuration_error_that_names_it():
    async def scenario():
        async with served() as (_, server, _):
            second = rpc.Server(ServerConfig(listen_address=server.address), OpenGuard())
            with pytest.raises(errors.ConfigurationError, match=server.address):
                await second.start()

    asyncio.run(scenario())


def test_unary_call_gets_a_deadline_where_it_has_none():
    async def scenario():
        async with (
            served() as (example, server, _),
            rpc.channel(server.address, deadline_seconds=0.2) as channel,
        ):
            async with asyncio.timeout(SECONDS):
                while not example.started.is_set():  # on a busy machine it may be over before the call is there
                    error = rpc.error_from_rpc(await failed(channel, "unary_unary", "wait"))
                    assert isinstance(error, errors.DeadlineExceeded)
                await example.cancelled.wait()

    asyncio.run(scenario())


def test_call_that_meets_unavailable_is_sent_again():
    async def scenario():
        async with served() as (example, server, channel):
            example.fails_left = 2
            assert await call(channel, "unary_unary", "flaky") == "flaky"
            example.fails_left = 1
            async with rpc.channel(server.address, retry_attempts_max=1) as without:
                assert (await failed(without, "unary_unary", "flaky")).code() is grpc.StatusCode.UNAVAILABLE

    asyncio.run(scenario())


def test_channel_to_nobody_gives_unavailable_and_connects_when_somebody_is_there():
    async def scenario():
        async with served() as (_, server, channel):
            address = server.address
            assert await call(channel, "unary_unary", "a") == "a"
            await server.stop()
            error = rpc.error_from_rpc(await failed(channel, "unary_unary", "b"))
            assert (type(error), error.reason) == (errors.Unavailable, Reason.SERVICE_UNAVAILABLE)
            async with served(listen_address=address):
                method = channel.unary_unary(
                    f"/{NAME}/unary_unary", StringValue.SerializeToString, StringValue.FromString
                )
                answer = await method(StringValue(value="c"), wait_for_ready=True, timeout=SECONDS)
                assert answer.value == "c"

    asyncio.run(scenario())


def test_message_over_the_limit_is_refused():
    async def scenario():
        async with served(message_bytes_max=1_000) as (_, _, channel):
            assert await call(channel, "unary_unary", "x" * 900) == "x" * 900
            error = rpc.error_from_rpc(await failed(channel, "unary_unary", "x" * 2_000))
            assert isinstance(error, errors.InvalidArgument)  # no repeat will make it smaller
            assert error.reason is Reason.MESSAGE_TOO_LARGE

    asyncio.run(scenario())


def test_unknown_method_is_unimplemented():
    async def scenario():
        async with served() as (_, _, channel):
            method = channel.unary_unary(f"/{NAME}/Nothing", StringValue.SerializeToString, StringValue.FromString)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(StringValue())
            assert isinstance(rpc.error_from_rpc(caught.value), errors.Unimplemented)

    asyncio.run(scenario())


PROGRAM = """
import asyncio, sys
from pathlib import Path
from services.chassis import log, rpc
from services.chassis.auth.guard import OpenGuard
from services.chassis.config import ServerConfig, load

async def main():
    config = load(ServerConfig, argv=sys.argv[1:], environ={}, prog="example", prefix="EXAMPLE_")
    log.configure("example", format="json")
    await rpc.run_until_signal(rpc.Server(config, OpenGuard()))

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_stops_in_order_at_a_signal(tmp_path, number):
    path = tmp_path / "address"

    async def scenario():
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, "--address-file", str(path)),
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        async with asyncio.timeout(SECONDS):
            events = [json.loads(await process.stderr.readline())["event"]]
            assert path.exists()
            process.send_signal(number)
            rest = (await process.communicate())[1]
        events += [json.loads(line)["event"] for line in rest.splitlines()]
        assert events == ["server_started", "signal_received", "server_stopped"]
        assert process.returncode == 0

    asyncio.run(scenario())


def test_background_task_that_fails_stops_the_server_and_is_told():
    async def scenario():
        server = rpc.Server(ServerConfig(), OpenGuard())

        async def fail():
            raise ValueError("the outbox broke")

        with pytest.raises(ValueError, match="the outbox broke"):
            await asyncio.wait_for(rpc.run_until_signal(server, background=[asyncio.create_task(fail())]), SECONDS)
        assert server.stopping.is_set()

    asyncio.run(scenario())
