"""RunnerAdminService of the real server: runners are listed, read, drained and taken back."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid

import grpc
import pytest
from sihlai.runner.v1 import runner_admin_service_pb2
from sihlai.scheduler.v1 import job_pb2

from services.chassis.errors import Reason
from tests.scheduler.refusal import refused

RUNNING = job_pb2.JOB_STATE_RUNNING


def test_drained_runner_is_told_to_hand_back_and_shows_as_draining(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit()
            runner = simulated_runner(client)
            await runner.idle()
            waiting = asyncio.ensure_future(runner.work(wait=8.0))
            await client.until(job.name, RUNNING)
            drain = runner_admin_service_pb2.DrainRunnerRequest(name="runners/one")
            assert (await client.runner_admin.DrainRunner(drain)).runner.draining
            answer = await waiting
            assert (answer.stop.hand_back, answer.stop.mode) == (True, job_pb2.STOP_MODE_CHECKPOINT)
            await runner.close("ATTEMPT_OUTCOME_HANDED_BACK")
            other = simulated_runner(client, "other")
            await other.idle(wait=8.0)
            assert other.assignment.attempt == 2
            listed = await client.runner_admin.ListRunners(runner_admin_service_pb2.ListRunnersRequest())
            states = {runner.name: (runner.draining, runner.job) for runner in listed.runners}
            assert states == {"runners/one": (True, ""), "runners/other": (False, job.name)}
            unknown = runner_admin_service_pb2.DrainRunnerRequest(name="runners/nobody")
            assert (await refused(client.runner_admin.DrainRunner(unknown))).reason is Reason.RUNNER_NOT_FOUND

    asyncio.run(test())


def test_runner_is_read_by_its_name_and_takes_jobs_again_when_it_is_taken_back(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            runner = simulated_runner(client)
            await runner.idle(wait=0.0)
            drain = runner_admin_service_pb2.DrainRunnerRequest(name="runners/one")
            await client.runner_admin.DrainRunner(drain)
            get = runner_admin_service_pb2.GetRunnerRequest(name="runners/one")
            assert (await client.runner_admin.GetRunner(get)).runner.draining
            await client.submit()
            await runner.idle(wait=0.0)
            assert runner.assignment is None
            undrain = runner_admin_service_pb2.UndrainRunnerRequest(name="runners/one", request_id=str(uuid.uuid4()))
            for _ in range(2):
                assert not (await client.runner_admin.UndrainRunner(undrain)).runner.draining
            await runner.idle()
            assert runner.assignment is not None
            assert (await client.runner_admin.GetRunner(get)).runner.job == runner.assignment.job
            for call in (
                client.runner_admin.GetRunner(runner_admin_service_pb2.GetRunnerRequest(name="runners/gone")),
                client.runner_admin.UndrainRunner(runner_admin_service_pb2.UndrainRunnerRequest(name="runners/gone")),
            ):
                assert (await refused(call)).reason is Reason.RUNNER_NOT_FOUND

    asyncio.run(test())


@pytest.mark.parametrize("calls_again", [False, True])
def test_runner_that_is_undrained_gets_what_waits_at_once(serve, simulated_runner, calls_again):
    async def test():
        async with serve(synchronize_seconds_max=60.0, lease_seconds=130.0) as client:
            await client.create_project()
            runner = simulated_runner(client)
            name = "runners/one"
            waiting = asyncio.ensure_future(runner.idle(wait=60.0))
            await client.when(lambda: is_idle(client, "one"), seconds=60.0)
            await client.runner_admin.DrainRunner(runner_admin_service_pb2.DrainRunnerRequest(name=name))
            if calls_again:
                with contextlib.suppress(grpc.aio.AioRpcError):  # a newer call takes its place
                    newer = asyncio.ensure_future(runner.idle(wait=60.0))
                    await waiting
                waiting = newer
            job = await client.submit()
            began = time.monotonic()
            await client.runner_admin.UndrainRunner(runner_admin_service_pb2.UndrainRunnerRequest(name=name))
            assert (await waiting).run.assignment.job == job.name
            assert time.monotonic() - began < 45.0, "its wait would have ended after 60"

    asyncio.run(test())


async def is_idle(client, runner_id: str) -> bool:
    return client.scheduler.database._dispatcher.is_idle(runner_id)
