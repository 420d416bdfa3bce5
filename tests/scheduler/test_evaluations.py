"""EvaluateCheckpoint: a job that validates a checkpoint and trains nothing."""

from __future__ import annotations

import asyncio
import uuid

from sihlai.scheduler.v1 import job_pb2, job_service_pb2

from services.chassis.errors import FailedPrecondition, Reason
from tests.scheduler.completed_job import completed_job
from tests.scheduler.conversion_double import Conversion, conversion_server
from tests.scheduler.refusal import fields_of, refused

COMPLETED = job_pb2.JOB_STATE_COMPLETED


def evaluation(name: str, **fields) -> job_service_pb2.EvaluateCheckpointRequest:
    return job_service_pb2.EvaluateCheckpointRequest(name=name, **fields)


async def trained(client, runner, **fields):
    return await completed_job(
        client, runner, spec={"trainer": {"iterations_max": 80}, "display_name": "one"}, **fields
    )


def test_an_evaluation_gets_the_model_and_what_its_job_validated_on_and_begins_anew_each_time(serve, simulated_runner):
    async def test():
        async with serve() as client:
            validation = client.source("validation")
            await client.create_project(validation_dataset=validation)
            runner = simulated_runner(client)
            old = await trained(client, runner)
            request = evaluation(f"{old.name}/checkpoints/best", job_id="harder", request_id=str(uuid.uuid4()))
            error = await refused(client.jobs.EvaluateCheckpoint(request))
            assert error.reason is Reason.CHECKPOINT_NOT_FOUND, "no checkpoint of it was the best"
            request.name = f"{old.name}/checkpoints/final"
            job = (await client.jobs.EvaluateCheckpoint(request)).job
            assert (await client.jobs.EvaluateCheckpoint(request)).job == job, "a repeat gets the first answer"
            assert job.evaluation
            assert not old.evaluation
            assert (job.source_job, job.source_checkpoint) == (old.name, f"{old.name}/checkpoints/1-60")
            assert job.spec == old.spec
            assert job.validation_dataset.uri == validation["uri"]
            assert job.progress.iterations_max == 60

            for number in (1, 2):  # a second attempt evaluates the same again, whatever the first one left
                await runner.idle()
                assigned = runner.assignment
                assert (assigned.job, assigned.attempt) == (job.name, number)
                assert assigned.evaluation
                assert assigned.resume_from.name == f"{old.name}/checkpoints/1-60"
                assert (await client.get(job.name)).attempts[-1].from_step == 60
                found = runner.checkpoint(60, cause="CHECKPOINT_CAUSE_EVALUATION")
                outcome = "ATTEMPT_OUTCOME_HANDED_BACK" if number == 1 else "ATTEMPT_OUTCOME_COMPLETED"
                await runner.close(outcome, checkpoints=[found])
            done = await client.get(job.name)
            assert done.state == COMPLETED
            assert done.last_checkpoint.cause == job_pb2.CHECKPOINT_CAUSE_EVALUATION

            resume = job_service_pb2.ResumeJobRequest(name=job.name, trainer={"iterations_max": 100})
            error = await refused(client.jobs.ResumeJob(resume))
            assert error.reason is Reason.NO_CHECKPOINT
            assert old.name in error.message
            again = (await client.jobs.EvaluateCheckpoint(evaluation(f"{job.name}/checkpoints/last"))).job
            assert again.source_job == job.name, "it holds the model, so it can be evaluated too"

    asyncio.run(test())


def test_an_evaluation_of_a_dataset_of_its_own_keeps_its_credentials_for_as_long_as_it_lives(
    serve, simulated_runner, tmp_path
):
    keys = {"access_key_id": "AKIA-of-the-test", "secret_access_key": "wJalrXUtnFEMI"}
    own = {"uri": "s3://bucket/harder", "endpoint_url": "http://minio:9000"}

    async def test():
        async with serve(allowed_endpoint_hosts=("minio:9000",)) as client:
            await client.create_project()
            runner = simulated_runner(client)
            old = await trained(client, runner)
            request = evaluation(f"{old.name}/checkpoints/final", dataset={**own, "credentials": {"s3": keys}})
            job = (await client.jobs.EvaluateCheckpoint(request)).job
            assert job.validation_dataset.uri == own["uri"]
            assert job.validation_dataset.credentials_stored
            assert not job.validation_dataset.HasField("credentials")
            await runner.idle()
            assert runner.assignment.validation_dataset.credentials.s3.secret_access_key == keys["secret_access_key"]
            assert runner.assignment.training_dataset.uri == client.source()["uri"]

    asyncio.run(test())
    for path in tmp_path.glob("scheduler.sqlite*"):
        assert keys["secret_access_key"].encode() not in path.read_bytes()


def test_what_cannot_be_evaluated_is_refused_with_the_reason(serve, simulated_runner):
    async def test():
        conversion = Conversion(FailedPrecondition(Reason.TASK_NOT_REACHABLE, "no way", {"reachable": "none"}))
        server = await conversion_server(conversion)
        async with serve(conversion_address=server.address) as client:
            conversion.refused_uris = {client.source("maps")["uri"]}
            await client.create_project()
            runner = simulated_runner(client)
            old = await trained(client, runner)
            name = f"{old.name}/checkpoints/1-60"

            error = await refused(client.jobs.EvaluateCheckpoint(evaluation(name, dataset=client.source("maps"))))
            assert (type(error), error.reason) == (FailedPrecondition, Reason.TASK_NOT_REACHABLE)
            error = await refused(client.jobs.EvaluateCheckpoint(evaluation(f"{old.name}/checkpoints/1-61")))
            assert error.reason is Reason.CHECKPOINT_NOT_FOUND
            wrong = evaluation(name, job_id="Not An Id", request_id="no uuid", dataset={"uri": "ftp://x/y"})
            fields = fields_of(await refused(client.jobs.EvaluateCheckpoint(wrong)))
            assert {"job_id", "request_id", "dataset.uri"} <= set(fields)
            assert fields_of(await refused(client.jobs.EvaluateCheckpoint(evaluation(old.name)))) == ["name"]

            conversion.asked.clear()
            await client.jobs.EvaluateCheckpoint(evaluation(name, dataset=client.source("boxes")))
            assert [each.source.uri for each in conversion.asked] == [client.source("boxes")["uri"]]
        await server.stop()

    asyncio.run(test())
