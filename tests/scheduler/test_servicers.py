"""ProjectService, JobService and CheckpointService of the real server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format
from sihlai.conversion.v1 import conversion_service_pb2, conversion_service_pb2_grpc
from sihlai.scheduler.v1 import (
    checkpoint_service_pb2,
    job_pb2,
    job_service_pb2,
    job_spec_pb2,
    project_service_pb2,
)
from sqlalchemy import event

from services.chassis import rpc
from services.chassis.auth.guard import OpenGuard
from services.chassis.config import ServerConfig
from services.chassis.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    Reason,
    SihlaiError,
    Unavailable,
)
from tests import tokens

QUEUED, STOPPED = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_STOPPED
COMPLETED = job_pb2.JOB_STATE_COMPLETED


async def refused(call) -> SihlaiError:
    """Our error of a call that must be refused."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return rpc.error_from_rpc(error.value)


def fields_of(error: SihlaiError) -> list[str]:
    assert isinstance(error, InvalidArgument)
    return [violation.field for violation in error.violations]


def test_project_is_created_read_listed_changed_and_deleted(serve):
    async def test():
        async with serve() as client:
            made = await client.create_project("digits", display_name="Digits")
            assert (made.name, made.display_name) == ("projects/digits", "Digits")
            assert made.uid
            assert made.training_dataset.uri == client.source()["uri"]
            get = project_service_pb2.GetProjectRequest(name="projects/digits")
            assert (await client.projects.GetProject(get)).project == made

            unnamed = await client.create_project("")
            listed = await client.projects.ListProjects(project_service_pb2.ListProjectsRequest(page_size=1))
            assert [project.name for project in listed.projects] == ["projects/digits"]
            listed = await client.projects.ListProjects(
                project_service_pb2.ListProjectsRequest(page_size=1, page_token=listed.next_page_token)
            )
            assert ([project.name for project in listed.projects], listed.next_page_token) == ([unnamed.name], "")

            change = project_service_pb2.UpdateProjectRequest(
                project={
                    "name": made.name,
                    "etag": made.etag,
                    "display_name": "ignored",
                    "validation_dataset": client.source("held-out"),
                },
                update_mask={"paths": ["validation_dataset"]},
            )
            changed = (await client.projects.UpdateProject(change)).project
            assert changed.validation_dataset.uri.endswith("held-out")
            assert (changed.display_name, changed.etag == made.etag) == ("Digits", False)
            error = await refused(client.projects.UpdateProject(change))
            assert error.reason is Reason.ETAG_MISMATCH

            delete = project_service_pb2.DeleteProjectRequest(name=made.name, request_id=str(uuid.uuid4()))
            for _ in range(2):
                await client.projects.DeleteProject(delete)
            error = await refused(client.projects.GetProject(get))
            assert (type(error), error.reason) == (NotFound, Reason.PROJECT_NOT_FOUND)

    asyncio.run(test())


def test_everything_wrong_with_a_project_is_told_at_once(serve):
    async def test():
        async with serve() as client:
            request = project_service_pb2.CreateProjectRequest(
                project_id="Digits!",
                project={
                    "display_name": "x" * 201,
                    "training_dataset": {"uri": "ftp://somewhere"},
                    "validation_dataset": client.source(credentials={"s3": {"access_key_id": "key"}}),
                },
            )
            assert fields_of(await refused(client.projects.CreateProject(request))) == [
                "project_id",
                "project.display_name",
                "project.training_dataset.uri",
                "project.validation_dataset.credentials",
            ]

    asyncio.run(test())


@pytest.mark.parametrize(
    "source",
    [
        {"uri": "file:///etc"},
        {"uri": "s3://bucket/digits", "endpoint_url": "http://169.254.169.254"},
    ],
)
def test_source_outside_what_is_allowed_is_refused(serve, source):
    async def test():
        async with serve(allowed_endpoint_hosts=("minio:9000",)) as client:
            error = await refused(client.create_project("digits", training_dataset=source))
            assert (type(error), error.reason) == (PermissionDenied, Reason.URI_NOT_ALLOWED)

    asyncio.run(test())


def test_source_whose_region_would_lead_to_another_host_is_refused(serve):
    async def test():
        async with serve() as client:
            source = {"uri": "s3://bucket/digits", "region": "x@169.254.169.254/"}
            error = await refused(client.create_project("digits", training_dataset=source))
            assert [violation.field for violation in error.violations] == ["project.training_dataset.region"]

    asyncio.run(test())


def test_credentials_are_nowhere_but_with_the_runner(serve, simulated_runner, tmp_path):
    secret = "wJalrXUtnFEMI"
    source = {
        "uri": "s3://bucket/digits",
        "endpoint_url": "http://minio:9000",
        "credentials": {"s3": {"access_key_id": "AKIA-of-the-test", "secret_access_key": secret}},
    }

    async def test():
        async with serve(allowed_endpoint_hosts=("minio:9000",)) as client:
            made = await client.create_project("digits", training_dataset=source)
            assert made.training_dataset.credentials_stored
            assert not made.training_dataset.HasField("credentials")
            job = await client.submit()
            assert not job.training_dataset.HasField("credentials")
            runner = simulated_runner(client)
            await runner.idle()
            assert runner.assignment.training_dataset.credentials.s3.secret_access_key == secret

    asyncio.run(test())
    for path in tmp_path.glob("scheduler.sqlite*"):
        assert secret.encode() not in path.read_bytes()


def test_stored_credentials_change_only_where_an_update_says_so(serve):
    source = {"uri": "s3://bucket/digits", "endpoint_url": "http://minio:9000"}
    keys = {"s3": {"access_key_id": "key", "secret_access_key": "secret"}}

    async def test():
        async with serve(allowed_endpoint_hosts=("minio:9000",)) as client:
            await client.create_project("digits", training_dataset={**source, "credentials": keys})

            async def update(path: str, **changed) -> bool:
                request = project_service_pb2.UpdateProjectRequest(
                    project={"name": "projects/digits", "training_dataset": {**source, **changed}},
                    update_mask={"paths": path.split()},
                )
                return (await client.projects.UpdateProject(request)).project.training_dataset.credentials_stored

            # Whether credentials are stored is told by the server, whatever a request says.
            assert await update("training_dataset", region="eu")
            assert await update("training_dataset.credentials", credentials=keys)
            assert not await update("training_dataset.credentials", credentials_stored=True)
            assert not await update("training_dataset", credentials_stored=True)
            assert await update("training_dataset", credentials=keys)
            assert not await update("training_dataset training_dataset.credentials")
            half = update("training_dataset.credentials", credentials={"s3": {"access_key_id": "key"}})
            assert fields_of(await refused(half)) == ["project.training_dataset.credentials.s3.secret_access_key"]

    asyncio.run(test())


def test_job_that_ended_has_no_queue_position_phase_or_time_left(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit()
            assert (await client.get(job.name)).HasField("queue_position")
            runner = simulated_runner(client)
            await runner.idle()
            progress = {"phase": "uploading", "iteration": 7, "time_left": {"seconds": 90}, "done": 1, "total": 2}
            await runner.work(progress=progress)
            running = await client.get(job.name)
            assert (running.HasField("queue_position"), running.progress.phase) == (False, "uploading")
            await runner.close("ATTEMPT_OUTCOME_FAILED", reason="JOB_REASON_TRAINER_ERROR")
            ended = await client.get(job.name)
            assert ended.progress == job_pb2.Progress(iteration=7, iterations_max=running.progress.iterations_max)

    asyncio.run(test())


def test_submitted_job_is_queued_with_every_default(serve):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit(job_id="first", spec={"labels": {"team": "a"}})
            assert (job.name, job.state, job.creator) == ("projects/digits/jobs/first", QUEUED, tokens.ADMIN)
            assert job.spec.trainer.HasField("iterations_max")
            assert job.spec.trainer.WhichOneof("optimizer") == "adamw"
            got = await client.get(job.name)
            assert (got.queue_position, got.why_not_running) == (0, "no runner is registered")
            for only_in_get_job in ("queue_position", "why_not_running"):
                got.ClearField(only_in_get_job)
            assert got == job

    asyncio.run(test())


def test_repeated_submit_gets_the_first_answer_also_after_a_restart(serve):
    request_id = str(uuid.uuid4())

    async def test():
        async with serve() as client:
            await client.create_project()
            at_once = await asyncio.gather(*(client.submit(request_id=request_id) for _ in range(8)))
            assert len({job.uid for job in at_once}) == 1
        async with serve() as client:
            assert await client.submit(request_id=request_id) == at_once[0]
            listed = await client.jobs.ListJobs(job_service_pb2.ListJobsRequest(parent="projects/digits"))
            assert len(listed.jobs) == 1
            error = await refused(client.submit(request_id=request_id, spec={"priority": 3}))
            assert (type(error), error.reason) == (AlreadyExists, Reason.REQUEST_ID_REUSED)

    asyncio.run(test())


def test_wrong_submit_is_refused_with_every_field(serve):
    async def test():
        async with serve() as client:
            await client.create_project()
            spec = {"priority": 5000, "trainer": {"batch_size": -1}}
            error = await refused(client.submit(job_id="NO", request_id="no-uuid", spec=spec))
            assert {"request_id", "job_id", "spec.priority", "spec.trainer.batch_size"} <= set(fields_of(error))
            error = await refused(client.submit("nowhere"))
            assert (type(error), error.reason) == (NotFound, Reason.PROJECT_NOT_FOUND)
            await client.submit(job_id="first")
            error = await refused(client.submit(job_id="first"))
            assert (type(error), error.reason) == (AlreadyExists, Reason.JOB_ALREADY_EXISTS)

    asyncio.run(test())


class Conversion(conversion_service_pb2_grpc.ConversionServiceServicer):
    """A conversion service that knows one answer; the real one has tests of its own."""

    def __init__(self, refusal: SihlaiError | None) -> None:
        self.refusal = refusal
        self.refused_uris: set[str] = set()
        """Where they are not empty, of these datasets alone."""
        self.inspected: conversion_service_pb2.InspectDatasetResponse | None = None
        self.asked: list[conversion_service_pb2.PlanConversionRequest] = []

    async def PlanConversion(self, request, context):  # noqa: N802 - the RPC's name
        self.asked.append(request)
        if self.refusal is not None and (not self.refused_uris or request.source.uri in self.refused_uris):
            raise self.refusal
        return conversion_service_pb2.PlanConversionResponse()

    async def InspectDataset(self, request, context):  # noqa: N802 - the RPC's name
        if self.inspected is None:
            raise Unavailable(Reason.OBJECT_STORE_UNAVAILABLE, "away", {})
        return self.inspected


async def conversion_server(conversion: Conversion) -> rpc.Server:
    server = rpc.Server(ServerConfig(drain_seconds=0.1), OpenGuard())
    server.add(
        "sihlai.conversion.v1.ConversionService",
        lambda s: conversion_service_pb2_grpc.add_ConversionServiceServicer_to_server(conversion, s),
    )
    await server.start()
    return server


def test_head_that_cannot_be_reached_is_refused_as_conversion_says(serve):
    refusal = FailedPrecondition(
        Reason.TASK_NOT_REACHABLE, "no way", {"from": "depth", "to": "multiclass", "reachable": "none"}
    )

    async def test():
        conversion = Conversion(None)
        server = await conversion_server(conversion)
        async with serve(conversion_address=server.address) as client:
            await client.create_project()
            request_id = str(uuid.uuid4())
            job = await client.submit(request_id=request_id)
            assert conversion.asked[0].source.uri == client.source()["uri"]
            conversion.refusal = refusal
            error = await refused(client.submit())
            assert (type(error), error.reason, error.metadata["reachable"]) == (
                FailedPrecondition,
                Reason.TASK_NOT_REACHABLE,
                "none",
            )
            # What was accepted stays accepted.
            assert (await client.submit(request_id=request_id)).uid == job.uid
        await server.stop()

    asyncio.run(test())


def test_head_that_cannot_be_reached_from_the_validation_dataset_is_refused_at_submit(serve):
    async def test():
        conversion = Conversion(FailedPrecondition(Reason.TASK_NOT_REACHABLE, "no way", {"reachable": "none"}))
        server = await conversion_server(conversion)
        async with serve(conversion_address=server.address) as client:
            validation = {"uri": client.source()["uri"] + "/validation"}
            conversion.refused_uris = {validation["uri"]}
            await client.create_project("one")
            await client.submit("one")
            await client.create_project("two", validation_dataset=validation)
            error = await refused(client.submit("two"))
            assert (type(error), error.reason) == (FailedPrecondition, Reason.TASK_NOT_REACHABLE)
            assert error.message == "of the validation dataset: no way"
        await server.stop()

    asyncio.run(test())


def test_a_head_without_a_labelled_validation_image_is_warned_of(serve):
    def inspected(**labelled):
        sets = [{"name": name, "labelled_images": count} for name, count in labelled.items()]
        return json_format.ParseDict({"annotation_sets": sets}, conversion_service_pb2.InspectDatasetResponse())

    async def test():
        conversion = Conversion(None)
        server = await conversion_server(conversion)
        async with serve(conversion_address=server.address) as client:
            await client.create_project()
            heads = [
                {"id": "known", "task": "TASK_MULTICLASS_CLASSIFICATION", "annotation_set": "many"},
                {"id": "new", "task": "TASK_REGRESSION", "annotation_set": "one"},
                {"id": "alone", "task": "TASK_AUTOENCODING", "annotation_set": "one"},
            ]
            request = job_service_pb2.SubmitJobRequest(parent="projects/digits")
            json_format.ParseDict({"model": {"heads": heads}}, request.spec)
            assert list((await client.jobs.SubmitJob(request)).warnings) == []  # nobody can say
            conversion.inspected = inspected(many=50, one=1)
            request.request_id = str(uuid.uuid4())
            answer = await client.jobs.SubmitJob(request)
            wanted = "head new has no labelled image to validate on, so it will have no metrics"
            assert list(answer.warnings) == [wanted]
            assert await client.jobs.SubmitJob(request) == answer  # also where it is asked again
            conversion.inspected = inspected(many=50, one=2)
            request.request_id = str(uuid.uuid4())
            assert list((await client.jobs.SubmitJob(request)).warnings) == []
        await server.stop()

    asyncio.run(test())


def test_job_is_accepted_while_conversion_is_away(serve):
    async def test():
        server = await conversion_server(Conversion(None))
        address = server.address
        await server.stop()
        async with serve(conversion_address=address) as client:
            await client.create_project()
            assert (await client.submit()).state == QUEUED

    asyncio.run(test())


def test_jobs_are_listed_in_pages_and_a_token_belongs_to_its_filter(serve):
    async def test():
        async with serve() as client:
            await client.create_project()
            for number in range(5):
                await client.submit(job_id=f"job-{number}")
            request = job_service_pb2.ListJobsRequest(parent="projects/-", page_size=2)
            names = []
            while True:
                page = await client.jobs.ListJobs(request)
                names += [job.name.rpartition("/")[2] for job in page.jobs]
                request.page_token = page.next_page_token
                if not page.next_page_token:
                    break
                token = page.next_page_token
            assert names == [f"job-{number}" for number in (4, 3, 2, 1, 0)]
            other = job_service_pb2.ListJobsRequest(parent="projects/digits", page_token=token)
            assert (await refused(client.jobs.ListJobs(other))).reason is Reason.INVALID_PAGE_TOKEN
            negative = job_service_pb2.ListJobsRequest(parent="projects/digits", page_size=-1)
            assert fields_of(await refused(client.jobs.ListJobs(negative))) == ["page_size"]

    asyncio.run(test())


def test_several_jobs_are_read_at_once_in_the_order_asked_for(serve):
    async def test():
        async with serve() as client:
            await client.create_project()
            first, second = await client.submit(job_id="first"), await client.submit(job_id="second")
            request = job_service_pb2.BatchGetJobsRequest(
                names=[second.name, "projects/digits/jobs/gone", first.name], uids=["nobody", first.uid]
            )
            answer = await client.jobs.BatchGetJobs(request)
            assert [job.uid for job in answer.jobs] == [second.uid, first.uid, first.uid]
            assert list(answer.missing) == ["projects/digits/jobs/gone", "nobody"]

    asyncio.run(test())


def test_queued_job_stops_at_once_and_again_without_an_error(serve):
    async def test():
        async with serve() as client:
            await client.create_project()
            job = await client.submit()
            request = job_service_pb2.StopJobRequest(name=job.name, reason="wrong rate")
            stopped = (await client.jobs.StopJob(request)).job
            assert (stopped.state, stopped.reason, stopped.reason_message, stopped.stopper) == (
                STOPPED,
                job_pb2.JOB_REASON_USER_STOP,
                "wrong rate",
                tokens.ADMIN,
            )
            assert (await client.jobs.StopJob(request)).job == stopped
            wrong = job_service_pb2.StopJobRequest(name=job.name, grace={"seconds": -1})
            assert fields_of(await refused(client.jobs.StopJob(wrong))) == ["grace"]

    asyncio.run(test())


def write_checkpoint(uri: str, iteration: int, epoch: int = 1, content: bytes = b"the model") -> None:
    """A whole checkpoint as an agent uploads it."""
    folder = Path(uri.removeprefix("file://")) / str(iteration)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content)
    manifest = {
        "files": [
            {
                "name": "model.safetensors",
                "size_bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        ],
        "iteration": iteration,
        "epoch": epoch,
        "cause": "VALIDATION",
        "create_time_unix_us": 1_800_000_000_000_000,
        "selection_value": 0.9,
        "best": True,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


async def completed_job(client, runner, content: bytes = b"the model", **fields):
    """A job that ran to its end and left a final model of 60 iterations."""
    job = await client.submit(**fields)
    await runner.idle()
    write_checkpoint(runner.assignment.checkpoint_uri, 60, content=content)
    final = runner.checkpoint(60, cause="CHECKPOINT_CAUSE_FINAL")
    final["files"] = [{"name": "model.safetensors", "size_bytes": len(content), "sha256": "00"}]
    await runner.close("ATTEMPT_OUTCOME_COMPLETED", checkpoints=[final], reason="JOB_REASON_LIMIT_REACHED")
    return await client.get(job.name)


def test_resumed_job_goes_on_with_changed_hyperparameters_and_the_rest_as_it_was(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            runner = simulated_runner(client)
            spec = {"trainer": {"iterations_max": 60, "batch_size": 16}, "display_name": "one"}
            old = await completed_job(client, runner, job_id="first", spec=spec)
            assert old.state == COMPLETED
            request = job_service_pb2.ResumeJobRequest(
                name=old.name, trainer=job_spec_pb2.Trainer(iterations_max=100), request_id=str(uuid.uuid4())
            )
            job = (await client.jobs.ResumeJob(request)).job
            assert (await client.jobs.ResumeJob(request)).job == job
            assert (job.source_job, job.source_checkpoint) == (old.name, f"{old.name}/checkpoints/1-60")
            assert (job.spec.trainer.iterations_max, job.spec.trainer.batch_size) == (100, 16)
            assert (job.spec.model, job.spec.data) == (old.spec.model, old.spec.data)
            await runner.idle()
            assert runner.assignment.job == job.name
            assert runner.assignment.resume_from.name == f"{old.name}/checkpoints/1-60"
            assert (await client.get(job.name)).attempts[0].from_step == 61

    asyncio.run(test())


def test_resume_needs_an_ended_job_with_a_checkpoint_and_something_left_to_do(serve, simulated_runner):
    async def test():
        async with serve() as client:
            await client.create_project()
            runner = simulated_runner(client)
            spec = {"trainer": {"iterations_max": 60}}
            old = await completed_job(client, runner, spec=spec)
            same = job_service_pb2.ResumeJobRequest(name=old.name)
            assert fields_of(await refused(client.jobs.ResumeJob(same))) == ["trainer.iterations_max"]
            wrong = job_service_pb2.ResumeJobRequest(name=old.name, checkpoint="1-61")
            assert (await refused(client.jobs.ResumeJob(wrong))).reason is Reason.CHECKPOINT_NOT_FOUND
            queued = await client.submit()
            request = job_service_pb2.ResumeJobRequest(name=queued.name)
            assert (await refused(client.jobs.ResumeJob(request))).reason is Reason.JOB_STATE
            await client.jobs.StopJob(job_service_pb2.StopJobRequest(name=queued.name))
            assert (await refused(client.jobs.ResumeJob(request))).reason is Reason.NO_CHECKPOINT

    asyncio.run(test())


def test_checkpoints_are_listed_read_by_their_nicknames_and_downloaded_from_any_offset(serve, simulated_runner):
    content = bytes(range(256)) * 9_000  # more than two chunks

    async def test():
        async with serve() as client:
            await client.create_project()
            job = await completed_job(client, simulated_runner(client), content=content)
            listed = await client.checkpoints.ListCheckpoints(
                checkpoint_service_pb2.ListCheckpointsRequest(parent=job.name)
            )
            assert [each.name for each in listed.checkpoints] == [f"{job.name}/checkpoints/1-60"]
            for nickname in ("last", "final", "1-60"):
                request = checkpoint_service_pb2.GetCheckpointRequest(name=f"{job.name}/checkpoints/{nickname}")
                assert (await client.checkpoints.GetCheckpoint(request)).checkpoint == listed.checkpoints[0]

            async def download(offset: int) -> bytes:
                request = checkpoint_service_pb2.DownloadCheckpointRequest(
                    name=f"{job.name}/checkpoints/final", offset=offset
                )
                messages = [message async for message in client.checkpoints.DownloadCheckpoint(request)]
                assert messages[0].head.checkpoint == listed.checkpoints[0]
                assert messages[0].head.file.size_bytes == len(content)
                return b"".join(message.chunk for message in messages[1:])

            assert await download(0) == content
            assert await download(2_000_000) == content[2_000_000:]
            assert await download(len(content)) == b""
            error = await refused(download(len(content) + 1))
            assert (type(error), error.reason) == (OutOfRange, Reason.OFFSET_BEYOND_END)
            request = checkpoint_service_pb2.GetCheckpointRequest(name=f"{job.name}/checkpoints/9-9")
            assert (await refused(client.checkpoints.GetCheckpoint(request))).reason is Reason.CHECKPOINT_NOT_FOUND

    asyncio.run(test())


async def take(stream, wanted: str, seconds: float = 10.0):
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
        async with serve(drain_seconds=20.0) as client:
            await client.create_project()
            stream = client.jobs.WatchJobs(job_service_pb2.WatchJobsRequest(parent="projects/-"))
            await take(stream, "caught_up")
            async with asyncio.timeout(5.0):
                stopping = asyncio.ensure_future(client.scheduler.server.stop())
                error = await refused(stream.read())
                await stopping
            assert error.reason is Reason.SERVER_STOPPING

    asyncio.run(test())
