"""WatchJobs of the real server: what a watch is told, what it costs, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import threading
import tracemalloc
from collections.abc import AsyncIterator

import grpc
import pytest
from sihlai.scheduler.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc, project_service_pb2
from sqlalchemy import event

from services.chassis.errors import Reason, SihlaiError
from services.scheduler.servicer.watch_room import PAGE_BYTES_MIN
from services.scheduler.store.jobs import Removal
from tests import tokens
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


async def next_job(stream) -> job_service_pb2.WatchJobsResponse:
    """The next job that a watch tells; nothing comes before it but how far the watch is, now and then."""
    *before, change = await take(stream, "job")
    assert {each.WhichOneof("message") for each in before} <= {"progress"}
    return change


@pytest.mark.parametrize("page", [{"watch_page_max": 2}, {"watch_page_bytes_max": 1}], ids=["jobs", "bytes"])
def test_watch_gives_a_snapshot_then_each_change_and_goes_on_from_any_cursor(serve, page):
    async def test():
        async with serve(**page, watch_progress_seconds=0.3) as client:
            await client.create_project()
            jobs = [await client.submit(job_id=f"job-{number}") for number in range(5)]
            request = job_service_pb2.WatchJobsRequest(parent="projects/digits")
            stream = client.jobs.WatchJobs(request)
            messages = await take(stream, "caught_up")
            assert [message.job.uid for message in messages[:-1]] == [job.uid for job in jobs]

            await client.jobs.StopJob(job_service_pb2.StopJobRequest(name=jobs[1].name))
            change = await next_job(stream)
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


@pytest.mark.parametrize("window", [{}, {"watch_window_bytes_max": 1}], ids=["kept", "too large to be kept"])
def test_watch_tells_how_far_a_job_is_without_a_revision(serve, simulated_runner, window):
    async def test():
        async with serve(**window, watch_progress_seconds=60.0) as client:
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


def test_snapshot_of_a_filter_in_many_pages_reads_the_jobs_that_it_means_alone(serve):
    async def test():
        async with serve(watch_page_max=2) as client:
            await client.create_project()
            for number in range(20):
                job = await client.submit(job_id=f"old-{number}")
                if number % 4:
                    await client.jobs.StopJob(job_service_pb2.StopJobRequest(name=job.name))
            reads = reads_of_jobs(client)
            request = job_service_pb2.WatchJobsRequest(parent="projects/-", filter={"states": [QUEUED]})
            stream = client.jobs.WatchJobs(request)
            names = [each.job.name.rpartition("/")[2] for each in await take(stream, "caught_up")]
            stream.cancel()
            assert names == [*(f"old-{number}" for number in range(0, 20, 4)), ""]
            assert len(reads) <= 5, "three pages, one that finds the end, and the first of the window"

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


WEIGHTS = {f"category {number} {'x' * 25}": 1.5 for number in range(1_200)}
LARGE_HEAD = {"task": "TASK_MULTICLASS_CLASSIFICATION", "multiclass_classification": {"category_weights": WEIGHTS}}
LARGE = {"model": {"backbone": {"name": "tiny"}, "heads": [LARGE_HEAD]}}
"""A specification of 62 kB."""
ALL_JOBS = job_service_pb2.WatchJobsRequest(parent="projects/-")


async def submit_large(client, number: int) -> list[str]:
    """The names of so many jobs with large specifications, in their order."""
    await client.create_project()
    return [(await client.submit(spec=LARGE)).name for _ in range(number)]


@contextlib.asynccontextmanager
async def slow_client(client) -> AsyncIterator[job_service_pb2_grpc.JobServiceStub]:
    """A client whose connection takes no more than 64 KiB that it does not read."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 2**16)]
    access = tokens.token(client.folder / "token.pem")
    async with grpc.aio.insecure_channel(client.address, options=options) as channel:
        yield job_service_pb2_grpc.JobServiceStub(tokens.aio_carrying(channel, access))


async def read_to_the_end(stream) -> tuple[list[job_service_pb2.WatchJobsResponse], SihlaiError]:
    """What is sent, and with which error it ends."""
    found = []

    async def read() -> None:
        while True:
            found.append(await stream.read())

    return found, await refused(read())


@pytest.mark.parametrize(
    ("limits", "bytes_max"),
    [
        ({"watch_page_bytes_max": 2**18}, 10 * 2**18),
        ({"watches_bytes_max": 2**20}, 2**20 + 10 * PAGE_BYTES_MIN),
    ],
    ids=["of each", "of all"],
)
def test_watches_that_nobody_reads_hold_no_more_bytes_than_they_may(serve, limits, bytes_max):
    async def test():
        async with serve(**limits) as client, slow_client(client) as jobs:
            await submit_large(client, 40)
            tracemalloc.start()
            streams = [jobs.WatchJobs(ALL_JOBS) for _ in range(10)]
            for stream in streams:
                assert (await stream.read()).HasField("job")
            held = -1

            async def is_still() -> bool:
                nonlocal held
                before, held = held, client.scheduler.watch.held_bytes
                await asyncio.sleep(0.2)
                return 0 < held == before

            await client.when(is_still)
            gc.collect()
            allocated, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            on_its_way = 2 * 2**16
            assert held <= bytes_max
            assert allocated < bytes_max + 10 * on_its_way + 2**20
            for stream in streams:
                stream.cancel()
            await client.when(lambda: holds(client, nothing=True))

    asyncio.run(test())


async def holds(client, *, nothing: bool) -> bool:
    """Whether watches hold nothing for their clients, or something."""
    return (client.scheduler.watch.held_bytes == 0) is nothing


def test_watch_that_nobody_reads_is_ended_with_the_reason_and_goes_on_from_its_cursor(serve):
    async def test():
        async with serve(watch_unread_seconds=0.5, watches_max=1) as client, slow_client(client) as jobs:
            names = await submit_large(client, 20)
            stream = jobs.WatchJobs(ALL_JOBS)
            assert (await stream.read()).job.name == names[0]
            await client.when(lambda: holds(client, nothing=False))
            await client.when(lambda: holds(client, nothing=True))
            error = await refused(client.jobs.WatchJobs(ALL_JOBS).read())
            assert error.metadata["what"] == "watches_max", "gRPC holds a message of it until the client is gone"
            found, error = await read_to_the_end(stream)
            assert (error.reason, error.metadata) == (
                Reason.LIMIT_REACHED,
                {"what": "watch_unread_seconds", "limit": "0.5"},
            )
            assert 0 < len(found) < len(names) - 1
            assert "cursor" in str(error)

            rest = client.jobs.WatchJobs(job_service_pb2.WatchJobsRequest(parent="projects/-", cursor=found[-1].cursor))
            found += (await take(rest, "caught_up"))[:-1]
            assert [each.job.name for each in found] == names[1:]
            rest.cancel()

    asyncio.run(test())


def test_ended_watch_whose_client_goes_away_makes_room(serve):
    async def test():
        async with serve(watch_unread_seconds=0.5, watches_max=1) as client, slow_client(client) as jobs:
            await submit_large(client, 20)
            stream = jobs.WatchJobs(ALL_JOBS)
            await stream.read()
            await client.when(lambda: holds(client, nothing=False))
            await client.when(lambda: holds(client, nothing=True))
            stream.cancel()

            async def is_served() -> bool:
                try:
                    return (await client.jobs.WatchJobs(ALL_JOBS).read()).HasField("job")
                except grpc.aio.AioRpcError:
                    return False

            await client.when(is_served)

    asyncio.run(test())


def test_client_that_reads_slowly_gets_everything_in_order(serve):
    async def test():
        async with (
            serve(watch_unread_seconds=2.0, watch_page_bytes_max=2**18) as client,
            slow_client(client) as jobs,
        ):
            names = await submit_large(client, 60)
            loop = asyncio.get_running_loop()
            began, found = loop.time(), []
            stream = jobs.WatchJobs(ALL_JOBS)
            while not (message := await stream.read()).HasField("caught_up"):
                found.append(message.job.name)
                await asyncio.sleep(0.05)  # a slow line
            assert found == names
            assert loop.time() - began > 3.0, "longer than nothing may be read"
            stream.cancel()

    asyncio.run(test())


def test_changes_too_large_for_memory_are_read_from_the_database(serve):
    async def test():
        async with serve(watch_window_bytes_max=2**18, watch_page_bytes_max=2**17) as client:
            names = await submit_large(client, 12)
            stream = client.jobs.WatchJobs(job_service_pb2.WatchJobsRequest(parent="projects/-", changes_only=True))
            await take(stream, "caught_up")
            with held_up(client, read=1) as waits:
                for name in names:
                    await client.jobs.StopJob(job_service_pb2.StopJobRequest(name=name))
                await client.when(lambda: asyncio.sleep(0, waits.is_set()))
            found = [await stream.read() for _ in names]
            assert [(each.job.name, each.job.state) for each in found] == [(name, STOPPED) for name in names]
            stream.cancel()

    asyncio.run(test())


def test_pages_by_bytes_leave_nothing_out_and_put_removals_where_they_belong(with_stores):
    async def test(stores):
        await stores.create_project("digits")
        await stores.create_project("other")
        gone = [await stores.submit("other") for _ in range(3)]
        start = await stores.jobs.revision()
        uids = [await stores.submit("digits") for _ in range(3)]
        for uid in gone:
            await stores.stop(uid)
        await stores.delete_project("other")
        uids += [await stores.submit("digits") for _ in range(30)]

        async def changes(bytes_max: int) -> list[str | Removal]:
            found, after, complete = [], start, False
            while not complete:
                page = await stores.jobs.changes(project_uid=None, after=after, limit=500, bytes_max=bytes_max)
                found += [item if isinstance(item, Removal) else item.job.uid for item in page.items]
                assert bytes_max > 1 or len(page.items) <= 4, "one job, and what was removed before it"
                after, complete = page.revision, page.complete
            return found

        whole = await changes(2**30)
        assert whole == await changes(1)
        assert {each.uid for each in whole if isinstance(each, Removal)} == set(gone)
        assert [each for each in whole if each in uids] == uids

    with_stores(test)
