"""What is too old is refused in so many words: a watch's cursor, a runner's spool."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from sihlai.scheduler.v1 import job_service_pb2, project_service_pb2
from sqlalchemy import text

from services.chassis import rpc
from services.chassis.errors import OutOfRange, Reason
from services.scheduler.domain.lease import key_of

HOUR_US = 3_600_000_000


async def caught_up(client, **fields) -> tuple[list[job_service_pb2.WatchJobsResponse], str]:
    """The messages of a watch until it has caught up, and its cursor then."""
    stream = client.jobs.WatchJobs(job_service_pb2.WatchJobsRequest(parent="projects/-", **fields))
    messages = []
    async with asyncio.timeout(30):
        while not messages or messages[-1].WhichOneof("message") != "caught_up":
            messages.append(await stream.read())
            assert messages[-1] is not grpc.aio.EOF
    stream.cancel()
    return messages, messages[-1].cursor


def test_a_watch_that_was_away_for_longer_than_deletions_are_kept_is_told_where_to_go_on(serve):
    async def test():
        async with serve(removed_job_hours=1.0) as client:
            await client.create_project()
            job = await client.submit()
            _, before = await caught_up(client)
            await client.jobs.StopJob(job_service_pb2.StopJobRequest(name=job.name))
            await client.projects.DeleteProject(project_service_pb2.DeleteProjectRequest(name="projects/digits"))

            async def is_deleted() -> bool:
                count = text("SELECT count(*) FROM removed_jobs")
                return await client.scheduler.database.read(lambda c: c.execute(count).scalar_one()) == 1

            await client.when(is_deleted)
            messages, _ = await caught_up(client, cursor=before)
            assert [message.removed.uid for message in messages if message.HasField("removed")] == [job.uid]

            age = text("UPDATE removed_jobs SET create_time_us = create_time_us - :age")
            await client.scheduler.database.write(lambda tx: tx.connection.execute(age, {"age": 2 * HOUR_US}))
            await client.scheduler.upkeep.forget()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await caught_up(client, cursor=before)
            assert refused.value.code() is grpc.StatusCode.OUT_OF_RANGE
            error = rpc.error_from_rpc(refused.value)
            assert (type(error), error.reason) == (OutOfRange, Reason.CURSOR_TOO_OLD)
            assert (await caught_up(client, cursor=error.metadata["oldest"]))[0]
            assert (await caught_up(client))[0]

    asyncio.run(test())


def test_a_spool_that_comes_later_than_lines_are_taken_is_dropped_and_gets_no_token(serve, simulated_runner):
    async def test():
        async with serve(log_drain_hours_max=1.0) as client:
            await client.create_project()
            await client.submit()
            runner = simulated_runner(client)
            await runner.idle()
            key = runner.key()
            answer = await runner.close("ATTEMPT_OUTCOME_COMPLETED", spools=[key])
            assert (len(answer.write_tokens), len(answer.dropped_spools)) == (1, 0)
            for hours, wanted in ((0.5, (1, 0)), (2, (0, 1))):
                age = text("UPDATE attempts SET end_time_us = end_time_us - :age")
                parameters = {"age": round(hours * HOUR_US)}
                await client.scheduler.database.write(lambda tx, p=parameters, q=age: tx.connection.execute(q, p))
                answer = await runner.idle(spools=[key], wait=0.0)
                assert (len(answer.write_tokens), len(answer.dropped_spools)) == wanted

    asyncio.run(test())


def test_how_long_ago_an_attempt_ended_is_told_by_the_clock_of_the_database(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        await stores.submit("digits")
        standing = await stores.report("one")
        await stores.end("one", standing, "COMPLETED")
        key = key_of(standing.attempt)
        stores.clock.pass_seconds(3_599)
        assert list(await stores.runners.attempts([key], ended_hours_max=1.0)) == [key]
        stores.clock.pass_seconds(2)
        assert await stores.runners.attempts([key], ended_hours_max=1.0) == {}

    with_stores(test)
