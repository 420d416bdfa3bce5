"""JobService of the real server: jobs are submitted, read, listed, stopped and resumed."""

from __future__ import annotations

import asyncio
import uuid

from sihlai.scheduler.v1 import job_pb2, job_service_pb2, job_spec_pb2

from services.chassis.errors import AlreadyExists, NotFound, Reason
from tests import tokens
from tests.scheduler.completed_job import completed_job
from tests.scheduler.refusal import fields_of, refused

QUEUED, STOPPED = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_STOPPED
COMPLETED = job_pb2.JOB_STATE_COMPLETED


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
