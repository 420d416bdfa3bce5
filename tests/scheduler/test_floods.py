"""Who floods the scheduler is refused, and told when to come back; runners notice nothing. With real clients."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
from sihlai.scheduler.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc, project_service_pb2_grpc
from sihlai.scheduler.v1.project_service_pb2 import ListProjectsRequest

from services.chassis import rpc
from services.chassis.errors import Reason, ResourceExhausted
from tests.tokens import token

CONNECTIONS = 4
CALLS_EACH = 20
USER_CALLS_MAX = 4
"""A small part of those that flood: a slow machine serves most calls before the next ones reach it."""
WATCHES_MAX = 10


@contextlib.asynccontextmanager
async def flooding(client, submission, refusals: list[ResourceExhausted]):
    """Clients that submit and list as fast as they can, and never come back later, until the block ends."""
    access = token(client.folder / "token.pem")
    channels = [rpc.channel(client.address, token=lambda: access, retry_attempts_max=1) for _ in range(CONNECTIONS)]

    async def flood(channel: grpc.aio.Channel, number: int) -> None:
        jobs, projects = (
            job_service_pb2_grpc.JobServiceStub(channel),
            project_service_pb2_grpc.ProjectServiceStub(channel),
        )
        while True:
            try:
                await (jobs.SubmitJob(submission) if number % 2 else projects.ListProjects(ListProjectsRequest()))
            except grpc.aio.AioRpcError as error:
                refusal = rpc.error_from_rpc(error)
                assert isinstance(refusal, ResourceExhausted), refusal
                refusals.append(refusal)

    tasks = [asyncio.create_task(flood(channel, number)) for channel in channels for number in range(CALLS_EACH)]
    try:
        yield
        broken = [task for task in tasks if task.done()]
        assert not broken, broken[0].exception()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for channel in channels:
            await channel.close()


def test_who_floods_is_refused_and_runners_notice_nothing(serve, simulated_runner):
    async def test():
        refusals: list[ResourceExhausted] = []
        patient = {"synchronize_seconds_max": 60.0, "lease_seconds": 120.0}
        async with serve(user_calls_max=USER_CALLS_MAX, write_queue_max=10, **patient) as client:
            await client.create_project()
            await client.create_project("flooded")
            runner = simulated_runner(client)
            job = await client.submit()
            await runner.idle()
            slowest = 0.0
            async with flooding(client, client.submission("flooded"), refusals):
                loop = asyncio.get_running_loop()
                iteration = 0
                while iteration < 20 or len(refusals) <= 100:
                    began = loop.time()
                    answer = await runner.work(wait=0.0, progress={"iteration": iteration})
                    slowest = max(slowest, loop.time() - began)
                    assert answer.run.attempt.job_uid == job.uid, (answer, slowest)
                    iteration += 1
                waiting = runner.call(active={**runner.key(), "phase": "ATTEMPT_PHASE_TRAINING"}, wait=60.0)
                await stopped(client, job.name, "users/ada")
                async with asyncio.timeout(60):
                    assert (await waiting).stop.attempt.job_uid == job.uid
            assert {refusal.metadata["what"] for refusal in refusals} >= {"user_calls_max"}
            assert all(refusal.retry_after_seconds > 0 for refusal in refusals)
            assert {refusal.reason for refusal in refusals} == {Reason.LIMIT_REACHED}

    asyncio.run(test())


def test_who_floods_takes_no_other_users_room(serve):
    async def test():
        refusals: list[ResourceExhausted] = []
        async with serve(principal_calls_max=USER_CALLS_MAX) as client:
            await client.create_project()
            await client.create_project("flooded")
            other = token(client.folder / "token.pem", "users/ada")
            async with (
                rpc.channel(client.address, token=lambda: other, retry_attempts_max=1) as channel,
                flooding(client, client.submission("flooded"), refusals),
            ):
                await client.when(lambda: are_more(refusals, 20), seconds=60.0)
                jobs = job_service_pb2_grpc.JobServiceStub(channel)
                for number in range(5):
                    made = (await jobs.SubmitJob(client.submission("digits", job_id=f"j{number}"))).job
                    await jobs.GetJob(job_service_pb2.GetJobRequest(name=made.name))
            assert {refusal.metadata["what"] for refusal in refusals} == {"principal_calls_max"}
            assert all(refusal.retry_after_seconds > 0 for refusal in refusals)

    asyncio.run(test())


async def are_more(refusals: list[ResourceExhausted], count: int) -> bool:
    return len(refusals) > count


async def stopped(client, name: str, subject: str) -> None:
    """A stop by somebody who comes back when told to."""
    access = token(client.folder / "token.pem", subject)
    async with rpc.channel(client.address, token=lambda: access, retry_attempts_max=1) as channel:
        jobs = job_service_pb2_grpc.JobServiceStub(channel)
        while True:
            try:
                await jobs.StopJob(job_service_pb2.StopJobRequest(name=name))
                return
            except grpc.aio.AioRpcError as error:
                refusal = rpc.error_from_rpc(error)
                assert isinstance(refusal, ResourceExhausted), refusal
                await asyncio.sleep(0.01)


def test_watches_without_end_take_no_place_of_anybody_else(serve, simulated_runner):
    async def test():
        async with serve(watches_max=WATCHES_MAX) as client:
            await client.create_project()
            request = job_service_pb2.WatchJobsRequest(parent="projects/-")
            watches = [client.jobs.WatchJobs(request) for _ in range(WATCHES_MAX)]
            for watch in watches:
                assert (await watch.read()).HasField("caught_up")
            for _ in range(WATCHES_MAX):
                try:
                    await client.jobs.WatchJobs(request).read()
                    raise AssertionError("there was room for one more")
                except grpc.aio.AioRpcError as error:
                    refusal = rpc.error_from_rpc(error)
                    assert isinstance(refusal, ResourceExhausted)
                    assert (refusal.metadata["what"], refusal.retry_after_seconds > 0) == ("watches_max", True)
            job = await client.submit()
            runner = simulated_runner(client)
            assert (await runner.idle()).run.assignment.job == job.name
            for watch in watches:
                assert (await watch.read()).job.state in (job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_STARTING)
                watch.cancel()
            await client.when(lambda: has_room(client, request), seconds=60.0)

    asyncio.run(test())


async def has_room(client, request) -> bool:
    try:
        return (await client.jobs.WatchJobs(request).read()) is not None
    except grpc.aio.AioRpcError:
        return False


def test_who_takes_too_much_of_the_process_waits_and_nobody_with_him(serve):
    """What the database's threads do for a call counts too."""

    async def test():
        async with serve(principal_processor_share=0.001) as client:
            await client.create_project()
            job = await client.submit()
            other = token(client.folder / "token.pem", "users/ada")
            async with rpc.channel(client.address, token=lambda: other) as channel:
                loop = asyncio.get_running_loop()
                others = job_service_pb2_grpc.JobServiceStub(channel)

                async def seconds(jobs) -> float:
                    began = loop.time()
                    await jobs.GetJob(job_service_pb2.GetJobRequest(name=job.name))
                    return loop.time() - began

                alone = [await seconds(client.jobs) for _ in range(3)]
                await seconds(others)
                found = [await seconds(client.jobs) for _ in range(5)]
                assert max(found) > 0.2, found
                assert max(await seconds(others), *alone) < max(found)

    asyncio.run(test())
