"""Valid-looking messages with extreme values, at every call of a real scheduler, on both databases.

Whatever is sent, the server never makes a mistake of its own, and every list still works afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.chassis import rpc
from services.chassis.errors import Reason, SihlaiError
from services.scheduler.wire.names import cursor_from_revision, page_token

SERVICES = [
    "sihlai.scheduler.v1.project_service",
    "sihlai.scheduler.v1.job_service",
    "sihlai.scheduler.v1.checkpoint_service",
    "sihlai.scheduler.v1.conversion_report_service",
    "sihlai.runner.v1.runner_service",
    "sihlai.runner.v1.runner_admin_service",
]
DEPTH_MAX = 5
EXAMPLES = int(os.environ.get("SIHLAI_TEST_EXTREMES", "100"))
ANSWER_SECONDS = 60.0
OUR_MISTAKES = frozenset({Reason.INTERNAL, Reason.DATABASE_UNAVAILABLE, Reason.SERVICE_UNAVAILABLE})
"""What an error of gRPC's own becomes, too."""


def methods() -> Iterator[MethodDescriptor]:
    for name in SERVICES:
        for service in importlib.import_module(f"{name}_pb2").DESCRIPTOR.services_by_name.values():
            yield from service.methods


METHODS = list(methods())
NUMBERS = [0, 1, -1, 2, 7, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 10**18, 2**62, 2**63 - 1, -(2**63)]
JOB = "projects/digits/jobs/first"
TEXTS = [
    "",
    "digits",
    "projects/digits",
    "projects/-",
    JOB,
    "projects/digits/jobs/second",
    f"{JOB}/checkpoints/1-60",
    f"{JOB}/checkpoints/last",
    f"{JOB}/checkpoints/{'9' * 19}-1",
    f"{JOB}/checkpoints/{'9' * 5_000}-{'1' * 5_000}",
    f"{JOB}/checkpoints/٣-٤",
    f"{JOB}/conversionReports/1-training-digits",
    f"{JOB}/conversionReports/{'9' * 30}-training-digits",
    "runners/one",
    "one",
    "first-session",
    "display_name",
    "training_dataset",
    "validation_dataset.credentials",
    "file:///nowhere",
    "s3://bucket/digits",
    "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    "{" * 40 + "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    "a\0b",
    "\x1b[31m",
    "\u202e",
    "x" * 70_000,
    "ü" * 300,
    cursor_from_revision(1),
    cursor_from_revision(2**63 - 1),
    cursor_from_revision(10**40),
    "W1tbW1tbW1tbW1tb" * 4_000,  # [[[[[[[…, as JSON in base64
    page_token("digits", "projects"),
    page_token("9" * 18, "projects/- "),
    page_token("999999999999999999", "projects/digits "),
    page_token(f"{'9' * 18}-{'9' * 18}", JOB),
]


def values(field: FieldDescriptor, depth: int, uid: str) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return message_of(field.message_type, depth - 1, uid)
    if field.enum_type is not None:
        return st.sampled_from([*(value.number for value in field.enum_type.values), -1, 99, 2**31 - 1])
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=20)
        case FieldDescriptor.CPPTYPE_STRING:
            return st.one_of(st.sampled_from([*TEXTS, uid]), st.text(max_size=8))
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return st.one_of(st.sampled_from([0.0, 1.0, -1.0, 1e308]), st.floats())
        case FieldDescriptor.CPPTYPE_INT32:
            return st.sampled_from([number for number in NUMBERS if -(2**31) <= number < 2**31])
    return st.one_of(st.sampled_from(NUMBERS), st.integers(-(2**63), 2**63 - 1))


@st.composite
def message_of(draw: st.DrawFn, descriptor: Descriptor, depth: int, uid: str) -> Message:
    """A message with some of its fields set; below `depth` it is empty."""
    message = GetMessageClass(descriptor)()
    fields = list(descriptor.fields) if depth > 0 else []
    chosen = draw(st.lists(st.sampled_from(fields), unique_by=lambda field: field.name)) if fields else []
    for field in chosen:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = field.message_type.fields
            entries = draw(st.dictionaries(values(key, 1, uid), values(value, depth - 1, uid), max_size=3))
            if value.message_type is None:
                getattr(message, field.name).update(entries)
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(values(field, depth, uid), max_size=3)))
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(draw(values(field, depth, uid)))
        else:
            setattr(message, field.name, draw(values(field, depth, uid)))
    return message


def looks_valid(method: MethodDescriptor, request: Any, *, steady: bool) -> None:
    """Fill in what every such call must have, so that what follows is reached, too."""
    fields = request.DESCRIPTOR.fields_by_name
    if not steady:
        return
    if "parent" in fields:
        request.parent = "projects/digits" if method.name in ("SubmitJob", "ListJobs", "WatchJobs") else JOB
    if "name" in fields and "Runner" in method.name:
        request.name = "runners/one"
    elif "name" in fields and method.name in ("GetJob", "StopJob", "ResumeJob", "DeleteJob"):
        request.name = JOB
    if method.name == "SubmitJob" and not request.spec.model.heads:
        request.spec.model.heads.add(task=1)
    if method.name == "Synchronize":
        request.protocol_version, request.runner = 1, "runners/one"
        request.session = request.session or "first-session"
        if request.WhichOneof("state") is None:
            request.idle.SetInParent()


async def sent(channel: grpc.aio.Channel, method: MethodDescriptor, request: Message) -> SihlaiError | None:
    """Send it; the error that comes back, if there is one."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    answers = GetMessageClass(method.output_type).FromString
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            if not method.server_streaming:
                await channel.unary_unary(path, type(request).SerializeToString, answers)(request)
                return None
            stream = channel.unary_stream(path, type(request).SerializeToString, answers)(request)
            async for answer in stream:
                if answer.DESCRIPTOR.name == "WatchJobsResponse" and answer.WhichOneof("message") == "caught_up":
                    stream.cancel()
                    break
    except grpc.aio.AioRpcError as error:
        return rpc.error_from_rpc(error)
    return None


async def lists_work(channel: grpc.aio.Channel) -> None:
    parents = {"ListJobs": ["projects/-", "projects/digits"], "WatchJobs": ["projects/-"]}
    for method in METHODS:
        if not method.name.startswith(("List", "Watch")):
            continue
        for parent in parents.get(method.name, [JOB]):
            request = GetMessageClass(method.input_type)()
            if "parent" in request.DESCRIPTOR.fields_by_name:
                request.parent = parent
            path = f"/{method.containing_service.full_name}/{method.name}"
            answers = GetMessageClass(method.output_type).FromString
            if not method.server_streaming:
                await channel.unary_unary(path, type(request).SerializeToString, answers)(request)
                continue
            stream = channel.unary_stream(path, type(request).SerializeToString, answers)(request)
            async for answer in stream:
                if answer.WhichOneof("message") == "caught_up":
                    stream.cancel()
                    break


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_no_message_is_more_than_the_scheduler_can_bear(serve, simulated_runner, database_url) -> None:
    async def scenario() -> None:
        async with serve(database_url=database_url, synchronize_seconds_max=0.1, watch_progress_seconds=0.1) as client:
            await client.create_project()
            job = await client.submit(job_id="first")
            runner = simulated_runner(client, "one", "first-session")
            await runner.idle()
            await runner.work(checkpoints=[runner.checkpoint(60)])
            loop = asyncio.get_running_loop()

            async def again() -> None:
                """What was deleted is there again, so that the next calls have something to find."""
                for made in (client.create_project(), client.submit(job_id="first")):
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        await made

            await loop.run_in_executor(None, attack, client.channel, loop, job.uid, again)

    asyncio.run(scenario())


def attack(
    channel: grpc.aio.Channel, loop: asyncio.AbstractEventLoop, uid: str, again: Callable[[], Awaitable[None]]
) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(st.data())
    def send(data: st.DataObject) -> None:
        method = data.draw(st.sampled_from(METHODS))
        request = data.draw(message_of(method.input_type, DEPTH_MAX, uid))
        looks_valid(method, request, steady=data.draw(st.booleans()))

        async def send_and_list() -> None:
            error = await sent(channel, method, request)
            assert error is None or error.reason not in OUR_MISTAKES, f"{method.name}: {error}"
            if error is None and method.name.startswith("Delete"):
                await again()
            await lists_work(channel)

        asyncio.run_coroutine_threadsafe(send_and_list(), loop).result()

    send()
