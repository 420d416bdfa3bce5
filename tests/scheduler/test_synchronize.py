"""Synchronize of the real server: what a runner's call is answered, and when; runners are simulated call by call."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import grpc
from sihlai.runner.v1 import runner_admin_service_pb2
from sihlai.scheduler.v1 import job_pb2, job_service_pb2
from sqlalchemy import text

from services.chassis import rpc
from services.chassis.auth.keys import TokenVerifier
from services.chassis.errors import Aborted, FailedPrecondition, Reason
from tests.scheduler.refusal import refused
from tests.tokens import runner_token

WAIT_SECONDS, SOON_SECONDS = 60.0, 20.0
"""How long a call waits where nothing happens, and what is at once beside it on a busy machine."""
PATIENT = {"synchronize_seconds_max": WAIT_SECONDS, "lease_seconds": 2 * WAIT_SECONDS}
RUNNING, STOPPING, STOPPED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_STOPPING, job_pb2.JOB_STATE_STOPPED


async def registered(client, number: int) -> None:
    """Until the server knows so many runners: their calls wait there."""
    request = runner_admin_service_pb2.ListRunnersRequest(page_size=1_000)

    async def are_known() -> bool:
        return len((await client.runner_admin.ListRunners(request)).runners) >= number

    await client.when(are_known)


async def stop(client, job, **fields) -> None:
    await client.jobs.StopJob(job_service_pb2.StopJobRequest(name=job.name, **fields))


def test_waiting_runner_gets_a_submitted_job_at_once_with_all_that_it_needs(serve, simulated_runner, tmp_path):
    async def test():
        async with serve(**PATIENT) as client:
            await client.create_project(validation_dataset=client.source("held-out"))
            runner = simulated_runner(client)
            waiting = asyncio.ensure_future(runner.idle(wait=WAIT_SECONDS))
            await registered(client, 1)
            began = time.monotonic()
            job = await client.submit()
            answer = await waiting
            assert time.monotonic() - began < SOON_SECONDS
            assignment = answer.run.assignment
            assert (assignment.job, assignment.job_uid, assignment.attempt) == (job.name, job.uid, 1)
            assert assignment.spec == job.spec
            assert assignment.training_dataset.uri == job.training_dataset.uri
            assert assignment.validation_dataset.uri.endswith("held-out")
            assert assignment.checkpoint_uri == f"file://{tmp_path}/checkpoints/{job.uid}/{assignment.epoch}"
            assert not assignment.HasField("resume_from")
            verifier = TokenVerifier.from_files([Path(tmp_path / "token.pub.pem")])
            token = verifier.verify(answer.write_tokens[0].token, now=datetime.now(UTC))
            assert (token.project, token.job_uid, token.attempt) == ("digits", job.uid, 1)
            assert (token.from_step, token.drain_only) == (0, False)

    asyncio.run(test())


def test_stop_reaches_a_runner_that_waits_at_once(serve, simulated_runner):
    async def test():
        async with serve(**PATIENT) as client:
            await client.create_project()
            job = await client.submit()
            runner = simulated_runner(client)
            await runner.idle()
            await runner.work()
            waiting = asyncio.ensure_future(runner.work(wait=WAIT_SECONDS))
            began = time.monotonic()
            await stop(client, job, grace={"seconds": 33})
            answer = await waiting
            assert time.monotonic() - began < SOON_SECONDS
            assert (answer.stop.mode, answer.stop.grace.seconds) == (job_pb2.STOP_MODE_CHECKPOINT, 33)
            assert not answer.stop.hand_back

            # What it does now is what is wanted: the call waits, until the stop becomes harder.
            waiting = asyncio.ensure_future(
                runner.work("ATTEMPT_PHASE_CHECKPOINTING", wait=WAIT_SECONDS, stopping="STOP_MODE_CHECKPOINT")
            )
            await client.until(job.name, STOPPING)
            await stop(client, job, mode="STOP_MODE_IMMEDIATE")
            assert (await waiting).stop.mode == job_pb2.STOP_MODE_IMMEDIATE
            await runner.close("ATTEMPT_OUTCOME_STOPPED")
            assert (await client.get(job.name)).state == STOPPED

    asyncio.run(test())


def test_lost_answer_is_given_again(serve, simulated_runner):
    async def test():
        async with serve(resend_seconds=0.2) as client:
            await client.create_project()
            job = await client.submit()
            runner = simulated_runner(client)
            first = await runner.idle()
            again = await runner.idle()
            assert again.run.assignment == first.run.assignment
            assert len((await client.get(job.name)).attempts) == 1

    asyncio.run(test())


def test_newer_call_ends_the_older_wait_and_an_older_one_changes_nothing(serve, simulated_runner):
    async def test():
        async with serve(**PATIENT) as client:
            await client.create_project()
            runner = simulated_runner(client)
            older = runner.request(idle={}, wait=WAIT_SECONDS)
            waiting = asyncio.ensure_future(_answered(client, older))
            await registered(client, 1)
            newer = asyncio.ensure_future(runner.idle(wait=WAIT_SECONDS))
            error = await refused(waiting)
            assert (type(error), error.reason) == (Aborted, Reason.CALL_SUPERSEDED)
            answer = await client.runners.Synchronize(older)
            assert answer.WhichOneof("desired") == "idle"
            job = await client.submit()
            assert (await newer).run.assignment.job == job.name

    asyncio.run(test())


async def _answered(client, request):
    return await client.runners.Synchronize(request)


def test_session_that_is_taken_over_is_told_while_it_waits(serve, simulated_runner):
    async def test():
        async with serve(**PATIENT) as client:
            old = simulated_runner(client)
            waiting = asyncio.ensure_future(old.idle(wait=WAIT_SECONDS))
            await registered(client, 1)
            await simulated_runner(client, session="second").idle(wait=0.0)
            error = await refused(waiting)
            assert (type(error), error.reason) == (Aborted, Reason.SESSION_REPLACED)
            assert (await refused(old.idle())).reason is Reason.SESSION_REPLACED

    asyncio.run(test())


def test_two_hosts_with_one_runner_id_do_not_end_each_others_attempts_for_ever(serve, simulated_runner):
    """Each is started again whenever it was sent away."""

    async def test():
        async with serve(lease_seconds=3.0) as client:
            await client.create_project()
            job = await client.submit()
            first = simulated_runner(client, session="first", host="left")
            await first.idle()
            second = simulated_runner(client, session="second", host="right")
            await second.idle(wait=0.0)  # taken for the first, started anew
            assert (await refused(first.work())).reason is Reason.SESSION_REPLACED
            await client.scheduler.upkeep.renew_and_expire([])
            await client.until(job.name, job_pb2.JOB_STATE_QUEUED)
            await second.idle()
            for number in range(3):
                await second.work()
                again = simulated_runner(client, session=f"first-again-{number}", host="left")
                error = await refused(again.idle())
                assert error.reason is Reason.SESSION_REPLACED
                assert "the host 'right' calls as runners/one too" in error.message
            assert (await second.work()).run.attempt.epoch == 2
            assert (await client.get(job.name)).attempts[-1].number == 2

            async def is_let_in() -> bool:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await simulated_runner(client, session="first-at-last", host="left").idle(wait=0.0)
                    return True
                return False

            await client.when(is_let_in)  # the second is not heard of any more

    asyncio.run(test())


def test_a_container_that_is_made_anew_under_another_hosts_name_takes_its_runner_over_each_time(
    serve, simulated_runner
):
    """Also where the call of the one before still waits: nobody noticed that its machine has no power any more."""

    async def test():
        async with serve(**PATIENT) as client:
            calls = []
            for number in range(4):
                runner = simulated_runner(client, session=f"session-{number}", host=f"container-{number}")
                calls.append(runner.call(idle={}, wait=WAIT_SECONDS))
                await registered(client, 1)
                await asyncio.sleep(0.1)
            for call in calls[:-1]:
                assert (await refused(call)).reason is Reason.SESSION_REPLACED
            await client.create_project()
            job = await client.submit()
            assert (await calls[-1]).run.assignment.job == job.name

    asyncio.run(test())


def test_silent_runner_loses_its_job_to_another_which_goes_on_from_what_was_uploaded(serve, simulated_runner, tmp_path):
    manifest = {
        "files": [{"name": "model.safetensors", "size_bytes": 5, "sha256": "00"}],
        "iteration": 30,
        "epoch": 1,
        "cause": "VALIDATION",
        "create_time_unix_us": 1_800_000_000_000_000,
        "selection_value": None,
        "best": False,
    }

    async def test():
        async with serve(lease_seconds=2.0) as client:
            await client.create_project()
            job = await client.submit()
            silent, other = simulated_runner(client), simulated_runner(client, "other")
            # Uploaded whole, yet never reported: the scheduler finds it by itself.
            folder = tmp_path / "checkpoints" / job.uid / "1" / "30"
            folder.mkdir(parents=True)
            (folder / "model.safetensors").write_bytes(b"model")
            (folder / "manifest.json").write_text(json.dumps(manifest))
            await silent.idle()
            await silent.work()
            async with asyncio.timeout(60.0):
                while other.assignment is None:
                    await other.idle(wait=1.0)
            assert (other.assignment.epoch, other.assignment.resume_from.iteration) == (2, 30)
            assert (await silent.work()).WhichOneof("desired") == "idle"
            attempts = (await client.get(job.name)).attempts
            assert [attempt.outcome for attempt in attempts] == [
                job_pb2.ATTEMPT_OUTCOME_LOST,
                job_pb2.ATTEMPT_OUTCOME_UNSPECIFIED,
            ]
            assert attempts[1].from_step == 31

    asyncio.run(test())


def test_runner_goes_on_after_the_scheduler_was_away(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit()
            runner = simulated_runner(client)
            await runner.idle()
            await runner.work()
        async with serve() as client:
            runner.client = client
            answer = await runner.work(progress={"iteration": 8})
            assert answer.run.attempt.job_uid == job.uid
            assert answer.write_tokens
            found = await client.get(job.name)
            assert (found.state, len(found.attempts)) == (RUNNING, 1)

    asyncio.run(test())


def test_runner_of_another_protocol_is_refused(serve, simulated_runner):
    async def test():
        async with serve() as client:
            error = await refused(simulated_runner(client).call(idle={}, protocol_version=2))
            assert (type(error), error.reason) == (FailedPrecondition, Reason.PROTOCOL_VERSION)

    asyncio.run(test())


def test_waits_end_when_the_server_stops(serve, simulated_runner):
    async def test():
        async with serve(drain_seconds=60.0, **PATIENT) as client:
            request = simulated_runner(client).request(idle={}, wait=WAIT_SECONDS)
            waiting = asyncio.ensure_future(_once(client, request))
            await registered(client, 1)
            async with asyncio.timeout(30.0):
                await client.scheduler.server.stop()
            assert (await refused(waiting)).reason in (Reason.SERVER_STOPPING, Reason.SERVICE_UNAVAILABLE)

    asyncio.run(test())


async def _once(client, request):
    """Without the channel's retries, which would wait for the server to come back."""
    token = runner_token(client.folder / "token.pem")
    channel = rpc.channel(client.address, token=lambda: token, retry_attempts_max=1)
    try:
        return await type(client.runners)(channel).Synchronize(request)
    finally:
        await channel.close()


async def assigned(runner) -> None:
    """Until the runner has a job: on a machine that is busy its wait may be over first."""
    async with asyncio.timeout(120):
        while runner.assignment is None:
            await runner.idle(wait=8.0)


def test_hundred_waiting_runners_each_get_a_job_of_a_burst(serve, simulated_runner):
    async def test():
        async with serve() as client:
            for number in range(100):
                await client.create_project(f"p-{number}")
            runners = [simulated_runner(client, f"runner-{number}") for number in range(100)]
            waiting = [asyncio.ensure_future(assigned(runner)) for runner in runners]
            await registered(client, 100)
            await asyncio.gather(*(client.submit(f"p-{number}") for number in range(100)))
            await asyncio.gather(*waiting)
            assert len({runner.assignment.job for runner in runners}) == 100

    asyncio.run(test())


def test_job_whose_credentials_cannot_be_read_fails_with_the_reason_and_holds_no_runner(
    serve, simulated_runner, tmp_path
):
    async def test():
        secret = {"s3": {"access_key_id": "key", "secret_access_key": "secret"}}
        allowed = {"allowed_endpoint_hosts": ("minio",)}
        async with serve(**allowed) as client:
            source = {"uri": "s3://bucket/digits", "endpoint_url": "http://minio:9000", "credentials": secret}
            await client.create_project("sealed", training_dataset=source)
            sealed = await client.submit("sealed")
        async with serve(credentials_key_file=tmp_path / "another.key", **allowed) as client:
            runner = simulated_runner(client)
            answer = await runner.idle(wait=0.0)
            assert answer.WhichOneof("desired") == "idle"
            failed = await client.get(sealed.name)
            assert (failed.state, failed.reason) == (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_REASON_DATASET_ERROR)
            assert "sealed with another key" in failed.reason_message
            await client.create_project()
            job = await client.submit()
            assert (await runner.idle(wait=0.0)).run.assignment.job == job.name

    asyncio.run(test())


def test_runner_whose_call_waits_here_is_not_told_to_drop_what_was_taken_for_lost(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit()
            runner = simulated_runner(client)
            await runner.idle()
            await runner.work()
            waiting = asyncio.ensure_future(runner.work(wait=8.0))
            expired = text("UPDATE attempts SET lease_expire_time_us = 0")
            taken_up = text("SELECT count(*) FROM outbox WHERE subject LIKE '%.started'")
            database = client.scheduler.database

            async def was_lost_and_taken_up() -> bool:
                if await database.read(lambda connection: connection.execute(taken_up).scalar_one()) > 1:
                    return True
                await database.write(lambda transaction: transaction.connection.execute(expired).rowcount)
                return False

            await client.when(was_lost_and_taken_up, seconds=30.0)
            answer = await waiting
            assert answer.run.attempt.job_uid == job.uid
            running = await client.get(job.name)
            assert (running.state, len(running.attempts)) == (RUNNING, 1)

    asyncio.run(test())
