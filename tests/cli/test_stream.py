"""Long reads that go on after a break, against a server that breaks them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from sihlai.logs.v1 import log_service_pb2 as pb
from sihlai.logs.v1 import log_service_pb2_grpc
from sihlai.logs.v1.log_line_pb2 import LogLine

from services.chassis.config import ServerConfig
from services.chassis.errors import SihlaiError
from services.chassis.rpc import Server, error_from_rpc
from services.cli.endpoints import Endpoints, Services
from services.cli.folder import DataFolder
from services.cli.stream import tail_logs

LINES = 30


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


async def served(servicer: log_service_pb2_grpc.LogServiceServicer) -> tuple[Server, Services]:
    server = Server(ServerConfig(drain_seconds=0.1))
    server.add(
        "sihlai.logs.v1.LogService",
        lambda server: log_service_pb2_grpc.add_LogServiceServicer_to_server(servicer, server),
    )
    address = await server.start()
    return server, Services(Endpoints(addresses={"metrics": address}, folder=DataFolder(root=Path())))


def test_a_tail_goes_on_over_broken_connections_and_loses_and_doubles_nothing() -> None:
    async def tail() -> None:
        servicer = BreakingLogs()
        server, services = await served(servicer)
        breaks: list[SihlaiError | None] = []
        async with services:
            request = pb.TailLogsRequest(job="projects/a/jobs/b", follow=True)
            answers = [answer async for answer in tail_logs(services, request, on_break=breaks.append)]
        await server.stop()
        numbers = [line.number for answer in answers for line in answer.batch.lines]
        assert numbers == list(range(1, LINES + 1))
        assert answers[-1].ended.logs_complete
        assert servicer.connections == len(breaks) + 1 > 5

    asyncio.run(tail())


def test_a_first_connection_that_fails_is_raised_and_not_tried_for_ever() -> None:
    async def tail() -> None:
        endpoints = Endpoints(addresses={"metrics": "127.0.0.1:1"}, folder=DataFolder(root=Path()))
        async with Services(endpoints) as services:
            request = pb.TailLogsRequest(job="projects/a/jobs/b", follow=True)
            async for _ in tail_logs(services, request, on_break=lambda error: None):
                pass

    with pytest.raises(grpc.RpcError) as caught:
        asyncio.run(tail())
    assert "UNAVAILABLE" in str(error_from_rpc(caught.value)) or caught.value.code() is grpc.StatusCode.UNAVAILABLE
