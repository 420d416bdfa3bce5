"""Synchronize of the real server, with runners that are simulated call by call."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from sihlai.runner.v1 import runner_admin_service_pb2
from sihlai.scheduler.v1 import job_pb2, job_service_pb2
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from services.chassis import rpc
from services.chassis.auth.keys import TokenVerifier
from services.chassis.errors import Aborted, FailedPrecondition, Reason
from tests.tokens import runner_token

QUEUED, STARTING, RUNNING = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_STARTING, job_pb2.JOB_STATE_RUNNING
STOPPING, STOPPED, COMPLETED = job_pb2.JOB_STATE_STOPPING, job_pb2.JOB_STATE_STOPPED, job_pb2.JOB_STATE_COMPLETED


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return rpc.error_from_rpc(error.value)


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
        async with serve() as client:
            await client.create_project(validation_dataset=client.source("held-out"))
            runner = simulated_runner(client)
            waiting = asyncio.ensure_future(runner.idle(wait=8.0))
            await registered(client, 1)
            began = time.monotonic()
            job = await client.submit()
            answer = await waiting
            assert time.monotonic() - began < 2.0
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


def test_job_runs_to_its_end(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit()
            runner = simulated_runner(client)
            await runner.idle()
            answer = await runner.work("ATTEMPT_PHASE_DOWNLOADING", dataset_fingerprint="f1")
            assert answer.run.attempt.job_uid == job.uid
            assert not answer.run.HasField("assignment")
            assert (await client.get(job.name)).state == STARTING
            await runner.work(progress={"iteration": 3, "iterations_max": 10})
            assert (await client.get(job.name)).state == RUNNING
            reported = runner.checkpoint(10)
            answer = await runner.work(checkpoints=[reported])
            assert list(answer.acknowledged_checkpoints) == [reported["uri"]]
            key = runner.key()
            answer = await runner.close("ATTEMPT_OUTCOME_COMPLETED", reason="JOB_REASON_LIMIT_REACHED")
            assert answer.acknowledged_closed[0].job_uid == key["job_uid"]
            assert answer.WhichOneof("desired") == "idle"
            ended = await client.get(job.name)
            assert (ended.state, ended.reason) == (COMPLETED, job_pb2.JOB_REASON_LIMIT_REACHED)
            assert (ended.dataset_fingerprint, ended.last_checkpoint.iteration) == ("f1", 10)
            assert ended.attempts[0].software_version == "1.2.3"

    asyncio.run(test())


def test_progress_alone_is_written_within_a_moment(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit()
            runner = simulated_runner(client)
            await runner.idle()
            for iteration in (1, 2, 3):
                await runner.work(progress={"iteration": iteration, "iterations_max": 10})

            async def is_written() -> bool:
                return (await client.get(job.name)).progress.iteration == 3

            await client.when(is_written)

    asyncio.run(test())


def test_stop_reaches_a_runner_that_waits_at_once(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit()
            runner = simulated_runner(client)
            await runner.idle()
            await runner.work()
            waiting = asyncio.ensure_future(runner.work(wait=8.0))
            began = time.monotonic()
            await stop(client, job, grace={"seconds": 33})
            answer = await waiting
            assert time.monotonic() - began < 2.0
            assert (answer.stop.mode, answer.stop.grace.seconds) == (job_pb2.STOP_MODE_CHECKPOINT, 33)
            assert not answer.stop.hand_back

            # What it does now is what is wanted: the call waits, until the stop becomes harder.
            waiting = asyncio.ensure_future(
                runner.work("ATTEMPT_PHASE_CHECKPOINTING", wait=8.0, stopping="STOP_MODE_CHECKPOINT")
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
        async with serve() as client:
            await client.create_project()
            runner = simulated_runner(client)
            older = runner.request(idle={}, wait=8.0)
            waiting = asyncio.ensure_future(_answered(client, older))
            await registered(client, 1)
            newer = asyncio.ensure_future(runner.idle(wait=8.0))
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
        async with serve() as client:
            old = simulated_runner(client)
            waiting = asyncio.ensure_future(old.idle(wait=8.0))
            await registered(client, 1)
            await simulated_runner(client, session="second").idle(wait=0.0)
            error = await refused(waiting)
            assert (type(error), error.reason) == (Aborted, Reason.SESSION_REPLACED)
            assert (await refused(old.idle())).reason is Reason.SESSION_REPLACED

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
            await silent.idle()
            await silent.work()
            # Uploaded whole, yet never reported: the scheduler finds it by itself.
            folder = tmp_path / "checkpoints" / job.uid / "1" / "30"
            folder.mkdir(parents=True)
            (folder / "model.safetensors").write_bytes(b"model")
            (folder / "manifest.json").write_text(json.dumps(manifest))
            async with asyncio.timeout(15.0):
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


def test_undrained_spool_gets_a_token_that_only_drains_and_an_unknown_one_is_dropped(serve, simulated_runner, tmp_path):
    async def test():
        async with serve() as client:
            await client.create_project()
            await client.submit()
            runner = simulated_runner(client)
            await runner.idle()
            key = runner.key()
            spools = [key, {"job_uid": "gone", "attempt": 1, "epoch": 1}]
            answer = await runner.close("ATTEMPT_OUTCOME_COMPLETED", spools=spools)
            [token] = answer.write_tokens
            verifier = TokenVerifier.from_files([tmp_path / "token.pub.pem"])
            verified = verifier.verify(token.token, now=datetime.now(UTC))
            assert (verified.job_uid, verified.drain_only) == (key["job_uid"], True)
            assert [dropped.job_uid for dropped in answer.dropped_spools] == ["gone"]

    asyncio.run(test())


def test_only_the_runner_of_an_attempt_gets_a_token_for_its_spool(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            await client.submit()
            runner = simulated_runner(client)
            await runner.idle()
            key = runner.key()
            answer = await runner.close("ATTEMPT_OUTCOME_COMPLETED", spools=[key])
            assert len(answer.write_tokens) == 1
            stranger = simulated_runner(client, "stranger")
            answer = await stranger.idle(spools=[key], wait=0.0)
            assert not answer.write_tokens
            assert not answer.dropped_spools

    asyncio.run(test())


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


def test_checkpoint_outside_its_attempt_is_acknowledged_and_not_recorded(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit()
            runner = simulated_runner(client)
            await runner.idle()
            elsewhere = runner.checkpoint(10, uri="file:///etc/passwd")
            answer = await runner.work(checkpoints=[elsewhere])
            assert list(answer.acknowledged_checkpoints) == ["file:///etc/passwd"]
            assert not (await client.get(job.name)).HasField("last_checkpoint")

    asyncio.run(test())


def test_runner_of_another_protocol_is_refused(serve, simulated_runner):
    async def test():
        async with serve() as client:
            error = await refused(simulated_runner(client).call(idle={}, protocol_version=2))
            assert (type(error), error.reason) == (FailedPrecondition, Reason.PROTOCOL_VERSION)

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


def test_waits_end_when_the_server_stops(serve, simulated_runner):
    async def test():
        async with serve(drain_seconds=20.0) as client:
            waiting = asyncio.ensure_future(_once(client, simulated_runner(client).request(idle={}, wait=8.0)))
            await registered(client, 1)
            async with asyncio.timeout(5.0):
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


def test_report_whose_number_is_not_above_the_highest_is_not_acknowledged(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit()
            runner = simulated_runner(client)
            await runner.idle()
            await runner.work()
            runner.sequence -= 1
            answer = await runner.close("ATTEMPT_OUTCOME_COMPLETED")
            assert not answer.acknowledged_closed
            assert (await client.get(job.name)).state == RUNNING

    asyncio.run(test())


def test_report_whose_commit_failed_is_applied_when_it_comes_again(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit()
            runner = simulated_runner(client)
            await runner.idle()
            await runner.work()
            key, engine = runner.key(), client.scheduler.database.writing
            disk_is_full = True

            def fail(_connection) -> None:
                if disk_is_full:
                    raise OperationalError("COMMIT", {}, sqlite3.OperationalError("disk I/O error"))

            closed = {"idle": {}, "closed": [{**key, "outcome": "ATTEMPT_OUTCOME_COMPLETED"}], "wait": 0.0}
            request = runner.request(**closed)
            event.listen(engine, "commit", fail)
            assert (await refused(client.runners.Synchronize(request))).reason is Reason.DATABASE_UNAVAILABLE
            disk_is_full = False
            answer = await client.runners.Synchronize(request)
            assert [each.job_uid for each in answer.acknowledged_closed] == [job.uid]
            assert (await client.get(job.name)).state == COMPLETED

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


def test_the_more_runners_there_are_the_less_often_each_is_asked_for_its_progress(serve, simulated_runner):
    async def test():
        async with serve(progress_reports_max=2) as client:
            for number in range(1, 7):
                answer = await simulated_runner(client, f"r{number}").idle(wait=0.0)
                assert answer.progress_every.ToMilliseconds() == 500 * number

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


def test_an_end_without_the_number_of_its_attempt_is_taken(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit()
            runner = simulated_runner(client)
            await runner.idle()
            unbegun = {**runner.key(), "attempt": 0, "outcome": "ATTEMPT_OUTCOME_HANDED_BACK"}
            answer = await client.runners.Synchronize(runner.request(idle={}, closed=[unbegun], wait=0.0))
            assert [each.job_uid for each in answer.acknowledged_closed] == [job.uid]

    asyncio.run(test())
