"""What runners report to the real server: progress, checkpoints, ends and spools, each taken once."""

from __future__ import annotations

import asyncio
import sqlite3
from datetime import UTC, datetime

from sihlai.scheduler.v1 import job_pb2

from services.chassis.auth.keys import TokenVerifier
from services.chassis.errors import Reason
from tests.scheduler.refusal import refused

STARTING, RUNNING, COMPLETED = job_pb2.JOB_STATE_STARTING, job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_COMPLETED


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
            key, dialect = runner.key(), client.scheduler.database.writing.dialect

            def fail(_connection) -> None:
                raise sqlite3.OperationalError("disk I/O error")

            closed = {"idle": {}, "closed": [{**key, "outcome": "ATTEMPT_OUTCOME_COMPLETED"}], "wait": 0.0}
            request = runner.request(**closed)
            dialect.do_commit, commit = fail, dialect.do_commit
            assert (await refused(client.runners.Synchronize(request))).reason is Reason.DATABASE_UNAVAILABLE
            dialect.do_commit = commit
            answer = await client.runners.Synchronize(request)
            assert [each.job_uid for each in answer.acknowledged_closed] == [job.uid]
            assert (await client.get(job.name)).state == COMPLETED

    asyncio.run(test())


def test_the_more_runners_there_are_the_less_often_each_is_asked_for_its_progress(serve, simulated_runner):
    async def test():
        async with serve(progress_reports_max=2) as client:
            for number in range(1, 7):
                answer = await simulated_runner(client, f"r{number}").idle(wait=0.0)
                assert answer.progress_every.ToMilliseconds() == 500 * number

    asyncio.run(test())


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
