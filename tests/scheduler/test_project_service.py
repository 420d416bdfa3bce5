"""ProjectService of the real server, and the credentials of a project's datasets."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from sihlai.scheduler.v1 import project_service_pb2

from services.chassis.errors import NotFound, PermissionDenied, Reason
from tests.scheduler.refusal import fields_of, refused


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


def test_change_of_a_project_that_has_changed_since_is_refused_with_both_etags(serve):
    async def test():
        async with serve() as client:
            project = await client.create_project()

            async def rename(number: int, etag: str = "") -> project_service_pb2.Project:
                change = project_service_pb2.UpdateProjectRequest(
                    project={"name": project.name, "etag": etag, "display_name": f"Digits {number}"},
                    update_mask={"paths": ["display_name"]},
                )
                return (await client.projects.UpdateProject(change)).project

            read, *_, newest = [await rename(number) for number in range(20)]
            error = await refused(rename(20, read.etag))
            assert (error.reason, dict(error.metadata)) == (
                Reason.ETAG_MISMATCH,
                {"etag": read.etag, "current": newest.etag},
            )
            assert (await rename(21, error.metadata["current"])).display_name == "Digits 21"

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
