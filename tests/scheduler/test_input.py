"""What comes over the wire is checked there: nothing that anybody sends breaks what others read."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import grpc
import pytest
from sihlai.runner.v1 import runner_admin_service_pb2
from sihlai.scheduler.v1 import checkpoint_service_pb2, job_pb2, job_service_pb2, project_service_pb2
from sqlalchemy import text

from services.chassis import rpc
from services.chassis.errors import InvalidArgument, Reason, SihlaiError
from services.scheduler.wire.names import cursor_from_revision
from services.scheduler.wire.page import PAGE_BYTES_MAX

BOTH = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


async def refused(call) -> SihlaiError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return rpc.error_from_rpc(error.value)


def fields_of(error: SihlaiError) -> set[str]:
    assert isinstance(error, InvalidArgument)
    return {violation.field for violation in error.violations}


async def listed(client, **fields) -> list[job_pb2.Job]:
    """Every job, through all pages, of which none is too large."""
    request = job_service_pb2.ListJobsRequest(parent="projects/-", **fields)
    jobs = []
    while True:
        page = await client.jobs.ListJobs(request)
        assert page.ByteSize() <= PAGE_BYTES_MAX + 1_000 or len(page.jobs) == 1
        jobs += page.jobs
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return jobs


@BOTH
def test_what_a_runner_says_is_cleaned_and_its_job_ends(serve, simulated_runner, database_url):
    async def test():
        async with serve(database_url=database_url) as client:
            await client.create_project()
            job = await client.submit()
            runner = simulated_runner(client)
            runner.capabilities |= {
                "host": "ho\0st",
                "software_version": "\x1b[31m1.2.3",
                "memory_bytes": 2**63 - 1,
                "gpus": [{"model": "G\0PU", "memory_bytes": -1}],
            }
            await runner.idle()
            progress = {
                "phase": "trai\0ning",
                "iteration": 2**63 - 1,
                "done": -5,
                "time_left": {"seconds": 2**63 - 1, "nanos": 2**31 - 1},
            }
            await runner.work(progress=progress, dataset_fingerprint="f\0" * 500)
            running = await client.get(job.name)
            assert running.progress.phase == "trai�ning"
            assert not running.progress.HasField("time_left")
            assert (running.progress.done, running.progress.iteration) == (0, 2**53 - 1)
            assert await listed(client) == [running]
            message = "\x1b[31mTraceback\x1b[0m\r\n  at\0 line 1\n" + "x" * 20_000
            await runner.close("ATTEMPT_OUTCOME_FAILED", reason="JOB_REASON_TRAINER_ERROR", message=message)
            ended = await client.get(job.name)
            assert ended.state == job_pb2.JOB_STATE_FAILED
            assert ended.reason_message.startswith("Traceback\n  at� line 1\n")
            assert len(ended.reason_message) == 16_000
            runners = (await client.runner_admin.ListRunners(runner_admin_service_pb2.ListRunnersRequest())).runners
            assert [(r.capabilities.host, r.capabilities.software_version) for r in runners] == [("ho�st", "1.2.3")]

    asyncio.run(test())


@BOTH
def test_what_a_person_writes_is_refused_where_it_is_no_text(serve, database_url):
    async def test():
        async with serve(database_url=database_url) as client:
            await client.create_project()
            job = await client.submit()
            spec = {"display_name": "na\0me", "labels": {"team": "\x1b[31m"}}
            assert fields_of(await refused(client.submit(spec=spec))) == {"spec.display_name", "spec.labels.team"}
            stop = job_service_pb2.StopJobRequest(name=job.name, reason="en\0ough")
            assert fields_of(await refused(client.jobs.StopJob(stop))) == {"reason"}
            error = await refused(client.create_project("other", display_name="two\nlines"))
            assert fields_of(error) == {"project.display_name"}
            error = await refused(client.create_project("other", training_dataset={"uri": "file:///a\x7fb"}))
            assert fields_of(error) == {"project.training_dataset.uri"}
            batch = await client.jobs.BatchGetJobs(job_service_pb2.BatchGetJobsRequest(uids=["a\0b", job.uid]))
            assert ([found.uid for found in batch.jobs], list(batch.missing)) == ([job.uid], ["a\0b"])

    asyncio.run(test())


@BOTH
def test_filters_names_and_cursors_are_bounded(serve, database_url):
    async def test():
        async with serve(database_url=database_url) as client:
            await client.create_project()
            job = await client.submit()
            for field, job_filter in (
                ("filter.labels", {"labels": {f"key-{number}": "" for number in range(1_200)}}),
                ("filter.labels", {"labels": {"team": "a\0b"}}),
                ("filter.created_after", {"created_after": {"seconds": 2**63 - 1}}),
                ("filter.created_before", {"created_before": {"nanos": -1}}),
                ("filter.states", {"states": [99]}),
                ("filter.uids", {"uids": [job.uid, "a\0b"]}),
                ("filter.uids", {"uids": [""]}),
            ):
                request = job_service_pb2.ListJobsRequest(parent="projects/-", filter=job_filter)
                assert fields_of(await refused(client.jobs.ListJobs(request))) == {field}
                watch = client.jobs.WatchJobs(job_service_pb2.WatchJobsRequest(parent="projects/-", filter=job_filter))
                assert fields_of(await refused(watch.read())) == {field}
            for checkpoint in ("9" * 19 + "-1", "٣-٤", "1-" + "9" * 5_000, "first", ""):
                request = checkpoint_service_pb2.GetCheckpointRequest(name=f"{job.name}/checkpoints/{checkpoint}")
                assert fields_of(await refused(client.checkpoints.GetCheckpoint(request))) == {"name"}
            await client.jobs.StopJob(job_service_pb2.StopJobRequest(name=job.name))
            other = "projects/digits/jobs/other/checkpoints/1-2"
            for checkpoint in ("9" * 19 + "-1", "٣-٤", "1-" + "9" * 5_000, "first", "1", other):
                resume = job_service_pb2.ResumeJobRequest(name=job.name, checkpoint=checkpoint)
                assert fields_of(await refused(client.jobs.ResumeJob(resume))) == {"checkpoint"}
            for cursor in (cursor_from_revision(2**63 - 1), cursor_from_revision(2**63), cursor_from_revision(10**400)):
                watch = client.jobs.WatchJobs(job_service_pb2.WatchJobsRequest(parent="projects/-", cursor=cursor))
                assert (await refused(watch.read())).reason is Reason.INVALID_CURSOR
            nested = base64.urlsafe_b64encode(b"[" * 100_000).decode()
            lists = [
                client.jobs.ListJobs(job_service_pb2.ListJobsRequest(parent="projects/-", page_token=nested)),
                client.projects.ListProjects(project_service_pb2.ListProjectsRequest(page_token=nested)),
            ]
            for call in lists:
                assert (await refused(call)).reason is Reason.INVALID_PAGE_TOKEN
            watch = client.jobs.WatchJobs(job_service_pb2.WatchJobsRequest(parent="projects/-", cursor=nested))
            assert (await refused(watch.read())).reason is Reason.INVALID_CURSOR

    asyncio.run(test())


def test_fields_of_a_newer_client_are_not_stored(serve):
    unknown = bytes([0xFA, 0x7F]) + b"\x80\x80\x20" + b"x" * 2**19  # field 2047, half a MiB

    async def test():
        async with serve() as client:
            project = project_service_pb2.CreateProjectRequest(
                project_id="digits",
                project={
                    "training_dataset": {
                        "uri": "s3://bucket/digits",
                        "credentials": {"s3": {"access_key_id": "key", "secret_access_key": "secret"}},
                    }
                },
            )
            project.project.training_dataset.credentials.MergeFromString(unknown)
            await client.projects.CreateProject(project)
            submit = client.submission(job_id="first")
            submit.spec.MergeFromString(unknown)
            assert submit.ByteSize() > 2**19
            job = (await client.jobs.SubmitJob(submit)).job
            assert job.ByteSize() < 10_000
            assert await listed(client) == [job]
            query = text("SELECT max(length(sealed)) FROM credentials")
            assert await client.scheduler.database.read(lambda c: c.execute(query).scalar_one()) < 1_000

    asyncio.run(test())


def test_pages_are_bounded_by_bytes_and_nothing_is_left_out(serve):
    weights = {f"category {number} {'x' * 25}": 1.5 for number in range(1_150)}
    head = {"task": "TASK_MULTICLASS_CLASSIFICATION", "multiclass_classification": {"category_weights": weights}}

    async def test():
        async with serve() as client:
            await client.create_project()
            spec = {"model": {"backbone": {"name": "tiny"}, "heads": [head]}}
            jobs = [await client.submit(job_id=f"job-{number}", spec=spec) for number in range(56)]
            assert jobs[0].ByteSize() * len(jobs) > PAGE_BYTES_MAX
            found = await listed(client, page_size=1_000)
            assert [job.uid for job in found] == [job.uid for job in reversed(jobs)]
            assert [job.uid for job in await listed(client, page_size=7)] == [job.uid for job in reversed(jobs)]

    asyncio.run(test())


@BOTH
def test_a_record_that_cannot_be_read_hides_no_other(serve, database_url):
    async def test():
        async with serve(database_url=database_url) as client:
            await client.create_project()
            jobs = [await client.submit(job_id=f"job-{number}") for number in range(4)]
            await client.create_project("other")

            def damage(transaction) -> None:
                execute = transaction.connection.execute
                execute(text("UPDATE jobs SET spec = :junk WHERE uid = :uid"), {"junk": b"\xff", "uid": jobs[1].uid})
                execute(text("UPDATE jobs SET reason = 'OF_TOMORROW' WHERE uid = :uid"), {"uid": jobs[2].uid})
                execute(text("UPDATE projects SET training_dataset = '{\"of\": 1}' WHERE project_id = 'other'"))

            await client.scheduler.database.write(damage)
            whole = [jobs[3].uid, jobs[0].uid]
            for page_size in (1_000, 1):
                assert [job.uid for job in await listed(client, page_size=page_size)] == whole
            projects = await client.projects.ListProjects(project_service_pb2.ListProjectsRequest())
            assert [project.name for project in projects.projects] == ["projects/digits"]
            stream = client.jobs.WatchJobs(job_service_pb2.WatchJobsRequest(parent="projects/-"))
            watched = []
            async with asyncio.timeout(30):
                while (message := await stream.read()).WhichOneof("message") != "caught_up":
                    watched.append(message.job.uid)
            stream.cancel()
            assert watched == whole[::-1]
            uids = [job.uid for job in jobs]
            batch = await client.jobs.BatchGetJobs(job_service_pb2.BatchGetJobsRequest(uids=[*uids, "gone"]))
            assert ([job.uid for job in batch.jobs], list(batch.missing)) == (whole[::-1], ["gone"])

    asyncio.run(test())


def test_a_manifest_with_numbers_that_nobody_counts_to_is_no_checkpoint(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit()
            runner = simulated_runner(client)
            await runner.idle()
            await runner.work()
            root = Path(runner.assignment.checkpoint_uri.removeprefix("file://"))
            for iteration, time_us in ((2**64, 1), (60, 2**64)):
                folder = root / str(iteration)
                folder.mkdir(parents=True)
                (folder / "model.safetensors").write_bytes(b"model")
                manifest = {
                    "files": [{"name": "model.safetensors", "size_bytes": 5, "sha256": "00"}],
                    "iteration": iteration,
                    "epoch": 1,
                    "cause": "VALIDATION",
                    "create_time_unix_us": time_us,
                    "selection_value": float("inf"),
                    "best": True,
                }
                (folder / "manifest.json").write_text(json.dumps(manifest))
            stop = job_service_pb2.StopJobRequest(name=job.name, mode=job_pb2.STOP_MODE_IMMEDIATE)
            await client.jobs.StopJob(stop)
            await runner.close("ATTEMPT_OUTCOME_STOPPED")

            async def is_adopted() -> bool:
                return (await client.get(job.name)).HasField("last_checkpoint")

            await client.when(is_adopted)
            listed_request = checkpoint_service_pb2.ListCheckpointsRequest(parent=job.name)
            [checkpoint] = (await client.checkpoints.ListCheckpoints(listed_request)).checkpoints
            assert (checkpoint.iteration, checkpoint.HasField("selection_value")) == (60, False)

    asyncio.run(test())
