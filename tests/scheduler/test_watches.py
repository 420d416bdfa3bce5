"""WatchJobs of the real server: what a watch is told, what it costs, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading

import grpc
from sihlai.scheduler.v1 import job_pb2, job_service_pb2, project_service_pb2
from sqlalchemy import event

from services.chassis.errors import Reason
from tests.scheduler.refusal import refused

QUEUED, STOPPED = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_STOPPED


async def take(stream, wanted: str, seconds: float = 60.0):
    """Messages of a watch up to the first of this kind."""
    messages = []
    async with asyncio.timeout(seconds):
        while True:
            messages.append(await stream.read())
            if messages[-1].WhichOneof("message") == wanted:
                return messages


def test_watch_gives_a_snapshot_then_each_change_and_goes_on_from_any_cursor(serve):
    async def test():
        async with serve(watch_page_max=2, watch_progress_seconds=0.3) as client:
            await client.create_project()
            jobs = [await client.submit(job_id=f"job-{number}") for number in range(5)]
            request = job_service_pb2.WatchJobsRequest(parent="projects/digits")
            stream = client.jobs.WatchJobs(request)
            messages = await take(stream, "caught_up")
            assert [message.job.uid for message in messages[:-1]] == [job.uid for job in jobs]

            await client.jobs.StopJob(job_service_pb2.StopJobRequest(name=jobs[1].name))
            [change] = await take(stream, "job")
            assert (change.job.uid, change.job.state) == (jobs[1].uid, STOPPED)
            [progress] = await take(stream, "progress")
            stream.cancel()

            await client.submit(job_id="later")
            request.cursor = progress.cursor
            resumed = client.jobs.WatchJobs(request)
            assert (await take(resumed, "caught_up"))[0].job.name.endswith("later")
            resumed.cancel()
            request.cursor = messages[2].cursor  # in the middle of the snapshot
            resumed = client.jobs.WatchJobs(request)
            names = [m.job.name.rpartition("/")[2] for m in (await take(resumed, "caught_up"))[:-1]]
            assert names == ["job-3", "job-4", "job-1", "later"]
            resumed.cancel()
            request.cursor = "made-up"
            assert (await refused(client.jobs.WatchJobs(request).read())).reason is Reason.INVALID_CURSOR

    asyncio.run(test())


def test_watch_tells_how_far_a_job_is_without_a_revision(serve, simulated_runner):
    async def test():
        async with serve(watch_progress_seconds=60.0) as client:
            await client.create_project()
            job = await client.submit()
            runner = simulated_runner(client)
            await runner.idle()
            await runner.work(progress={"iteration": 1, "iterations_max": 10})
            before = await client.get(job.name)
            requests = [
                job_service_pb2.WatchJobsRequest(parent="projects/digits"),
                job_service_pb2.WatchJobsRequest(parent="projects/-", filter={"states": [QUEUED]}),
            ]
            mine, others = [client.jobs.WatchJobs(request) for request in requests]
            for stream in (mine, others):
                caught_up = (await take(stream, "caught_up"))[-1]
            for iteration in (2, 3):
                await runner.work(progress={"iteration": iteration, "iterations_max": 10})
                [further] = await take(mine, "job")
                assert (further.job.uid, further.job.progress.iteration) == (job.uid, iteration)
                assert (further.job.revision, further.job.etag) == (before.revision, before.etag)
                assert further.cursor == caught_up.cursor
            await client.jobs.StopJob(job_service_pb2.StopJobRequest(name=job.name))
            [stopping] = await take(mine, "job")
            assert (stopping.job.state, stopping.job.progress.iteration) == (job_pb2.JOB_STATE_STOPPING, 3)
            requests[0].cursor = further.cursor
            resumed = client.jobs.WatchJobs(requests[0])
            assert [each.job.revision for each in await take(resumed, "caught_up")] == [stopping.job.revision, 0]
            [left] = await take(others, "removed")  # and nothing before it
            assert left.removed.uid == job.uid
            for stream in (mine, others, resumed):
                stream.cancel()

    asyncio.run(test())


def test_watch_sends_what_leaves_its_filter_or_is_deleted_as_removed(serve):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit()
            queued = job_service_pb2.WatchJobsRequest(parent="projects/-", filter={"states": [QUEUED]})
            everything = job_service_pb2.WatchJobsRequest(parent="projects/digits")
            watches = [client.jobs.WatchJobs(request) for request in (queued, everything)]
            for stream in watches:
                await take(stream, "caught_up")
            await client.jobs.StopJob(job_service_pb2.StopJobRequest(name=job.name))
            [left] = await take(watches[0], "removed")
            assert left.removed.uid == job.uid
            await client.projects.DeleteProject(project_service_pb2.DeleteProjectRequest(name="projects/digits"))
            deleted = (await take(watches[1], "removed"))[-1]
            assert (deleted.removed.uid, deleted.removed.name) == (job.uid, job.name)
            for stream in watches:
                stream.cancel()

    asyncio.run(test())


@contextlib.contextmanager
def held_up(client, *, read: int):
    """The read of jobs with this number, for lists and watches, waits until the block has ended: (whether it waits)."""
    reads, waits, goes_on = itertools.count(1), threading.Event(), threading.Event()

    def hold(_connection, _cursor, statement, *_rest) -> None:
        if "jobs.spec" in statement and next(reads) == read:
            waits.set()
            assert goes_on.wait(60)

    event.listen(client.scheduler.database._listing, "before_cursor_execute", hold)
    try:
        yield waits
    finally:
        goes_on.set()


def test_what_leaves_the_filter_while_the_snapshot_is_read_is_sent_as_removed(serve):
    async def test():
        async with serve(watch_page_max=2) as client:
            await client.create_project()
            jobs = [await client.submit(job_id=f"job-{number}") for number in range(6)]

            async def stop(job) -> None:
                await client.jobs.StopJob(job_service_pb2.StopJobRequest(name=job.name))

            for job in jobs[3:5]:
                await stop(job)
            await client.jobs.DeleteJob(job_service_pb2.DeleteJobRequest(name=jobs[4].name))
            request = job_service_pb2.WatchJobsRequest(parent="projects/digits", filter={"states": [QUEUED]})
            with held_up(client, read=2) as waits:
                stream = client.jobs.WatchJobs(request)
                sent = [(await stream.read()).job.uid for _ in range(2)]
                assert sent == [job.uid for job in jobs[:2]]
                await client.when(lambda: asyncio.sleep(0, waits.is_set()))
                await stop(jobs[0])
                await stop(jobs[1])
                await client.jobs.DeleteJob(job_service_pb2.DeleteJobRequest(name=jobs[1].name))
            rest = (await take(stream, "caught_up"))[:-1]
            stream.cancel()
            assert [each.job.uid for each in rest if each.HasField("job")] == [jobs[2].uid, jobs[5].uid]
            removed = [each.removed.uid for each in rest if each.HasField("removed")]
            assert removed == [jobs[0].uid, jobs[1].uid], "and nothing that had left before"

    asyncio.run(test())


def test_watch_of_some_jobs_from_now_on_tells_of_their_changes_alone(serve):
    async def test():
        async with serve() as client:
            await client.create_project()
            mine, other = [await client.submit(job_id=f"job-{number}") for number in range(2)]
            request = job_service_pb2.WatchJobsRequest(
                parent="projects/-", filter={"uids": [mine.uid]}, changes_only=True
            )
            stream = client.jobs.WatchJobs(request)
            assert len(await take(stream, "caught_up")) == 1
            for job in (other, mine):
                await client.jobs.StopJob(job_service_pb2.StopJobRequest(name=job.name))
            [change] = await take(stream, "job")
            assert change.job.uid == mine.uid
            await client.projects.DeleteProject(project_service_pb2.DeleteProjectRequest(name="projects/digits"))
            assert (await take(stream, "removed"))[-1].removed.uid == mine.uid
            stream.cancel()

    asyncio.run(test())


def reads_of_jobs(client) -> list[str]:
    """The statements that read jobs for lists and watches, from now on."""
    statements = []

    def note(_connection, _cursor, statement, *_rest) -> None:
        if "jobs.spec" in statement:
            statements.append(statement)

    event.listen(client.scheduler.database._listing, "before_cursor_execute", note)
    return statements


def test_snapshot_of_a_filter_reads_the_jobs_that_it_means_alone(serve):
    async def test():
        async with serve(watch_page_max=2) as client:
            await client.create_project()
            for number in range(7):
                job = await client.submit(job_id=f"old-{number}")
                await client.jobs.StopJob(job_service_pb2.StopJobRequest(name=job.name))
            await client.submit(job_id="queued")
            reads = reads_of_jobs(client)
            request = job_service_pb2.WatchJobsRequest(parent="projects/-", filter={"states": [QUEUED]})
            stream = client.jobs.WatchJobs(request)
            [queued, _] = await take(stream, "caught_up")
            assert queued.job.name.endswith("queued")
            assert len(reads) <= 2
            stream.cancel()

    asyncio.run(test())


def test_commit_is_read_once_however_many_watch(serve):
    async def test():
        async with serve() as client:
            await client.create_project()
            request = job_service_pb2.WatchJobsRequest(parent="projects/-")
            streams = [client.jobs.WatchJobs(request) for _ in range(30)]
            for stream in streams:
                await take(stream, "caught_up")
            reads = reads_of_jobs(client)
            await client.submit(job_id="first")
            for stream in streams:
                [change] = await take(stream, "job")
                assert change.job.name.endswith("first")
                stream.cancel()
            assert len(reads) <= 3

    asyncio.run(test())


def test_watches_have_a_limit_of_their_own_and_who_goes_makes_room(serve):
    async def test():
        async with serve(watches_max=2) as client:
            await client.create_project()
            request = job_service_pb2.WatchJobsRequest(parent="projects/-")
            streams = [client.jobs.WatchJobs(request) for _ in range(2)]
            for stream in streams:
                await take(stream, "caught_up")
            error = await refused(client.jobs.WatchJobs(request).read())
            assert (error.reason, error.metadata["what"]) == (Reason.LIMIT_REACHED, "watches_max")
            streams[0].cancel()

            async def is_served() -> bool:
                try:
                    return (await client.jobs.WatchJobs(request).read()).HasField("caught_up")
                except grpc.aio.AioRpcError:
                    return False

            await client.when(is_served)
            streams[1].cancel()

    asyncio.run(test())


def test_watch_ends_when_the_server_stops(serve):
    async def test():
        async with serve(drain_seconds=60.0) as client:
            await client.create_project()
            stream = client.jobs.WatchJobs(job_service_pb2.WatchJobsRequest(parent="projects/-"))
            await take(stream, "caught_up")
            async with asyncio.timeout(30.0):
                stopping = asyncio.ensure_future(client.scheduler.server.stop())
                error = await refused(stream.read())
                await stopping
            assert error.reason is Reason.SERVER_STOPPING

    asyncio.run(test())
