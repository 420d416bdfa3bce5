"""Long reads that go on after a break, against a server that breaks them."""

import asyncio
import contextlib
import itertools
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from sihlai.logs.v1 import log_service_pb2 as pb
from sihlai.logs.v1 import log_service_pb2_grpc
from sihlai.logs.v1.log_line_pb2 import LogLine

from services.chassis.auth.guard import OpenGuard
from services.chassis.config import ServerConfig
from services.chassis.endpoints import Endpoints, resolve
from services.chassis.errors import (
    DeadlineExceeded,
    Reason,
    ResourceExhausted,
    SihlaiError,
    Unauthenticated,
    Unavailable,
)
from services.chassis.rpc import Server
from services.cli.machine.folder import DataFolder, held, write_endpoints
from services.client.face import AsyncClient, Client
from services.client.job import tailed

LINES = 30
Followed = tuple[list[pb.TailLogsResponse], int]


class BreakingLogs(log_service_pb2_grpc.LogServiceServicer):
    """A log of LINES lines; each connection breaks after a few of them, in one way or another."""

    def __init__(self) -> None:
        self.connections = 0

    async def TailLogs(  # noqa: N802  # gRPC's name
        self, request: pb.TailLogsRequest, context: object
    ) -> AsyncIterator[pb.TailLogsResponse]:
        self.connections += 1
        first = int(request.cursor or 0)
        for number in range(first + 1, LINES + 1):
            yield pb.TailLogsResponse(cursor=str(number), batch=pb.LogBatch(lines=[LogLine(number=number)]))
            if number % 4 == 0 and self.connections % 2:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broken")  # type: ignore[attr-defined]
            if number % 4 == 0:
                return  # an end without `ended` is no end
        yield pb.TailLogsResponse(ended=pb.LogEnded(logs_complete=True))


class StrainedLogs(log_service_pb2_grpc.LogServiceServicer):
    """A log of LINES lines: each connection sends some of them, none once it is stuck, and then gives up."""

    def __init__(self, code: grpc.StatusCode, *, stuck_after: int = LINES) -> None:
        self.connections = 0
        self._code = code
        self._stuck_after = stuck_after

    async def TailLogs(  # noqa: N802  # gRPC's name
        self, request: pb.TailLogsRequest, context: object
    ) -> AsyncIterator[pb.TailLogsResponse]:
        self.connections += 1
        first = int(request.cursor or 0)
        yield pb.TailLogsResponse(cursor=str(first), heartbeat=pb.LogHeartbeat())
        for number in range(first + 1, min(first + 5, self._stuck_after) + 1):
            yield pb.TailLogsResponse(cursor=str(number), batch=pb.LogBatch(lines=[LogLine(number=number)]))
        if first + 5 < LINES:
            await context.abort(self._code, "too much")  # type: ignore[attr-defined]
        yield pb.TailLogsResponse(ended=pb.LogEnded(logs_complete=True))


class ExpiringLogs(log_service_pb2_grpc.LogServiceServicer):
    """A log of LINES lines, of which each token reads `lines` before it ends."""

    def __init__(self, lines: int) -> None:
        self.tokens: list[str] = []
        self._lines = lines

    async def TailLogs(  # noqa: N802  # gRPC's name
        self, request: pb.TailLogsRequest, context: object
    ) -> AsyncIterator[pb.TailLogsResponse]:
        metadata = dict(context.invocation_metadata())  # type: ignore[attr-defined]
        self.tokens.append(metadata["authorization"])
        first = int(request.cursor or 0)
        for number in range(first + 1, min(first + self._lines, LINES) + 1):
            yield pb.TailLogsResponse(cursor=str(number), batch=pb.LogBatch(lines=[LogLine(number=number)]))
        if first + self._lines < LINES:
            raise Unauthenticated(Reason.TOKEN_EXPIRED, "the token ended")
        yield pb.TailLogsResponse(ended=pb.LogEnded(logs_complete=True))


class RestartedLogs(log_service_pb2_grpc.LogServiceServicer):
    """A log of two lines at an `up` that is killed after the first: it answers again before it is wholly up."""

    def __init__(self, folder: DataFolder) -> None:
        self.address = ""
        self.tokens: list[str] = []
        self._folder = folder

    def written(self) -> None:
        """Write down where it is, as `up` does once everything serves."""
        write_endpoints(self._folder, {"scheduler": self.address, "metrics": self.address})

    async def TailLogs(  # noqa: N802  # gRPC's name
        self, request: pb.TailLogsRequest, context: object
    ) -> AsyncIterator[pb.TailLogsResponse]:
        metadata = dict(context.invocation_metadata())  # type: ignore[attr-defined]
        self.tokens.append(metadata.get("authorization", ""))
        if not self.tokens[-1]:
            raise Unauthenticated(Reason.TOKEN_MISSING, "this call needs a token")
        number = int(request.cursor or 0) + 1
        yield pb.TailLogsResponse(cursor=str(number), batch=pb.LogBatch(lines=[LogLine(number=number)]))
        if number == 1:
            self._folder.endpoints.unlink()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "killed")  # type: ignore[attr-defined]
        yield pb.TailLogsResponse(ended=pb.LogEnded(logs_complete=True))


class QuietLogs(log_service_pb2_grpc.LogServiceServicer):
    """A log that has one line, and then is quiet for as long as it is read."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def TailLogs(  # noqa: N802  # gRPC's name
        self, request: pb.TailLogsRequest, context: object
    ) -> AsyncIterator[pb.TailLogsResponse]:
        try:
            yield pb.TailLogsResponse(cursor="1", batch=pb.LogBatch(lines=[LogLine(number=1)]))
            await asyncio.Event().wait()
        finally:
            self.left.set()


@contextlib.asynccontextmanager
async def served(servicer: log_service_pb2_grpc.LogServiceServicer) -> AsyncIterator[str]:
    server = Server(ServerConfig(drain_seconds=0.1), OpenGuard())
    server.add(
        "sihlai.logs.v1.LogService",
        lambda server: log_service_pb2_grpc.add_LogServiceServicer_to_server(servicer, server),
    )
    try:
        yield await server.start()
    finally:
        await server.stop()


async def followed(
    servicer: log_service_pb2_grpc.LogServiceServicer,
    *,
    blocking: bool,
    token: str | Callable[[], str] = "",
    seconds: float | None = None,
) -> Followed:
    """All answers of a tail, and how often it broke, of either client."""
    breaks: list[SihlaiError | None] = []
    request = pb.TailLogsRequest(job="projects/a/jobs/b", follow=True)
    async with served(servicer) as address:
        endpoints = Endpoints(given={"metrics": address}, said_token=token)
        if blocking:
            with Client(endpoints) as client:
                tail = client.iterate(tailed, request, on_break=breaks.append, seconds=seconds)
                return await asyncio.to_thread(lambda: list(tail)), len(breaks)
        async with AsyncClient(endpoints) as awaiting:
            reading = awaiting.iterate(tailed, request, on_break=breaks.append, seconds=seconds)
            return [answer async for answer in reading], len(breaks)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_tail_goes_on_over_broken_connections_and_loses_and_doubles_nothing(blocking: bool) -> None:
    servicer = BreakingLogs()
    answers, breaks = asyncio.run(followed(servicer, blocking=blocking))
    numbers = [line.number for answer in answers for line in answer.batch.lines]
    assert numbers == list(range(1, LINES + 1))
    assert answers[-1].ended.logs_complete
    assert servicer.connections == breaks + 1 > 5


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize(
    "code", [grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED]
)
def test_a_tail_goes_on_for_as_long_as_it_gets_ahead(code: grpc.StatusCode, blocking: bool) -> None:
    servicer = StrainedLogs(code)
    answers, _ = asyncio.run(followed(servicer, blocking=blocking))
    assert [line.number for answer in answers for line in answer.batch.lines] == list(range(1, LINES + 1))
    assert servicer.connections == LINES // 5


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize(
    ("code", "raised"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ResourceExhausted),
    ],
)
def test_a_tail_that_is_too_much_for_the_service_ends_with_its_error(
    code: grpc.StatusCode, raised: type[SihlaiError], blocking: bool
) -> None:
    servicer = StrainedLogs(code, stuck_after=7)
    with pytest.raises(raised):
        asyncio.run(followed(servicer, blocking=blocking))
    assert servicer.connections == 3, "lines came, then two more, then none"


@pytest.mark.parametrize("blocking", [True, False])
def test_a_tail_goes_on_with_the_token_of_the_moment_when_the_one_before_ends(blocking: bool) -> None:
    servicer, numbers = ExpiringLogs(LINES // 3), itertools.count(1)
    answers, _ = asyncio.run(followed(servicer, blocking=blocking, token=lambda: f"token-{next(numbers)}"))
    assert [line.number for answer in answers for line in answer.batch.lines] == list(range(1, LINES + 1))
    assert servicer.tokens == [f"Bearer token-{number}" for number in (1, 2, 3)]


@pytest.mark.parametrize("seconds", [math.inf, 1e300])
@pytest.mark.parametrize("blocking", [True, False])
def test_a_tail_may_take_for_ever(blocking: bool, seconds: float) -> None:
    """gRPC knows no deadline so far away."""
    answers, _ = asyncio.run(followed(BreakingLogs(), blocking=blocking, seconds=seconds))
    assert answers[-1].ended.logs_complete


@pytest.mark.parametrize("blocking", [True, False])
def test_a_tail_goes_on_while_an_up_that_was_killed_starts_anew(tmp_path: Path, blocking: bool) -> None:
    """Its services answer before their addresses are written down, and would refuse a call without the token."""
    folder, numbers = DataFolder(root=tmp_path), []
    (tmp_path / "token").write_text("local-token")
    servicer = RestartedLogs(folder)
    request = pb.TailLogsRequest(job="projects/a/jobs/b", follow=True)
    breaks = 0

    def on_break(error: SihlaiError | None) -> None:
        nonlocal breaks
        breaks += 1
        if breaks == 3:
            servicer.written()

    async def test() -> None:
        async with served(servicer) as servicer.address:
            servicer.written()
            endpoints = resolve(environ={}, data=tmp_path)
            with Client(endpoints) as client:
                async with AsyncClient(endpoints) as awaiting:
                    if blocking:
                        tail = client.iterate(tailed, request, on_break=on_break)
                        answers = await asyncio.to_thread(lambda: list(tail))
                    else:
                        answers = [each async for each in awaiting.iterate(tailed, request, on_break=on_break)]
            numbers.extend(line.number for answer in answers for line in answer.batch.lines)

    with held(folder):
        asyncio.run(test())
    assert numbers == [1, 2]
    assert servicer.tokens == ["Bearer local-token"] * 2
    assert breaks == 3


def test_a_tail_whose_token_has_ended_for_good_ends_too() -> None:
    servicer = ExpiringLogs(0)
    with pytest.raises(Unauthenticated):
        asyncio.run(followed(servicer, blocking=True, token="old"))
    assert len(servicer.tokens) == 1


def test_a_first_connection_that_fails_is_raised_and_not_tried_for_ever() -> None:
    request = pb.TailLogsRequest(job="projects/a/jobs/b", follow=True)
    with Client(Endpoints(given={"metrics": "127.0.0.1:1"})) as client, pytest.raises(Unavailable):
        list(client.iterate(tailed, request))


@pytest.mark.parametrize("blocking", [True, False])
def test_a_first_connection_to_what_is_known_to_be_there_is_tried_again(blocking: bool) -> None:
    request = pb.TailLogsRequest(job="projects/a/jobs/b", follow=True)

    async def test() -> None:
        given = {"metrics": "127.0.0.1:1"}
        async with served(BreakingLogs()) as address:

            def on_break(_: SihlaiError | None) -> None:
                given["metrics"] = address

            endpoints = Endpoints(given=given)
            with Client(endpoints) as client:
                async with AsyncClient(endpoints) as awaiting:
                    if blocking:
                        tail = client.iterate(tailed, request, on_break=on_break, is_known=True)
                        answers = await asyncio.to_thread(lambda: list(tail))
                    else:
                        reading = awaiting.iterate(tailed, request, on_break=on_break, is_known=True)
                        answers = [answer async for answer in reading]
        assert answers[-1].ended.logs_complete

    asyncio.run(test())


@pytest.mark.parametrize("blocking", [True, False])
def test_who_stops_reading_early_leaves_no_call_behind(blocking: bool) -> None:
    request = pb.TailLogsRequest(job="projects/a/jobs/b", follow=True)

    def first(client: Client) -> pb.TailLogsResponse:
        with contextlib.closing(client.iterate(tailed, request)) as tail:
            return next(tail)

    async def test() -> pb.TailLogsResponse:
        servicer = QuietLogs()
        async with served(servicer) as address:
            endpoints = Endpoints(given={"metrics": address})
            with Client(endpoints) as client:
                async with AsyncClient(endpoints) as awaiting, asyncio.timeout(30):
                    if blocking:
                        answer = await asyncio.to_thread(first, client)
                    else:
                        async with contextlib.aclosing(awaiting.iterate(tailed, request)) as tail:
                            answer = await anext(tail)
                    await servicer.left.wait()
        return answer

    assert asyncio.run(test()).batch.lines[0].number == 1
