"""What a submit asks the conversion service: whether its heads can be reached, and have images to validate on."""

from __future__ import annotations

import asyncio
import uuid

from google.protobuf import json_format
from sihlai.conversion.v1 import conversion_service_pb2
from sihlai.scheduler.v1 import job_pb2, job_service_pb2

from services.chassis.errors import FailedPrecondition, Reason
from tests.scheduler.conversion_double import Conversion, conversion_server
from tests.scheduler.refusal import refused

QUEUED = job_pb2.JOB_STATE_QUEUED


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
